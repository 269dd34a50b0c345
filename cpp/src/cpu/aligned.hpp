// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Host memory for kernels: 64-byte aligned, zero-filled, on huge pages where it is large.
#pragma once

#include <cstddef>

#include "backend/backend.hpp"

namespace smartspec::cpu {

/// Throws std::bad_alloc. An empty buffer for 0 bytes.
Buffer allocate_aligned(std::size_t bytes);

/// Grow-only scratch: contents are lost when it grows, memory is never given back.
class Scratch {
 public:
  /// At least `bytes`, 64-byte aligned.
  char* reserve(std::size_t bytes) {
    if (bytes > buffer_.size()) buffer_ = allocate_aligned(bytes + bytes / 2);
    return buffer_.as<char>();
  }
  template <class T>
  T* reserve_array(std::size_t count) {
    return reinterpret_cast<T*>(reserve(count * sizeof(T)));
  }

 private:
  Buffer buffer_;
};

}  // namespace smartspec::cpu
