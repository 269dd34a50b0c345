// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Contiguous growable memory that goes back to the system when dropped: anonymous pages, or the
// front of a private file mapping followed by anonymous pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

namespace smartspec::suffix {

/// Raw pages. `data` moves when it grows past `capacity`. Not thread-safe; throws std::bad_alloc.
class Pages {
 public:
  Pages() = default;
  Pages(Pages&& other) noexcept { swap(other); }
  Pages& operator=(Pages&& other) noexcept {
    Pages(std::move(other)).swap(*this);
    return *this;
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages();

  /// Private copy-on-write view of `num_bytes` of an open file at a page-aligned `offset`; writes
  /// never reach the file, and it grows to `reserve_bytes` in place. Throws std::system_error.
  static Pages map_file(int file, std::uint64_t offset, std::size_t num_bytes,
                        std::size_t reserve_bytes);

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  void grow(std::size_t num_bytes);
  void swap(Pages& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
    std::swap(is_mapped_, other.is_mapped_);
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t capacity_ = 0;
  bool is_mapped_ = false;  // pages of our own, else the heap's
};

/// A vector of trivially copyable elements over Pages: growing moves page tables, not bytes.
template <class T>
class Arena {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Arena() = default;
  Arena(Arena&& other) noexcept
      : pages_(std::move(other.pages_)), size_(std::exchange(other.size_, 0)) {}
  Arena& operator=(Arena&& other) noexcept {
    pages_ = std::move(other.pages_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  static Arena map_file(int file, std::uint64_t offset, std::size_t size, std::size_t reserve) {
    Arena arena;
    arena.pages_ = Pages::map_file(file, offset, size * sizeof(T), reserve * sizeof(T));
    arena.size_ = size;
    return arena;
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return size_ * sizeof(T); }
  [[nodiscard]] T* data() const noexcept { return reinterpret_cast<T*>(pages_.data()); }
  [[nodiscard]] T& operator[](std::size_t i) noexcept { return data()[i]; }
  [[nodiscard]] const T& operator[](std::size_t i) const noexcept { return data()[i]; }
  [[nodiscard]] std::span<const T> span() const noexcept { return {data(), size_}; }

  /// Appends `count` elements and returns the index of the first; their content is unspecified.
  std::size_t extend(std::size_t count) {
    reserve(size_ + count);
    return std::exchange(size_, size_ + count);
  }
  void push_back(const T& value) {
    const T copy = value;                 // `value` may live in the pages that are about to move
    const std::size_t index = extend(1);  // before data(): it may move
    data()[index] = copy;
  }
  /// Room for `size` elements without moving. Only touched pages cost memory.
  void reserve(std::size_t size) {
    if (size * sizeof(T) > pages_.capacity()) pages_.grow(size * sizeof(T));
  }

 private:
  Pages pages_;
  std::size_t size_ = 0;
};

}  // namespace smartspec::suffix
