// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What is true in a simulation: the tokens, which drafts are right, and what passes cost.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "simulate/sim_requests.hpp"
#include "smartspec/cost_model.hpp"
#include "smartspec/simulator.hpp"

namespace smartspec::sim {

/// Acceptance is a function of (proposer, request, output position, depth), and so is the luck.
class World {
 public:
  World(const SimulationOptions& options, const Luck& luck);
  void apply(const SimulatedShift& shift, std::vector<SimRequest>& requests);

  /// The token at an output position; < 2^30.
  [[nodiscard]] TokenId truth(RequestId id, std::int32_t position) const noexcept;
  /// True P(the first d + 1 tokens of a draft by `proposer` from this output position on are
  /// accepted).
  void survival(SimRequest& request, std::int32_t proposer, std::int32_t start,
                std::span<double> survival) const;
  /// Logit of acceptance at the first depth, drawn as far as `position`.
  [[nodiscard]] double logit(SimRequest& request, std::int32_t proposer,
                             std::int32_t position) const;
  /// Whether the proposer has anything to propose now.
  [[nodiscard]] bool covers(const SimRequest& request, std::int32_t proposer) const noexcept;
  /// A chain of at most `depth` tokens, which ends behind the first one that claims less than
  /// `min_survival`. Empty without coverage.
  void draft(SimRequest& request, std::int32_t proposer, std::int32_t depth, float min_survival,
             const ClaimReading& claims, TokenTree& tree) const;

  [[nodiscard]] const SimulatedProposer& proposer(std::int32_t index) const {
    return proposers_[static_cast<std::size_t>(index)].options;
  }
  [[nodiscard]] std::int32_t num_proposers() const noexcept {
    return static_cast<std::int32_t>(proposers_.size());
  }
  /// Log of the noise of a measured time; `proposer` -1: of the step.
  [[nodiscard]] double time_noise(std::int64_t step, std::int32_t proposer) const noexcept;

  [[nodiscard]] const CostModel& target_cost() const noexcept { return target_; }
  [[nodiscard]] const CostModel& pass_cost(std::int32_t proposer) const {
    return proposers_[static_cast<std::size_t>(proposer)].pass;
  }
  [[nodiscard]] double slowdown() const noexcept { return slowdown_; }

 private:
  struct Proposer {
    SimulatedProposer options;
    std::vector<double> logits;  // [rates]
    CostModel pass;
  };

  void extend_wander(Track& track, RequestId id, std::int32_t proposer, double persistence,
                     std::size_t size) const;
  [[nodiscard]] static std::vector<double> logits_of(const AcceptanceModel& model);

  const SimulationOptions& options_;
  const Luck& luck_;
  std::vector<Proposer> proposers_;
  CostModel target_;
  double slowdown_ = 1;
};

/// Rides of requests in the passes of one proposer: level l drafts the l-th token of everyone who
/// wants that many, and the first one also computes what the proposer's cache lacks.
class DraftPasses {
 public:
  void clear() noexcept { passes_.clear(); }
  /// `num_tokens` of the request, of which the cache lacks `missing` >= 1; `levels` >= 1.
  void add(std::int32_t num_tokens, std::int32_t missing, std::int32_t levels);
  [[nodiscard]] std::int32_t size() const noexcept {
    return static_cast<std::int32_t>(passes_.size());
  }
  [[nodiscard]] StepLoad total() const noexcept;
  [[nodiscard]] double seconds(const CostModel& pass) const;

 private:
  std::vector<StepLoad> passes_;
};

/// Tokens that are computed when the request next drafts with this proposer, the newest included.
[[nodiscard]] inline std::int32_t missing_tokens(const SimRequest& request,
                                                 std::int32_t proposer) noexcept {
  return request.num_tokens() - request.tracks[static_cast<std::size_t>(proposer)].cached;
}

}  // namespace smartspec::sim
