// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The decision how much to speculate, behind an interface: which proposer and how deep before
// drafting, which nodes are worth verifying now after it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "smartspec/cost_model.hpp"
#include "smartspec/export.hpp"
#include "smartspec/token_tree.hpp"
#include "smartspec/types.hpp"

namespace smartspec {

/// Why a request drafts nothing at this step; kNone when it drafts.
enum class NoSpeculationReason : std::uint8_t {
  kNone,           // it speculates
  kOff,            // no proposer, or the policy is off
  kRequest,        // the request asked for none
  kPolicy,         // the policy chose length 0
  kPrefill,        // the prompt is not computed yet
  kNothingFound,   // the proposer had nothing to propose
  kLastToken,      // at most one more token may be emitted
  kTokenBudget,    // max_num_batched_tokens is used up
  kKvExhausted,    // no KV blocks left for draft tokens
  kProposerError,  // the proposer threw or returned an invalid tree
};
SMARTSPEC_API std::string_view name_of(NoSpeculationReason reason) noexcept;

/// What a user asks for one request.
struct SpeculationControl {
  bool enabled = true;
  std::int32_t min_tokens = 0;              // draft nodes at least, where that many are drafted
  std::int32_t max_tokens = kMaxTreeNodes;  // draft nodes at most
  std::int32_t proposer = -1;               // only this one of the engine's; -1: any
  double tpot_target = 0;                   // seconds per output token; 0: none

  /// Throws std::invalid_argument naming the field.
  void validate(std::int32_t num_proposers) const;
};

struct ProposerView {
  std::string_view name;
  bool pays_per_depth = false;  // every level costs a pass (a draft model); else next to free
};

/// What a policy sees of one decoding request that may draft.
struct LengthRequest {
  RequestId id = 0;
  std::int32_t num_tokens = 0;    // verified tokens
  std::int32_t max_depth = 0;     // >= 1: tokens it may still emit, minus one, and its own maximum
  std::int64_t num_drafted = 0;   // so far
  std::int64_t num_accepted = 0;  // so far
  std::int32_t group = 0;         // 0: greedy, 1: sampled
  std::int32_t num_output_tokens = 0;
  double decode_seconds = 0;    // since its first token
  std::int32_t block_room = 0;  // draft rows that fit into its last KV block
  std::int32_t backlog = 0;     // tokens a paying proposer's own cache lacks
  /// Tokens it may still emit: what catching up may serve. 0: not known, max_depth + 1 is taken.
  std::int32_t num_remaining = 0;
  SpeculationControl control{};
};

/// A draft by a proposer that does not pay per depth; made before the plan.
struct Candidate {
  std::int32_t request = 0;         // index into the requests
  std::int32_t proposer = 0;        // index into the proposers
  const TokenTree* tree = nullptr;  // empty: it has nothing; `survival` is the proposer's claim
};

struct StepView {
  double now = 0;                 // seconds; one that goes backwards is taken for no progress
  StepLoad base{};                // the step without drafts, prompt chunks included
  std::int32_t num_decodes = 0;   // requests that emit a token at this step whatever is drafted
  std::int32_t token_budget = 0;  // draft nodes that fit
  std::int32_t block_size = 0;    // 0: KV is not limited
  std::int32_t free_blocks = 0;
  std::span<const ProposerView> proposers{};
};

struct DraftChoice {
  std::int32_t proposer = -1;  // -1: none
  std::int32_t depth = 0;      // 0: none; of a candidate: levels of its tree that are kept
  float min_survival = 0;      // a paying proposer may stop a path below this
  ClaimReading claims{};       // its claims read like this
};

/// What drafting by one proposer cost at a step.
struct DraftWork {
  std::int32_t proposer = 0;
  StepLoad load{};     // of all its passes together
  double seconds = 0;  // measured
};

struct RequestOutcome {
  RequestId id = 0;
  std::int32_t num_verified = 0;  // draft nodes
  std::int32_t num_accepted = 0;
  std::span<const TokenId> emitted{};
};

/// What a step did. `seconds`: everything but paid drafting.
struct StepOutcome {
  double now = 0;
  StepLoad load{};
  double seconds = 0;
  std::span<const DraftWork> drafts{};
  std::span<const RequestOutcome> requests{};  // all that emitted tokens
};

/// What a policy did so far; totals.
struct PolicyStats {
  std::int64_t num_steps = 0;
  std::array<std::int64_t, 17> length_histogram{};  // decoding requests by nodes verified; 16: more
  std::int64_t num_drafted = 0;                     // nodes verified
  std::int64_t num_accepted = 0;
  std::int64_t num_probes = 0;   // drafts made to learn, not to gain
  double expected_accepted = 0;  // what it believed of the nodes verified
  double predicted_seconds = 0;  // of the steps, drafting included
  double measured_seconds = 0;
  double median_step_error = 0;  // |predicted - measured| / measured of late
  double wasted_seconds = 0;     // predicted cost of the nodes that were rejected
  double regret = 0;             // share of goodput missed against lengths known in hindsight
  double decision_seconds = 0;   // spent in the policy, if its owner measures it
};

/// Hooks of a step, in this order. Not thread-safe; one thread calls.
class SMARTSPEC_API LengthPolicy {
 public:
  virtual ~LengthPolicy() = default;
  [[nodiscard]] virtual std::string_view name() const = 0;

  /// Longest draft it will ever want; 0: it never speculates and nothing need be proposed.
  [[nodiscard]] virtual std::int32_t max_depth() const = 0;

  /// Prompt tokens the step may compute, at most `wanted`; for latency targets of the decodes.
  /// `step.base` holds the decodes alone, `requests` all of them (max_depth 0: it may not draft).
  [[nodiscard]] virtual std::int32_t max_prefill_tokens(const StepView& /*step*/,
                                                        std::span<const LengthRequest> /*requests*/,
                                                        std::int32_t wanted) {
    return wanted;
  }

  /// Before paid drafting: a proposer and a depth in [0, max_depth] per request; depths beyond are
  /// clamped. Candidates come ordered by request, then proposer.
  virtual void plan(const StepView& step, std::span<const LengthRequest> requests,
                    std::span<const Candidate> candidates, std::span<DraftChoice> choices) = 0;

  /// After drafting: may prune *trees[i] (closed under ancestors) to what is worth verifying now.
  /// trees[i] is by choices[i].proposer; empty where nothing was drafted. `drafts`: what paid
  /// drafting cost. The default keeps everything; whoever calls cuts what exceeds token_budget.
  virtual void allocate(const StepView& /*step*/, std::span<const LengthRequest> /*requests*/,
                        std::span<const DraftChoice> /*choices*/,
                        std::span<const DraftWork> /*drafts*/,
                        std::span<TokenTree* const> /*trees*/) {}

  /// After the step.
  virtual void observe(const StepOutcome& /*outcome*/) {}

  /// The request ended.
  virtual void finish(RequestId /*id*/) {}

  [[nodiscard]] virtual PolicyStats stats() const { return {}; }
};

/// Length 0 for everyone.
SMARTSPEC_API std::shared_ptr<LengthPolicy> make_off_policy();
/// min(max_tokens, max_depth) for everyone: the first candidate that is not empty, else the first
/// paying proposer. Throws std::invalid_argument unless 1 <= max_tokens <= kMaxTreeNodes.
SMARTSPEC_API std::shared_ptr<LengthPolicy> make_fixed_policy(std::int32_t max_tokens);

}  // namespace smartspec
