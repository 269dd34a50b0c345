// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The sampler written again as simply as possible: whole-vocabulary sorts, std::exp, no state but
// the list of output tokens. Shares only gumbel_noise() with the library.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "smartspec/sampler.hpp"

namespace smartspec::verify_test {

inline constexpr float kInf = std::numeric_limits<float>::infinity();

struct Oracle {
  SamplingParams params;
  std::uint64_t seed = 0;
  std::vector<TokenId> prompt;
  std::shared_ptr<const StopVocabulary> stops;
  std::vector<TokenId> output;
  int stop_string = -1;
  TokenId stop_token = -1;
  mutable bool ambiguous = false;  // the last top-p cut was within rounding of the boundary

  static bool has(const std::vector<TokenId>& list, TokenId v) {
    return std::find(list.begin(), list.end(), v) != list.end();
  }

  std::vector<float> process(std::span<const float> logits) const {
    std::vector<float> row(logits.begin(), logits.end());
    const auto n = static_cast<TokenId>(row.size());
    std::vector<TokenId> past = prompt;
    past.insert(past.end(), output.begin(), output.end());
    for (TokenId v = 0; v < n; ++v) {
      float& l = row[static_cast<std::size_t>(v)];
      if (params.allowed_token_ids && !has(*params.allowed_token_ids, v)) l = -kInf;
      if (static_cast<int>(output.size()) < params.min_tokens &&
          (has(params.stop_token_ids, v) || (stops && has(stops->eos_token_ids, v)))) {
        l = -kInf;
      }
      for (const auto& [token, bias] : params.logit_bias) {
        if (token == v) l += bias;
      }
      for (const auto& word : params.bad_words) {
        if (word.back() != v || word.size() - 1 > past.size()) continue;
        const std::vector<TokenId> head(word.begin(), word.end() - 1);
        const std::vector<TokenId> tail(past.end() - static_cast<std::ptrdiff_t>(head.size()),
                                        past.end());
        if (head == tail) l = -kInf;
      }
      const auto count = std::count(output.begin(), output.end(), v);
      if (has(past, v)) {
        l = l > 0 ? l / params.repetition_penalty : l * params.repetition_penalty;
      }
      l -= params.frequency_penalty * static_cast<float>(count);
      if (count > 0) l -= params.presence_penalty;
    }
    return row;
  }

  /// Tokens with a probability above zero and that probability, best logit first.
  std::vector<std::pair<TokenId, double>> law(const std::vector<float>& row) const {
    ambiguous = false;
    std::vector<TokenId> ids;
    for (std::size_t v = 0; v < row.size(); ++v) {
      if (row[v] != -kInf) ids.push_back(static_cast<TokenId>(v));
    }
    const auto logit = [&](TokenId v) { return row[static_cast<std::size_t>(v)]; };
    std::stable_sort(ids.begin(), ids.end(),
                     [&](TokenId a, TokenId b) { return logit(a) > logit(b); });
    const bool greedy = params.temperature == 0.0F;
    const double t = greedy ? 1.0 : static_cast<double>(params.temperature);
    std::vector<std::pair<TokenId, double>> kept;
    for (const TokenId v : ids) {
      const double d =
          (static_cast<double>(logit(v)) - static_cast<double>(logit(ids.front()))) / t;
      if (!greedy && params.min_p > 0.0F) {
        const double ratio = std::exp(d) / static_cast<double>(params.min_p);
        if (ratio != 1.0 && std::abs(ratio - 1.0) < 1e-12) ambiguous = true;
        if (ratio < 1.0) break;
      }
      kept.emplace_back(v, std::exp(d));
    }
    if (!greedy && params.top_k > 0 && kept.size() > static_cast<std::size_t>(params.top_k)) {
      kept.resize(static_cast<std::size_t>(params.top_k));
    }
    double total = 0;
    for (const auto& k : kept) total += k.second;
    if (!greedy && params.top_p < 1.0F) {
      const double target = static_cast<double>(params.top_p) * total;
      double mass = 0;
      std::size_t n = 0;
      while (n < kept.size()) {
        mass += kept[n++].second;
        if (std::abs(mass / target - 1.0) < 1e-9) ambiguous = true;
        if (mass >= target) break;
      }
      kept.resize(n);
      total = mass;
    }
    for (auto& k : kept) k.second /= total;
    return kept;
  }

  /// All kept tokens in the perturbed order. Empty: the sampler must throw.
  std::vector<TokenId> order(std::span<const float> logits) const {
    const std::vector<float> row = process(logits);
    for (const float l : row) {
      if (std::isnan(l) || l == kInf) return {};
    }
    const auto kept = law(row);
    struct Entry {
      double key;
      TokenId token;
    };
    std::vector<Entry> entries;
    const auto position = static_cast<std::int64_t>(prompt.size() + output.size());
    for (const auto& [v, p] : kept) {
      const auto l = static_cast<double>(row[static_cast<std::size_t>(v)]);
      const double inv_t = 1.0 / static_cast<double>(params.temperature);
      entries.push_back(
          {params.temperature == 0.0F ? l : l * inv_t + gumbel_noise(seed, position, v), v});
    }
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return a.key != b.key ? a.key > b.key : a.token < b.token;
    });
    std::vector<TokenId> result;
    for (const Entry& e : entries) result.push_back(e.token);
    return result;
  }

  [[nodiscard]] std::string text(std::size_t num_tokens) const {
    std::string result;
    for (std::size_t i = 0; i < num_tokens; ++i) {
      result += stops->token_bytes[static_cast<std::size_t>(output[i])];
    }
    return result;
  }

  FinishReason accept(TokenId token) {
    output.push_back(token);
    stop_string = -1;
    stop_token = -1;
    const int n = static_cast<int>(output.size());
    if (n < params.min_tokens) return FinishReason::kNone;
    if (stops && !params.ignore_eos && has(stops->eos_token_ids, token)) return FinishReason::kStop;
    if (has(params.stop_token_ids, token)) {
      stop_token = token;
      return FinishReason::kStop;
    }
    if (n > params.min_tokens && !params.stop.empty()) {
      const std::string before = text(output.size() - 1);
      const std::string all = text(output.size());
      for (std::size_t s = 0; s < params.stop.size(); ++s) {
        const std::string& stop = params.stop[s];
        for (std::size_t end = std::max(before.size() + 1, stop.size()); end <= all.size(); ++end) {
          if (all.compare(end - stop.size(), stop.size(), stop) != 0) continue;
          stop_string = static_cast<int>(s);
          return FinishReason::kStop;
        }
      }
    }
    return n >= params.max_tokens ? FinishReason::kLength : FinishReason::kNone;
  }
};

/// Tokens spell "a".."c", "ab", "" and so on; the last token is eos.
inline std::shared_ptr<const StopVocabulary> tiny_vocabulary(int vocab) {
  auto stops = std::make_shared<StopVocabulary>();
  stops->eos_token_ids = {vocab - 1};
  const std::vector<std::string> texts{"a", "b", "c", "ab", "", "bca", "cc", "abab"};
  for (int v = 0; v < vocab; ++v) {
    stops->token_bytes.push_back(texts[static_cast<std::size_t>(v) % texts.size()]);
  }
  return stops;
}

}  // namespace smartspec::verify_test
