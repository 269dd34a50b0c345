// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// How near SurvivalModel comes to the truth, and how fast after a change. Seeds are fixed.
#include <gtest/gtest.h>

#include <array>
#include <utility>

#include "schedule/survival_world.hpp"

namespace smartspec::survival_test {
namespace {

class CalibrationError : public ::testing::TestWithParam<Workload> {};

TEST_P(CalibrationError, IsSmallAtEveryDepthAfter300Steps) {
  Calibration nodes;
  Calibration chains;
  const int seeds = kShrink == 1 ? 12 : 4;
  for (int seed = 0; seed < seeds; ++seed) {
    SurvivalModel model;
    World world(GetParam(), 32, static_cast<std::uint64_t>(seed));
    std::vector<float> survival;
    for (int t = 0; t < 600; ++t) {
      world.step(model, 3, [&](const World::Request& request, const World::Draft& draft) {
        if (t < 300) return;
        survival.assign(draft.truth.size(), 0);
        model.calibrate(0, request.id, request.group, draft.tree, survival);
        for (std::size_t i = 0; i < survival.size(); ++i) {
          nodes.add(static_cast<std::size_t>(draft.tree.depths[i]), survival[i], draft.truth[i]);
        }
        survival.assign(World::kDepth, 0);
        model.expect(0, request.id, request.group, survival);
        for (std::size_t d = 0; d < survival.size(); ++d) {
          chains.add(d, survival[d], draft.chain[d]);
        }
      });
    }
  }
  for (std::size_t d = 0; d < World::kDepth; ++d) {
    EXPECT_LE(nodes.error(d), 0.03) << "calibrate, depth " << d;
    EXPECT_LE(chains.error(d), 0.03) << "expect, depth " << d;
    RecordProperty("ece_" + std::to_string(d), std::to_string(nodes.error(d)));
  }
}

const std::vector<double> kMix = {0.92, 0.45};
const std::vector<double> kWide = {0.95, 0.8, 0.6, 0.3};

INSTANTIATE_TEST_SUITE_P(
    Workloads, CalibrationError,
    ::testing::Values(
        Workload{.name = "homogeneous", .rates = {0.7}},
        Workload{.name = "decaying_block", .rates = {0.8}, .wander = 0.5, .decay = 0.35},
        Workload{.name = "mix", .rates = kMix, .wander = 0.5, .decay = 0.05},
        Workload{.name = "wide", .rates = kWide, .wander = 0.8, .decay = 0.1},
        Workload{.name = "always_wrong", .rates = {1e-9}},
        Workload{.name = "always_right", .rates = {1 - 1e-9}},
        Workload{.name = "low_claims",
                 .rates = kWide,
                 .wander = 0.5,
                 .claims = true,
                 .claim_bias = -1.5},
        Workload{.name = "high_claims",
                 .rates = kWide,
                 .wander = 0.5,
                 .claims = true,
                 .claim_bias = 1.5},
        Workload{.name = "high_claims_alike", .rates = {0.7}, .claims = true, .claim_bias = 1.5},
        Workload{.name = "random_claims", .rates = {0.7}, .claims = true, .claim_noise = 3},
        Workload{.name = "coverage", .rates = {0.7}, .coverage = 0.4},
        Workload{.name = "trees", .rates = {0.5}, .wander = 0.5, .width = 3},
        Workload{.name = "trees_with_claims",
                 .rates = {0.5, 0.8},
                 .wander = 0.5,
                 .claims = true,
                 .claim_bias = 1,
                 .width = 3},
        Workload{.name = "groups", .rates = {0.7}, .second_group = -1.5},
        Workload{.name = "groups_with_claims",
                 .rates = kMix,
                 .wander = 0.5,
                 .claims = true,
                 .claim_bias = -1,
                 .second_group = -1}),
    [](const auto& tested) { return tested.param.name; });

/// -log of the probability given to what happened; its expectation, of first tokens.
double loss(double predicted, double truth) {
  return -truth * std::log(predicted) - (1 - truth) * std::log(1 - predicted);
}

// Knowing each request's rate exactly, but not what comes and goes, is beaten by following it.
TEST(SurvivalModel, FollowsWhatComesAndGoes) {
  SurvivalModel model;
  World world({.rates = {0.6}, .wander = 1.2}, 32, 8);
  double followed = 0;
  double known = 0;
  double best = 0;
  double mean = 0;  // of the acceptance, over what comes and goes
  for (int i = -400; i <= 400; ++i) {
    const double z = i / 100.0;
    mean +=
        logistic(logit(0.6) + 1.2 * z) * std::exp(-z * z / 2) * 0.01 / std::sqrt(2 * 3.14159265);
  }
  for (int t = 0; t < 3000 / kShrink; ++t) {
    world.step(model, 4, [&](const World::Request& request, const World::Draft& draft) {
      if (t < 1000 / kShrink) return;
      followed += loss(expect(model, request.id, 1)[0], draft.chain[0]);
      known += loss(mean, draft.chain[0]);
      best += loss(draft.chain[0], draft.chain[0]);
    });
  }
  // Of what could be gained by knowing all.
  EXPECT_GT((known - followed) / (known - best), 0.2);
}

/// Root mean square over seeds of what expect() says of the running requests, `steps` after a jump,
/// less the truth.
double error_after_jump(int steps, int num_requests, double from, double to) {
  constexpr int kSeeds = kShrink == 1 ? 20 : 5;
  double sum = 0;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    SurvivalModel model;
    World world({.rates = {from}}, num_requests, seed);
    for (int t = 0; t < 400; ++t) world.step(model, 4);
    world.set_rates({to});
    for (int t = 0; t < steps; ++t) world.step(model, 4);
    double mean = 0;
    for (const World::Request& request : world.requests()) {
      mean += static_cast<double>(expect(model, request.id, 1)[0]) / num_requests;
    }
    sum += (mean - to) * (mean - to) / kSeeds;
  }
  return std::sqrt(sum);
}

TEST(SurvivalModel, NoticesAJump) {
  EXPECT_GT(error_after_jump(0, 64, 0.9, 0.35), 0.5);
  for (const int steps : {10, 20, 80}) {
    EXPECT_LE(error_after_jump(steps, 64, 0.9, 0.35), 0.05) << steps;
    EXPECT_LE(error_after_jump(steps, 64, 0.35, 0.9), 0.05) << steps;
  }
  for (const int steps : {40, 80}) {
    EXPECT_LE(error_after_jump(steps, 8, 0.9, 0.35), 0.05) << steps;
    EXPECT_LE(error_after_jump(steps, 8, 0.35, 0.9), 0.05) << steps;
  }
}

TEST(SurvivalModel, ANewRequestGetsTheNewRateToo) {
  SurvivalModel model;
  World world({.rates = {0.9}}, 64, 1);
  for (int t = 0; t < 400; ++t) world.step(model, 4);
  world.set_rates({0.35});
  for (int t = 0; t < 10; ++t) world.step(model, 4);
  EXPECT_NEAR(expect(model, kNobody, 1)[0], 0.35, 0.05);
}

TEST(SurvivalModel, NoticesNoJumpWhereThereIsNone) {
  const std::array<std::pair<Workload, int>, 5> worlds = {{
      {{.rates = {0.9}}, 4},
      {{.rates = kMix, .wander = 0.5, .decay = 0.05}, 8},
      {{.rates = kWide, .wander = 0.8, .decay = 0.1}, 1},
      {{.rates = {0.01}}, 8},
      {{.rates = kWide, .claims = true, .claim_bias = 1.5, .coverage = 0.5, .width = 2}, 4},
  }};
  for (const auto& [workload, num_requests] : worlds) {
    SurvivalModel model;
    World world(workload, num_requests, 77);
    double most = 0;
    int alarms = 0;
    for (int t = 0; t < 100000 / kShrink; ++t) {
      world.step(model, 3);
      const double evidence = model.evidence(0);
      if (evidence < most / 2) {
        ++alarms;
        most = evidence;
      }
      most = std::max(most, evidence);
    }
    EXPECT_EQ(alarms, 0) << workload.rates[0] << " " << num_requests;
  }
}

}  // namespace
}  // namespace smartspec::survival_test
