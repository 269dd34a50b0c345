// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/simulator.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <string>

#include "simulate/sim_drafts.hpp"
#include "simulate/sim_requests.hpp"
#include "smartspec/baseline_policies.hpp"
#include "smartspec/goodput_policy.hpp"

namespace smartspec {
namespace {

CostCoefficients target_cost() {
  return {.tokens = {1, 1001}, .seconds = {7e-3, 25e-3}, .per_kv_token = 5e-8};
}
CostCoefficients pass_cost() {
  return {.tokens = {1, 1001}, .seconds = {5e-4, 6e-4}, .per_sequence = 1e-6};
}

SimulationOptions closed_loop(std::int32_t batch, std::int64_t steps, AcceptanceModel acceptance) {
  SimulationOptions options;
  options.batch = batch;
  options.context = 500;
  options.max_steps = steps;
  options.warmup_steps = steps / 10;
  options.proposers = {{.acceptance = std::move(acceptance), .max_depth = 8, .pass = pass_cost()}};
  options.target = target_cost();
  options.overhead = 0.05;
  options.record_steps = true;
  return options;
}

SimulationOptions open_loop(int num_requests, double rate) {
  SimulationOptions options = closed_loop(1, 0, {.rates = {.8}, .spread = .5});
  options.batch = 0;
  options.warmup_steps = 0;
  options.scheduler.max_num_batched_tokens = 512;
  options.scheduler.max_num_seqs = 64;
  for (int i = 0; i < num_requests; ++i) {
    options.requests.push_back({.arrival = i / rate,
                                .num_prompt_tokens = 1 + (i * 131) % 900,
                                .num_output_tokens = 1 + (i * 37) % 120});
  }
  return options;
}

std::shared_ptr<LengthPolicy> goodput() {
  return make_goodput_policy({.target = target_cost(), .draft = pass_cost()});
}

TEST(World, IsTheSameForEveryPolicy) {
  const SimulationOptions options = closed_loop(4, 10, {.rates = {.9, .5}, .spread = .7});
  const sim::Luck luck(options.seed);
  sim::RequestPool pool(options, luck);
  pool.resize(4);
  const sim::World world(options, luck);
  sim::SimRequest& request = pool.all()[2];
  TokenTree whole, again;
  world.draft(request, 0, 8, 0, {}, whole);
  ASSERT_EQ(whole.size(), 8);
  EXPECT_EQ(whole.validate(std::numeric_limits<std::int32_t>::max(), 8, 8), "");
  // Shorter drafts are the start of longer ones, however often and in whatever order they are made.
  for (const std::int32_t depth : {3, 8, 1}) {
    world.draft(request, 0, depth, 0, {}, again);
    for (std::int32_t n = 0; n < depth; ++n) {
      EXPECT_EQ(again.tokens.at(static_cast<std::size_t>(n)),
                whole.tokens.at(static_cast<std::size_t>(n)));
    }
  }
  // Acceptance is a function of the position: far ahead first gives the same as step by step.
  std::vector<double> far(4), near(4);
  sim::SimRequest copy = pool.all()[2];
  copy.tracks[0].wander.clear();
  world.survival(request, 0, 300, far);
  for (int position = 0; position <= 300; ++position) world.survival(copy, 0, position, near);
  EXPECT_EQ(far, near);
  // The n-th request of a slot does not depend on when it came.
  const sim::SimRequest& next = pool.replace(pool.all()[1].id);
  sim::RequestPool other(options, luck);
  other.resize(2);
  EXPECT_EQ(other.replace(other.all()[1].id).num_output, next.num_output);
  EXPECT_EQ(other.all()[1].context, next.context);
}

TEST(World, DraftsAreRightAsOftenAsSurvivalSays) {
  const SimulationOptions options =
      closed_loop(8, 10, {.rates = {.9, .6}, .spread = .6, .decay = .2});
  const sim::Luck luck(options.seed);
  sim::RequestPool pool(options, luck);
  pool.resize(8);
  const sim::World world(options, luck);
  constexpr int kDepth = 5;
  constexpr int kTrials = 4000;
  std::vector<double> expected(kDepth), right(kDepth), path(kDepth);
  TokenTree tree;
  for (int trial = 0; trial < kTrials; ++trial) {
    sim::SimRequest& request = pool.all()[static_cast<std::size_t>(trial % 8)];
    request.emitted = trial / 8;
    world.survival(request, 0, request.emitted, path);
    world.draft(request, 0, kDepth, 0, {}, tree);
    bool all = true;
    for (int d = 0; d < kDepth; ++d) {
      const auto depth = static_cast<std::size_t>(d);
      const bool token = tree.tokens[depth] == world.truth(request.id, request.emitted + d);
      EXPECT_FALSE(token && !all) << "right behind a wrong token";
      all = all && token;
      right[depth] += all ? 1 : 0;
      expected[depth] += path[depth];
    }
  }
  for (std::size_t d = 0; d < kDepth; ++d) {
    EXPECT_NEAR(right[d] / kTrials, expected[d] / kTrials, 5 * 0.5 / std::sqrt(kTrials)) << d;
  }
}

TEST(World, SlotsKeepTheirRateAndFewSlotsTakeTurns) {
  for (const std::int32_t batch : {1, 8}) {
    const SimulationOptions options = closed_loop(batch, 10, {.rates = {.9, .5}});
    const sim::Luck luck(options.seed);
    sim::RequestPool pool(options, luck);
    pool.resize(batch);
    int high = 0;
    for (const sim::SimRequest& request : pool.all()) high += request.tracks[0].rate < .5 ? 1 : 0;
    EXPECT_EQ(high, (batch + 1) / 2);
    for (int generation = 0; generation < 6; ++generation) {
      const double before = pool.all()[0].tracks[0].rate;
      const double after = pool.replace(pool.all()[0].id).tracks[0].rate;
      EXPECT_EQ(before < .5, (after < .5) == (batch == 8));
    }
  }
}

/// Drafts four tokens at every other step, and checks what the drafter's cache is said to lack.
class BacklogSpy final : public LengthPolicy {
 public:
  [[nodiscard]] std::string_view name() const override { return "spy"; }
  [[nodiscard]] std::int32_t max_depth() const override { return 4; }
  void plan(const StepView&, std::span<const LengthRequest> requests, std::span<const Candidate>,
            std::span<DraftChoice> choices) override {
    EXPECT_LE(requests.size(), 1U);
    drafts_ = !drafts_;
    rows_ = depth_ = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      // A new one has emitted a token before it may draft.
      EXPECT_EQ(requests[i].backlog, requests[i].id == id_ ? backlog_ : 1) << "step " << steps_;
      id_ = requests[i].id;
      backlog_ = requests[i].backlog;
      if (!drafts_) continue;
      depth_ = std::min(requests[i].max_depth, 4);
      choices[i] = {.proposer = 0, .depth = depth_};
      rows_ = backlog_ + depth_;
    }
    ++steps_;
  }
  void observe(const StepOutcome& outcome) override {
    ASSERT_EQ(outcome.drafts.size(), depth_ > 0 ? 1U : 0U);
    if (depth_ > 0) {
      EXPECT_EQ(outcome.drafts[0].load.num_passes, depth_);
      EXPECT_EQ(outcome.drafts[0].load.num_tokens, rows_);
      backlog_ = outcome.requests[0].num_accepted == depth_ ? 1 : 0;
      all_accepted_ += backlog_;
    } else if (!outcome.requests.empty()) {
      backlog_ += static_cast<std::int32_t>(outcome.requests[0].emitted.size());
    }
  }
  std::int64_t steps_ = 0, all_accepted_ = 0;

