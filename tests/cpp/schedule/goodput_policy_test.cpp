// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/goodput_policy.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "allocation_counter.hpp"

namespace smartspec {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Linear in tokens above a floor: an 8B model on a large GPU.
CostCoefficients gpu_like() {
  return {.tokens = {1, 1024}, .seconds = {6.96e-3, 25.8e-3}, .per_kv_token = 4.859e-8};
}

CostCoefficients draft_like() { return {.tokens = {1, 1024}, .seconds = {0.5e-3, 0.55e-3}}; }

/// Chains that are right with a given probability per token, verified by a fixed truth.
class World {
 public:
  World(GoodputOptions options, std::size_t batch, std::vector<ProposerView> proposers)
      : policy(options),
        proposers_(std::move(proposers)),
        acceptance(batch, 0.7),
        trees_(batch),
        requests_(batch) {
    for (std::size_t i = 0; i < batch; ++i) {
      requests_[i] = {.id = static_cast<RequestId>(i), .num_tokens = 1000, .max_depth = 64};
    }
  }

  struct Step {
    std::int32_t draft_passes = 0;
    std::int32_t drafted = 0;
    std::int32_t verified = 0;
    std::int32_t emitted = 0;
    double seconds = 0;
    double draft_seconds = 0;
  };

  Step run() {
    const std::size_t batch = requests_.size();
    Step step;
    StepView view{.now = now_,
                  .base = {.num_tokens = static_cast<std::int32_t>(batch),
                           .num_sequences = static_cast<std::int32_t>(batch),
                           .num_logits = static_cast<std::int32_t>(batch),
                           .kv_tokens = 1000 * static_cast<std::int64_t>(batch)},
                  .num_decodes = static_cast<std::int32_t>(batch),
                  .token_budget = token_budget,
                  .proposers = proposers_};
    candidates_.clear();
    free_trees_.resize(batch);
    for (std::size_t i = 0; i < batch; ++i) {
      for (std::size_t p = 0; p < proposers_.size(); ++p) {
        if (proposers_[p].pays_per_depth) continue;
        draft(i, 6, free_trees_[i]);
        candidates_.push_back({.request = static_cast<std::int32_t>(i),
                               .proposer = static_cast<std::int32_t>(p),
                               .tree = &free_trees_[i]});
      }
    }
    choices.assign(batch, {});
    policy.plan(view, requests_, candidates_, choices);
    works_.clear();
    pointers_.clear();
    DraftWork work;
    for (std::size_t i = 0; i < batch; ++i) {
      trees_[i].clear();
      const DraftChoice& choice = choices[i];
      if (choice.depth > 0 &&
          proposers_[static_cast<std::size_t>(choice.proposer)].pays_per_depth) {
        draft(i, choice.depth, trees_[i]);
        step.drafted += choice.depth;
        step.draft_passes = std::max(step.draft_passes, choice.depth);
        work.proposer = choice.proposer;
      } else if (choice.depth > 0) {
        trees_[i] = free_trees_[i];
      }
      pointers_.push_back(&trees_[i]);
    }
    for (std::int32_t level = 1; level <= step.draft_passes; ++level) {
      StepLoad load;
      for (const DraftChoice& choice : choices) load.num_tokens += choice.depth >= level ? 1 : 0;
      load.num_sequences = load.num_logits = load.num_tokens;
      step.draft_seconds += draft_truth.predict(load);
      work.load.num_tokens += load.num_tokens;
    }
    if (step.draft_passes > 0) {
      work.load.num_passes = step.draft_passes;
      work.load.num_sequences = work.load.num_logits = work.load.num_tokens;
      work.seconds = step.draft_seconds;
      works_.push_back(work);
    }
    policy.allocate(view, requests_, choices, works_, pointers_);
    finish(view, step);
    return step;
  }

  GoodputPolicy policy;
  std::vector<ProposerView> proposers_;
  std::vector<double> acceptance;  // [requests]
  std::vector<DraftChoice> choices;
  CostModel target_truth{gpu_like(), {.learn = false}};
  CostModel draft_truth{draft_like(), {.learn = false}};
  std::int32_t token_budget = 8192;
  bool claims = false;
  std::vector<TokenTree> trees_;
  std::vector<LengthRequest> requests_;

