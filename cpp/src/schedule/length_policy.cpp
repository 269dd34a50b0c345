// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/length_policy.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

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

namespace {

class OffPolicy final : public LengthPolicy {
 public:
  [[nodiscard]] std::string_view name() const override { return "off"; }
  void choose_depths(std::span<const LengthRequest>, std::span<std::int32_t> depths) override {
    std::fill(depths.begin(), depths.end(), 0);
  }
};

class FixedPolicy final : public LengthPolicy {
 public:
  explicit FixedPolicy(std::int32_t max_tokens) : max_tokens_(max_tokens) {}
  [[nodiscard]] std::string_view name() const override { return "fixed"; }
  void choose_depths(std::span<const LengthRequest> requests,
                     std::span<std::int32_t> depths) override {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      depths[i] = std::min(max_tokens_, requests[i].max_depth);
    }
  }

 private:
  std::int32_t max_tokens_;
};

}  // namespace

std::shared_ptr<LengthPolicy> make_off_policy() { return std::make_shared<OffPolicy>(); }

std::shared_ptr<LengthPolicy> make_fixed_policy(std::int32_t max_tokens) {
  if (max_tokens < 1 || max_tokens > kMaxTreeNodes) {
    throw std::invalid_argument("max_tokens must be in [1, " + std::to_string(kMaxTreeNodes) +
                                "], got " + std::to_string(max_tokens));
  }
  return std::make_shared<FixedPolicy>(max_tokens);
}

}  // namespace smartspec
