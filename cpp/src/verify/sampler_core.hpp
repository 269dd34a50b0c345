// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The sampler behind smartspec::Sampler, over a rule (rule.hpp). Order of processing, as in vLLM
// (vllm/v1/sample/sampler.py): allowed ids, bad words, min_tokens, bias, penalties, temperature,
// min-p, top-k, top-p. Rows are processed on a copy that lives in thread-local scratch: a sampler
// holds nothing of vocabulary size.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "smartspec/error.hpp"
#include "smartspec/sampler.hpp"
#include "verify/history.hpp"
#include "verify/row.hpp"
#include "verify/rule.hpp"
#include "verify/search.hpp"

namespace smartspec::verify {

/// Reused buffers of one thread; no result depends on their content.
struct Scratch {
  std::vector<float> row;
  std::vector<std::uint64_t> keys;
  std::vector<Candidate> top;

  static Scratch& of_this_thread() {
    thread_local Scratch scratch;
    return scratch;
  }
};

template <class Rule>
class BasicSampler {
 public:
  BasicSampler(const SamplingParams& params, std::uint64_t seed, std::span<const TokenId> prompt,
               std::int32_t vocab_size, std::shared_ptr<const StopVocabulary> stops)
      : params_(checked(params, prompt, vocab_size, stops.get())),
        seed_(seed),
        vocab_size_(vocab_size),
        stops_(std::move(stops)),
        history_(params_, prompt, stops_.get()) {
    greedy_ = params_.temperature == 0.0F;
    if (params_.min_tokens > 0) {
      held_back_ = params_.stop_token_ids;
      if (stops_ != nullptr) {
        held_back_.insert(held_back_.end(), stops_->eos_token_ids.begin(),
                          stops_->eos_token_ids.end());
      }
    }
    if (params_.min_p > 0.0F) log_min_p_ = portable_log(static_cast<double>(params_.min_p));
    edits_ = params_.allowed_token_ids.has_value() || !params_.bad_words.empty() ||
             !params_.logit_bias.empty() || history_.has_penalties();
  }
  BasicSampler(const BasicSampler&) = delete;  // history_ borrows params_
  BasicSampler& operator=(const BasicSampler&) = delete;

  TokenId sample(std::span<const float> logits) {
    Scratch& scratch = Scratch::of_this_thread();
    const std::span<const float> row = process(logits, scratch);
    const float max = checked_max(row);
    if constexpr (Rule::kPrune) {
      if (greedy_) return first_equal(row, max);
    }
    rank(row, max, 1, scratch);
    return scratch.top.front().token;
  }

  void sample_top(std::span<const float> logits, std::int32_t count, std::vector<TokenId>& out,
                  std::vector<float>* scores) {
    if (count <= 0) return;
    Scratch& scratch = Scratch::of_this_thread();
    const std::span<const float> row = process(logits, scratch);
    const float max = checked_max(row);
    const Cut cut = rank(row, max, std::min(count, vocab_size_), scratch);
    for (const Candidate& c : scratch.top) out.push_back(c.token);
    if (scores == nullptr) return;
    const double inv_t = greedy_ ? 1.0 : 1.0 / static_cast<double>(params_.temperature);
    const bool keeps_all = cut.logit == Cut{}.logit && cut.id == Cut{}.id;
    const double mass =
        keeps_all && inv_t < kMaxApproximateScale
            ? static_cast<double>(approximate_mass(row, max, static_cast<float>(inv_t)))
            : kept_mass(row, max, inv_t, cut);
    for (const Candidate& c : scratch.top) {
      const double d =
          static_cast<double>(row[static_cast<std::size_t>(c.token)]) - static_cast<double>(max);
      scores->push_back(static_cast<float>(portable_exp(d * inv_t) / mass));
    }
  }

  FinishReason accept(TokenId token) {
    if (token < 0 || token >= vocab_size_) {
      throw std::invalid_argument("token must be in [0, " + std::to_string(vocab_size_) +
                                  "), got " + std::to_string(token));
    }
    return history_.accept(token);
  }

