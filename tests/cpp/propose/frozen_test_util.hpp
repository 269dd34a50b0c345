// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Random texts and sizes shared by the tests of the frozen tier.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "propose/suffix/frozen.hpp"

namespace smartspec::suffix {

#ifdef __SANITIZE_ADDRESS__
inline constexpr int kSegments = 1500;
inline constexpr std::uint32_t kLong = 100'000;
#else
inline constexpr int kSegments = 5000;
inline constexpr std::uint32_t kLong = 1'000'000;
#endif
inline constexpr int kQueries = 100;

using Tokens = std::vector<TokenId>;

class Random {
 public:
  explicit Random(std::uint64_t seed) : generator_(seed) {}
  std::uint32_t below(std::uint32_t bound) {
    return static_cast<std::uint32_t>(generator_() % bound);
  }
  TokenId token(std::uint32_t bound) { return static_cast<TokenId>(below(bound)); }
  Tokens tokens(std::uint32_t size, std::uint32_t vocab) {
    Tokens out(size);
    for (TokenId& t : out) t = token(vocab);
    return out;
  }

 private:
  std::mt19937_64 generator_;
};

inline FrozenSegment build(const std::vector<Tokens>& sequences) {
  const std::vector<std::span<const TokenId>> spans(sequences.begin(), sequences.end());
  return FrozenSegment::build(spans);
}

}  // namespace smartspec::suffix
