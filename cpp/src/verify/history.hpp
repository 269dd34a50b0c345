// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What one request has emitted, as penalties, bad words and stop checks see it. Everything derives
// from the emitted tokens, so taking tokens back restores the state exactly. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "smartspec/sampler.hpp"

namespace smartspec::verify {

/// Occurrences of each token: open addressing over the distinct tokens seen, never the vocabulary.
class TokenCounts {
 public:
  struct Entry {
    TokenId token = 0;
    std::int32_t in_output = 0;
    bool in_prompt = false;
  };
  void mark_prompt(TokenId token) { entry(token).in_prompt = true; }
  void add(TokenId token, std::int32_t change) { entry(token).in_output += change; }
  [[nodiscard]] std::span<const Entry> entries() const noexcept { return entries_; }
  /// Into entries(), or -1.
  [[nodiscard]] std::int32_t index_of(TokenId token) const noexcept {
    return slots_.empty() ? -1 : slots_[find(token)];
  }

 private:
  Entry& entry(TokenId token) {
    if (2 * (entries_.size() + 1) > slots_.size()) grow();
    std::int32_t& slot = slots_[find(token)];
    if (slot < 0) {
      slot = static_cast<std::int32_t>(entries_.size());
      entries_.push_back({token, 0, false});
    }
    return entries_[static_cast<std::size_t>(slot)];
  }
  [[nodiscard]] std::size_t find(TokenId token) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = (static_cast<std::uint32_t>(token) * 0x9E3779B9U >> 7) & mask;
    while (slots_[at] >= 0 && entries_[static_cast<std::size_t>(slots_[at])].token != token) {
      at = (at + 1) & mask;
    }
    return at;
  }
  void grow() {
    slots_.assign(std::max<std::size_t>(64, 2 * slots_.size()), -1);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      slots_[find(entries_[i].token)] = static_cast<std::int32_t>(i);
    }
  }

  std::vector<Entry> entries_;
  std::vector<std::int32_t> slots_;  // index into entries_, -1: free; a power of two of them
};

/// Borrows `params` and `stops`, which must outlive it at a fixed address.
class History {
 public:
  History(const SamplingParams& params, std::span<const TokenId> prompt,
          const StopVocabulary* stops)
      : params_(&params), stops_(stops), num_prompt_(static_cast<std::int64_t>(prompt.size())) {
    repeats_ = params.repetition_penalty != 1.0F;
    counts_used_ = repeats_ || params.frequency_penalty != 0.0F || params.presence_penalty != 0.0F;
    if (repeats_) {
      for (const TokenId token : prompt) counts_.mark_prompt(token);
    }
    std::size_t reach = 0;
    for (const auto& word : params.bad_words) reach = std::max(reach, word.size() - 1);
    const std::size_t kept = std::min(reach, prompt.size());
    tail_.assign(prompt.end() - static_cast<std::ptrdiff_t>(kept), prompt.end());
    num_tail_ = tail_.size();
  }

  FinishReason accept(TokenId token) {
    tail_.push_back(token);
    if (counts_used_) counts_.add(token, 1);
    if (!params_->stop.empty()) text_ += text_of(token);
    return check();
  }

  void rewind(std::int32_t num_output) {
    while (num_output_tokens() > num_output) {
      const TokenId token = tail_.back();
      tail_.pop_back();
      if (counts_used_) counts_.add(token, -1);
      if (!params_->stop.empty()) text_.resize(text_.size() - text_of(token).size());
    }
    check();
  }

  [[nodiscard]] std::int32_t num_output_tokens() const noexcept {
    return static_cast<std::int32_t>(tail_.size() - num_tail_);
  }
  [[nodiscard]] std::int64_t num_prompt_tokens() const noexcept { return num_prompt_; }
  [[nodiscard]] bool has_penalties() const noexcept { return counts_used_; }
  [[nodiscard]] bool has_repetition() const noexcept { return repeats_; }
  [[nodiscard]] const TokenCounts& counts() const noexcept { return counts_; }
  [[nodiscard]] std::int32_t matched_string() const noexcept { return matched_string_; }
  [[nodiscard]] TokenId matched_token() const noexcept { return matched_token_; }

  /// Whether all but the last token of `word` are the latest tokens of prompt and output.
  [[nodiscard]] bool completes(const std::vector<TokenId>& word) const noexcept {
    const std::size_t rest = word.size() - 1;
    return rest <= tail_.size() && std::equal(word.rbegin() + 1, word.rend(), tail_.rbegin());
  }

 private:
  [[nodiscard]] std::string_view text_of(TokenId token) const noexcept {
    const auto i = static_cast<std::size_t>(token);
    // A model may be padded beyond its tokenizer; such tokens have no text.
    return i < stops_->token_bytes.size() ? std::string_view(stops_->token_bytes[i])
                                          : std::string_view();
  }

  /// A pure function of the emitted tokens. Order as in vLLM: nothing before min_tokens; eos, stop
  /// ids, length; a stop string outranks length, and is looked for from token min_tokens + 1 on.
  FinishReason check() {
    matched_string_ = -1;
    matched_token_ = -1;
    const std::int32_t n = num_output_tokens();
    if (n == 0 || n < params_->min_tokens) return FinishReason::kNone;
    const TokenId last = tail_.back();
    if (!params_->ignore_eos && stops_ != nullptr && contains(stops_->eos_token_ids, last)) {
      return FinishReason::kStop;
    }
    if (contains(params_->stop_token_ids, last)) {
      matched_token_ = last;
      return FinishReason::kStop;
    }
    if (!params_->stop.empty() && n > params_->min_tokens) {
      matched_string_ = find_stop_string(text_of(last).size());
      if (matched_string_ >= 0) return FinishReason::kStop;
    }
    return n >= params_->max_tokens ? FinishReason::kLength : FinishReason::kNone;
  }

  static bool contains(const std::vector<TokenId>& list, TokenId token) noexcept {
    return std::find(list.begin(), list.end(), token) != list.end();
  }

  /// First stop string of the list that ends within the last `fresh` bytes, or -1.
  [[nodiscard]] std::int32_t find_stop_string(std::size_t fresh) const noexcept {
    const std::string_view text = text_;
    for (std::size_t s = 0; s < params_->stop.size(); ++s) {
      const std::string& stop = params_->stop[s];
      const std::size_t window = std::min(text.size(), fresh + stop.size() - 1);
      if (fresh != 0 && text.substr(text.size() - window).find(stop) != std::string_view::npos) {
        return static_cast<std::int32_t>(s);
      }
    }
    return -1;
  }

  const SamplingParams* params_;
  const StopVocabulary* stops_;
  std::int64_t num_prompt_;
  std::size_t num_tail_ = 0;  // prompt tokens at the front of tail_
  bool counts_used_ = false;
  bool repeats_ = false;
  std::vector<TokenId>
      tail_;  // as much of the prompt's end as bad words can reach, then the output
  TokenCounts counts_;
  std::string text_;  // bytes of the output, when there are stop strings
  std::int32_t matched_string_ = -1;
  TokenId matched_token_ = -1;
};

}  // namespace smartspec::verify
