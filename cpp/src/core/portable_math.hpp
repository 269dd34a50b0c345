// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// exp and log built from IEEE add, multiply and divide only, so that a seeded draw is the same on
// every machine, compiler and C library, and on the device. Both keep relative errors below 1e-15.
// constexpr, so that nvcc compiles them for both sides; neither compiler may contract a * b + c
// (g++ -ffp-contract=off, nvcc --fmad=false). Pure; thread-safe.
#pragma once

#include <bit>
#include <cstdint>

namespace smartspec::core {

inline constexpr double kLn2High = 0x1.62e42feep-1;  // low bits zero: n * kLn2High is exact
inline constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
inline constexpr double kLog2E = 0x1.71547652b82fep+0;

/// Natural logarithm of a positive, normal, finite number.
/// log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172, so ten terms in s^2 are enough.
constexpr double portable_log(double x) noexcept {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  auto exponent = static_cast<std::int64_t>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0xFFFFFFFFFFFFFULL) | 0x3FF0000000000000ULL);
  if (m > 0x1.6a09e667f3bcdp+0) {  // sqrt(2): keeps log m small, so nothing cancels
    m *= 0.5;
    ++exponent;
  }
  const auto k = static_cast<double>(exponent);
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double p = 1.0 / 21.0;
  p = p * z + 1.0 / 19.0;
  p = p * z + 1.0 / 17.0;
  p = p * z + 1.0 / 15.0;
  p = p * z + 1.0 / 13.0;
  p = p * z + 1.0 / 11.0;
  p = p * z + 1.0 / 9.0;
  p = p * z + 1.0 / 7.0;
  p = p * z + 1.0 / 5.0;
  p = p * z + 1.0 / 3.0;
  const double twice = 2.0 * s;
  return k * kLn2High + (twice + (twice * z * p + k * kLn2Low));
}

constexpr double clamp_exponent(double x) noexcept { return x > -700.0 ? x : -700.0; }

/// exp(x) for x in [-700, 0]. No branches, so loops over it vectorize; the clamp is apart because
/// g++ 12 makes a jump of it in the same loop.
constexpr double exp_of_clamped(double x) noexcept {
  constexpr double kRound = 0x1.8p+52;  // adding it leaves round(y) in the low mantissa bits
  const double shifted = x * kLog2E + kRound;
  const double n = shifted - kRound;
  const double r = (x - n * kLn2High) - n * kLn2Low;
  double p = 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return std::bit_cast<double>(std::bit_cast<std::uint64_t>(p) +
                               (std::bit_cast<std::uint64_t>(shifted) << 52));
}

/// exp(x) for x <= 0; arguments below -700 give exp(-700).
constexpr double portable_exp(double x) noexcept { return exp_of_clamped(clamp_exponent(x)); }

/// exp(x) for x <= 0 in single precision, relative error below 1e-6; arguments below -80 give
/// e^-80.
constexpr float approximate_exp(float x) noexcept {
  constexpr float kRound = 0x1.8p+23F;
  const float clamped = x > -80.0F ? x : -80.0F;
  const float shifted = clamped * 0x1.715476p+0F + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * 0x1.62e4p-1F) - n * 0x1.7f7d1cp-20F;
  float p = 1.0F / 720.0F;
  p = p * r + 1.0F / 120.0F;
  p = p * r + 1.0F / 24.0F;
  p = p * r + 1.0F / 6.0F;
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(p) +
                              (std::bit_cast<std::uint32_t>(shifted) << 23));
}

/// A number in [0, 1] as an integer in units of 2^-40. Integers add up to the same sum in any
/// order: that is what makes the top-p cut a pure function of the row, however it is searched for.
constexpr std::uint64_t to_fixed(double x) noexcept {
  constexpr double kUnit = 0x1p+40;
  constexpr double kRound = 0x1p+52;
  return std::bit_cast<std::uint64_t>(x * kUnit + kRound) - std::bit_cast<std::uint64_t>(kRound);
}

}  // namespace smartspec::core
