// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Tree attention on tensor cores: what a thread block does with its items of work. Tiles of 64 keys
// are gathered from the pages into shared memory by asynchronous copies, some stages ahead, and
// multiplied there with the packed rows, which stay in registers. docs/notes has the budget.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/device.cuh"
#include "kernels/tree_attention/plan.cuh"
#include "kernels/tree_attention/tensor_block.cuh"
#include "kernels/tree_attention/tensor_output.cuh"
#include "kernels/tree_attention/tensor_traits.cuh"
#include "kernels/tree_attention/tensor_warp.cuh"

namespace smartspec::cuda::tensor {

template <class T>
struct TensorAttention {
  static constexpr int kThreads = tensor::kThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr const char* kName = "tree_attention";

  TreeAttention attention{};
  Forest forest{};
  AttentionPlan plan{};
  ForestState state{};
  ByteFormat format{};
  int num_stages = 0;

  SMARTSPEC_DEVICE void operator()() const {
    Control& control = *reinterpret_cast<Control*>(device::shared_memory());
    if (device::thread_index() == 0) {
      control.cursor = first_item(plan, forest, device::block_x());
      take_job(control, control.job);
    }
    device::sync_block();
    while (control.job.exists) {
      run_job(control);
      if (device::thread_index() == 0) control.job = control.next_job;
      device::sync_block();
    }
  }

 private:
  SMARTSPEC_DEVICE static std::byte* stage(int index) {
    return device::shared_memory() + kControlBytes + index * T::kStageBytes;
  }
  SMARTSPEC_DEVICE static int row_warp() { return device::warp_index() % T::kRowWarps; }
  SMARTSPEC_DEVICE static int key_warp() { return device::warp_index() / T::kRowWarps; }
  SMARTSPEC_DEVICE static int warp_row() { return row_warp() * T::kRowBlocks * 16; }

  /// One thread.
  SMARTSPEC_DEVICE void take_job(Control& control, Job& job) const {
    job.exists = next_item(plan, forest, control.cursor, job.item);
    if (!job.exists) return;
    const WorkItem& item = job.item;
    const std::int64_t head = item.kv_head * attention.kv.head_stride * T::kElementBytes;
    job.k = static_cast<const std::byte*>(attention.kv.k) + head;
    job.v = static_cast<const std::byte*>(attention.kv.v) + head;
    job.table = forest.block_table + item.sequence * forest.block_table_stride;
    const std::int32_t rest = item.shape.num_rows * plan.group - item.row_tile * plan.tile_rows;
    job.num_rows = rest < plan.tile_rows ? rest : plan.tile_rows;
    const TileRange rows = tile_row_range(plan, item.shape, item.row_tile);
    const std::int32_t window = attention.sliding_window;
    const std::int32_t last_key = own_key(item.shape, rows.end - 1);
    job.num_keys = last_key + 1;
    const std::int32_t in_window = first_key_in_window(item.shape, rows.first, window) / kTileKeys;
    job.first_tile = item.first_key_tile > in_window ? item.first_key_tile : in_window;
    job.end_tile = item.end_key_tile;
    // What needs_mask() says tile by tile.
    job.first_plain = window > 0 && last_key >= window ? (last_key - window) / kTileKeys + 1 : 0;
    job.end_plain = (rows.first < item.shape.num_causal ? item.shape.context_len + rows.first + 1
                                                        : item.shape.prefix_len) /
                    kTileKeys;
    float factor = attention.scale;
    if (attention.kv.k_scale != nullptr) factor *= attention.kv.k_scale[item.kv_head];
    job.scaling = make_scaling(factor, attention.soft_cap);
  }

  /// -1: beyond the keys.
  SMARTSPEC_DEVICE BlockId page_of(const Job& job, std::int32_t key) const {
    return key < job.num_keys ? job.table[key / attention.kv.page_size] : -1;
  }
  /// Bytes from the start of the cache to a key in `page`.
  SMARTSPEC_DEVICE std::int64_t key_offset(BlockId page, std::int32_t key) const {
    if (page < 0) return -1;
    return (page * attention.kv.page_stride +
            key % attention.kv.page_size * attention.kv.token_stride) *
           T::kElementBytes;
  }

