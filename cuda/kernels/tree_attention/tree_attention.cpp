// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "kernels/tree_attention/tree_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "host/runtime.hpp"
#include "kernels/kv/check_kv.hpp"

namespace smartspec::cuda {
namespace {

using kernels::check_range;
using kernels::check_set;
using kernels::refuse;

constexpr std::int32_t kMaxInt = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t kAlignment = 16;

/// Rows of partial results per multiprocessor: two slots for each of two blocks of 128 rows, or for
/// more blocks of fewer rows.
constexpr std::int32_t kPartialRows = 512;

void check_options(const std::string& verb, const AttentionPlanOptions& options) {
  check_range(verb, "options.num_kv_heads", options.num_kv_heads, 1, 1024);
  check_range(verb, "options.num_heads", options.num_heads, 1, 1024);
  if (options.num_heads % options.num_kv_heads != 0) {
    refuse(verb, "options.num_heads", std::to_string(options.num_heads),
           "multiples of num_kv_heads " + std::to_string(options.num_kv_heads));
  }
  check_range(verb, "options.head_dim", options.head_dim, 1, 256);
  check_range(verb, "options.sliding_window", options.sliding_window, 0, kMaxInt);
  if (!options.batch_invariant) return;
  check_range(verb, "options.invariant_chunk", options.invariant_chunk, kTileKeys, kMaxInt);
  if (options.invariant_chunk % kTileKeys != 0) {
    refuse(verb, "options.invariant_chunk", std::to_string(options.invariant_chunk),
           "multiples of " + std::to_string(kTileKeys));
  }
  check_range(verb, "options.max_context_len", options.max_context_len, 1, kMaxInt);
}

void check_forest(const std::string& verb, const Forest& forest,
                  const AttentionPlanOptions& options) {
  check_range(verb, "forest.num_sequences", forest.num_sequences, 0, kMaxInt);
  check_range(verb, "forest.num_nodes", forest.num_nodes, 0, kMaxInt);
  // Packed rows are counted in 32 bits.
  check_range(verb, "forest.num_rows", forest.num_rows, 0,
              forest.num_sequences == 0 ? 0 : kMaxInt / options.num_heads);
  if (forest.num_sequences == 0) return;
  check_set(verb, "forest.row_offsets", forest.row_offsets);
  check_set(verb, "forest.context_lens", forest.context_lens);
  check_set(verb, "forest.node_offsets", forest.node_offsets);
  if (forest.num_nodes > 0) check_set(verb, "forest.parents", forest.parents);
  check_set(verb, "forest.block_table", forest.block_table);
  check_range(verb, "forest.block_table_stride", forest.block_table_stride, 1, kMaxInt);
}

/// Checks and lays out.
Workspace use_workspace(const std::string& verb, const AttentionPlanOptions& options,
                        const Forest& forest, void* workspace, std::size_t bytes) {
  check_options(verb, options);
  check_forest(verb, forest, options);
  check_set(verb, "workspace", workspace);
  if (reinterpret_cast<std::uintptr_t>(workspace) % kAlignment != 0) {
    refuse(verb, "workspace", "not aligned", "multiples of 16 bytes");
  }
  Workspace used = make_plan(options, forest, workspace);
  if (bytes < used.bytes) {
    refuse(verb, "workspace_bytes", std::to_string(bytes),
           "at least " + std::to_string(used.bytes));
  }
  return used;
}

/// The rows that a sequence has on average, packed, in one tile where possible: a second tile reads
/// the keys again. Tiles of 128 rows are for 16-bit caches with up to 128 dims, as their kernels:
/// others lack registers for them.
std::int32_t choose_tile_rows(const AttentionPlanOptions& options, const Forest& forest) {
  if (options.batch_invariant || forest.num_sequences == 0) return 64;
  const std::int64_t rows = (std::int64_t{forest.num_rows} + forest.num_sequences - 1) /
                            forest.num_sequences * (options.num_heads / options.num_kv_heads);
  if (rows <= 16) return 16;
  const bool fits = options.head_dim <= 128 && size_of(options.kv_dtype) > 1;
  return rows <= 64 || !fits ? 64 : 128;
}

/// Pieces that sequences of up to max_context_len keys are cut into, within the bounds.
std::int32_t count_invariant_slots(const AttentionPlanOptions& options, const Forest& forest,
                                   const AttentionPlan& plan, std::size_t slot_bytes) {
  const std::int64_t packed_rows = std::int64_t{forest.num_rows} * plan.group;
  const std::int64_t row_tiles =
      packed_rows / plan.tile_rows + std::min(forest.num_sequences, forest.num_rows);
  const std::int64_t chunks =
      (options.max_context_len + options.invariant_chunk - 1) / options.invariant_chunk;
  // Saturating: 2^31 rows of 2^10 heads of 2^25 chunks do not fit 64 bits.
  const std::int64_t pieces =
      std::min<std::int64_t>(row_tiles * plan.num_kv_heads, kNumCounters) * chunks;
  const auto allowed = static_cast<std::int64_t>(
      std::min(kMaxPartialBytes / slot_bytes, static_cast<std::size_t>(kNumCounters)));
  return static_cast<std::int32_t>(
      std::max<std::int64_t>(std::min(pieces, allowed), plan.max_blocks));
}

class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <class T>
  T* take(std::size_t count) {
    T* part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (count * sizeof(T) + 255) / 256 * 256;
    return part;
  }
  [[nodiscard]] std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

void check_attention(const TreeAttention& attention, const AttentionPlanOptions& options) {
  const std::string verb = "tree_attention";
  if (attention.dtype != DType::kFloat32 && attention.dtype != DType::kBFloat16 &&
      attention.dtype != DType::kFloat16) {
    refuse(verb, "dtype", name_of(attention.dtype), "float32, bfloat16, float16");
  }
  kernels::check_paged_kv(verb, "kv", attention.kv);
  const PagedKv& kv = attention.kv;
  if (kv.dtype != options.kv_dtype) {
    refuse(verb, "kv.dtype", name_of(kv.dtype),
           std::string(name_of(options.kv_dtype)) + " of options.kv_dtype");
  }
  check_range(verb, "kv.num_kv_heads", kv.num_kv_heads, options.num_kv_heads, options.num_kv_heads);
  check_range(verb, "kv.head_dim", kv.head_dim, options.head_dim, options.head_dim);
  if (size_of(kv.dtype) > 1 && (kv.k_scale != nullptr || kv.v_scale != nullptr)) {
    refuse(verb, kv.k_scale != nullptr ? "kv.k_scale" : "kv.v_scale", "set",
           std::string("null for ") + name_of(kv.dtype));
  }
  const std::int64_t row = std::int64_t{options.num_heads} * options.head_dim;
  check_range(verb, "q_stride", attention.q_stride, row, kMaxInt);
  check_range(verb, "out_stride", attention.out_stride, row, kMaxInt);
  check_range(verb, "sliding_window", attention.sliding_window, 0, kMaxInt);
  if (options.sliding_window != 0 && attention.sliding_window != options.sliding_window) {
    refuse(verb, "sliding_window", std::to_string(attention.sliding_window),
           std::to_string(options.sliding_window) + " of options.sliding_window");
  }
  if (!std::isfinite(attention.scale)) {
    refuse(verb, "scale", std::to_string(attention.scale), "finite numbers");
  }
  if (!std::isfinite(attention.soft_cap) || attention.soft_cap < 0.0F) {
    refuse(verb, "soft_cap", std::to_string(attention.soft_cap), "finite numbers from 0 on");
  }
}

/// Tensor-core attention moves 16 bytes at a time.
void check_aligned(const TreeAttention& attention) {
  const auto check_pointer = [](const char* field, const void* pointer) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % kAlignment != 0) {
      refuse("tree_attention", field, "not aligned", "multiples of 16 bytes");
    }
  };
  const auto check_stride = [](const char* field, std::int64_t stride, DType dtype) {
    const auto step = static_cast<std::int64_t>(kAlignment / size_of(dtype));
    if (stride % step != 0) {
      refuse("tree_attention", field, std::to_string(stride),
             "multiples of " + std::to_string(step) + " (16 bytes)");
    }
  };
  const PagedKv& kv = attention.kv;
  check_pointer("q", attention.q);
  check_pointer("out", attention.out);
  check_pointer("kv.k", kv.k);
  check_pointer("kv.v", kv.v);
  check_stride("q_stride", attention.q_stride, attention.dtype);
  check_stride("out_stride", attention.out_stride, attention.dtype);
  check_stride("kv.page_stride", kv.page_stride, kv.dtype);
  check_stride("kv.token_stride", kv.token_stride, kv.dtype);
  check_stride("kv.head_stride", kv.head_stride, kv.dtype);
}

}  // namespace