  [[nodiscard]] std::int32_t mark() const noexcept { return history_.num_output_tokens(); }
  void rewind(std::int32_t mark) {
    if (mark < 0 || mark > history_.num_output_tokens()) {
      throw std::invalid_argument("mark must be in [0, " +
                                  std::to_string(history_.num_output_tokens()) + "], got " +
                                  std::to_string(mark));
    }
    history_.rewind(mark);
  }

  [[nodiscard]] bool describe(DrawState& out) const {
    if (params_.allowed_token_ids || !params_.bad_words.empty()) return false;
    if (history_.num_output_tokens() < params_.min_tokens) return false;
    out.temperature = params_.temperature;
    out.top_k = params_.top_k < vocab_size_ ? std::max(params_.top_k, 0) : 0;
    out.top_p = params_.top_p;
    out.min_p = params_.min_p;
    out.repetition_penalty = params_.repetition_penalty;
    out.frequency_penalty = params_.frequency_penalty;
    out.presence_penalty = params_.presence_penalty;
    out.seed = seed_;
    out.position = Rule::position(history_.num_prompt_tokens(), history_.num_output_tokens());
    describe_edits(out);
    return true;
  }

  [[nodiscard]] bool is_greedy() const noexcept { return greedy_; }
  [[nodiscard]] const History& history() const noexcept { return history_; }
  [[nodiscard]] const SamplingParams& params() const noexcept { return params_; }
  [[nodiscard]] std::uint64_t seed() const noexcept { return seed_; }

 private:
  static constexpr double kMaxApproximateScale = 1e6;  // of 1/T: keeps products finite in float

  static const SamplingParams& checked(const SamplingParams& params,
                                       std::span<const TokenId> prompt, std::int32_t vocab_size,
                                       const StopVocabulary* stops) {
    params.validate(vocab_size);
    const auto check = [&](const char* what, TokenId token) {
      if (token >= 0 && token < vocab_size) return;
      throw std::invalid_argument(std::string(what) + " must be in [0, " +
                                  std::to_string(vocab_size) + "), got " + std::to_string(token));
    };
    for (const TokenId token : prompt) check("prompt token", token);
    if (stops != nullptr) {
      for (const TokenId token : stops->eos_token_ids) check("eos_token_ids", token);
    }
    if (!params.stop.empty() && (stops == nullptr || stops->token_bytes.empty())) {
      throw std::invalid_argument(
          "stop strings need the text of the tokens, and StopVocabulary::token_bytes is empty");
    }
    return params;
  }

  void describe_edits(DrawState& out) const {
    out.count_tokens.clear();
    out.output_counts.clear();
    out.count_bias.clear();
    const auto add = [&](TokenId token, std::int32_t count, float bias) {
      out.count_tokens.push_back(token);
      out.output_counts.push_back(count);
      out.count_bias.push_back(bias);
    };
    if (history_.has_penalties()) {
      for (const TokenCounts::Entry& entry : history_.counts().entries()) {
        add(entry.token, entry.in_output == 0 && !entry.in_prompt ? -1 : entry.in_output, 0.0F);
      }
    }
    for (const auto& [token, bias] : params_.logit_bias) {
      const std::int32_t at = history_.has_penalties() ? history_.counts().index_of(token) : -1;
      if (at < 0) {
        add(token, -1, bias);
      } else {
        out.count_bias[static_cast<std::size_t>(at)] = bias;
      }
    }
  }

  [[nodiscard]] std::span<const float> process(std::span<const float> logits, Scratch& scratch) {
    if (logits.size() != static_cast<std::size_t>(vocab_size_)) {
      throw std::invalid_argument("logits must have " + std::to_string(vocab_size_) +
                                  " entries, got " + std::to_string(logits.size()));
    }
    const bool hold_back = history_.num_output_tokens() < params_.min_tokens;
    if (!edits_ && !hold_back) return logits;
    std::vector<float>& row = scratch.row;
    const auto at = [&](TokenId v) -> float& { return row[static_cast<std::size_t>(v)]; };
    if (params_.allowed_token_ids) {
      row.assign(logits.size(), kMinusInf);
      for (const TokenId v : *params_.allowed_token_ids) {
        at(v) = logits[static_cast<std::size_t>(v)];
      }
    } else {
      row.assign(logits.begin(), logits.end());
    }
    for (const auto& word : params_.bad_words) {
      if (history_.completes(word)) at(word.back()) = kMinusInf;
    }
    if (hold_back) {
      for (const TokenId v : held_back_) at(v) = kMinusInf;
    }
    for (const auto& [v, bias] : params_.logit_bias) at(v) += bias;
    if (history_.has_penalties()) penalize(row);
    return row;
  }

