// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The cost model against synthetic machines it has to learn: 40 machines (10 under
// AddressSanitizer) from starts that are wrong by 2.5 in every term.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "allocation_counter.hpp"
#include "schedule/cost_machine.hpp"
#include "smartspec/cost_model.hpp"

namespace smartspec {
namespace {

using namespace cost_test;

#ifdef __SANITIZE_ADDRESS__
constexpr int kMachines = 10;
#else
constexpr int kMachines = 40;
#endif

struct Errors {
  double median = 0;
  double p95 = 0;
};

Errors errors_of(const CostModel& model, const Machine& machine) {
  Random random(4711);
  std::vector<double> errors;
  for (int i = 0; i < 400; ++i) {
    const StepLoad load = serving_load(random);
    errors.push_back(std::abs(model.predict(load) / machine.seconds(load) - 1));
  }
  std::sort(errors.begin(), errors.end());
  return {errors[errors.size() / 2], errors[errors.size() * 95 / 100]};
}

/// Noise of 2 %; every hundredth pass takes ten times as long.
double measured(Random& random, const Machine& machine, const StepLoad& load) {
  const double noise = std::normal_distribution<>(0, 0.02)(random);
  return machine.seconds(load) * std::exp(noise) * (random() % 100 == 0 ? 10 : 1);
}

void run(CostModel& model, const Machine& machine, Random& random, int steps) {
  for (int i = 0; i < steps; ++i) {
    const StepLoad load = serving_load(random);
    model.observe(load, measured(random, machine, load));
  }
}

TEST(CostLearning, LearnsMachinesFromWrongRooflinesAndFollowsTheirClock) {
  for (int seed = 0; seed < kMachines; ++seed) {
    Random random(static_cast<std::uint64_t>(seed) + 100);
    Machine machine = Machine::random(random);
    CostModel model(machine.wrong_start(random));
    ASSERT_GT(errors_of(model, machine).p95, 0.2) << "the start is not wrong";
    run(model, machine, random, 500);
    Errors errors = errors_of(model, machine);
    EXPECT_LT(errors.median, 0.025) << "machine " << seed;
    EXPECT_LT(errors.p95, 0.07) << "machine " << seed;

    for (const double slow : {1.5, 1.0, 4.0, 1.0}) {
      machine.slow = slow;
      run(model, machine, random, 60);
      errors = errors_of(model, machine);
      EXPECT_LT(errors.median, 0.05) << "machine " << seed << " slower by " << slow;
      EXPECT_LT(errors.p95, 0.12) << "machine " << seed << " slower by " << slow;
    }
  }
}

TEST(CostLearning, LearnsWithoutAnyStart) {
  std::vector<double> medians;
  for (int seed = 0; seed < kMachines; ++seed) {
    Random random(static_cast<std::uint64_t>(seed) + 200);
    const Machine machine = Machine::random(random);
    CostModel model{CostCoefficients{}};
    run(model, machine, random, 1000);
    const Errors errors = errors_of(model, machine);
    EXPECT_LT(errors.median, 0.05) << "machine " << seed;
    EXPECT_LT(errors.p95, 0.15) << "machine " << seed;
  }
}

TEST(CostLearning, LearnsDraftPassesPaddingAndExperts) {
  Random random(9);
  CostCoefficients truth{.tokens = {1, 32, 33, 256},
                         .seconds = {2e-3, 2.5e-3, 3e-3, 8e-3},
                         .tiers = {1, 2, 4, 8, 16, 24, 32, 64},
                         .per_sequence = 1e-5,
                         .per_kv_token = 4e-8,
                         .per_attention_pair = 2e-8,
                         .num_experts = 32,
                         .experts_per_token = 4,
                         .per_expert = 8e-5};
  CostCoefficients start = truth;
  start.tokens = {1, 256};
  start.seconds = {4e-3, 4e-3};
  start.per_sequence = 0;
  start.per_kv_token = 1e-8;
  start.per_expert = 3e-5;
  const CostModel machine(truth, {.learn = false});
  CostModel model(start);
  const auto load = [&] {
    StepLoad result = serving_load(random);
    result.num_passes = uniform(random, 1, 6);
    return result;
  };
  for (int i = 0; i < 800; ++i) {
    const StepLoad at = load();
    model.observe(at, machine.predict(at) * std::exp(std::normal_distribution<>(0, 0.02)(random)));
  }
  std::vector<double> errors;
  for (int i = 0; i < 400; ++i) {
    const StepLoad at = load();
    errors.push_back(std::abs(model.predict(at) / machine.predict(at) - 1));
  }
  std::sort(errors.begin(), errors.end());
  EXPECT_LT(errors[200], 0.02);
  EXPECT_LT(errors[380], 0.06);
}

TEST(CostLearning, SpeedIsWhatHappenedOfLateAndGoesIntoTheCoefficients) {
  Random random(3);
  Machine machine;
  CostModel model(machine.wrong_start(random), {.memory_passes = 300});
  run(model, machine, random, 2000);
  EXPECT_NEAR(model.speed(), 1, 0.03);
  machine.slow = 1.5;
  run(model, machine, random, 40);
  EXPECT_NEAR(model.speed(), 1.5, 0.15);
  const CostModel again(model.coefficients());
  for (int i = 0; i < 100; ++i) {
    const StepLoad load = serving_load(random);
    EXPECT_NEAR(again.predict(load) * model.speed(), model.predict(load),
                1e-9 * model.predict(load));
  }
  run(model, machine, random, 2000);
  EXPECT_NEAR(model.speed(), 1, 0.03);
}

/// Kernels of this library's CPU backend take twelve rows at a time.
TEST(CostLearning, SeesWhereATileOfTwelveIsFull) {
  Random random(12);
  Machine machine;
  machine.pass = 0.5e-3;
  machine.tile = 0.5e-3;
  machine.width = 12;
  CostModel model(machine.wrong_start(random));
  for (int i = 0; i < 1500; ++i) {
    StepLoad load;
    add_request(load, uniform(random, 1, 30), 1, 200);
    const double noise = std::normal_distribution<>(0, 0.02)(random);
    model.observe(load, machine.seconds(load) * std::exp(noise));
  }
  for (const int rows : {12, 13, 24, 25}) {
    StepLoad load;
    add_request(load, rows, 1, 200);
    EXPECT_NEAR(model.predict(load) / machine.seconds(load), 1, 0.08) << rows << " rows";
  }
}

TEST(CostLearning, SingleOutliersMoveNothing) {
  Random random(4);
  const Machine machine;
  CostModel model(machine.wrong_start(random));
  run(model, machine, random, 500);
  for (int i = 0; i < 200; ++i) {
    const StepLoad load = serving_load(random);
    const double before = model.predict(load);
    model.observe(load, 10 * before);
    EXPECT_NEAR(model.predict(load), before, 0.01 * before);
    for (int k = 0; k < 19; ++k) {
      const StepLoad other = serving_load(random);
      model.observe(other, machine.seconds(other));
    }
  }
}

StepLoad decode(int tokens) {
  return {.num_tokens = tokens,
          .num_sequences = tokens,
          .num_logits = tokens,
          .kv_tokens = 512 * tokens,
          .attention_pairs = 512 * tokens};
}

TEST(CostLearning, AFirstVisitThatWasSlowIsForgottenThroughTheNeighbours) {
  for (const double spike : {1.6, 2.2, 2.9, 10.0}) {
    for (const int cell : {12, 24, 40, 64, 100}) {
      Random random(5);
      const Machine machine;
      CostModel model(machine.wrong_start(random));
      const auto visit = [&](bool neighbours) {
        for (int tokens = 1; tokens <= 8; ++tokens) {
          model.observe(decode(tokens), measured(random, machine, decode(tokens)));
        }
        if (!neighbours) return;
        for (const int tokens : {cell * 2 / 3, cell * 3 / 2}) {
          model.observe(decode(tokens), measured(random, machine, decode(tokens)));
        }
      };
      for (int i = 0; i < 50; ++i) visit(false);
      model.observe(decode(cell), spike * machine.seconds(decode(cell)));
      for (int i = 0; i < 100; ++i) visit(true);  // 1000 passes, never at the cell itself
      EXPECT_NEAR(model.predict(decode(cell)) / machine.seconds(decode(cell)), 1, 0.2)
          << "cell " << cell << " spike " << spike;
      for (int i = 0; i < 20; ++i) {
        model.observe(decode(cell), measured(random, machine, decode(cell)));
        visit(true);
      }
      EXPECT_NEAR(model.predict(decode(cell)) / machine.seconds(decode(cell)), 1, 0.05)
          << "cell " << cell << " spike " << spike;
    }
  }
}

TEST(CostLearning, ALastingChangeOfOneRegionIsLearnt) {
  for (const double factor : {1.4, 2.0, 6.0}) {
    Random random(6);
    const Machine machine;
    CostModel model(machine.wrong_start(random));
    const auto truth = [&](int tokens, double slow) {
      return machine.seconds(decode(tokens)) * (tokens > 64 ? slow : 1);
    };
    const auto steps = [&](int count, double slow) {
      for (int i = 0; i < count; ++i) {
        const int tokens = uniform(random, 1, 128);
        model.observe(decode(tokens), truth(tokens, slow));
      }
    };
    steps(3000, 1);
    steps(1000, factor);
    for (const int tokens : {1, 8, 20, 40, 90, 128}) {
      EXPECT_NEAR(model.predict(decode(tokens)) / truth(tokens, factor), 1, 0.06)
          << tokens << " tokens, factor " << factor;
    }
  }
}

TEST(CostLearning, OneLoadForeverThenAnother) {
  Random random(7);
  Machine machine;
  CostModel model(machine.wrong_start(random));
  for (int i = 0; i < 200'000; ++i) model.observe(decode(8), measured(random, machine, decode(8)));
  EXPECT_NEAR(model.predict(decode(8)) / machine.seconds(decode(8)), 1, 0.03);
  for (int i = 0; i < 50; ++i) model.observe(decode(30), measured(random, machine, decode(30)));
  EXPECT_NEAR(model.predict(decode(30)) / machine.seconds(decode(30)), 1, 0.03);
  EXPECT_NEAR(model.predict(decode(8)) / machine.seconds(decode(8)), 1, 0.10);
}

TEST(CostLearning, HostileValuesAreIgnoredOrClampedAndSurvived) {
  Random random(8);
  const Machine machine;
  CostModel model(machine.wrong_start(random));
  run(model, machine, random, 500);
  const double before = model.predict(decode(16));
  const auto count = model.num_observed();
  for (const double bad : {std::nan(""), 0.0, -1.0, std::numeric_limits<double>::infinity(),
                           -std::numeric_limits<double>::infinity()}) {
    for (int i = 0; i < 100; ++i) model.observe(decode(16), bad);
  }
  EXPECT_EQ(model.num_observed(), count);
  EXPECT_EQ(model.predict(decode(16)), before);

  const std::vector<StepLoad> loads{{},
                                    decode(1'000'000),
                                    {.num_passes = -7,
                                     .num_tokens = -1,
                                     .num_sequences = INT32_MIN,
                                     .num_logits = -3,
                                     .kv_tokens = INT64_MIN,
                                     .attention_pairs = -1},
                                    {.num_passes = INT32_MAX,
                                     .num_tokens = INT32_MAX,
                                     .num_sequences = INT32_MAX,
                                     .num_logits = INT32_MAX,
                                     .kv_tokens = INT64_MAX,
                                     .attention_pairs = INT64_MAX},
                                    {.num_passes = INT32_MAX, .num_tokens = 1},
                                    serving_load(random)};
  std::vector<CostSegment> segments;
  for (int i = 0; i < 5000; ++i) {
    const StepLoad& load = loads[random() % loads.size()];
    model.observe(load, log_uniform(random, 1e-300, 1e300));
    for (const StepLoad& each : loads) {
      const double seconds = model.predict(each);
      ASSERT_TRUE(std::isfinite(seconds) && seconds > 0) << "after " << i;
    }
    ASSERT_NO_THROW(model.coefficients().validate()) << "after " << i;
    model.segments(load, 1e6, INT32_MAX, segments);
    for (std::size_t k = 1; k < segments.size(); ++k) {
      ASSERT_GE(segments[k].seconds, segments[k - 1].seconds);
    }
  }
  run(model, machine, random, 2000);
  const Errors errors = errors_of(model, machine);
  EXPECT_LT(errors.median, 0.05);
  EXPECT_LT(errors.p95, 0.25);
}

TEST(CostLearning, LoadsAndTimesOfAnySizeLeaveNumbers) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Random random(seed);
    const Machine machine;
    CostModel model(machine.wrong_start(random));
    for (int i = 0; i < 3000; ++i) {
      const auto size = [&] { return static_cast<std::int32_t>(log_uniform(random, 1, 2e9)); };
      const StepLoad load{.num_passes = random() % 2 == 0 ? 1 : size(),
                          .num_tokens = size(),
                          .num_sequences = size(),
                          .num_logits = size(),
                          .kv_tokens = size() * std::int64_t{size()},
                          .attention_pairs = size() * std::int64_t{size()}};
      model.observe(load, log_uniform(random, 1e-300, 1e300));
      ASSERT_TRUE(std::isfinite(model.predict(serving_load(random)))) << seed << ", " << i;
    }
    ASSERT_NO_THROW(model.coefficients().validate()) << seed;
    EXPECT_TRUE(std::isfinite(model.speed())) << seed;
  }
}

/// Other work on the machine slows whatever runs. Who was served then must not look dear
/// afterwards: a policy that turned away from that load would not see it fast again.
TEST(CostLearning, ASlowSecondIsNotTheLoadThatWasServedThen) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Random random(seed);
    Machine machine = Machine::random(random);
    CostModel model(machine.wrong_start(random));
    const StepLoad few = decode(4);
    const StepLoad many = decode(40);
    const auto serve = [&](const StepLoad& load, int passes) {
      for (int i = 0; i < passes; ++i) model.observe(load, measured(random, machine, load));
    };
    for (int i = 0; i < 200; ++i) serve(i % 2 == 0 ? few : many, 1);
    const double ratio = model.predict(many) / model.predict(few);
    EXPECT_NEAR(ratio / machine.seconds(many) * machine.seconds(few), 1, 0.05) << seed;
    machine.slow = 1.25;
    serve(few, 150);
    machine.slow = 1;
    serve(many, 150);
    EXPECT_NEAR(model.predict(many) / model.predict(few) / ratio, 1, 0.1) << seed;
    EXPECT_NEAR(model.predict(many) / machine.seconds(many), 1, 0.05) << seed;
  }
}

