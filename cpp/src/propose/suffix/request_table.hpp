// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Active requests by id: one cache line per lookup, which can be asked for ahead.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "propose/suffix/request.hpp"

namespace smartspec::suffix {

/// Owns the requests; their addresses are stable. Open addressing, at most half full. Not
/// thread-safe for writing.
class RequestTable {
 public:
  RequestTable() : slots_(16) {}

  [[nodiscard]] RequestState* find(RequestId id) const noexcept {
    for (std::size_t i = home(id);; i = next(i)) {
      if (slots_[i].request == nullptr) return nullptr;
      if (slots_[i].id == id) return slots_[i].request.get();
    }
  }
  void prefetch(RequestId id) const noexcept { __builtin_prefetch(slots_.data() + home(id)); }

  /// `request->id` must not be there.
  void insert(std::unique_ptr<RequestState> request) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    place(std::move(request));
    ++size_;
  }
  /// The request, or null.
  std::unique_ptr<RequestState> take(RequestId id) {
    std::size_t i = home(id);
    while (slots_[i].request != nullptr && slots_[i].id != id) i = next(i);
    if (slots_[i].request == nullptr) return nullptr;
    std::unique_ptr<RequestState> taken = std::move(slots_[i].request);
    for (std::size_t j = next(i); slots_[j].request != nullptr; j = next(j)) {
      const std::size_t mask = slots_.size() - 1;
      if (((j - home(slots_[j].id)) & mask) < ((j - i) & mask)) continue;
      slots_[i] = std::move(slots_[j]);
      i = j;
    }
    --size_;
    return taken;
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  template <class Visit>
  void for_each(Visit&& visit) const {
    for (const Slot& slot : slots_) {
      if (slot.request != nullptr) visit(*slot.request);
    }
  }

 private:
  struct Slot {
    RequestId id = 0;
    std::unique_ptr<RequestState> request;
  };

  [[nodiscard]] std::size_t home(RequestId id) const noexcept {
    const std::uint64_t mixed = static_cast<std::uint64_t>(id) * 0x9E3779B97F4A7C15ULL;
    return static_cast<std::size_t>(mixed >> 32) & (slots_.size() - 1);
  }
  [[nodiscard]] std::size_t next(std::size_t i) const noexcept {
    return (i + 1) & (slots_.size() - 1);
  }
  void place(std::unique_ptr<RequestState> request) {
    std::size_t i = home(request->id);
    while (slots_[i].request != nullptr) i = next(i);
    const RequestId id = request->id;
    slots_[i] = {id, std::move(request)};
  }
  void grow() {
    std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slots_.size() * 2));
    for (Slot& slot : old) {
      if (slot.request != nullptr) place(std::move(slot.request));
    }
  }

  std::vector<Slot> slots_;
  std::size_t size_ = 0;
};

}  // namespace smartspec::suffix
