// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// cuda/common/launch.cuh on the CPU: the kernel has run when launch() returns, or is recorded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../block.hpp"
#include "../recording.hpp"
#include "common/device.cuh"

struct CUstream_st;

namespace smartspec::cuda {

struct LaunchShape {
  std::int64_t blocks_x = 1;
  std::int64_t blocks_y = 1;
  std::size_t shared_bytes = 0;
};

/// As on the device; throws EmulationError too, and what the kernel throws.
template <class Kernel>
void launch(const LaunchShape& shape, CUstream_st* stream, const Kernel& kernel) {
  static_assert(std::is_trivially_copyable_v<Kernel>);
  static_assert(sizeof(Kernel) <= 4096, "kernel parameters are limited to 4 KB");
  static_assert(Kernel::kThreads >= 1 && Kernel::kThreads <= emulation::kMaxThreads);
  static_assert(Kernel::kMinBlocks >= 1);
  const Kernel parameters = kernel;
  const emulation::Grid grid{Kernel::kName, shape.blocks_x, shape.blocks_y, Kernel::kThreads,
                             shape.shared_bytes};
  const auto run = [grid, parameters] {
    emulation::run_grid(
        grid, [](const void* data) { (*static_cast<const Kernel*>(data))(); }, &parameters);
  };
  if (emulation::is_recording(stream)) {
    emulation::record(stream, run);
  } else {
    run();
  }
}

template <class Kernel>
int blocks_per_multiprocessor(std::size_t /*shared_bytes*/) {
  return 2;
}

}  // namespace smartspec::cuda
