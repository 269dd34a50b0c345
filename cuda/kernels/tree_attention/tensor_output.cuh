// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The end of an item of tensor-core attention: sums go out of registers to the caller, or to the
// blocks that share the unit. Of those the last one to come folds all; many pieces are folded in
// two levels, so that more than one multiprocessor reads them.
#pragma once

#include <cmath>
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
};

// ---- Blocks that share a unit

SMARTSPEC_DEVICE float* slot_stats(const AttentionPlan& plan, std::int32_t slot, int row) {
  return plan.partial_stats + (std::int64_t{slot} * plan.tile_rows + row) * 2;
}
template <class T>
SMARTSPEC_DEVICE float* slot_out(const AttentionPlan& plan, std::int32_t slot, int row) {
  return plan.partial_out + (std::int64_t{slot} * plan.tile_rows + row) * T::kHeadDim;
}

struct alignas(8) Pair {
  float a = 0.0F;
  float b = 0.0F;
};
struct alignas(16) Quad {
  float x[4];
};

/// visit(r, half, row) for the lane's rows that are there.
template <class T, class Visit>
SMARTSPEC_DEVICE void for_each_row(const Finish& finish, int warp_row, Visit visit) {
  SMARTSPEC_UNROLL
  for (int r = 0; r < T::kRowBlocks; ++r) {
    SMARTSPEC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + 16 * r + 8 * half + (device::thread_index() % device::kWarp) / 4;
      if (row < finish.job.num_rows) visit(r, half, row);
    }
  }
}

template <class T>
SMARTSPEC_DEVICE void store_slot(WarpTile<T>& tile, const Finish& finish, int warp_row) {
  for_each_row<T>(finish, warp_row, [&](int r, int half, int row) {
    if ((device::thread_index() % device::kWarp) % 4 == 0) {
      *reinterpret_cast<Pair*>(slot_stats(finish.plan, finish.job.item.slot, row)) =
          Pair{tile.max[r][half], tile.sum[r][half]};
    }
    float* out = slot_out<T>(finish.plan, finish.job.item.slot, row);
    for_each_pair<T>(tile.out[r], half, [&](int dim, float& a, float& b) {
      *reinterpret_cast<Pair*>(out + dim) = Pair{a, b};
    });
  });
}

/// tile becomes what the slot holds, with tile to the right of it.
template <class T>
SMARTSPEC_DEVICE void fold_slot(WarpTile<T>& tile, const Finish& finish, int warp_row) {
  for_each_row<T>(finish, warp_row, [&](int r, int half, int row) {
    const Pair stats =
        *reinterpret_cast<const Pair*>(slot_stats(finish.plan, finish.job.item.slot, row));
    const Fold fold = make_fold(stats.a, tile.max[r][half]);
    tile.max[r][half] = fold.max;
    tile.sum[r][half] = apply(fold, stats.b, tile.sum[r][half]);
    const float* out = slot_out<T>(finish.plan, finish.job.item.slot, row);
    for_each_pair<T>(tile.out[r], half, [&](int dim, float& a, float& b) {
      const Pair left = *reinterpret_cast<const Pair*>(out + dim);
      a = apply(fold, left.a, a);
      b = apply(fold, left.b, b);
    });
  });
}

// ---- Results

SMARTSPEC_DEVICE float value_factor(const Finish& finish, float sum) {
  const float* scale = finish.attention.kv.v_scale;
  return (scale == nullptr ? 1.0F : scale[finish.job.item.kv_head]) / sum;
}

/// Elements of row 0 of the pass up to those of this row and head.
SMARTSPEC_DEVICE std::int64_t out_index(const Finish& finish, int row, int head_dim) {
  const RowPlace place = place_row(finish.plan, finish.job.item, row);
  return (finish.job.item.shape.first_row + std::int64_t{place.row}) * finish.attention.out_stride +
         place.head * head_dim;
}

SMARTSPEC_DEVICE std::uint32_t pack_as(DType type, float a, float b) {
  return type == DType::kBFloat16 ? device::pack_bf16(a, b) : device::pack_f16(a, b);
}

SMARTSPEC_DEVICE void write_lse(const Finish& finish, int row, float max, float sum) {
  if (finish.attention.lse == nullptr) return;
  const RowPlace place = place_row(finish.plan, finish.job.item, row);
  const std::int64_t num_heads = finish.plan.num_kv_heads * finish.plan.group;
  finish.attention.lse[(finish.job.item.shape.first_row + place.row) * num_heads + place.head] =
      (max + device::log2_approx(sum)) * kLn2;
}

