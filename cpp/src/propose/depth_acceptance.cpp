// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "propose/depth_acceptance.hpp"

#include <algorithm>

namespace smartspec {
namespace {

constexpr double kFirstRate = 0.9;     // before any observation: high, so that it gets tried
constexpr double kRateWeight = 4;      // observations the guess for a depth counts for
constexpr double kRequestWeight = 12;  // observations by which a request is taken for average
constexpr double kMemory = 4096;       // counts of a depth are halved there: old ones fade
constexpr double kRequestMemory = 128;

bool has_child(const TokenTree& tree, std::int32_t node) {
  return std::find(tree.parents.begin(), tree.parents.end(), node) != tree.parents.end();
}

}  // namespace

std::array<double, DepthAcceptance::kDepths> DepthAcceptance::rates() const {
  std::array<double, kDepths> rates{};
  double guess = kFirstRate;  // a depth nobody reached does as the one before
  for (std::size_t depth = 0; depth < rates.size(); ++depth) {
    const Rate& seen = by_depth_[depth];
    guess = (seen.accepted + kRateWeight * guess) / (seen.trials + kRateWeight);
    rates[depth] = guess;
  }
  return rates;
}

double DepthAcceptance::odds_ratio(const RequestAcceptance& request) const {
  if (request.trials <= 0) return 1;
  const double mean = std::clamp(request.expected / request.trials, 0.01, 0.99);
  const double yes = kRequestWeight * mean;
  const double no = kRequestWeight - yes;
  const double own = (request.accepted + yes) / (request.trials - request.accepted + no);
  const double average = (request.expected + yes) / (request.trials - request.expected + no);
  return own / average;
}

double DepthAcceptance::expect(std::int32_t depth, const RequestAcceptance& request) const {
  const std::array<double, kDepths> average = rates();
  const double ratio = odds_ratio(request);
  double sum = 0;
  double survival = 1;
  for (std::int32_t i = 0; i < depth; ++i) {
    const double rate = average[static_cast<std::size_t>(std::min(i, kDepths - 1))];
    survival *= rate * ratio / (rate * ratio + 1 - rate);
    sum += survival;
  }
  return sum;
}

void DepthAcceptance::learn(const Proposer::Outcome& outcome, RequestAcceptance& request) {
  if (outcome.tree == nullptr || outcome.tree->empty()) return;
  const std::array<double, kDepths> average = rates();
  const auto length = outcome.accepted_path.size();
  const auto count = [&](std::size_t depth, double accepted) {
    const std::size_t at = std::min(depth, by_depth_.size() - 1);
    Rate& rate = by_depth_[at];
    rate.trials += 1;
    rate.accepted += accepted;
    if (rate.trials > kMemory) rate = {.trials = rate.trials / 2, .accepted = rate.accepted / 2};
    request.trials += 1;
    request.accepted += accepted;
    request.expected += average[at];
  };
  for (std::size_t depth = 0; depth < length; ++depth) count(depth, 1);
  // One more draw was made behind the path unless the request stopped on it; it was a trial only
  // where something was drafted.
  const std::int32_t last = length == 0 ? -1 : outcome.accepted_path.back();
  if (outcome.emitted.size() > length && has_child(*outcome.tree, last)) count(length, 0);
  if (request.trials > kRequestMemory) {
    request = {.trials = request.trials / 2,
               .accepted = request.accepted / 2,
               .expected = request.expected / 2};
  }
}

}  // namespace smartspec
