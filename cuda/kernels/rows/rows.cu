// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Row verbs. Bound by memory: four numbers per thread and access, each element read and written
// once (rms_norm reads its row a second time, from the cache).
#include <algorithm>
#include <cmath>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "kernels/rows/pack.cuh"
#include "kernels/rows/rows.h"

namespace smartspec::cuda::kernels {
namespace {

constexpr int kBlock = 128;  // threads of the elementwise kernels
constexpr int kRun = 4;      // numbers of a thread

bool is_aligned(const void* pointer, std::int64_t stride, std::size_t size) {
  const std::size_t run = size * kRun;
  return reinterpret_cast<std::uintptr_t>(pointer) % run == 0 && stride % kRun == 0;
}

/// One row cut into blocks of kBlock * kRun columns; all rows along x.
struct Columns {
  std::int32_t dim = 0;
  std::int32_t parts = 0;

  explicit Columns(std::int32_t row_dim)
      : dim(row_dim), parts((row_dim + kBlock * kRun - 1) / (kBlock * kRun)) {}
  [[nodiscard]] LaunchShape shape(std::int32_t num_rows) const {
    LaunchShape result;
    result.blocks_x = std::int64_t{std::max(num_rows, 0)} * std::max(parts, 0);
    return result;
  }
  SMARTSPEC_DEVICE std::int64_t row() const { return device::block_x() / parts; }
  SMARTSPEC_DEVICE int first() const {
    return (device::block_x() % parts * kBlock + device::thread_index()) * kRun;
  }
};

/// Up to kRun of the `left` numbers from `index` on, the rest zero. `vector`: runs are aligned.
template <DType kType>
SMARTSPEC_DEVICE void load_run(const void* base, std::int64_t index, int left, bool vector,
                               float (&x)[kRun]) {
  if (vector && left >= kRun) {
    load_numbers<kType>(base, index, x);
    return;
  }
  SMARTSPEC_UNROLL
  for (int i = 0; i < kRun; ++i) {
    float one[1] = {0.0F};
    if (i < left) load_numbers<kType>(base, index + i, one);
    x[i] = one[0];
  }
}

template <DType kType>
SMARTSPEC_DEVICE void store_run(void* base, std::int64_t index, int left, bool vector,
                                const float (&x)[kRun]) {
  if (vector && left >= kRun) {
    store_numbers<kType>(base, index, x);
    return;
  }
  SMARTSPEC_UNROLL
  for (int i = 0; i < kRun; ++i) {
    const float one[1] = {x[i]};
    if (i < left) store_numbers<kType>(base, index + i, one);
  }
}

constexpr DType kF32 = DType::kFloat32;

/// out[r] = table[rows[r]], as f32.
template <DType kType>
struct TakeRows {
  static constexpr int kThreads = kBlock;
  static constexpr int kMinBlocks = 8;
  static constexpr const char* kName = "take_rows";
  const void* table;
  const std::int32_t* rows;
  float* out;
  Columns columns;
  bool vector;

  SMARTSPEC_DEVICE void operator()() const {
    const std::int64_t row = columns.row();
    const int first = columns.first();
    if (first >= columns.dim) return;
    float x[kRun];
    const int left = columns.dim - first;
    load_run<kType>(table, std::int64_t{rows[row]} * columns.dim + first, left, vector, x);
    store_run<kF32>(out, row * columns.dim + first, left, vector, x);
  }
};

template <DType kType>
void take_rows(const void* table, const std::int32_t* rows, float* out, std::int32_t num_rows,
               std::int32_t dim, CUstream_st* stream) {
  const Columns columns(dim);
  const bool vector = is_aligned(table, dim, size_of(kType)) && is_aligned(out, dim, 4);
  launch(columns.shape(num_rows), stream, TakeRows<kType>{table, rows, out, columns, vector});
}

struct Swiglu {
  static constexpr int kThreads = kBlock;
  static constexpr int kMinBlocks = 8;
  static constexpr const char* kName = "swiglu";
  SwigluParams p;
  Columns columns;
  bool vector;

