// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The order of the tokens of a row (logit descending, id ascending) and what min-p, top-p and the
// penalties do to it: every cut keeps a prefix of the order, so one (logit, id) pair describes it.
// One definition for the CPU and the device; constexpr as portable_math.hpp. Pure; thread-safe.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "smartspec/types.hpp"

namespace smartspec::core {

/// The last kept token. The default keeps every finite logit.
struct Cut {
  float logit = std::numeric_limits<float>::lowest();
  TokenId id = std::numeric_limits<TokenId>::max();
  [[nodiscard]] constexpr bool keeps(float l, TokenId v) const noexcept {
    return l > logit || (l == logit && v <= id);
  }
};

/// Orders the bits of floats like the floats; -0 below +0.
constexpr std::uint32_t ordered_bits(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
constexpr float from_ordered_bits(std::uint32_t ordered) noexcept {
  return std::bit_cast<float>((ordered & 0x80000000U) != 0 ? ordered & 0x7FFFFFFFU : ~ordered);
}

/// Greater is better: logit descending, then id ascending, as one integer.
constexpr std::uint64_t order_key(float logit, TokenId token) noexcept {
  const std::uint32_t ordered = ordered_bits(logit + 0.0F);  // -0 and +0 are equal logits
  return (std::uint64_t{ordered} << 32) | (0xFFFFFFFFU - static_cast<std::uint32_t>(token));
}
constexpr TokenId token_of(std::uint64_t order_key) noexcept {
  return static_cast<TokenId>(0xFFFFFFFFU - static_cast<std::uint32_t>(order_key));
}
constexpr float logit_of(std::uint64_t order_key) noexcept {
  return from_ordered_bits(static_cast<std::uint32_t>(order_key >> 32));
}

/// Whether key (a, token_a) wins the draw against (b, token_b).
constexpr bool better(double a, TokenId token_a, double b, TokenId token_b) noexcept {
  return a > b || (a == b && token_a < token_b);
}

constexpr float repeated(float logit, float penalty) noexcept {
  return logit > 0.0F ? logit / penalty : logit * penalty;
}

/// min-p: keeps v when (logit(v) - max) / T >= log(min_p), i.e. p(v) >= min_p * max p. Gives the
/// least float that is kept: bisection, because rounding makes the closed form off by some floats.
constexpr float min_p_floor(float max, double inv_t, double log_min_p) noexcept {
  std::uint32_t low = ordered_bits(std::numeric_limits<float>::lowest());
  std::uint32_t high = ordered_bits(max);  // is kept
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    const auto l = static_cast<double>(from_ordered_bits(middle));
    if ((l - static_cast<double>(max)) * inv_t >= log_min_p) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return from_ordered_bits(low);
}

/// Mass (units of to_fixed) that the prefix kept by top-p must reach, [1, total]: ceil(top_p
/// total).
constexpr std::uint64_t top_p_target(double top_p, std::uint64_t total) noexcept {
  const double product = top_p * static_cast<double>(total);
  if (product >= static_cast<double>(total)) return total;
  const auto floor = static_cast<std::uint64_t>(product);
  const std::uint64_t target = floor + (static_cast<double>(floor) < product ? 1U : 0U);
  return target < 1 ? 1 : target;
}

}  // namespace smartspec::core
