// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// SamplingParams::validate: every field, its limits, and what the message says.
#include <gtest/gtest.h>

#include <climits>
#include <cmath>
#include <functional>
#include <stdexcept>

#include "smartspec/sampling_params.hpp"

namespace smartspec::verify_test {
namespace {

constexpr std::int32_t kVocab = 100;
using Edit = std::function<void(SamplingParams&)>;

std::string refusal(const Edit& edit) {
  SamplingParams p;
  edit(p);
  try {
    p.validate(kVocab);
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "";
}

TEST(SamplingParams, AcceptsTheLimits) {
  const std::vector<Edit> edits{[](auto&) {},
                                [](auto& p) { p.n = 1024; },
                                [](auto& p) { p.temperature = 0.0F; },
                                [](auto& p) { p.temperature = 1e4F; },
                                [](auto& p) { p.temperature = 1e-45F; },
                                [](auto& p) { p.top_p = 1e-45F; },
                                [](auto& p) { p.top_k = -1; },
                                [](auto& p) { p.top_k = INT_MAX; },
                                [](auto& p) { p.min_p = 1.0F; },
                                [](auto& p) { p.presence_penalty = -2.0F; },
                                [](auto& p) { p.frequency_penalty = 2.0F; },
                                [](auto& p) { p.repetition_penalty = 1e4F; },
                                [](auto& p) { p.seed = INT64_MIN; },
                                [](auto& p) { p.max_tokens = INT_MAX; },
                                [](auto& p) { p.min_tokens = p.max_tokens; },
                                [](auto& p) { p.logprobs = 0; },
                                [](auto& p) { p.prompt_logprobs = 1024; },
                                [](auto& p) { p.stop = {std::string(4096, 'x')}; },
                                [](auto& p) { p.stop = {std::string(1, '\0')}; },
                                [](auto& p) { p.stop_token_ids = {0, 99, 99}; },
                                [](auto& p) { p.logit_bias = {{0, -100.0F}, {99, 100.0F}}; },
                                [](auto& p) { p.allowed_token_ids = {{5}}; },
                                [](auto& p) { p.bad_words = {{1}, std::vector<TokenId>(256, 3)}; }};
  for (std::size_t i = 0; i < edits.size(); ++i) EXPECT_EQ(refusal(edits[i]), "") << i;
}

TEST(SamplingParams, RefusesAndSaysWhy) {
  const float nan = NAN;
  const float inf = INFINITY;
  const std::vector<std::pair<Edit, std::string>> cases{
      {[](auto& p) { p.n = 0; }, "n must be in [1, 1024], got 0"},
      {[](auto& p) { p.n = 1000000000; }, "n must be in [1, 1024], got 1000000000"},
      {[=](auto& p) { p.temperature = nan; }, "temperature must be in [0, 10000], got nan"},
      {[=](auto& p) { p.temperature = inf; }, "temperature must be in [0, 10000], got inf"},
      {[](auto& p) { p.temperature = -1.0F; }, "temperature must be in [0, 10000], got -1"},
      {[](auto& p) { p.top_p = 0.0F; }, "top_p must be in (0, 1], got 0"},
      {[](auto& p) { p.top_p = 1.5F; }, "top_p must be in (0, 1], got 1.5"},
      {[=](auto& p) { p.top_p = nan; }, "top_p must be in (0, 1], got nan"},
      {[](auto& p) { p.top_k = -2; }, "top_k must be in [-1, 2147483647], got -2"},
      {[](auto& p) { p.min_p = -0.5F; }, "min_p must be in [0, 1], got -0.5"},
      {[=](auto& p) { p.min_p = nan; }, "min_p must be in [0, 1], got nan"},
      {[=](auto& p) { p.presence_penalty = nan; }, "presence_penalty must be in [-2, 2], got nan"},
      {[](auto& p) { p.presence_penalty = 3.0F; }, "presence_penalty must be in [-2, 2], got 3"},
      {[=](auto& p) { p.frequency_penalty = -inf; },
       "frequency_penalty must be in [-2, 2], got -inf"},
      {[](auto& p) { p.repetition_penalty = 0.0F; },
       "repetition_penalty must be in (0, 10000], got 0"},
      {[=](auto& p) { p.repetition_penalty = nan; },
       "repetition_penalty must be in (0, 10000], got nan"},
      {[](auto& p) { p.max_tokens = 0; }, "max_tokens must be in [1, 2147483647], got 0"},
      {[](auto& p) { p.min_tokens = -1; }, "min_tokens must be in [0, 16], got -1"},
      {[](auto& p) { p.min_tokens = 17; }, "min_tokens must be in [0, 16], got 17"},
      {[](auto& p) { p.logprobs = -1; }, "logprobs must be in [0, 1024], got -1"},
      {[](auto& p) { p.prompt_logprobs = 1025; }, "prompt_logprobs must be in [0, 1024], got 1025"},
      {[](auto& p) { p.stop = {"x", ""}; },
       "stop[1] must be a string of 1 to 4096 bytes, got 0 bytes"},
      {[](auto& p) { p.stop = {std::string(4097, 'x')}; },
       "stop[0] must be a string of 1 to 4096 bytes, got 4097 bytes"},
      {[](auto& p) { p.stop.assign(257, "x"); },
       "stop must be a list of at most 256 entries, got 257"},
      {[](auto& p) { p.stop_token_ids = {100}; },
       "stop_token_ids must be token ids in [0, 100), got 100"},
      {[](auto& p) { p.stop_token_ids = {-1}; },
       "stop_token_ids must be token ids in [0, 100), got -1"},
      {[](auto& p) { p.stop_token_ids.assign(4097, 1); },
       "stop_token_ids must be a list of at most 4096 entries, got 4097"},
      {[=](auto& p) { p.logit_bias = {{7, nan}}; },
       "logit_bias[7] must be in [-100, 100], got nan"},
      {[](auto& p) { p.logit_bias = {{7, 100.5F}}; },
       "logit_bias[7] must be in [-100, 100], got 100.5"},
      {[](auto& p) { p.logit_bias = {{100, 1.0F}}; },
       "logit_bias must be token ids in [0, 100), got 100"},
      {[](auto& p) { p.logit_bias = {{7, 1.0F}, {3, 1.0F}, {7, 2.0F}}; },
       "logit_bias must be one value per token, got several for token 7"},
      {[](auto& p) { p.allowed_token_ids = std::vector<TokenId>{}; },
       "allowed_token_ids must be absent or a list of at least 1 token id, got an empty list"},
      {[](auto& p) { p.allowed_token_ids = {{INT_MAX}}; },
       "allowed_token_ids must be token ids in [0, 100), got 2147483647"},
      {[](auto& p) { p.allowed_token_ids = std::vector<TokenId>(101, 1); },
       "allowed_token_ids must be a list of at most 100 entries, got 101"},
      {[](auto& p) { p.bad_words = {{1}, {}}; },
       "bad_words[1] must be a list of at least 1 token id, got an empty list"},
      {[](auto& p) { p.bad_words = {{1, -5}}; },
       "bad_words[0] must be token ids in [0, 100), got -5"},
      {[](auto& p) { p.bad_words = {std::vector<TokenId>(257, 1)}; },
       "bad_words[0] must be a list of at most 256 entries, got 257"},
      {[](auto& p) { p.bad_words.assign(4097, {1}); },
       "bad_words must be a list of at most 4096 entries, got 4097"}};
  for (const auto& [edit, text] : cases) EXPECT_EQ(refusal(edit), text);
  EXPECT_THROW(SamplingParams{}.validate(0), std::invalid_argument);
}

}  // namespace
}  // namespace smartspec::verify_test
