// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the entry points (kv.cpp) hand to the kernels once everything is checked: bytes and units.
#pragma once

#include <cstddef>
#include <cstdint>

#include "smartspec/cuda_ops.hpp"

struct CUstream_st;

namespace smartspec::cuda::kernels {

inline constexpr std::int32_t kMaxKvLayers = 128;

/// K and V of every layer: entry 2 * layer is K, the next one V. 2 KB, passed by value.
struct KvBases {
  std::byte* bases[2 * kMaxKvLayers] = {};
  std::int32_t count = 0;
};

struct AppendJob {
  AppendKv append{};
  std::int32_t run = 1;      // elements of a thread in either half of a head: 16 bytes, or 1
  std::int32_t q_heads = 0;  // 0: nothing to rotate
};
/// `job.run` is 16 / size_of(dtype) when everything is aligned to that, else 1.
void launch_append(const AppendJob& job, Stream stream);

/// Tokens of one cache shape. A column is one unit of a token's K or V.
struct MoveJob {
  KvBases kv{};
  std::int64_t page_stride = 0;   // bytes
  std::int64_t token_stride = 0;  // bytes
  std::int64_t head_stride = 0;   // bytes
  std::int32_t page_size = 0;
  std::int32_t num_columns = 0;   // units of a token, all heads
  std::int32_t head_columns = 0;  // units of a head
  const SlotId* sources = nullptr;
  const SlotId* destinations = nullptr;
  const std::int32_t* group_offsets = nullptr;
  std::int32_t num_moves = 0;
  std::int32_t num_groups = 0;
};
/// `unit`: 1, 2, 4 or 16 bytes; all addresses and strides are multiples of it.
void launch_move(const MoveJob& job, std::int32_t unit, Stream stream);

/// Pages as units in the cache's own order: unit u lies at
/// u / (inner * run) * outer_stride + u / run % inner * inner_stride + u % run * unit bytes.
struct PageJob {
  KvBases kv{};
  std::int64_t page_stride = 0;   // bytes
  std::int64_t outer_stride = 0;  // bytes
  std::int64_t inner_stride = 0;  // bytes
  std::int32_t inner = 1;
  std::int32_t run = 0;  // units that lie together; page_units: the page is dense
  std::int32_t page_units = 0;
  const BlockId* sources = nullptr;       // null: from `host`
  const BlockId* destinations = nullptr;  // null: to `host`
  std::byte* host = nullptr;
  std::int32_t num_pages = 0;
};
void launch_pages(const PageJob& job, std::int32_t unit, Stream stream);

}  // namespace smartspec::cuda::kernels
