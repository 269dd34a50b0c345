// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The row-wise verbs against double-precision oracles, and each row alone against its batch.
#include <algorithm>
#include <limits>

#include "cpu/cpu_test_util.hpp"
#include "cpu/kernels.hpp"

namespace smartspec {
namespace {

using test::PerIsa;
using test::Random;

class Rows : public PerIsa {};

TEST_P(Rows, RmsNorm) {
  auto b = backend(2);
  Random random(1);
  for (int round = 0; round < test::rounds(200); ++round) {
    const auto rows = static_cast<std::size_t>(random.integer(1, 40));
    const auto dim = static_cast<std::size_t>(random.integer(1, 700));
    const std::size_t stride = dim + static_cast<std::size_t>(random.integer(0, 9));
    const std::vector<float> x = random.normals(rows * stride);
    const std::vector<float> w = random.normals(dim);
    std::vector<float> out(rows * stride, 7.0F);
    RmsNormParams p{x.data(),
                    w.data(),
                    out.data(),
                    static_cast<std::int32_t>(rows),
                    static_cast<std::int32_t>(dim),
                    static_cast<std::int64_t>(stride),
                    static_cast<std::int64_t>(stride),
                    1e-5F};
    b->rms_norm(p);
    for (std::size_t r = 0; r < rows; ++r) {
      double sum = 0.0;
      for (std::size_t i = 0; i < dim; ++i) sum += double{x[r * stride + i]} * x[r * stride + i];
      const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(dim) + 1e-5);
      for (std::size_t i = 0; i < dim; ++i) {
        const double want = x[r * stride + i] * inverse * w[i];
        ASSERT_NEAR(out[r * stride + i], want, test::tolerance(4, std::abs(want)));
      }
      for (std::size_t i = dim; i < stride; ++i) ASSERT_EQ(out[r * stride + i], 7.0F);
    }
    std::vector<float> alone(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(dim));
    p.in = p.out = alone.data();  // in place
    p.num_rows = 1;
    b->rms_norm(p);
    ASSERT_TRUE(test::same_bits(alone.data(), out.data(), dim));
  }
}

TEST_P(Rows, Swiglu) {
  auto b = backend(2);
  Random random(2);
  for (int round = 0; round < test::rounds(100); ++round) {
    const auto rows = static_cast<std::size_t>(random.integer(1, 30));
    const auto dim = static_cast<std::size_t>(random.integer(1, 500));
    std::vector<float> x = random.normals(rows * 2 * dim, 4.0F);
    x[0] = 200.0F;
    if (dim > 1) x[1] = -200.0F;
    std::vector<float> out(rows * dim);
    b->swiglu(
        {x.data(), out.data(), static_cast<std::int32_t>(rows), static_cast<std::int32_t>(dim)});
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t i = 0; i < dim; ++i) {
        const double g = x[r * 2 * dim + i];
        const double want = g / (1.0 + std::exp(-g)) * x[r * 2 * dim + dim + i];
        ASSERT_NEAR(out[r * dim + i], want, test::tolerance(4, std::abs(want))) << g;
      }
    }
  }
}

TEST_P(Rows, ExponentialIsWithinTwoUlp) {
  const cpu::KernelTable& kernels = cpu::select_kernels(GetParam());
  double worst = 0.0;
  std::vector<float> x;
  for (float v = 0.0F; v > -87.0F; v -= 0.00173F) x.push_back(v);
  std::vector<float> y(x.size());
  kernels.exp_nonpositive(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp(double{x[i]});
    const auto rounded = static_cast<float>(want);
    const double ulp = std::nextafterf(rounded, std::numeric_limits<float>::infinity()) - rounded;
    worst = std::max(worst, std::abs(y[i] - want) / ulp);
  }
  EXPECT_LE(worst, 2.0);
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> edge = {0.0F, -0.0F, -inf, -88.0F, -1e30F, std::nanf("")};
  std::vector<float> e(edge.size());
  kernels.exp_nonpositive(edge.data(), e.data(), static_cast<std::int64_t>(edge.size()));
  EXPECT_EQ(e[0], 1.0F);
  EXPECT_EQ(e[1], 1.0F);
  EXPECT_EQ(e[2], 0.0F);
  EXPECT_EQ(e[3], 0.0F);
  EXPECT_EQ(e[4], 0.0F);
  EXPECT_TRUE(std::isnan(e[5]));
}

TEST_P(Rows, EmbedAndGather) {
  auto b = backend(2);
  Random random(3);
  const std::size_t vocab = 50;
  const std::size_t dim = 77;
  const std::vector<float> table = random.normals(vocab * dim);
  std::vector<std::uint16_t> narrow(table.size());
  std::transform(table.begin(), table.end(), narrow.begin(), test::to_bf16);
  std::vector<std::int32_t> tokens(300);
  for (std::int32_t& t : tokens) t = random.integer(0, static_cast<int>(vocab) - 1);
  std::vector<float> out(tokens.size() * dim);
  for (const bool bf16 : {false, true}) {
    EmbedParams p;
    p.tokens = tokens.data();
    p.table = bf16 ? static_cast<const void*>(narrow.data()) : table.data();
    p.table_dtype = bf16 ? DType::kBFloat16 : DType::kFloat32;
    p.out = out.data();
    p.num_rows = static_cast<std::int32_t>(tokens.size());
    p.hidden = static_cast<std::int32_t>(dim);
    b->embed(p);
    for (std::size_t r = 0; r < tokens.size(); ++r) {
      for (std::size_t i = 0; i < dim; ++i) {
        const float value = table[static_cast<std::size_t>(tokens[r]) * dim + i];
        ASSERT_EQ(out[r * dim + i], bf16 ? test::round_bf16(value) : value);
      }
    }
  }
  std::vector<float> gathered(tokens.size() * dim);
  b->gather_rows({table.data(), tokens.data(), gathered.data(),
                  static_cast<std::int32_t>(tokens.size()), static_cast<std::int32_t>(dim)});
  for (std::size_t r = 0; r < tokens.size(); ++r) {
    ASSERT_TRUE(test::same_bits(&gathered[r * dim],
                                &table[static_cast<std::size_t>(tokens[r]) * dim], dim));
  }
}

TEST_P(Rows, NarrowRoundsToNearestEvenAndKeepsNan) {
  const cpu::KernelTable& kernels = cpu::select_kernels(GetParam());
  Random random(4);
  std::vector<float> x;
  for (int i = 0; i < 5000; ++i) {
    x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random.engine()())));
  }
  x.push_back(std::bit_cast<float>(0x7F800001U));  // NaN whose payload lies below bf16
  x.push_back(std::bit_cast<float>(0x3F808000U));  // tie to even
  x.push_back(std::bit_cast<float>(0x3F818000U));
  std::vector<std::uint16_t> y(x.size());
  kernels.narrow_bf16(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
  for (std::size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], test::to_bf16(x[i])) << x[i];
  std::vector<float> back(x.size());
  kernels.widen_bf16(y.data(), back.data(), static_cast<std::int64_t>(x.size()));
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(back[i]), static_cast<std::uint32_t>(y[i]) << 16);
  }
}

SMARTSPEC_PER_ISA(Rows);

}  // namespace
}  // namespace smartspec
