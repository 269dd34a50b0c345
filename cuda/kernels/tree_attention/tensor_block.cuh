// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the warps of a block of tensor-core attention share: the item, queries on their way into
// registers, and the sums of warps that have the same rows.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/device.cuh"
#include "kernels/tree_attention/plan.cuh"
#include "kernels/tree_attention/tensor_traits.cuh"
#include "kernels/tree_attention/tensor_warp.cuh"

namespace smartspec::cuda::tensor {

inline constexpr float kLog2E = 1.4426950408889634F;
inline constexpr float kLn2 = 0.6931471805599453F;

/// An item, and what follows from it.
struct Job {
  WorkItem item{};
  bool exists = false;
  const std::byte* k = nullptr;  // of the KV head
  const std::byte* v = nullptr;
  const BlockId* table = nullptr;
  std::int32_t num_keys = 0;  // that any row of the tile sees
  std::int32_t num_rows = 0;  // packed rows of the tile
  std::int32_t first_tile = 0;
  std::int32_t end_tile = 0;
  std::int32_t first_plain = 0;  // tiles [first_plain, end_plain) need no mask
  std::int32_t end_plain = 0;
  Scaling scaling{};
};

/// Of a row over some keys.
struct alignas(8) RowStats {
  float max = kMinusInfinity;
  float sum = 0.0F;
};

/// First in shared memory; the stages follow. What all threads know lies here, not in registers.
struct Control {
  Cursor cursor;
  Job job;
  Job next_job;
  bool is_last;
  std::uint64_t masks[kMaxRowTile];  // of the rows, for the present tile
  RowStats stats[kMaxRowTile];       // of the rows, at the end of an item
  // A ring beside the stages, one tile further ahead: bytes from the start of the cache to a key;
  // -1: beyond the keys.
  std::int64_t offsets[kMaxStages * kTileKeys];
  float joined[kWarps / 2][8][device::kWarp];  // maxima and sums that join_key_warps() hands over
};
inline constexpr int kControlBytes = (static_cast<int>(sizeof(Control)) + 127) / 128 * 128;

SMARTSPEC_DEVICE Scaling make_scaling(float factor, float soft_cap) {
  if (soft_cap > 0.0F) return {factor / soft_cap, soft_cap * kLog2E};
  return {factor * kLog2E, 0.0F};
}

struct RowPlace {
  std::int32_t row = 0;   // within the sequence
  std::int32_t head = 0;  // of the queries
};
SMARTSPEC_DEVICE RowPlace place_row(const AttentionPlan& plan, const WorkItem& item, int row) {
  const std::int32_t packed = item.row_tile * plan.tile_rows + row;
  const std::int32_t place = packed / plan.group;
  return {place, item.kv_head * plan.group + packed - place * plan.group};
}

// ---- Queries

struct alignas(16) Chunk {
  std::uint32_t words[4];
};

SMARTSPEC_DEVICE float half_of(DType type, std::uint32_t word, int index) {
  const auto bits = static_cast<std::uint16_t>(word >> (16 * index));
  return type == DType::kBFloat16 ? device::from_bf16(bits) : device::from_f16(bits);
}

/// Eight neighbouring elements.
SMARTSPEC_DEVICE void load_eight(float (&out)[8], DType type, const void* data,
                                 std::int64_t index) {
  if (type == DType::kFloat32) {
    struct alignas(16) Four {
      float x[4];
    };
    const auto* from = reinterpret_cast<const Four*>(static_cast<const float*>(data) + index);
    const Four parts[2] = {from[0], from[1]};
    SMARTSPEC_UNROLL
    for (int i = 0; i < 8; ++i) out[i] = parts[i / 4].x[i % 4];
    return;
  }
  const Chunk part =
      *reinterpret_cast<const Chunk*>(static_cast<const std::uint16_t*>(data) + index);
  SMARTSPEC_UNROLL
  for (int i = 0; i < 8; ++i) out[i] = half_of(type, part.words[i / 2], i % 2);
}

/// Q of the item, rounded to the operands' type, zeros for rows that are not there. For 8-bit keys
/// positions 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of 16 hold dims 4 t, 4 t + 2, 4 t + 1, 4 t + 3: the
/// lane whose operand holds those positions has these four neighbours of a key, and widen() parts
/// them.
template <class T>
SMARTSPEC_DEVICE void store_queries(const TreeAttention& attention, const AttentionPlan& plan,
                                    const Job& job, std::byte* to) {
  constexpr int kColumns = T::kHeadDim / 8;
  for (int i = device::thread_index(); i < T::kRowTile * kColumns; i += kThreads) {
    const int row = i / kColumns;
    const int column = i % kColumns;
    float x[8] = {};
    if (row < job.num_rows) {
      const RowPlace place = place_row(plan, job.item, row);
      load_eight(x, attention.dtype, attention.q,
                 (job.item.shape.first_row + std::int64_t{place.row}) * attention.q_stride +
                     place.head * T::kHeadDim + column * 8);
    }
    std::byte* row_start = to + row * T::kQueryStride;
    if constexpr (T::kIsByte) {
      auto* words = reinterpret_cast<std::uint32_t*>(row_start + column / 2 * 32 + column % 2 * 8);
      words[0] = pack<T>(x[0], x[2]);
      words[1] = pack<T>(x[4], x[6]);
      words[4] = pack<T>(x[1], x[3]);
      words[5] = pack<T>(x[5], x[7]);
    } else {
      *reinterpret_cast<Chunk*>(row_start + column * 16) = Chunk{
          {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7])}};
    }
  }
}

