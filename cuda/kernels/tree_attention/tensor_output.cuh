// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The end of an item of tensor-core attention. The sums of a block go through shared memory, and
// from there on by rows: to the caller, or to a slot when the unit is shared. Of the blocks that
// share a unit the last one to come folds all slots; many are folded in two levels, so that more
// than one multiprocessor reads them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/device.cuh"
#include "kernels/tree_attention/plan.cuh"
#include "kernels/tree_attention/tensor_block.cuh"
#include "kernels/tree_attention/tensor_traits.cuh"
#include "kernels/tree_attention/tensor_warp.cuh"

namespace smartspec::cuda::tensor {

/// What the end of an item needs.
struct Finish {
  const TreeAttention& attention;
  const AttentionPlan& plan;
  const Job& job;
  Control& control;
  float* tile;  // [kRowTile, kTileStride] in shared memory
};

struct alignas(16) Quad {
  float x[4] = {};
};

/// Sums of a row over some keys; four dims of it.
struct RowQuad {
  RowStats stats;
  Quad out;
};

/// A block's sums leave the registers. All warps that hold some.
template <class T>
SMARTSPEC_DEVICE void store_tile(const WarpTile<T>& tile, const Finish& finish, int warp_row) {
  SMARTSPEC_UNROLL
  for (int r = 0; r < T::kRowBlocks; ++r) {
    SMARTSPEC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + 16 * r + 8 * half + device::lane_index() / 4;
      float* out = finish.tile + row * T::kTileStride;
      for_each_pair<T>(tile.out[r], half, [&](int dim, float a, float b) {
        out[dim] = a;
        out[dim + 1] = b;
      });
      if (device::lane_index() % 4 == 0) {
        finish.control.stats[row] = {tile.max[r][half], tile.sum[r][half]};
      }
    }
  }
}

// ---- Slots

SMARTSPEC_DEVICE RowStats* slot_stats(const Finish& finish, std::int32_t slot, int row) {
  return reinterpret_cast<RowStats*>(finish.plan.partial_stats) +
         (std::int64_t{slot} * finish.plan.tile_rows + row);
}
template <class T>
SMARTSPEC_DEVICE Quad* slot_quad(const Finish& finish, std::int32_t slot, int row, int dim) {
  return reinterpret_cast<Quad*>(
      finish.plan.partial_out +
      ((std::int64_t{slot} * finish.plan.tile_rows + row) * T::kHeadDim + dim));
}

/// left becomes left and right together.
SMARTSPEC_DEVICE void fold(RowStats& left, const RowStats& right) {
  const Fold factors = make_fold(left.max, right.max);
  left = {factors.max, apply(factors, left.sum, right.sum)};
}
SMARTSPEC_DEVICE void fold(RowQuad& left, const RowQuad& right) {
  const Fold factors = make_fold(left.stats.max, right.stats.max);
  left.stats = {factors.max, apply(factors, left.stats.sum, right.stats.sum)};
  SMARTSPEC_UNROLL
  for (int i = 0; i < 4; ++i) left.out.x[i] = apply(factors, left.out.x[i], right.out.x[i]);
}

// ---- Results

SMARTSPEC_DEVICE void write_quad(const Finish& finish, std::int64_t at, const Quad& quad) {
  const DType type = finish.attention.dtype;
  if (type == DType::kFloat32) {
    *reinterpret_cast<Quad*>(static_cast<float*>(finish.attention.out) + at) = quad;
    return;
  }
  struct alignas(8) Words {
    std::uint32_t x[2];
  };
  const bool is_bf16 = type == DType::kBFloat16;
  *reinterpret_cast<Words*>(static_cast<std::uint16_t*>(finish.attention.out) + at) =
      is_bf16
          ? Words{{device::pack_bf16(quad.x[0], quad.x[1]),
                   device::pack_bf16(quad.x[2], quad.x[3])}}
          : Words{{device::pack_f16(quad.x[0], quad.x[1]), device::pack_f16(quad.x[2], quad.x[3])}};
}

