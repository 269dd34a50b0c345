// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Linear layers of the CUDA backend: cuBLASLt where it was found, else our own kernel.
#pragma once

#include <memory>
#include <span>

#include "backend/backend.hpp"
#include "host/cublas_lt.hpp"
#include "host/staging.hpp"

namespace smartspec::cuda {

/// Weights row by row as they come, [out_features, in_features] of `dtype`.
PackedLinear pack_linear(std::span<const TensorView> parts, DType dtype, Staging& staging,
                         CUstream_st* stream);

class LinearRunner {
 public:
  /// batch_invariant: our own kernel only, whose sums do not depend on the number of rows. cuBLASLt
  /// chooses its algorithm by shape.
  explicit LinearRunner(bool batch_invariant);
  void run(const LinearParams& p, CUstream_st* stream);
  /// Memory that launches refer to; moves when it grows.
  [[nodiscard]] const void* scratch() const noexcept { return activations_.data(); }

 private:
  std::unique_ptr<CublasLt> cublas_;
  Buffer activations_;  // [rows, in_features] bf16
};

}  // namespace smartspec::cuda
