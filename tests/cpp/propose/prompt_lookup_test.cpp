// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/prompt_lookup.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <stdexcept>
#include <vector>

namespace smartspec {
namespace {

ProposeRequest request_of(const std::vector<TokenId>& tokens, RequestId id, std::int32_t depth) {
  ProposeRequest request;
  request.id = id;
  request.tokens = tokens;
  request.num_prompt_tokens = 1;
  request.max_depth = depth;
  request.max_nodes = kMaxTreeNodes;
  return request;
}

TokenTree propose_one(PromptLookupProposer& proposer, const std::vector<TokenId>& tokens,
                      std::int32_t depth, RequestId id = 0) {
  const ProposeRequest request = request_of(tokens, id, depth);
  TokenTree tree;
  proposer.propose(std::span(&request, 1), std::span(&tree, 1));
  return tree;
}

/// The obvious way: scan for the latest earlier occurrence of the longest n-gram.
std::vector<TokenId> naive_chain(const std::vector<TokenId>& tokens, std::int32_t min_n,
                                 std::int32_t max_n, std::int32_t depth) {
  const auto size = static_cast<std::int32_t>(tokens.size());
  for (std::int32_t n = max_n; n >= min_n; --n) {
    for (std::int32_t end = size - 2; end >= n - 1; --end) {
      if (!std::equal(tokens.end() - n, tokens.end(), tokens.begin() + (end - n + 1))) continue;
      std::vector<TokenId> text(tokens);
      for (std::int32_t i = 0; i < depth; ++i) {
        text.push_back(text[static_cast<std::size_t>(end + 1 + i)]);
      }
      return {text.begin() + size, text.end()};
    }
  }
  return {};
}

TEST(PromptLookupTest, LongestThenLatestOccurrenceWins) {
  PromptLookupProposer proposer({.prompt_lookup_max = 3, .prompt_lookup_min = 1});
  // "1 2" was followed by 3, then by 9; "7 1 2" by 3 only.
  const TokenTree tree = propose_one(proposer, {7, 1, 2, 3, 5, 1, 2, 9, 7, 1, 2}, 2);
  EXPECT_EQ(tree.tokens, (std::vector<TokenId>{3, 5}));
}

TEST(PromptLookupTest, PeriodicTextIsDraftedToFullDepth) {
  PromptLookupProposer proposer({.prompt_lookup_max = 2, .prompt_lookup_min = 1});
  EXPECT_EQ(propose_one(proposer, {4, 4}, 5).tokens, (std::vector<TokenId>{4, 4, 4, 4, 4}));
}

TEST(PromptLookupTest, NothingFoundIsAnEmptyTree) {
  PromptLookupProposer proposer({.prompt_lookup_max = 3, .prompt_lookup_min = 2});
  EXPECT_TRUE(propose_one(proposer, {1, 2, 3, 4}, 4).empty());
  EXPECT_TRUE(propose_one(proposer, {1}, 4, 1).empty());
}

TEST(PromptLookupTest, WidthMergesDistinctContinuations) {
  PromptLookupProposer proposer({.prompt_lookup_max = 1, .prompt_lookup_min = 1, .tree_width = 2});
  const TokenTree tree = propose_one(proposer, {1, 2, 5, 1, 3, 6, 1}, 2);
  EXPECT_EQ(tree.tokens, (std::vector<TokenId>{3, 6, 2, 5}));
  EXPECT_EQ(tree.parents, (std::vector<std::int32_t>{-1, 0, -1, 2}));
  EXPECT_EQ(tree.validate(10, 4, 2), "");
}

TEST(PromptLookupTest, SurvivalTellsHowLongTheCopyHasGoneOn) {
  PromptLookupProposer proposer({.prompt_lookup_max = 2, .prompt_lookup_min = 2});
  // Both look up "4 5": here the copy has just begun, there it has gone on for five tokens.
  const TokenTree begun = propose_one(proposer, {1, 2, 3, 4, 5, 6, 9, 4, 5}, 3, 1);
  const TokenTree on = propose_one(proposer, {1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5}, 3, 2);
  ASSERT_EQ(begun.tokens, (std::vector<TokenId>{6, 9, 4}));
  ASSERT_EQ(on.tokens, (std::vector<TokenId>{6, 1, 2}));
  EXPECT_FLOAT_EQ(begun.survival[0], 2.0F / 3);
  EXPECT_FLOAT_EQ(on.survival[0], 5.0F / 6);
  EXPECT_FLOAT_EQ(on.survival[2], 125.0F / 216);
  // A copy of itself, back to the first token and no further.
  EXPECT_FLOAT_EQ(propose_one(proposer, {4, 4, 4, 4}, 1, 3).survival[0], 3.0F / 4);
}

TEST(PromptLookupTest, IncrementalIndexEqualsScan) {
  std::mt19937 rng(3);
  for (int round = 0; round < 300; ++round) {
    const auto min_n = static_cast<std::int32_t>(1 + rng() % 2);
    const auto max_n = min_n + static_cast<std::int32_t>(rng() % 3);
    PromptLookupProposer proposer({.prompt_lookup_max = max_n, .prompt_lookup_min = min_n});
    std::vector<TokenId> tokens = {0};
    for (int step = 0; step < 60; ++step) {
      for (std::uint32_t grow = 1 + rng() % 4; grow > 0; --grow) {
        tokens.push_back(static_cast<TokenId>(rng() % 4));
      }
      if (rng() % 5 == 0) continue;  // sits out a step
      const auto depth = static_cast<std::int32_t>(1 + rng() % 8);
      const TokenTree tree = propose_one(proposer, tokens, depth);
      EXPECT_EQ(tree.tokens, naive_chain(tokens, min_n, max_n, depth));
      EXPECT_EQ(tree.validate(4, kMaxTreeNodes, depth), "");
    }
  }
}

TEST(PromptLookupTest, RequestsDoNotSeeEachOther) {
  PromptLookupProposer proposer({.prompt_lookup_max = 1, .prompt_lookup_min = 1});
  EXPECT_FALSE(propose_one(proposer, {1, 2, 1}, 2, 1).empty());
  EXPECT_TRUE(propose_one(proposer, {3, 1}, 2, 2).empty());
  proposer.finish(1);
  EXPECT_TRUE(propose_one(proposer, {9, 1}, 2, 1).empty());
}

TEST(PromptLookupTest, OptionsOutOfRangeAreRefused) {
  EXPECT_THROW(PromptLookupProposer({.prompt_lookup_max = 1, .prompt_lookup_min = 2}),
               std::invalid_argument);
  EXPECT_THROW(PromptLookupProposer({.prompt_lookup_max = 3, .prompt_lookup_min = 0}),
               std::invalid_argument);
  EXPECT_THROW(
      PromptLookupProposer({.prompt_lookup_max = 3, .prompt_lookup_min = 1, .tree_width = 0}),
      std::invalid_argument);
}

}  // namespace
}  // namespace smartspec
