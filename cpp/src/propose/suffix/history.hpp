// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The shared history of one namespace: a live generation that grows, older ones frozen to 8 bytes
// per token, and what verification taught about drafts from them.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "propose/suffix/arena.hpp"
#include "propose/suffix/automaton.hpp"
#include "propose/suffix/calibration.hpp"
#include "propose/suffix/frozen.hpp"
#include "smartspec/suffix_index.hpp"

namespace smartspec::suffix {

inline constexpr std::size_t kTokensBetweenChecks = 1024;  // of a generation's size, in long texts
inline constexpr RequestId kNobody = -1;  // owner of preloaded and loaded sequences

/// Finished sequences one after another, in the layout of FrozenSegment's text.
class SequenceStore {
 public:
  /// Sequences of a file: `lengths` sum to the text's. They belong to nobody.
  static SequenceStore adopt(Arena<TokenId> text, std::span<const std::uint32_t> lengths);

  void add(std::span<const TokenId> tokens, RequestId owner);
  [[nodiscard]] std::uint32_t size() const noexcept {
    return static_cast<std::uint32_t>(owners_.size());
  }
  [[nodiscard]] std::span<const TokenId> tokens(std::uint32_t i) const noexcept {
    return text_.span().subspan(starts_[i], lengths_[i]);
  }
  [[nodiscard]] std::vector<std::span<const TokenId>> all() const;
  [[nodiscard]] std::span<const RequestId> owners() const noexcept { return owners_; }
  [[nodiscard]] std::size_t bytes() const noexcept {
    return text_.bytes() + owners_.size() * (sizeof(RequestId) + sizeof(std::uint64_t) * 2);
  }
  void drop_text() { text_ = {}; }

 private:
  Arena<TokenId> text_;
  std::vector<std::uint64_t> starts_;
  std::vector<std::uint64_t> lengths_;
  std::vector<RequestId> owners_;
};

/// An automaton while it grows and until it is frozen, then a frozen segment.
struct Generation {
  std::uint64_t id = 0;  // later ones are larger, over all namespaces
  SuffixAutomaton automaton;
  SequenceStore sequences;
  std::optional<FrozenSegment> frozen;
  std::vector<std::uint32_t> forgotten;  // sequences; to be told to the segment when it is built
  bool is_reserved = false;              // address space for all it may hold
  bool is_dropped = false;               // by eviction while it was waiting to be frozen

  [[nodiscard]] std::size_t bytes() const noexcept;
  [[nodiscard]] std::int64_t num_tokens() const noexcept;
};

/// Not thread-safe: SuffixIndex locks.
struct History {
  std::string name;
  std::deque<std::shared_ptr<Generation>> generations;  // oldest first; the last one is live
  Calibration calibration;

  [[nodiscard]] Generation& live() noexcept { return *generations.back(); }
  [[nodiscard]] const Generation& live() const noexcept { return *generations.back(); }
  [[nodiscard]] std::size_t bytes() const noexcept;
};

/// Exact counts over all generations of the longest suffix of `context` that occurs in any.
SuffixLookup look_up(const History& history, std::span<const TokenId> context);

}  // namespace smartspec::suffix
