// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// For tests on a device that launch a kernel of their own size over a Verify: the operation runs in
// its place, with the library's size.
#pragma once

#include <cstddef>
#include <cstdint>

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
  verify(v, nullptr, verify_workspace_bytes(v.rule, v.num_sequences, kMaxTreeNodes, v.vocab_size),
         stream);
}

}  // namespace on_device
}  // namespace smartspec::cuda
