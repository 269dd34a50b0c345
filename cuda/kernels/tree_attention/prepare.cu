// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What a pass needs to know about its trees, for all layers, in one launch: block 0 sums up the
// work, block 1 + s climbs from every node of sequence s to its root. Reads each parent and length
// once; a tree of depth d costs d dependent reads of shared memory.
#include "common/launch.cuh"
#include "kernels/tree_attention/plan.cuh"

namespace smartspec::cuda {
namespace {

struct PrepareForest {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr const char* kName = "prepare_forest";
  static constexpr int kWarps = kThreads / device::kWarp;
  static constexpr std::size_t kSharedBytes = kMaxTreeNodes * sizeof(std::int32_t);
  /// Sequences with more row tiles are counted by a warp each.
  static constexpr std::int32_t kFewTiles = 8;

  Forest forest;
  AttentionPlan plan;
  ForestState state;

  SMARTSPEC_DEVICE void operator()() const {
    if (device::block_x() == 0) {
      sum_work();
    } else {
      climb(device::block_x() - 1);
    }
  }

  SMARTSPEC_DEVICE void climb(std::int32_t sequence) const {
    const std::int64_t first = forest.node_offsets[sequence];
    const auto count = static_cast<std::int32_t>(forest.node_offsets[sequence + 1] - first);
    if (count == 0) return;
    auto* parents = reinterpret_cast<std::int32_t*>(device::shared_memory());
    for (int i = device::thread_index(); i < count; i += kThreads) {
      parents[i] = forest.parents[first + i];
    }
    device::sync_block();
    for (int i = device::thread_index(); i < count; i += kThreads) {
      climb_node(parents, i, first + i);
    }
  }

  /// Parents come before their children, so words of the set are met from the last to the first.
  SMARTSPEC_DEVICE void climb_node(const std::int32_t* parents, std::int32_t start,
                                   std::int64_t node) const {
    std::uint32_t* set = state.ancestors + node * kAncestorWords;
    std::int32_t word = kAncestorWords - 1;
    std::uint32_t bits = 0;
    std::int32_t length = 0;
    for (std::int32_t at = start; at >= 0; ++length) {
      for (; word > at / 32; --word) {
        set[word] = bits;
        bits = 0;
      }
      bits |= 1U << (at % 32);
      const std::int32_t parent = parents[at];
      at = parent < at ? parent : -1;  // a wrong parent must not hang the device
    }
    for (; word >= 0; --word) {
      set[word] = bits;
      bits = 0;
    }
    state.depths[node] = length - 1;
  }

  SMARTSPEC_DEVICE void sum_work() const {
    auto* warp_sums = reinterpret_cast<std::int64_t*>(device::shared_memory());
    if (device::thread_index() == 0) state.tile_offsets[0] = 0;
    std::int64_t before = 0;
    for (std::int32_t first = 0; first < forest.num_sequences; first += kThreads) {
      const std::int32_t sequence = first + device::thread_index();
      std::int64_t sum = work_of(sequence);
      for (int delta = 1; delta < device::kWarp; delta *= 2) {
        const std::int64_t below = device::shuffle_up(sum, delta);
        if (device::lane_index() >= delta) sum += below;
      }
      if (device::lane_index() == device::kWarp - 1) warp_sums[device::warp_index()] = sum;
      device::sync_block();
      for (int warp = 0; warp < kWarps; ++warp) {
        if (warp < device::warp_index()) sum += warp_sums[warp];
      }
      if (sequence < forest.num_sequences) state.tile_offsets[sequence + 1] = before + sum;
      for (int warp = 0; warp < kWarps; ++warp) before += warp_sums[warp];
      device::sync_block();
    }
  }

  /// Of one sequence, all heads; 0 beyond the last sequence. All lanes.
  SMARTSPEC_DEVICE std::int64_t work_of(std::int32_t sequence) const {
    SequenceShape shape;
    if (sequence < forest.num_sequences) shape = load_sequence(forest, sequence);
    const std::int32_t tiles = num_row_tiles(plan, shape);
    std::int64_t work = 0;
    if (tiles <= kFewTiles) {
      for (std::int32_t t = 0; t < tiles; ++t) {
        work += unit_work(plan, unit_key_tiles(plan, shape, t));
      }
    }
    std::uint32_t long_ones = device::ballot(tiles > kFewTiles);
    for (; long_ones != 0; long_ones &= long_ones - 1) {
      const int lane = device::lowest_bit(long_ones);
      const std::int64_t sum = work_of_long(device::shuffle(sequence, lane));
      if (device::lane_index() == lane) work = sum;
    }
    return work * plan.num_kv_heads;
  }

  /// All lanes.
  SMARTSPEC_DEVICE std::int64_t work_of_long(std::int32_t sequence) const {
    const SequenceShape shape = load_sequence(forest, sequence);
    const std::int32_t tiles = num_row_tiles(plan, shape);
    std::int64_t work = 0;
    for (std::int32_t t = device::lane_index(); t < tiles; t += device::kWarp) {
      work += unit_work(plan, unit_key_tiles(plan, shape, t));
    }
    for (int mask = device::kWarp / 2; mask > 0; mask /= 2) work += device::shuffle_xor(work, mask);
    return work;
  }
};

}  // namespace

void launch_prepare(const Forest& forest, const AttentionPlan& plan, const ForestState& state,
                    Stream stream) {
  const LaunchShape shape{.blocks_x = 1 + std::int64_t{forest.num_sequences},
                          .shared_bytes = PrepareForest::kSharedBytes};
  launch(shape, stream, PrepareForest{.forest = forest, .plan = plan, .state = state});
}

}  // namespace smartspec::cuda