template <class T>
SMARTSPEC_DEVICE void write_tile(WarpTile<T>& tile, const Finish& finish, int warp_row) {
  const DType type = finish.attention.dtype;
  for_each_row<T>(finish, warp_row, [&](int r, int half, int row) {
    const float sum = tile.sum[r][half];
    const float factor = value_factor(finish, sum);
    const std::int64_t at = out_index(finish, row, T::kHeadDim);
    if (type == DType::kFloat32) {
      auto* out = static_cast<float*>(finish.attention.out) + at;
      for_each_pair<T>(tile.out[r], half, [&](int dim, float& a, float& b) {
        *reinterpret_cast<Pair*>(out + dim) = Pair{a * factor, b * factor};
      });
    } else {
      auto* out = static_cast<std::uint16_t*>(finish.attention.out) + at;
      for_each_pair<T>(tile.out[r], half, [&](int dim, float& a, float& b) {
        *reinterpret_cast<std::uint32_t*>(out + dim) = pack_as(type, a * factor, b * factor);
      });
    }
    if ((device::thread_index() % device::kWarp) % 4 == 0)
      write_lse(finish, row, tile.max[r][half], sum);
  });
}

SMARTSPEC_DEVICE void write_quad(const Finish& finish, std::int64_t at, const Quad& quad) {
  const DType type = finish.attention.dtype;
  if (type == DType::kFloat32) {
    *reinterpret_cast<Quad*>(static_cast<float*>(finish.attention.out) + at) = quad;
    return;
  }
  struct alignas(8) Words {
    std::uint32_t x[2];
  };
  *reinterpret_cast<Words*>(static_cast<std::uint16_t*>(finish.attention.out) + at) =
      Words{{pack_as(type, quad.x[0], quad.x[1]), pack_as(type, quad.x[2], quad.x[3])}};
}

// ---- Folding pieces

/// Pieces first, first + step, ... before end, of the item's unit.
struct Pieces {
  std::int32_t first = 0;
  std::int32_t end = 0;
  std::int32_t step = 1;
};

/// Sums of one row over some pieces, from left to right; four dims of it.
struct FoldedQuad {
  Pair stats;
  Quad out;
};

/// sink(row, dim, folded) for all rows and every fourth dim; all threads. Each has up to 16 loads
/// under way, as one multiprocessor alone must read all pieces.
template <class T, class Sink>
SMARTSPEC_DEVICE void fold_pieces(const Finish& finish, const Pieces& pieces, Sink sink) {
  constexpr int kQuads = T::kHeadDim / 4;
  constexpr int kPerThread = T::kRowTile * kQuads / kThreads;
  constexpr int kTogether = kPerThread < 8 ? kPerThread : 8;
  const int count = finish.job.num_rows * kQuads;
  const auto load = [&](FoldedQuad(&to)[kTogether], std::int32_t piece, int base) {
    const std::int32_t slot = piece_slot(finish.plan, finish.job.item, piece);
    SMARTSPEC_UNROLL
    for (int i = 0; i < kTogether; ++i) {  // beyond the end: the last one again, which is dropped
      const int index = base + i * kThreads < count ? base + i * kThreads : count - 1;
      const float* out = slot_out<T>(finish.plan, slot, index / kQuads) + index % kQuads * 4;
      const float* stats = slot_stats(finish.plan, slot, index / kQuads);
      to[i] = {*reinterpret_cast<const Pair*>(stats), *reinterpret_cast<const Quad*>(out)};
    }
  };
  for (int base = device::thread_index(); base < count; base += kThreads * kTogether) {
    FoldedQuad sums[kTogether];
    FoldedQuad next[kTogether];
    load(sums, pieces.first, base);
    load(next, pieces.first + pieces.step < pieces.end ? pieces.first + pieces.step : pieces.first,
         base);
    for (std::int32_t piece = pieces.first + pieces.step; piece < pieces.end;
         piece += pieces.step) {
      FoldedQuad ahead[kTogether];
      load(ahead, piece + pieces.step < pieces.end ? piece + pieces.step : piece, base);
      SMARTSPEC_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        const Fold fold = make_fold(sums[i].stats.a, next[i].stats.a);
        sums[i].stats = Pair{fold.max, apply(fold, sums[i].stats.b, next[i].stats.b)};
        SMARTSPEC_UNROLL
        for (int j = 0; j < 4; ++j) {
          sums[i].out.x[j] = apply(fold, sums[i].out.x[j], next[i].out.x[j]);
        }
        next[i] = ahead[i];
      }
    }
    SMARTSPEC_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      const int index = base + i * kThreads;
      if (index < count) sink(index / kQuads, index % kQuads * 4, sums[i]);
    }
  }
}

