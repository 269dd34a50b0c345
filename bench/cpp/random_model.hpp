// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Random bf16 weights for benchmarks: cheap to make, and as slow to stream as trained ones.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "smartspec/model.hpp"

namespace smartspec::bench {

class RandomBf16Weights {
 public:
  explicit RandomBf16Weights(const ModelConfig& config) : config_(config) {}

  std::optional<TensorView> find(std::string_view name) {
    const auto [rows, cols] = shape_of(name);
    if (rows == 0) return std::nullopt;
    std::vector<std::uint16_t>& data = tensors_[std::string(name)];
    const bool is_norm = name.find("norm") != std::string_view::npos;
    if (data.empty()) fill(data, rows * std::max<std::int64_t>(cols, 1), is_norm, cols);
    TensorView view;
    view.data = data.data();
    view.dtype = DType::kBFloat16;
    view.rank = cols == 0 ? 1 : 2;
    view.shape = {rows, cols, 0, 0};
    return view;
  }

 private:
  struct Shape {
    std::int64_t rows = 0;
    std::int64_t cols = 0;
  };

  [[nodiscard]] Shape shape_of(std::string_view name) const {
    const std::int64_t hidden = config_.hidden_size;
    const std::int64_t q = std::int64_t{config_.num_attention_heads} * config_.head_dim;
    const std::int64_t kv = std::int64_t{config_.num_key_value_heads} * config_.head_dim;
    if (name.ends_with("norm.weight")) return {hidden, 0};
    if (name.ends_with("embed_tokens.weight") || name.ends_with("lm_head.weight")) {
      return {config_.vocab_size, hidden};
    }
    if (name.ends_with("q_proj.weight")) return {q, hidden};
    if (name.ends_with("k_proj.weight") || name.ends_with("v_proj.weight")) return {kv, hidden};
    if (name.ends_with("o_proj.weight")) return {hidden, q};
    if (name.ends_with("down_proj.weight")) return {hidden, config_.intermediate_size};
    if (name.ends_with("gate_proj.weight") || name.ends_with("up_proj.weight")) {
      return {config_.intermediate_size, hidden};
    }
    return {};
  }

  void fill(std::vector<std::uint16_t>& data, std::int64_t n, bool is_norm, std::int64_t cols) {
    data.resize(static_cast<std::size_t>(n));
    const float scale = 1.0F / std::sqrt(static_cast<float>(std::max<std::int64_t>(cols, 1)));
    for (std::uint16_t& value : data) {
      state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
      const float unit = static_cast<float>(static_cast<std::int32_t>(state_ >> 32)) * 0x1p-31F;
      const float number = is_norm ? 1.0F : 1.7F * scale * unit;
      std::uint32_t bits = 0;
      std::memcpy(&bits, &number, sizeof bits);
      value = static_cast<std::uint16_t>(bits >> 16);
    }
  }

  ModelConfig config_;
  std::uint64_t state_ = 1;
  std::map<std::string, std::vector<std::uint16_t>> tensors_;
};

inline std::shared_ptr<const Model> random_model(const std::shared_ptr<Runtime>& runtime,
                                                 const ModelConfig& config) {
  auto weights = std::make_shared<RandomBf16Weights>(config);
  ModelOptions options;
  options.keep_alive = weights;
  return std::make_shared<const Model>(
      runtime, config, [&](std::string_view name) { return weights->find(name); }, options);
}

}  // namespace smartspec::bench
