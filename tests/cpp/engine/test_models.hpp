// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Tiny random-weight models and proposers for tests of the engine.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "smartspec/length_policy.hpp"
#include "smartspec/model.hpp"
#include "smartspec/proposer.hpp"
#include "smartspec/sampling_params.hpp"

namespace smartspec::testing {

inline ModelConfig tiny_config() {
  ModelConfig config;
  config.vocab_size = 61;
  config.hidden_size = 48;
  config.intermediate_size = 80;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 16;
  config.max_position_embeddings = 256;
  return config;
}

/// Random weights by Hugging Face name. `noise` > 0 blends in a second random draw: a draft model
/// that agrees with the target more often the smaller it is.
class RandomWeights {
 public:
  RandomWeights(const ModelConfig& config, std::uint64_t seed, float noise = 0.0F)
      : config_(config), seed_(seed), noise_(noise) {}

  std::optional<TensorView> find(std::string_view name) {
    const auto [rows, cols] = shape_of(std::string(name));
    if (rows == 0) return std::nullopt;
    std::vector<float>& data = tensors_[std::string(name)];
    if (data.empty()) fill(data, std::string(name), rows, cols);
    TensorView view;
    view.data = data.data();
    view.rank = cols == 0 ? 1 : 2;
    view.shape = {rows, cols, 0, 0};
    return view;
  }

 private:
  std::pair<std::int64_t, std::int64_t> shape_of(const std::string& name) const {
    const std::int64_t hidden = config_.hidden_size;
    const std::int64_t head_dim =
        config_.head_dim > 0 ? config_.head_dim : hidden / config_.num_attention_heads;
    const std::int64_t q = config_.num_attention_heads * head_dim;
    const std::int64_t kv = config_.num_key_value_heads * head_dim;
    const std::map<std::string, std::pair<std::int64_t, std::int64_t>> shapes = {
        {"embed_tokens.weight", {config_.vocab_size, hidden}},
        {"lm_head.weight", {config_.vocab_size, hidden}},
        {"q_proj.weight", {q, hidden}},
        {"k_proj.weight", {kv, hidden}},
        {"v_proj.weight", {kv, hidden}},
        {"o_proj.weight", {hidden, q}},
        {"gate_proj.weight", {config_.intermediate_size, hidden}},
        {"up_proj.weight", {config_.intermediate_size, hidden}},
        {"down_proj.weight", {hidden, config_.intermediate_size}},
        {"q_proj.bias", {q, 0}},
        {"k_proj.bias", {kv, 0}},
        {"v_proj.bias", {kv, 0}},
        {"q_norm.weight", {head_dim, 0}},
        {"k_norm.weight", {head_dim, 0}}};
    if (name.ends_with("norm.weight") && !name.ends_with("_norm.weight")) return {hidden, 0};
    if (name.ends_with("layernorm.weight")) return {hidden, 0};
    for (const auto& [suffix, shape] : shapes) {
      if (name.ends_with(suffix)) return shape;
    }
    return {0, 0};
  }

  void fill(std::vector<float>& data, const std::string& name, std::int64_t rows,
            std::int64_t cols) const {
    const bool is_norm = name.find("norm") != std::string::npos;
    const std::int64_t n = rows * std::max<std::int64_t>(cols, 1);
    // Logits with a few nats of spread: neither one token always, nor uniform.
    const float scale = cols == 0 ? 0.1F : 2.0F / std::sqrt(static_cast<float>(cols));
    std::mt19937_64 rng(seed_ ^ std::hash<std::string>{}(name));
    std::mt19937_64 other(seed_ + 1 + std::hash<std::string>{}(name));
    std::normal_distribution<float> normal;
    data.resize(static_cast<std::size_t>(n));
    for (float& value : data) {
      value = scale * (normal(rng) + noise_ * normal(other)) + (is_norm ? 1.0F : 0.0F);
    }
  }

