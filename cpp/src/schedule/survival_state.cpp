// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "schedule/survival_state.hpp"

#include <cmath>

namespace smartspec::survival {
namespace {

// Variances before any observation, in squared logits.
constexpr float kLevelVariance = 1;
constexpr float kSlopeVariance = 0.25F;
constexpr float kKnotVariance = 0.09F;
constexpr float kRankVariance = 0.5F;
constexpr float kDepthVariance = 0.15F;
constexpr float kGroupVariance = 0.15F;
constexpr float kGroupSlopeVariance = 0.04F;
constexpr float kGroupDepthVariance = 0.04F;
constexpr float kJumpVariance = 0.02F;  // of everything but the level after a jump, at least

// The shape is remembered longer than the level: it changes less, and every weight that moves adds
// its own noise.
constexpr float kShapeMemory = 8;

// A request's nature may wander so much per token; with p(1 - p) = .2 that makes it look back over
// about 150 tokens.
constexpr float kSlowDrift = 0.0002F;
constexpr float kFastCorrelation = 0.85F;  // of the fast part from token to token
constexpr float kRequestMemory = 100;
// How much requests differ is learnt by steps of this size, within these bounds.
constexpr float kSpreadRate = 0.003F;
constexpr float kToldRate = 0.01F;
constexpr float kLeastTold = 0.03F;
constexpr float kMostExcess = 8;
constexpr float kLeastSpread = 1.0F / 64;
constexpr float kMostSpread = 16;

constexpr std::array<float, 2> kJumpWindows = {64, 512};  // trials
constexpr float kJumpEvidence = 15;    // -log of how rarely chance may look like a jump, per look
constexpr float kProbit = 0.3926991F;  // pi / 8: a logistic function averaged over a Gaussian
constexpr float kMostLogit = 9;
constexpr float kMostSum = 24;       // of terms: all their products stay finite
constexpr float kClaimMemory = 512;  // claims, for their mean
constexpr float kUnseenFade = 8;     // tokens not seen fade the average that much slower

/// E logistic(x + noise) is about logistic(x * this) (MacKay 1992).
float shrink_by(float variance) { return 1 / std::sqrt(1 + kProbit * variance); }

float logit(double p) { return static_cast<float>(std::log(p / (1 - p))); }

struct Cell {
  std::size_t knot = 0;
  float part = 0;  // of the way to the next knot
};

Cell find_cell(float claim) noexcept {
  const float at = std::clamp(claim - kFirstKnot, 0.0F, static_cast<float>(kNumKnots - 1));
  const auto knot = std::min(static_cast<std::int32_t>(at), kNumKnots - 2);
  return {static_cast<std::size_t>(knot), at - static_cast<float>(knot)};
}

/// Where the table's odds lie between the knots.
const std::array<Cell, kNumClaimCells + 1> kClaimCells = [] {
  std::array<Cell, kNumClaimCells + 1> cells{};
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const auto bits = kLeastOddsBits + (static_cast<std::uint32_t>(i) << kClaimShift);
    cells[i] = find_cell(std::log(std::bit_cast<float>(bits)));
  }
  return cells;
}();

/// Pool adjacent violators: the nearest ascending sequence.
void make_ascending(std::array<float, kNumKnots>& values,
                    const std::array<float, kNumKnots>& weights) {
  std::array<float, kNumKnots> mean{};
  std::array<float, kNumKnots> weight{};
  std::array<std::size_t, kNumKnots> count{};
  std::size_t blocks = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    mean[blocks] = values[i];
    weight[blocks] = weights[i];
    count[blocks] = 1;
    while (blocks > 0 && mean[blocks] < mean[blocks - 1]) {
      const float sum = weight[blocks - 1] + weight[blocks];
      mean[blocks - 1] =
          (mean[blocks - 1] * weight[blocks - 1] + mean[blocks] * weight[blocks]) / sum;
      weight[blocks - 1] = sum;
      count[blocks - 1] += count[blocks];
      --blocks;
    }
    ++blocks;
  }
  std::size_t at = 0;
  for (std::size_t b = 0; b < blocks; ++b) {
    for (std::size_t i = 0; i < count[b]; ++i) values[at++] = mean[b];
  }
}