 private:
  bool drafts_ = false;
  RequestId id_ = -1;
  std::int32_t backlog_ = 0, rows_ = 0, depth_ = 0;
};

TEST(ClosedLoop, TheDraftersCacheCatchesUp) {
  const auto spy = std::make_shared<BacklogSpy>();
  simulate(closed_loop(1, 400, {.rates = {.8}}), spy);
  EXPECT_GT(spy->steps_, 300);
  EXPECT_GT(spy->all_accepted_, 20);
}

TEST(World, PassesOfDrafts) {
  sim::DraftPasses passes;
  passes.add(100, 1, 2);
  passes.add(50, 4, 1);
  EXPECT_EQ(passes.size(), 2);
  const StepLoad total = passes.total();
  EXPECT_EQ(total.num_tokens, 1 + 4 + 1);
  EXPECT_EQ(total.num_sequences, 3);
  EXPECT_EQ(total.kv_tokens, 100 + 50 + 101);
  EXPECT_EQ(total.attention_pairs, 100 + (47 + 48 + 49 + 50) + 101);
}

TEST(ClosedLoop, ExpectedAndRealEmissionAgree) {
  for (const auto& policy : {make_fixed_policy(3), make_fixed_policy(8), goodput()}) {
    const auto options = closed_loop(16, 600, {.rates = {.85, .5}, .spread = .5, .decay = .05});
    const SimulationResult result = simulate(options, policy);
    EXPECT_EQ(result.num_steps, 540);
    // Variance per request and step is below (max_depth + 1)^2 / 4.
    const double deviation = 4.5 * std::sqrt(540.0 * 16);
    EXPECT_NEAR(static_cast<double>(result.num_emitted), result.expected_emitted, 4 * deviation);
    EXPECT_LT(result.num_accepted, result.num_verified);
    EXPECT_LE(result.num_verified, result.num_drafted);
  }
}

TEST(ClosedLoop, VirtualTimeAddsUp) {
  const auto options = closed_loop(8, 200, {});
  const SimulationResult result = simulate(options, make_fixed_policy(4));
  ASSERT_EQ(result.steps.size(), 200U);
  double now = 0, counted = 0;
  std::int64_t emitted = 0;
  for (std::size_t i = 0; i < result.steps.size(); ++i) {
    const SimulatedStep& step = result.steps[i];
    EXPECT_NEAR(step.start, now, 1e-9);
    EXPECT_GT(step.seconds, 0);
    EXPECT_GE(step.num_emitted, step.num_decodes);
    EXPECT_EQ(step.num_tokens, step.num_decodes + step.num_verified);
    EXPECT_EQ(step.num_decodes, 8);
    now += step.seconds;
    if (i < 20) continue;
    counted += step.seconds;
    emitted += step.num_emitted;
  }
  EXPECT_NEAR(result.seconds, counted, 1e-9);
  EXPECT_EQ(result.num_emitted, emitted);
  EXPECT_NEAR(result.goodput, result.expected_emitted / counted, 1e-6);
}

TEST(ClosedLoop, StepsTakeWhatTheCostSays) {
  auto options = closed_loop(1, 50, {.rates = {.9}});
  options.time_noise = 0;
  options.context = 1000;
  const SimulationResult off = simulate(options, make_off_policy());
  const CostModel cost(options.target, {.learn = false});
  for (const SimulatedStep& step : off.steps) {
    EXPECT_GT(step.seconds, cost.predict({.num_tokens = 1, .kv_tokens = 700}));
    EXPECT_LT(step.seconds, cost.predict({.num_tokens = 1, .kv_tokens = 4000}));
  }
  options.shifts = {{.step = 25, .slowdown = 2}};
  const SimulationResult slow = simulate(options, make_off_policy());
  EXPECT_EQ(slow.steps[24].seconds, off.steps[24].seconds);
  EXPECT_NEAR(slow.steps[25].seconds, 2 * off.steps[25].seconds, 1e-12);
}

TEST(ClosedLoop, SameSeedSameResult) {
  auto options = closed_loop(32, 150, {.rates = {.9, .4}, .spread = .5});
  const SimulationResult first = simulate(options, goodput());
  const SimulationResult second = simulate(options, goodput());
  EXPECT_EQ(first.goodput, second.goodput);
  EXPECT_EQ(first.num_emitted, second.num_emitted);
  for (std::size_t i = 0; i < first.steps.size(); ++i) {
    ASSERT_EQ(first.steps[i].seconds, second.steps[i].seconds);
    ASSERT_EQ(first.steps[i].num_verified, second.steps[i].num_verified);
  }
  options.seed = 1;
  EXPECT_NE(simulate(options, goodput()).num_emitted, first.num_emitted);
}

TEST(ClosedLoop, RecordedAcceptanceIsReplayed) {
  const auto share_accepted = [](std::vector<std::vector<float>> recorded, std::int32_t length) {
    AcceptanceModel acceptance{.rates = {.5}};
    acceptance.recorded = std::move(recorded);
    const auto result = simulate(closed_loop(4, 400, acceptance), make_fixed_policy(length));
    return static_cast<double>(result.num_accepted) / static_cast<double>(result.num_verified);
  };
  EXPECT_EQ(share_accepted({{1}}, 4), 1);
  EXPECT_EQ(share_accepted({{0}}, 4), 0);
  EXPECT_NEAR(share_accepted({{1}, {0}}, 1), 0.5, 0.02);  // every other slot
  // Right, wrong, right, ...: a step with one draft goes on by two tokens or by one, and then
  // always starts where drafts are right.
  EXPECT_GT(share_accepted({{1, 0}}, 1), 0.95);
}

TEST(ClosedLoop, ShiftsChangeTheWorld) {
  auto options = closed_loop(8, 300, {.rates = {.9}});
  options.shifts = {{.step = 100, .proposer = 0, .acceptance = {.rates = {0}}},
                    {.step = 200, .batch = 64},
                    {.step = 250, .batch = 4}};
  const SimulationResult result = simulate(options, make_fixed_policy(4));
  const auto mean_accepted = [&](std::size_t first, std::size_t last) {
    double sum = 0;
    for (std::size_t i = first; i < last; ++i) {
      sum += result.steps[i].num_emitted - result.steps[i].num_decodes;
    }
    return sum / static_cast<double>(last - first);
  };
  EXPECT_GT(mean_accepted(0, 100), 8.0);
  EXPECT_EQ(mean_accepted(100, 300), 0.0);
  EXPECT_EQ(result.steps[199].num_decodes, 8);
  EXPECT_EQ(result.steps[200].num_decodes, 64);
  EXPECT_EQ(result.steps[249].num_decodes, 64);
  EXPECT_EQ(result.steps[250].num_decodes, 4);
}

TEST(Oracle, NoPolicyIsBetter) {
  struct Case {
    std::int32_t batch;
    AcceptanceModel acceptance;
  };
  const std::vector<Case> cases{{1, {.rates = {.7}}},
                                {16, {.rates = {.92, .45}, .spread = .5, .decay = .05}},
                                {64, {.rates = {.95, .8, .6, .3}, .spread = .8, .decay = .1}},
                                {64, {.rates = {.35}}},
                                {64, {.rates = {0}}},
                                {256, {.rates = {.8}, .spread = .5, .decay = .35}}};
  for (bool paying : {true, false}) {
    for (const Case& each : cases) {
      const std::int64_t steps = each.batch < 16 ? 2000 : each.batch < 256 ? 400 : 150;
      auto options = closed_loop(each.batch, steps, each.acceptance);
      options.proposers[0].pays_per_depth = paying;
      const double oracle = simulate(options, nullptr).goodput;
      std::vector<std::shared_ptr<LengthPolicy>> policies{make_off_policy(), goodput()};
      for (const int k : {1, 2, 3, 4, 5, 6, 8}) policies.push_back(make_fixed_policy(k));
      for (const auto& policy : policies) {
        const double share = simulate(options, policy).goodput / oracle;
        EXPECT_LE(share, 1.005) << policy->name() << " at batch " << each.batch << ", rate "
                                << each.acceptance.rates[0] << ", paying " << paying;
      }
    }
  }
}

TEST(Oracle, TakesTheBetterProposer) {
  auto options = closed_loop(32, 300, {.rates = {.8}});
  options.proposers.push_back({.name = "lookup",
                               .pays_per_depth = false,
                               .acceptance = {.rates = {.9, .2}},
                               .coverage = .5,
                               .max_depth = 8});
  const double both = simulate(options, nullptr).goodput;
  auto paid_only = options;
  paid_only.proposers.pop_back();
  auto free_only = options;
  free_only.proposers.erase(free_only.proposers.begin());
  EXPECT_GT(both, 1.02 * simulate(paid_only, nullptr).goodput);
  EXPECT_GT(both, 1.02 * simulate(free_only, nullptr).goodput);
  for (const auto& policy : {make_fixed_policy(4), goodput()}) {
    EXPECT_LE(simulate(options, policy).goodput, 1.005 * both) << policy->name();
  }
}

TEST(OpenLoop, EveryRequestFinishes) {
  for (const double rate : {2.0, 1000.0}) {
    const auto options = open_loop(80, rate);
    for (const auto& policy :
         {make_off_policy(), make_fixed_policy(5), goodput(), std::shared_ptr<LengthPolicy>()}) {
      const SimulationResult result = simulate(options, policy);
      ASSERT_EQ(result.requests.size(), options.requests.size());
      std::int64_t total = 0;
      for (std::size_t i = 0; i < result.requests.size(); ++i) {
        const SimulatedRequestResult& request = result.requests[i];
        EXPECT_EQ(request.arrival, options.requests[i].arrival);
        EXPECT_EQ(request.num_output_tokens, options.requests[i].num_output_tokens);
        EXPECT_GT(request.first_token, request.arrival);
        EXPECT_GE(request.finish, request.first_token);
        EXPECT_LE(request.finish, result.seconds + 1e-9);
        total += request.num_output_tokens;
      }
      EXPECT_EQ(result.num_emitted, total);
      for (const double gap : result.output_gaps) EXPECT_GT(gap, 0);
      EXPECT_EQ(result.scheduler.num_running, 0);
      EXPECT_EQ(result.scheduler.num_waiting, 0);
    }
  }
}

TEST(OpenLoop, ScarceMemoryPreemptsAndAllFinish) {
  auto options = open_loop(60, 500);
  options.num_kv_blocks = 80;  // 1280 tokens for requests of up to 1019
  for (const auto& policy : {make_off_policy(), make_fixed_policy(5), goodput()}) {
    const SimulationResult result = simulate(options, policy);
    std::int64_t preemptions = 0;
    for (std::size_t i = 0; i < result.requests.size(); ++i) {
      EXPECT_EQ(result.requests[i].num_output_tokens, options.requests[i].num_output_tokens);
      preemptions += result.requests[i].num_preemptions;
    }
    EXPECT_GT(preemptions, 0) << policy->name();
    EXPECT_EQ(preemptions, result.scheduler.num_preemptions);
  }
}

TEST(OpenLoop, TheOracleIsFastNearSaturation) {
  auto options = open_loop(1, 1);
  options.requests.clear();
  options.proposers[0].acceptance = {.rates = {.8}};
  options.scheduler = {.max_num_seqs = 128, .max_num_batched_tokens = 2048};
  for (int i = 0; i < 1500; ++i) {
    options.requests.push_back({.arrival = i / 55.0,
                                .num_prompt_tokens = 20 + (i * 131) % 500,
                                .num_output_tokens = 20 + (i * 37) % 300});
  }
  const auto latency = [&](const std::shared_ptr<LengthPolicy>& policy) {
    double sum = 0;
    for (const auto& request : simulate(options, policy).requests) {
      sum += request.finish - request.arrival;
    }
    return sum / static_cast<double>(options.requests.size());
  };
  const double oracle = latency(nullptr);
  for (const int k : {1, 2, 3, 4, 6}) {
    EXPECT_LT(oracle, 1.01 * latency(make_fixed_policy(k))) << "length " << k;
  }
}

TEST(OpenLoop, ControlsAreHonoured) {
  auto options = open_loop(20, 100);
  for (auto& request : options.requests) request.control.enabled = false;
  const SimulationResult result = simulate(options, make_fixed_policy(5));
  EXPECT_EQ(result.num_verified, 0);
  EXPECT_EQ(simulate(options, nullptr).num_verified, 0);
}

TEST(Options, HostileOnesNameTheField) {
  struct Case {
    std::function<void(SimulationOptions&)> spoil;
    std::string field;
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto closed = closed_loop(4, 10, {});
  const std::vector<Case> cases{
      {[](auto& o) { o.batch = 0; }, "batch"},
      {[](auto& o) { o.batch = -1; }, "batch"},
      {[](auto& o) { o.batch = 100000; }, "batch"},
      {[](auto& o) { o.requests = {{}}; }, "batch"},
      {[](auto& o) { o.context = 0; }, "context"},
      {[](auto& o) { o.output_tokens = 0; }, "output_tokens"},
      {[](auto& o) { o.max_steps = 0; }, "max_steps"},
      {[](auto& o) { o.warmup_steps = -1; }, "warmup_steps"},
      {[](auto& o) { o.block_size = 0; }, "block_size"},
      {[](auto& o) { o.num_kv_blocks = -1; }, "num_kv_blocks"},
      {[](auto& o) { o.num_kv_blocks = 3; }, "context"},
      {[nan](auto& o) { o.overhead = nan; }, "overhead"},
      {[](auto& o) { o.time_noise = -1; }, "time_noise"},
      {[](auto& o) { o.outlier_rate = 2; }, "outlier_rate"},
      {[](auto& o) { o.target.seconds = {-1}; }, "target"},
      {[](auto& o) { o.proposers[0].pass.tokens = {}; }, "proposers[0].pass"},
      {[](auto& o) { o.proposers[0].acceptance.rates = {}; }, "proposers[0].acceptance.rates"},
      {[](auto& o) { o.proposers[0].acceptance.rates = {1}; }, "proposers[0].acceptance.rates"},
      {[nan](auto& o) { o.proposers[0].acceptance.rates = {nan}; }, "rates"},
      {[](auto& o) { o.proposers[0].acceptance.recorded = {{}}; }, "acceptance.recorded"},
      {[](auto& o) { o.proposers[0].acceptance.recorded = {{.5F, 2}}; }, "acceptance.recorded"},
      {[](auto& o) { o.proposers[0].acceptance.spread = -1; }, "spread"},
      {[](auto& o) { o.proposers[0].acceptance.persistence = 2; }, "persistence"},
      {[nan](auto& o) { o.proposers[0].acceptance.decay = nan; }, "decay"},
      {[](auto& o) { o.proposers[0].coverage = -1; }, "coverage"},
      {[](auto& o) { o.proposers[0].max_depth = 0; }, "max_depth"},
      {[](auto& o) { o.proposers.resize(17); }, "proposers"},
      {[](auto& o) { o.shifts = {{.step = -1}}; }, "shifts[0].step"},
      {[](auto& o) { o.shifts = {{.step = 5}, {.step = 4}}; }, "shifts[1].step"},
      {[](auto& o) { o.shifts = {{.proposer = 1}}; }, "shifts[0].proposer"},
      {[](auto& o) { o.shifts = {{.batch = 0}}; }, "shifts[0].batch"},
      {[](auto& o) { o.shifts = {{.slowdown = 0}}; }, "shifts[0].slowdown"},
  };
  for (const Case& each : cases) {
    SimulationOptions options = closed;
    each.spoil(options);
    try {
      simulate(options, make_off_policy());
      ADD_FAILURE() << "accepted a bad " << each.field;
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(each.field), std::string::npos) << error.what();
    }
  }
}

TEST(Options, HostileRequestsNameTheField) {
  const auto refused = [](const auto& spoil) {
    SimulationOptions options = open_loop(3, 10);
    spoil(options.requests[1]);
    try {
      simulate(options, make_off_policy());
      return std::string();
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
  };
  EXPECT_NE(refused([](auto& r) { r.arrival = -1; }).find("requests[1].arrival"),
            std::string::npos);
  EXPECT_NE(refused([](auto& r) { r.arrival = std::nan(""); }).find("requests[1].arrival"),
            std::string::npos);
  EXPECT_NE(refused([](auto& r) { r.num_prompt_tokens = 0; }).find("num_prompt_tokens"),
            std::string::npos);
  EXPECT_NE(refused([](auto& r) { r.num_output_tokens = 0; }).find("num_output_tokens"),
            std::string::npos);
  EXPECT_NE(refused([](auto& r) { r.control.proposer = 3; }).find("requests[1].control"),
            std::string::npos);
  SimulationOptions small = open_loop(3, 10);
  small.num_kv_blocks = 1;
  EXPECT_THROW(simulate(small, make_off_policy()), std::invalid_argument);
}

}  // namespace
}  // namespace smartspec
