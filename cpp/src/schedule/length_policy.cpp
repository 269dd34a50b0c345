// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/length_policy.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "schedule/baseline_support.hpp"

namespace smartspec {

std::string_view name_of(NoSpeculationReason reason) noexcept {
  switch (reason) {
    case NoSpeculationReason::kNone:
      return "none";
    case NoSpeculationReason::kOff:
      return "off";
    case NoSpeculationReason::kRequest:
      return "request";
    case NoSpeculationReason::kPolicy:
      return "policy";
    case NoSpeculationReason::kPrefill:
      return "prefill";
    case NoSpeculationReason::kNothingFound:
      return "nothing_found";
    case NoSpeculationReason::kLastToken:
      return "last_token";
    case NoSpeculationReason::kTokenBudget:
      return "token_budget";
    case NoSpeculationReason::kKvExhausted:
      return "kv_exhausted";
    case NoSpeculationReason::kProposerError:
      return "proposer_error";
  }
  return "unknown";
}

void SpeculationControl::validate(std::int32_t num_proposers) const {
  require_in_range("min_tokens", std::int64_t{min_tokens}, 0, kMaxTreeNodes);
  require_in_range("max_tokens", std::int64_t{max_tokens}, 0, kMaxTreeNodes);
  if (min_tokens > max_tokens) {
    throw std::invalid_argument("min_tokens must be at most max_tokens (" +
                                std::to_string(max_tokens) + "), got " +
                                std::to_string(min_tokens));
  }
  if (proposer < -1 || proposer >= std::max(num_proposers, 0)) {
    throw std::invalid_argument("proposer must be -1 (any) or the index of one of the engine's " +
                                std::to_string(std::max(num_proposers, 0)) + ", got " +
                                std::to_string(proposer));
  }
  if (!(tpot_target >= 0 && std::isfinite(tpot_target))) {
    throw std::invalid_argument("tpot_target must be finite and >= 0 seconds (0: none), got " +
                                std::to_string(tpot_target));
  }
}

std::shared_ptr<LengthPolicy> make_off_policy() {
  return std::make_shared<BaselinePolicy>("off", 0);
}

std::shared_ptr<LengthPolicy> make_fixed_policy(std::int32_t max_tokens) {
  require_in_range("max_tokens", std::int64_t{max_tokens}, 1, kMaxTreeNodes);
  return std::make_shared<BaselinePolicy>("fixed", max_tokens);
}

}  // namespace smartspec
