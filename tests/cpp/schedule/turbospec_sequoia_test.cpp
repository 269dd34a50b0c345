// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The two baselines that plan by a model of their own.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "schedule/baseline_world.hpp"
#include "schedule/sequoia.hpp"
#include "schedule/turbospec.hpp"
#include "smartspec/baseline_policies.hpp"

namespace smartspec {
namespace {

using testing::chain;
using testing::kDraft;
using testing::kDraftPass;
using testing::kLookup;
using testing::kSlope;
using testing::kTarget;
using testing::paths;
using testing::plan;
using testing::pruned;
using testing::requests_of;
using testing::step_of;
using testing::Trees;

TEST(TurboSpec, CountsTokensBehindARejectionAsFailures) {
  EXPECT_NEAR(geometric_length(.8, 5), 3.68928, 1e-12);
  const double ratio = (geometric_length(.8, 5) - 1) / 5;
  EXPECT_NEAR(ratio, .537856, 1e-12);
  EXPECT_NEAR(geometric_length(ratio, 5), 2.1114, 5e-5);
}

/// One step of `batch` requests that draft chains of what the policy wants; what was drafted and
/// what was verified.
struct Lengths {
  std::int32_t drafted = 0;
  std::int32_t verified = 0;
};
Lengths turbo_step(LengthPolicy& policy, std::int32_t batch, std::int64_t accepted_per_mille) {
  const StepView step = step_of(batch, kDraft);
  const auto requests = requests_of(batch);
  const auto choices = plan(policy, step, requests);
  Trees trees;
  for (const DraftChoice& choice : choices) {
    trees.trees.push_back(chain(std::vector<float>(static_cast<std::size_t>(choice.depth), 1.0F)));
  }
  policy.allocate(step, requests, choices, {}, trees.pointers());
  std::vector<RequestOutcome> outcomes(1);
  outcomes[0].num_verified = trees.trees[0].size() * 1000;
  outcomes[0].num_accepted = static_cast<std::int32_t>(trees.trees[0].size() * accepted_per_mille);
  policy.observe({.seconds = 1e-2, .requests = outcomes});
  return {choices[0].depth, trees.trees[0].size()};
}

std::int32_t turbo_length(double acceptance, std::int32_t batch, std::int32_t most) {
  double best = -1;
  for (std::int32_t k = 0; k <= most; ++k) {
    double tokens = 1;
    for (std::int32_t i = 1; i <= k; ++i) tokens += std::pow(acceptance, i);
    double seconds = 6.9387e-3 + kSlope * (batch * (k + 1) - 1);
    if (k > 0) seconds = seconds * 1.05 + 4.5e-4 * k;
    const double goodput = batch * tokens / seconds;
    if (goodput <= best) return k - 1;
    best = goodput;
  }
  return most;
}

TEST(TurboSpec, DecidesOncePerPeriodAfterAFullDraft) {
  for (const std::int32_t batch : {1, 16, 64, 256}) {
    const auto policy = make_turbospec_policy(
        {.max_tokens = 7, .period = 20, .window = 5, .target = kTarget, .draft = kDraftPass});
    // Of 1000 drafted 500 are accepted, 300 from step 20 on, nearly all from step 30 on. Where the
    // length is 0 nothing is learnt of that, which is one of its faults.
    std::vector<double> ratios;
    std::int32_t expected = 0;
    for (std::int32_t i = 0; i < 60; ++i) {
      const bool deciding = i % 20 == 0;
      if (deciding) {
        ratios.erase(ratios.begin(),
                     ratios.end() - std::min<std::ptrdiff_t>(std::ssize(ratios), 5));
        const double sum = std::accumulate(ratios.begin(), ratios.end(), 0.0);
        expected = turbo_length(i == 0 ? .7 : sum / static_cast<double>(ratios.size()), batch, 7);
      }
      const std::int32_t accepted = i < 20 ? 500 : i < 30 ? 300 : 950;
      const Lengths lengths = turbo_step(*policy, batch, accepted);
      EXPECT_EQ(lengths.drafted, deciding ? 7 : expected) << "step " << i << " batch " << batch;
      EXPECT_EQ(lengths.verified, expected) << "step " << i << " batch " << batch;
      if (expected > 0) ratios.push_back(accepted / 1000.0);
    }
  }
  EXPECT_NE(turbo_length(.5, 16, 7), turbo_length(.95, 16, 7));
}

TEST(TurboSpec, ComesBackFromZeroOnlyThroughTheForcedDraft) {
  const CostCoefficients draft{.tokens = {1}, .seconds = {4e-3}};
  const auto policy = make_turbospec_policy({.max_tokens = 4,
                                             .period = 10,
                                             .window = 3,
                                             .first_acceptance = .1,
                                             .target = kTarget,
                                             .draft = draft});
  for (std::int32_t i = 0; i < 30; ++i) {
    const Lengths lengths = turbo_step(*policy, 4, 100);
    EXPECT_EQ(lengths.drafted, i % 10 == 0 ? 4 : 0) << i;
    EXPECT_EQ(lengths.verified, 0) << i;
  }
}

TEST(TurboSpec, StopsAtTheFirstDecrease) {
  // The third row costs as much as two passes and the rest is free: 7 tokens would be best.
  const CostCoefficients flat{.tokens = {1, 2, 3, 4}, .seconds = {1, 1, 2, 2}};
  const auto policy = make_turbospec_policy(
      {.max_tokens = 7, .first_acceptance = .9, .overhead = 0, .target = flat});
  const auto kept = pruned(*policy, {chain(std::vector<float>(7, 1.0F))});
  EXPECT_EQ(kept[0].size(), 1);
  EXPECT_GT(geometric_length(.9, 7) / 2, geometric_length(.9, 1));
}

TEST(TurboSpec, KeepsItsLengthWhenADecidingStepDraftsNothing) {
  const auto policy = make_turbospec_policy({.max_tokens = 3, .period = 2, .target = kTarget});
  const auto requests = requests_of(1);
  const StepView step = step_of(1, kLookup);
  const TokenTree something = chain({1, 1, 1});
  const std::vector<Candidate> candidates{{.request = 0, .proposer = 0, .tree = &something}};
  EXPECT_EQ(plan(*policy, step, requests)[0].depth, 0);
  Trees trees{{TokenTree{}}};
  policy->allocate(step, requests, std::vector<DraftChoice>(1), {}, trees.pointers());
  EXPECT_EQ(plan(*policy, step, requests, candidates)[0].depth, 3);
}

/// Every shape of up to `nodes` nodes, grown one node at a time; a node is its ranks from the root.
using Shape = std::set<std::vector<std::size_t>>;
double best_by_enumeration(std::size_t nodes, std::size_t depth, const std::vector<double>& rates) {
  double best = 0;
  std::set<Shape> shapes{{}};
  for (std::size_t n = 0; n < nodes; ++n) {
    std::set<Shape> grown;
    for (const Shape& shape : shapes) {
      Shape parents = shape;
      parents.insert(std::vector<std::size_t>{});
      for (std::vector<std::size_t> node : parents) {
        if (node.size() == depth) continue;
        node.push_back(0);
        while (node.back() < rates.size() && shape.contains(node)) ++node.back();
        if (node.back() == rates.size()) continue;
        Shape larger = shape;
        larger.insert(node);
        double value = 0;
        for (const auto& path : larger) {
          double chance = 1;
          for (const std::size_t rank : path) chance *= rates[rank];
          value += chance;
        }
        best = std::max(best, value);
        grown.insert(larger);
      }
    }
    shapes = std::move(grown);
  }
  return best;
}

TEST(Sequoia, FindsTheBestShape) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> rate;
  for (std::int32_t round = 0; round < 40; ++round) {
    std::vector<double> rates(1 + random() % 3U);
    for (double& r : rates) r = rate(random);
    if (round % 4 == 0) rates[0] = 0;
    if (round % 4 != 1) std::sort(rates.rbegin(), rates.rend());
    const auto nodes = static_cast<std::int32_t>(1 + random() % 7U);
    const auto depth = static_cast<std::int32_t>(1 + random() % 5U);
    const TreeShape shape = best_tree_shape(nodes, depth, rates);
    EXPECT_LE(shape.num_nodes, nodes);
    EXPECT_LE(shape.num_levels, depth);
    EXPECT_NEAR(shape.expected_accepted,
                best_by_enumeration(static_cast<std::size_t>(nodes),
                                    static_cast<std::size_t>(depth), rates),
                1e-12);
    double value = 0;
    std::int32_t levels = 0;
    std::int32_t count = 0;
    const std::function<void(std::int32_t, double, std::int32_t)> visit =
        [&](std::int32_t node, double chance, std::int32_t level) {
          levels = std::max(levels, level);
          const auto& children = shape.children[static_cast<std::size_t>(node + 1)];
          ASSERT_LE(children.size(), rates.size());
          for (std::size_t j = 0; j < children.size(); ++j) {
            ASSERT_GT(children[j], node);
            ++count;
            value += chance * rates[j];
            visit(children[j], chance * rates[j], level + 1);
          }
        };
    visit(-1, 1, 0);
    EXPECT_EQ(count, shape.num_nodes);
    EXPECT_EQ(levels, shape.num_levels);
    EXPECT_NEAR(value, shape.expected_accepted, 1e-12);
  }
  EXPECT_EQ(best_tree_shape(kMaxTreeNodes, kMaxTreeNodes, std::vector<double>(32, .9)).num_nodes,
            kMaxTreeNodes);
}

TEST(Sequoia, KeepsTheNodesWithinTheShape) {
  // Rates .6, .3: of 4 nodes the best are 0, 00, 1 and 000 or 01 (.216 against .18).
  const auto policy = make_sequoia_policy(4, 8, {.6, .3});
  EXPECT_EQ(policy->max_depth(), 3);
  TokenTree tree;
  tree.add(1, -1, .2F);  // the likelier sibling comes later: rank 1
  tree.add(2, -1, .7F);
  tree.add(3, -1, .1F);
  tree.add(4, 0, .2F);
  tree.add(5, 1, .3F);
  tree.add(6, 1, .2F);
  tree.add(7, 4, .3F);
  tree.add(8, 6, .3F);
  const auto kept = pruned(*policy, {tree, chain({1, 1, 1, 1, 1})});
  EXPECT_EQ(paths(kept[0]), (std::set<std::vector<TokenId>>{{1}, {2}, {2, 5}, {2, 5, 7}}));
  EXPECT_EQ(kept[1].size(), 3);
}

}  // namespace
}  // namespace smartspec