 private:
  /// Token 1 is right, 2 is wrong; the truth is 1 everywhere.
  void draft(std::size_t i, std::int32_t depth, TokenTree& tree) {
    tree.clear();
    double survival = 1;
    for (std::int32_t d = 0; d < depth; ++d) {
      const bool right = std::bernoulli_distribution(acceptance[i])(random_);
      survival *= acceptance[i];
      tree.add(right ? 1 : 2, d - 1, claims ? static_cast<float>(survival) : 1.0F);
    }
  }

  void finish(const StepView& view, Step& step) {
    const std::size_t batch = requests_.size();
    emitted_.resize(batch);
    outcomes_.clear();
    for (std::size_t i = 0; i < batch; ++i) {
      std::int32_t accepted = 0;
      while (accepted < trees_[i].size() &&
             trees_[i].tokens[static_cast<std::size_t>(accepted)] == 1) {
        ++accepted;
      }
      emitted_[i].assign(static_cast<std::size_t>(accepted) + 1, 1);
      outcomes_.push_back({.id = requests_[i].id,
                           .num_verified = trees_[i].size(),
                           .num_accepted = accepted,
                           .emitted = emitted_[i]});
      step.verified += trees_[i].size();
      step.emitted += accepted + 1;
      requests_[i].num_output_tokens += accepted + 1;
    }
    StepOutcome outcome{.now = now_, .load = view.base, .drafts = works_, .requests = outcomes_};
    outcome.load.num_tokens += step.verified;
    outcome.load.num_logits += step.verified;
    outcome.seconds = target_truth.predict(outcome.load);
    step.seconds = outcome.seconds + step.draft_seconds;
    now_ += step.seconds;
    for (LengthRequest& request : requests_) request.decode_seconds += step.seconds;
    policy.observe(outcome);
  }

