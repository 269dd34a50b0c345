// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding tables (Su et al. 2021, RoFormer; scaling as named in ModelConfig).
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.hpp"
#include "smartspec/model.hpp"

namespace smartspec {

/// Radians per position of each pair of a head: [head_dim / 2].
std::vector<double> rope_frequencies(const ModelConfig& config);

/// cos and sin on the device, [positions, head_dim / 2] each. Computed in double, so that an entry
/// depends on its position alone. Grows as positions are used: a configuration may claim millions.
class RopeTable {
 public:
  RopeTable(const ModelConfig& config, std::int32_t max_positions);

  /// Makes rows [0, position] present. `position` < max_positions.
  void reach(std::int32_t position, Backend& backend);
  [[nodiscard]] const float* cos() const noexcept { return cos_.as<float>(); }
  [[nodiscard]] const float* sin() const noexcept { return sin_.as<float>(); }

 private:
  std::vector<double> frequencies_;
  std::int32_t max_positions_;
  std::int32_t num_positions_ = 0;
  Buffer cos_;
  Buffer sin_;
};

}  // namespace smartspec