  ModelConfig config_;
  std::uint64_t seed_;
  float noise_;
  std::map<std::string, std::vector<float>> tensors_;
};

inline std::shared_ptr<const Model> tiny_model(const std::shared_ptr<Runtime>& runtime, DType dtype,
                                               std::uint64_t seed, float noise = 0.0F,
                                               const ModelConfig& config = tiny_config()) {
  auto weights = std::make_shared<RandomWeights>(config, seed, noise);
  ModelOptions options;
  options.dtype = dtype;
  options.keep_alive = weights;
  return std::make_shared<const Model>(
      runtime, config, [&](std::string_view name) { return weights->find(name); }, options);
}

/// Random trees: random tokens, shapes and sizes, always sound.
class JunkProposer final : public Proposer {
 public:
  JunkProposer(std::int32_t vocab_size, std::int32_t tree_width, std::uint64_t seed)
      : vocab_size_(vocab_size), tree_width_(tree_width), rng_(seed) {}
  [[nodiscard]] std::string_view name() const override { return "junk"; }
  void propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) override {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const std::int32_t limit =
          std::min(requests[i].max_nodes, requests[i].max_depth * tree_width_);
      const auto size = static_cast<std::int32_t>(rng_() % static_cast<std::uint64_t>(limit + 1));
      for (std::int32_t count = 0; count < size; ++count) {
        const auto back =
            static_cast<std::int32_t>(rng_() % static_cast<std::uint64_t>(tree_width_));
        const std::int32_t parent = std::max(-1, trees[i].size() - 1 - back);
        const std::int32_t depth =
            parent < 0 ? 0 : trees[i].depths[static_cast<std::size_t>(parent)] + 1;
        if (depth >= requests[i].max_depth) continue;
        const auto token = static_cast<TokenId>(rng_() % static_cast<std::uint64_t>(vocab_size_));
        trees[i].add(token, parent, 0.0F);
      }
    }
  }

 private:
  std::int32_t vocab_size_;
  std::int32_t tree_width_;
  std::mt19937_64 rng_;
};

/// Chooses and prunes at random, often what it may not: no output may change.
class WildPolicy final : public LengthPolicy {
 public:
  WildPolicy(std::int32_t max_tokens, std::uint64_t seed) : max_tokens_(max_tokens), rng_(seed) {}
  [[nodiscard]] std::string_view name() const override { return "wild"; }
  [[nodiscard]] std::int32_t max_depth() const override { return max_tokens_; }
  [[nodiscard]] std::int32_t max_prefill_tokens(const StepView&, std::span<const LengthRequest>,
                                                std::int32_t wanted) override {
    return rng_() % 4 == 0 ? static_cast<std::int32_t>(rng_()) : wanted;
  }
  void plan(const StepView& step, std::span<const LengthRequest>, std::span<const Candidate>,
            std::span<DraftChoice> choices) override {
    for (DraftChoice& choice : choices) {
      choice.proposer = static_cast<std::int32_t>(rng_() % (step.proposers.size() + 1)) - 1;
      choice.depth = static_cast<std::int32_t>(rng_() % 20) - 1;
      choice.min_survival = static_cast<float>(rng_() % 10) * 0.1F;
      if (rng_() % 4 == 0) choice.claims.scale = std::numeric_limits<float>::quiet_NaN();
      if (rng_() % 4 == 0) choice.claims.offset = static_cast<float>(rng_() % 5) - 2;
    }
  }
  void allocate(const StepView&, std::span<const LengthRequest>, std::span<const DraftChoice>,
                std::span<const DraftWork>, std::span<TokenTree* const> trees) override {
    for (TokenTree* tree : trees) {
      const std::uint64_t what = rng_() % 12;
      if (what < 3) tree->truncate(static_cast<std::int32_t>(rng_() % 9));
      if (what == 3) tree->tokens.push_back(static_cast<TokenId>(rng_()));
      if (what == 4) tree->add(static_cast<TokenId>(rng_() % 100000), -1, 0.5F);
      if (what == 5 && !tree->empty()) tree->parents.back() = static_cast<std::int32_t>(rng_());
    }
  }

 private:
  std::int32_t max_tokens_;
  std::mt19937_64 rng_;
};

}  // namespace smartspec::testing
