// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Forward passes as CUDA graphs: a decode step is some hundred short launches, and launching them
// one by one takes longer than running them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "host/runtime.hpp"

namespace smartspec::cuda {

inline constexpr std::int32_t kMaxGraphRows = 512;  // longer passes are bound by their kernels

/// The tier that `count` belongs to: passes are padded to it, so that few graphs serve them all. At
/// most 3 or half as much again; beyond kMaxGraphRows nothing is padded.
constexpr std::int32_t tier_of(std::int32_t count) noexcept {
  if (count == 0 || count > kMaxGraphRows) return count;
  std::int32_t tier = 1;  // 1, 2, 4, 8, then with a step between: 12, 16, 24, 32, 48, ...
  while (tier < count) tier *= 2;
  return tier > 8 && tier / 4 * 3 >= count ? tier / 4 * 3 : tier;
}

class PassGraphs {
 public:
  /// Everything the launches of a pass depend on: sizes and addresses.
  using Signature = std::vector<std::uint64_t>;

  /// Calls `pass` the first time it sees the signature, so that everything is allocated and loaded;
  /// records it the second time; repeats the record from then on. Where recording fails, `pass` is
  /// called each time; `again` undoes what it has noted on the host.
  void run(const Signature& signature, CUstream_st* stream, const std::function<void()>& pass,
           const std::function<void()>& again);
  [[nodiscard]] std::int64_t num_replays() const noexcept { return num_replays_; }

 private:
  enum class State : std::uint8_t { kNew, kWarm, kRecorded, kRefused };
  struct Entry {
    State state = State::kNew;
    CapturedGraph graph;
  };
  static constexpr std::size_t kMaxEntries = 128;

  std::map<Signature, Entry> entries_;
  std::int64_t num_replays_ = 0;
};

}  // namespace smartspec::cuda
