// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The decision how much to speculate, behind an interface: before drafting (how deep) and after
// drafting (which nodes are worth verifying now).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

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

/// What a policy sees of one running request.
struct LengthRequest {
  RequestId id = 0;
  std::int32_t num_tokens = 0;    // verified tokens
  std::int32_t max_depth = 0;     // tokens it may still emit, minus one: no deeper draft can help
  std::int64_t num_drafted = 0;   // so far
  std::int64_t num_accepted = 0;  // so far
};

/// Two hooks a step. Not thread-safe; the engine calls both from its step thread.
class SMARTSPEC_API LengthPolicy {
 public:
  virtual ~LengthPolicy() = default;
  [[nodiscard]] virtual std::string_view name() const = 0;

  /// Before drafting: depths[i] in [0, requests[i].max_depth] for requests[i].
  virtual void choose_depths(std::span<const LengthRequest> requests,
                             std::span<std::int32_t> depths) = 0;

  /// After drafting: may prune trees[i] (closed under ancestors) to what is worth verifying now.
  /// `token_budget`: draft nodes that fit into the step. The default keeps everything; the engine
  /// cuts what exceeds the budget.
  virtual void prune(std::span<const LengthRequest> /*requests*/, std::span<TokenTree> /*trees*/,
                     std::int32_t /*token_budget*/) {}

  /// After the step: nodes verified and accepted per request, and the step's wall time in seconds.
  virtual void observe(std::span<const LengthRequest> /*requests*/,
                       std::span<const std::int32_t> /*verified*/,
                       std::span<const std::int32_t> /*accepted*/, double /*step_seconds*/) {}
};

/// Length 0 for everyone.
SMARTSPEC_API std::shared_ptr<LengthPolicy> make_off_policy();
/// min(max_tokens, max_depth) for everyone. Throws std::invalid_argument unless
/// 1 <= max_tokens <= kMaxTreeNodes.
SMARTSPEC_API std::shared_ptr<LengthPolicy> make_fixed_policy(std::int32_t max_tokens);

}  // namespace smartspec
