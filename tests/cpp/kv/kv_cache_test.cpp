// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// One rule of KvCache per test.
#include "smartspec/kv_cache.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace smartspec {
namespace {

using Tokens = std::vector<TokenId>;
using Path = std::vector<std::int32_t>;
using Moves = std::vector<KvMove>;

/// `count` tokens of a text that `document` names.
Tokens text(std::int32_t document, std::int32_t count) {
  Tokens tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), document * 1000);
  return tokens;
}

Path first_offsets(std::size_t count) {
  Path path(count);
  std::iota(path.begin(), path.end(), 0);
  return path;
}

class KvCacheTest : public testing::Test {
 protected:
  void make(std::int32_t num_blocks, std::int32_t block_size = 16, bool prefix = true) {
    cache = KvCache({.num_blocks = num_blocks,
                     .block_size = block_size,
                     .enable_prefix_caching = prefix,
                     .hash_seed = 3});
  }
  void TearDown() override { EXPECT_EQ(cache.check_integrity(), ""); }

  void append(SequenceId sequence, const Tokens& tokens) {
    Moves ignored;
    ASSERT_TRUE(cache.reserve(sequence, static_cast<std::int32_t>(tokens.size()), ignored));
    cache.commit(sequence, first_offsets(tokens.size()), tokens, ignored);
  }
  SequenceId sequence_of(const Tokens& tokens, std::uint64_t salt = 0) {
    const SequenceId sequence = cache.add_sequence(salt);
    append(sequence, tokens);
    return sequence;
  }
  std::int32_t hit(const Tokens& tokens, std::uint64_t salt = 0) {
    const SequenceId sequence = cache.add_sequence(salt);
    const std::int32_t found = cache.match_prefix(sequence, tokens);
    cache.remove_sequence(sequence);
    return found;
  }
  std::int32_t num_free() const { return cache.stats().num_free; }

