// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "propose/depth_acceptance.hpp"
#include "smartspec/suffix_proposer.hpp"

namespace smartspec {
namespace {

/// A chain of tokens that name their proposer, with the survivals the test sets per request.
class FakeProposer final : public Proposer {
 public:
  FakeProposer(std::string name, TokenId token) : name_(std::move(name)), token_(token) {}

  std::map<RequestId, std::vector<float>> survivals;
  std::vector<float> otherwise;
  bool propose_throws = false, observe_throws = false, finish_throws = false;
  std::vector<std::vector<RequestId>> calls;
  std::vector<std::int32_t> depths;                          // of the last call
  std::vector<std::pair<RequestId, std::int32_t>> observed;  // id, size of its tree
  std::vector<RequestId> finished;

  [[nodiscard]] std::string_view name() const override { return name_; }
  void propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) override {
    calls.emplace_back();
    depths.clear();
    for (std::size_t i = 0; i < requests.size(); ++i) {
      calls.back().push_back(requests[i].id);
      depths.push_back(requests[i].max_depth);
      EXPECT_TRUE(trees[i].empty());
      const auto own = survivals.find(requests[i].id);
      for (const float value : own != survivals.end() ? own->second : otherwise) {
        trees[i].add(token_, trees[i].size() - 1, value);
      }
    }
    if (propose_throws) throw std::runtime_error(name_ + " propose");
  }
  void observe(std::span<const Outcome> outcomes) override {
    for (const Outcome& outcome : outcomes) observed.emplace_back(outcome.id, outcome.tree->size());
    if (observe_throws) throw std::runtime_error(name_ + " observe");
  }
  void finish(RequestId id) override {
    finished.push_back(id);
    if (finish_throws) throw std::runtime_error(name_ + " finish");
  }

 private:
  std::string name_;
  TokenId token_;
};

constexpr TokenId kFree = 1;
constexpr TokenId kPaid = 2;
const std::vector<TokenId> kText = {5, 6, 7};

class StackedProposerTest : public ::testing::Test {
 protected:
  std::shared_ptr<FakeProposer> free_ = std::make_shared<FakeProposer>("free", kFree);
  std::shared_ptr<FakeProposer> paid_ = std::make_shared<FakeProposer>("paid", kPaid);
  StackedProposer stacked_{free_, paid_};

  void SetUp() override { paid_->otherwise = {0.5F, 0.25F, 0.1F, 0.1F}; }

  std::vector<TokenTree> propose(StackedProposer& proposer, const std::vector<RequestId>& ids,
                                 std::int32_t depth = 4) {
    std::vector<ProposeRequest> requests;
    for (const RequestId id : ids) {
      requests.push_back({.id = id,
                          .tokens = kText,
                          .num_prompt_tokens = 1,
                          .max_depth = depth,
                          .max_nodes = kMaxTreeNodes});
    }
    std::vector<TokenTree> trees(ids.size());
    proposer.propose(requests, trees);
    return trees;
  }

  /// The first `accepted` nodes of the chain were accepted.
  static void observe(StackedProposer& proposer, RequestId id, const TokenTree& tree,
                      std::size_t accepted) {
    std::vector<std::int32_t> path(accepted);
    for (std::size_t i = 0; i < accepted; ++i) path[i] = static_cast<std::int32_t>(i);
    const std::vector<TokenId> emitted(accepted + 1, 9);
    const Proposer::Outcome outcome{
        .id = id, .tree = &tree, .accepted_path = path, .emitted = emitted, .request = nullptr};
    proposer.observe({&outcome, 1});
  }

