// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The shared history of SuffixIndex: sealed, frozen, forgotten, cleared, evicted, preloaded.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "propose/substring_oracle.hpp"
#include "propose/suffix_index_util.hpp"

namespace smartspec {
namespace {

using suffix_test::draft;
using suffix_test::draft_after;
using suffix_test::DraftBuffers;
using suffix_test::feed;
using suffix_test::kEverything;
using suffix_test::plain_options;
using suffix_test::preload;
using suffix_test::range;
using suffix_test::run_request;
using suffix_test::seal;
using suffix_test::small_options;
using suffix_test::start;
using suffix_test::Tokens;
using suffix_test::operator==;
using ::smartspec::testing::repetitive_tokens;

TEST(SuffixIndexHistory, OutputsSplitBySealingKeepBothParts) {
  for (const bool freeze : {false, true}) {
    SuffixIndexOptions options = small_options();
    options.freeze = freeze;
    SuffixIndex index(options);
    start(index, 1, {});
    TokenId boundary = 0;  // the first token of the second part
    for (TokenId token = 0; token < 2000; ++token) {
      feed(index, 1, Tokens{token});
      if (boundary == 0 && index.stats().num_generations == 2) boundary = token + 1;
    }
    ASSERT_GT(boundary, 100);
    for (const bool is_finished : {false, true}) {
      if (is_finished) index.finish_request(1);
      EXPECT_EQ(index.lookup(range(boundary - 50, 50)).match_length, 50);
      EXPECT_EQ(index.lookup(range(boundary - 50, 49)).best_token, boundary - 1);
      EXPECT_EQ(index.lookup(range(boundary - 50, 50)).best_token, -1) << "the part ends here";
      EXPECT_EQ(index.lookup(range(boundary - 25, 50)).match_length, 25) << "of the second part";
      EXPECT_EQ(index.lookup(range(boundary, 50)).match_length, 50);
      EXPECT_EQ(index.stats().num_tokens, 2000);
    }
    EXPECT_EQ(draft_after(index, range(boundary - 30, 10)), range(boundary - 20, 16));
    EXPECT_EQ(draft_after(index, range(boundary, 10)), range(boundary + 10, 16));
    EXPECT_TRUE(index.forget(1));
    EXPECT_EQ(index.stats().num_tokens, 0);
    EXPECT_EQ(index.lookup(range(boundary - 50, 50)).match_length, 0);
    EXPECT_EQ(index.lookup(range(boundary, 50)).match_length, 0);
    EXPECT_TRUE(draft_after(index, range(boundary - 30, 10)).empty());
    EXPECT_FALSE(index.forget(1));
  }
}

// Also for a request whose text stands in the midst of what is forgotten.
TEST(SuffixIndexHistory, WhatIsForgottenIsNeitherDraftedNorMatched) {
  enum { kLive, kSealed, kFrozen, kFreezing };
  for (const int where : {kLive, kSealed, kFrozen, kFreezing}) {
    SuffixIndexOptions options = small_options();
    options.freeze = where >= kFrozen;
    options.background = where == kFreezing;
    SuffixIndex index(options);
    run_request(index, 1, range(100, 60));
    run_request(index, 2, range(300, 60));
    if (where != kLive) seal(index);
    start(index, 8, {5, 100, 101, 102});
    feed(index, 8, Tokens{103});
    start(index, 9, {5, 300, 301, 302});
    if (where != kFreezing) {
      EXPECT_EQ(draft(index, {8}, kEverything).chain(0), range(104, 16));
      EXPECT_EQ(draft(index, {9}, kEverything).chain(0), range(303, 16));
    }
    EXPECT_TRUE(index.forget(1));
    for (int i = 0; i < 3; ++i) {
      const DraftBuffers drafts = draft(index, {8, 9}, kEverything);
      EXPECT_TRUE(drafts.chain(0).empty()) << where;
      EXPECT_EQ(drafts.match_lengths[0], 0) << where;
      EXPECT_EQ(drafts.chain(1), range(303 + i, 16)) << where;
      feed(index, 9, Tokens{303 + i});
      if (i == 1) index.wait();
    }
    EXPECT_EQ(index.lookup(range(100, 20)).match_length, 0);
    EXPECT_EQ(index.lookup(range(300, 20)).match_length, 20);
    start(index, 1, {});  // its id may be used again
  }
}

TEST(SuffixIndexHistory, AnActiveRequestThatIsForgottenIsNoLongerShared) {
  SuffixIndex index(small_options());
  start(index, 1, {});
  feed(index, 1, range(100, 50));
  EXPECT_TRUE(index.forget(1));
  feed(index, 1, range(150, 50));
  EXPECT_EQ(index.stats().num_tokens, 0);
  EXPECT_EQ(index.lookup(range(150, 5)).match_length, 0);
  feed(index, 1, range(100, 5));
  EXPECT_EQ(draft(index, {1}, kEverything).chain(0), range(105, 16)) << "its own text stays";
  EXPECT_FALSE(index.forget(1));
  index.finish_request(1);
  EXPECT_FALSE(index.forget(1));
}

TEST(SuffixIndexHistory, ClearDropsOneNamespace) {
  SuffixIndex index(small_options());
  for (const std::string_view space : {"a", "b"}) {
    run_request(index, space == "a" ? 1 : 2, range(100, 60), space);
    seal(index, space);
    preload(index, range(300, 60), space);
  }
  start(index, 7, {9, 100, 101, 102}, "a");
  feed(index, 7, range(500, 20));
  EXPECT_FALSE(draft(index, {7}, kEverything).match_lengths[0] > 20);
  index.clear("a");
  index.clear("never seen");
  for (const TokenId token : {100, 300, 500, 1'000'000}) {
    EXPECT_EQ(index.lookup(range(token, 3), "a").match_length, 0);
  }
  EXPECT_EQ(index.lookup(range(100, 3), "b").match_length, 3);
  EXPECT_FALSE(index.forget(1));
  EXPECT_TRUE(draft(index, {7}, kEverything).chain(0).empty());
  feed(index, 7, range(100, 20));  // goes on, in a new generation
  EXPECT_EQ(index.lookup(range(100, 3), "a").match_length, 3);
  EXPECT_EQ(draft_after(index, {100, 101}, "a"), range(102, 16));
  index.finish_request(7);
  EXPECT_TRUE(index.forget(7));
}

TEST(SuffixIndexHistory, ClearDropsWhatWasLearnt) {
  SuffixIndex index(plain_options());
  const auto claimed = [&](RequestId id) {
    preload(index, range(0, 40), "a");
    start(index, id, {3, 4, 5, 6}, "a", false);
    const float survival = draft(index, {id}, kEverything).survival[0];
    index.finish_request(id);
    return survival;
  };
  const float prior = claimed(0);
  start(index, 1, {}, "a", false);
  for (int i = 0; i < 200; ++i) {  // what follows is never what was drafted
    feed(index, 1, range(10 + i % 20, 4));
    (void)draft(index, {1}, kEverything);
    feed(index, 1, Tokens{1000 + i});
  }
  index.finish_request(1);
  EXPECT_LT(claimed(2), prior / 2);
  index.clear("a");
  EXPECT_EQ(claimed(3), prior);
}

// The smallest there are: every call seals one.
TEST(SuffixIndexHistory, GenerationsMayBeAsSmallAsACall) {
  SuffixIndexOptions options = plain_options();
  options.generation_bytes = 1;
  SuffixIndex index(options);
  start(index, 1, range(0, 10));
  start(index, 2, range(0, 10), {}, false);
  for (int i = 0; i < 100; ++i) {
    feed(index, 1, range(100 + 5 * i, 5));
    feed(index, 2, range(100, 5));
    EXPECT_EQ(index.lookup(range(100 + 5 * i, 5)).match_length, 5);
    EXPECT_EQ(draft(index, {1, 2}, kEverything).lengths[0], 0);
  }
  EXPECT_TRUE(index.forget(1));
  EXPECT_EQ(index.stats().num_tokens, 0);
}

TEST(SuffixIndexHistory, EvictsTheOldestFirst) {
  SuffixIndexOptions options = plain_options();
  options.max_bytes = 1 << 20;
  options.generation_bytes = 64 << 10;
  SuffixIndex index(options);
  constexpr TokenId kLast = 400'000;
  for (TokenId token = 0; token < kLast; token += 100) preload(index, range(token, 100));
  const SuffixIndexStats stats = index.stats();
  EXPECT_EQ(stats.num_tokens + stats.evicted_tokens, kLast);
  EXPECT_GT(stats.num_tokens, 70'000) << "8 bytes per frozen token";
  const auto first = static_cast<TokenId>(stats.evicted_tokens);
  for (TokenId token = 50; token < kLast; token += 100) {
    EXPECT_EQ(index.lookup(Tokens{token}).match_length, token > first ? 1 : 0);
  }
}

TEST(SuffixIndexHistory, PreloadsManySequencesAtOnce) {
  SuffixIndex one(small_options());
  SuffixIndex other(small_options());
  std::mt19937 random(13);
  const Tokens corpus = repetitive_tokens(random, 30'000, 35);
  std::vector<std::int64_t> offsets{0, 0};  // an empty one
  while (offsets.back() < 30'000) {
    offsets.push_back(std::min<std::int64_t>(30'000, offsets.back() + random() % 200));
  }
  one.preload(offsets, corpus);
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    preload(other,
            std::span(corpus).subspan(static_cast<std::size_t>(offsets[i]),
                                      static_cast<std::size_t>(offsets[i + 1] - offsets[i])));
  }
  EXPECT_TRUE(one.stats() == other.stats());
  EXPECT_GT(one.stats().num_generations, 20);
  for (int i = 0; i < 2000; ++i) {
    const auto context = std::span(corpus).subspan(random() % 29'000, 1 + random() % 300);
    EXPECT_EQ(one.lookup(context).match_length, other.lookup(context).match_length);
    EXPECT_EQ(one.lookup(context).count, other.lookup(context).count);
    EXPECT_EQ(one.lookup(context).best_count, other.lookup(context).best_count);
  }
}

TEST(SuffixIndexHistory, MatchesAreAsLongAsTheyAre) {
  for (const bool freeze : {false, true}) {
    SuffixIndexOptions options = plain_options();
    options.freeze = freeze;
    options.max_bytes = 64 << 20;
    options.generation_bytes = 128 << 10;
    SuffixIndex index(options);
    const Tokens text = range(0, 2000);
    preload(index, text);
    seal(index);
    EXPECT_EQ(index.lookup(text).match_length, 2000);
    SuffixRequest request;
    request.id = 1;
    request.prediction = text;
    index.start_request(request);
    for (TokenId token = 0; token < 1500; ++token) feed(index, 1, Tokens{token});
    EXPECT_EQ(draft(index, {1}, kEverything).match_lengths[0], 1500);
    EXPECT_EQ(draft(index, {1}, kEverything).chain(0), range(1500, 16));
  }
}

TEST(SuffixIndexHistory, TakesAnyTokenIdWithoutAVocabulary) {
  SuffixIndex index(plain_options());
  const TokenId large = 0x7FFFFFFE;
  preload(index, Tokens{0, large, 1, large - 1});
  EXPECT_EQ(index.lookup(Tokens{large}).best_token, 1);
  EXPECT_EQ(draft_after(index, {0, large}), (Tokens{1, large - 1}));
  EXPECT_EQ(index.options().generation_bytes, (std::size_t{1} << 30) / 4);
}

}  // namespace
}  // namespace smartspec