/// Passes that follow each other err alike, so the last ones tell of the next.
TEST(CostLearning, FollowsAPaceThatComesAndGoes) {
  Random random(21);
  Machine machine = Machine::random(random);
  CostModel model(machine.wrong_start(random));
  double pace = 0;
  std::vector<double> errors;
  std::vector<double> swings;
  for (int i = 0; i < 4000; ++i) {
    pace = 0.9 * pace + 0.04 * std::normal_distribution<>()(random);
    machine.slow = std::exp(pace);
    const StepLoad load = serving_load(random);
    const double seconds = measured(random, machine, load);
    if (i >= 1000) {
      errors.push_back(std::abs(std::log(model.predict(load) / seconds)));
      swings.push_back(std::abs(std::log(machine.seconds(load) / machine.slow / seconds)));
    }
    model.observe(load, seconds);
  }
  const auto median = [](std::vector<double>& values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  };
  EXPECT_LT(median(errors), 0.75 * median(swings));
}

/// A machine that stalls while loads of new kinds and sizes come: terms are limited between
/// updates, and runs of outliers change everything without one.
TEST(CostLearning, StallsAndNewKindsOfLoadsLeaveCostsThatAscend) {
  std::vector<CostSegment> segments;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    Random random(seed);
    const Machine machine = Machine::random(random);
    CostModel model(machine.wrong_start(random));
    double stall = 1;
    for (int i = 0; i < 400; ++i) {
      StepLoad load = serving_load(random);
      if (random() % 16 == 0) {
        add_request(load, uniform(random, 1, 4096), 1, uniform(random, 1, 65536));
      }
      if (random() % 8 == 0) stall = log_uniform(random, 0.02, 50);
      model.observe(load, machine.seconds(load) * stall * log_uniform(random, 0.8, 1.25));
      ASSERT_NO_THROW(model.coefficients().validate()) << seed << ", " << i;
      model.segments(decode(8), 100, 4096, segments);
      for (std::size_t k = 0; k < segments.size(); ++k) {
        ASSERT_GE(segments[k].seconds_per_token, 0) << seed << ", " << i;
        ASSERT_GE(segments[k].seconds, k == 0 ? 0 : segments[k - 1].seconds) << seed << ", " << i;
      }
    }
  }
}

