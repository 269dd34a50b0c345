// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/sampling_params.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>
#include <stdexcept>
#include <string_view>

namespace smartspec {
namespace {

std::string to_text(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.9g", value);
  return buffer;
}

[[noreturn]] void refuse(std::string_view field, std::string_view allowed, const std::string& got) {
  throw std::invalid_argument(std::string(field) + " must be " + std::string(allowed) + ", got " +
                              got);
}

// Comparisons with NaN are false, so NaN is refused by every range.
void check_range(std::string_view field, float value, double low, double high,
                 std::string_view allowed) {
  if (!(value >= low && value <= high)) refuse(field, allowed, to_text(value));
}

void check_range(std::string_view field, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value >= low && value <= high) return;
  refuse(field, "in [" + std::to_string(low) + ", " + std::to_string(high) + "]",
         std::to_string(value));
}

void check_count(std::string_view field, std::size_t count, std::size_t most) {
  if (count <= most) return;
  refuse(field, "a list of at most " + std::to_string(most) + " entries", std::to_string(count));
}

void check_token(std::string_view field, TokenId token, std::int32_t vocab_size) {
  if (token >= 0 && token < vocab_size) return;
  refuse(field, "token ids in [0, " + std::to_string(vocab_size) + ")", std::to_string(token));
}

void check_tokens(std::string_view field, std::span<const TokenId> tokens,
                  std::int32_t vocab_size) {
  for (const TokenId token : tokens) check_token(field, token, vocab_size);
}

void check_stop_strings(const std::vector<std::string>& stop) {
  check_count("stop", stop.size(), kMaxStopStrings);
  for (std::size_t i = 0; i < stop.size(); ++i) {
    if (!stop[i].empty() && stop[i].size() <= kMaxStopStringBytes) continue;
    refuse("stop[" + std::to_string(i) + "]",
           "a string of 1 to " + std::to_string(kMaxStopStringBytes) + " bytes",
           std::to_string(stop[i].size()) + " bytes");
  }
}

void check_bias(const std::vector<std::pair<TokenId, float>>& bias, std::int32_t vocab_size) {
  check_count("logit_bias", bias.size(), static_cast<std::size_t>(vocab_size));
  std::vector<TokenId> ids;
  ids.reserve(bias.size());
  for (const auto& [token, value] : bias) {
    check_token("logit_bias", token, vocab_size);
    check_range("logit_bias[" + std::to_string(token) + "]", value, -100.0, 100.0,
                "in [-100, 100]");
    ids.push_back(token);
  }
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  if (twice != ids.end()) {
    refuse("logit_bias", "one value per token", "several for token " + std::to_string(*twice));
  }
}

void check_bad_words(const std::vector<std::vector<TokenId>>& words, std::int32_t vocab_size) {
  check_count("bad_words", words.size(), kMaxBadWords);
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string field = "bad_words[" + std::to_string(i) + "]";
    if (words[i].empty()) refuse(field, "a list of at least 1 token id", "an empty list");
    check_count(field, words[i].size(), kMaxBadWordTokens);
    check_tokens(field, words[i], vocab_size);
  }
}

}  // namespace

void SamplingParams::validate(std::int32_t vocab_size) const {
  check_range("vocab_size", vocab_size, 1, INT32_MAX);
  check_range("n", n, 1, kMaxN);
  check_range("temperature", temperature, 0.0, 1e4, "in [0, 10000]");
  if (!(top_p > 0.0F && top_p <= 1.0F)) refuse("top_p", "in (0, 1]", to_text(top_p));
  check_range("top_k", top_k, -1, INT32_MAX);
  check_range("min_p", min_p, 0.0, 1.0, "in [0, 1]");
  check_range("presence_penalty", presence_penalty, -2.0, 2.0, "in [-2, 2]");
  check_range("frequency_penalty", frequency_penalty, -2.0, 2.0, "in [-2, 2]");
  if (!(repetition_penalty > 0.0F && repetition_penalty <= 1e4F)) {
    refuse("repetition_penalty", "in (0, 10000]", to_text(repetition_penalty));
  }
  check_range("max_tokens", max_tokens, 1, INT32_MAX);
  check_range("min_tokens", min_tokens, 0, max_tokens);
  if (logprobs) check_range("logprobs", *logprobs, 0, kMaxLogprobs);
  if (prompt_logprobs) check_range("prompt_logprobs", *prompt_logprobs, 0, kMaxLogprobs);
  check_stop_strings(stop);
  check_count("stop_token_ids", stop_token_ids.size(), kMaxStopTokenIds);
  check_tokens("stop_token_ids", stop_token_ids, vocab_size);
  check_bias(logit_bias, vocab_size);
  if (allowed_token_ids) {
    if (allowed_token_ids->empty()) {
      refuse("allowed_token_ids", "absent or a list of at least 1 token id", "an empty list");
    }
    check_count("allowed_token_ids", allowed_token_ids->size(),
                static_cast<std::size_t>(vocab_size));
    check_tokens("allowed_token_ids", *allowed_token_ids, vocab_size);
  }
  check_bad_words(bad_words, vocab_size);
}

}  // namespace smartspec
