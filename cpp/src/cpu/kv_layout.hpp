// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Where one token's K and V lie in the CPU's paged cache.
//
//   K: [block][kv head][block_size / 16 groups][steps][16 tokens][pair], the panels of kernels.hpp
//   V: [block][kv head][block_size tokens][padded_dim], padding zero
// A group of 16 keys is one panel: scores of 16 keys come out side by side, and no cached byte is
// ever reordered.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/backend.hpp"
#include "cpu/kernels.hpp"

namespace smartspec::cpu {

class KvLayout {
 public:
  explicit KvLayout(const KvMemory& kv) noexcept
      : KvLayout(kv.dtype, kv.block_size, kv.num_kv_heads, kv.head_dim) {}
  KvLayout(DType dtype, std::int32_t block_size, std::int32_t num_kv_heads,
           std::int32_t head_dim) noexcept
      : bf16_(dtype == DType::kBFloat16),
        block_size_(block_size),
        num_kv_heads_(num_kv_heads),
        head_dim_(head_dim),
        padded_dim_((head_dim + kLanes - 1) / kLanes * kLanes),
        steps_(panel_steps(head_dim, bf16_)) {}

  [[nodiscard]] bool bf16() const noexcept { return bf16_; }
  [[nodiscard]] std::int32_t padded_dim() const noexcept { return padded_dim_; }
  [[nodiscard]] std::int64_t steps() const noexcept { return steps_; }
  [[nodiscard]] std::int64_t group_bytes() const noexcept { return steps_ * kLineBytes; }
  [[nodiscard]] std::int64_t value_bytes() const noexcept {
    return std::int64_t{padded_dim_} * (bf16_ ? 2 : 4);
  }
  [[nodiscard]] std::int64_t k_block_bytes() const noexcept {
    return num_kv_heads_ * (block_size_ / kLanes) * group_bytes();
  }
  [[nodiscard]] std::int64_t v_block_bytes() const noexcept {
    return std::int64_t{num_kv_heads_} * block_size_ * value_bytes();
  }

  /// Byte offset of the key panel that holds token `offset` of a block.
  [[nodiscard]] std::int64_t key_group(BlockId block, std::int32_t head,
                                       std::int32_t offset) const noexcept {
    return block * k_block_bytes() +
           (std::int64_t{head} * (block_size_ / kLanes) + offset / kLanes) * group_bytes();
  }
  [[nodiscard]] std::int64_t value_row(BlockId block, std::int32_t head,
                                       std::int32_t offset) const noexcept {
    return block * v_block_bytes() + (std::int64_t{head} * block_size_ + offset) * value_bytes();
  }

  /// Writes one token's K [head_dim] into lane offset % 16 of its group; `narrow` holds it as bf16
  /// when the cache is bf16.
  void write_key(void* group, std::int32_t lane, const float* k,
                 const std::uint16_t* narrow) const noexcept;
  void copy_key(const void* from_group, std::int32_t from_lane, void* to_group,
                std::int32_t to_lane) const noexcept;

 private:
  bool bf16_;
  std::int32_t block_size_;
  std::int32_t num_kv_heads_;
  std::int32_t head_dim_;
  std::int32_t padded_dim_;
  std::int64_t steps_;
};

}  // namespace smartspec::cpu
