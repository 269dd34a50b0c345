// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Matrix products by NVIDIA's cuBLASLt, which is loaded at run time: the build needs its header
// only, and a machine without the library uses our own kernel.
#pragma once

#include <cstdint>
#include <memory>

#include "smartspec/types.hpp"

struct CUstream_st;

namespace smartspec::cuda {

/// out[r, o] = (accumulate ? out[r, o] : 0) + bias[o] + sum_k in[r, k] * weight[o, k], f32 sums.
struct MatmulProblem {
  const void* in = nullptr;        // [rows, in_features], row stride in_stride
  const void* weight = nullptr;    // [out_features, in_features]
  const float* bias = nullptr;     // [out_features] or null
  float* out = nullptr;            // [rows, out_features], row stride out_stride
  DType dtype = DType::kBFloat16;  // of in and weight: kBFloat16 or kFloat32 (no TF32)
  std::int32_t rows = 0;
  std::int32_t in_features = 0;
  std::int32_t out_features = 0;
  std::int64_t in_stride = 0;
  std::int64_t out_stride = 0;
  bool accumulate = false;
};

class CublasLt {
 public:
  virtual ~CublasLt() = default;
  /// False, with nothing launched, when the library has no algorithm for the problem. The choice is
  /// remembered per shape. Throws DeviceError when a launch fails.
  virtual bool multiply(const MatmulProblem& problem, CUstream_st* stream) = 0;
};

/// Null when the build had no header, or the library is not found or does not start. Looks at
/// SMARTSPEC_CUBLASLT (a file) alone when it is set, else where the loader looks, beside this
/// library's own Python packages, and in /usr/local/cuda.
std::unique_ptr<CublasLt> load_cublas_lt();
[[nodiscard]] bool has_cublas_lt() noexcept;  // whether the build had the header

}  // namespace smartspec::cuda
