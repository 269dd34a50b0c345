// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A block computes kOuts outputs of a few rows. It stages 256 bytes of each weight row at a time in
// shared memory, the next ones under way in registers meanwhile; a lane holds one output, a warp
// some of the rows. Weights are read from memory once per block of rows.
#include <cmath>
#include <cstdint>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "kernels/linear/linear.h"
#include "kernels/rows/pack.cuh"

namespace smartspec::cuda::kernels {
namespace {

constexpr int kOuts = device::kWarp;  // of a block
constexpr int kTileBytes = 256;       // of one weight row
constexpr int kUnitBytes = 16;

template <DType kType, int kRowsPerWarp>
struct Linear {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 4;
  static constexpr const char* kName = "linear";
  static constexpr int kWarps = kThreads / device::kWarp;
  static constexpr int kRows = kRowsPerWarp * kWarps;
  static constexpr int kSize = kType == DType::kFloat32 ? 4 : 2;
  static constexpr int kK = kTileBytes / kSize;
  static constexpr int kPerUnit = kUnitBytes / kSize;
  static constexpr int kUnits = kOuts * kTileBytes / kUnitBytes / kThreads;  // of a thread
  static constexpr int kUnitsPerOut = kTileBytes / kUnitBytes;
  static constexpr int kPitch = kK + 4;  // floats: lanes of a quarter warp hit different banks
  static constexpr std::size_t kSharedBytes =
      (std::size_t{kOuts} * kPitch + std::size_t{kRows} * kK) * sizeof(float);
  static_assert(kRows * kK % kThreads == 0 && kUnits * kThreads * kUnitBytes == kOuts * kTileBytes);

  LinearParams p;
  const void* weights;
  std::int32_t in_features;
  std::int32_t out_features;
  bool vector;  // weight rows are 16-byte aligned

  /// This thread's part of the weights from k on; zero outside the matrix.
  SMARTSPEC_DEVICE void load_weights(int first_out, int k, float (&w)[kUnits][kPerUnit]) const {
    SMARTSPEC_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      const int unit = u * kThreads + device::thread_index();
      const int out = first_out + unit / kUnitsPerOut;
      const int at = k + unit % kUnitsPerOut * kPerUnit;
      const std::int64_t index = std::int64_t{out} * in_features + at;
      if (out < out_features && at + kPerUnit <= in_features && vector) {
        load_numbers<kType>(weights, index, w[u]);
        continue;
      }
      SMARTSPEC_UNROLL
      for (int i = 0; i < kPerUnit; ++i) {
        float one[1] = {0.0F};
        if (out < out_features && at + i < in_features) {
          load_numbers<kType>(weights, index + i, one);
        }
        w[u][i] = one[0];
      }
    }
  }

  SMARTSPEC_DEVICE void store_weights(float* shared, const float (&w)[kUnits][kPerUnit]) const {
    SMARTSPEC_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      const int unit = u * kThreads + device::thread_index();
      const int at = unit / kUnitsPerOut * kPitch + unit % kUnitsPerOut * kPerUnit;
      store_numbers<DType::kFloat32>(shared, at, w[u]);
    }
  }

  /// Rows of the input from k on; bf16 weights see bf16 activations.
  SMARTSPEC_DEVICE void stage_rows(float* shared, int first_row, int k) const {
    for (int i = device::thread_index(); i < kRows * kK; i += kThreads) {
      const int row = first_row + i / kK;
      const int at = k + i % kK;
      float x = 0.0F;
      if (row < p.num_rows && at < in_features) x = p.in[row * p.in_stride + at];
      shared[i] = kType == DType::kBFloat16 ? device::from_bf16(device::to_bf16(x)) : x;
    }
  }

  SMARTSPEC_DEVICE void multiply(const float* weight_tile, const float* row_tile,
                                 float (&sums)[kRowsPerWarp]) const {
    const float* weight = weight_tile + device::lane_index() * kPitch;
    const float* rows = row_tile + device::warp_index() * kRowsPerWarp * kK;
    SMARTSPEC_UNROLL
    for (int k = 0; k < kK; k += 4) {
      float w[4];
      load_numbers<DType::kFloat32>(weight, k, w);
      SMARTSPEC_UNROLL
      for (int r = 0; r < kRowsPerWarp; ++r) {
        float x[4];
        load_numbers<DType::kFloat32>(rows, r * kK + k, x);
        SMARTSPEC_UNROLL
        for (int i = 0; i < 4; ++i) sums[r] = std::fma(w[i], x[i], sums[r]);
      }
    }
  }

  SMARTSPEC_DEVICE void finish(int out, int first_row, const float (&sums)[kRowsPerWarp]) const {
    if (out >= out_features) return;
    const float bias = p.bias == nullptr ? 0.0F : p.bias[out];
    SMARTSPEC_UNROLL
    for (int r = 0; r < kRowsPerWarp; ++r) {
      if (first_row + r >= p.num_rows) return;
      float* to = p.out + (first_row + r) * p.out_stride + out;
      const float sum = sums[r] + bias;
      *to = p.accumulate ? *to + sum : sum;
    }
  }

  SMARTSPEC_DEVICE void operator()() const {
    auto* weight_tile = reinterpret_cast<float*>(device::shared_memory());
    float* row_tile = weight_tile + kOuts * kPitch;
    const int first_out = device::block_x() * kOuts;
    const int first_row = device::block_y() * kRows;
    float w[kUnits][kPerUnit];
    float sums[kRowsPerWarp] = {};
    load_weights(first_out, 0, w);
    for (int k = 0; k < in_features; k += kK) {
      store_weights(weight_tile, w);
      stage_rows(row_tile, first_row, k);
      device::sync_block();
      if (k + kK < in_features) load_weights(first_out, k + kK, w);
      multiply(weight_tile, row_tile, sums);
      device::sync_block();
    }
    finish(first_out + device::lane_index(), first_row + device::warp_index() * kRowsPerWarp, sums);
  }
};

template <DType kType, int kRowsPerWarp>
void launch_one(const LinearParams& p, CUstream_st* stream) {
  using Kernel = Linear<kType, kRowsPerWarp>;
  const PackedLinear& w = *p.weight;
  const bool vector = reinterpret_cast<std::uintptr_t>(w.data.data()) % kUnitBytes == 0 &&
                      w.in_features % Kernel::kPerUnit == 0;
  LaunchShape shape;
  shape.blocks_x = (std::int64_t{w.out_features} + kOuts - 1) / kOuts;
  shape.blocks_y = (std::int64_t{p.num_rows} + Kernel::kRows - 1) / Kernel::kRows;
  shape.shared_bytes = Kernel::kSharedBytes;
  launch(shape, stream, Kernel{p, w.data.data(), w.in_features, w.out_features, vector});
}

template <DType kType>
void launch_type(const LinearParams& p, CUstream_st* stream) {
  if (p.num_rows <= 8) {
    launch_one<kType, 2>(p, stream);
  } else {
    launch_one<kType, 8>(p, stream);
  }
}

}  // namespace

void linear(const LinearParams& p, CUstream_st* stream) {
  if (p.num_rows <= 0) return;
  if (p.weight->dtype == DType::kBFloat16) {
    launch_type<DType::kBFloat16>(p, stream);
  } else {
    launch_type<DType::kFloat32>(p, stream);
  }
}

}  // namespace smartspec::cuda::kernels
