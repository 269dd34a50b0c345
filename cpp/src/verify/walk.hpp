// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The walk of a token tree. It only calls sample() and accept() in the order plain decoding does,
// so equality with plain decoding holds by construction.
#pragma once

#include <cstdint>

#include "smartspec/sampler.hpp"

namespace smartspec::verify {

template <class Rule, class AnySampler>
void walk(const TokenTree& tree, const LogitsRow& logits, AnySampler& sampler, Verification& out) {
  out.clear();
  std::int32_t node = -1;
  while (true) {
    const std::span<const float> row = logits(node);
    const TokenId token = sampler.sample(row);
    if (sampler.params().logprobs) {
      out.logprobs.push_back(compute_logprobs(row, token, *sampler.params().logprobs));
    }
    out.tokens.push_back(token);
    out.rows.push_back(node + 1);
    out.finish_reason = sampler.accept(token);
    const std::int32_t child = Rule::find_child(tree, node, token);
    if (child >= 0) out.path.push_back(child);
    if (child < 0 || out.finish_reason != FinishReason::kNone) return;
    node = child;
  }
}

}  // namespace smartspec::verify
