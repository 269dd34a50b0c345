// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// For tests on a device that launch kernels of their own size over a Verify: the operation runs in
// their place, with the library's size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "smartspec/cuda_ops.hpp"

namespace smartspec::cuda {
inline namespace on_device {

struct LaunchShape {
  std::int64_t blocks_x = 1;
  std::int64_t blocks_y = 1;
  std::size_t shared_bytes = 0;
};

template <class Kernel>
void launch(const LaunchShape& /*shape*/, Stream stream, const Kernel& kernel) {
  const Verify& v = kernel.verify;
  const std::size_t bytes =
      verify_workspace_bytes(v.rule, v.num_sequences, kMaxTreeNodes, v.vocab_size);
  std::vector<std::uint64_t> workspace((bytes + 7) / 8);  // memory of both sides (support.cpp)
  verify(v, workspace.data(), 8 * workspace.size(), stream);
}

}  // namespace on_device
}  // namespace smartspec::cuda
