// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The cost model against its formula, token by token.
#include "smartspec/cost_model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "schedule/cost_machine.hpp"

namespace smartspec {
namespace {

using namespace cost_test;

// ---- The formula of the header, as naively as it can be written.

double naive_staircase(const CostCoefficients& c, double tokens) {
  if (c.tokens.size() == 1 || tokens <= c.tokens[0]) return c.seconds[0];
  std::size_t i = 0;
  while (i + 2 < c.tokens.size() && tokens > c.tokens[i + 1]) ++i;
  const double slope = (c.seconds[i + 1] - c.seconds[i]) / (c.tokens[i + 1] - c.tokens[i]);
  return c.seconds[i] + slope * (tokens - c.tokens[i]);
}

double naive_predict(const CostCoefficients& c, const StepLoad& load) {
  const double passes = load.num_passes;
  const double tokens = load.num_tokens / passes;
  double padded = tokens;
  for (const std::int32_t tier : c.tiers) {
    if (tier >= tokens) {
      padded = tier;
      break;
    }
  }
  double pass = naive_staircase(c, padded);
  if (c.num_experts > 0) {
    const double miss = 1 - static_cast<double>(c.experts_per_token) / c.num_experts;
    pass += c.per_expert * c.num_experts * (1 - std::pow(miss, std::max(tokens, 1.0)));
  }
  return passes * pass + c.per_sequence * load.num_sequences + c.per_logit * load.num_logits +
         c.per_kv_token * static_cast<double>(load.kv_tokens) +
         c.per_attention_pair * static_cast<double>(load.attention_pairs);
}

CostCoefficients random_coefficients(Random& random, bool tiers, bool experts) {
  CostCoefficients c;
  c.tokens.clear();
  c.seconds.clear();
  std::int32_t token = uniform(random, 1, 3);
  double seconds = log_uniform(random, 1e-5, 1e-2);
  for (int n = uniform(random, 1, 12); n > 0; --n) {
    c.tokens.push_back(token);
    c.seconds.push_back(seconds);
    token += uniform(random, 1, 100);
    if (uniform(random, 0, 3) > 0) seconds *= real(random, 1, 1.5);
  }
  if (tiers) {
    std::int32_t tier = 0;
    for (int n = uniform(random, 1, 8); n > 0; --n) {
      c.tiers.push_back(tier += uniform(random, 1, 40));
    }
  }
  c.per_sequence = real(random, 0, 1e-4);
  c.per_logit = real(random, 0, 1e-4);
  c.per_kv_token = real(random, 0, 1e-7);
  c.per_attention_pair = real(random, 0, 1e-7);
  if (experts) {
    c.num_experts = uniform(random, 1, 128);
    c.experts_per_token = uniform(random, 0, std::min(c.num_experts, 8));
    c.per_expert = real(random, 0, 1e-4);
  }
  return c;
}

StepLoad any_load(Random& random) {
  return {.num_passes = uniform(random, 0, 1) == 0 ? 1 : uniform(random, 1, 5),
          .num_tokens = uniform(random, 1, 600),
          .num_sequences = uniform(random, 0, 64),
          .num_logits = uniform(random, 0, 300),
          .kv_tokens = uniform(random, 0, 100'000),
          .attention_pairs = uniform(random, 0, 1'000'000)};
}

TEST(CostModel, PredictsTheFormula) {
  Random random(1);
  for (int round = 0; round < 2000; ++round) {
    const bool experts = round % 3 == 0;
    const CostCoefficients c = random_coefficients(random, round % 2 == 0, experts);
    const CostModel model(c);
    for (int i = 0; i < 20; ++i) {
      const StepLoad load = any_load(random);
      const double expected = naive_predict(c, load);
      // Expected experts are interpolated between knots.
      ASSERT_NEAR(model.predict(load), expected, expected * (experts ? 0.02 : 1e-12))
          << "round " << round << " tokens " << load.num_tokens << " / " << load.num_passes;
    }
  }
}

TEST(CostModel, PredictsTheFormulaFarBehindTheLastKnot) {
  const CostCoefficients c{.tokens = {1, 8}, .seconds = {1e-3, 8e-3}};
  EXPECT_NEAR(CostModel(c).predict({.num_tokens = 1'000'000}), 1000, 1e-6);
  EXPECT_DOUBLE_EQ(CostModel({}).predict({.num_tokens = 1'000'000}), 1e-3);
}

TEST(CostModel, ExpertsAreExactAtKnots) {
  CostCoefficients c;
  c.num_experts = 64;
  c.experts_per_token = 8;
  c.per_expert = 1e-4;
  for (const int tokens : {1, 2, 3, 4, 8, 32, 64, 128}) {
    const StepLoad load{.num_tokens = tokens};
    EXPECT_NEAR(CostModel(c).predict(load), naive_predict(c, load), 1e-12) << tokens;
  }
}

void expect_segments(const CostModel& model, StepLoad base, int pairs, int max_tokens,
                     std::vector<CostSegment>& segments) {
  model.segments(base, pairs, max_tokens, segments);
  ASSERT_FALSE(segments.empty());
  ASSERT_EQ(segments.front().first_tokens, base.num_tokens);
  ASSERT_LT(segments.size(), 100U);
  std::size_t at = 0;
  double last = 0;
  for (StepLoad load = base; load.num_tokens <= max_tokens;
       ++load.num_tokens, ++load.num_logits, load.attention_pairs += pairs) {
    if (at + 1 < segments.size() && segments[at + 1].first_tokens <= load.num_tokens) {
      ++at;
      ASSERT_LE(segments[at].first_tokens, load.num_tokens) << "two segments at one place";
    }
    const CostSegment& segment = segments[at];
    const double seconds =
        segment.seconds + (load.num_tokens - segment.first_tokens) * segment.seconds_per_token;
    const double expected = model.predict(load);
    ASSERT_NEAR(seconds, expected, 1e-9 * expected)
        << load.num_tokens << " of " << base.num_passes << " passes";
    ASSERT_GE(segment.seconds_per_token, 0);
    if (at > 0) {
      const CostSegment& before = segments[at - 1];
      ASSERT_GE(segment.seconds, before.seconds + (segment.first_tokens - before.first_tokens - 1) *
                                                      before.seconds_per_token);
    }
    ASSERT_GE(seconds, last * (1 - 1e-12));
    last = seconds;
  }
}

TEST(CostModel, SegmentsEqualPredictionsAtEveryTokenCount) {
  Random random(2);
  std::vector<CostSegment> segments;
  for (int round = 0; round < 1000; ++round) {
    CostModel model(random_coefficients(random, round % 2 == 0, round % 3 == 0));
    for (int i = round % 10; i > 0; --i) {  // learnt tables as well
      model.observe(any_load(random), log_uniform(random, 1e-4, 1e-1));
    }
    const StepLoad base = any_load(random);
    expect_segments(model, base, uniform(random, 0, 2000), base.num_tokens + 300, segments);
    if (HasFatalFailure()) FAIL() << "round " << round;
  }
}

TEST(CostModel, SegmentsOfOddRanges) {
  const CostModel model({.tokens = {1, 8}, .seconds = {1e-3, 8e-3}, .tiers = {4, 16}});
  std::vector<CostSegment> segments;
  for (int max_tokens = 0; max_tokens <= 40; ++max_tokens) {
    expect_segments(model, {}, 0, max_tokens, segments);
  }
  expect_segments(model, {.num_passes = 3}, 7, 100, segments);
  model.segments({.num_tokens = 50}, 1, 10, segments);  // nothing may be added
  ASSERT_EQ(segments.size(), 1U);
  EXPECT_DOUBLE_EQ(segments[0].seconds, model.predict({.num_tokens = 50}));
  model.segments({.num_tokens = -5}, std::nan(""), 20, segments);
  EXPECT_EQ(segments[0].first_tokens, 0);
  EXPECT_TRUE(std::isfinite(segments.back().seconds_per_token));
  model.segments({.num_passes = INT32_MAX, .num_tokens = INT32_MAX}, 1e300, INT32_MAX, segments);
  EXPECT_EQ(segments.size(), 1U);
}

// ---- Errors and starts.

void expect_rejected(const std::function<void(CostCoefficients&)>& change,
                     const std::string& field) {
  CostCoefficients c{.tokens = {1, 8}, .seconds = {1e-3, 2e-3}, .tiers = {4, 8}};
  change(c);
  try {
    CostModel{c};
    ADD_FAILURE() << field << " was accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()).find(field), 0U) << error.what();
  }
}

TEST(CostCoefficients, NamesTheFieldThatIsWrong) {
  using C = CostCoefficients;
  const double nan = std::nan("");
  expect_rejected([](C& c) { c.tokens.clear(); }, "tokens");
  expect_rejected([](C& c) { c.tokens = {0, 1}; }, "tokens[0]");
  expect_rejected([](C& c) { c.tokens = {4, 4}; }, "tokens[1]");
  expect_rejected([](C& c) { c.seconds.pop_back(); }, "seconds");
  expect_rejected([](C& c) { c.seconds[0] = 0; }, "seconds[0]");
  expect_rejected([](C& c) { c.seconds[1] = 1e-4; }, "seconds[1]");
  expect_rejected([&](C& c) { c.seconds[1] = nan; }, "seconds[1]");
  expect_rejected([](C& c) { c.seconds[1] = 1e300; }, "seconds[1]");
  expect_rejected([](C& c) { c.tiers = {8, 4}; }, "tiers[1]");
  expect_rejected([](C& c) { c.tiers = {-1}; }, "tiers[0]");
  expect_rejected([&](C& c) { c.per_sequence = nan; }, "per_sequence");
  expect_rejected([](C& c) { c.per_logit = -1; }, "per_logit");
  expect_rejected([](C& c) { c.per_kv_token = INFINITY; }, "per_kv_token");
  expect_rejected([](C& c) { c.per_attention_pair = -1e-9; }, "per_attention_pair");
  expect_rejected([](C& c) { c.per_expert = -1; }, "per_expert");
  expect_rejected([](C& c) { c.num_experts = -1; }, "num_experts");
  expect_rejected([](C& c) { c.experts_per_token = 1; }, "experts_per_token");
  for (const CostModelOptions& bad :
       {CostModelOptions{.memory_passes = 0}, CostModelOptions{.memory_passes = nan},
        CostModelOptions{.outlier_ratio = 1}, CostModelOptions{.outlier_ratio = nan}}) {
    EXPECT_THROW(CostModel({}, bad), std::invalid_argument);
  }
}

TEST(Roofline, IsTheLargerOfMemoryAndArithmetic) {
  const Roofline roofline{.weight_bytes = 4e9,
                          .kv_bytes_per_token = 1e5,
                          .flops_per_token = 2e9,
                          .flops_per_logit = 1e8,
                          .flops_per_pair = 1e4,
                          .bytes_per_second = 40e9,
                          .flops_per_second = 500e9,
                          .overhead_seconds = 1e-4};
  const CostModel model(make_roofline(roofline));
  for (const int tokens : {1, 2, 7, 24, 25, 26, 40, 333, 5000}) {
    EXPECT_NEAR(model.predict({.num_tokens = tokens}), std::max(0.1, tokens * 0.004) + 1e-4, 1e-9);
  }
  EXPECT_NEAR(
      model.predict({.num_tokens = 1, .num_logits = 2, .kv_tokens = 10, .attention_pairs = 3}),
      0.1001 + 2 * 2e-4 + 10 * 2.5e-6 + 3 * 2e-8, 1e-9);
  EXPECT_GT(CostModel(make_roofline({.overhead_seconds = 0})).predict({}), 0);
}

TEST(Roofline, RejectsWhatIsNegativeNotFiniteOrDividesByZero) {
  EXPECT_THROW(make_roofline({.weight_bytes = -1}), std::invalid_argument);
  EXPECT_THROW(make_roofline({.kv_bytes_per_token = NAN}), std::invalid_argument);
  EXPECT_THROW(make_roofline({.flops_per_token = INFINITY}), std::invalid_argument);
  EXPECT_THROW(make_roofline({.flops_per_logit = 1e300}), std::invalid_argument);
  EXPECT_THROW(make_roofline({.bytes_per_second = 0}), std::invalid_argument);
  EXPECT_THROW(make_roofline({.flops_per_second = 0}), std::invalid_argument);
  EXPECT_THROW(make_roofline({.overhead_seconds = -1}), std::invalid_argument);
}

}  // namespace
}  // namespace smartspec