  static TokenId whose(const TokenTree& tree) { return tree.empty() ? -1 : tree.tokens[0]; }
};

TEST_F(StackedProposerTest, OneCallForAllThatFreeIsNotSureOf) {
  free_->survivals = {{1, {0.99F, 0.98F, 0.97F, 0.96F}}, {2, {0.6F}}, {4, {0.99F, 0.99F, 0.98F}}};
  const auto trees = propose(stacked_, {1, 2, 3, 4});
  EXPECT_EQ(free_->calls, (std::vector<std::vector<RequestId>>{{1, 2, 3, 4}}));
  EXPECT_EQ(paid_->calls, (std::vector<std::vector<RequestId>>{{2, 3}}));
  EXPECT_EQ(whose(trees[0]), kFree);
  EXPECT_EQ(whose(trees[1]), kPaid);
  EXPECT_EQ(whose(trees[2]), kPaid);
  EXPECT_EQ(whose(trees[3]), kFree);
  EXPECT_EQ(stacked_.name(), "free+paid");
}

TEST_F(StackedProposerTest, WhatPaidYieldsIsLearnt) {
  free_->otherwise = {0.6F, 0.3F};
  EXPECT_EQ(whose(propose(stacked_, {1})[0]), kPaid);
  for (RequestId id = 10; id < 40; ++id) {
    observe(stacked_, id, propose(stacked_, {id})[0], 0);
  }
  EXPECT_EQ(whose(propose(stacked_, {1})[0]), kFree);
  EXPECT_EQ(whose(propose(stacked_, {2})[0]), kFree) << "a new request is an average one";
  // Nothing found asks the other all the same: low expectations are no end.
  free_->survivals[1] = {};
  EXPECT_EQ(whose(propose(stacked_, {1})[0]), kPaid);
}

TEST_F(StackedProposerTest, OutcomesOfFreeSayNothingOfPaid) {
  free_->otherwise = {0.99F, 0.99F, 0.99F, 0.99F};
  for (int step = 0; step < 50; ++step) observe(stacked_, 1, propose(stacked_, {1})[0], 0);
  EXPECT_TRUE(paid_->calls.empty());
  free_->otherwise = {0.9F, 0.8F, 0.5F};
  EXPECT_EQ(whose(propose(stacked_, {1})[0]), kPaid);
}

TEST_F(StackedProposerTest, EveryRequestHasItsOwnExpectation) {
  for (int step = 0; step < 200; ++step) {  // others: two of four
    observe(stacked_, 100, propose(stacked_, {100})[0], step % 2 == 0 ? 4 : 0);
  }
  free_->otherwise = {0.8F, 0.5F, 0.2F};  // 1.5 of at most 4
  for (int step = 0; step < 40; ++step) {
    free_->survivals = {{1, {}}, {2, {}}};
    const auto trees = propose(stacked_, {1, 2});
    observe(stacked_, 1, trees[0], 4);
    observe(stacked_, 2, trees[1], 0);
  }
  free_->survivals.clear();
  auto trees = propose(stacked_, {1, 2});
  EXPECT_EQ(whose(trees[0]), kPaid);
  EXPECT_EQ(whose(trees[1]), kFree);
  const TokenId of_new = whose(propose(stacked_, {3})[0]);
  stacked_.finish(2);
  EXPECT_EQ(whose(propose(stacked_, {2})[0]), of_new) << "forgotten with the request";
  EXPECT_EQ(free_->finished, (std::vector<RequestId>{2}));
  EXPECT_EQ(paid_->finished, (std::vector<RequestId>{2}));
}

TEST_F(StackedProposerTest, OneOfThemHavingNothingLeavesTheOthersDraft) {
  free_->otherwise = {0.1F};
  paid_->otherwise.clear();
  EXPECT_EQ(whose(propose(stacked_, {1})[0]), kFree);
  free_->otherwise.clear();
  EXPECT_TRUE(propose(stacked_, {1})[0].empty());
}

TEST_F(StackedProposerTest, SurvivalsThatAreNoNumbersAskPaid) {
  free_->otherwise = {std::numeric_limits<float>::quiet_NaN()};
  EXPECT_EQ(whose(propose(stacked_, {1})[0]), kPaid);
}

TEST_F(StackedProposerTest, MarginAndDepthOfPaid) {
  free_->otherwise = {0.5F, 0.5F};
  StackedProposer eager(free_, paid_, 0.1);
  EXPECT_EQ(whose(propose(eager, {1})[0]), kFree);
  StackedProposer shallow(free_, paid_, 0.8, 1);  // expects at most 1
  EXPECT_EQ(whose(propose(shallow, {1}, 16)[0]), kFree);
  free_->otherwise = {0.4F, 0.1F};
  EXPECT_EQ(whose(propose(shallow, {1}, 16)[0]), kPaid);
  EXPECT_EQ(paid_->depths, (std::vector<std::int32_t>{1}));
  for (const double margin : {0.0, -1.0, std::numeric_limits<double>::infinity(),
                              std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THROW(StackedProposer(free_, paid_, margin), std::invalid_argument);
  }
  EXPECT_THROW(StackedProposer(free_, paid_, 0.8, 0), std::invalid_argument);
  EXPECT_THROW(StackedProposer(nullptr, paid_), std::invalid_argument);
  EXPECT_THROW(StackedProposer(free_, nullptr), std::invalid_argument);
}

TEST_F(StackedProposerTest, AnErrorOfOneKeepsTheDraftsOfTheOther) {
  free_->otherwise = {0.5F};
  free_->propose_throws = true;
  auto trees = propose(stacked_, {1, 2});
  EXPECT_EQ(whose(trees[0]), kPaid);
  EXPECT_EQ(whose(trees[1]), kPaid);
  EXPECT_THROW(observe(stacked_, 1, trees[0], 1), std::runtime_error) << "told once";
  EXPECT_NO_THROW(observe(stacked_, 2, trees[1], 1));
  EXPECT_EQ(free_->observed.size(), 2U);
  EXPECT_EQ(paid_->observed.size(), 2U);

  free_->propose_throws = false;
  paid_->propose_throws = true;
  trees = propose(stacked_, {1, 2});
  EXPECT_EQ(whose(trees[0]), kFree);
  EXPECT_THROW(stacked_.observe({}), std::runtime_error);

  free_->propose_throws = true;
  EXPECT_THROW(propose(stacked_, {1}), std::runtime_error);
  EXPECT_NO_THROW(stacked_.observe({})) << "told already";
}

TEST_F(StackedProposerTest, BothHearOfEverythingWhateverTheOtherThrows) {
  free_->observe_throws = free_->finish_throws = true;
  free_->survivals = {{1, {0.99F, 0.99F, 0.99F, 0.99F}}};
  const auto trees = propose(stacked_, {1, 2});
  EXPECT_THROW(observe(stacked_, 1, trees[0], 1), std::runtime_error);
  EXPECT_THROW(observe(stacked_, 2, trees[1], 1), std::runtime_error);
  using Seen = std::vector<std::pair<RequestId, std::int32_t>>;
  EXPECT_EQ(free_->observed, (Seen{{1, 4}, {2, 0}})) << "the other's tree is not its own";
  EXPECT_EQ(paid_->observed, (Seen{{1, 0}, {2, 4}}));
  EXPECT_THROW(stacked_.finish(1), std::runtime_error);
  EXPECT_EQ(paid_->finished, (std::vector<RequestId>{1}));
}

// ------------------------------------------------------------------------------ depth acceptance

Proposer::Outcome outcome_of(const TokenTree& tree, const std::vector<std::int32_t>& path,
                             const std::vector<TokenId>& emitted) {
  return {.id = 0, .tree = &tree, .accepted_path = path, .emitted = emitted, .request = nullptr};
}

TEST(DepthAcceptanceTest, ExpectsWhatSimulatedChainsYield) {
  std::mt19937_64 rng(5);
  std::uniform_real_distribution<double> uniform;
  const std::vector<double> rates = {0.8, 0.7, 0.9, 0.6, 0.5};
  DepthAcceptance acceptance;
  double accepted = 0;
  constexpr int kSteps = 4000;
  for (int step = 0; step < kSteps; ++step) {
    // Lengths differ, as policies choose them: depths nobody drafted are not failures.
    const std::size_t length = 1 + rng() % rates.size();
    const TokenTree tree = TokenTree::chain(std::vector<TokenId>(length, 1));
    std::size_t depth = 0;
    while (depth < length && uniform(rng) < rates[depth]) ++depth;
    std::vector<std::int32_t> path;
    for (std::size_t i = 0; i < depth; ++i) path.push_back(static_cast<std::int32_t>(i));
    RequestAcceptance request;
    acceptance.learn(outcome_of(tree, path, std::vector<TokenId>(depth + 1, 1)), request);
  }
  double survival = 1;
  for (const double rate : rates) accepted += survival *= rate;
  EXPECT_NEAR(acceptance.expect(5, {}), accepted, 0.05);
  EXPECT_NEAR(acceptance.expect(1, {}), 0.8, 0.03);
}

TEST(DepthAcceptanceTest, RequestsAreShrunkTowardsAll) {
  std::mt19937_64 rng(6);
  DepthAcceptance acceptance;
  const TokenTree tree = TokenTree::chain(std::vector<TokenId>{1});
  RequestAcceptance good, bad;
  const auto learn = [&](RequestAcceptance& request, double rate) {
    const bool yes = static_cast<double>(rng() % 1000) < 1000 * rate;
    acceptance.learn(
        outcome_of(tree, yes ? std::vector<std::int32_t>{0} : std::vector<std::int32_t>{},
                   std::vector<TokenId>(yes ? 2 : 1, 1)),
        request);
  };
  for (int step = 0; step < 1000; ++step) {
    RequestAcceptance other;
    learn(other, 0.6);
  }
  learn(bad, 0);
  EXPECT_GT(acceptance.expect(1, bad), 0.5) << "one rejection says little";
  for (int step = 0; step < 300; ++step) {
    learn(good, 0.9);
    learn(bad, 0.3);
  }
  EXPECT_NEAR(acceptance.expect(1, good), 0.9, 0.06);
  EXPECT_NEAR(acceptance.expect(1, bad), 0.3, 0.08);
  EXPECT_NEAR(acceptance.expect(1, {}), 0.6, 0.05);
}

TEST(DepthAcceptanceTest, WhatWasNotTriedCountsNeitherWay) {
  TokenTree tree;
  tree.add(1, -1);
  tree.add(2, -1);  // a leaf
  tree.add(3, 0);
  const DepthAcceptance fresh;
  const auto after = [&](const std::vector<std::int32_t>& path, std::size_t emitted) {
    DepthAcceptance acceptance;
    RequestAcceptance request;
    acceptance.learn(outcome_of(tree, path, std::vector<TokenId>(emitted, 1)), request);
    return request;
  };
  EXPECT_EQ(after({1}, 2).trials, 1) << "nothing was drafted behind the leaf";
  EXPECT_EQ(after({0}, 2).trials, 2) << "a rejection behind the first node";
  EXPECT_EQ(after({0}, 1).trials, 1) << "the request stopped on the accepted token";
  EXPECT_EQ(after({}, 1).accepted, 0);
  EXPECT_EQ(after({}, 1).trials, 1);
  EXPECT_EQ(after({0, 2}, 3).accepted, 2);
  EXPECT_GT(fresh.expect(4, {}), 2.5) << "optimistic at first";
  EXPECT_GT(fresh.expect(256, {}), fresh.expect(16, {}));
}

}  // namespace
}  // namespace smartspec
