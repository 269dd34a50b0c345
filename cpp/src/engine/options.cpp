// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include "engine/engine_core.hpp"

namespace smartspec {
namespace {

void check_range(const char* field, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value >= low && value <= high) return;
  throw std::invalid_argument(std::string(field) + " must be in [" + std::to_string(low) + ", " +
                              std::to_string(high) + "], got " + std::to_string(value));
}

constexpr std::int64_t kMaxBlocks = std::int64_t{1} << 24;

}  // namespace

EngineOptions resolve_options(const EngineOptions& options, const Model& model) {
  EngineOptions resolved = options;
  const ModelConfig& config = model.config();
  check_range("max_num_seqs", options.max_num_seqs, 1, 4096);
  check_range("max_num_batched_tokens", options.max_num_batched_tokens, options.max_num_seqs,
              1 << 20);
  check_range("block_size", options.block_size, 16, 4096);
  if (options.block_size % 16 != 0) {
    throw std::invalid_argument("block_size must be a multiple of 16, got " +
                                std::to_string(options.block_size));
  }
  check_range("num_kv_blocks", options.num_kv_blocks, 0, kMaxBlocks);
  check_range("kv_memory_bytes", options.kv_memory_bytes, 1, std::int64_t{1} << 50);
  if (!(options.aging_seconds >= 0 && options.aging_seconds <= 1e9)) {
    throw std::invalid_argument("aging_seconds must be in [0, 1e9], got " +
                                std::to_string(options.aging_seconds));
  }
  check_range("max_model_len", options.max_model_len, 0, config.max_position_embeddings);
  if (options.max_model_len == 1) {
    throw std::invalid_argument("max_model_len must leave room for one output token: at least 2");
  }
  if (!resolved.kv_dtype) resolved.kv_dtype = model.dtype();
  if (*resolved.kv_dtype != DType::kFloat32 && *resolved.kv_dtype != DType::kBFloat16) {
    throw std::invalid_argument(std::string("kv_dtype must be float32 or bfloat16, got ") +
                                name_of(*resolved.kv_dtype));
  }
  const std::int64_t block_size = options.block_size;
  std::int64_t length =
      options.max_model_len > 0 ? options.max_model_len : config.max_position_embeddings;
  const std::int64_t blocks_per_request = (length + block_size - 1) / block_size;
  if (resolved.num_kv_blocks == 0) {
    const std::int64_t block_bytes = model.bytes_per_kv_token(*resolved.kv_dtype) * block_size;
    const std::int64_t affordable =
        std::max<std::int64_t>(options.kv_memory_bytes / block_bytes, 1);
    resolved.num_kv_blocks = static_cast<std::int32_t>(
        std::min({blocks_per_request * options.max_num_seqs, affordable, kMaxBlocks}));
  }
  const std::int64_t capacity = resolved.num_kv_blocks * block_size;
  if (options.max_model_len > capacity) {
    throw std::invalid_argument("max_model_len " + std::to_string(options.max_model_len) +
                                " does not fit into " + std::to_string(resolved.num_kv_blocks) +
                                " KV blocks of " + std::to_string(block_size) +
                                " tokens: lower max_model_len to at most " +
                                std::to_string(capacity) + " or raise num_kv_blocks");
  }
  resolved.max_model_len = static_cast<std::int32_t>(std::min(length, capacity));
  if (!resolved.clock) {
    resolved.clock = [] {
      const auto now = std::chrono::steady_clock::now().time_since_epoch();
      return std::chrono::duration<double>(now).count();
    };
  }
  return resolved;
}

}  // namespace smartspec
