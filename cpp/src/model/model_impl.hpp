// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What a Model holds: weights in the device's layout. Immutable after construction.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.hpp"
#include "smartspec/model.hpp"

namespace smartspec {

/// Vectors are f32 on the device; an empty buffer means the model has none.
struct LayerWeights {
  Buffer input_norm;  // [hidden]
  PackedLinear qkv;   // q, k, v one behind the other
  Buffer qkv_bias;
  Buffer q_norm;  // [head_dim]
  Buffer k_norm;  // [head_dim]
  PackedLinear output;
  Buffer output_bias;
  Buffer post_attention_norm;  // [hidden]
  PackedLinear gate_up;        // gate, up
  Buffer gate_up_bias;
  PackedLinear down;
  Buffer down_bias;
  std::int32_t sliding_window = 0;  // 0: full attention
};

struct Model::Impl {
  std::shared_ptr<Runtime> runtime;  // first: outlives the buffers it made
  ModelConfig config;                // validated, head_dim filled in
  DType dtype = DType::kFloat32;
  std::shared_ptr<void> keep_alive;  // set while `embedding` lies in the caller's memory
  Buffer embedding_storage;          // empty while `embedding` lies in the caller's memory
  const void* embedding = nullptr;   // [vocab, hidden], dtype
  std::vector<LayerWeights> layers;
  Buffer final_norm;  // [hidden]
  PackedLinear lm_head;
  std::int64_t num_parameters = 0;

  [[nodiscard]] std::int32_t q_size() const noexcept {
    return config.num_attention_heads * config.head_dim;
  }
  [[nodiscard]] std::int32_t kv_size() const noexcept {
    return config.num_key_value_heads * config.head_dim;
  }
  [[nodiscard]] std::int32_t qkv_size() const noexcept { return q_size() + 2 * kv_size(); }
};

}  // namespace smartspec
