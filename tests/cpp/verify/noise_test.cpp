// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Philox, the portable exp and log, and the definition of the noise.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "smartspec/philox.hpp"
#include "smartspec/sampler.hpp"
#include "verify/math.hpp"
#include "verify/rule.hpp"
#include "verify/support.hpp"

namespace smartspec::verify_test {
namespace {

using Words = std::array<std::uint32_t, 4>;

// Known answers of Random123 (kat_vectors, philox4x32 10 rounds).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U}));
  constexpr std::uint32_t kOnes = 0xffffffffU;
  EXPECT_EQ(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU}));
  EXPECT_EQ(
      philox4x32({0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U}, {0xa4093822U, 0x299f31d0U}),
      (Words{0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U}));
}

TEST(PortableMath, LogMatchesTheLibrary) {
  Random random(1);
  for (int i = 0; i < 200000 / kShrink; ++i) {
    const double x = std::ldexp(1.0 + random.unit(), random.below(200) - 100);
    const double expected = std::log(x);
    ASSERT_NEAR(verify::portable_log(x), expected, 1e-15 * std::abs(expected) + 1e-300) << x;
  }
  // Near 1 the relative error must hold too: it decides the largest noise values.
  for (int k = 1; k <= 53; ++k) {
    const double x = 1.0 - std::ldexp(1.0, -k);
    EXPECT_NEAR(verify::portable_log(x) / std::log(x), 1.0, 1e-15) << k;
  }
  EXPECT_EQ(verify::portable_log(1.0), 0.0);
}

TEST(PortableMath, ExpMatchesTheLibrary) {
  Random random(2);
  for (int i = 0; i < 200000 / kShrink; ++i) {
    const double x = -700.0 * random.unit() * random.unit();
    ASSERT_NEAR(verify::portable_exp(x) / std::exp(x), 1.0, 1e-14) << x;
  }
  EXPECT_EQ(verify::portable_exp(0.0), 1.0);
  EXPECT_GT(verify::portable_exp(-1e300), 0.0);
  EXPECT_LT(verify::portable_exp(-HUGE_VAL), 1e-300);
  EXPECT_EQ(verify::to_fixed(1.0), std::uint64_t{1} << 40);
  EXPECT_EQ(verify::to_fixed(1e-13), 0U);
}

// The definition in verify/rule.hpp, spelled out once more.
double noise_by_hand(std::uint64_t seed, std::int64_t position, TokenId token) {
  const auto v = static_cast<std::uint32_t>(token);
  const auto words = [&](std::uint32_t purpose) {
    return philox4x32({v / 64 * 16 + v % 16, static_cast<std::uint32_t>(position),
                       static_cast<std::uint32_t>(position >> 32), purpose},
                      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  };
  const std::uint64_t high = words(0x6E6F6973U)[v / 16 % 4];
  const std::uint64_t low = words(0x65626974U)[v / 16 % 4] >> 12;
  const double u = (static_cast<double>(high << 20 | low) + 0.5) / 4503599627370496.0;
  return -std::log(-std::log(u));
}

TEST(Noise, FollowsItsDefinition) {
  Random random(3);
  for (int i = 0; i < 20000 / kShrink; ++i) {
    const std::uint64_t seed = random.next();
    const auto position = static_cast<std::int64_t>(random.next() >> (1 + random.below(60)));
    const TokenId token = random.below(1 << 20);
    ASSERT_NEAR(gumbel_noise(seed, position, token), noise_by_hand(seed, position, token), 1e-13);
  }
}

TEST(Noise, GoldenValues) {  // a change here changes every seeded output: a breaking change
  EXPECT_NEAR(gumbel_noise(0, 0, 0), -0.71487394184383091, 1e-14);
  EXPECT_NEAR(gumbel_noise(7, 12, 4095), 0.32257245556091235, 1e-14);
  EXPECT_NEAR(gumbel_noise(~std::uint64_t{0}, std::int64_t{1} << 40, 151935), 0.90314493612367108,
              1e-14);
}

TEST(Noise, GroupsHoldTheSameBits) {
  std::array<std::uint32_t, verify::kGroup> high;
  for (std::uint32_t group : {0U, 1U, 63U, 2373U}) {
    verify::noise_group(0x123456789ABCDEFULL, 1LL << 33, group, high.data());
    for (std::uint32_t i = 0; i < verify::kGroup; ++i) {
      const auto token = static_cast<TokenId>(group * verify::kGroup + i);
      ASSERT_EQ(high[i], (verify::noise_bits<verify::StandardRule>(
                             0x123456789ABCDEFULL, 1LL << 33, token, verify::Purpose::kHighBits)));
    }
  }
}

TEST(Noise, UniformStaysInsideTheOpenInterval) {
  constexpr std::uint32_t kOnes = 0xffffffffU;
  EXPECT_EQ(verify::StandardRule::uniform(0, 0), 0x1p-53);
  EXPECT_EQ(verify::StandardRule::uniform(kOnes, kOnes), 1.0 - 0x1p-53);
  EXPECT_NEAR(verify::StandardRule::gumbel(0x1p-53), -3.60, 0.01);
  EXPECT_NEAR(verify::StandardRule::gumbel(1.0 - 0x1p-53), 36.74, 0.01);
}

TEST(Seeds, CompletionsGetDistinctStreams) {
  std::set<std::uint64_t> seen;
  for (std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{1}, ~std::uint64_t{0}}) {
    EXPECT_EQ(seed_of_completion(seed, 0), seed);
    for (int i = 0; i < 1024; ++i) EXPECT_TRUE(seen.insert(seed_of_completion(seed, i)).second);
  }
}

}  // namespace
}  // namespace smartspec::verify_test
