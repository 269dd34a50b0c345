// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// For tests: the memory of the emulated device.
#pragma once

#include <cstddef>

namespace smartspec::emulation {

inline constexpr std::size_t kDeviceBytes = std::size_t{4} << 30;

/// Bytes allocated with allocate_device() and not yet freed.
std::size_t device_bytes_in_use() noexcept;

/// allocate_device() fails beyond `bytes` while this exists.
class ScopedMemoryLimit {
 public:
  explicit ScopedMemoryLimit(std::size_t bytes) noexcept;
  ~ScopedMemoryLimit();
  ScopedMemoryLimit(const ScopedMemoryLimit&) = delete;
  ScopedMemoryLimit& operator=(const ScopedMemoryLimit&) = delete;

 private:
  std::size_t before_;
};

}  // namespace smartspec::emulation
