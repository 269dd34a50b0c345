// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "propose/suffix/arena.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>

namespace smartspec::suffix {
namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kHeapBytes = std::size_t{64} << 10;  // below: the heap, above: own pages
// Random walks over hundreds of megabytes miss the TLB at every step without huge pages.
constexpr std::size_t kHugePagesFrom = std::size_t{4} << 20;

void advise_huge_pages(std::byte* data, std::size_t capacity) {
#ifdef MADV_HUGEPAGE
  if (capacity >= kHugePagesFrom) (void)madvise(data, capacity, MADV_HUGEPAGE);
#else
  (void)data;
  (void)capacity;
#endif
}

std::size_t round_to_pages(std::size_t num_bytes) {
  return (num_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

std::byte* map_anonymous(std::size_t capacity) {
  void* data = mmap(nullptr, capacity, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(data);
}

}  // namespace

Pages::~Pages() {
  if (data_ == nullptr) return;
  if (is_mapped_) {
    (void)munmap(data_, capacity_);
  } else {
    std::free(data_);
  }
}

Pages Pages::map_file(int file, std::uint64_t offset, std::size_t num_bytes,
                      std::size_t reserve_bytes) {
  // One anonymous page behind the file at least, so that the two never look like one mapping.
  const std::size_t front = round_to_pages(num_bytes);
  const std::size_t capacity = std::max(round_to_pages(reserve_bytes), front + kPageBytes);
  Pages pages;
  pages.data_ = map_anonymous(capacity);
  pages.capacity_ = capacity;
  pages.is_mapped_ = true;
  if (num_bytes > 0 && mmap(pages.data_, front, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
                            file, static_cast<off_t>(offset)) == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(), "mmap");
  }
  return pages;
}

void Pages::grow(std::size_t num_bytes) {
  const std::size_t wanted = std::max({num_bytes, capacity_ * 2, std::size_t{1024}});
  if (wanted <= kHeapBytes && !is_mapped_) {
    void* data = std::realloc(data_, wanted);
    if (data == nullptr) throw std::bad_alloc();
    data_ = static_cast<std::byte*>(data);
    // Arenas go to files whole: what the heap held before must not.
    std::memset(data_ + capacity_, 0, wanted - capacity_);
    capacity_ = wanted;
    return;
  }
  const std::size_t capacity = round_to_pages(wanted);
  std::byte* data = nullptr;
#ifdef MREMAP_MAYMOVE
  if (is_mapped_) {  // refused for a file with anonymous pages behind it: copied below
    void* moved = mremap(data_, capacity_, capacity, MREMAP_MAYMOVE);
    if (moved != MAP_FAILED) data = static_cast<std::byte*>(moved);
  }
#endif
  if (data == nullptr) {
    data = map_anonymous(capacity);
    if (capacity_ > 0) std::memcpy(data, data_, capacity_);
    const Pages dropped = std::exchange(*this, Pages());
  }
  data_ = data;
  capacity_ = capacity;
  is_mapped_ = true;
  advise_huge_pages(data_, capacity_);
}

}  // namespace smartspec::suffix
