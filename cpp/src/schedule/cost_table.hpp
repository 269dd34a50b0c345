// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// CostCoefficients with the learner's own knots inserted, laid out for reading: what predict() and
// segments() evaluate.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "smartspec/cost_model.hpp"

namespace smartspec::cost {

/// Knots every model has, whatever it starts from. Kernels work in tiles, so pass times jump where
/// a tile is full: the pairs on both sides of usual tile sizes can hold such a jump.
inline constexpr std::array kGrid = std::to_array<std::int32_t>(
    {1,   2,   3,   4,   6,   8,   9,    12,   13,   16,   17,   24,  25,  32,
     33,  48,  49,  64,  65,  80,  96,   97,   128,  129,  160,  192, 193, 256,
     257, 384, 385, 512, 513, 768, 1024, 1536, 2048, 3072, 4096, 8192});

enum Term : std::size_t { kSequence, kLogit, kKvToken, kPair, kExpert, kNumTerms };

inline constexpr double kMinSeconds = 1e-9;
inline constexpr double kMaxSeconds = 1e6;

/// A load with negative counts taken for zero.
struct CleanLoad {
  explicit CleanLoad(const StepLoad& load)
      : passes(std::max(load.num_passes, 1)),
        tokens(std::max(load.num_tokens, 0)),
        counts{static_cast<double>(std::max(load.num_sequences, 0)),
               static_cast<double>(std::max(load.num_logits, 0)),
               static_cast<double>(std::max<std::int64_t>(load.kv_tokens, 0)),
               static_cast<double>(std::max<std::int64_t>(load.attention_pairs, 0))} {}
  std::int64_t passes;  // >= 1
  std::int64_t tokens;
  std::array<double, 4> counts;  // in the order of Term
};

struct CostTable {
  explicit CostTable(const CostCoefficients& start);

  /// A place on the staircase: seconds[point] + fraction * (seconds[point + 1] - seconds[point]).
  /// Behind the last knot the fraction exceeds 1.
  struct Place {
    std::size_t point = 0;
    double fraction = 0;
  };
  [[nodiscard]] Place place(double tokens) const;  // not padded
  [[nodiscard]] Place padded_place(const CleanLoad& load) const;
  [[nodiscard]] double read(std::span<const double> values, Place place) const {
    if (place.fraction == 0) return values[place.point];
    return values[place.point] + place.fraction * (values[place.point + 1] - values[place.point]);
  }
  /// Expected experts one of the passes loads; constant behind the last knot.
  [[nodiscard]] double experts_at(double tokens) const;
  [[nodiscard]] double predict(const CleanLoad& load) const;
  void segments(const CleanLoad& base, double seconds_per_token, std::int64_t max_tokens,
                std::vector<CostSegment>& segments) const;

  std::vector<std::int32_t> knots;       // [m] start's, tiers and kGrid
  std::vector<double> seconds;           // [m] non-decreasing
  std::vector<double> experts;           // [m] expected, of one pass; empty: a dense model
  std::vector<std::int32_t> tiers;       // [t]
  std::vector<std::size_t> tier_points;  // [t] index of the tier among the knots
  std::array<double, kNumTerms> per{};   // seconds per count of a term
};

}  // namespace smartspec::cost
