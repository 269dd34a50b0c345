// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The row kernels against double precision and against the CPU backend's verbs, and each row alone
// against its batch.
#include "kernels/rows/rows.h"

#include <algorithm>

#include "cpu/cpu_test_util.hpp"
#include "emulation/schedule.hpp"

namespace smartspec {
namespace {

using cuda::kernels::add_bias;
using cuda::kernels::convert_rows;
using test::Random;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// Rows with gaps between them and perhaps an odd start, poisoned beyond.
struct Rows {
  std::int32_t num_rows = 0;
  std::int32_t dim = 0;
  std::int64_t stride = 0;
  std::size_t start = 0;
  std::vector<float> memory;

  Rows(Random& random, std::int32_t n, std::int32_t width)
      : num_rows(n), dim(width), stride(width + std::int64_t{random.integer(0, 2)} * 4) {
    if (random.integer(0, 2) == 0) stride += random.integer(0, 3);
    start = random.integer(0, 2) == 0 ? 1 : 0;
    memory = random.normals(start + at(n * stride), 2.0F);
  }
  float* row(std::int64_t r) { return memory.data() + start + r * stride; }
  /// Asserts that nothing but the rows differs from `before`.
  void expect_gaps(const std::vector<float>& before) const {
    for (std::size_t i = 0; i < memory.size(); ++i) {
      const bool in_row = i >= start && (i - start) % at(stride) < at(dim);
      if (!in_row) {
        ASSERT_EQ(memory[i], before[i]);
      }
    }
  }
};

TEST(Rows, RmsNorm) {
  Random random(1);
  const auto cpu = make_cpu_backend(1);
  for (int round = 0; round < 160; ++round) {
    const std::int32_t dim = round % 8 == 0 ? random.integer(1000, 5000) : random.integer(1, 1100);
    Rows in(random, random.integer(1, 12), dim);
    Rows out(random, in.num_rows, dim);
    const std::vector<float> poison = out.memory;
    const std::vector<float> weight = random.normals(at(dim));
    RmsNormParams p{in.row(0), weight.data(), out.row(0), in.num_rows,
                    dim,       in.stride,     out.stride, 1e-5F};
    cuda::kernels::rms_norm(p, nullptr);
    std::vector<float> theirs(at(dim));
    for (std::int32_t r = 0; r < in.num_rows; ++r) {
      double sum = 0.0;
      for (std::int32_t i = 0; i < dim; ++i) sum += double{in.row(r)[i]} * in.row(r)[i];
      const double inverse = 1.0 / std::sqrt(sum / dim + 1e-5);
      cpu->rms_norm({in.row(r), weight.data(), theirs.data(), 1, dim, dim, dim, 1e-5F});
      for (std::int32_t i = 0; i < dim; ++i) {
        const double want = in.row(r)[i] * inverse * weight[at(i)];
        ASSERT_NEAR(out.row(r)[i], want, test::tolerance(4, std::abs(want)));
        ASSERT_NEAR(out.row(r)[i], theirs[at(i)], test::tolerance(4, std::abs(want)));
      }
    }
    out.expect_gaps(poison);
    // Alone, aligned and in place: the same bits.
    const std::int32_t r = random.integer(0, in.num_rows - 1);
    std::vector<float> alone(in.row(r), in.row(r) + dim);
    cuda::kernels::rms_norm({alone.data(), weight.data(), alone.data(), 1, dim, dim, dim, 1e-5F},
                            nullptr);
    ASSERT_TRUE(test::same_bits(alone.data(), out.row(r), at(dim))) << dim;
  }
}

TEST(Rows, RmsNormInEveryOrderOfThreads) {
  Random random(2);
  for (const std::int32_t dim : {64, 2050}) {
    const std::vector<float> x = random.normals(at(3 * dim));
    const std::vector<float> weight = random.normals(at(dim));
    std::vector<float> first;
    emulation::for_each_schedule(3, [&] {
      std::vector<float> out(x.size());
      cuda::kernels::rms_norm({x.data(), weight.data(), out.data(), 3, dim, dim, dim, 1e-6F},
                              nullptr);
      if (first.empty()) first = out;
      EXPECT_TRUE(test::same_bits(out, first));
    });
  }
}

TEST(Rows, Swiglu) {
  Random random(3);
  const auto cpu = make_cpu_backend(1);
  for (int round = 0; round < 80; ++round) {
    const std::int32_t rows = random.integer(1, 9);
    const std::int32_t dim = random.integer(1, round % 8 == 0 ? 2000 : 300);
    const std::size_t start = at(random.integer(0, 1));
    std::vector<float> x = random.normals(start + at(rows * 2 * dim), 4.0F);
    x[start] = 200.0F;
    if (dim > 1) x[start + 1] = -200.0F;
    const std::size_t n = at(rows * dim);
    std::vector<float> out(n + 1, 7.0F);
    std::vector<float> theirs(n);
    cuda::kernels::swiglu({x.data() + start, out.data(), rows, dim}, nullptr);
    cpu->swiglu({x.data() + start, theirs.data(), rows, dim});
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t gate = start + i / at(dim) * 2 * at(dim) + i % at(dim);
      const double g = x[gate];
      const double want = g / (1.0 + std::exp(-g)) * x[gate + at(dim)];
      ASSERT_NEAR(out[i], want, test::tolerance(4, std::abs(want))) << g;
      ASSERT_NEAR(out[i], theirs[i], test::tolerance(4, std::abs(want))) << g;
    }
    ASSERT_EQ(out[n], 7.0F);
    const std::int32_t r = random.integer(0, rows - 1);
    std::vector<float> alone(at(dim));
    cuda::kernels::swiglu({x.data() + start + std::int64_t{r} * 2 * dim, alone.data(), 1, dim},
                          nullptr);
    ASSERT_TRUE(test::same_bits(alone.data(), &out[at(r * dim)], at(dim)));
  }
}

TEST(Rows, EmbedAndGather) {
  Random random(4);
  for (int round = 0; round < 60; ++round) {
    const std::int32_t vocab = random.integer(1, 40);
    const std::int32_t dim = random.integer(1, round % 8 == 0 ? 1500 : 200);
    const std::int32_t rows = random.integer(0, 30);
    const std::vector<float> table = random.normals(at(vocab * dim));
    std::vector<std::uint16_t> narrow(table.size());
    std::transform(table.begin(), table.end(), narrow.begin(), test::to_bf16);
    std::vector<std::int32_t> tokens(at(rows));
    for (std::int32_t& t : tokens) t = random.integer(0, vocab - 1);
    const std::size_t n = at(rows * dim);
    for (int kind = 0; kind < 3; ++kind) {  // f32 table, bf16 table, gather
      std::vector<float> out(n + 1, 7.0F);
      if (kind == 2) {
        cuda::kernels::gather_rows({table.data(), tokens.data(), out.data(), rows, dim}, nullptr);
      } else {
        const void* data = kind == 1 ? static_cast<const void*>(narrow.data()) : table.data();
        const DType dtype = kind == 1 ? DType::kBFloat16 : DType::kFloat32;
        cuda::kernels::embed({tokens.data(), data, dtype, out.data(), rows, dim}, nullptr);
      }
      for (std::size_t i = 0; i < n; ++i) {
        const float value = table[at(tokens[i / at(dim)]) * at(dim) + i % at(dim)];
        ASSERT_EQ(out[i], kind == 1 ? test::round_bf16(value) : value);
      }
      ASSERT_EQ(out[n], 7.0F);
    }
  }
}

TEST(Rows, ConvertAndAddBias) {
  Random random(5);
  for (int round = 0; round < 60; ++round) {
    const std::int32_t dim = random.integer(1, round % 8 == 0 ? 1500 : 200);
    Rows rows(random, random.integer(0, 9), dim);
    if (rows.num_rows > 0) {  // ties, and a NaN whose payload lies below bf16
      rows.row(0)[0] = std::bit_cast<float>(round % 2 == 0 ? 0x3F808000U : 0x3F818000U);
      if (dim > 1) rows.row(0)[1] = std::bit_cast<float>(0x7F800001U);
    }
    const std::int64_t stride = dim + random.integer(0, 5);
    std::vector<std::uint16_t> narrow(at(rows.num_rows * stride) + 1, 0x5555U);
    convert_rows({rows.row(0), narrow.data(), rows.num_rows, dim, rows.stride, stride}, nullptr);
    for (std::size_t i = 0; i < narrow.size(); ++i) {
      const auto r = static_cast<std::int64_t>(i) / stride;
      const auto c = static_cast<std::int64_t>(i) % stride;
      if (r >= rows.num_rows || c >= dim) {
        ASSERT_EQ(narrow[i], 0x5555U);
      } else if (std::isnan(rows.row(r)[c])) {
        ASSERT_TRUE(std::isnan(test::from_bf16(narrow[i])));
      } else {
        ASSERT_EQ(narrow[i], test::to_bf16(rows.row(r)[c]));
      }
    }
    const std::vector<float> bias = random.normals(at(dim));
    const std::vector<float> before = rows.memory;
    Rows biased = rows;
    add_bias({bias.data(), biased.row(0), rows.num_rows, dim, rows.stride}, nullptr);
    biased.expect_gaps(before);
    for (std::int32_t r = 0; r < rows.num_rows; ++r) {
      for (std::int32_t i = 0; i < dim; ++i) {
        if (std::isnan(rows.row(r)[i])) continue;
        ASSERT_EQ(biased.row(r)[i], rows.row(r)[i] + bias[at(i)]);
      }
    }
  }
}

}  // namespace
}  // namespace smartspec