TEST(CostLearning, IsDeterministicAndCanBeSwitchedOff) {
  const Machine machine;
  const auto learnt = [&](bool learn) {
    Random random(10);
    CostModel model(machine.wrong_start(random), {.learn = learn});
    run(model, machine, random, 300);
    std::vector<double> predictions{model.speed()};
    for (int i = 0; i < 50; ++i) predictions.push_back(model.predict(serving_load(random)));
    return predictions;
  };
  EXPECT_EQ(learnt(true), learnt(true));
  EXPECT_NE(learnt(true), learnt(false));
  Random random(10);
  CostModel model(machine.wrong_start(random), {.learn = false});
  const double before = model.predict(decode(9));
  run(model, machine, random, 50);
  EXPECT_EQ(model.predict(decode(9)), before);
  EXPECT_EQ(model.num_observed(), 50);
}

TEST(CostModel, AllocatesNothingOnceWarm) {
  Random random(11);
  const Machine machine;
  CostModel model(machine.wrong_start(random));
  std::vector<CostSegment> segments;
  model.segments({}, 100, 1 << 20, segments);
  std::vector<StepLoad> loads;
  for (int i = 0; i < 500; ++i) loads.push_back(serving_load(random));
  double sum = 0;
  const auto before = testing::allocations.load();
  for (const StepLoad& load : loads) {
    model.observe(load, measured(random, machine, load));
    model.observe(load, 1e3 * sum);
    model.segments(load, 100, load.num_tokens + 1000, segments);
    sum += model.predict(load);
  }
  EXPECT_EQ(testing::allocations.load(), before);
}

}  // namespace
}  // namespace smartspec
