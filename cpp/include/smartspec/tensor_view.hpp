// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A non-owning, trivially copyable description of a dense tensor in memory.
#pragma once

#include <array>
#include <cstdint>

#include "smartspec/types.hpp"

namespace smartspec {

/// Borrows `data`; whoever made the view keeps the memory alive. Row-major and contiguous: there
/// are no strides, because every weight file and NumPy array the engine takes is contiguous.
struct TensorView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  Device device = Device::kCpu;
  std::int32_t rank = 0;
  std::array<std::int64_t, 4> shape{};  // first `rank` entries are valid

  [[nodiscard]] std::int64_t num_elements() const noexcept {
    std::int64_t n = 1;
    for (std::int32_t i = 0; i < rank; ++i) n *= shape[static_cast<std::size_t>(i)];
    return rank == 0 ? 0 : n;
  }
  [[nodiscard]] std::size_t num_bytes() const noexcept {
    return static_cast<std::size_t>(num_elements()) * size_of(dtype);
  }
};

}  // namespace smartspec
