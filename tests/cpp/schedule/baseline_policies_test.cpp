// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/baseline_policies.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "schedule/baseline_world.hpp"

namespace smartspec {
namespace {

using testing::chain;
using testing::expect_part_of;
using testing::kAll;
using testing::kDraft;
using testing::kLookup;
using testing::kTarget;
using testing::paths;
using testing::plan;
using testing::pruned;
using testing::random_tree;
using testing::requests_of;
using testing::step_of;
using testing::Trees;

TEST(SpeculationControl, NamesTheFieldThatIsWrong) {
  const auto complaint = [](const SpeculationControl& control) {
    try {
      control.validate(2);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(complaint({}), "");
  EXPECT_EQ(complaint({.min_tokens = 2, .max_tokens = 2, .proposer = 1, .tpot_target = .1}), "");
  EXPECT_NE(complaint({.min_tokens = -1}).find("min_tokens"), std::string::npos);
  EXPECT_NE(complaint({.min_tokens = 3, .max_tokens = 2}).find("min_tokens"), std::string::npos);
  EXPECT_NE(complaint({.max_tokens = kMaxTreeNodes + 1}).find("max_tokens"), std::string::npos);
  EXPECT_NE(complaint({.proposer = 2}).find("proposer"), std::string::npos);
  EXPECT_NE(complaint({.proposer = -2}).find("proposer"), std::string::npos);
  EXPECT_NE(complaint({.tpot_target = -1}).find("tpot_target"), std::string::npos);
  EXPECT_NE(complaint({.tpot_target = std::nan("")}).find("tpot_target"), std::string::npos);
}

TEST(Baselines, TakeTheFirstCandidateThatHasSomethingElseOneThatPays) {
  const TokenTree nothing;
  const TokenTree something = chain({1, 1});
  const auto policy = make_fixed_policy(5);
  auto requests = requests_of(6, 4);
  requests[3].control.proposer = 2;  // its candidate is empty
  requests[4].control.proposer = 1;  // pays
  requests[5].max_depth = 9;
  const std::vector<Candidate> candidates{
      {.request = 0, .proposer = 0, .tree = &nothing},
      {.request = 0, .proposer = 2, .tree = &something},
      {.request = 1, .proposer = 0, .tree = &something},
      {.request = 1, .proposer = 2, .tree = &something},
      {.request = 3, .proposer = 0, .tree = &something},
      {.request = 3, .proposer = 2, .tree = &nothing},
      {.request = 4, .proposer = 0, .tree = &something},
      {.request = 5, .proposer = 0, .tree = nullptr},
  };
  const auto choices = plan(*policy, step_of(6, kAll), requests, candidates);
  const std::vector<std::pair<std::int32_t, std::int32_t>> expected{{2, 4},  {0, 4}, {1, 4},
                                                                    {-1, 0}, {1, 4}, {1, 5}};
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(choices[i].proposer, expected[i].first) << i;
    EXPECT_EQ(choices[i].depth, expected[i].second) << i;
  }
  EXPECT_EQ(plan(*policy, step_of(1, kLookup), requests_of(1))[0].proposer, -1);
}

TEST(Baselines, OffDraftsNothing) {
  const auto policy = make_off_policy();
  EXPECT_EQ(policy->name(), "off");
  EXPECT_EQ(policy->max_depth(), 0);
  std::vector<DraftChoice> choices(2, {.proposer = 0, .depth = 3});
  policy->plan(step_of(2, kAll), requests_of(2), {}, choices);
  for (const DraftChoice& choice : choices) {
    EXPECT_EQ(choice.proposer, -1);
    EXPECT_EQ(choice.depth, 0);
  }
}

TEST(Baselines, CountWhatHappened) {
  const auto policy = make_fixed_policy(5);
  const std::vector<RequestOutcome> requests{{.id = 0, .num_verified = 5, .num_accepted = 2},
                                             {.id = 1},
                                             {.id = 2, .num_verified = 40, .num_accepted = 3}};
  const std::vector<DraftWork> drafts{{.seconds = .25},
                                      {.seconds = -std::numeric_limits<double>::infinity()}};
  policy->observe({.seconds = .5, .drafts = drafts, .requests = requests});
  policy->observe({.seconds = std::nan("")});
  const PolicyStats stats = policy->stats();
  EXPECT_EQ(stats.num_steps, 2);
  EXPECT_EQ(stats.num_drafted, 45);
  EXPECT_EQ(stats.num_accepted, 5);
  EXPECT_EQ(stats.length_histogram[0], 1);
  EXPECT_EQ(stats.length_histogram[5], 1);
  EXPECT_EQ(stats.length_histogram[16], 1);
  EXPECT_EQ(stats.measured_seconds, .75);
}

TEST(Baselines, RefuseOptionsOutOfRange) {
  EXPECT_THROW(make_fixed_policy(0), std::invalid_argument);
  EXPECT_THROW(make_fixed_policy(kMaxTreeNodes + 1), std::invalid_argument);
  EXPECT_THROW(make_threshold_policy(0), std::invalid_argument);
  EXPECT_THROW(make_threshold_policy(4, 1.5), std::invalid_argument);
  EXPECT_THROW(make_threshold_policy(4, std::nan("")), std::invalid_argument);
  EXPECT_THROW(make_disco_policy(4, -0.1), std::invalid_argument);
  EXPECT_THROW(make_dynamic_depth_policy(4, -0.1), std::invalid_argument);
  EXPECT_THROW(make_tetris_policy(4, -1), std::invalid_argument);
  EXPECT_THROW(make_full_draft_policy(0, {}), std::invalid_argument);
  EXPECT_THROW(make_full_draft_policy(4, {.tokens = {}, .seconds = {}}), std::invalid_argument);
  EXPECT_THROW(make_sequoia_policy(0, 4, {.5}), std::invalid_argument);
  EXPECT_THROW(make_sequoia_policy(4, 0, {.5}), std::invalid_argument);
  EXPECT_THROW(make_sequoia_policy(4, 4, {}), std::invalid_argument);
  EXPECT_THROW(make_sequoia_policy(4, 4, {1.1}), std::invalid_argument);
  EXPECT_THROW(make_turbospec_policy({.max_tokens = 0}), std::invalid_argument);
  EXPECT_THROW(make_turbospec_policy({.period = 0}), std::invalid_argument);
  EXPECT_THROW(make_turbospec_policy({.window = 0}), std::invalid_argument);
  EXPECT_THROW(make_turbospec_policy({.first_acceptance = 2}), std::invalid_argument);
  EXPECT_THROW(make_turbospec_policy({.overhead = std::nan("")}), std::invalid_argument);
  EXPECT_THROW(make_turbospec_policy({.target = {.tokens = {0}}}), std::invalid_argument);
}

TEST(Table, LooksUpTheDecodingRequests) {
  const auto policy = make_table_policy({{1, 64, 3}, {65, 128, 1}, {129, 512, 0}});
  EXPECT_EQ(policy->max_depth(), 3);
  const std::vector<std::pair<std::int32_t, std::int32_t>> expected{
      {0, 0}, {1, 3}, {64, 3}, {65, 1}, {128, 1}, {129, 0}, {512, 0}, {513, 0}};
  for (const auto& [decodes, length] : expected) {
    StepView step = step_of(decodes, kDraft);
    step.base.num_sequences += 100;  // prompts are no part of the batch
    EXPECT_EQ(plan(*policy, step, requests_of(1))[0].depth, length) << decodes;
  }
}

TEST(Table, RefusesRowsThatDoNotAscend) {
  EXPECT_THROW(make_table_policy({}), std::invalid_argument);
  EXPECT_THROW(make_table_policy({{0, 4, 1}}), std::invalid_argument);
  EXPECT_THROW(make_table_policy({{4, 3, 1}}), std::invalid_argument);
  EXPECT_THROW(make_table_policy({{1, 4, 1}, {4, 8, 1}}), std::invalid_argument);
  EXPECT_THROW(make_table_policy({{5, 8, 1}, {1, 4, 1}}), std::invalid_argument);
  EXPECT_THROW(make_table_policy({{1, 4, -1}}), std::invalid_argument);
  EXPECT_THROW(make_table_policy({{1, 4, kMaxTreeNodes + 1}}), std::invalid_argument);
  EXPECT_EQ(make_table_policy({{1, 4, 2}, {9, 9, 5}})->max_depth(), 5);
}

TEST(Threshold, StopsWhenARejectionIsLikely) {
  const auto policy = make_threshold_policy(8, .7);
  EXPECT_EQ(plan(*policy, step_of(1, kDraft), requests_of(1))[0].min_survival, .3F);
  const auto kept = pruned(*policy, {chain({.9F, .6F, .35F, .2F}), chain({.2F, .1F}), {}});
  EXPECT_EQ(kept[0].size(), 3);
  EXPECT_EQ(kept[1].size(), 0);
  EXPECT_EQ(kept[2].size(), 0);
  EXPECT_EQ(pruned(*policy, {chain({.3F, std::nanf(""), .3F})})[0].size(), 1);
}

TEST(Disco, StopsBeforeAnUnlikelyToken) {
  const auto policy = make_disco_policy(8, .4);
  const auto kept = pruned(
      *policy, {chain({.9F, .9F * .8F, .9F * .8F * .3F, .9F * .8F * .3F * .9F}), chain({.39F})});
  EXPECT_EQ(kept[0].size(), 2);
  EXPECT_EQ(kept[1].size(), 0);
  // A token of exactly the confidence stays, however the product was rounded, and paid drafting
  // stops no earlier.
  std::vector<float> survival(8, .4F);
  for (std::size_t i = 1; i < survival.size(); ++i) survival[i] = survival[i - 1] * .4F;
  EXPECT_EQ(pruned(*policy, {chain(survival)})[0].size(), 8);
  EXPECT_LE(plan(*policy, step_of(1, kDraft), requests_of(1, 8))[0].min_survival, survival.back());
}

TEST(DynamicDepth, StopsAtTheFirstLevelThatIsUnlikelyAsAWhole) {
  const auto policy = make_dynamic_depth_policy(8, .5);
  TokenTree tree;
  tree.add(1, -1, .6F);
  tree.add(2, -1, .2F);
  tree.add(3, 0, .3F);
  tree.add(4, 1, .2F);  // level 1: .5
  tree.add(5, 2, .3F);
  tree.add(6, 3, .19F);  // level 2: .49
  const auto kept = pruned(*policy, {tree, chain({.9F, .5F, .49F}), chain({.4F})});
  EXPECT_EQ(kept[0].size(), 4);
  EXPECT_EQ(kept[1].size(), 2);
  EXPECT_EQ(kept[2].size(), 0);
}

TEST(DynamicDepth, StopsPaidDraftingOnceItSawChainsOnly) {
  const auto policy = make_dynamic_depth_policy(8, .5);
  const auto requests = requests_of(1);
  const StepView step = step_of(1, kDraft);
  for (const bool wide : {false, true}) {
    const auto choices = plan(*policy, step, requests);
    EXPECT_EQ(choices[0].min_survival, wide ? .5F : 0);
    Trees trees{{chain({.9F, .8F})}};
    if (wide) trees.trees[0].add(9, -1, .1F);
    policy->allocate(step, requests, choices, {}, trees.pointers());
  }
  EXPECT_EQ(plan(*policy, step, requests)[0].min_survival, 0);
}

TEST(Tetris, TakesTheMostLikelyNodesOfTheBatch) {
  std::mt19937 random(5);
  for (std::int32_t round = 0; round < 300; ++round) {
    std::vector<TokenTree> trees(1 + random() % 6U);
    std::vector<float> all;
    for (TokenTree& tree : trees) {
      tree = random_tree(random, 12, round % 2 == 0 ? 1 : 3);
      all.insert(all.end(), tree.survival.begin(), tree.survival.end());
    }
    const auto capacity = static_cast<std::int32_t>(random() % 30U);
    StepView step = step_of(static_cast<std::int32_t>(trees.size()), kLookup);
    step.token_budget = static_cast<std::int32_t>(random() % 40U);
    std::sort(all.rbegin(), all.rend());
    all.resize(std::min({all.size(), static_cast<std::size_t>(capacity),
                         static_cast<std::size_t>(step.token_budget)}));
    const auto policy = make_tetris_policy(16, capacity);
    const auto kept = pruned(*policy, step, trees);
    std::vector<float> chosen;
    for (std::size_t i = 0; i < trees.size(); ++i) {
      expect_part_of(kept[i], trees[i]);
      chosen.insert(chosen.end(), kept[i].survival.begin(), kept[i].survival.end());
    }
    std::sort(chosen.rbegin(), chosen.rend());
    EXPECT_EQ(chosen, all);
  }
}

TEST(Tetris, SharesTheCapacityWhenNothingIsClaimed) {
  const auto policy = make_tetris_policy(16, 4);
  const TokenTree full = chain(std::vector<float>(4, 1.0F));
  for (const TokenTree& tree : pruned(*policy, {full, full})) EXPECT_EQ(tree.size(), 2);
}

TEST(Tetris, BelievesNoNodeMoreThanItsParent) {
  const auto kept = pruned(*make_tetris_policy(16, 1), {chain({.1F, .9F}), chain({.5F})});
  EXPECT_EQ(kept[0].size(), 0);
  EXPECT_EQ(kept[1].size(), 1);
}

TEST(FullDraft, FindsTheBestSizeForACostOfTokensAlone) {
  std::mt19937 random(6);
  const CostCoefficients target{.tokens = {1, 8, 9, 24},
                                .seconds = {1e-3, 1.1e-3, 1.6e-3, 3e-3},
                                .per_sequence = 1,  // unknown to the table: must not matter
                                .per_kv_token = 1,
                                .per_attention_pair = 1};
  CostCoefficients tokens_only = target;
  tokens_only.per_sequence = tokens_only.per_kv_token = tokens_only.per_attention_pair = 0;
  const CostModel model(tokens_only, {.learn = false});
  for (std::int32_t round = 0; round < 200; ++round) {
    std::vector<TokenTree> trees(1 + random() % 8U);
    std::vector<float> all;
    for (TokenTree& tree : trees) {
      tree = random_tree(random, 8, round % 2 == 0 ? 1 : 3);
      all.insert(all.end(), tree.survival.begin(), tree.survival.end());
    }
    std::sort(all.rbegin(), all.rend());
    StepView step = step_of(static_cast<std::int32_t>(trees.size()), kLookup);
    step.base.kv_tokens = step.base.attention_pairs = 100000;
    step.token_budget = static_cast<std::int32_t>(random() % 40U);
    // Time that went into drafting is gone whatever is verified.
    const std::vector<DraftWork> drafts{{.seconds = round % 3 == 0 ? 5e-3 : 0},
                                        {.seconds = std::nan("")}};
    const auto goodput = [&](double tokens, std::int32_t nodes) {
      return (step.num_decodes + tokens) /
             (drafts[0].seconds + model.predict({.num_tokens = step.num_decodes + nodes}));
    };
    double best = 0;
    double sum = 0;
    const auto most = std::min(static_cast<std::int32_t>(all.size()), step.token_budget);
    for (std::int32_t n = 0; n <= most; ++n) {
      best = std::max(best, goodput(sum, n));
      if (n < most) sum += static_cast<double>(all[static_cast<std::size_t>(n)]);
    }
    const auto policy = make_full_draft_policy(16, target);
    const auto kept = pruned(*policy, step, trees, drafts);
    double expected = 0;
    std::int32_t nodes = 0;
    for (std::size_t i = 0; i < trees.size(); ++i) {
      expect_part_of(kept[i], trees[i]);
      nodes += kept[i].size();
      expected = std::accumulate(kept[i].survival.begin(), kept[i].survival.end(), expected);
    }
    EXPECT_LE(nodes, step.token_budget);
    EXPECT_NEAR(goodput(expected, nodes), best, 1e-6 * best);
    EXPECT_NEAR(policy->stats().expected_accepted, expected, 1e-4);
  }
}

TEST(Baselines, PruneToPartsThatAreClosedUnderAncestors) {
  const std::vector<std::shared_ptr<LengthPolicy>> policies{
      make_threshold_policy(16),
      make_disco_policy(16),
      make_dynamic_depth_policy(16),
      make_tetris_policy(16, 9),
      make_full_draft_policy(16, kTarget),
      make_sequoia_policy(8, 4, {.6, .3, .1}),
      make_turbospec_policy({.max_tokens = 4, .period = 3, .target = kTarget})};
  std::mt19937 random(8);
  for (std::int32_t round = 0; round < 300; ++round) {
    std::vector<TokenTree> trees(1 + random() % 5U);
    for (TokenTree& tree : trees) tree = random_tree(random, 24, 1 + round % 3);
    for (const auto& policy : policies) {
      const auto kept = pruned(*policy, trees);
      for (std::size_t i = 0; i < trees.size(); ++i) expect_part_of(kept[i], trees[i]);
    }
    // Claims that are no numbers, or rise: whatever is kept is closed.
    for (TokenTree& tree : trees) {
      for (float& survival : tree.survival) {
        const auto kind = random() % 6U;
        if (kind == 0) survival = std::nanf("");
        if (kind == 1) survival = std::numeric_limits<float>::infinity();
        if (kind == 2) survival = -1;
      }
    }
    for (const auto& policy : policies) {
      const auto kept = pruned(*policy, trees);
      for (std::size_t i = 0; i < trees.size(); ++i) {
        const auto all = paths(trees[i]);
        for (const auto& path : paths(kept[i])) EXPECT_TRUE(all.contains(path));
      }
    }
  }
}

}  // namespace
}  // namespace smartspec
