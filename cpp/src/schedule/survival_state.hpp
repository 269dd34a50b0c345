// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The two estimators behind SurvivalModel: what all requests of a proposer share, and how one
// request differs.
//
//   logit P(token accepted | path accepted) = level + group + depth + claim + request
//
// Every term is a weight with a variance; a trial moves each in proportion to its variance
// (extended Kalman filter of a logistic model with a diagonal covariance, as in Glicko and
// AdPredictor). Variances are inflated a little at every trial, so old evidence fades.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "smartspec/survival_model.hpp"

namespace smartspec::survival {

/// In [-most, most]; by value, so that it compiles to two instructions.
inline float bounded(float x, float most) noexcept {
  const float low = x < most ? x : most;
  return low > -most ? low : -most;
}

// Both to about 1e-5; 3 ns, where the library's take 10.
inline float fast_exp(float x) noexcept {
  const float y = bounded(x, 80.0F) * 1.44269504F;
  const float shifted = y + 12582912.0F;  // 1.5 * 2^23: rounds to the nearest integer
  const float f = (y - (shifted - 12582912.0F)) * 0.69314718F;
  const float f2 = f * f;
  const float poly =
      ((1 + f) + f2 * (0.5F + f * 0.16666667F)) + f2 * f2 * (0.041666667F + f * 0.0083333333F);
  const auto exponent = std::bit_cast<std::uint32_t>(shifted) << 23U;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(poly) + exponent);
}

/// Of a positive normal number.
inline float fast_log(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t offset = bits - 0x3F3504F3U;  // sqrt(1/2): the mantissa is near 1
  const auto exponent = static_cast<float>(static_cast<std::int32_t>(offset) >> 23);
  const float m = std::bit_cast<float>(bits - (offset & 0xFF800000U));
  const float s = (m - 1) / (m + 1);
  const float s2 = s * s;
  return exponent * 0.69314718F + 2 * s * (1 + s2 * (0.33333333F + s2 * (0.2F + s2 * 0.142857F)));
}

// Claims are taken in logits, linearly between knots.
inline constexpr std::int32_t kNumKnots = 12;
inline constexpr float kFirstKnot = -5;
inline constexpr float kLastKnot = kFirstKnot + kNumKnots - 1;
inline constexpr float kNoClaim = 1e9F;
inline constexpr std::int32_t kNumRanks = 4;  // of siblings without claims; later ones share one

// For speed what they come to is tabled over the claim's odds.
inline constexpr std::uint32_t kClaimShift = 21;  // leaves two bits of the mantissa: four an octave
inline constexpr float kLeastOdds = 0x1p-7F;
inline constexpr float kMostOdds = 0x1.fffffep+8F;
inline constexpr std::uint32_t kLeastOddsBits = std::bit_cast<std::uint32_t>(kLeastOdds);
inline constexpr std::size_t kNumClaimCells = 64;
inline constexpr float kNoOdds = -1;

/// Odds of a node's claim given its parent's; kNoOdds when it claims no less than its parent does,
/// or what is not a number: no claim.
inline float claim_odds(float claim, float parent_claim) noexcept {
  if (!(claim < parent_claim)) return kNoOdds;
  return std::max(claim, 0.0F) / (parent_claim - claim);
}

/// As logit within the tabled odds.
inline float claim_logit(float odds) noexcept {
  return odds < 0 ? kNoClaim : fast_log(std::clamp(odds, kLeastOdds, kMostOdds));
}

inline constexpr std::int32_t kOnlyChild = -1;  // a rank that stays as it was at first

/// What is known of a token before it is tried.
struct Trial {
  std::int32_t group = 0;
  std::int32_t depth = 0;  // < SurvivalModel::kMaxDepth
  std::int32_t rank = 0;   // among its siblings, < kNumRanks; or kOnlyChild
  float claim = kNoClaim;  // claim_logit()
};

// A request's effect is integrated over four points (Gauss-Hermite), so that a request of which
// little is known gets the average of what it may be, not what an average request gets: only the
// easy ones of them reach the deeper tokens.
inline constexpr std::size_t kNumPoints = 4;
inline constexpr std::array<float, kNumPoints> kPoints = {-2.33441422F, -0.74196378F, 0.74196378F,
                                                          2.33441422F};
inline constexpr std::array<float, kNumPoints> kPointWeights = {0.04587585F, 0.45412415F,
                                                                0.45412415F, 0.04587585F};
using Points = std::array<float, kNumPoints>;

/// How a request differs from the average, in logits: a slow part, its nature, and a fast one that
/// is forgotten within a few tokens, the passage it writes now. Joint Gaussian.
struct Difference {
  float slow = 0;
  float fast = 0;
  float slow_variance = 0;
  float fast_variance = 0;
  float covariance = 0;
  float shrink = 1;         // of logits, for its variance before the trials of a learn()
  float trials = 0;         // fading
  std::uint32_t epoch = 0;  // of the model; 0: never used

  [[nodiscard]] float mean() const noexcept { return slow + fast; }
  [[nodiscard]] float variance() const noexcept {
    return std::max(slow_variance + fast_variance + 2 * covariance, 0.0F);
  }
};

