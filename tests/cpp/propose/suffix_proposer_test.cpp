// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/suffix_proposer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

namespace smartspec {
namespace {

using Tokens = std::vector<TokenId>;

constexpr std::int32_t kVocab = 50;

std::shared_ptr<SuffixIndex> make_index() {
  SuffixIndexOptions options;
  options.vocab_size = kVocab;
  options.max_bytes = std::size_t{1} << 20;
  options.background = false;
  return std::make_shared<SuffixIndex>(options);
}

// An index that has seen little trusts nothing far.
constexpr SuffixProposerOptions kBold = {.min_survival = 0.01F};

Tokens range(TokenId first, TokenId last) {
  Tokens tokens;
  for (TokenId token = first; token < last; ++token) tokens.push_back(token);
  return tokens;
}

ProposeRequest request_of(RequestId id, const Tokens& tokens, std::int32_t num_prompt,
                          std::int32_t depth = 4, std::uint64_t salt = 0) {
  return {.id = id,
          .tokens = tokens,
          .num_prompt_tokens = num_prompt,
          .max_depth = depth,
          .max_nodes = kMaxTreeNodes,
          .cache_salt = salt};
}

TokenTree propose_one(SuffixProposer& proposer, const ProposeRequest& request) {
  TokenTree tree;
  proposer.propose({&request, 1}, {&tree, 1});
  EXPECT_EQ(tree.validate(kVocab, request.max_nodes, request.max_depth), "");
  return tree;
}

void observe_one(SuffixProposer& proposer, const ProposeRequest& request) {
  const Proposer::Outcome outcome{.id = request.id,
                                  .tree = nullptr,
                                  .accepted_path = {},
                                  .emitted = request.tokens.last(1),
                                  .request = &request};
  proposer.observe({&outcome, 1});
}

/// Serves `text` as a request whose first tokens are the prompt, one token a step.
void serve(SuffixProposer& proposer, RequestId id, const Tokens& text, std::size_t num_prompt,
           std::uint64_t salt = 0) {
  for (std::size_t size = num_prompt + 1; size <= text.size(); ++size) {
    const Tokens now(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(size));
    observe_one(proposer, request_of(id, now, static_cast<std::int32_t>(num_prompt), 4, salt));
  }
  proposer.finish(id);
}

TEST(SuffixProposerTest, DraftsWhatFollowedInItsOwnText) {
  SuffixProposer proposer(make_index(), kBold);
  Tokens text = range(0, 20);
  const Tokens again = range(3, 8);
  text.insert(text.end(), again.begin(), again.end());
  EXPECT_EQ(propose_one(proposer, request_of(0, text, 20)).tokens, (Tokens{8, 9, 10, 11}));
  EXPECT_EQ(proposer.name(), "suffix");
}

TEST(SuffixProposerTest, DraftsWhatOthersWroteUpToTheirLastToken) {
  SuffixProposer proposer(make_index(), kBold);
  for (RequestId id = 0; id < 3; ++id) serve(proposer, id, range(1, 30), 5);
  EXPECT_EQ(propose_one(proposer, request_of(7, {40, 24, 25, 26}, 4)).tokens, (Tokens{27, 28, 29}));
  // Prompts are never shared.
  EXPECT_TRUE(propose_one(proposer, request_of(8, {40, 2, 3}, 3)).empty());
  EXPECT_EQ(proposer.index()->stats().num_requests, 2);
  proposer.finish(7);
  proposer.finish(8);
  proposer.finish(8);
  EXPECT_EQ(proposer.index()->stats().num_requests, 0);
}

TEST(SuffixProposerTest, NothingCrossesTenants) {
  SuffixProposer proposer(make_index(), kBold);
  for (RequestId id = 0; id < 3; ++id) serve(proposer, id, range(1, 30), 1, 77);
  const Tokens context = {10, 11, 12};
  EXPECT_TRUE(propose_one(proposer, request_of(4, context, 3)).empty());
  EXPECT_TRUE(propose_one(proposer, request_of(5, context, 3, 4, 78)).empty());
  EXPECT_EQ(propose_one(proposer, request_of(6, context, 3, 4, 77)).tokens,
            (Tokens{13, 14, 15, 16}));
  EXPECT_EQ(proposer.index()->lookup(context, "77").count, 3) << "the salt in decimal";
  EXPECT_EQ(proposer.index()->lookup(context).count, 0);
}

TEST(SuffixProposerTest, PredictionIsDrafted) {
  SuffixProposer proposer(make_index(), kBold);
  const Tokens prediction = range(10, 30);
  const Tokens text = {1, 2, 14, 15};
  ProposeRequest request = request_of(0, text, 2);
  request.prediction = prediction;
  EXPECT_EQ(propose_one(proposer, request).tokens, (Tokens{16, 17, 18, 19}));
  proposer.finish(0);
  EXPECT_TRUE(propose_one(proposer, request_of(1, text, 2)).empty()) << "this request's only";
}

TEST(SuffixProposerTest, DepthAndNodesOfEachRequestHold) {
  for (std::int32_t width = 1; width <= 4; ++width) {
    SuffixProposer proposer(make_index(), {.min_survival = 0.0F, .tree_width = width});
    std::mt19937 rng(3);
    std::vector<Tokens> texts(6);
    for (Tokens& text : texts) {
      for (int i = 0; i < 200; ++i) text.push_back(static_cast<TokenId>(rng() % 3));
    }
    std::vector<ProposeRequest> requests;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      requests.push_back(request_of(static_cast<RequestId>(i), texts[i], 100,
                                    static_cast<std::int32_t>(1 + 3 * i)));
      requests.back().max_nodes = requests.back().max_depth + static_cast<std::int32_t>(rng() % 9);
    }
    std::vector<TokenTree> trees(texts.size());
    proposer.propose(requests, trees);
    std::int32_t branches = 0;
    for (std::size_t i = 0; i < trees.size(); ++i) {
      EXPECT_EQ(trees[i].validate(kVocab, requests[i].max_nodes, requests[i].max_depth), "");
      EXPECT_FALSE(trees[i].empty());
      branches += static_cast<std::int32_t>(
          std::count(trees[i].parents.begin(), trees[i].parents.end(), -1));
    }
    EXPECT_EQ(branches > 6, width > 1);
  }
}

TEST(SuffixProposerTest, AnotherTextUnderTheSameIdIsStartedAnew) {
  SuffixProposer proposer(make_index(), kBold);
  Tokens text = range(0, 20);
  text.insert(text.end(), {3, 4, 5});
  EXPECT_EQ(propose_one(proposer, request_of(0, text, 20)).tokens[0], 6);
  // Shorter, of the same length, with another prompt.
  EXPECT_TRUE(propose_one(proposer, request_of(0, {3, 4, 5}, 3)).empty());
  const Tokens other = {30, 31, 32, 30, 31};
  EXPECT_EQ(propose_one(proposer, request_of(0, other, 3)).tokens[0], 32);
  const Tokens third = {41, 42, 43, 41, 42};
  EXPECT_EQ(propose_one(proposer, request_of(0, third, 3)).tokens[0], 43);
  EXPECT_EQ(proposer.index()->stats().num_requests, 1);
}

TEST(SuffixProposerTest, CatchesUpWithWhatItWasNotShown) {
  SuffixProposer proposer(make_index(), kBold);
  Tokens text = range(0, 10);
  propose_one(proposer, request_of(0, text, 4));
  const Tokens more = range(10, 30);
  text.insert(text.end(), more.begin(), more.end());
  text.insert(text.end(), {12, 13, 14});
  EXPECT_EQ(propose_one(proposer, request_of(0, text, 4)).tokens, (Tokens{15, 16, 17, 18}));
  // The same step once more, and an outcome shown twice: nothing is learnt twice.
  const std::int64_t before = proposer.index()->stats().num_tokens;
  propose_one(proposer, request_of(0, text, 4));
  observe_one(proposer, request_of(0, text, 4));
  EXPECT_EQ(proposer.index()->stats().num_tokens, before);
}

TEST(SuffixProposerTest, RecoversFromFailedUpdates) {
  SuffixProposer proposer(make_index(), kBold);
  const Tokens good = {1, 2, 3, 1, 2};
  const Tokens bad = {1, kVocab};
  const std::vector<ProposeRequest> both = {request_of(0, good, 5), request_of(1, bad, 1)};
  std::vector<TokenTree> trees(2);
  EXPECT_THROW(proposer.propose(both, trees), std::invalid_argument);
  EXPECT_EQ(propose_one(proposer, both[0]).tokens[0], 3);
  proposer.finish(1);

  // Somebody else ended its requests in the shared index.
  Tokens longer = good;
  longer.push_back(3);
  for (RequestId id = kFirstSuffixProposerId; id < kFirstSuffixProposerId + 1000; ++id) {
    if (proposer.index()->is_active(id)) proposer.index()->finish_request(id);
  }
  EXPECT_THROW(propose_one(proposer, request_of(0, longer, 5)), std::invalid_argument);
  EXPECT_EQ(propose_one(proposer, request_of(0, longer, 5)).tokens[0], 1);
}

TEST(SuffixProposerTest, SharesAnIndexWithOtherEngines) {
  const auto index = make_index();
  SuffixProposer first(index, kBold);
  {
    SuffixProposer second(index, kBold);
    const Tokens text = range(1, 30);
    for (RequestId id = 0; id < 3; ++id) serve(second, id, text, 1);
    EXPECT_EQ(propose_one(second, request_of(0, {45, 46}, 2)).tokens, Tokens{});
    EXPECT_EQ(propose_one(first, request_of(0, {8, 9, 10}, 3)).tokens[0], 11) << "the same id";
    EXPECT_EQ(index->stats().num_requests, 2);
  }
  EXPECT_EQ(index->stats().num_requests, 1) << "an engine that goes ends its requests";
}

TEST(SuffixProposerTest, EnginesOnThreadsShareAnIndex) {
  const auto index = make_index();
  const auto work = [&](std::uint32_t seed) {
    SuffixProposer proposer(index, {.min_survival = 0.05F, .tree_width = 2});
    std::mt19937 rng(seed);
    for (RequestId id = 0; id < 12; ++id) {
      Tokens text = {static_cast<TokenId>(seed)};
      for (int step = 0; step < 60; ++step) {
        const ProposeRequest request = request_of(id, text, 1);
        propose_one(proposer, request);
        text.push_back(rng() % 8 == 0 ? static_cast<TokenId>(rng() % kVocab)
                                      : (text.back() + 1) % kVocab);
        observe_one(proposer, request_of(id, text, 1));
      }
      proposer.finish(id);
    }
  };
  std::thread other(work, 1);
  work(2);
  other.join();
  EXPECT_EQ(index->stats().num_requests, 0);
  EXPECT_EQ(index->stats().num_tokens, 2 * 12 * 60);
}

TEST(SuffixProposerTest, BadOptionsAreRefused) {
  EXPECT_THROW(SuffixProposer(nullptr), std::invalid_argument);
  const auto index = make_index();
  for (const float value : {-0.1F, 1.1F, std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_THROW(SuffixProposer(index, {.min_survival = value}), std::invalid_argument);
  }
  for (const std::int32_t width : {0, 5, -1}) {
    EXPECT_THROW(SuffixProposer(index, {.tree_width = width}), std::invalid_argument);
  }
}

}  // namespace
}  // namespace smartspec
