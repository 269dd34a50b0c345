// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Learns a CostTable from what passes took: a Kalman filter over corrections of the staircase and
// the linear terms, all in one state, so that what is uncertain gives way to what is known.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "schedule/cost_table.hpp"
#include "smartspec/cost_model.hpp"

namespace smartspec::cost {

/// State: one factor on the start's staircase per grid knot (interpolated in between), then each
/// linear term in units of its start, then how much slower the machine is just now. A pass is
/// linear in the state, so the filter is exact.
///  - The machine's pace changes from pass to pass and comes back (other work, clocks): passes that
///    follow each other err alike. Taken for noise of their own, a slow second at one load would
///    make that load look dear against the others, and a policy that turned away from it would
///    never see it fast again. How far the pace swings is learnt: what is left over must not be
///    correlated.
///  - Factors of close knots are correlated beforehand: a pass moves the neighbours of its knots as
///    far as those are uncertain themselves.
///  - Noise along the state itself stands for changes of clock: everything moves in proportion.
///  - Residuals beyond a few deviations are clipped; if they keep one sign, over all passes or at
///    one knot, something did change, and the certainty that stands against it is given up.
///  - The state is conditioned on a staircase that rises and on terms that are not negative; what
///    still descends between the knots of the grid is pooled in the table.
class CostLearner {
 public:
  CostLearner(const CostCoefficients& start, const CostTable& table,
              const CostModelOptions& options);

  /// `seconds` is finite and positive. Updates `table`. No heap allocation.
  void observe(const CleanLoad& load, double seconds, CostTable& table);
  [[nodiscard]] double speed() const noexcept;  // part of the table that is recent

 private:
  static constexpr std::size_t kKnots = kGrid.size();
  static constexpr std::size_t kPace = kKnots + kNumTerms;
  static constexpr std::size_t kSize = kPace + 1;
  using Vector = std::array<double, kSize>;

  /// A pass as a linear function of the state, relative to its prediction. Sparse.
  struct Row {
    std::array<std::size_t, 5 + kNumTerms> index{};
    std::array<double, 5 + kNumTerms> value{};
    std::size_t size = 0;
    std::size_t knot = 0;  // that has the largest share
    void add(std::size_t i, double v) {
      if (v != 0) index[size] = i, value[size++] = v;
    }
  };
  /// What happened at one knot.
  struct Cell {
    std::int32_t visits = 0;
    std::int32_t outliers = 0;  // in a row; negative: fast ones
    std::int64_t normal = 0;    // normal passes of all before the first of them
    std::int64_t calm = 0;      // passes of all that were as predicted when it began to err
    double evidence = 0;        // passes it had a share in, fading
    double bias = 0;            // of clipped residuals, in [-1, 1]
    double offset = 0;          // of relative residuals
  };

  /// `usual`: what the pass takes at the machine's usual pace.
  [[nodiscard]] Row row_of(const CleanLoad& load, double usual, const CostTable& table) const;
  [[nodiscard]] double pace() const noexcept;  // of the next pass, over the usual
  void learn_noise(double residual, double spread);
  [[nodiscard]] double dot(const Row& row, const Vector& vector) const;
  bool believe(double ratio, Cell& cell);
  void notice(double residual, double pace, double limit, const Row& row);
  void limit_terms(const Row& row);
  void drift();
  void rescale(CostTable& table);
  void smooth();
  void widen_all(double sd);
  void widen_around(std::size_t knot, double sd);
  [[nodiscard]] Vector gain_of(const Row& row) const;
  void update(const Vector& gain, double residual, double variance);
  void follow_speed(const Row& row, const Vector& before);
  void constrain();
  void write(CostTable& table);
  void reset();

  struct Anchor {  // how a knot of the table hangs on the grid
    std::size_t low = 0;
    double share = 0;  // of low + 1
  };
  double memory_;
  double outlier_ratio_;
  std::vector<double> start_;  // [m] staircase at the table's knots
  std::vector<Anchor> anchors_;
  std::array<double, kNumTerms> unit_{};
  std::array<double, kNumTerms> start_terms_{};  // state of the terms at the start
  double start_sd_ = 1;                          // of them, relative
  std::array<double, kKnots> grid_ratio_{};      // start at the knot below / start at the knot
  Vector state_{};
  std::array<double, kKnots * kKnots> closeness_{};  // beforehand, of a knot's factor to another's
  std::array<double, kSize * kSize> prior_{};
  std::array<double, kSize * kSize> covariance_{};
  std::array<Cell, kKnots> cells_{};
  Vector usual_{};  // row of the usual pass, the yardstick of speed
  double noise_ = 0.05;
  double swing_ = 0.5;        // deviation of the pace, in those of the noise
  double last_surprise_ = 0;  // residual of the last pass, in deviations
  double bias_ = 0;
  double offset_ = 0;
  std::int64_t calm_ = 0;      // passes that were as predicted
  std::int32_t outliers_ = 0;  // in a row, wherever; negative: fast ones
  std::int64_t normal_ = 0;    // passes that were no outliers
  double run_least_ = 0;       // logarithm of the mildest of them
  double log_speed_ = 0;
  std::int64_t observed_ = 0;
  // Scratch of write(): runs of knots pooled to one value.
  std::vector<double> pool_value_, pool_weight_;
  std::vector<std::size_t> pool_size_;
};

}  // namespace smartspec::cost
