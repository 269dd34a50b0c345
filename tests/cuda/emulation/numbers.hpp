// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Narrow floating-point numbers as bits, rounded as the device does: to nearest even, NaN becomes
// the canonical NaN, 8-bit types saturate.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace smartspec::emulation {

/// |x| with kMantissa stored bits and an exponent bias of kBias; the exponent is not limited above.
/// Below the smallest normal number the result counts multiples of the smallest subnormal one.
template <int kMantissa, int kBias>
constexpr std::uint32_t narrow_magnitude(std::uint32_t bits) noexcept {
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  const int exponent = static_cast<int>(magnitude >> 23) - 127;
  int shift = 23 - kMantissa;
  std::uint32_t value = 0;
  if (exponent >= 1 - kBias) {
    value = magnitude - (static_cast<std::uint32_t>(127 - kBias) << 23);
  } else {
    shift += 1 - kBias - exponent;
    if (shift > 24) return 0;  // under half of the smallest subnormal number
    value = (magnitude & 0x7FFFFFU) | 0x800000U;
  }
  const std::uint32_t half = 1U << (shift - 1);
  return (value + half - 1U + ((value >> shift) & 1U)) >> shift;
}

constexpr bool is_nan_bits(std::uint32_t bits) noexcept {
  return (bits & 0x7FFFFFFFU) > 0x7F800000U;
}

inline std::uint16_t float_to_bf16(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (is_nan_bits(bits)) return 0x7FFF;
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}
inline float bf16_to_float(std::uint16_t x) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x) << 16);
}

inline std::uint16_t float_to_f16(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (is_nan_bits(bits)) return 0x7FFF;
  const std::uint32_t magnitude = std::min(narrow_magnitude<10, 15>(bits), 0x7C00U);
  return static_cast<std::uint16_t>(((bits >> 16) & 0x8000U) | magnitude);
}
inline float f16_to_float(std::uint16_t x) noexcept {
  const std::uint32_t sign = (x & 0x8000U) << 16;
  const std::uint32_t magnitude = x & 0x7FFFU;
  if (magnitude > 0x7C00U) return std::bit_cast<float>(0x7FFFFFFFU);
  if (magnitude == 0x7C00U) return std::bit_cast<float>(sign | 0x7F800000U);
  // As a float's bits the magnitude is the value times 2^-112, subnormal ones included.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(scaled));
}

inline std::uint8_t float_to_e4m3(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (is_nan_bits(bits)) return 0x7F;
  const std::uint32_t magnitude = std::min(narrow_magnitude<3, 7>(bits), 0x7EU);
  return static_cast<std::uint8_t>(((bits >> 24) & 0x80U) | magnitude);
}
inline std::uint8_t float_to_e5m2(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (is_nan_bits(bits)) return 0x7F;
  const std::uint32_t magnitude = std::min(narrow_magnitude<2, 15>(bits), 0x7BU);
  return static_cast<std::uint8_t>(((bits >> 24) & 0x80U) | magnitude);
}

/// Exactly; a NaN of either sign becomes the canonical one.
inline std::uint16_t e4m3_to_f16(std::uint8_t x) noexcept {
  const std::uint32_t sign = (x & 0x80U) << 8;
  const std::uint32_t magnitude = x & 0x7FU;
  if (magnitude == 0x7FU) return 0x7FFF;
  if (magnitude >= 8) return static_cast<std::uint16_t>(sign | ((magnitude << 7) + (8U << 10)));
  const float value = static_cast<float>(magnitude) * 0x1p-9F;
  return static_cast<std::uint16_t>(sign | float_to_f16(value));
}

}  // namespace smartspec::emulation
