// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The walk of a token tree. It only calls sample() and accept() in the order plain decoding does,
// so equality with plain decoding holds by construction.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

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

/// The walk when the draws are given: the nodes they lead to, then accepted in order.
template <class AnySampler>
void accept_drawn(const TokenTree& tree, std::span<const TokenId> drawn, AnySampler& sampler,
                  Verification& out) {
  out.clear();
  std::int32_t node = -1;
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    out.rows.push_back(node + 1);
    node = tree.find_child(node, drawn[i]);
    if ((node < 0) == (i + 1 < drawn.size())) break;
    if (node >= 0) out.path.push_back(node);
  }
  if (drawn.empty() || out.rows.size() != drawn.size() || node >= 0) {
    throw std::invalid_argument("drawn: token " + std::to_string(out.rows.size()) + " of " +
                                std::to_string(drawn.size()) +
                                "; each but the last must be a child of the one before, and the "
                                "last one must not");
  }
  std::size_t count = 0;
  while (count < drawn.size() && out.finish_reason == FinishReason::kNone) {
    out.tokens.push_back(drawn[count]);
    out.finish_reason = sampler.accept(drawn[count]);
    ++count;
  }
  out.rows.resize(count);
  out.path.resize(std::min(out.path.size(), count));
}

}  // namespace smartspec::verify
