// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Rotary embedding of q and k, and K and V to their slots, in one pass over the fused rows: every
// element is read once and written once. One block takes part of a row, a thread a run of elements
// in the lower half of a head and the run they pair with in the upper half.
#include <cstdint>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "kernels/kv/kv.h"
#include "kernels/rows/pack.cuh"

namespace smartspec::cuda::kernels {
namespace {

/// stored = value / scale, rounded to nearest even, saturating.
template <int kN>
SMARTSPEC_DEVICE void store_scaled(DType dtype, void* base, std::int64_t index, float (&x)[kN],
                                   const float* scales, int head) {
  if (size_of(dtype) == 1 && scales != nullptr) {
    const float scale = scales[head];
    SMARTSPEC_UNROLL
    for (int i = 0; i < kN; ++i) x[i] = x[i] / scale;
  }
  switch (dtype) {
    case DType::kFloat32:
      return store_numbers<DType::kFloat32>(base, index, x);
    case DType::kBFloat16:
      return store_numbers<DType::kBFloat16>(base, index, x);
    case DType::kFloat16:
      return store_numbers<DType::kFloat16>(base, index, x);
    case DType::kFloat8E4M3:
      return store_numbers<DType::kFloat8E4M3>(base, index, x);
    case DType::kFloat8E5M2:
      return store_numbers<DType::kFloat8E5M2>(base, index, x);
    default:
      return store_numbers<DType::kInt8>(base, index, x);
  }
}

template <DType kType, int kN>
struct Append {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 4;
  static constexpr const char* kName = "append_kv";
  AppendKv p;
  std::int32_t q_heads;
  std::int32_t runs;  // of half a head

  SMARTSPEC_DEVICE void rotate(int row, int first, float (&low)[kN], float (&high)[kN]) const {
    const std::int64_t at = std::int64_t{p.positions[row]} * (p.kv.head_dim / 2) + first;
    float cos[kN];
    float sin[kN];
    load_numbers<DType::kFloat32>(p.cos, at, cos);
    load_numbers<DType::kFloat32>(p.sin, at, sin);
    SMARTSPEC_UNROLL
    for (int i = 0; i < kN; ++i) {
      const float a = low[i];
      const float b = high[i];
      low[i] = a * cos[i] - b * sin[i];
      high[i] = b * cos[i] + a * sin[i];
    }
  }

  SMARTSPEC_DEVICE void rotate_query(int row, int head, int first) const {
    const std::int64_t at = row * p.q_stride + std::int64_t{head} * p.kv.head_dim + first;
    const int half = p.kv.head_dim / 2;
    float low[kN];
    float high[kN];
    load_numbers<kType>(p.q, at, low);
    load_numbers<kType>(p.q, at + half, high);
    rotate(row, first, low, high);
    store_numbers<kType>(p.q, at, low);
    store_numbers<kType>(p.q, at + half, high);
  }

  SMARTSPEC_DEVICE void append(int row, int slot, int head, int first, bool is_key) const {
    const PagedKv& kv = p.kv;
    const int half = kv.head_dim / 2;
    const std::int64_t from =
        row * (is_key ? p.k_stride : p.v_stride) + std::int64_t{head} * kv.head_dim + first;
    const void* rows = is_key ? p.k : p.v;
    float low[kN];
    float high[kN];
    load_numbers<kType>(rows, from, low);
    load_numbers<kType>(rows, from + half, high);
    if (is_key && p.cos != nullptr) rotate(row, first, low, high);
    const std::int64_t to = slot / kv.page_size * kv.page_stride +
                            slot % kv.page_size * kv.token_stride + head * kv.head_stride + first;
    void* cache = is_key ? kv.k : kv.v;
    const float* scales = is_key ? kv.k_scale : kv.v_scale;
    store_scaled(kv.dtype, cache, to, low, scales, head);
    store_scaled(kv.dtype, cache, to + half, high, scales, head);
  }

  SMARTSPEC_DEVICE void operator()() const {
    const int row = device::block_x();
    const int slot = p.slots[row];
    if (slot < 0) return;
    const int unit = device::block_y() * kThreads + device::thread_index();
    const int head = unit / runs;
    const int first = unit % runs * kN;
    const int keys = head - q_heads;
    if (keys < 0) {
      rotate_query(row, head, first);
    } else if (keys < 2 * p.kv.num_kv_heads) {
      const bool is_key = keys < p.kv.num_kv_heads;
      append(row, slot, is_key ? keys : keys - p.kv.num_kv_heads, first, is_key);
    }
  }
};

template <DType kType, int kN>
void launch_one(const AppendJob& job, Stream stream) {
  using Kernel = Append<kType, kN>;
  const AppendKv& p = job.append;
  const std::int32_t runs = p.kv.head_dim / 2 / kN;
  const std::int64_t units = (std::int64_t{job.q_heads} + 2 * p.kv.num_kv_heads) * runs;
  LaunchShape shape;
  shape.blocks_x = p.num_rows;
  shape.blocks_y = (units + Kernel::kThreads - 1) / Kernel::kThreads;
  launch(shape, stream, Kernel{p, job.q_heads, runs});
}

template <DType kType>
void launch_type(const AppendJob& job, Stream stream) {
  if (job.run == 1) {
    launch_one<kType, 1>(job, stream);
  } else {
    launch_one<kType, 16 / static_cast<int>(size_of(kType))>(job, stream);
  }
}

}  // namespace

void launch_append(const AppendJob& job, Stream stream) {
  switch (job.append.dtype) {
    case DType::kFloat32:
      return launch_type<DType::kFloat32>(job, stream);
    case DType::kFloat16:
      return launch_type<DType::kFloat16>(job, stream);
    default:
      return launch_type<DType::kBFloat16>(job, stream);
  }
}

}  // namespace smartspec::cuda::kernels
