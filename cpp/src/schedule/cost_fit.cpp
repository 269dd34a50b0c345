// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// All at once what the learner does pass by pass: the staircase is a sum of ramps between its
// knots, so it rises exactly if every ramp's height is not negative, as the linear terms must be.
#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "schedule/cost_table.hpp"
#include "smartspec/cost_model.hpp"

namespace smartspec {
namespace {

constexpr int kReweightings = 6;
constexpr int kMaxSweeps = 4000;
constexpr double kRidge = 1e-7;  // decides what the samples leave open
constexpr double kHuber = 1.5;   // median deviations before a sample weighs less
constexpr double kLeastSpread = 0.01;

struct Problem {
  std::vector<std::int32_t> knots;
  std::size_t size = 0;      // constant, ramps, four linear terms
  std::vector<double> rows;  // [samples, size], relative to the sample's seconds
};

void check(std::span<const CostSample> samples) {
  if (samples.empty()) throw std::invalid_argument("samples must not be empty");
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const double seconds = samples[i].seconds;
    if (!(seconds > 0 && seconds <= cost::kMaxSeconds)) {
      throw std::invalid_argument("samples[" + std::to_string(i) + "].seconds must be in (0, " +
                                  std::to_string(cost::kMaxSeconds) + "], got " +
                                  std::to_string(seconds));
    }
  }
}

double tokens_of(const cost::CleanLoad& load) {
  return static_cast<double>(load.tokens) / static_cast<double>(load.passes);
}

/// Grid knots that have a sample between them and the knot before, so that each ramp is measured.
std::vector<std::int32_t> choose_knots(std::span<const CostSample> samples) {
  std::vector<double> counts;
  for (const CostSample& sample : samples) {
    counts.push_back(std::max(tokens_of(cost::CleanLoad(sample.load)), 1.0));
  }
  std::sort(counts.begin(), counts.end());
  std::vector<std::int32_t> knots{1};
  for (const std::int32_t knot : cost::kGrid) {
    const auto above = std::upper_bound(counts.begin(), counts.end(), knots.back());
    if (knot > 1 && above != counts.end() && *above <= knot) knots.push_back(knot);
  }
  if (counts.back() > knots.back()) {
    knots.push_back(static_cast<std::int32_t>(std::min(std::ceil(counts.back()), 2e9)));
  }
  return knots;
}

Problem build(std::span<const CostSample> samples) {
  Problem problem;
  problem.knots = choose_knots(samples);
  problem.size = problem.knots.size() + 4;
  for (const CostSample& sample : samples) {
    const cost::CleanLoad load(sample.load);
    const double passes = static_cast<double>(load.passes) / sample.seconds;
    const double tokens = tokens_of(load);
    problem.rows.push_back(passes);
    for (std::size_t i = 1; i < problem.knots.size(); ++i) {
      const double low = problem.knots[i - 1];
      const double ramp = (tokens - low) / (problem.knots[i] - low);
      problem.rows.push_back(passes * std::clamp(ramp, 0.0, 1.0));
    }
    for (const double count : load.counts) problem.rows.push_back(count / sample.seconds);
  }
  return problem;
}

/// minimise sum_i weight_i (row_i x - 1)^2 over x >= 0: normal equations with unit diagonal, one
/// coordinate at a time until nothing moves.
void solve(const Problem& problem, const std::vector<double>& weights, std::vector<double>& x) {
  const std::size_t n = problem.size;
  std::vector<double> normal(n * n, 0.0);
  std::vector<double> right(n, 0.0);
  for (std::size_t s = 0; s < weights.size(); ++s) {
    const double* const row = &problem.rows[s * n];
    for (std::size_t i = 0; i < n; ++i) {
      if (row[i] == 0) continue;
      right[i] += weights[s] * row[i];
      for (std::size_t j = 0; j < n; ++j) normal[i * n + j] += weights[s] * row[i] * row[j];
    }
  }
  std::vector<double> scale(n);
  for (std::size_t i = 0; i < n; ++i) {
    scale[i] = normal[i * n + i] > 0 ? 1 / std::sqrt(normal[i * n + i]) : 0;
  }
  std::vector<double> z(n);
  for (std::size_t i = 0; i < n; ++i) {
    z[i] = scale[i] > 0 ? x[i] / scale[i] : 0;
    right[i] *= scale[i];
    for (std::size_t j = 0; j < n; ++j) normal[i * n + j] *= scale[i] * scale[j];
  }
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    double moved = 0;
    double largest = 0;
    for (std::size_t i = 0; i < n; ++i) {
      if (scale[i] == 0) continue;
      double gradient = right[i] - kRidge * z[i];
      for (std::size_t j = 0; j < n; ++j) gradient -= normal[i * n + j] * z[j];
      const double next = std::max(z[i] + gradient / (1 + kRidge), 0.0);
      moved = std::max(moved, std::abs(next - z[i]));
      largest = std::max(largest, next);
      z[i] = next;
    }
    if (moved <= 1e-9 * largest) break;
  }
  for (std::size_t i = 0; i < n; ++i) x[i] = z[i] * scale[i];
}

void reweigh(const Problem& problem, const std::vector<double>& x, std::vector<double>& weights) {
  std::vector<double> errors(weights.size());
  for (std::size_t s = 0; s < weights.size(); ++s) {
    double sum = -1;
    for (std::size_t i = 0; i < problem.size; ++i) sum += problem.rows[s * problem.size + i] * x[i];
    errors[s] = std::abs(sum);
  }
  std::vector<double> sorted = errors;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  const double limit = kHuber * std::max(*middle, kLeastSpread);
  for (std::size_t s = 0; s < weights.size(); ++s) weights[s] = std::min(1.0, limit / errors[s]);
}

/// Behind the last sample the staircase goes on as steeply as over its upper two thirds: the slope
/// of the last knots alone may be that of one tile's edge.
void extend(CostCoefficients& result) {
  const std::int32_t last = result.tokens.back();
  const double seconds = result.seconds.back();
  std::size_t low = 0;
  while (low + 1 < result.tokens.size() && result.tokens[low + 1] <= last / 3) ++low;
  if (result.tokens[low] == last || last > (1 << 29)) return;
  const double slope = (seconds - result.seconds[low]) / (last - result.tokens[low]);
  result.tokens.push_back(2 * last);
  result.seconds.push_back(std::min(seconds + slope * last, cost::kMaxSeconds));
}

}  // namespace

CostCoefficients fit_cost(std::span<const CostSample> samples) {
  check(samples);
  const Problem problem = build(samples);
  std::vector<double> weights(samples.size(), 1.0);
  std::vector<double> x(problem.size, 0.0);
  for (int round = 0; round < kReweightings; ++round) {
    solve(problem, weights, x);
    reweigh(problem, x, weights);
  }
  CostCoefficients result;
  result.tokens = problem.knots;
  result.seconds.clear();
  double seconds = 0;
  for (std::size_t i = 0; i < problem.knots.size(); ++i) {
    seconds = std::min(seconds + x[i], cost::kMaxSeconds);
    result.seconds.push_back(std::max(seconds, cost::kMinSeconds));
  }
  extend(result);
  const auto term = [&](cost::Term t) {
    return std::min(x[problem.knots.size() + t], cost::kMaxSeconds);
  };
  result.per_sequence = term(cost::kSequence);
  result.per_logit = term(cost::kLogit);
  result.per_kv_token = term(cost::kKvToken);
  result.per_attention_pair = term(cost::kPair);
  return result;
}

}  // namespace smartspec
