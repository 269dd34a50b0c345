// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "schedule/cost_learner.hpp"

namespace smartspec::cost {
namespace {

// Beforehand: how far the whole staircase, and one knot against the others, may be off the start.
// Multiples of CostModelOptions::start_error.
constexpr double kCommonSd = 1.5;
constexpr double kLocalSd = 1;
constexpr double kTermSd = 1.7;
constexpr double kTermShare = 0.1;   // of any pass: deviation of a term that starts near zero
constexpr double kLocalRange = 1.2;  // in logarithms of tokens
constexpr double kOwnShare = 0.1;    // of that variance is a knot's own
constexpr double kScaleDrift = 0.2;  // share of a residual that moves everything at once
constexpr double kMinNoise = 0.01;   // relative deviation of a pass
constexpr double kMaxNoise = 0.1;
constexpr double kClip = 2.5;  // deviations
constexpr double kNoiseRate = 0.02;
constexpr double kPaceKept = 0.8;  // from pass to pass, of how far the pace is off
constexpr double kLeastPace = 0.2;
constexpr double kMostPace = 5;
constexpr double kSwingRate = 0.01;
constexpr double kLeastSwing = 0.1;
constexpr double kMostSwing = 2;
constexpr double kBiasRate = 0.1;  // over all passes
constexpr double kBiasLimit = 0.8;
constexpr double kCellBiasRate = 0.3;  // over the passes at one knot
constexpr double kCellBiasLimit = 0.8;
constexpr double kCellBiasStart = 0.4;
constexpr double kCalm = 0.7;            // of the residual that is clipped
constexpr std::int32_t kRepeats = 3;     // outliers in a row at one knot that are believed
constexpr std::int32_t kRunLength = 8;   // outliers in a row at any knots: the whole machine
constexpr std::int32_t kColdVisits = 3;  // passes at a knot before a slow one counts in full
constexpr double kMaxResidual = 8;       // relative, of outliers that are believed
constexpr double kMaxLogSpeed = 7;
constexpr double kMaxFactor = 1e3;  // on the start; beyond, it starts anew
constexpr double kSmoothRate = 0.3;
constexpr double kSmoothSd = 0.2;
constexpr double kNoEvidence = 1e-6;
constexpr double kUsualRate = 1.0 / 32;

double log_distance(std::int32_t a, std::int32_t b) {
  return std::abs(std::log(static_cast<double>(a) / b));
}

}  // namespace

CostLearner::CostLearner(const CostCoefficients& start, const CostTable& table,
                         const CostModelOptions& options)
    : memory_(options.memory_passes), outlier_ratio_(options.outlier_ratio) {
  const std::size_t num_knots = table.knots.size();
  start_ = table.seconds;
  double below = 0;
  for (std::size_t i = 0; i < kKnots; ++i) {
    const double here = table.read(table.seconds, table.place(kGrid[i]));
    grid_ratio_[i] = below / here;
    below = here;
  }
  for (const std::int32_t knot : table.knots) {
    const auto above = std::upper_bound(kGrid.begin(), kGrid.end(), knot) - kGrid.begin();
    const std::size_t low = std::min(static_cast<std::size_t>(above), kKnots - 1) - 1;
    const double share = log_distance(knot, kGrid[low]) / log_distance(kGrid[low + 1], kGrid[low]);
    anchors_.push_back({low, std::min(share, 1.0)});
  }
  // A term that starts at zero or near it must be able to grow: what a usual number of counts may
  // add to a small pass.
  const double small = start_.front();
  const std::array<double, kNumTerms> least{small / 32, small / 64, small / 8192, small / 65536,
                                            small / std::max(1, 4 * start.experts_per_token)};
  for (std::size_t term = 0; term < kNumTerms; ++term) {
    unit_[term] = std::max(table.per[term], least[term]);
    state_[kKnots + term] = start_terms_[term] = table.per[term] / unit_[term];
  }
  if (start.num_experts == 0) unit_[kExpert] = 0;
  std::fill_n(state_.begin(), kKnots, 1.0);
  const double error = options.start_error * options.start_error;
  for (std::size_t i = 0; i < kKnots; ++i) {
    for (std::size_t j = 0; j < kKnots; ++j) {
      const double distance = log_distance(kGrid[i], kGrid[j]);
      closeness_[i * kKnots + j] = i == j ? 1 : (1 - kOwnShare) * std::exp(-distance / kLocalRange);
      prior_[i * kSize + j] =
          error * (kCommonSd * kCommonSd + kLocalSd * kLocalSd * closeness_[i * kKnots + j]);
    }
  }
  for (std::size_t i = kKnots; i < kPace; ++i) {
    prior_[i * kSize + i] = kTermSd * kTermSd * error;
  }
  start_sd_ = kTermSd * options.start_error;
  covariance_ = prior_;
  pool_value_.reserve(num_knots);
  pool_weight_.reserve(num_knots);
  pool_size_.reserve(num_knots);
}

double CostLearner::speed() const noexcept { return std::exp(log_speed_) * pace(); }

double CostLearner::pace() const noexcept {
  return std::clamp(1 + kPaceKept * state_[kPace], kLeastPace, kMostPace);
}

double CostLearner::dot(const Row& row, const Vector& vector) const {
  double sum = 0;
  for (std::size_t i = 0; i < row.size; ++i) sum += row.value[i] * vector[row.index[i]];
  return sum;
}

CostLearner::Row CostLearner::row_of(const CleanLoad& load, double usual,
                                     const CostTable& table) const {
  Row row;
  const auto passes = static_cast<double>(load.passes);
  const CostTable::Place place = table.padded_place(load);
  const auto add_knot = [&](std::size_t point, double share) {
    if (share == 0) return;
    const double value = share * passes * start_[point] / usual;
    const Anchor& anchor = anchors_[point];
    row.add(anchor.low, value * (1 - anchor.share));
    row.add(anchor.low + 1, value * anchor.share);
  };
  add_knot(place.point, 1 - place.fraction);
  add_knot(std::min(place.point + 1, start_.size() - 1), place.fraction);
  const std::size_t near = place.point + (place.fraction > 0.5 ? 1 : 0);
  row.knot = anchors_[near].low + (anchors_[near].share > 0.5 ? 1 : 0);
  for (std::size_t term = 0; term < load.counts.size(); ++term) {
    row.add(kKnots + term, load.counts[term] * unit_[term] / usual);
  }
  const double experts = passes * table.experts_at(static_cast<double>(load.tokens) / passes);
  row.add(kKnots + kExpert, experts * unit_[kExpert] / usual);
  row.add(kPace, 1);
  return row;
}

/// True unless the pass is an outlier that has not repeated yet.
bool CostLearner::believe(double ratio, Cell& cell) {
  const bool slow = ratio > outlier_ratio_;
  if (!slow && ratio * outlier_ratio_ >= 1) {
    ++normal_;
    // Not straight to zero: an outlier among passes that all became fast may look normal.
    outliers_ = outliers_ > 0 ? std::max(outliers_ - 3, 0) : std::min(outliers_ + 3, 0);
    cell.outliers = 0;
    return true;
  }
  const auto count = [slow](std::int32_t& in_a_row) {
    in_a_row = slow ? std::max(in_a_row, 0) + 1 : std::min(in_a_row, 0) - 1;
    return std::abs(in_a_row);
  };
  const double size = std::abs(std::log(ratio));
  const std::int32_t everywhere = count(outliers_);
  run_least_ = everywhere == 1 ? size : std::min(run_least_, size);
  if (count(cell.outliers) == 1) cell.normal = normal_;
  cell.outliers = std::clamp(cell.outliers, -kRepeats, kRepeats);
  // Without normal passes elsewhere in the meantime it may be the whole machine: wait for that.
  const bool local = normal_ - cell.normal >= kRepeats;
  return everywhere >= kRunLength || (std::abs(cell.outliers) >= kRepeats && local);
}

/// What a term may add per count says little before it is known how many counts a pass has: beside
/// thousands of tokens, pairs that start at zero could explain everything. So no term is further
/// off than by its own start or a tenth of a pass, as if that had been known from the first on.
void CostLearner::limit_terms(const Row& row) {
  constexpr double kLeast = 1e-3;
  bool moved = false;
  for (std::size_t k = 0; k < row.size; ++k) {
    const std::size_t i = row.index[k];
    if (i < kKnots || i == kPace) continue;
    const double start = start_terms_[i - kKnots];
    const double sd = std::max({start_sd_ * start, kTermShare / row.value[k], kLeast});
    double& prior = prior_[i * kSize + i];
    if (!(prior > 1.2 * sd * sd)) continue;
    const double variance = 1 / (1 / (sd * sd) - 1 / prior);
    prior = sd * sd;
    Row one;
    one.add(i, 1);
    const Vector gain = gain_of(one);
    update(gain, start - state_[i], gain[i] + variance);
    moved = true;
  }
  if (moved) constrain();  // rescale() writes the state as it is
}

/// Adds the noise of one step: a little of everything, drift of the whole, and another pace.
void CostLearner::drift() {
  const double renewal = 0.25 * noise_ * noise_ / memory_;
  const double scale = kScaleDrift * kScaleDrift * noise_ * noise_;
  for (std::size_t i = 0; i < kPace; ++i) {
    double* const row = &covariance_[i * kSize];
    const double* const prior = &prior_[i * kSize];
    const double along = scale * state_[i];
    for (std::size_t j = 0; j < kPace; ++j) {
      row[j] += renewal * (prior[j] - row[j]) + along * state_[j];
    }
  }
  state_[kPace] *= kPaceKept;
  double* const pace = &covariance_[kPace * kSize];
  for (std::size_t i = 0; i < kPace; ++i) pace[i] = covariance_[i * kSize + kPace] *= kPaceKept;
  const double swing = swing_ * noise_;
  pace[kPace] = kPaceKept * kPaceKept * (pace[kPace] - swing * swing) + swing * swing;
}

/// Follows the noise of passes, and how much of what passes are off comes back at the next: the
/// pace swings as far as leaves residuals that tell nothing of those to come.
void CostLearner::learn_noise(double residual, double spread) {
  if (spread > 4 * noise_ * noise_) return;  // not known well enough
  const double deviation = std::sqrt(spread + noise_ * noise_);
  const double surprise = std::clamp(residual / deviation, -kClip, kClip);
  noise_ *= 1 + kNoiseRate * (1.25 * std::abs(surprise) - 1);
  noise_ = std::clamp(noise_, kMinNoise, kMaxNoise);
  swing_ *= std::exp(kSwingRate * surprise * last_surprise_);
  swing_ = std::clamp(swing_, kLeastSwing, kMostSwing);
  last_surprise_ = surprise;
}

/// Everything takes as much longer as the mildest outlier of the run; the state is relative to the
/// start and stays.
void CostLearner::rescale(CostTable& table) {
  const double size = std::min(std::exp(run_least_), kMaxResidual);
  const double factor = outliers_ > 0 ? size : 1 / size;
  outliers_ = 0;
  if (start_.back() * factor > kMaxSeconds || start_.front() * factor < kMinSeconds) return;
  for (double& value : start_) value *= factor;
  for (double& value : unit_) value *= factor;
  log_speed_ = std::clamp(log_speed_ + std::log(factor), -kMaxLogSpeed, kMaxLogSpeed);
  write(table);
}

/// Gives up certainty about the speed of everything.
void CostLearner::widen_all(double sd) {
  for (std::size_t i = 0; i < kPace; ++i) {
    for (std::size_t j = 0; j < kPace; ++j) {
      covariance_[i * kSize + j] += sd * sd * state_[i] * state_[j];
    }
  }
}

/// Gives up certainty about the staircase around a knot.
void CostLearner::widen_around(std::size_t knot, double sd) {
  for (std::size_t i = 0; i < kKnots; ++i) {
    const double near = state_[i] * sd * closeness_[knot * kKnots + i];
    for (std::size_t j = 0; j < kKnots; ++j) {
      covariance_[i * kSize + j] +=
          near * state_[j] * sd * closeness_[knot * kKnots + j] * closeness_[i * kKnots + j];
    }
  }
}

/// Residuals of one sign mean a change that clipping would follow too slowly. `pace`: what the pace
/// was believed to explain; what lasts is no matter of pace.
void CostLearner::notice(double residual, double pace, double limit, const Row& row) {
  Cell& cell = cells_[row.knot];
  const double whole = residual + pace;
  const double clipped = std::clamp(whole / limit, -1.0, 1.0);
  // While no pass elsewhere was as predicted, it is the machine and not this knot.
  if (std::abs(clipped) < kCalm) ++calm_;
  if (std::abs(cell.bias) < kCellBiasStart) cell.calm = calm_;
  bias_ += kBiasRate * (clipped - bias_);
  offset_ += kBiasRate * (whole - offset_);
  cell.bias += kCellBiasRate * (std::clamp(residual / limit, -1.0, 1.0) - cell.bias);
  cell.offset += kCellBiasRate * (residual - cell.offset);
  if (std::abs(bias_) > kBiasLimit) {
    widen_all(1.5 * std::abs(offset_));
    bias_ = offset_ = 0;
    for (Cell& each : cells_) each.bias = each.offset = 0;
  } else if (std::abs(cell.bias) > kCellBiasLimit && calm_ - cell.calm >= kRepeats) {
    widen_around(row.knot, 1.5 * std::abs(cell.offset));
    cell.bias = cell.offset = 0;
  }
}

/// Covariance of the state with what `row` measures.
CostLearner::Vector CostLearner::gain_of(const Row& row) const {
  Vector gain{};
  for (std::size_t k = 0; k < row.size; ++k) {
    const double* const column = &covariance_[row.index[k] * kSize];
    for (std::size_t i = 0; i < kSize; ++i) gain[i] += row.value[k] * column[i];
  }
  return gain;
}

void CostLearner::update(const Vector& gain, double residual, double variance) {
  for (std::size_t i = 0; i < kSize; ++i) {
    const double share = gain[i] / variance;
    state_[i] += share * residual;
    double* const line = &covariance_[i * kSize];
    for (std::size_t j = 0; j < kSize; ++j) line[j] -= share * gain[j];
  }
}

/// After loads or times beyond what the arithmetic holds.
void CostLearner::reset() {
  covariance_ = prior_;
  for (double& value : state_) value = std::abs(value) < kMaxFactor ? value : 1;
  state_[kPace] = 0;
  bias_ = offset_ = 0;
}

/// Draws one knot per pass, in turn, towards its neighbours, as far as it is uncertain: what one
/// odd pass left behind must not stay until the knot is visited again.
void CostLearner::smooth() {
  const auto i = static_cast<std::size_t>(observed_) % kKnots;
  const std::size_t below = i == 0 ? 1 : i - 1;
  const std::size_t above = i + 1 == kKnots ? i - 1 : i + 1;
  const double share = below == above ? 0
                                      : log_distance(kGrid[i], kGrid[below]) /
                                            log_distance(kGrid[above], kGrid[below]);
  const double between = state_[below] + share * (state_[above] - state_[below]);
  const double variance = covariance_[i * kSize + i];
  state_[i] += kSmoothRate * variance / (variance + kSmoothSd * kSmoothSd) * (between - state_[i]);
}

/// Books how the update changed the usual pass to `speed`, from where it decays: what lasts is the
/// coefficients'.
void CostLearner::follow_speed(const Row& row, const Vector& before) {
  for (double& value : usual_) value *= 1 - kUsualRate;
  for (std::size_t i = 0; i < row.size; ++i) usual_[row.index[i]] += kUsualRate * row.value[i];
  double was = 0;
  double is = 0;
  for (std::size_t i = 0; i < kPace; ++i) {
    was += usual_[i] * before[i];
    is += usual_[i] * state_[i];
  }
  if (was > 0 && is > 0) log_speed_ += std::log(std::clamp(is / was, 0.1, 10.0));
  // The first passes correct the start rather than follow a clock.
  log_speed_ *= 1 - 1 / std::min(memory_, 8 + 0.5 * static_cast<double>(observed_));
  log_speed_ = std::clamp(log_speed_, -kMaxLogSpeed, kMaxLogSpeed);
}

void CostLearner::observe(const CleanLoad& load, double seconds, CostTable& table) {
  const double predicted = table.predict(load);
  const double ratio = std::clamp(seconds, kMinSeconds, kMaxSeconds) / predicted;
  const double usual = predicted / pace();
  const Row row = row_of(load, usual, table);
  Cell& cell = cells_[row.knot];
  limit_terms(row);
  drift();
  ++observed_;
  if (!believe(ratio, cell)) return write(table);
  // Outliers in a row across knots are the machine, at one knot they are local.
  if (std::abs(outliers_) >= kRunLength) return rescale(table);
  double residual = std::min(ratio * predicted / usual, 1 + kMaxResidual) - dot(row, state_);
  residual = std::clamp(residual, -kMaxResidual, kMaxResidual);
  if (cell.outliers != 0) widen_around(row.knot, std::abs(residual));

  const Vector gain = gain_of(row);
  const double spread = dot(row, gain);
  if (!(spread >= 0 && std::isfinite(spread)) || !std::isfinite(residual)) return reset();
  const double limit = kClip * std::sqrt(spread + noise_ * noise_);
  const double clipped = std::clamp(residual, -limit, limit);
  double own = noise_ * noise_;
  // A first pass may be slow because it is the first (compilation, page faults).
  if (cell.visits < kColdVisits && residual > 0) own += residual * residual;
  cell.visits = std::min(cell.visits + 1, kColdVisits);
  const double share = noise_ * noise_ / own;
  for (Cell& each : cells_) each.evidence *= 1 - 1 / memory_;
  for (std::size_t i = 0; i < row.size; ++i) {
    if (row.index[i] < kKnots) cells_[row.index[i]].evidence += share * std::abs(row.value[i]);
  }
  learn_noise(residual, spread);
  const Vector before = state_;
  update(gain, clipped, spread + own);
  constrain();
  notice(residual, before[kPace], limit, row);
  smooth();
  follow_speed(row, before);
  const auto sane = [](double value) { return std::abs(value) < kMaxFactor; };
  if (!std::all_of(state_.begin(), state_.end(), sane)) reset();
  write(table);
}

/// The state given that the staircase rises from knot to knot and no term is negative: the nearest
/// one in the measure of the covariance, so that what is uncertain gives way (Hildreth's method:
/// one constraint after the other, in turns). Pooling alone makes a table that predicts otherwise
/// than the state: at a steady load a linear term can take over the slope, and the knots descend.
void CostLearner::constrain() {
  constexpr int kTurns = 64;
  constexpr double kTolerance = 1e-6;
  std::array<double, kSize> pressure{};  // of the constraint that raises entry i
  bool moved = true;
  for (int turn = 0; moved && turn < kTurns; ++turn) {
    moved = false;
    for (std::size_t i = 1; i < kPace; ++i) {
      // state[i] >= ratio * state[i - 1]
      const double ratio = i < kKnots ? grid_ratio_[i] : 0;
      const double slack = state_[i] - ratio * state_[i - 1];
      if (slack >= -kTolerance && pressure[i] == 0) continue;
      const double* const up = &covariance_[i * kSize];
      const double* const down = &covariance_[(i - 1) * kSize];
      const double variance = up[i] - ratio * (up[i - 1] + down[i] - ratio * down[i - 1]);
      if (!(variance > 0)) continue;
      const double push = std::max(-slack / variance, -pressure[i]);
      if (std::abs(push) * variance < kTolerance) continue;
      pressure[i] += push;
      moved = true;
      for (std::size_t j = 0; j < kSize; ++j) state_[j] += push * (up[j] - ratio * down[j]);
    }
  }
  for (std::size_t i = kKnots; i < kPace; ++i) state_[i] = std::max(state_[i], 0.0);
}

/// Fills the table from the state; knots that descend are pooled, each by its evidence.
void CostLearner::write(CostTable& table) {
  for (std::size_t term = 0; term < kNumTerms; ++term) {
    table.per[term] = state_[kKnots + term] * unit_[term] * pace();
  }
  pool_value_.clear();
  pool_weight_.clear();
  pool_size_.clear();
  for (std::size_t i = 0; i < start_.size(); ++i) {
    const auto [low, share] = anchors_[i];
    const double factor = pace() * ((1 - share) * state_[low] + share * state_[low + 1]);
    const std::size_t near = low + (share > 0.5 ? 1 : 0);
    double value = std::max(start_[i] * factor, kMinSeconds);
    double weight = cells_[near].evidence + kNoEvidence;
    std::size_t size = 1;
    while (!pool_value_.empty() && pool_value_.back() > value) {
      const double both = pool_weight_.back() + weight;
      value += (pool_value_.back() - value) * pool_weight_.back() / both;
      weight = both;
      size += pool_size_.back();
      pool_value_.pop_back();
      pool_weight_.pop_back();
      pool_size_.pop_back();
    }
    pool_value_.push_back(value);
    pool_weight_.push_back(weight);
    pool_size_.push_back(size);
  }
  std::size_t next = 0;
  for (std::size_t pool = 0; pool < pool_value_.size(); ++pool) {
    std::fill_n(table.seconds.begin() + static_cast<std::ptrdiff_t>(next), pool_size_[pool],
                std::min(pool_value_[pool], kMaxSeconds));
    next += pool_size_[pool];
  }
}

}  // namespace smartspec::cost