template <class T>
SMARTSPEC_DEVICE void write_row_quad(const Finish& finish, int row, int dim, RowQuad sum) {
  const TreeAttention& attention = finish.attention;
  const WorkItem& item = finish.job.item;
  const RowPlace place = place_row(finish.plan, item, row);
  const std::int64_t pass_row = item.shape.first_row + std::int64_t{place.row};
  const float* scale = attention.kv.v_scale;
  const float factor = (scale == nullptr ? 1.0F : scale[item.kv_head]) / sum.stats.sum;
  SMARTSPEC_UNROLL
  for (int i = 0; i < 4; ++i) sum.out.x[i] *= factor;
  write_quad(finish, pass_row * attention.out_stride + place.head * T::kHeadDim + dim, sum.out);
  if (dim == 0 && attention.lse != nullptr) {
    attention.lse[pass_row * finish.plan.num_kv_heads * finish.plan.group + place.head] =
        (sum.stats.max + device::log2_approx(sum.stats.sum)) * kLn2;
  }
}

// ---- Folding

/// What is summed up, from left to right, and where to.
struct Gather {
  std::int32_t first = 0;  // pieces first, first + step, ... before end, in their slots
  std::int32_t end = 0;
  std::int32_t step = 1;
  bool with_tile = false;  // then the block's own tile
  bool to_rows = false;    // the caller's, else to `slot`
  std::int32_t slot = 0;   // may be that of the first piece
};

/// Of all rows. All threads; each has up to 16 loads under way, as a single multiprocessor must
/// read many pieces fast.
template <class T>
SMARTSPEC_DEVICE void gather_quads(const Finish& finish, const Gather& gather) {
  constexpr int kQuads = T::kHeadDim / 4;
  constexpr int kPerThread = T::kRowTile * kQuads / kThreads;
  constexpr int kTogether = kPerThread < 8 ? kPerThread : 8;
  const int count = finish.job.num_rows * kQuads;
  SMARTSPEC_KEEP_LOOP
  for (int base = device::thread_index(); base < count; base += kThreads * kTogether) {
    // Beyond the end: the last one again, which is then dropped.
    const auto index = [&](int i) {
      return base + i * kThreads < count ? base + i * kThreads : count - 1;
    };
    const auto load = [&](RowQuad(&to)[kTogether], std::int32_t piece) {
      if (piece >= gather.end) return;
      const std::int32_t slot = piece_slot(finish.plan, finish.job.item, piece);
      SMARTSPEC_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        const int row = index(i) / kQuads;
        to[i] = {*slot_stats(finish, slot, row),
                 *slot_quad<T>(finish, slot, row, index(i) % kQuads * 4)};
      }
    };
    RowQuad sums[kTogether] = {};
    RowQuad next[kTogether] = {};
    load(next, gather.first);
    SMARTSPEC_KEEP_LOOP
    for (std::int32_t piece = gather.first; piece < gather.end; piece += gather.step) {
      RowQuad ahead[kTogether] = {};
      load(ahead, piece + gather.step);
      SMARTSPEC_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        fold(sums[i], next[i]);
        next[i] = ahead[i];
      }
    }
    SMARTSPEC_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      const int row = index(i) / kQuads;
      const int dim = index(i) % kQuads * 4;
      if (gather.with_tile) {
        fold(sums[i], {finish.control.stats[row],
                       *reinterpret_cast<Quad*>(finish.tile + row * T::kTileStride + dim)});
      }
      if (base + i * kThreads >= count) continue;
      if (gather.to_rows) {
        write_row_quad<T>(finish, row, dim, sums[i]);
      } else {
        *slot_quad<T>(finish, gather.slot, row, dim) = sums[i].out;
      }
    }
  }
}

