// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Launches the target walk. Compiled without contraction of a * b + c (nvcc --fmad=false).
#include <algorithm>

#include "common/launch.cuh"
#include "kernels/verify/target.cuh"
#include "kernels/verify/verify.h"

namespace smartspec::cuda::verification {
namespace {

constexpr int kThreads = 512;  // 1024 would leave too few registers

}  // namespace

std::size_t target_workspace_bytes(std::int32_t max_sequences) {
  return static_cast<std::size_t>(max_sequences) * (sizeof(WalkState) + kMaxParts * sizeof(Part));
}

void launch_target(const TargetJob& job, Stream stream) {
  switch (job.verify.dtype) {
    case DType::kFloat32:
      return launch_walk<DType::kFloat32, kThreads>(job, stream);
    case DType::kBFloat16:
      return launch_walk<DType::kBFloat16, kThreads>(job, stream);
    default:
      return launch_walk<DType::kFloat16, kThreads>(job, stream);
  }
}

}  // namespace smartspec::cuda::verification
