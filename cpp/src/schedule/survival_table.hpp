// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What SurvivalModel keeps of each request, found by id.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "schedule/survival_state.hpp"

namespace smartspec::survival {

/// The rest of a draft that was right so far, to be scored on the tokens to come. Owns its tokens.
struct Shadow {
  std::uint8_t next = 0;    // depth of the first token not scored yet
  std::uint8_t length = 0;  // depth behind the last one
  std::uint8_t asked = 0;   // a draft that ends before counts as wrong there
  std::array<std::uint8_t, SurvivalModel::kMaxDepth> claims{};  // pack_claim()
  std::array<TokenId, SurvivalModel::kMaxDepth> tokens{};

  [[nodiscard]] bool alive() const noexcept { return next < std::max(length, asked); }
};

inline constexpr std::uint8_t kPackedNoClaim = 255;
inline constexpr float kClaimSteps = 16;  // per logit

inline std::uint8_t pack_claim(float claim) noexcept {
  if (claim == kNoClaim) return kPackedNoClaim;
  return static_cast<std::uint8_t>((claim - kFirstKnot) * kClaimSteps + 0.5F);
}
inline float unpack_claim(std::uint8_t packed) noexcept {
  if (packed == kPackedNoClaim) return kNoClaim;
  return kFirstKnot + static_cast<float>(packed) / kClaimSteps;
}

/// Of one request by one proposer.
struct RequestState {
  Difference chain;  // in what expect() says
  Difference node;   // in what calibrate() says, claims known
  Shadow shadow;
};

/// Open addressing with linear probing and backward shifts; `width` states per request. Pointers
/// stay valid until erase(). Allocates for new requests only and shrinks when they go.
class RequestTable {
 public:
  explicit RequestTable(std::size_t width) : width_(width), slots_(kLeastSlots) {}

  [[nodiscard]] RequestState* find(RequestId id) const noexcept {
    for (std::size_t at = home(id);; at = next(at)) {
      const Slot& slot = slots_[at];
      if (slot.states == nullptr) return nullptr;
      if (slot.id == id) return slot.states.get();
    }
  }

  RequestState* find_or_add(RequestId id) {
    if (RequestState* states = find(id)) return states;
    if (4 * (size_ + 1) > 3 * slots_.size()) rehash(2 * slots_.size());
    auto states = std::make_unique<RequestState[]>(width_);
    RequestState* result = states.get();
    place({id, std::move(states)});
    ++size_;
    return result;
  }

  void erase(RequestId id) {
    std::size_t at = home(id);
    for (;; at = next(at)) {
      if (slots_[at].states == nullptr) return;
      if (slots_[at].id == id) break;
    }
    slots_[at].states.reset();
    --size_;
    for (std::size_t from = next(at); slots_[from].states != nullptr; from = next(from)) {
      // Only what probed past the hole may move into it.
      const std::size_t distance = (from - home(slots_[from].id)) & (slots_.size() - 1);
      if (distance < ((from - at) & (slots_.size() - 1))) continue;
      slots_[at] = std::move(slots_[from]);
      at = from;
    }
    if (slots_.size() > kLeastSlots && 8 * size_ < slots_.size()) rehash(slots_.size() / 2);
  }

 private:
  struct Slot {
    RequestId id = 0;
    std::unique_ptr<RequestState[]> states;
  };
  static constexpr std::size_t kLeastSlots = 64;

  [[nodiscard]] std::size_t home(RequestId id) const noexcept {
    std::uint64_t hash = static_cast<std::uint64_t>(id) * 0x9E3779B97F4A7C15ULL;
    hash ^= hash >> 32U;
    return static_cast<std::size_t>(hash) & (slots_.size() - 1);
  }
  [[nodiscard]] std::size_t next(std::size_t at) const noexcept {
    return (at + 1) & (slots_.size() - 1);
  }
  void place(Slot slot) {
    std::size_t at = home(slot.id);
    while (slots_[at].states != nullptr) at = next(at);
    slots_[at] = std::move(slot);
  }
  void rehash(std::size_t num_slots) {
    std::vector<Slot> old(num_slots);
    old.swap(slots_);
    for (Slot& slot : old) {
      if (slot.states != nullptr) place(std::move(slot));
    }
  }

  std::size_t width_;
  std::size_t size_ = 0;
  std::vector<Slot> slots_;
};

}  // namespace smartspec::survival
