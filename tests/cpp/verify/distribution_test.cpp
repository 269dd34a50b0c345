// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Tokens emitted through trees against the exact law, by chi-square: first, middle, bonus, rejected
// and after-rejection positions, pairs of positions and pairs of consecutive seeds. Seeds run from
// 0 upwards; everything is deterministic, so the test never flakes.
#include <gtest/gtest.h>

#include "verify/checks.hpp"

namespace smartspec::verify_test {
namespace {

TEST(ChiSquare, TailMatchesTables) {
  EXPECT_NEAR(chi_square_tail(3.841458820694124, 1), 0.05, 1e-9);
  EXPECT_NEAR(chi_square_tail(18.307038053275146, 10), 0.05, 1e-9);
  EXPECT_NEAR(chi_square_tail(149.4492527, 100), 0.001, 1e-6);
  EXPECT_NEAR(chi_square_tail(70.0, 100), 0.9898, 1e-3);
  EXPECT_EQ(chi_square_tail(0.0, 3), 1.0);
}

/// The public classes, as a system for the checks.
class PublicSystem final : public System {
 public:
  PublicSystem(const SamplingParams& params, std::uint64_t seed, std::span<const TokenId> prompt,
               int vocab)
      : sampler_(params, seed, prompt, vocab, nullptr) {}
  void verify(const TokenTree& tree, const LogitsRow& rows, Verification& out) override {
    verify_tree(tree, rows, sampler_, out);
  }
  TokenId sample(std::span<const float> row) override { return sampler_.sample(row); }

 private:
  Sampler sampler_;
};

constexpr Subject kProduct = subject<PublicSystem>();

TEST(Distribution, EveryPositionFollowsTheTarget) {
  std::int64_t draws = 0;
  const auto failures = check_laws(kProduct, 40000 / kShrink, &draws);
  for (const auto& f : failures) ADD_FAILURE() << f.check << " " << f.detail;
  EXPECT_GE(draws, 1000000 / kShrink);
  RecordProperty("draws", std::to_string(draws));
}

TEST(Distribution, SingleDrawsAndRequestsMatchTheOracle) {
  for (const auto& failures : {check_oracle(kProduct, 3000 / kShrink),
                               check_plain(kProduct, 3000 / kShrink), check_bounds(kProduct)}) {
    for (const auto& f : failures) ADD_FAILURE() << f.check << " " << f.detail;
  }
}

// Gumbel noise as such: mean, variance and the law of -log u in 64 equal bins, over neighboring
// tokens, positions and seeds.
TEST(Distribution, NoiseIsGumbel) {
  constexpr int kBins = 64;
  std::vector<double> flat(kBins, 1.0 / kBins);
  std::vector<std::int64_t> bins(kBins);
  double sum = 0;
  double squares = 0;
  const int side = kShrink == 1 ? 64 : 20;
  for (int s = 0; s < side; ++s) {
    for (int p = 0; p < side; ++p) {
      for (int v = 0; v < 64; ++v) {
        const double g = gumbel_noise(static_cast<std::uint64_t>(s), p, v);
        sum += g;
        squares += g * g;
        const double u = std::exp(-std::exp(-g));
        bins[static_cast<std::size_t>(std::min(kBins - 1, static_cast<int>(u * kBins)))] += 1;
      }
    }
  }
  const double n = side * side * 64;
  const double mean = sum / n;
  const double deviation = 1.2825498301618641;  // pi / sqrt(6)
  EXPECT_NEAR(mean, 0.57721566490153286, 4.5 * deviation / std::sqrt(n));
  EXPECT_NEAR(squares / n - mean * mean, deviation * deviation, 16.0 / std::sqrt(n));
  ChiSquare test;
  test.add(flat, bins);
  EXPECT_GT(test.p_value(), 1e-4);
}

}  // namespace
}  // namespace smartspec::verify_test