/// All threads, together.
template <class T>
SMARTSPEC_DEVICE void gather_rows(const Finish& finish, const Gather& gather) {
  gather_quads<T>(finish, gather);
  if (gather.to_rows) return;
  device::sync_block();  // statistics in `slot` have been read
  const int row = device::thread_index();
  if (row >= finish.job.num_rows) return;
  RowStats stats;
  for (std::int32_t piece = gather.first; piece < gather.end; piece += gather.step) {
    fold(stats, *slot_stats(finish, piece_slot(finish.plan, finish.job.item, piece), row));
  }
  if (gather.with_tile) fold(stats, finish.control.stats[row]);
  *slot_stats(finish, gather.slot, row) = stats;
}

// ---- Blocks that share a unit

/// Tells that the block's part is done; true when it is the last of `num_parts`, which may then
/// read all of them. The counter is left at zero. All threads.
SMARTSPEC_DEVICE bool is_last_to_arrive(Control& control, std::int32_t* counter,
                                        std::int32_t num_parts) {
  device::fence_device();
  device::sync_block();
  if (device::thread_index() == 0) {
    control.is_last = device::atomic_add(counter, 1) == num_parts - 1;
    if (control.is_last) *counter = 0;
  }
  device::sync_block();
  if (!control.is_last) return false;
  device::fence_device();
  return true;
}

/// The square root of the number of pieces: both levels are equally long. Batch-invariant: all, as
/// a block that takes them in turn folds them.
SMARTSPEC_DEVICE std::int32_t pieces_per_group(const AttentionPlan& plan, std::int32_t pieces) {
  if (plan.batch_invariant || pieces <= 4 || 3 * plan.num_blocks > kNumCounters) return pieces;
  std::int32_t size = 3;
  while (size * size < pieces) ++size;
  return size;
}

/// What a block does with its own tile.
SMARTSPEC_DEVICE Gather gather_tile(const WorkItem& item) {
  Gather gather;
  gather.with_tile = true;
  gather.to_rows = item.ending == Ending::kWhole ||
                   (item.ending == Ending::kInTurn && item.piece == item.num_pieces - 1);
  gather.slot = item.slot;
  if (item.ending == Ending::kInTurn && item.piece > 0) {
    gather.end = 1;  // all pieces so far are in the block's only slot
  }
  return gather;
}

/// After store_tile(). All threads.
template <class T>
SMARTSPEC_DEVICE void finish_item(const Finish& finish) {
  const WorkItem& item = finish.job.item;
  const std::int32_t group_size = pieces_per_group(finish.plan, item.num_pieces);
  Gather gather = gather_tile(item);
  // Own tile; when it is a piece: the group's pieces; the groups. The same code for all three.
  SMARTSPEC_KEEP_LOOP
  for (int level = group_size < item.num_pieces ? 0 : 1;; ++level) {
    gather_rows<T>(finish, gather);
    if (item.ending != Ending::kPartial || level == 2) return;
    std::int32_t* counter = finish.plan.counters + item.counter;
    std::int32_t num_parts = (item.num_pieces - 1) / group_size + 1;
    gather = {0, item.num_pieces, group_size, false, true, 0};
    if (level == 0) {
      gather.first = item.piece / group_size * group_size;
      const std::int32_t end = gather.first + group_size;
      gather.end = end < item.num_pieces ? end : item.num_pieces;
      gather.step = 1;
      gather.to_rows = false;
      gather.slot = piece_slot(finish.plan, item, gather.first);
      // Counters of units are numbered by blocks; those of groups, behind them, by slots.
      counter = finish.plan.counters + finish.plan.num_blocks + gather.slot;
      num_parts = gather.end - gather.first;
    } else if (group_size == item.num_pieces) {
      gather.step = 1;
      num_parts = item.num_pieces;
    }
    if (!is_last_to_arrive(finish.control, counter, num_parts)) return;
  }
}

}  // namespace smartspec::cuda::tensor