// ---- Warps of a block

/// tile becomes the sum of itself and what the warp before has left at `other`.
template <class T>
SMARTSPEC_DEVICE void fold_warp(WarpTile<T>& tile, const float* out,
                                const float (&stats)[8][device::kWarp]) {
  const int lane = device::lane_index();
  SMARTSPEC_UNROLL
  for (int r = 0; r < T::kRowBlocks; ++r) {
    SMARTSPEC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Fold fold = make_fold(tile.max[r][half], stats[4 * r + 2 * half][lane]);
      tile.max[r][half] = fold.max;
      tile.sum[r][half] = apply(fold, tile.sum[r][half], stats[4 * r + 2 * half + 1][lane]);
      SMARTSPEC_UNROLL
      for (int d = 0; d < 2 * T::kDimBlocks; ++d) {
        SMARTSPEC_UNROLL
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          const int index = (r * 2 * T::kDimBlocks + d) * 4 + i;
          tile.out[r][d][i] = apply(fold, tile.out[r][d][i], out[index * device::kWarp + lane]);
        }
      }
    }
  }
}

template <class T>
SMARTSPEC_DEVICE void leave_warp(const WarpTile<T>& tile, float* out,
                                 float (&stats)[8][device::kWarp]) {
  const int lane = device::lane_index();
  SMARTSPEC_UNROLL
  for (int r = 0; r < T::kRowBlocks; ++r) {
    SMARTSPEC_UNROLL
    for (int half = 0; half < 2; ++half) {
      stats[4 * r + 2 * half][lane] = tile.max[r][half];
      stats[4 * r + 2 * half + 1][lane] = tile.sum[r][half];
    }
    SMARTSPEC_UNROLL
    for (int d = 0; d < 2 * T::kDimBlocks; ++d) {
      SMARTSPEC_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int index = (r * 2 * T::kDimBlocks + d) * 4 + i;
        out[index * device::kWarp + lane] = tile.out[r][d][i];
      }
    }
  }
}

/// Warps that share rows hand their sums over, the upper half to the lower half, until those of
/// key warp 0 have all. All threads.
template <class T>
SMARTSPEC_DEVICE void join_key_warps(WarpTile<T>& tile, Control& control, std::byte* space,
                                     int row_warp, int key_warp) {
  constexpr int kFloats = T::kRowBlocks * T::kDimBlocks * 8 * device::kWarp;
  auto* out = reinterpret_cast<float*>(space);
  SMARTSPEC_UNROLL
  for (int half = T::kKeyWarps / 2; half > 0; half /= 2) {
    device::sync_block();
    const int index = key_warp % half * T::kRowWarps + row_warp;
    if (key_warp >= half && key_warp < 2 * half) {
      leave_warp<T>(tile, out + index * kFloats, control.joined[index]);
    }
    device::sync_block();
    if (key_warp < half) fold_warp<T>(tile, out + index * kFloats, control.joined[index]);
  }
}

}  // namespace smartspec::cuda::tensor
