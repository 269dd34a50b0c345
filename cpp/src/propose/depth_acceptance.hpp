// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// How many of its drafted tokens a proposer gets accepted, learnt per depth and per request.
#pragma once

#include <array>
#include <cstdint>

#include "smartspec/proposer.hpp"

namespace smartspec {

/// What one request showed; compared with what all requests together would have.
struct RequestAcceptance {
  double trials = 0;
  double accepted = 0;
  double expected = 0;  // of `accepted`, by the rates of all requests at that time
};

/// Rates of acceptance given that the path before was accepted. A rejection ends a path: depths
/// behind it were not tried, and count neither way. Not thread-safe.
class DepthAcceptance {
 public:
  /// `depths` of the tree reach at most that deep; outcomes without a tree change nothing.
  void learn(const Proposer::Outcome& outcome, RequestAcceptance& request);

  /// Accepted tokens to expect of a draft of `depth` tokens: optimistic before any observation, and
  /// a new request is taken for an average one.
  [[nodiscard]] double expect(std::int32_t depth, const RequestAcceptance& request) const;

 private:
  static constexpr std::int32_t kDepths = 16;  // deeper ones share the last rate
  struct Rate {
    double trials = 0;
    double accepted = 0;
  };

  [[nodiscard]] std::array<double, kDepths> rates() const;
  [[nodiscard]] double odds_ratio(const RequestAcceptance& request) const;

  std::array<Rate, kDepths> by_depth_{};
};

}  // namespace smartspec
