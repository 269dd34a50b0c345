// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The random numbers of verification: counters, uniforms and Gumbel noise. One definition for the
// CPU and the device; constexpr as portable_math.hpp. Pure; thread-safe.
#pragma once

#include <array>
#include <cstdint>

#include "core/portable_math.hpp"
#include "smartspec/philox.hpp"
#include "smartspec/types.hpp"

namespace smartspec::core {

/// Keeps the streams of one seed apart: last word of the counter.
enum class Purpose : std::uint32_t {
  kHighBits = 0x6E6F6973U,
  kLowBits = 0x65626974U,
  kCompletion = 0x73656564U,
  kAccept = 0x61636370U,   // whether a drafted node is accepted, rules with draft probabilities
  kResidual = 0x72657369U  // their last token
};

constexpr std::array<std::uint32_t, 2> noise_key(std::uint64_t seed) noexcept {
  return {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
}

constexpr std::array<std::uint32_t, 4> noise_counter(std::uint32_t block, std::int64_t position,
                                                     Purpose purpose) noexcept {
  const auto pos = static_cast<std::uint64_t>(position);
  return {block, static_cast<std::uint32_t>(pos), static_cast<std::uint32_t>(pos >> 32),
          static_cast<std::uint32_t>(purpose)};
}

/// A group of 64 consecutive tokens is 16 blocks x 4 words, word by word: equal words of
/// neighboring blocks belong to neighboring tokens, which is the order SIMD code makes them in.
constexpr std::uint32_t noise_block(std::uint32_t token) noexcept {
  return (token / 64) * 16 + token % 16;
}
constexpr std::uint32_t noise_word(std::uint32_t token) noexcept { return (token / 16) % 4; }

constexpr std::uint32_t noise_bits(std::uint64_t seed, std::int64_t position, TokenId token,
                                   Purpose purpose) noexcept {
  const auto index = static_cast<std::uint32_t>(token);
  return philox4x32(noise_counter(noise_block(index), position, purpose),
                    noise_key(seed))[noise_word(index)];
}

/// The 52 bits of `high` and the top of `low` as a number; exact, in [2^-53, 1 - 2^-53].
constexpr double uniform(std::uint32_t high, std::uint32_t low) noexcept {
  const std::uint64_t r = (std::uint64_t{high} << 20) | (low >> 12);
  return (static_cast<double>(r) + 0.5) * 0x1p-52;
}

constexpr double gumbel(double u) noexcept { return -portable_log(-portable_log(u)); }

/// Standard Gumbel noise of (seed, position, token).
constexpr double gumbel_noise(std::uint64_t seed, std::int64_t position, TokenId token) noexcept {
  return gumbel(uniform(noise_bits(seed, position, token, Purpose::kHighBits),
                        noise_bits(seed, position, token, Purpose::kLowBits)));
}

/// One number of (seed, position, index) for decisions that are not about a token of the
/// vocabulary.
constexpr double uniform_at(std::uint64_t seed, std::int64_t position, std::uint32_t index,
                            Purpose purpose) noexcept {
  const auto words = philox4x32(noise_counter(index, position, purpose), noise_key(seed));
  return uniform(words[0], words[1]);
}

}  // namespace smartspec::core