constexpr std::array<float, 17> kFastPowers = [] {
  std::array<float, 17> powers{};
  powers[0] = 1;
  for (std::size_t i = 1; i < powers.size(); ++i) powers[i] = powers[i - 1] * kFastCorrelation;
  return powers;
}();

}  // namespace

Acceptance::Acceptance(const SurvivalModelOptions& options)
    : memory_(static_cast<float>(options.memory_tokens)),
      level_fade_(1 / memory_),
      shape_fade_(1 / (memory_ * kShapeMemory)) {
  // A record of n tokens weighs n p(1-p) against 1 / variance.
  const double spread = options.first_rate * (1 - options.first_rate) * options.request_shrinkage;
  const auto variance = static_cast<float>(1 / std::max(spread, 1.0));
  slow_spread_ = {variance, variance, variance};
  fast_spread_ = {variance / 6, variance / 6, variance / 6};

  level_.variance = kLevelVariance;
  slope_ = {1, kSlopeVariance};
  groups_.fill({0, kGroupVariance});
  group_slopes_.fill({0, kGroupSlopeVariance});
  knots_.fill({0, kKnotVariance});
  depths_.fill({0, kDepthVariance});
  for (auto& depths : group_depths_) depths.fill({0, kGroupDepthVariance});
  // The average over requests is to be first_rate, which takes more than the average request's.
  const float stretch = std::sqrt(1 + kProbit * (slow_spread_.variance + fast_spread_.variance));
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    // Of siblings of which nothing is claimed, the first is taken for the likely one.
    const float less = rank == 0 ? 0 : 1.5F + 0.5F * static_cast<float>(rank);
    ranks_[rank] = {logit(options.first_rate) * stretch - less, kRankVariance};
  }
}

void Acceptance::prepare(Difference& difference) const noexcept {
  if (difference.epoch == epoch_) return;
  difference = {};
  difference.slow_variance = slow_spread_.variance;
  difference.fast_variance = fast_spread_.variance;
  difference.epoch = epoch_;
  difference.shrink = shrink_by(difference.variance());
}

Points Acceptance::points(const Difference* difference) const noexcept {
  float mean = 0;
  float variance = slow_spread_.variance + fast_spread_.variance;
  if (difference != nullptr && is_current(*difference)) {
    mean = difference->mean();
    variance = difference->variance();
  }
  mean = std::clamp(mean, -kMostSum / 2, kMostSum / 2);
  const float deviation = std::sqrt(variance);
  Points points;
  for (std::size_t k = 0; k < kNumPoints; ++k) points[k] = fast_exp(mean + deviation * kPoints[k]);
  return points;
}

template <typename Visit>
void Acceptance::for_each_weight(const Trial& trial, const Visit& visit) {
  const auto g = static_cast<std::size_t>(trial.group);
  const auto d = static_cast<std::size_t>(trial.depth);
  visit(level_, 1.0F, level_fade_, kLevelVariance);
  visit(groups_[g], 1.0F, shape_fade_, kGroupVariance);
  visit(depths_[d], 1.0F, shape_fade_, kDepthVariance);
  visit(group_depths_[g][d], 1.0F, shape_fade_, kGroupDepthVariance);
  if (trial.claim == kNoClaim) {
    if (trial.rank != kOnlyChild) {
      visit(ranks_[static_cast<std::size_t>(trial.rank)], 1.0F, shape_fade_, kRankVariance);
    }
  } else {
    const Cell cell = find_cell(trial.claim);
    const float claim = trial.claim - claim_mean_;
    visit(slope_, claim, shape_fade_, kSlopeVariance);
    visit(group_slopes_[g], claim, shape_fade_, kGroupSlopeVariance);
    visit(knots_[cell.knot], 1 - cell.part, shape_fade_, kKnotVariance);
    visit(knots_[cell.knot + 1], cell.part, shape_fade_, kKnotVariance);
  }
}