  /// Starts the copies of a tile. Neighbouring threads take neighbouring parts of a key; where a
  /// key has no power of two of them, some threads rest.
  SMARTSPEC_DEVICE static void copy_tile(const Job& job, const std::int64_t* offsets,
                                         std::byte* to) {
    constexpr unsigned kKeys = kThreads / T::kKeyChunks;  // of one turn
    const auto thread = static_cast<unsigned>(device::thread_index());
    const unsigned first = thread / T::kKeyChunks;
    const unsigned column = thread % T::kKeyChunks * 16;
    if (kKeys * T::kKeyChunks < kThreads && first >= kKeys) return;
    offsets += first;
    to += first * T::kKeyStride + column;
    const std::byte* k = job.k + column;
    const std::byte* v = job.v + column;
    SMARTSPEC_UNROLL
    for (unsigned key = 0; key < kTileKeys; key += kKeys) {
      if (kTileKeys % kKeys != 0 && first + key >= kTileKeys) break;
      const std::int64_t offset = offsets[key];
      const bool valid = offset >= 0;
      const std::int64_t from = valid ? offset : 0;
      device::copy_async_16(to + key * T::kKeyStride, k + from, valid);
      device::copy_async_16(to + key * T::kKeyStride + T::kTileBytes, v + from, valid);
    }
  }

  SMARTSPEC_DEVICE void wait_for_tile() const {
    if (num_stages == 2) {
      device::wait_copies<0>();
    } else if (num_stages == 3) {
      device::wait_copies<1>();
    } else {
      device::wait_copies<2>();
    }
    device::sync_block();
  }

  /// Which keys of the tile each row sees, to where add_tile() looks. One thread per row.
  SMARTSPEC_DEVICE void store_masks(Control& control, const Job& job, std::int32_t key_tile) const {
    const int row = device::thread_index();
    if (row >= T::kRowTile) return;
    std::uint64_t mask = 0;
    if (row < job.num_rows) {
      const RowView seen = load_row(job.item.shape, state, place_row(plan, job.item, row).row,
                                    attention.sliding_window);
      mask = visible_keys(seen, key_tile * kTileKeys);
    }
    control.masks[row] = mask;
  }

  /// Fills all stages but the last one, which holds Q until the first tile is there.
  SMARTSPEC_DEVICE void start_job(Control& control, const Job& job, WarpTile<T>& tile) const {
    for (int i = device::thread_index(); i < num_stages * kTileKeys; i += kThreads) {
      const std::int32_t key = job.first_tile * kTileKeys + i;
      control.offsets[i] = key_offset(page_of(job, key), key);
    }
    device::sync_block();
    for (int i = 0; i < num_stages - 1; ++i) {
      if (job.first_tile + i < job.end_tile) {
        copy_tile(job, control.offsets + i * kTileKeys, stage(i));
      }
      device::commit_copies();
    }
    std::byte* queries = stage(num_stages - 1);
    store_queries<T>(attention, plan, job, queries);
    device::sync_block();
    load_queries<T>(tile, queries + warp_row() * T::kQueryStride);
    clear<T>(tile);
  }

  SMARTSPEC_DEVICE void run_job(Control& control) const {
    const Job& job = control.job;
    WarpTile<T> tile;
    start_job(control, job, tile);
    if (device::thread_index() == 0) take_job(control, control.next_job);  // copies are under way
    add_tiles(control, job, tile);
    add_lanes<T>(tile);
    if constexpr (T::kKeyWarps > 1) {
      join_key_warps<T>(tile, control, stage(0), row_warp(), key_warp());
    }
    const Finish finish{attention, plan, job, control, reinterpret_cast<float*>(stage(0))};
    device::sync_block();  // all have done with the stages
    if (key_warp() == 0) store_tile<T>(tile, finish, warp_row());
    device::sync_block();
    finish_item<T>(finish);
    device::sync_block();
  }

  SMARTSPEC_DEVICE void add_tiles(Control& control, const Job& job, WarpTile<T>& tile) const {
    int slot = 0;  // of the tile, and of its offsets
    for (std::int32_t i = job.first_tile; i < job.end_tile; ++i) {
      wait_for_tile();
      const int before = slot == 0 ? num_stages - 1 : slot - 1;  // free since the barrier
      if (i + num_stages - 1 < job.end_tile) {
        copy_tile(job, control.offsets + before * kTileKeys, stage(before));
      }
      device::commit_copies();
      // Looked up now, stored after the products: the block table's latency is not waited for.
      BlockId page = -1;
      if (device::thread_index() < kTileKeys) {
        page = page_of(job, (i + num_stages) * kTileKeys + device::thread_index());
      }
      const bool plain = i >= job.first_plain && i < job.end_plain;
      if (!plain) {
        store_masks(control, job, i);
        device::sync_block();
      }
      if (warp_row() < job.num_rows) {
        add_tile<T>(tile, stage(slot), key_warp() * T::kWarpKeys, job.scaling,
                    plain ? nullptr : control.masks + warp_row(), format);
      }
      if (device::thread_index() < kTileKeys) {
        control.offsets[slot * kTileKeys + device::thread_index()] =
            key_offset(page, (i + num_stages) * kTileKeys + device::thread_index());
      }
      slot = slot + 1 == num_stages ? 0 : slot + 1;
    }
  }
};

}  // namespace smartspec::cuda::tensor