  void penalize(std::vector<float>& row) const {
    for (const TokenCounts::Entry& entry : history_.counts().entries()) {
      float& l = row[static_cast<std::size_t>(entry.token)];
      if (history_.has_repetition() && (entry.in_prompt || entry.in_output > 0)) {
        l = Rule::repeated(l, params_.repetition_penalty);
      }
      if (entry.in_output > 0) {
        l -= params_.frequency_penalty * static_cast<float>(entry.in_output);
        l -= params_.presence_penalty;
      }
    }
  }

  static float checked_max(std::span<const float> row) {
    const RowMax m = find_max(row);
    if (!m.finite) {
      std::size_t i = 0;
      while (row[i] <= std::numeric_limits<float>::max()) ++i;
      throw Error("the logits are not finite: token " + std::to_string(i) + " has " +
                  (row[i] != row[i] ? "NaN" : "+inf") + "; allowed are finite values and -inf");
    }
    if (m.max == kMinusInf) {
      throw Error(
          "no token is left to draw: every logit is -inf after allowed_token_ids, bad_words and "
          "min_tokens");
    }
    return m.max;
  }

  /// Leaves the `count` best tokens in scratch.top, best first; returns what the filters keep.
  Cut rank(std::span<const float> row, float max, std::int32_t count, Scratch& scratch) const {
    if (greedy_) {
      scratch.top.clear();
      const auto wanted = static_cast<std::size_t>(count);
      select_top(row, Rule::kPrune ? wanted : row.size(), {}, scratch.keys);
      for (const std::uint64_t key : scratch.keys) {
        const TokenId v = token_of(key);
        scratch.top.push_back({static_cast<double>(row[static_cast<std::size_t>(v)]), v});
      }
      std::sort(scratch.top.begin(), scratch.top.end(), [](const Candidate& a, const Candidate& b) {
        return Rule::better(a.key, a.token, b.key, b.token);
      });
      if (scratch.top.size() > wanted) scratch.top.resize(wanted);
      return {};
    }
    const Cut cut = filter(row, max, scratch.keys);
    Search<Rule> search(row, max, cut, params_.temperature, scratch.top);
    search.run(seed_, Rule::position(history_.num_prompt_tokens(), history_.num_output_tokens()),
               count);
    return cut;
  }

  Cut filter(std::span<const float> row, float max, std::vector<std::uint64_t>& keys) const {
    const double inv_t = 1.0 / static_cast<double>(params_.temperature);
    Cut cut;
    if (params_.min_p > 0.0F) cut.logit = min_p_floor(max, inv_t, log_min_p_);
    const bool limited = params_.top_k > 0 && params_.top_k < vocab_size_;
    if (limited) {
      const auto k = static_cast<std::size_t>(Rule::top_k(params_.top_k));
      select_top(row, k, cut, keys);
      const std::uint64_t last = *std::min_element(keys.begin(), keys.end());
      cut = {row[static_cast<std::size_t>(token_of(last))], token_of(last)};
    }
    if (params_.top_p < 1.0F) {
      cut =
          top_p_cut<Rule>(row, max, inv_t, static_cast<double>(params_.top_p), cut, limited, keys);
    }
    return cut;
  }

  SamplingParams params_;
  std::uint64_t seed_;
  std::int32_t vocab_size_;
  std::shared_ptr<const StopVocabulary> stops_;
  History history_;
  std::vector<TokenId> held_back_;  // eos and stop ids, while min_tokens holds
  double log_min_p_ = 0.0;
  bool greedy_ = false;
  bool edits_ = false;  // some parameter edits logits at every position
};

}  // namespace smartspec::verify