/// The sum of the pieces takes the place of the first one. All threads.
template <class T>
SMARTSPEC_DEVICE void fold_into_first(const Finish& finish, const Pieces& pieces) {
  const std::int32_t slot = piece_slot(finish.plan, finish.job.item, pieces.first);
  fold_pieces<T>(finish, pieces, [&](int row, int dim, const FoldedQuad& sum) {
    *reinterpret_cast<Quad*>(slot_out<T>(finish.plan, slot, row) + dim) = sum.out;
  });
  device::sync_block();  // all have read the first piece's statistics
  const int row = device::thread_index();
  if (row >= finish.job.num_rows) return;
  Pair stats = *reinterpret_cast<const Pair*>(slot_stats(finish.plan, slot, row));
  for (std::int32_t piece = pieces.first + pieces.step; piece < pieces.end; piece += pieces.step) {
    const Pair next = *reinterpret_cast<const Pair*>(
        slot_stats(finish.plan, piece_slot(finish.plan, finish.job.item, piece), row));
    const Fold fold = make_fold(stats.a, next.a);
    stats = Pair{fold.max, apply(fold, stats.b, next.b)};
  }
  *reinterpret_cast<Pair*>(slot_stats(finish.plan, slot, row)) = stats;
}

/// All threads.
template <class T>
SMARTSPEC_DEVICE void write_pieces(const Finish& finish, const Pieces& pieces) {
  fold_pieces<T>(finish, pieces, [&](int row, int dim, const FoldedQuad& sum) {
    const float factor = value_factor(finish, sum.stats.b);
    Quad out = sum.out;
    SMARTSPEC_UNROLL
    for (int i = 0; i < 4; ++i) out.x[i] *= factor;
    write_quad(finish, out_index(finish, row, T::kHeadDim) + dim, out);
    if (dim == 0) write_lse(finish, row, sum.stats.a, sum.stats.b);
  });
}

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

/// About the square root of the number of pieces. Batch-invariant: all, as a block that takes them
/// in turn folds them.
SMARTSPEC_DEVICE std::int32_t pieces_per_group(const AttentionPlan& plan, std::int32_t pieces) {
  if (plan.batch_invariant || 3 * plan.num_blocks > kNumCounters) return pieces;
  std::int32_t size = 4;
  while (size * size < pieces) size *= 2;
  return size;
}

/// After the slot has been stored. All threads.
template <class T>
SMARTSPEC_DEVICE void finish_piece(const Finish& finish, Control& control) {
  const WorkItem& item = finish.job.item;
  std::int32_t* counters = finish.plan.counters;
  const std::int32_t group_size = pieces_per_group(finish.plan, item.num_pieces);
  Pieces all{0, item.num_pieces, 1};
  std::int32_t num_parts = item.num_pieces;
  if (group_size < item.num_pieces) {
    const std::int32_t first = item.piece / group_size * group_size;
    const std::int32_t end =
        first + group_size < item.num_pieces ? first + group_size : item.num_pieces;
    // Counters of units are numbered by blocks, those of groups, behind them, by slots.
    std::int32_t* counter =
        counters + finish.plan.num_blocks + piece_slot(finish.plan, item, first);
    if (!is_last_to_arrive(control, counter, end - first)) return;
    fold_into_first<T>(finish, {first, end, 1});
    all.step = group_size;
    num_parts = (item.num_pieces - 1) / group_size + 1;
  }
  if (is_last_to_arrive(control, counters + item.counter, num_parts)) write_pieces<T>(finish, all);
}

/// All threads; `holds`: the warp's tile is the sum over all keys of the item.
template <class T>
SMARTSPEC_DEVICE void finish_item(WarpTile<T>& tile, const Finish& finish, Control& control,
                                  int warp_row, bool holds) {
  const WorkItem& item = finish.job.item;
  if (holds && item.ending == Ending::kInTurn && item.piece > 0) {
    fold_slot<T>(tile, finish, warp_row);
    device::sync_warp();  // all four lanes of a row have read its statistics
  }
  const bool is_complete = item.ending == Ending::kWhole ||
                           (item.ending == Ending::kInTurn && item.piece == item.num_pieces - 1);
  if (holds) {
    if (is_complete) {
      write_tile<T>(tile, finish, warp_row);
    } else {
      store_slot<T>(tile, finish, warp_row);
    }
  }
  if (item.ending == Ending::kPartial) finish_piece<T>(finish, control);
}

}  // namespace smartspec::cuda::tensor
