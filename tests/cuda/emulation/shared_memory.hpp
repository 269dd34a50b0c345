// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace smartspec::emulation {

inline constexpr std::byte kPoison{0xFF};  // NaN in every floating-point type, -1 in integers

/// Shared memory of exactly the size asked for, between two guards. Memory is kept from block to
/// block.
class SharedMemory {
 public:
  SharedMemory() = default;
  ~SharedMemory() { release(); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  std::byte* prepare(std::size_t bytes) {
    if (bytes > capacity_ || base_ == nullptr) {
      release();
      base_ = static_cast<std::byte*>(
          ::operator new(bytes + 2 * kGuardBytes, std::align_val_t(kGuardBytes)));
      capacity_ = bytes;
    }
    bytes_ = bytes;
    unpoison();
    std::memset(base_, static_cast<int>(kGuard), kGuardBytes);
    std::memset(data(), static_cast<int>(kPoison), bytes);
    std::memset(data() + bytes, static_cast<int>(kGuard), kGuardBytes);
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(base_, kGuardBytes);
    __asan_poison_memory_region(data() + bytes, capacity_ - bytes + kGuardBytes);
#endif
    return data();
  }
  [[nodiscard]] std::byte* data() const { return base_ + kGuardBytes; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

  /// Whether nobody wrote next to the memory. AddressSanitizer reports that by itself.
  [[nodiscard]] bool is_intact() {
    unpoison();
    const auto is_guard = [](std::byte b) { return b == kGuard; };
    return std::all_of(base_, data(), is_guard) &&
           std::all_of(data() + bytes_, data() + bytes_ + kGuardBytes, is_guard);
  }

 private:
  static constexpr std::byte kGuard{0xA5};
  static constexpr std::size_t kGuardBytes = 1024;  // on both sides

  void unpoison() {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(base_, capacity_ + 2 * kGuardBytes);
#endif
  }
  void release() {
    if (base_ == nullptr) return;
    unpoison();
    ::operator delete(base_, std::align_val_t(kGuardBytes));
    base_ = nullptr;
  }

  std::byte* base_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace smartspec::emulation
