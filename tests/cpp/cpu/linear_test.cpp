// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Linear layers: against a double-precision oracle, and bit for bit against each row alone.
#include <algorithm>
#include <stdexcept>

#include "cpu/cpu_test_util.hpp"

namespace smartspec {
namespace {

using test::PerIsa;
using test::Random;

struct Case {
  int rows = 1;
  int in = 1;
  int out = 1;
  bool bf16 = false;
  bool bias = false;
  bool accumulate = false;
};

struct Layer {
  Case c;
  std::vector<float> weights;  // as the layer sees them, bf16-rounded if so
  std::vector<float> bias;
  PackedLinear packed;
};

Layer make_layer(Backend& backend, Random& random, const Case& c) {
  Layer layer;
  layer.c = c;
  const auto n = static_cast<std::size_t>(c.in) * static_cast<std::size_t>(c.out);
  layer.weights = random.normals(n);
  layer.bias = random.normals(static_cast<std::size_t>(c.out));
  std::vector<std::uint16_t> narrow(n);
  if (c.bf16) {
    for (std::size_t i = 0; i < n; ++i) {
      narrow[i] = test::to_bf16(layer.weights[i]);
      layer.weights[i] = test::from_bf16(narrow[i]);
    }
  }
  const DType dtype = c.bf16 ? DType::kBFloat16 : DType::kFloat32;
  const void* data = c.bf16 ? static_cast<const void*>(narrow.data()) : layer.weights.data();
  // Two parts, as q|k|v and gate|up are joined.
  const int first = c.out > 1 ? random.integer(1, c.out - 1) : 1;
  std::vector<TensorView> parts = {test::matrix(data, dtype, first, c.in)};
  if (first < c.out) {
    const auto* rest = static_cast<const char*>(data) + static_cast<std::size_t>(first) *
                                                            static_cast<std::size_t>(c.in) *
                                                            size_of(dtype);
    parts.push_back(test::matrix(rest, dtype, c.out - first, c.in));
  }
  layer.packed = backend.pack_linear(parts, dtype);
  return layer;
}

void run(Backend& backend, const Layer& layer, const float* in, std::int64_t in_stride, float* out,
         std::int64_t out_stride, int rows) {
  LinearParams p;
  p.in = in;
  p.weight = &layer.packed;
  p.bias = layer.c.bias ? layer.bias.data() : nullptr;
  p.out = out;
  p.num_rows = rows;
  p.in_stride = in_stride;
  p.out_stride = out_stride;
  p.accumulate = layer.c.accumulate;
  backend.linear(p);
}

void expect_near_oracle(const Layer& layer, const std::vector<float>& in,
                        const std::vector<float>& before, const std::vector<float>& out,
                        std::size_t in_stride, std::size_t out_stride) {
  const Case& c = layer.c;
  for (int r = 0; r < c.rows; ++r) {
    for (int o = 0; o < c.out; ++o) {
      const std::size_t at = static_cast<std::size_t>(r) * out_stride + static_cast<std::size_t>(o);
      double sum = (c.accumulate ? double{before[at]} : 0.0) +
                   (c.bias ? double{layer.bias[static_cast<std::size_t>(o)]} : 0.0);
      double largest = std::abs(sum);
      for (int k = 0; k < c.in; ++k) {
        float x = in[static_cast<std::size_t>(r) * in_stride + static_cast<std::size_t>(k)];
        if (c.bf16) x = test::round_bf16(x);
        const double term = double{x} * layer.weights[static_cast<std::size_t>(o * c.in + k)];
        sum += term;
        largest = std::max(largest, std::abs(term));
      }
      ASSERT_NEAR(out[at], sum, test::tolerance(c.in, largest))
          << c.rows << "x" << c.in << "x" << c.out << " bf16=" << c.bf16 << " at " << r << "," << o;
    }
  }
}

class Linear : public PerIsa {};

TEST_P(Linear, MatchesOracle) {
  auto one = backend(1);
  auto two = backend(2);
  Random random(7);
  for (int round = 0; round < test::rounds(160); ++round) {
    const Case c{random.integer(1, 40),     random.integer(1, 90),     random.integer(1, 150),
                 random.integer(0, 1) == 1, random.integer(0, 1) == 1, random.integer(0, 1) == 1};
    Backend& b = round % 2 == 0 ? *one : *two;
    const Layer layer = make_layer(b, random, c);
    const auto in_stride = static_cast<std::size_t>(c.in + random.integer(0, 5));
    const auto out_stride = static_cast<std::size_t>(c.out + random.integer(0, 5));
    const std::vector<float> in = random.normals(in_stride * static_cast<std::size_t>(c.rows));
    const std::vector<float> before = random.normals(out_stride * static_cast<std::size_t>(c.rows));
    std::vector<float> out = before;
    run(b, layer, in.data(), static_cast<std::int64_t>(in_stride), out.data(),
        static_cast<std::int64_t>(out_stride), c.rows);
    expect_near_oracle(layer, in, before, out, in_stride, out_stride);
    for (int r = 0; r < c.rows; ++r) {  // what lies between the rows is not ours
      for (std::size_t o = static_cast<std::size_t>(c.out); o < out_stride; ++o) {
        const std::size_t at = static_cast<std::size_t>(r) * out_stride + o;
        ASSERT_EQ(out[at], before[at]);
      }
    }
  }
}

TEST_P(Linear, EveryBatchGivesTheBitsOfARowAlone) {
  auto one = backend(1);
  auto two = backend(2);
  Random random(8);
  for (const bool bf16 : {false, true}) {
    for (const int in : {33, 384, 1030}) {
      const Case c{33, in, test::kSanitized ? 215 : 1333, bf16, true, true};
      const Layer layer = make_layer(*one, random, c);
      const auto k = static_cast<std::size_t>(in);
      const auto o = static_cast<std::size_t>(c.out);
      const std::vector<float> x = random.normals(33 * k);
      const std::vector<float> before = random.normals(33 * o);
      std::vector<float> alone = before;
      for (std::size_t r = 0; r < 33; ++r) {
        run(*one, layer, x.data() + r * k, in, alone.data() + r * o, c.out, 1);
      }
      for (int rows = 1; rows <= 33; ++rows) {
        for (Backend* b : {one.get(), two.get()}) {
          std::vector<float> out = before;
          run(*b, layer, x.data(), in, out.data(), c.out, rows);
          ASSERT_TRUE(test::same_bits(out.data(), alone.data(), static_cast<std::size_t>(rows) * o))
              << "rows " << rows << " in " << in << " bf16 " << bf16;
        }
      }
    }
  }
}

TEST_P(Linear, OneRowOfNanSpoilsNoOther) {
  auto b = backend(2);
  Random random(9);
  const Layer layer = make_layer(*b, random, {7, 64, 96, true, false, false});
  std::vector<float> x = random.normals(7 * 64);
  std::vector<float> clean(7 * 96);
  run(*b, layer, x.data(), 64, clean.data(), 96, 7);
  for (std::size_t i = 0; i < 64; ++i) x[3 * 64 + i] = std::nanf("");
  std::vector<float> out(7 * 96);
  run(*b, layer, x.data(), 64, out.data(), 96, 7);
  for (std::size_t r = 0; r < 7; ++r) {
    if (r == 3) {
      EXPECT_TRUE(std::isnan(out[r * 96]));
    } else {
      EXPECT_TRUE(test::same_bits(&out[r * 96], &clean[r * 96], 96)) << "row " << r;
    }
  }
}

TEST_P(Linear, ConvertsWeightsWhilePacking) {
  auto b = backend(1);
  Random random(10);
  // 1.5, -2^-24 (subnormal half), infinity-free halves against the same values in f32.
  const std::vector<std::uint16_t> halves = {0x3E00, 0x8001, 0x7BFF, 0x0000, 0x3555, 0xC000};
  const std::vector<float> values = {1.5F, -0x1p-24F, 65504.0F, 0.0F, 0.333251953125F, -2.0F};
  const std::vector<float> x = {1.0F, 0.5F, 0.25F, 3.0F, -1.0F, 2.0F};
  float expected = 0.0F;
  float got = 0.0F;
  for (const bool from_half : {false, true}) {
    const TensorView part = from_half ? test::matrix(halves.data(), DType::kFloat16, 1, 6)
                                      : test::matrix(values.data(), DType::kFloat32, 1, 6);
    const PackedLinear packed = b->pack_linear(std::span(&part, 1), DType::kFloat32);
    LinearParams p;
    p.in = x.data();
    p.weight = &packed;
    p.out = from_half ? &got : &expected;
    p.num_rows = 1;
    p.in_stride = 6;
    p.out_stride = 1;
    b->linear(p);
  }
  EXPECT_EQ(got, expected);
}

TEST_P(Linear, RefusesBadParts) {
  auto b = backend(1);
  const std::vector<float> data(12);
  const TensorView good = test::matrix(data.data(), DType::kFloat32, 3, 4);
  const TensorView narrow = test::matrix(data.data(), DType::kFloat32, 4, 3);
  const TensorView integers = test::matrix(data.data(), DType::kInt32, 3, 4);
  TensorView vector = good;
  vector.rank = 1;
  const std::vector<TensorView> unequal = {good, narrow};
  EXPECT_THROW((void)b->pack_linear({}, DType::kFloat32), std::invalid_argument);
  EXPECT_THROW((void)b->pack_linear(unequal, DType::kFloat32), std::invalid_argument);
  EXPECT_THROW((void)b->pack_linear(std::span(&integers, 1), DType::kFloat32),
               std::invalid_argument);
  EXPECT_THROW((void)b->pack_linear(std::span(&vector, 1), DType::kFloat32), std::invalid_argument);
  EXPECT_THROW((void)b->pack_linear(std::span(&good, 1), DType::kInt64), std::invalid_argument);
}

SMARTSPEC_PER_ISA(Linear);

}  // namespace
}  // namespace smartspec