  SMARTSPEC_DEVICE void operator()() const {
    const std::int64_t row = columns.row();
    const int first = columns.first();
    if (first >= p.dim) return;
    const int left = p.dim - first;
    float gate[kRun];
    float up[kRun];
    load_run<kF32>(p.gate_up, row * 2 * p.dim + first, left, vector, gate);
    load_run<kF32>(p.gate_up, row * 2 * p.dim + p.dim + first, left, vector, up);
    SMARTSPEC_UNROLL
    for (int i = 0; i < kRun; ++i) {
      // exp(-|g|) cannot overflow: sigmoid is 1 / (1 + e) above zero and e / (1 + e) below.
      const float e = std::exp(-std::fabs(gate[i]));
      const float sigmoid = (gate[i] < 0.0F ? e : 1.0F) / (1.0F + e);
      gate[i] = gate[i] * sigmoid * up[i];
    }
    store_run<kF32>(p.out, row * p.dim + first, left, vector, gate);
  }
};

struct ConvertRows {
  static constexpr int kThreads = kBlock;
  static constexpr int kMinBlocks = 8;
  static constexpr const char* kName = "convert_rows";
  ConvertRowsParams p;
  Columns columns;
  bool vector;

  SMARTSPEC_DEVICE void operator()() const {
    const std::int64_t row = columns.row();
    const int first = columns.first();
    if (first >= p.dim) return;
    float x[kRun];
    load_run<kF32>(p.in, row * p.in_stride + first, p.dim - first, vector, x);
    store_run<DType::kBFloat16>(p.out, row * p.out_stride + first, p.dim - first, vector, x);
  }
};

struct AddBias {
  static constexpr int kThreads = kBlock;
  static constexpr int kMinBlocks = 8;
  static constexpr const char* kName = "add_bias";
  AddBiasParams p;
  Columns columns;
  bool vector;

  SMARTSPEC_DEVICE void operator()() const {
    const std::int64_t row = columns.row();
    const int first = columns.first();
    if (first >= p.dim) return;
    float x[kRun];
    float bias[kRun];
    load_run<kF32>(p.out, row * p.out_stride + first, p.dim - first, vector, x);
    load_run<kF32>(p.bias, first, p.dim - first, vector, bias);
    SMARTSPEC_UNROLL
    for (int i = 0; i < kRun; ++i) x[i] += bias[i];
    store_run<kF32>(p.out, row * p.out_stride + first, p.dim - first, vector, x);
  }
};

SMARTSPEC_DEVICE float sum_of_warp(float x) {
  SMARTSPEC_UNROLL
  for (int mask = device::kWarp / 2; mask > 0; mask /= 2) x += device::shuffle_xor(x, mask);
  return x;
}

/// A row by a warp or by a block. Thread t of n adds up columns 4 t + 4 n i + (0..3) in that order,
/// then the threads' sums are added up as a tree: an order of `dim` alone.
template <bool kWholeBlock>
struct RmsNorm {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;
  static constexpr const char* kName = "rms_norm";
  static constexpr int kWarps = kThreads / device::kWarp;
  static constexpr int kTeam = kWholeBlock ? kThreads : device::kWarp;  // threads of a row
  static constexpr int kRowsPerBlock = kThreads / kTeam;
  RmsNormParams p;
  bool vector;

  SMARTSPEC_DEVICE float sum_of_team(float x) const {
    x = sum_of_warp(x);
    if constexpr (!kWholeBlock) return x;
    auto* sums = reinterpret_cast<float*>(device::shared_memory());
    if (device::lane_index() == 0) sums[device::warp_index()] = x;
    device::sync_block();
    float total = 0.0F;
    SMARTSPEC_UNROLL
    for (int w = 0; w < kWarps; ++w) total += sums[w];
    return total;
  }