float Acceptance::learn(const Trial& trial, bool accepted, bool own, Difference& difference) {
  for (; deepest_ < trial.depth; ++deepest_) {
    const auto at = static_cast<std::size_t>(deepest_);
    depths_[at + 1].value = depths_[at].value;
  }
  float base = trial.rank == kOnlyChild ? ranks_[0].value : 0;
  if (trial.claim != kNoClaim) {
    note_claim(trial.claim);
    base += anchor_ + group_anchors_[static_cast<std::size_t>(trial.group)];
  }
  float variance = 0;
  for_each_weight(trial, [&](const Weight& weight, float feature, float, float) {
    base += weight.value * feature;
    variance += weight.variance * feature * feature;
  });
  variance += difference.variance();
  const float sum = (base + difference.mean()) * difference.shrink;
  const float x = bounded(sum, kMostLogit);
  // With p = 1 / q the step (accepted - p) / (1 + p (1 - p) variance) takes one division.
  const float e = fast_exp(-x);
  const float q = 1 + e;
  const float scale = 1 / (q * q + e * variance);
  const float label = accepted ? 1.0F : 0.0F;
  const float left_over = sum != x && (sum > 0) == accepted ? 0.0F : 1.0F;  // 0: sure enough
  const float step = (label * q - 1) * q * scale * left_over;
  const float sharpen = e * scale;
  for_each_weight(trial, [&](Weight& weight, float feature, float fade, float most) {
    const float gain = weight.variance * feature;
    weight.value += gain * step;
    const float left = weight.variance - gain * gain * sharpen;
    const float faded = left + left * fade;
    weight.variance = faded < most ? faded : most;
  });
  const float p = 1 / q;
  ++version_;
  trials_ += 1 - trials_ * level_fade_;
  if (!own) return p;
  const float slow = difference.slow_variance + difference.covariance;
  const float fast = difference.fast_variance + difference.covariance;
  difference.slow += slow * step;
  difference.fast += fast * step;
  difference.slow_variance -= slow * slow * sharpen;
  difference.fast_variance -= fast * fast * sharpen;
  difference.covariance -= slow * fast * sharpen;
  difference.trials += 1 - difference.trials * (1 / kRequestMemory);
  note_residual(label - p, e * p * p);
  prepare(difference);  // after a jump
  return p;
}

void Acceptance::note_claim(float claim) noexcept {
  num_claims_ = std::min(num_claims_ + 1, kClaimMemory);
  const float difference = claim - claim_mean_;
  const float move = difference / num_claims_;
  claim_variance_ += (difference * difference - claim_variance_) / num_claims_;
  claim_mean_ += move;
  anchor_ += slope_.value * move;
  for (std::size_t g = 0; g < group_slopes_.size(); ++g) {
    group_anchors_[g] += group_slopes_[g].value * move;
  }
}

void Acceptance::note_residual(float residual, float variance) {
  bool jumped = false;
  for (std::size_t i = 0; i < residuals_.size(); ++i) {
    const float keep = 1 - 1 / kJumpWindows[i];
    Residual& recent = residuals_[i];
    recent.sum = recent.sum * keep + residual;
    recent.variance = recent.variance * (keep * keep) + variance;
    // Bernstein's inequality: as good where acceptance is near 0 or 1 and normal tails are not.
    const float bound = 2 * kJumpEvidence * (recent.variance + std::abs(recent.sum) * (1 / 3.0F));
    jumped = jumped || recent.sum * recent.sum > bound;
  }
  if (jumped) open_up();
}