/// What the requests of a proposer share. Holds no reference to requests.
class Acceptance {
 public:
  /// Throws nothing; options are valid.
  explicit Acceptance(const SurvivalModelOptions& options);

  /// Odds at each depth of a first child without a claim, and the factors by which others differ.
  struct Table {
    std::array<float, SurvivalModel::kMaxDepth> depth_odds{};
    std::array<float, kNumRanks> rank_factors{};
    std::uint64_t version = 0;
  };
  /// Claims of late, in logits: their mean, and how far they lie from it.
  [[nodiscard]] float usual_claim() const noexcept { return claim_mean_; }
  [[nodiscard]] float claim_spread() const noexcept { return std::sqrt(claim_variance_); }

  /// The same for claims, ascending; kClaimCells per octave of the claim's odds.
  struct ClaimTable {
    std::array<float, kNumClaimCells + 1> factors{};
    std::uint64_t version = 0;

    [[nodiscard]] float factor(float odds) const noexcept {
      const std::uint32_t bits =
          std::bit_cast<std::uint32_t>(std::clamp(odds, kLeastOdds, kMostOdds)) - kLeastOddsBits;
      const std::uint32_t cell = bits >> kClaimShift;
      constexpr std::uint32_t kMask = (1U << kClaimShift) - 1;
      const float part = static_cast<float>(static_cast<std::int32_t>(bits & kMask)) *
                         (1.0F / static_cast<float>(1U << kClaimShift));
      return factors[cell] + part * (factors[cell + 1] - factors[cell]);
    }
  };
  /// Rebuilt when something was learnt since.
  [[nodiscard]] const Table& table(std::int32_t group) const {
    Table& table = tables_[static_cast<std::size_t>(group)];
    if (table.version != version_) build(group, table);
    return table;
  }
  [[nodiscard]] const ClaimTable& claim_table(std::int32_t group) const {
    ClaimTable& table = claim_tables_[static_cast<std::size_t>(group)];
    if (table.version != version_) build(group, table);
    return table;
  }

  /// Factors on the odds at the quadrature points.
  [[nodiscard]] Points points(const Difference* difference) const noexcept;

  /// One trial; returns the probability expected before. `own`: it also tells about the request
  /// and about jumps.
  float learn(const Trial& trial, bool accepted, bool own, Difference& difference);

  /// The request's `tokens` went by; the end of a learn() in which it was told something, or not.
  void advance(std::int32_t tokens, bool learnt, Difference& difference);

  /// Tokens of which nothing was seen: the average is trusted less.
  void fade(std::int32_t tokens) noexcept;

  /// Makes `difference` fit to use: a new request's, also after a jump.
  void prepare(Difference& difference) const noexcept;
  [[nodiscard]] bool is_current(const Difference& difference) const noexcept {
    return difference.epoch == epoch_;
  }

  [[nodiscard]] double evidence() const noexcept { return static_cast<double>(trials_); }
  [[nodiscard]] std::uint32_t epoch() const noexcept { return epoch_; }

 private:
  struct Weight {
    float value = 0;
    float variance = 0;
  };

  /// How much requests differ. What their means show has to agree with what they were told: over
  /// requests, mean^2 = variance - left on average.
  struct Spread {
    float variance = 0;
    float first = 0;  // before any observation
    float usually_told = 0;
    void learn(float mean, float left) noexcept;
  };

  /// Sum of accepted - expected over recent trials, fading.
  struct Residual {
    float sum = 0;
    float variance = 0;
  };

  template <typename Visit>
  void for_each_weight(const Trial& trial, const Visit& visit);
  void note_claim(float claim) noexcept;
  void note_residual(float residual, float variance);
  void open_up() noexcept;
  void build(std::int32_t group, Table& table) const;
  void build(std::int32_t group, ClaimTable& table) const;

  float memory_;
  float level_fade_;  // per trial
  float shape_fade_;
  Spread slow_spread_;
  Spread fast_spread_;

  // Slopes are about the mean claim: about a far point they and the level would explain the same,
  // and with a diagonal covariance be slow to part. As the mean moves, so does the value there.
  float claim_mean_ = 0;
  float claim_variance_ = 1;
  float num_claims_ = 0;  // fading
  float anchor_ = 0;
  std::array<float, SurvivalModel::kMaxGroups> group_anchors_{};

  Weight level_;
  Weight slope_;
  std::array<Weight, SurvivalModel::kMaxGroups> groups_{};
  std::array<Weight, SurvivalModel::kMaxGroups> group_slopes_{};
  std::array<Weight, kNumKnots> knots_{};
  std::array<Weight, kNumRanks> ranks_{};
  std::array<Weight, SurvivalModel::kMaxDepth> depths_{};
  std::array<std::array<Weight, SurvivalModel::kMaxDepth>, SurvivalModel::kMaxGroups>
      group_depths_{};
  std::int32_t deepest_ = 0;  // depth tried; deeper ones do as it does

  std::array<Residual, 2> residuals_{};
  float trials_ = 0;  // fading
  std::uint32_t epoch_ = 1;
  std::uint64_t version_ = 1;
  mutable std::array<Table, SurvivalModel::kMaxGroups> tables_{};
  mutable std::array<ClaimTable, SurvivalModel::kMaxGroups> claim_tables_{};
};

}  // namespace smartspec::survival
