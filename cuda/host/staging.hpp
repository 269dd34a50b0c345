// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Small uploads that do not make the host wait: they pass through page-locked memory.
#pragma once

#include <cstddef>

#include "backend/backend.hpp"

struct CUstream_st;

namespace smartspec::cuda {

/// Device memory that frees itself, not zeroed.
[[nodiscard]] Buffer allocate_buffer(std::size_t bytes);

/// At least `bytes` in `buffer`, growing by half so that slowly rising sizes do not allocate at
/// every step; the contents are lost when it grows, and then zero. Freeing waits for the device, so
/// work under way that uses the old memory is safe.
void reserve_buffer(Buffer& buffer, std::size_t bytes, CUstream_st* stream);

/// A ring of page-locked memory. All uploads of one object go to one stream.
class Staging {
 public:
  explicit Staging(std::size_t capacity);
  /// `host` may be reused when this returns. Waits for the stream when the bytes do not fit the
  /// ring, and once per round of the ring.
  void upload(void* device, const void* host, std::size_t bytes, CUstream_st* stream);

 private:
  Buffer ring_;
  std::size_t used_ = 0;
};

}  // namespace smartspec::cuda
