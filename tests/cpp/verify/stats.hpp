// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Pearson's chi-square test against exact probabilities.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>

namespace smartspec::verify_test {

/// P(X >= x) for X chi-square distributed with `df` degrees of freedom: regularized incomplete
/// gamma function, series below the mean and continued fraction above.
inline double chi_square_tail(double x, double df) {
  const double a = 0.5 * df;
  const double z = 0.5 * x;
  if (z <= 0.0) return 1.0;
  const double scale = std::exp(a * std::log(z) - z - std::lgamma(a));
  if (z < a + 1.0) {
    double term = 1.0 / a;
    double sum = term;
    for (double k = a + 1.0; term > 1e-16 * sum; k += 1.0) sum += term *= z / k;
    return 1.0 - scale * sum;
  }
  double b = z + 1.0 - a;  // Lentz
  double c = 1e300;
  double d = 1.0 / b;
  double h = d;
  for (int i = 1; i < 10000; ++i) {
    const double an = -i * (i - a);
    b += 2.0;
    d = 1.0 / (an * d + b);
    c = b + an / c;
    h *= d * c;
    if (std::abs(d * c - 1.0) < 1e-15) break;
  }
  return scale * h;
}

/// Adds up tables that are each multinomial given their total.
class ChiSquare {
 public:
  /// Cells with fewer than 5 expected counts are merged; an impossible cell that occurred is fatal.
  void add(std::span<const double> probabilities, std::span<const std::int64_t> counts) {
    std::int64_t total = 0;
    for (const std::int64_t c : counts) total += c;
    if (total == 0) return;
    draws_ += total;
    double rest_expected = 0;
    double rest_count = 0;
    int cells = 0;
    double sum = 0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const double expected = probabilities[i] * static_cast<double>(total);
      const auto count = static_cast<double>(counts[i]);
      if (probabilities[i] == 0.0 && count > 0) impossible_ = true;
      if (expected < 5.0) {
        rest_expected += expected;
        rest_count += count;
        continue;
      }
      sum += (count - expected) * (count - expected) / expected;
      ++cells;
    }
    if (rest_expected >= 1.0) {
      sum += (rest_count - rest_expected) * (rest_count - rest_expected) / rest_expected;
      ++cells;
    }
    if (cells < 2) return;
    statistic_ += sum;
    df_ += cells - 1;
  }

  [[nodiscard]] double p_value() const {
    return impossible_ ? 0.0 : df_ == 0 ? 1.0 : chi_square_tail(statistic_, df_);
  }
  [[nodiscard]] std::int64_t draws() const { return draws_; }
  [[nodiscard]] int df() const { return df_; }

 private:
  double statistic_ = 0;
  int df_ = 0;
  bool impossible_ = false;
  std::int64_t draws_ = 0;
};

}  // namespace smartspec::verify_test
