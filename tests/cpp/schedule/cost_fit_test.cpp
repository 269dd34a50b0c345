// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// fit_cost() against machines whose coefficients are known.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

#include "smartspec/cost_model.hpp"

namespace smartspec {
namespace {

using Random = std::mt19937_64;

int uniform(Random& random, int low, int high) {
  return low + static_cast<int>(random() % static_cast<std::uint64_t>(high - low + 1));
}

CostCoefficients truth() {
  return {.tokens = {1, 16, 17, 32, 33, 64, 65, 128, 512},
          .seconds = {4e-3, 4.2e-3, 5e-3, 5.2e-3, 6e-3, 7e-3, 7.8e-3, 1e-2, 3e-2},
          .per_sequence = 2e-5,
          .per_logit = 3e-5,
          .per_kv_token = 6e-8,
          .per_attention_pair = 2e-8};
}

StepLoad load_of(Random& random) {
  StepLoad load;
  for (int i = uniform(random, 1, 32); i > 0; --i) {
    const int rows = uniform(random, 1, 8);
    const int context = uniform(random, 16, 2000);
    load.num_tokens += rows;
    load.num_logits += uniform(random, 0, 3) == 0 ? 1 : rows;
    load.num_sequences += 1;
    load.kv_tokens += context;
    load.attention_pairs += std::int64_t{rows} * context;
  }
  return load;
}

std::vector<CostSample> measure(const CostModel& machine, Random& random, int count, double noise,
                                int outlier_every) {
  std::vector<CostSample> samples;
  for (int i = 0; i < count; ++i) {
    const StepLoad load = load_of(random);
    double seconds = machine.predict(load);
    seconds *= std::exp(std::normal_distribution<>(0, noise)(random));
    if (outlier_every > 0 && i % outlier_every == 0) seconds *= 10;
    samples.push_back({load, seconds});
  }
  return samples;
}

double worst_error(const CostModel& fitted, const CostModel& machine, double quantile) {
  Random random(77);
  std::vector<double> errors;
  for (int i = 0; i < 500; ++i) {
    const StepLoad load = load_of(random);
    errors.push_back(std::abs(fitted.predict(load) / machine.predict(load) - 1));
  }
  std::sort(errors.begin(), errors.end());
  return errors[static_cast<std::size_t>(quantile * 499)];
}

TEST(FitCost, FindsTheMachineBehindExactSamples) {
  Random random(1);
  const CostModel machine(truth());
  const auto samples = measure(machine, random, 600, 0, 0);
  const CostCoefficients fitted = fit_cost(samples);
  fitted.validate();
  EXPECT_LT(worst_error(CostModel(fitted), machine, 1.0), 0.01);
  EXPECT_NEAR(fitted.per_kv_token, truth().per_kv_token, 0.05 * truth().per_kv_token);
  EXPECT_NEAR(fitted.per_attention_pair, truth().per_attention_pair,
              0.2 * truth().per_attention_pair);
}

TEST(FitCost, LivesWithNoiseAndOutliers) {
  const CostModel machine(truth());
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    Random random(seed);
    const CostModel fitted(fit_cost(measure(machine, random, 300, 0.02, 50)));
    EXPECT_LT(worst_error(fitted, machine, 0.5), 0.015) << seed;
    EXPECT_LT(worst_error(fitted, machine, 0.95), 0.05) << seed;
  }
}

TEST(FitCost, IsNeverNegativeAndAlwaysRises) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    Random random(seed);
    std::vector<CostSample> samples;
    for (int i = uniform(random, 1, 60); i > 0; --i) {  // times without rhyme or reason
      StepLoad load = load_of(random);
      load.num_passes = uniform(random, -1, 4);
      samples.push_back({load, std::exp(std::uniform_real_distribution<>(-20, 10)(random))});
    }
    const CostCoefficients fitted = fit_cost(samples);
    EXPECT_NO_THROW(fitted.validate()) << seed;
    EXPECT_GT(CostModel(fitted).predict({.num_tokens = 1'000'000}), 0);
  }
}

TEST(FitCost, GoesOnBehindTheLastSample) {
  std::vector<CostSample> samples;
  for (const int tokens : {1, 2, 4, 8, 16, 32, 64, 128, 256, 257}) {
    samples.push_back({{.num_tokens = tokens}, 1e-3 + 1e-4 * tokens});
  }
  const CostModel fitted(fit_cost(samples));
  EXPECT_NEAR(fitted.predict({.num_tokens = 2000}), 0.201, 0.02);
  EXPECT_NEAR(fitted.predict({.num_tokens = 100}), 0.011, 0.0005);
  const CostModel single(fit_cost(std::vector<CostSample>{{{.num_tokens = 1}, 2e-3}}));
  EXPECT_NEAR(single.predict({.num_tokens = 1}), 2e-3, 1e-6);
}

TEST(FitCost, RejectsWhatCannotBeFitted) {
  EXPECT_THROW(fit_cost({}), std::invalid_argument);
  for (const double bad : {0.0, -1.0, std::nan(""), HUGE_VAL, 1e300}) {
    const std::vector<CostSample> samples{{{.num_tokens = 1}, bad}};
    EXPECT_THROW(fit_cost(samples), std::invalid_argument) << bad;
  }
}

}  // namespace
}  // namespace smartspec
