// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// One completion of one request: the unit that is scheduled, preempted and finished.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "smartspec/engine.hpp"
#include "smartspec/kv_cache.hpp"
#include "smartspec/sampler.hpp"
#include "smartspec/token_tree.hpp"

namespace smartspec {

/// What the n completions of a request share; immutable after add_request().
struct RequestInfo {
  RequestId id = 0;
  std::vector<TokenId> prompt;
  SamplingParams sampling;  // max_tokens cut to what the context leaves
  std::int32_t priority = 0;
  std::uint64_t cache_salt = 0;
  SpeculationControl control;
  std::vector<TokenId> prediction;
};

/// Rows of one completion in the current step.
struct StepRows {
  std::int32_t first_row = 0;
  std::int32_t num_causal = 0;         // 0: not scheduled at this step
  std::int32_t first_logits = -1;      // index into the logits of its first wanted row
  std::int32_t num_prompt_logits = 0;  // rows before the sampled one, for prompt logprobs
  bool samples = false;                // its last causal row is the newest token: draw from it
  bool is_decode = false;              // not a prompt chunk
  /// Index of the row that the root's token is drawn from; node n's is 1 + n later.
  [[nodiscard]] std::int32_t root_logits() const noexcept {
    return first_logits + num_prompt_logits;
  }
};

struct Completion {
  Completion(std::shared_ptr<const RequestInfo> request, std::int32_t completion_index,
             Sampler request_sampler);

  std::shared_ptr<const RequestInfo> info;
  std::int32_t index = 0;
  Sampler sampler;
  std::vector<TokenId> tokens;  // prompt and emitted output
  SequenceId sequence = -1;     // -1: waiting
  RequestStats stats;
  std::int32_t num_found = 0;  // tokens that were computed when it was admitted
  bool was_scheduled = false;  // ever
  bool has_run = false;        // since it was admitted
  bool finished = false;
  std::vector<PositionLogprobs> prompt_logprobs;

  // Scratch of one step.
  StepRows rows;
  TokenTree tree;
  std::int32_t drafter = -1;       // whose draft `tree` is
  bool draft_failed = false;       // a proposer threw, or returned something unsound for it
  std::span<const TokenId> drawn;  // by the device; empty: the host draws
  Verification verification;

  /// Key towards proposers and the scheduler: unique per completion.
  [[nodiscard]] RequestId key() const noexcept { return info->id + index; }
  [[nodiscard]] std::int32_t num_tokens() const noexcept {
    return static_cast<std::int32_t>(tokens.size());
  }
  [[nodiscard]] std::int32_t num_prompt() const noexcept {
    return static_cast<std::int32_t>(info->prompt.size());
  }
  [[nodiscard]] bool wants_prompt_logprobs() const noexcept {
    return index == 0 && info->sampling.prompt_logprobs.has_value() &&
           static_cast<std::int32_t>(prompt_logprobs.size()) < num_prompt() - 1;
  }
};

}  // namespace smartspec
