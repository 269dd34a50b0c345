// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Element types spelled out from their definition: every value of a type in a sorted table, and
// rounding by search in it. Slow and independent of the conversions under test.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "smartspec/types.hpp"

namespace smartspec::test {

struct FloatFormat {
  int exponent_bits;
  int mantissa_bits;
  bool has_infinity;  // e4m3 has none: only an all-ones mantissa is NaN there
};

inline FloatFormat format_of(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return {8, 7, true};
    case DType::kFloat16:
      return {5, 10, true};
    case DType::kFloat8E4M3:
      return {4, 3, false};
    default:
      return {5, 2, true};  // e5m2
  }
}

inline double decode_float(std::uint32_t bits, FloatFormat f) {
  const std::uint32_t mantissa = bits & ((1U << f.mantissa_bits) - 1);
  const auto exponent = static_cast<int>((bits >> f.mantissa_bits) & ((1U << f.exponent_bits) - 1));
  const bool negative = (bits >> (f.mantissa_bits + f.exponent_bits) & 1U) != 0;
  const int highest = (1 << f.exponent_bits) - 1;
  const int bias = (1 << (f.exponent_bits - 1)) - 1;
  double value = 0.0;
  if (exponent == highest && f.has_infinity) {
    value = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::nan("");
  } else if (exponent == highest && mantissa == (1U << f.mantissa_bits) - 1) {
    value = std::nan("");
  } else if (exponent == 0) {
    value = std::ldexp(mantissa, 1 - bias - f.mantissa_bits);
  } else {
    value = std::ldexp((1U << f.mantissa_bits) + mantissa, exponent - bias - f.mantissa_bits);
  }
  return negative ? -value : value;
}

inline double decode(DType dtype, const std::byte* at) {
  if (dtype == DType::kFloat32) {
    float x = 0.0F;
    std::memcpy(&x, at, sizeof(x));
    return x;
  }
  if (dtype == DType::kInt8) return std::to_integer<std::int8_t>(*at);
  std::uint32_t bits = 0;
  std::memcpy(&bits, at, size_of(dtype));
  return decode_float(bits, format_of(dtype));
}

/// The finite values of a type from 0 up; entry i has the bits i.
inline const std::vector<double>& magnitudes(DType dtype) {
  static std::vector<double> tables[16];
  std::vector<double>& table = tables[static_cast<std::size_t>(dtype)];
  for (std::uint32_t bits = static_cast<std::uint32_t>(table.size());; ++bits) {
    const double value = decode_float(bits, format_of(dtype));
    if (!std::isfinite(value)) break;
    table.push_back(value);
  }
  return table;
}

/// The value of the type nearest to x, ties to even; beyond the largest one: that.
inline double nearest(DType dtype, double x) {
  if (dtype == DType::kFloat32) return static_cast<float>(x);
  if (dtype == DType::kInt8) return std::clamp(std::nearbyint(x), -128.0, 127.0);
  const std::vector<double>& table = magnitudes(dtype);
  const double a = std::abs(x);
  const auto above = std::lower_bound(table.begin(), table.end(), a);
  std::size_t index = static_cast<std::size_t>(above - table.begin());
  if (above == table.end()) {
    index = table.size() - 1;
  } else if (index > 0) {
    const double up = *above - a;
    const double down = a - table[index - 1];
    if (down < up || (down == up && index % 2 == 1)) --index;
  }
  return std::copysign(table[index], x);
}

/// Stores a value that the type has.
inline void encode(DType dtype, double value, std::byte* at) {
  if (dtype == DType::kFloat32) {
    const auto x = static_cast<float>(value);
    std::memcpy(at, &x, sizeof(x));
  } else if (dtype == DType::kInt8) {
    *at = static_cast<std::byte>(static_cast<std::int8_t>(value));
  } else {
    const std::vector<double>& table = magnitudes(dtype);
    auto bits = static_cast<std::uint32_t>(
        std::lower_bound(table.begin(), table.end(), std::abs(value)) - table.begin());
    if (std::signbit(value)) bits |= 1U << (8 * size_of(dtype) - 1);
    std::memcpy(at, &bits, size_of(dtype));
  }
}

}  // namespace smartspec::test
