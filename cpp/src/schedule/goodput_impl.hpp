// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The parts of GoodputPolicy: what it remembers, the plan before drafting, the choice after it,
// and what it learns from a step.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "schedule/draft_stops.hpp"
#include "smartspec/goodput_policy.hpp"

namespace smartspec {

/// A draft as its proposer made it, kept until the step's tokens are known.
struct KeptDraft {
  RequestId id = 0;
  std::int32_t proposer = 0;
  std::int32_t group = 0;
  std::int32_t asked_depth = 0;
  TokenTree tree;
};

/// Drafts of one step; capacity is kept.
class KeptDrafts {
 public:
  void clear() noexcept { size_ = 0; }
  void add(const LengthRequest& request, std::int32_t proposer, std::int32_t asked_depth,
           const TokenTree& tree);
  [[nodiscard]] std::span<const KeptDraft> all() const noexcept { return {drafts_.data(), size_}; }

 private:
  std::vector<KeptDraft> drafts_;
  std::size_t size_ = 0;
};

/// A candidate tree with calibrated survival: nodes [first_node, first_node + num_nodes) of the
/// step's node arrays.
struct Offer {
  std::int32_t request = 0;
  std::int32_t proposer = -1;
  std::int32_t first_node = 0;
  std::int32_t num_nodes = 0;
};

/// One way to speculate, and what it promises.
struct Assignment {
  std::vector<DraftChoice> choices;  // [requests]
  std::vector<DraftChoice> asked;    // [requests] what they were before the allocation cut them
  std::int32_t draft_depth = 0;      // passes of the paying proposer
  std::int32_t num_nodes = 0;
  double expected_tokens = 0;
  double seconds = 0;

  /// Nobody drafts; capacity is kept.
  void clear(std::size_t num_requests) {
    choices.assign(num_requests, {});
    asked.clear();
    draft_depth = num_nodes = 0;
    expected_tokens = seconds = 0;
  }
  [[nodiscard]] double goodput() const noexcept {
    return seconds > 0 ? expected_tokens / seconds : 0;
  }
};

/// Time that a step takes longer when anything is drafted for it, beyond the draft passes and the
/// nodes: a share of the step, learnt by comparing steps of both kinds. While every step drafts it
/// cannot be told from the speed, and stays as it was.
class SpeculationOverhead {
 public:
  [[nodiscard]] double share() const noexcept { return share_; }
  /// `ratio`: measured over predicted without the overhead.
  void learn(bool drafted, double ratio) noexcept;

 private:
  double share_ = 0;
  double anchor_ = 0;  // how recent steps without drafts are, 1: the last one
};

/// Passes that wait to be learnt together. Learning touches 30 KB: on short steps most of what it
/// costs is a cold cache, which several passes share.
class PendingPasses {
 public:
  /// Learns what waits once it is as many passes as one step's seconds are worth waiting for.
  void add(const StepLoad& load, double seconds, double step_seconds, CostModel& cost);

 private:
  struct Pass {
    StepLoad load;
    double seconds = 0;
  };
  static constexpr std::size_t kMost = 8;
  std::array<Pass, kMost> passes_{};
  std::size_t size_ = 0;
};

/// Price of what an assignment uses, in tokens: what that time would emit elsewhere.
struct Price {
  double node = 0;  // verifying one node
  double ride = 0;  // one row in a draft pass
  double pass = 0;  // a draft pass of no rows
};

struct GoodputPolicy::Impl {
  explicit Impl(const GoodputOptions& given);

  GoodputOptions options;
  CostModel target;
  PendingPasses target_passes;
  std::vector<CostModel> draft;             // [proposers]; only those of paying ones are used
  std::vector<PendingPasses> draft_passes;  // [proposers]
  std::vector<DraftStops> stops;            // [proposers]
  std::optional<SurvivalModel> survival;    // made when the number of proposers is known
  Allocator allocator;

  SpeculationOverhead overhead;

  // Between the hooks of one step.
  KeptDrafts kept;
  struct LastPlan {
    std::int32_t proposer = -1;
    std::int32_t age = 0;  // plans made from it
    double none = 0;       // goodput without drafts then
    double goodput = 0;
    std::int32_t num_nodes = 0;
  };
  LastPlan last_plan;
  std::vector<RequestId> idle_ids;  // requests of which none drafted by the last plan
  std::int32_t idle_steps = 0;      // since then
  bool idle = false;                // this step follows that plan, or nothing was offered
  double last_price = 0;            // of a node at the last step, in tokens
  double probe_seconds = 0;         // what may be spent on probes now
  double last_probe_cost = 0;       // of this step's probe, 0: none
  double refunded = 0;              // share of probes whose cost was given back, of late
  std::uint64_t probe_turn = 0;

  PolicyStats totals;
  double hindsight_seconds = 0;  // what the steps had taken with nothing but accepted nodes
  std::array<float, 256> step_errors{};
  std::size_t num_step_errors = 0;

