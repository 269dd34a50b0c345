// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Tokens and pages of all layers from place to place, in one launch each. Bound by memory: units of
// 16 bytes where addresses allow, several loads under way per thread.
#include <algorithm>
#include <cstdint>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "kernels/kv/kv.h"
#include "kernels/rows/pack.cuh"

namespace smartspec::cuda::kernels {
namespace {

/// One thread owns a column of one layer's K or V and walks a group's moves in order, so sources
/// may be destinations of later moves, and no thread needs to wait for another.
template <int kUnit>
struct Move {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 4;
  static constexpr const char* kName = "move_kv";
  static constexpr int kAhead = 4;  // moves whose loads may overlap
  MoveJob job;
  std::int32_t parts;  // blocks that share the columns of a token

  SMARTSPEC_DEVICE std::int64_t offset(SlotId slot) const {
    return slot / job.page_size * job.page_stride + slot % job.page_size * job.token_stride;
  }

  /// Moves [first, first + kAhead) up to `end`. Loads go before the stores unless a source is the
  /// destination of an earlier move among them.
  SMARTSPEC_DEVICE void step(std::byte* column, int first, int end) const {
    SlotId from[kAhead];
    SlotId to[kAhead];
    bool ordered = false;
    SMARTSPEC_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      const bool valid = first + i < end;
      from[i] = valid ? job.sources[first + i] : -1;
      to[i] = valid ? job.destinations[first + i] : -1;
      if (from[i] < 0) to[i] = -1;
      SMARTSPEC_UNROLL
      for (int j = 0; j < i; ++j) ordered = ordered || (to[j] >= 0 && from[i] == to[j]);
    }
    Bits<kUnit> data[kAhead] = {};
    if (!ordered) {
      SMARTSPEC_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        if (to[i] >= 0) data[i] = load_bits<kUnit>(column + offset(from[i]));
      }
      SMARTSPEC_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        if (to[i] >= 0) store_bits<kUnit>(column + offset(to[i]), data[i]);
      }
    } else {
      SMARTSPEC_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        if (to[i] < 0) continue;
        store_bits<kUnit>(column + offset(to[i]), load_bits<kUnit>(column + offset(from[i])));
      }
    }
  }

  SMARTSPEC_DEVICE void operator()() const {
    const int group = device::block_x() / parts;
    const int column = device::block_x() % parts * kThreads + device::thread_index();
    if (column >= job.num_columns) return;
    const int begin = job.group_offsets == nullptr ? 0 : job.group_offsets[group];
    const int end = job.group_offsets == nullptr ? job.num_moves : job.group_offsets[group + 1];
    std::byte* base = job.kv.bases[device::block_y()] +
                      column / job.head_columns * job.head_stride +
                      column % job.head_columns * kUnit;
    for (int first = begin; first < end; first += kAhead) step(base, first, end);
  }
};

/// Whole pages within the cache, or between the cache and host memory that the device maps.
template <int kUnit>
struct Pages {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 4;
  static constexpr const char* kName = "copy_pages";
  static constexpr int kPerThread = 4;
  PageJob job;
  std::int32_t parts;  // blocks that share a page

  SMARTSPEC_DEVICE std::int64_t offset(int unit) const {
    if (job.run == job.page_units) return std::int64_t{unit} * kUnit;
    const int piece = unit / job.run;
    return piece / job.inner * job.outer_stride + piece % job.inner * job.inner_stride +
           unit % job.run * kUnit;
  }

  /// Where page `i` of the list begins; null: it is to be skipped.
  SMARTSPEC_DEVICE std::byte* page(const BlockId* pages, int i) const {
    const int base = device::block_y();
    if (pages != nullptr) {
      return pages[i] < 0 ? nullptr : job.kv.bases[base] + pages[i] * job.page_stride;
    }
    const std::int64_t host_page = (std::int64_t{base / 2} * job.num_pages + i) * 2 + base % 2;
    return job.host + host_page * job.page_units * kUnit;
  }

  SMARTSPEC_DEVICE void operator()() const {
    const int index = device::block_x() / parts;
    const std::byte* from = page(job.sources, index);
    std::byte* to = page(job.destinations, index);
    if (from == nullptr || to == nullptr) return;
    const int first = device::block_x() % parts * (kThreads * kPerThread) + device::thread_index();
    Bits<kUnit> data[kPerThread] = {};
    SMARTSPEC_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      const int unit = first + i * kThreads;
      if (unit >= job.page_units) break;
      data[i] = load_bits<kUnit>(
          from + (job.sources == nullptr ? std::int64_t{unit} * kUnit : offset(unit)));
    }
    SMARTSPEC_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      const int unit = first + i * kThreads;
      if (unit >= job.page_units) break;
      store_bits<kUnit>(
          to + (job.destinations == nullptr ? std::int64_t{unit} * kUnit : offset(unit)), data[i]);
    }
  }
};

template <int kUnit>
void move_units(const MoveJob& job, Stream stream) {
  using Kernel = Move<kUnit>;
  const std::int32_t parts = (job.num_columns + Kernel::kThreads - 1) / Kernel::kThreads;
  LaunchShape shape;
  shape.blocks_x = std::int64_t{job.num_groups} * parts;
  shape.blocks_y = job.kv.count;
  launch(shape, stream, Kernel{job, parts});
}

template <int kUnit>
void page_units(const PageJob& job, Stream stream) {
  using Kernel = Pages<kUnit>;
  constexpr std::int32_t kPerBlock = Kernel::kThreads * Kernel::kPerThread;
  const std::int32_t parts = (job.page_units + kPerBlock - 1) / kPerBlock;
  LaunchShape shape;
  shape.blocks_x = std::int64_t{job.num_pages} * parts;
  shape.blocks_y = job.kv.count;
  launch(shape, stream, Kernel{job, parts});
}

}  // namespace

void launch_move(const MoveJob& job, std::int32_t unit, Stream stream) {
  switch (unit) {
    case 16:
      return move_units<16>(job, stream);
    case 4:
      return move_units<4>(job, stream);
    case 2:
      return move_units<2>(job, stream);
    default:
      return move_units<1>(job, stream);
  }
}

void launch_pages(const PageJob& job, std::int32_t unit, Stream stream) {
  switch (unit) {
    case 16:
      return page_units<16>(job, stream);
    case 4:
      return page_units<4>(job, stream);
    case 2:
      return page_units<2>(job, stream);
    default:
      return page_units<1>(job, stream);
  }
}

}  // namespace smartspec::cuda::kernels