  SMARTSPEC_DEVICE void operator()() const {
    const int member = device::thread_index() % kTeam;
    const std::int64_t row =
        std::int64_t{device::block_x()} * kRowsPerBlock + device::thread_index() / kTeam;
    if (row >= p.num_rows) return;  // whole warps: a block's last rows
    float sum = 0.0F;
    for (int first = member * kRun; first < p.dim; first += kTeam * kRun) {
      float x[kRun];
      load_run<kF32>(p.in, row * p.in_stride + first, p.dim - first, vector, x);
      SMARTSPEC_UNROLL
      for (int i = 0; i < kRun; ++i) sum = std::fma(x[i], x[i], sum);
    }
    const float mean = sum_of_team(sum) / static_cast<float>(p.dim);
    const float inverse = 1.0F / std::sqrt(mean + p.eps);
    // Each thread reads again only what it alone overwrites, so `out` may be `in`.
    for (int first = member * kRun; first < p.dim; first += kTeam * kRun) {
      float x[kRun];
      float weight[kRun];
      load_run<kF32>(p.in, row * p.in_stride + first, p.dim - first, vector, x);
      load_run<kF32>(p.weight, first, p.dim - first, vector, weight);
      SMARTSPEC_UNROLL
      for (int i = 0; i < kRun; ++i) x[i] = x[i] * inverse * weight[i];
      store_run<kF32>(p.out, row * p.out_stride + first, p.dim - first, vector, x);
    }
  }
};

constexpr std::int32_t kMaxWarpDim = 1024;  // longer rows take a block

}  // namespace

void embed(const EmbedParams& p, CUstream_st* stream) {
  if (p.table_dtype == DType::kBFloat16) {
    take_rows<DType::kBFloat16>(p.table, p.tokens, p.out, p.num_rows, p.hidden, stream);
  } else {
    take_rows<kF32>(p.table, p.tokens, p.out, p.num_rows, p.hidden, stream);
  }
}

void gather_rows(const GatherRowsParams& p, CUstream_st* stream) {
  take_rows<kF32>(p.in, p.rows, p.out, p.num_rows, p.dim, stream);
}

void rms_norm(const RmsNormParams& p, CUstream_st* stream) {
  if (p.num_rows <= 0 || p.dim <= 0) return;
  const bool vector = is_aligned(p.in, p.in_stride, 4) && is_aligned(p.out, p.out_stride, 4) &&
                      is_aligned(p.weight, 0, 4);
  LaunchShape shape;
  if (p.dim <= kMaxWarpDim) {
    using Kernel = RmsNorm<false>;
    shape.blocks_x = (std::int64_t{p.num_rows} + Kernel::kRowsPerBlock - 1) / Kernel::kRowsPerBlock;
    launch(shape, stream, Kernel{p, vector});
  } else {
    using Kernel = RmsNorm<true>;
    shape.blocks_x = p.num_rows;
    shape.shared_bytes = Kernel::kWarps * sizeof(float);
    launch(shape, stream, Kernel{p, vector});
  }
}

void swiglu(const SwigluParams& p, CUstream_st* stream) {
  const Columns columns(p.dim);
  const bool vector = is_aligned(p.gate_up, p.dim, 4) && is_aligned(p.out, p.dim, 4);
  launch(columns.shape(p.num_rows), stream, Swiglu{p, columns, vector});
}

void convert_rows(const ConvertRowsParams& p, CUstream_st* stream) {
  const Columns columns(p.dim);
  const bool vector = is_aligned(p.in, p.in_stride, 4) && is_aligned(p.out, p.out_stride, 2);
  launch(columns.shape(p.num_rows), stream, ConvertRows{p, columns, vector});
}

void add_bias(const AddBiasParams& p, CUstream_st* stream) {
  const Columns columns(p.dim);
  const bool vector = is_aligned(p.out, p.out_stride, 4) && is_aligned(p.bias, 0, 4);
  launch(columns.shape(p.num_rows), stream, AddBias{p, columns, vector});
}

}  // namespace smartspec::cuda::kernels
