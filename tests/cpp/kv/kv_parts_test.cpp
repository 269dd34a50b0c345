// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The parts below KvCache: hash, index under collisions, pool, and that the checks can fail.
#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <set>
#include <vector>

#include "allocation_counter.hpp"
#include "kv/block_pool.hpp"
#include "kv/kv_ledger.hpp"
#include "kv/prefix_hash.hpp"
#include "kv/prefix_index.hpp"

namespace smartspec::kv {
namespace {

using smartspec::testing::allocations;

using Tokens = std::vector<TokenId>;

TEST(PrefixHasher, DependsOnEverything) {
  const Tokens tokens(16, 3);
  const PrefixHasher hasher(1);
  std::set<std::uint64_t> halves;
  const auto insert = [&](const Hash128& hash) {
    EXPECT_TRUE(halves.insert(hash.low).second);
    EXPECT_TRUE(halves.insert(hash.high).second);
  };
  insert(hasher.extend(hasher.root(0), tokens));
  insert(hasher.extend(hasher.root(1), tokens));
  insert(hasher.extend(hasher.extend(hasher.root(0), tokens), tokens));
  insert(PrefixHasher(2).extend(PrefixHasher(2).root(0), tokens));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    for (int bit = 0; bit < 31; ++bit) {
      Tokens other = tokens;
      other[i] ^= 1 << bit;
      insert(hasher.extend(hasher.root(0), other));
    }
  }
}

TEST(PrefixHasher, SpreadsOverTheLowBits) {
  const PrefixHasher hasher(9);
  std::vector<int> buckets(256, 0);
  for (TokenId token = 0; token < 25'600; ++token) {
    Tokens tokens(16, 0);
    tokens[15] = token;
    ++buckets[hasher.extend(hasher.root(0), tokens).low % 256];
  }
  double chi_square = 0;  // 255 degrees of freedom
  for (const int count : buckets) chi_square += (count - 100.0) * (count - 100.0) / 100.0;
  EXPECT_LT(chi_square, 360.0);  // p about 1e-5
  EXPECT_GT(chi_square, 170.0);
}

TEST(PrefixIndex, CollidingHashesAreToldApart) {
  BlockPool pool(4);
  PrefixIndex index(4, 16);
  const Tokens a(16, 1);
  const Tokens b(16, 2);
  const Hash128 same{5, 5};
  for (int i = 0; i < 4; ++i) (void)pool.take();
  index.insert(0, same, kNoBlock, 0, a);
  EXPECT_EQ(index.find(same, kNoBlock, 0, b), kNoBlock);  // other tokens
  EXPECT_EQ(index.find(same, kNoBlock, 1, a), kNoBlock);  // other tenant
  EXPECT_EQ(index.find(same, 0, 0, a), kNoBlock);         // other prefix
  index.insert(1, same, kNoBlock, 0, b);
  index.insert(2, same, 0, 0, a);
  index.insert(3, same, 1, 0, a);
  EXPECT_EQ(index.find(same, kNoBlock, 0, a), 0);
  EXPECT_EQ(index.find(same, kNoBlock, 0, b), 1);
  EXPECT_EQ(index.find(same, 0, 0, a), 2);
  EXPECT_EQ(index.find(same, 1, 0, a), 3);
  EXPECT_EQ(index.check(pool), "");
  EXPECT_EQ(index.erase_subtree(0, pool), 2);
  EXPECT_EQ(index.find(same, 1, 0, a), 3);
  EXPECT_EQ(index.find(same, 0, 0, a), kNoBlock);
  EXPECT_EQ(index.check(pool), "");
}

TEST(PrefixIndex, IdleChildrenAreOlderThanTheirParents) {
  BlockPool pool(3);
  PrefixIndex index(3, 16);
  const Tokens tokens(16, 1);
  for (int i = 0; i < 3; ++i) (void)pool.take();
  index.insert(0, {1, 1}, kNoBlock, 0, tokens);
  index.insert(1, {2, 2}, 0, 0, tokens);
  index.insert(2, {3, 3}, 1, 0, tokens);
  for (const BlockId block : {0, 1, 2}) {  // parents first: only duplicates bring this about
    (void)pool.drop_reference(block);
    index.retire(block);
    EXPECT_EQ(index.check(pool), "");
  }
  for (const BlockId block : {2, 1, 0}) {
    EXPECT_EQ(index.oldest_idle(), block);
    EXPECT_EQ(index.erase_subtree(block, pool), 1);
  }
  EXPECT_EQ(pool.num_free(), 3);
}

TEST(PrefixIndex, CheckNoticesDamage) {
  BlockPool pool(2);
  PrefixIndex index(2, 16);
  const Tokens tokens(16, 1);
  const BlockId block = pool.take();
  index.insert(block, {1, 1}, kNoBlock, 0, tokens);
  EXPECT_EQ(index.check(pool), "");
  (void)pool.drop_reference(block);
  EXPECT_NE(index.check(pool), "");  // unused, but not idle
  pool.add_reference(block);
  index.insert(pool.take(), {1, 1}, kNoBlock, 0, tokens);
  EXPECT_NE(index.check(pool), "");  // one prefix, two nodes
}

TEST(BlockPool, CheckNoticesDamage) {
  BlockPool pool(3);
  const BlockId block = pool.take();
  std::vector<char> is_free(3, 0);
  EXPECT_EQ(pool.check_free_list(is_free), "");
  EXPECT_EQ(std::accumulate(is_free.begin(), is_free.end(), 0), 2);
  pool.give_back(block);  // still referenced
  is_free.assign(3, 0);
  EXPECT_NE(pool.check_free_list(is_free), "");
  (void)pool.drop_reference(block);
  BlockPool twice(3);
  (void)twice.take();
  twice.give_back(1);
  is_free.assign(3, 0);
  EXPECT_NE(twice.check_free_list(is_free), "");
}

TEST(BlockPool, PinsProtectTheirSlotsOnly) {
  BlockPool pool(1);
  const BlockId block = pool.take();
  EXPECT_FALSE(pool.shared_beyond(block, 0));
  pool.add_reference(block);
  EXPECT_TRUE(pool.shared_beyond(block, 15));
  pool.pin(block, 4);
  EXPECT_TRUE(pool.shared_beyond(block, 3));
  EXPECT_FALSE(pool.shared_beyond(block, 4));
  pool.unpin(block);
  EXPECT_TRUE(pool.shared_beyond(block, 4));
  (void)pool.drop_reference(block);
  EXPECT_FALSE(pool.shared_beyond(block, 0));
}

// The same texts under a hash that always collides: nothing wrong is shared, nothing is lost.
TEST(KvLedger, SharesNothingWrongWhenAllHashesCollide) {
  KvLedger cache({.num_blocks = 64}, 0);
  std::vector<KvMove> moves;
  std::vector<std::int32_t> path(32);
  std::iota(path.begin(), path.end(), 0);
  for (TokenId document = 0; document < 8; ++document) {
    const SequenceId sequence = cache.add_sequence(static_cast<std::uint64_t>(document % 2));
    ASSERT_TRUE(cache.reserve(sequence, 32, moves));
    Tokens tokens(32, document / 4);  // the first block of four documents, twice
    for (std::size_t i = 16; i < 32; ++i) tokens[i] = document;
    cache.commit(sequence, path, tokens, moves);
    tokens.push_back(0);
    const SequenceId reader = cache.add_sequence(static_cast<std::uint64_t>(document % 2));
    ASSERT_EQ(cache.match_prefix(reader, tokens), 32);
    EXPECT_EQ(cache.block_table(reader)[1], cache.block_table(sequence)[1]);
    const SequenceId stranger = cache.add_sequence(static_cast<std::uint64_t>(1 - document % 2));
    EXPECT_LT(cache.match_prefix(stranger, tokens), 32);
    ASSERT_EQ(cache.check_integrity(), "");
  }
}

TEST(KvLedger, SteadyStateDoesNotAllocate) {
  constexpr int kSequences = 64;
  constexpr int kSteps = 400;
  KvLedger cache({.num_blocks = kSequences * 128 + 64});
  std::vector<SequenceId> sequences;
  for (int i = 0; i < kSequences; ++i) sequences.push_back(cache.add_sequence());
  std::vector<KvMove> copies;
  std::vector<KvMove> moves;
  const std::int32_t path[] = {0, 2, 3};
  const auto step = [&](std::int32_t first_token, bool keep) {
    copies.clear();
    moves.clear();
    for (const SequenceId sequence : sequences) ASSERT_TRUE(cache.reserve(sequence, 5, copies));
    for (const SequenceId sequence : sequences) {
      const TokenId tokens[] = {first_token, sequence, 7};
      if (keep) {
        cache.commit(sequence, path, tokens, moves);
      } else {
        cache.rollback(sequence);
      }
    }
  };
  for (int i = 0; i < 50; ++i) step(i, true);
  std::int64_t before = allocations;
  for (int i = 0; i < kSteps; ++i) step(i, false);
  EXPECT_EQ(allocations - before, 0);
  // Three buffers per sequence double now and then: from 150 to 1350 tokens at most 4 times each.
  before = allocations;
  for (int i = 0; i < kSteps; ++i) step(i, true);
  EXPECT_LE(allocations - before, kSequences * 3 * 4);
  // With the buffers of removed sequences, a second round needs none at all.
  for (SequenceId& sequence : sequences) cache.remove_sequence(sequence);
  for (SequenceId& sequence : sequences) sequence = cache.add_sequence();
  before = allocations;
  for (int i = 0; i < kSteps; ++i) step(i, true);
  EXPECT_EQ(allocations - before, 0);
  EXPECT_EQ(cache.check_integrity(), "");
}

}  // namespace
}  // namespace smartspec::kv
