// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Runs a functor on the device. The tests have a second implementation, as of device.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/device.cuh"
#include "host/check.hpp"

namespace smartspec::cuda {

struct LaunchShape {
  std::int64_t blocks_x = 1;
  std::int64_t blocks_y = 1;
  std::size_t shared_bytes = 0;
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    run_kernel(const __grid_constant__ Kernel kernel) {
  kernel();
}

/// Launches Kernel::kThreads threads per block; does nothing for an empty grid. Throws DeviceError
/// naming Kernel::kName when the launch is refused. Kernel: trivially copyable, at most 4 KB, with
/// `static constexpr int kThreads, kMinBlocks`, `static constexpr const char* kName` and
/// `SMARTSPEC_DEVICE void operator()() const`.
template <class Kernel>
void launch(const LaunchShape& shape, CUstream_st* stream, const Kernel& kernel) {
  if (shape.blocks_x == 0 || shape.blocks_y == 0) return;
  if (shape.shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(run_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          Kernel::kName);
  }
  const dim3 grid(static_cast<unsigned>(shape.blocks_x), static_cast<unsigned>(shape.blocks_y));
  run_kernel<Kernel><<<grid, Kernel::kThreads, shape.shared_bytes, stream>>>(kernel);
  check(cudaGetLastError(), Kernel::kName);
}

/// Blocks of the kernel that one multiprocessor holds at once.
template <class Kernel>
int blocks_per_multiprocessor(std::size_t shared_bytes) {
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(run_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          Kernel::kName);
  }
  int count = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, run_kernel<Kernel>, Kernel::kThreads,
                                                      shared_bytes),
        Kernel::kName);
  return count;
}

}  // namespace smartspec::cuda
