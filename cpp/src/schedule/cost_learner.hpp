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
/// linear term in units of its start. A pass is linear in the state, so the filter is exact.
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
  static constexpr std::size_t kSize = kKnots + kNumTerms;
  using Vector = std::array<double, kSize>;

  /// A pass as a linear function of the state, relative to its prediction. Sparse.
  struct Row {
    std::array<std::size_t, 4 + kNumTerms> index{};
    std::array<double, 4 + kNumTerms> value{};
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
    double evidence = 0;        // passes it had a share in, fading
    double bias = 0;            // of clipped residuals, in [-1, 1]
    double offset = 0;          // of relative residuals
  };

  [[nodiscard]] Row row_of(const CleanLoad& load, double predicted, const CostTable& table) const;
  [[nodiscard]] double dot(const Row& row, const Vector& vector) const;
  bool believe(double ratio, Cell& cell);
  void notice(double clipped, double residual, const Row& row);
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
  double bias_ = 0;
  double offset_ = 0;
  double calm_ = 1;            // share of passes that were as predicted
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
