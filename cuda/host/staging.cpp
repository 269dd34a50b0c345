// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "host/staging.hpp"

#include <algorithm>
#include <cstring>

#include "host/runtime.hpp"

namespace smartspec::cuda {

Buffer allocate_buffer(std::size_t bytes) { return {allocate_device(bytes), bytes, free_device}; }

void reserve_buffer(Buffer& buffer, std::size_t bytes, CUstream_st* stream) {
  if (buffer.size() >= bytes) return;
  const std::size_t wanted = std::max(bytes, buffer.size() + buffer.size() / 2);
  buffer = Buffer();  // free first: the contents are not needed
  buffer = allocate_buffer(wanted);
  fill_zero(buffer.data(), wanted, stream);
}

Staging::Staging(std::size_t capacity) : ring_(allocate_pinned(capacity), capacity, free_pinned) {}

void Staging::upload(void* device, const void* host, std::size_t bytes, CUstream_st* stream) {
  if (bytes == 0) return;
  constexpr std::size_t kAlignment = 256;
  const std::size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (padded > ring_.size()) {
    copy(device, host, bytes, stream);
    synchronize(stream);  // the host memory may be page-locked, the copy then still under way
    return;
  }
  if (padded > ring_.size() - used_) {
    synchronize(stream);
    used_ = 0;
  }
  std::byte* staged = ring_.as<std::byte>() + used_;
  used_ += padded;
  std::memcpy(staged, host, bytes);
  copy(device, staged, bytes, stream);
}

}  // namespace smartspec::cuda
