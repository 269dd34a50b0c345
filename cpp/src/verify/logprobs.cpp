// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <stdexcept>
#include <string>

#include "smartspec/error.hpp"
#include "smartspec/sampler.hpp"
#include "verify/row.hpp"

namespace smartspec {

PositionLogprobs compute_logprobs(std::span<const float> logits, TokenId chosen,
                                  std::int32_t num_top) {
  if (chosen < 0 || static_cast<std::size_t>(chosen) >= logits.size()) {
    throw std::invalid_argument("chosen must be in [0, " + std::to_string(logits.size()) +
                                "), got " + std::to_string(chosen));
  }
  if (num_top < 0) {
    throw std::invalid_argument("num_top must be >= 0, got " + std::to_string(num_top));
  }
  const verify::RowMax m = verify::find_max(logits);
  if (!m.finite || m.max == verify::kMinusInf) {
    throw Error(m.finite ? "logprobs need at least one logit above -inf"
                         : "logprobs need logits without NaN and +inf");
  }
  const double max = static_cast<double>(m.max);
  // The sum is at least exp(0) = 1, so its logarithm is safe.
  const double log_sum =
      max + verify::portable_log(verify::kept_mass(logits, m.max, 1.0, verify::Cut{}));
  const auto logprob_of = [&](TokenId v) {
    return static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(v)]) - log_sum);
  };
  const float chosen_logit = logits[static_cast<std::size_t>(chosen)];
  std::int32_t rank = 1;
  for (const float l : logits) rank += l > chosen_logit ? 1 : 0;

  const std::size_t count = std::min(static_cast<std::size_t>(num_top), logits.size());
  PositionLogprobs result;
  result.reserve(count + 1);
  result.push_back({chosen, logprob_of(chosen), rank});
  if (count == 0) return result;
  thread_local std::vector<std::uint64_t> keys;
  verify::select_top(logits, count, {verify::kMinusInf}, keys);  // -inf entries may be listed
  std::sort(keys.begin(), keys.end(), std::greater<>());
  rank = 1;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const TokenId v = verify::token_of(keys[i]);
    const bool tied = i > 0 && logits[static_cast<std::size_t>(v)] ==
                                   logits[static_cast<std::size_t>(result.back().token)];
    if (!tied) rank = static_cast<std::int32_t>(i) + 1;
    result.push_back({v, logprob_of(v), rank});
  }
  return result;
}

}  // namespace smartspec
