// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// How to choose tokens and when to stop. Names, units and defaults are vLLM's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "smartspec/export.hpp"
#include "smartspec/types.hpp"

namespace smartspec {

/// Caps that keep one request from starving the others; validate() names them in its errors.
inline constexpr std::int32_t kMaxN = 1024;
inline constexpr std::int32_t kMaxLogprobs = 1024;
inline constexpr std::size_t kMaxStopStrings = 256;
inline constexpr std::size_t kMaxStopStringBytes = 4096;
inline constexpr std::size_t kMaxStopTokenIds = 4096;
inline constexpr std::size_t kMaxBadWords = 4096;
inline constexpr std::size_t kMaxBadWordTokens = 256;

struct SMARTSPEC_API SamplingParams {
  std::int32_t n = 1;                  // completions per prompt, [1, kMaxN]
  float temperature = 1.0F;            // [0, 1e4]; 0 is greedy
  float top_p = 1.0F;                  // (0, 1]
  std::int32_t top_k = 0;              // 0 or -1: all
  float min_p = 0.0F;                  // [0, 1]
  float presence_penalty = 0.0F;       // [-2, 2]
  float frequency_penalty = 0.0F;      // [-2, 2]
  float repetition_penalty = 1.0F;     // (0, 1e4]
  std::optional<std::int64_t> seed{};  // empty: the engine draws one
  std::int32_t max_tokens = 16;        // >= 1
  std::int32_t min_tokens = 0;         // [0, max_tokens]
  std::vector<std::string> stop{};     // UTF-8; needs StopVocabulary::token_bytes
  std::vector<TokenId> stop_token_ids{};
  bool ignore_eos = false;
  bool include_stop_str_in_output = false;  // read by the layer that makes text
  std::optional<std::int32_t> logprobs{};   // top-N per output token, [0, kMaxLogprobs]
  std::optional<std::int32_t> prompt_logprobs{};
  std::vector<std::pair<TokenId, float>> logit_bias{};  // finite, [-100, 100]
  std::optional<std::vector<TokenId>> allowed_token_ids{};
  std::vector<std::vector<TokenId>> bad_words{};  // token sequences that must not appear

  /// Throws std::invalid_argument naming the field, its value and what is allowed.
  void validate(std::int32_t vocab_size) const;
};

/// What a request's next draws depend on besides the logits, as plain numbers: for drawing them
/// elsewhere, see Sampler::describe and smartspec::cuda::Verify.
struct DrawState {
  float temperature = 1.0F;
  std::int32_t top_k = 0;  // 0: all
  float top_p = 1.0F;
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;
  float frequency_penalty = 0.0F;
  float presence_penalty = 0.0F;
  std::uint64_t seed = 0;
  std::int64_t position = 0;  // prompt and output tokens before the first draw
  // Distinct tokens that penalties look at or that have a bias; equal lengths.
  std::vector<TokenId> count_tokens;
  std::vector<std::int32_t> output_counts;  // in the output; 0: in the prompt only, -1: in neither
  std::vector<float> count_bias;            // added to the logit before the penalties
};

}  // namespace smartspec