  template <class Call>
  void expect_misuse(Call call, const std::string& words) {
    const std::int32_t free_before = num_free();
    try {
      call();
      FAIL() << "no exception for: " << words;
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
    EXPECT_EQ(num_free(), free_before);
  }

  KvCache cache{{.num_blocks = 8}};
  Moves moves;
};

static_assert(!std::is_copy_constructible_v<KvCache> && std::is_nothrow_move_assignable_v<KvCache>);

TEST_F(KvCacheTest, OptionsAreChecked) {
  expect_misuse([] { KvCache({.num_blocks = 0}); }, "num_blocks is 0");
  expect_misuse([] { KvCache({.num_blocks = -4}); }, "num_blocks is -4");
  expect_misuse([] { KvCache({.num_blocks = INT32_MAX}); }, "allowed are 1 to 134217727");
  for (const std::int32_t size : {0, -16, 8, 17, 24, INT32_MIN, INT32_MAX}) {
    expect_misuse([=] { KvCache({.num_blocks = 4, .block_size = size}); },
                  "block_size is " + std::to_string(size));
  }
  EXPECT_EQ(KvCache({.num_blocks = 3, .block_size = 48}).options().block_size, 48);
}

TEST_F(KvCacheTest, ReservesWhatWasAskedInLogicalOrder) {
  const SequenceId sequence = cache.add_sequence();
  ASSERT_TRUE(cache.reserve(sequence, 18, moves));
  EXPECT_EQ(cache.reserved(sequence), 18);
  EXPECT_EQ(cache.verified_length(sequence), 0);
  ASSERT_EQ(cache.block_table(sequence).size(), 2U);
  EXPECT_EQ(num_free(), 6);
  for (std::int32_t i = 0; i < 18; ++i) {
    const BlockId block = cache.block_table(sequence)[static_cast<std::size_t>(i / 16)];
    EXPECT_EQ(cache.slot(sequence, i), block * 16 + i % 16);
  }
  EXPECT_TRUE(moves.empty());
}

TEST_F(KvCacheTest, ExhaustedPoolChangesNothing) {
  const SequenceId first = cache.add_sequence();
  const SequenceId second = cache.add_sequence();
  ASSERT_TRUE(cache.reserve(first, 7 * 16, moves));
  EXPECT_EQ(cache.blocks_needed(second, 17), 2);
  EXPECT_FALSE(cache.reserve(second, 17, moves));
  EXPECT_EQ(cache.reserved(second), 0);
  EXPECT_TRUE(cache.block_table(second).empty());
  EXPECT_EQ(num_free(), 1);
  EXPECT_FALSE(cache.reserve(second, INT32_MAX - 15, moves));
  EXPECT_TRUE(cache.reserve(second, 16, moves));
  EXPECT_EQ(num_free(), 0);
}

TEST_F(KvCacheTest, CommitMovesAcceptedRowsAndFreesTheRest) {
  const SequenceId sequence = sequence_of(text(1, 14));
  ASSERT_TRUE(cache.reserve(sequence, 24, moves));
  EXPECT_EQ(num_free(), 5);
  const BlockId b0 = cache.block_table(sequence)[0];
  const BlockId b1 = cache.block_table(sequence)[1];
  cache.commit(sequence, Path{0, 3, 4, 20}, Tokens{7, 8, 9, 10}, moves);
  EXPECT_EQ(cache.verified_length(sequence), 18);
  EXPECT_EQ(cache.reserved(sequence), 0);
  EXPECT_EQ(num_free(), 6);
  ASSERT_EQ(moves.size(), 3U);  // logical 17, 18, 34 to 15, 16, 17
  EXPECT_EQ(moves[0].source, b1 * 16 + 1);
  EXPECT_EQ(moves[0].destination, b0 * 16 + 15);
  EXPECT_EQ(moves[1].source, b1 * 16 + 2);
  EXPECT_EQ(moves[1].destination, b1 * 16);
  EXPECT_EQ(moves[2].destination, b1 * 16 + 1);
}

TEST_F(KvCacheTest, AcceptedChainNeedsNoMoves) {
  const SequenceId sequence = cache.add_sequence();
  ASSERT_TRUE(cache.reserve(sequence, 6, moves));
  cache.commit(sequence, Path{0, 1, 2}, Tokens{5, 5, 5}, moves);
  EXPECT_TRUE(moves.empty());
  EXPECT_EQ(cache.verified_length(sequence), 3);
}

TEST_F(KvCacheTest, CommittingNothingIsARollback) {
  const SequenceId sequence = sequence_of(text(1, 3));
  ASSERT_TRUE(cache.reserve(sequence, 40, moves));
  cache.commit(sequence, Path{}, Tokens{}, moves);
  EXPECT_EQ(cache.verified_length(sequence), 3);
  EXPECT_EQ(cache.reserved(sequence), 0);
  EXPECT_EQ(num_free(), 7);
}

TEST_F(KvCacheTest, RollbackReturnsAllBlocks) {
  const SequenceId sequence = sequence_of(text(1, 20));
  ASSERT_TRUE(cache.reserve(sequence, 50, moves));
  EXPECT_EQ(num_free(), 3);
  cache.rollback(sequence);
  EXPECT_EQ(num_free(), 6);
  cache.rollback(sequence);  // nothing open
  EXPECT_EQ(num_free(), 6);
  EXPECT_EQ(cache.verified_length(sequence), 20);
}

TEST_F(KvCacheTest, TruncateFreesBlocksBeyondTheLength) {
  const SequenceId sequence = sequence_of(text(1, 50));
  cache.truncate(sequence, 17);
  EXPECT_EQ(cache.verified_length(sequence), 17);
  EXPECT_EQ(cache.block_table(sequence).size(), 2U);
  cache.truncate(sequence, 17);
  cache.truncate(sequence, 0);
  EXPECT_TRUE(cache.block_table(sequence).empty());
  EXPECT_EQ(num_free(), 8);
}

TEST_F(KvCacheTest, RemoveWithAnOpenReservationLosesNothing) {
  const SequenceId parent = sequence_of(text(1, 20));
  const SequenceId child = cache.fork(parent, 20);
  ASSERT_TRUE(cache.reserve(child, 30, moves));
  cache.remove_sequence(child);
  EXPECT_EQ(num_free(), 6);
  cache.remove_sequence(parent);
  EXPECT_EQ(num_free(), 8);
  EXPECT_EQ(cache.num_sequences(), 0);
}

// Fork and copy-on-write.

TEST_F(KvCacheTest, ForkSharesBlocksAndTheFirstWriterCopies) {
  const SequenceId parent = sequence_of(text(1, 20));
  const SequenceId child = cache.fork(parent, 18);
  EXPECT_EQ(cache.verified_length(child), 18);
  EXPECT_EQ(num_free(), 6);
  EXPECT_EQ(cache.blocks_needed(child, 1), 1);
  const BlockId shared = cache.block_table(child)[1];
  ASSERT_TRUE(cache.reserve(child, 1, moves));
  ASSERT_EQ(moves.size(), 2U);
  const BlockId copy = cache.block_table(child)[1];
  EXPECT_NE(copy, shared);
  for (std::int32_t i = 0; i < 2; ++i) {
    EXPECT_EQ(moves[static_cast<std::size_t>(i)].source, shared * 16 + i);
    EXPECT_EQ(moves[static_cast<std::size_t>(i)].destination, copy * 16 + i);
  }
  // The parent is the only one left, in the same step already.
  EXPECT_EQ(cache.blocks_needed(parent, 1), 0);
  moves.clear();
  ASSERT_TRUE(cache.reserve(parent, 1, moves));
  EXPECT_TRUE(moves.empty());
  EXPECT_EQ(cache.block_table(parent)[1], shared);
}

TEST_F(KvCacheTest, SecondWriterCopiesWhileARollbackMayNeedItsSlots) {
  const SequenceId parent = sequence_of(text(1, 20));
  const SequenceId child = cache.fork(parent, 17);
  ASSERT_TRUE(cache.reserve(parent, 1, moves));  // pins slots 0 to 3 of the shared block
  EXPECT_EQ(cache.blocks_needed(child, 1), 1);   // the child would write at 1
  cache.commit(parent, Path{0}, Tokens{1}, moves);
  EXPECT_EQ(cache.blocks_needed(child, 1), 0);
}

TEST_F(KvCacheTest, ForkAtABlockBoundaryCopiesNothing) {
  const SequenceId parent = sequence_of(text(1, 40));
  const SequenceId child = cache.fork(parent, 32);
  EXPECT_EQ(cache.blocks_needed(child, 16), 1);
  ASSERT_TRUE(cache.reserve(child, 16, moves));
  EXPECT_TRUE(moves.empty());
}

TEST_F(KvCacheTest, RollbackGoesBackToTheOriginal) {
  const SequenceId parent = sequence_of(text(1, 20));
  const SequenceId child = cache.fork(parent, 20);
  const BlockId shared = cache.block_table(parent)[1];
  ASSERT_TRUE(cache.reserve(child, 1, moves));
  EXPECT_NE(cache.block_table(child)[1], shared);
  cache.rollback(child);  // the copies may never have been performed
  EXPECT_EQ(cache.block_table(child)[1], shared);
  EXPECT_EQ(num_free(), 6);
}

TEST_F(KvCacheTest, ForkOfACopyingSequenceSharesTheOriginal) {
  const SequenceId parent = sequence_of(text(1, 20));
  const SequenceId child = cache.fork(parent, 20);
  const BlockId shared = cache.block_table(parent)[1];
  ASSERT_TRUE(cache.reserve(child, 1, moves));
  const SequenceId grandchild = cache.fork(child, 19);
  EXPECT_EQ(cache.block_table(grandchild)[1], shared);
  const SequenceId early = cache.fork(child, 16);
  EXPECT_EQ(cache.block_table(early).size(), 1U);
}

TEST_F(KvCacheTest, PublishedBlockIsNeverWritten) {
  const SequenceId sequence = sequence_of(text(1, 16));
  cache.truncate(sequence, 10);
  const BlockId published = cache.block_table(sequence)[0];
  EXPECT_EQ(cache.blocks_needed(sequence, 1), 1);
  ASSERT_TRUE(cache.reserve(sequence, 1, moves));
  EXPECT_EQ(moves.size(), 10U);
  EXPECT_NE(cache.block_table(sequence)[0], published);
  cache.commit(sequence, Path{0}, Tokens{1}, moves);
  EXPECT_EQ(hit(text(1, 17)), 16);
}

TEST_F(KvCacheTest, PublishedBlockIsTakenBackWhenThePoolIsFull) {
  make(1);
  const SequenceId sequence = sequence_of(text(1, 16));
  cache.truncate(sequence, 10);
  EXPECT_EQ(cache.blocks_needed(sequence, 1), 0);
  ASSERT_TRUE(cache.reserve(sequence, 6, moves));
  EXPECT_TRUE(moves.empty());
  EXPECT_EQ(cache.stats().num_cached, 0);
  cache.commit(sequence, first_offsets(6), text(2, 6), moves);
  EXPECT_EQ(hit(text(1, 17)), 0);
}

TEST_F(KvCacheTest, SharedPublishedBlockIsCopiedEvenWhenThePoolIsFull) {
  make(2);
  const SequenceId sequence = sequence_of(text(1, 16));
  const SequenceId other = cache.add_sequence();
  ASSERT_EQ(cache.match_prefix(other, text(1, 17)), 16);
  cache.truncate(other, 10);
  EXPECT_EQ(cache.blocks_needed(other, 1), 1);
  EXPECT_EQ(cache.blocks_needed(other, 7), 2);
  EXPECT_FALSE(cache.reserve(other, 7, moves));
  ASSERT_TRUE(cache.reserve(other, 6, moves));
  EXPECT_EQ(moves.size(), 10U);
  EXPECT_EQ(cache.verified_length(sequence), 16);
}

// Prefix cache.

TEST_F(KvCacheTest, MatchLeavesOneTokenToRun) {
  const SequenceId sequence = sequence_of(text(1, 40));
  EXPECT_EQ(cache.stats().num_cached, 2);
  EXPECT_EQ(hit(text(1, 40)), 32);
  EXPECT_EQ(hit(text(1, 33)), 32);
  EXPECT_EQ(hit(text(1, 32)), 16);
  EXPECT_EQ(hit(text(1, 16)), 0);
  EXPECT_EQ(hit({}), 0);
  cache.remove_sequence(sequence);
  EXPECT_EQ(num_free(), 8);
  EXPECT_EQ(hit(text(1, 40)), 32);
  EXPECT_EQ(cache.stats().prefix_queries, 40 + 33 + 32 + 16 + 40);
  EXPECT_EQ(cache.stats().prefix_hits, 32 + 32 + 16 + 32);
}

TEST_F(KvCacheTest, MatchNeedsTheWholePrefix) {
  sequence_of(text(1, 48));
  Tokens other = text(1, 49);
  other[20] = 5;  // the third block alone is not enough
  EXPECT_EQ(hit(other), 16);
  other[0] = 5;
  EXPECT_EQ(hit(other), 0);
}

TEST_F(KvCacheTest, SaltSeparatesTenants) {
  sequence_of(text(1, 32), 1);
  EXPECT_EQ(hit(text(1, 33), 2), 0);
  EXPECT_EQ(hit(text(1, 33), 1), 32);
}

TEST_F(KvCacheTest, FirstPublishedBlockIsKept) {
  const SequenceId first = sequence_of(text(1, 16));
  const SequenceId second = sequence_of(text(1, 40));  // computed the first block again
  EXPECT_EQ(cache.stats().num_cached, 2);
  const SequenceId reader = cache.add_sequence();
  ASSERT_EQ(cache.match_prefix(reader, text(1, 40)), 32);
  EXPECT_EQ(cache.block_table(reader)[0], cache.block_table(first)[0]);
  EXPECT_EQ(cache.block_table(reader)[1], cache.block_table(second)[1]);
  EXPECT_NE(cache.block_table(first)[0], cache.block_table(second)[0]);
}

TEST_F(KvCacheTest, DuplicateTakesThePlaceOfAnEvictedBlock) {
  make(6);
  const SequenceId first = sequence_of(text(1, 16));
  const SequenceId second = sequence_of(text(1, 32));  // its block 1 hangs below first's block 0
  cache.remove_sequence(first);
  const SequenceId pressure = cache.add_sequence();
  ASSERT_TRUE(cache.reserve(pressure, 4 * 16, moves));  // evicts first's block, all that is free
  EXPECT_EQ(cache.check_integrity(), "");
  EXPECT_EQ(cache.stats().num_cached, 0);
  cache.remove_sequence(pressure);
  Tokens more = text(1, 48);
  append(second, Tokens(more.begin() + 32, more.end()));
  EXPECT_EQ(cache.stats().num_cached, 3);
  EXPECT_EQ(hit(text(1, 49)), 48);
}

TEST_F(KvCacheTest, EvictsLeastRecentlyUsedFromTheTail) {
  make(6);
  cache.remove_sequence(sequence_of(text(1, 32)));
  cache.remove_sequence(sequence_of(text(2, 32)));
  EXPECT_EQ(hit(text(1, 33)), 32);  // used again: now document 2 is the older
  EXPECT_EQ(num_free(), 6);
  const SequenceId pressure = cache.add_sequence();
  ASSERT_TRUE(cache.reserve(pressure, 3 * 16, moves));
  EXPECT_EQ(cache.stats().evictions, 1);
  EXPECT_EQ(hit(text(2, 33)), 16);  // its tail is gone; this refreshes its head
  cache.rollback(pressure);
  ASSERT_TRUE(cache.reserve(pressure, 5 * 16, moves));
  EXPECT_EQ(hit(text(1, 33)), 0);
  EXPECT_EQ(hit(text(2, 33)), 16);
  EXPECT_EQ(cache.stats().evictions, 3);
}

TEST_F(KvCacheTest, TreeVerificationPublishesTheAcceptedTokens) {
  const SequenceId sequence = sequence_of(text(1, 14));
  ASSERT_TRUE(cache.reserve(sequence, 8, moves));
  cache.commit(sequence, Path{1, 5}, Tokens{1014, 1015}, moves);
  EXPECT_EQ(hit(text(1, 17)), 16);
}

TEST_F(KvCacheTest, DisabledPrefixCacheFindsNothing) {
  make(8, 16, false);
  sequence_of(text(1, 40));
  EXPECT_EQ(hit(text(1, 40)), 0);
  EXPECT_EQ(cache.stats().num_cached, 0);
  cache.clear_prefix_cache();
}

TEST_F(KvCacheTest, ClearForgetsAndOldDataIsNotPublishedAgain) {
  const SequenceId sequence = sequence_of(text(1, 32));
  cache.remove_sequence(sequence_of(text(2, 16)));
  cache.clear_prefix_cache();
  EXPECT_EQ(cache.stats().num_cached, 0);
  EXPECT_EQ(num_free(), 6);
  const Tokens longer = text(1, 64);
  append(sequence, Tokens(longer.begin() + 32, longer.begin() + 48));
  const SequenceId child = cache.fork(sequence, 48);
  append(child, Tokens(longer.begin() + 48, longer.end()));
  EXPECT_EQ(cache.stats().num_cached, 0);
  cache.truncate(sequence, 0);
  append(sequence, text(1, 32));
  EXPECT_EQ(hit(text(1, 33)), 32);
}

// Misuse.

TEST_F(KvCacheTest, UnknownSequencesAreRefused) {
  const SequenceId gone = cache.add_sequence();
  cache.remove_sequence(gone);
  const SequenceId next = cache.add_sequence();
  EXPECT_NE(next, gone);
  const std::string words = "does not exist";
  for (const SequenceId bad : {gone, -1, INT32_MAX, INT32_MIN, next + 1}) {
    expect_misuse([&] { cache.match_prefix(bad, {}); }, words);
    expect_misuse([&] { cache.fork(bad, 0); }, words);
    expect_misuse([&] { (void)cache.reserve(bad, 1, moves); }, words);
    expect_misuse([&] { cache.commit(bad, {}, {}, moves); }, words);
    expect_misuse([&] { cache.rollback(bad); }, words);
    expect_misuse([&] { cache.truncate(bad, 0); }, words);
    expect_misuse([&] { cache.remove_sequence(bad); }, words);
    expect_misuse([&] { (void)cache.verified_length(bad); }, words);
    expect_misuse([&] { (void)cache.reserved(bad); }, words);
    expect_misuse([&] { (void)cache.block_table(bad); }, words);
    expect_misuse([&] { (void)cache.slot(bad, 0); }, words);
    expect_misuse([&] { (void)cache.blocks_needed(bad, 1); }, words);
  }
}

TEST_F(KvCacheTest, ReservationsAreChecked) {
  const SequenceId sequence = sequence_of(text(1, 20));
  for (const std::int32_t bad : {0, -1, INT32_MIN, INT32_MAX, INT32_MAX - 20}) {
    const std::string words = "num_slots is " + std::to_string(bad);
    expect_misuse([&] { (void)cache.reserve(sequence, bad, moves); }, words);
    expect_misuse([&] { (void)cache.blocks_needed(sequence, bad); }, words);
  }
  expect_misuse([&] { cache.commit(sequence, Path{0}, Tokens{1}, moves); }, "no open reservation");
  ASSERT_TRUE(cache.reserve(sequence, 4, moves));
  expect_misuse([&] { (void)cache.reserve(sequence, 1, moves); }, "already has a reservation of 4");
  expect_misuse([&] { (void)cache.blocks_needed(sequence, 1); }, "already has a reservation of 4");
  expect_misuse([&] { cache.truncate(sequence, 3); }, "open reservation of 4");
  expect_misuse([&] { cache.match_prefix(sequence, text(1, 2)); }, "needs an empty sequence");
}

TEST_F(KvCacheTest, CommitsAreChecked) {
  const SequenceId sequence = sequence_of(text(1, 3));
  ASSERT_TRUE(cache.reserve(sequence, 4, moves));
  for (const Path& bad : {Path{0, 0}, Path{2, 1}, Path{0, 4}, Path{-1, 2}, Path{0, INT32_MAX}}) {
    expect_misuse([&] { cache.commit(sequence, bad, Tokens{1, 2}, moves); },
                  "offsets must ascend strictly within 0 to 3");
  }
  expect_misuse([&] { cache.commit(sequence, Path{0}, Tokens{1, 2}, moves); },
                "path has 1 entries and tokens 2");
  expect_misuse([&] { cache.commit(sequence, Path{0, 2}, Tokens{1, -7}, moves); }, "token is -7");
  EXPECT_TRUE(moves.empty());
  EXPECT_EQ(cache.reserved(sequence), 4);
  EXPECT_EQ(cache.verified_length(sequence), 3);
  cache.commit(sequence, Path{0, 2}, Tokens{1, 2}, moves);
}

TEST_F(KvCacheTest, LengthsAndIndicesAreChecked) {
  const SequenceId sequence = sequence_of(text(1, 20));
  for (const std::int32_t bad : {-1, 21, INT32_MIN, INT32_MAX}) {
    const std::string words = "length is " + std::to_string(bad) + "; allowed are 0 to 20";
    expect_misuse([&] { cache.truncate(sequence, bad); }, words);
    expect_misuse([&] { cache.fork(sequence, bad); }, words);
  }
  ASSERT_TRUE(cache.reserve(sequence, 2, moves));
  EXPECT_NO_THROW((void)cache.slot(sequence, 21));
  expect_misuse([&] { (void)cache.slot(sequence, 22); }, "index is 22; allowed are 0 to 21");
  expect_misuse([&] { (void)cache.slot(sequence, -1); }, "index is -1");
  const SequenceId empty = cache.add_sequence();
  expect_misuse([&] { cache.match_prefix(empty, Tokens{1, -2}); }, "token is -2");
  EXPECT_EQ(cache.stats().prefix_queries, 0);
}

}  // namespace
}  // namespace smartspec