  // Scratch of one step; capacity is kept.
  std::vector<CostSegment> segments;       // of this step, prompt chunks left out
  double prompt_seconds = 0;               // what they take
  std::vector<float> node_survival;        // of all offers
  std::vector<std::int32_t> node_parents;  // of all offers
  std::vector<Offer> offers;               // by request
  std::vector<std::int32_t> best_offer;    // [requests] index into offers, -1: none
  std::vector<double> offer_value;         // [requests] of the best offer, above its price
  std::vector<float> paid_survival;        // [requests * max_paid_depth]
  std::vector<float> paid_reach;           // [requests * max_paid_depth] that the level is drafted
  std::vector<float> optimism;             // [max_paid_depth] factor on expected survival
  std::vector<std::int32_t> paid_depths;   // [requests] most it may draft by the paying proposer
  std::vector<double> level_values;        // [max_paid_depth + 1]
  std::vector<double> level_idle;          // [max_paid_depth] that nobody drafts there
  std::vector<std::int32_t> offsets, min_nodes, max_nodes, block_room, new_index;
  std::vector<float> survivals, sorted;
  std::vector<std::int32_t> parents;
  std::vector<std::uint8_t> selected;
  Assignment best, tried, plain;
  bool exploring = false;    // this step tries what would pay by the upper end of the estimates
  std::int32_t paying = -1;  // the paying proposer that is being looked at

  // goodput_plan.cpp: before drafting
  void take_candidates(const StepView& step, std::span<const LengthRequest> requests,
                       std::span<const Candidate> candidates);
  void price_steps(const StepView& step, std::span<const LengthRequest> requests);
  void plan(const StepView& step, std::span<const LengthRequest> requests,
            std::span<const Candidate> candidates, std::span<DraftChoice> choices);
  bool may_stay_idle(std::span<const LengthRequest> requests);
  void note_plan(std::span<const LengthRequest> requests);
  void plan_paid(const StepView& step, std::span<const LengthRequest> requests);
  void choose_offers(std::span<const LengthRequest> requests, double node_price);
  void expect_paid(std::span<const LengthRequest> requests);
  void assign(std::span<const LengthRequest> requests, const Price& price, double step_seconds);
  void evaluate(const StepView& step, std::span<const LengthRequest> requests);
  bool shorten(const StepView& step, std::span<const LengthRequest> requests);
  void put_expected(std::span<const LengthRequest> requests);
  [[nodiscard]] double draft_seconds(std::span<const LengthRequest> requests,
                                     std::span<const DraftChoice> choices,
                                     bool whole_backlog = false) const;
  [[nodiscard]] Price price_of(std::span<const LengthRequest> requests, double goodput,
                               double seconds_per_node) const;

  // goodput_stops.cpp: where a draft stops
  [[nodiscard]] bool may_stop(std::span<const LengthRequest> requests) const;
  void expect_reach(std::span<const LengthRequest> requests);
  void set_stop(std::span<const LengthRequest> requests);
  void learn_stop(const StepView& step, std::span<const LengthRequest> requests,
                  std::span<const DraftChoice> choices, std::span<TokenTree* const> trees);

  // goodput_probe.cpp: drafts made to learn
  void be_optimistic();
  bool explore(const StepView& step, std::span<const LengthRequest> requests,
               std::span<DraftChoice> choices);
  [[nodiscard]] std::int32_t choose_probe(const StepView& step) const;
  void probe(std::span<const LengthRequest> requests, std::span<DraftChoice> choices);

  // goodput_policy.cpp: after drafting
  void allocate(const StepView& step, std::span<const LengthRequest> requests,
                std::span<const DraftChoice> choices, std::span<const DraftWork> drafts,
                std::span<TokenTree* const> trees);
  void keep_paid(const StepView& step, std::span<const LengthRequest> requests,
                 std::span<const DraftChoice> choices, std::span<TokenTree* const> trees);
  void put_trees(std::span<const LengthRequest> requests, std::span<const DraftChoice> choices,
                 std::span<TokenTree* const> trees);
  void put_limits(std::span<const LengthRequest> requests);
  std::int32_t meet_targets(std::span<const LengthRequest> requests, std::int32_t token_budget,
                            double fixed_seconds);
  std::int32_t nodes_for(std::size_t request, double tokens);
  void prune(std::span<TokenTree* const> trees);
  [[nodiscard]] AllocationProblem problem(const StepView& step, double fixed_seconds) const;
  [[nodiscard]] double seconds_at(std::int32_t num_tokens) const;

  // goodput_learn.cpp: after the step
  void observe(const StepOutcome& outcome);
  void learn_survival(const StepOutcome& outcome);
  void refund_probe(const StepOutcome& outcome);
  void count(const StepOutcome& outcome, double predicted, double drafting);
};

/// Tokens a request needs at a step of `seconds` to keep its TPOT target; what it is behind is made
/// up over several steps. 0 without a target.
[[nodiscard]] double tokens_needed(const LengthRequest& request, double seconds) noexcept;

}  // namespace smartspec
