// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "cpu/aligned.hpp"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace smartspec::cpu {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

#if defined(__linux__)
/// 2 MiB aligned, so that every page of it can be a huge one. The kernel hands out zeros.
Buffer allocate_huge(std::size_t bytes) {
  const std::size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  const std::size_t mapped = size + kHugePage;
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  const auto address = reinterpret_cast<std::uintptr_t>(base);
  const std::uintptr_t aligned = (address + kHugePage - 1) / kHugePage * kHugePage;
  auto* data = reinterpret_cast<void*>(aligned);
  madvise(data, size, MADV_HUGEPAGE);  // advice only: small pages are correct too
  return Buffer(data, bytes, [base, mapped](void*) { munmap(base, mapped); });
}
#endif

}  // namespace

Buffer allocate_aligned(std::size_t bytes) {
  if (bytes == 0) return {};
  if (bytes > std::numeric_limits<std::size_t>::max() / 2) throw std::bad_alloc();
#if defined(__linux__)
  if (bytes >= kHugePage) return allocate_huge(bytes);
#endif
  const std::size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* data = std::aligned_alloc(kAlignment, size);
  if (data == nullptr) throw std::bad_alloc();
  std::memset(data, 0, size);
  return Buffer(data, bytes, [](void* p) { std::free(p); });
}

}  // namespace smartspec::cpu
