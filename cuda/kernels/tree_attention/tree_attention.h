// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Between the entry points of tree attention (host) and its kernels. Readable by both compilers.
//
// Work is counted in units and tiles. The num_heads / num_kv_heads query heads of a KV head are
// packed with the rows of a sequence, packed row = row * group + head in group, so that keys are
// read once for all of them. A unit is (sequence, KV head, row tile of `tile_rows` packed rows); it
// visits key tiles of kTileKeys keys. plan.cuh hands them to thread blocks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "smartspec/cuda_ops.hpp"

namespace smartspec::cuda {

inline constexpr std::int32_t kTileKeys = 64;
/// A unit that several blocks share costs a round trip through memory; do not cut finer.
inline constexpr std::int32_t kMinTilesPerBlock = 4;

/// How a pass is laid out: the same for prepare_forest and tree_attention, made by make_plan.
struct AttentionPlan {
  bool batch_invariant = false;
  std::int32_t num_kv_heads = 0;
  std::int32_t group = 0;  // query heads per KV head
  std::int32_t head_dim = 0;
  std::int32_t tile_rows = 0;    // 16, 64 or, with head_dim up to 128 and 16-bit caches, 128;
                                 // 64 in batch-invariant mode
  std::int32_t chunk_tiles = 0;  // batch-invariant: key tiles of one piece
  std::int32_t window = 0;       // of the options: tiles before it are not counted
  std::int32_t max_blocks = 0;   // of a grid
  std::int32_t num_blocks = 0;   // of the grid; the launcher sets it, at most max_blocks
  std::int32_t num_slots = 0;    // of partial results
  const std::int64_t* tile_offsets = nullptr;  // [num_sequences + 1] work before each sequence
  std::int32_t* counters = nullptr;  // [kNumCounters] pieces done of a cut unit; zero between calls
  float* partial_out = nullptr;      // [num_slots, tile_rows, head_dim]
  float* partial_stats = nullptr;    // [num_slots, tile_rows, 2] what merging needs, per row
};

/// Counters come first in the workspace and do not depend on the pass, so that passes of any size
/// find them zero.
inline constexpr std::int32_t kNumCounters = 16384;
/// Bound of the partial results in batch-invariant mode; with more pieces a block does all pieces
/// of a unit in turn, with the same result.
inline constexpr std::size_t kMaxPartialBytes = std::size_t{256} << 20;

struct Workspace {
  AttentionPlan plan{};
  ForestState state{};
  std::size_t bytes = 0;  // 256-byte aligned parts
};
/// Lays the parts out from `base` on; null: only counts, pointers stay null. The same code sizes
/// and uses the workspace. Reads the sizes of `forest` only.
[[nodiscard]] Workspace make_plan(const AttentionPlanOptions& options, const Forest& forest,
                                  void* base);

/// prepare.cu
void launch_prepare(const Forest& forest, const AttentionPlan& plan, const ForestState& state,
                    Stream stream);
/// simple.cu: any dtype, head_dim up to 256.
void launch_simple_attention(const TreeAttention& attention, const Forest& forest,
                             const AttentionPlan& plan, const ForestState& state, Stream stream);

/// tensor_dispatch.cpp. Fields are checked before; scale is set (not 0). Pointers and strides of q,
/// out, K and V are multiples of 16 bytes.
[[nodiscard]] bool has_tensor_kernel(DType kv, std::int32_t head_dim) noexcept;
void launch_tensor_attention(const TreeAttention& attention, const Forest& forest,
                             AttentionPlan plan, const ForestState& state, Stream stream);

}  // namespace smartspec::cuda
