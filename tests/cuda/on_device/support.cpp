// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the tests take from the emulation, for a real device: memory that host and device share
// under one address (page-locked, mapped), and orders that nobody can set.
#include <cuda_runtime_api.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>

#include "emulation/memory.hpp"
#include "emulation/schedule.hpp"

namespace smartspec::emulation {

void set_schedule(Schedule /*schedule*/) {}
Schedule schedule() { return {}; }

std::size_t device_bytes_in_use() noexcept { return 0; }
ScopedMemoryLimit::ScopedMemoryLimit(std::size_t /*bytes*/) noexcept : before_(0) {}
ScopedMemoryLimit::~ScopedMemoryLimit() = default;

}  // namespace smartspec::emulation

namespace {

constexpr std::size_t kArenaBytes = std::size_t{2} << 30;
constexpr std::size_t kAlignment = 256;  // as cudaMalloc's

/// Blocks of powers of two, cut from one arena and kept in lists when they are freed.
class SharedArena {
 public:
  void* allocate(std::size_t bytes) {
    const auto size =
        static_cast<std::size_t>(std::bit_ceil(bytes < kAlignment ? kAlignment : bytes));
    const std::lock_guard lock(mutex_);
    if (!tried_) open();
    Block*& free = free_[static_cast<std::size_t>(std::countr_zero(size))];
    if (free != nullptr) {
      Block* const block = free;
      free = block->next;
      return block;
    }
    if (start_ == nullptr || used_ + size + kAlignment > kArenaBytes) return nullptr;
    std::byte* const header = start_ + used_;  // the size lies in front of the block
    used_ += size + kAlignment;
    *reinterpret_cast<std::size_t*>(header) = size;
    return header + kAlignment;
  }
  /// False when the address is not one of the arena's.
  bool release(void* data) {
    auto* const address = static_cast<std::byte*>(data);
    if (start_ == nullptr || address < start_ || address >= start_ + kArenaBytes) return false;
    const std::lock_guard lock(mutex_);
    const std::size_t size = *reinterpret_cast<std::size_t*>(address - kAlignment);
    auto* const block = static_cast<Block*>(data);
    Block*& free = free_[static_cast<std::size_t>(std::countr_zero(size))];
    block->next = free;
    free = block;
    return true;
  }

 private:
  struct Block {
    Block* next;
  };

  /// Without a device the tests get ordinary memory, and fail at their first call with its words.
  void open() {
    tried_ = true;
    setenv("CUDA_LAUNCH_BLOCKING", "1", 1);  // tests read results as soon as a call returns
    void* data = nullptr;
    if (cudaHostAlloc(&data, kArenaBytes, cudaHostAllocMapped | cudaHostAllocPortable) ==
        cudaSuccess) {
      start_ = static_cast<std::byte*>(data);
    }
  }

  std::recursive_mutex mutex_;  // the runtime may allocate while the arena opens
  bool tried_ = false;
  std::byte* start_ = nullptr;
  std::size_t used_ = 0;
  std::array<Block*, 48> free_{};
};

SharedArena& arena() {
  // Never destroyed: static objects free their memory after everything else.
  alignas(SharedArena) static std::byte memory[sizeof(SharedArena)];
  static SharedArena* const instance = new (memory) SharedArena;
  return *instance;
}

void* allocate(std::size_t bytes) {
  if (void* const data = arena().allocate(bytes)) return data;
  if (void* const data = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment)) {
    return data;
  }
  throw std::bad_alloc();
}

void release(void* data) noexcept {
  if (data != nullptr && !arena().release(data)) std::free(data);
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes); }
void* operator new[](std::size_t bytes) { return allocate(bytes); }
void* operator new(std::size_t bytes, std::align_val_t) { return allocate(bytes); }
void* operator new[](std::size_t bytes, std::align_val_t) { return allocate(bytes); }
void operator delete(void* data) noexcept { release(data); }
void operator delete[](void* data) noexcept { release(data); }
void operator delete(void* data, std::size_t) noexcept { release(data); }
void operator delete[](void* data, std::size_t) noexcept { release(data); }
void operator delete(void* data, std::align_val_t) noexcept { release(data); }
void operator delete[](void* data, std::align_val_t) noexcept { release(data); }
void operator delete(void* data, std::size_t, std::align_val_t) noexcept { release(data); }
void operator delete[](void* data, std::size_t, std::align_val_t) noexcept { release(data); }
