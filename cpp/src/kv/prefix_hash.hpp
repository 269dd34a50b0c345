// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Keyed 128-bit hash of token prefixes, chained block by block. Internal; pure.
// A hash only finds candidates: PrefixIndex compares tokens and ancestry before it shares anything,
// so a collision costs time, never correctness.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "smartspec/types.hpp"

namespace smartspec::kv {

struct Hash128 {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  friend bool operator==(const Hash128&, const Hash128&) = default;
};

class PrefixHasher {
 public:
  /// `mask` keeps only some bits of every hash: tests force collisions with it.
  explicit PrefixHasher(std::uint64_t seed, std::uint64_t mask = ~std::uint64_t{0}) noexcept
      : mask_(mask) {
    for (std::uint64_t& key : keys_) {
      seed += 0x9E3779B97F4A7C15U;
      key = scramble(seed) | 1U;
    }
  }

  /// The hash of the empty prefix within one tenant.
  Hash128 root(std::uint64_t salt) const noexcept {
    return finish(salt ^ keys_[0], scramble(salt) + keys_[1]);
  }

  /// The hash of a prefix one block longer. `tokens` has an even size.
  Hash128 extend(const Hash128& parent, std::span<const TokenId> tokens) const noexcept {
    std::uint64_t a = parent.low ^ keys_[0];
    std::uint64_t b = parent.high ^ keys_[1];
    for (std::size_t i = 0; i + 1 < tokens.size(); i += 2) {
      const std::uint64_t word = static_cast<std::uint32_t>(tokens[i]) |
                                 (std::uint64_t{static_cast<std::uint32_t>(tokens[i + 1])} << 32);
      // Two lanes with different keys: one lane's rare absorbing state is not the other's.
      a = multiply_fold(a ^ word, keys_[2]) + keys_[3];
      b = multiply_fold(b + std::rotl(word, 29), keys_[3]) ^ keys_[2];
    }
    return finish(a, b);
  }

 private:
  static std::uint64_t scramble(std::uint64_t x) noexcept {
    x = (x ^ (x >> 31)) * 0xD6E8FEB86659FD93U;
    x = (x ^ (x >> 29)) * 0xA0761D6478BD642FU;
    return x ^ (x >> 32);
  }

  static std::uint64_t multiply_fold(std::uint64_t x, std::uint64_t y) noexcept {
    __extension__ using Wide = unsigned __int128;
    const Wide product = Wide{x} * y;
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
  }

  Hash128 finish(std::uint64_t a, std::uint64_t b) const noexcept {
    const std::uint64_t low = scramble(a ^ std::rotl(b, 23));
    const std::uint64_t high = scramble(b + low);
    return {low & mask_, high & mask_};
  }

  std::uint64_t keys_[4];
  std::uint64_t mask_;
};

}  // namespace smartspec::kv