void Acceptance::open_up() noexcept {
  const auto open = [](Weight& weight) {
    weight.variance = std::max(weight.variance, kJumpVariance);
  };
  level_.variance = kLevelVariance;
  open(slope_);
  std::for_each(groups_.begin(), groups_.end(), open);
  std::for_each(depths_.begin(), depths_.end(), open);
  std::for_each(knots_.begin(), knots_.end(), open);
  std::for_each(ranks_.begin(), ranks_.end(), open);
  residuals_ = {};
  trials_ = 0;
  ++epoch_;  // what requests took for their own difference was the jump
}

void Acceptance::Spread::learn(float mean, float left) noexcept {
  const float told = std::max(variance - left, 0.0F);
  usually_told += (told - usually_told) * kToldRate;
  const float excess =
      std::min((mean * mean - told) / std::max(usually_told, variance * kLeastTold), kMostExcess);
  variance =
      std::clamp(variance * (1 + kSpreadRate * excess), first * kLeastSpread, first * kMostSpread);
}

void Acceptance::advance(std::int32_t tokens, bool learnt, Difference& difference) {
  if (learnt) {
    slow_spread_.learn(difference.slow, difference.slow_variance);
    fast_spread_.learn(difference.fast, difference.fast_variance);
  }
  const auto n = static_cast<float>(tokens);
  const float slow = 1 / (1 + kSlowDrift * n / (2 * slow_spread_.variance));
  const float fast = kFastPowers[static_cast<std::size_t>(
      std::min(tokens, static_cast<std::int32_t>(kFastPowers.size()) - 1))];
  difference.slow *= slow;
  difference.fast *= fast;
  difference.slow_variance =
      slow_spread_.variance + (difference.slow_variance - slow_spread_.variance) * slow * slow;
  difference.fast_variance =
      fast_spread_.variance + (difference.fast_variance - fast_spread_.variance) * fast * fast;
  difference.covariance *= slow * fast;
  difference.shrink = shrink_by(difference.variance());
}

void Acceptance::fade(std::int32_t tokens) noexcept {
  const float share = std::min(static_cast<float>(tokens) / (memory_ * kUnseenFade), 1.0F);
  level_.variance = std::min(level_.variance + level_.variance * share, kLevelVariance);
  trials_ -= trials_ * share;
}

void Acceptance::build(std::int32_t group, Table& table) const {
  const auto g = static_cast<std::size_t>(group);
  const auto seen = static_cast<std::size_t>(deepest_);
  const float level = level_.value + groups_[g].value;
  for (std::size_t d = 0; d <= seen; ++d) {
    const float sum = level + depths_[d].value + group_depths_[g][d].value;
    table.depth_odds[d] = fast_exp(std::clamp(sum, -kMostSum, kMostSum));
  }
  for (std::size_t d = seen + 1; d < table.depth_odds.size(); ++d) {
    table.depth_odds[d] = table.depth_odds[seen];
  }
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    table.rank_factors[rank] =
        fast_exp(std::clamp(ranks_[rank].value, -kMostSum / 2, kMostSum / 2));
  }
  table.version = version_;
}

void Acceptance::build(std::int32_t group, ClaimTable& table) const {
  const auto g = static_cast<std::size_t>(group);
  const float slope = slope_.value + group_slopes_[g].value;
  const float anchor = anchor_ + group_anchors_[g];
  std::array<float, kNumKnots> values{};
  std::array<float, kNumKnots> weights{};
  for (std::size_t k = 0; k < knots_.size(); ++k) {
    const float claim = kFirstKnot + static_cast<float>(k) - claim_mean_;
    values[k] = anchor + slope * claim + knots_[k].value;
    weights[k] = 1 / knots_[k].variance;
  }
  make_ascending(values, weights);
  for (std::size_t i = 0; i < table.factors.size(); ++i) {
    const Cell cell = kClaimCells[i];
    const float value = values[cell.knot] + cell.part * (values[cell.knot + 1] - values[cell.knot]);
    table.factors[i] = fast_exp(std::clamp(value, -kMostSum, kMostSum));
  }
  table.version = version_;
}

}  // namespace smartspec::survival
