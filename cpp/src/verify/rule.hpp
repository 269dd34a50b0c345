// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The rule by which a token is drawn, as a compile-time policy. Production code uses StandardRule;
// tests derive faulty rules from it and show that the checks catch them.
//
// With T the temperature and every operation one IEEE double operation:
//   key(v) = logit(v) * (1 / T) + g(v),   g(v) = -log(-log(u(v))),   u(v) = (r + 0.5) / 2^52
//   r = 52 bits: word `noise_word` of Philox4x32-10 with key `seed` and counter
//       {noise_block, position low, position high, purpose}: 32 high bits from purpose kHighBits,
//       20 low bits (the top 20 of the word) from purpose kLowBits
// and the drawn token is the kept one with the greatest key, the lowest id among equals.
// The two halves of r let a search look at 32 bits per token and fetch the rest for the few tokens
// that may win; four tokens share one Philox call.
#pragma once

#include <array>
#include <cstdint>

#include "core/noise.hpp"
#include "core/token_order.hpp"
#include "smartspec/token_tree.hpp"
#include "smartspec/types.hpp"
#include "verify/math.hpp"

namespace smartspec::verify {

using core::Purpose;

inline constexpr std::int32_t kGroup = 64;  // tokens whose noise is made together: 16 Philox calls

struct StandardRule {
  static constexpr bool kPrune = true;         // search() may skip tokens that cannot win
  static constexpr double kBoundSlack = 1e-4;  // covers the rounding of the float bound

  static constexpr std::int64_t position(std::int64_t num_prompt, std::int64_t num_output) {
    return num_prompt + num_output;
  }
  static constexpr std::array<std::uint32_t, 2> key(std::uint64_t seed) {
    return core::noise_key(seed);
  }
  static constexpr std::uint32_t noise_index(TokenId token) {
    return static_cast<std::uint32_t>(token);
  }
  static constexpr double uniform(std::uint32_t high, std::uint32_t low) {
    return core::uniform(high, low);
  }
  static double gumbel(double u) { return core::gumbel(u); }
  static constexpr double perturbed(double tempered, double noise, double /*temperature*/) {
    return tempered + noise;
  }
  static constexpr bool better(double key_a, TokenId a, double key_b, TokenId b) {
    return core::better(key_a, a, key_b, b);
  }
  static constexpr float repeated(float logit, float penalty) {
    return core::repeated(logit, penalty);
  }
  static constexpr std::int32_t top_k(std::int32_t k) { return k; }
  /// Mass (units of to_fixed) that the kept prefix must reach, [1, total].
  static std::uint64_t top_p_target(double top_p, std::uint64_t total) {
    return core::top_p_target(top_p, total);
  }
  static constexpr bool reached(std::uint64_t mass, std::uint64_t target) { return mass >= target; }
  static std::int32_t find_child(const TokenTree& tree, std::int32_t node, TokenId token) {
    return tree.find_child(node, token);
  }
};

template <class Rule>
std::uint32_t noise_bits(std::uint64_t seed, std::int64_t position, TokenId token,
                         Purpose purpose) noexcept {
  const std::uint32_t index = Rule::noise_index(token);
  const auto words =
      philox4x32(core::noise_counter(core::noise_block(index), position, purpose), Rule::key(seed));
  return words[core::noise_word(index)];
}

/// g(v) when the high bits are at hand.
template <class Rule>
double noise_from_high(std::uint64_t seed, std::int64_t position, TokenId token,
                       std::uint32_t high) noexcept {
  return Rule::gumbel(
      Rule::uniform(high, noise_bits<Rule>(seed, position, token, Purpose::kLowBits)));
}

template <class Rule>
double noise(std::uint64_t seed, std::int64_t position, TokenId token) noexcept {
  return noise_from_high<Rule>(seed, position, token,
                               noise_bits<Rule>(seed, position, token, Purpose::kHighBits));
}

/// High bits of the tokens [group * kGroup, (group + 1) * kGroup) of StandardRule.
inline void noise_group(std::uint64_t seed, std::int64_t position, std::uint32_t group,
                        std::uint32_t* out) noexcept {  // out[kGroup]
  constexpr int kLanes = 4;  // one SSE register per word, two sets in flight
  const auto pos = static_cast<std::uint64_t>(position);
  for (int first = 0; first < 16; first += kLanes) {
    std::array<std::uint32_t, kLanes> c0{}, c1{}, c2{}, c3{};
    for (int j = 0; j < kLanes; ++j) {
      c0[j] = group * 16 + static_cast<std::uint32_t>(first + j);
      c1[j] = static_cast<std::uint32_t>(pos);
      c2[j] = static_cast<std::uint32_t>(pos >> 32);
      c3[j] = static_cast<std::uint32_t>(Purpose::kHighBits);
    }
    auto [k0, k1] = StandardRule::key(seed);
    for (int round = 0; round < 10; ++round) {
      for (int j = 0; j < kLanes; ++j) {
        const std::uint64_t p0 = std::uint64_t{0xD2511F53U} * c0[j];
        const std::uint64_t p1 = std::uint64_t{0xCD9E8D57U} * c2[j];
        c0[j] = static_cast<std::uint32_t>(p1 >> 32) ^ c1[j] ^ k0;
        c1[j] = static_cast<std::uint32_t>(p1);
        c2[j] = static_cast<std::uint32_t>(p0 >> 32) ^ c3[j] ^ k1;
        c3[j] = static_cast<std::uint32_t>(p0);
      }
      k0 += 0x9E3779B9U;
      k1 += 0xBB67AE85U;
    }
    for (int j = 0; j < kLanes; ++j) {
      out[first + j] = c0[j];
      out[16 + first + j] = c1[j];
      out[32 + first + j] = c2[j];
      out[48 + first + j] = c3[j];
    }
  }
}

}  // namespace smartspec::verify