  std::mt19937 random_{7};
  double now_ = 0;
  std::vector<Candidate> candidates_;
  std::vector<TokenTree> free_trees_;
  std::vector<DraftWork> works_;
  std::vector<TokenTree*> pointers_;
  std::vector<std::vector<TokenId>> emitted_;
  std::vector<RequestOutcome> outcomes_;
};

GoodputOptions options() { return {.target = gpu_like(), .draft = draft_like()}; }

double goodput(World& world, int steps) {
  double tokens = 0;
  double seconds = 0;
  for (int i = 0; i < steps; ++i) {
    const World::Step step = world.run();
    tokens += step.emitted;
    seconds += step.seconds;
  }
  return tokens / seconds;
}

const std::vector<ProposerView> kPaid{{.name = "draft", .pays_per_depth = true}};
const std::vector<ProposerView> kFree{{.name = "suffix", .pays_per_depth = false}};

TEST(GoodputPolicy, NearTheBestUniformLengthOfOneRequest) {
  for (const double rate : {0.35, 0.7, 0.9}) {
    World world(options(), 1, kPaid);
    world.acceptance.assign(1, rate);
    goodput(world, 300);
    const double reached = goodput(world, 4000);
    double best = 0;
    for (std::int32_t k = 0; k <= 8; ++k) {
      double expected = 1;
      double survival = 1;
      for (std::int32_t d = 0; d < k; ++d) expected += survival *= rate;
      const double seconds = world.target_truth.predict({.num_tokens = 1 + k, .kv_tokens = 1000}) +
                             k * world.draft_truth.predict({.num_tokens = 1});
      best = std::max(best, expected / seconds);
    }
    EXPECT_GT(reached, 0.97 * best) << rate;  // 4,000 steps of luck
  }
}

TEST(GoodputPolicy, AlwaysWrongDraftsCostNextToNothing) {
  for (const std::size_t batch : {1U, 8U, 64U, 256U}) {
    World world(options(), batch, kPaid);
    world.acceptance.assign(batch, 0.0);
    const double off =
        static_cast<double>(batch) /
        world.target_truth.predict({.num_tokens = static_cast<std::int32_t>(batch),
                                    .kv_tokens = 1000 * static_cast<std::int64_t>(batch)});
    EXPECT_GT(goodput(world, 2000), 0.995 * off) << batch;  // the first steps included
  }
}

TEST(GoodputPolicy, ComesBackWhenDraftsBecomeRight) {
  World world(options(), 64, kPaid);
  world.acceptance.assign(64, 0.0);
  goodput(world, 1000);
  EXPECT_EQ(world.run().verified, 0);
  world.acceptance.assign(64, 0.9);
  goodput(world, 200);
  EXPECT_GT(world.run().verified, 64 * 2);
}

TEST(GoodputPolicy, CatchingUpIsPaidOnceAndDoesNotKeepARequestFromStarting) {
  GoodputPolicy policy(options());
  std::vector<LengthRequest> requests{
      {.id = 0, .num_tokens = 2000, .max_depth = 8, .backlog = 1 << 20, .num_remaining = 400}};
  std::vector<DraftChoice> choices(1);
  const StepView view{.base = {.num_tokens = 1, .num_sequences = 1, .num_logits = 1},
                      .num_decodes = 1,
                      .token_budget = 100,
                      .proposers = kPaid};
  policy.plan(view, requests, {}, choices);
  EXPECT_GT(choices[0].depth, 0);
  requests[0].num_remaining = 9;  // too late: it would not come back
  policy.plan(view, requests, {}, choices);
  EXPECT_EQ(choices[0].depth, 0);
}

TEST(GoodputPolicy, VerifiesNothingAtStepsThatFollowAPlanWithoutDrafts) {
  const CostCoefficients dear{.tokens = {1}, .seconds = {1}};
  GoodputPolicy policy({.target = draft_like(), .draft = dear});
  const StepView view{.base = {.num_tokens = 1, .num_sequences = 1, .num_logits = 1},
                      .num_decodes = 1,
                      .token_budget = 64,
                      .proposers = kPaid};
  const std::vector<LengthRequest> requests{{.id = 1, .num_tokens = 100, .max_depth = 8}};
  for (int step = 0; step < 8; ++step) {  // the first one plans
    std::vector<DraftChoice> choices(1);
    policy.plan(view, requests, {}, choices);
    ASSERT_EQ(choices[0].depth, 0) << "step " << step;
    if (step == 0) continue;
    TokenTree unasked;
    unasked.add(7, -1, 0.99F);
    std::vector<TokenTree*> trees{&unasked};
    policy.allocate(view, requests, choices, {}, trees);
    EXPECT_TRUE(unasked.empty()) << "step " << step;
    trees[0] = nullptr;
    policy.allocate(view, requests, choices, {}, trees);
  }
}

TEST(GoodputPolicy, ShortStepsAreLearntTogetherAndLongOnesAtOnce) {
  GoodputPolicy policy({.target = draft_like(), .draft = draft_like()});
  const StepLoad load{.num_tokens = 1, .num_sequences = 1, .num_logits = 1};
  const CostModel& cost = policy.target_cost();
  std::int64_t steps = 0;
  const auto observe = [&](double seconds) {
    policy.observe({.load = load, .seconds = seconds});
    ++steps;
  };
  while (steps < 300) observe(1e-3);
  std::int64_t longest = 0;
  std::int64_t most = 0;
  for (int step = 0; step < 100; ++step) {
    const std::int64_t before = cost.num_observed();
    observe(1e-3);
    longest = std::max(longest, steps - cost.num_observed());
    most = std::max(most, cost.num_observed() - before);
  }
  EXPECT_EQ(longest, 7) << "passes that wait";
  EXPECT_EQ(most, 8) << "passes learnt at once";
  // Twenty times slower: once that is believed, nothing waits any more, and nothing was lost.
  for (int step = 0; step < 100; ++step) observe(20e-3);
  EXPECT_EQ(cost.num_observed(), steps);
  EXPECT_NEAR(cost.predict(load), 20e-3, 1e-3);
}

TEST(GoodputPolicy, GoodAndBadRequestsOfOneBatchDraftDifferently) {
  World world(options(), 64, kPaid);
  for (std::size_t i = 0; i < 64; ++i) world.acceptance[i] = i % 2 == 0 ? 0.92 : 0.1;
  goodput(world, 300);
  std::int32_t good = 0;
  std::int32_t bad = 0;
  for (int step = 0; step < 50; ++step) {
    world.run();
    for (std::size_t i = 0; i < 64; ++i) (i % 2 == 0 ? good : bad) += world.trees_[i].size();
  }
  EXPECT_GT(good, 50 * 32 * 3);
  EXPECT_LT(bad, 50 * 32);
}

TEST(GoodputPolicy, FreeDraftsAreScoredWhileNothingIsVerified) {
  World world(options(), 512, kFree);
  world.acceptance.assign(512, 0.02);
  goodput(world, 100);
  EXPECT_EQ(world.run().verified, 0);
  world.acceptance.assign(512, 0.9);
  goodput(world, 40);
  EXPECT_GT(world.run().verified, 512);
}

TEST(GoodputPolicy, KeepsWithinTokenBudgetAndUserLimits) {
  World world(options(), 16, kFree);
  world.acceptance.assign(16, 0.95);
  world.claims = true;
  world.token_budget = 10;
  world.requests_[0].control.max_tokens = 0;
  world.requests_[1].control = {.min_tokens = 3, .max_tokens = 4};
  goodput(world, 100);
  for (int i = 0; i < 50; ++i) {
    EXPECT_LE(world.run().verified, 10);
    EXPECT_EQ(world.trees_[0].size(), 0);
    EXPECT_GE(world.trees_[1].size(), 3);
    EXPECT_LE(world.trees_[1].size(), 4);
  }
}

TEST(GoodputPolicy, ForcedNodesAreVerifiedEvenWhenTheyLose) {
  World world(options(), 2, kFree);
  world.acceptance.assign(2, 0.0);
  world.requests_[1].control.min_tokens = 2;
  goodput(world, 200);
  world.run();
  EXPECT_EQ(world.trees_[0].size(), 0);
  EXPECT_EQ(world.trees_[1].size(), 2);
}

TEST(GoodputPolicy, TargetsComeBeforeGoodput) {
  // At 400 requests few drafts pay; two of them have to be twice as fast as a step.
  World world(options(), 400, kFree);
  world.acceptance.assign(400, 0.6);
  world.claims = true;
  goodput(world, 50);
  const double step_seconds = world.run().seconds;
  world.requests_[3].control.tpot_target = world.requests_[4].control.tpot_target =
      step_seconds / 1.8;
  for (LengthRequest& request : world.requests_) {
    request.num_output_tokens = 1;
    request.decode_seconds = 0;
  }
  goodput(world, 400);
  const auto tpot = [&](std::size_t i) {
    return world.requests_[i].decode_seconds / (world.requests_[i].num_output_tokens - 1);
  };
  EXPECT_LT(tpot(3), 1.03 * step_seconds / 1.8);
  EXPECT_LT(tpot(4), 1.03 * step_seconds / 1.8);
}

TEST(GoodputPolicy, PromptChunksShrinkForTargets) {
  GoodputPolicy policy(options());
  StepView view{.base = {.num_tokens = 8}, .num_decodes = 8};
  std::vector<LengthRequest> requests(8);
  EXPECT_EQ(policy.max_prefill_tokens(view, requests, 2048), 2048);
  requests[2].control.tpot_target = 10e-3;
  const std::int32_t chunk = policy.max_prefill_tokens(view, requests, 2048);
  EXPECT_LT(chunk, 300);
  EXPECT_GE(chunk, 32);
  requests[2].control.tpot_target = 1e-6;  // hopeless: prompts go on all the same
  EXPECT_EQ(policy.max_prefill_tokens(view, requests, 2048), 32);
}

TEST(GoodputPolicy, SameInputsSameDecisions) {
  World one(options(), 32, kPaid);
  World two(options(), 32, kPaid);
  for (int i = 0; i < 300; ++i) {
    const World::Step a = one.run();
    const World::Step b = two.run();
    ASSERT_EQ(a.verified, b.verified);
    ASSERT_EQ(a.drafted, b.drafted);
    ASSERT_EQ(a.seconds, b.seconds);
  }
}

TEST(GoodputPolicy, SteadyStepsAllocateNothing) {
  World world(options(), 64, kPaid);
  goodput(world, 500);
  std::int64_t allocations = 0;
  for (int i = 0; i < 100; ++i) {
    const std::int64_t before = testing::allocations;
    world.run();
    allocations += testing::allocations - before;
  }
  // The world's own trees and the growth of scratch at a new largest step.
  EXPECT_LE(allocations, 20);
}

TEST(GoodputPolicy, HostileInputsNeitherThrowNorHang) {
  GoodputPolicy policy(options());
  TokenTree tree = TokenTree::chain(std::vector<TokenId>{1, 2, 3});
  tree.survival = {std::numeric_limits<float>::quiet_NaN(), 7.0F, -1.0F};
  std::vector<LengthRequest> requests(3);
  requests[0] = {.id = 1, .num_tokens = -5, .max_depth = 3, .decode_seconds = kNan};
  requests[1] = {.id = 2, .num_tokens = 1 << 30, .max_depth = 1 << 30};
  requests[1].control.tpot_target = std::numeric_limits<double>::infinity();
  requests[2] = {.id = 3, .num_tokens = 5, .max_depth = 8, .block_room = -3};
  requests.push_back({.id = 4, .max_depth = -7});
  requests[3].control = {.min_tokens = -3, .max_tokens = -2};
  requests[2].control.tpot_target = 1e-300;
  std::vector<ProposerView> proposers{{.name = "a"}, {.name = "b", .pays_per_depth = true}};
  std::vector<DraftChoice> choices(4);
  std::vector<TokenId> emitted{1};
  double clock = 0;
  for (const double seconds : {1e-3, 0.0, -1.0, kNan, 1e300, 1e-300}) {
    clock -= 5;  // backwards
    TokenTree drafted = tree;
    const StepView view{.now = clock,
                        .base = {.num_tokens = 3, .kv_tokens = std::int64_t{1} << 40},
                        .num_decodes = 3,
                        .token_budget = 100,
                        .block_size = 16,
                        .free_blocks = 0,
                        .proposers = proposers};
    const std::vector<Candidate> candidates{{.request = 0, .proposer = 0, .tree = &drafted}};
    policy.plan(view, requests, candidates, choices);
    for (std::size_t i = 0; i < 4; ++i) {
      EXPECT_LE(choices[i].depth, std::max(requests[i].max_depth, 0));
    }
    std::vector<TokenTree*> trees{&drafted, nullptr, nullptr, nullptr};
    policy.allocate(view, requests, choices, {}, trees);
    const std::vector<RequestOutcome> outcomes{
        {.id = 1, .emitted = emitted},
        {.id = 99, .num_verified = -5, .num_accepted = 1 << 30, .emitted = {}}};
    const std::vector<DraftWork> works{{.proposer = 7, .seconds = kNan},
                                       {.proposer = 1, .seconds = kNan}};
    policy.observe({.now = clock,
                    .load = view.base,
                    .seconds = seconds,
                    .drafts = works,
                    .requests = outcomes});
  }
  EXPECT_TRUE(std::isfinite(policy.stats().predicted_seconds));
  policy.finish(12345);
}

TEST(GoodputPolicy, AMillionRequestsInOneStep) {
  GoodputPolicy policy(options());
  std::vector<LengthRequest> requests(1000000);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i] = {.id = static_cast<RequestId>(i), .num_tokens = 100, .max_depth = 4};
  }
  std::vector<DraftChoice> choices(requests.size());
  const StepView view{.base = {.num_tokens = 1000000},
                      .num_decodes = 1000000,
                      .token_budget = 1 << 20,
                      .proposers = kPaid};
  policy.plan(view, requests, {}, choices);
  std::vector<TokenTree*> trees(requests.size(), nullptr);
  policy.allocate(view, requests, choices, {}, trees);
  policy.observe({.load = view.base, .seconds = 1});
}

TEST(GoodputPolicy, OptionsOutOfRangeAreNamed) {
  const auto message = [](const GoodputOptions& bad) -> std::string {
    try {
      GoodputPolicy policy(bad);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return {};
  };
  EXPECT_NE(message({.max_depth = -1}).find("max_depth"), std::string::npos);
  EXPECT_NE(message({.max_paid_depth = 1000}).find("max_paid_depth"), std::string::npos);
  EXPECT_NE(message({.probe_budget = kNan}).find("probe_budget"), std::string::npos);
  EXPECT_NE(message({.margin = 2}).find("margin"), std::string::npos);
}

}  // namespace
}  // namespace smartspec