Workspace make_plan(const AttentionPlanOptions& options, const Forest& forest, void* base) {
  Workspace result;
  AttentionPlan& plan = result.plan;
  plan.batch_invariant = options.batch_invariant;
  plan.num_kv_heads = options.num_kv_heads;
  plan.group = options.num_heads / options.num_kv_heads;
  plan.head_dim = options.head_dim;
  plan.tile_rows = choose_tile_rows(options, forest);
  plan.chunk_tiles = options.batch_invariant ? options.invariant_chunk / kTileKeys : 0;
  plan.window = options.sliding_window;
  const std::int32_t rows = device_info().num_multiprocessors * kPartialRows;
  plan.max_blocks = rows / plan.tile_rows / 2;
  const auto row_floats = static_cast<std::size_t>(plan.head_dim) + 2;
  std::size_t partial_rows = static_cast<std::size_t>(rows);
  if (plan.batch_invariant) {
    const auto tile_rows = static_cast<std::size_t>(plan.tile_rows);
    plan.num_slots =
        count_invariant_slots(options, forest, plan, tile_rows * row_floats * sizeof(float));
    partial_rows = static_cast<std::size_t>(plan.num_slots) * tile_rows;
  } else {
    plan.num_slots = 2 * plan.max_blocks;
  }

  Carver carver(base);
  const auto nodes = static_cast<std::size_t>(forest.num_nodes);
  plan.counters = carver.take<std::int32_t>(kNumCounters);
  result.state.tile_offsets =
      carver.take<std::int64_t>(static_cast<std::size_t>(forest.num_sequences) + 1);
  result.state.depths = carver.take<std::int32_t>(nodes);
  result.state.ancestors = carver.take<std::uint32_t>(nodes * kAncestorWords);
  plan.partial_out = carver.take<float>(partial_rows * static_cast<std::size_t>(plan.head_dim));
  plan.partial_stats = carver.take<float>(partial_rows * 2);
  plan.tile_offsets = result.state.tile_offsets;
  result.bytes = carver.used();
  return result;
}

