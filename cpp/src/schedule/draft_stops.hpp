// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// How far drafts get that stop where their proposer does not believe in them itself.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "smartspec/survival_model.hpp"

namespace smartspec {

/// Of one paying proposer. Not thread-safe.
class DraftStops {
 public:
  /// A draft of `drawn` levels was made where `asked` were allowed.
  void learn(std::int32_t group, std::int32_t asked, std::int32_t drawn) noexcept;
  /// reach[d] = P(a draft that is allowed more than d levels gets to level d + 1).
  void expect(std::int32_t group, std::span<float> reach) const noexcept;

 private:
  static constexpr std::size_t kNumLevels = SurvivalModel::kMaxDepth;
  struct Rate {
    float trials = 0;  // fading
    float passed = 0;
  };
  using Levels = std::array<Rate, kNumLevels>;  // [l] getting to level l + 1 from level l
  std::array<Levels, SurvivalModel::kMaxGroups> groups_{};
};

}  // namespace smartspec