std::size_t attention_workspace_bytes(const AttentionPlanOptions& options,
                                      std::int32_t max_sequences, std::int32_t max_rows,
                                      std::int32_t max_nodes) {
  const std::string verb = "attention_workspace_bytes";
  check_options(verb, options);
  check_range(verb, "max_sequences", max_sequences, 0, kMaxInt);
  check_range(verb, "max_rows", max_rows, 0, kMaxInt / options.num_heads);
  check_range(verb, "max_nodes", max_nodes, 0, kMaxInt);
  const Forest largest{
      .num_sequences = max_sequences, .num_rows = max_rows, .num_nodes = max_nodes};
  return make_plan(options, largest, nullptr).bytes;
}

ForestState prepare_forest(const Forest& forest, const AttentionPlanOptions& options,
                           void* workspace, std::size_t workspace_bytes, Stream stream) {
  const Workspace used =
      use_workspace("prepare_forest", options, forest, workspace, workspace_bytes);
  launch_prepare(forest, used.plan, used.state, stream);
  return used.state;
}

void tree_attention(const TreeAttention& attention, const Forest& forest,
                    const AttentionPlanOptions& options, const ForestState& state, void* workspace,
                    std::size_t workspace_bytes, Stream stream) {
  const Workspace used =
      use_workspace("tree_attention", options, forest, workspace, workspace_bytes);
  check_attention(attention, options);
  if (state.tile_offsets != used.state.tile_offsets || state.depths != used.state.depths ||
      state.ancestors != used.state.ancestors) {
    refuse("tree_attention", "state", "not that of prepare_forest",
           "what it returned for this workspace and sizes");
  }
  if (forest.num_rows == 0) return;
  check_set("tree_attention", "q", attention.q);
  check_set("tree_attention", "out", attention.out);
  TreeAttention complete = attention;
  if (complete.scale == 0.0F) {
    complete.scale = 1.0F / std::sqrt(static_cast<float>(options.head_dim));
  }
  if (has_tensor_kernel(options.kv_dtype, options.head_dim)) {
    check_aligned(attention);
    launch_tensor_attention(complete, forest, used.plan, used.state, stream);
  } else {
    launch_simple_attention(complete, forest, used.plan, used.state, stream);
  }
}

}  // namespace smartspec::cuda
