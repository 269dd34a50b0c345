// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The fallback linear kernel against double precision and the CPU backend's verb, and bit for bit
// against each row alone.
#include "kernels/linear/linear.h"

#include <algorithm>

#include "cpu/cpu_test_util.hpp"
#include "emulation/schedule.hpp"

namespace smartspec {
namespace {

using test::Random;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

struct Layer {
  std::vector<float> weights;     // as the layer sees them
  std::vector<std::byte> memory;  // row-major, perhaps not aligned to 16 bytes
  std::vector<float> bias;
  PackedLinear packed;
  PackedLinear of_cpu;
};

Layer make_layer(Random& random, Backend& cpu, std::int32_t in, std::int32_t out, bool bf16,
                 bool aligned = true) {
  Layer layer;
  const DType dtype = bf16 ? DType::kBFloat16 : DType::kFloat32;
  layer.weights = random.normals(at(in * out));
  layer.bias = random.normals(at(out));
  const std::size_t start = aligned ? 0 : size_of(dtype);
  layer.memory.resize(start + layer.weights.size() * size_of(dtype));
  for (std::size_t i = 0; i < layer.weights.size(); ++i) {
    std::byte* to = layer.memory.data() + start + i * size_of(dtype);
    const std::uint16_t narrow = test::to_bf16(layer.weights[i]);
    if (bf16) layer.weights[i] = test::from_bf16(narrow);
    if (bf16) {
      std::memcpy(to, &narrow, sizeof(narrow));
    } else {
      std::memcpy(to, &layer.weights[i], sizeof(float));
    }
  }
  layer.packed.data =
      Buffer(layer.memory.data() + start, layer.memory.size() - start, [](void*) {});
  layer.packed.dtype = dtype;
  layer.packed.in_features = in;
  layer.packed.out_features = out;
  const TensorView view = test::matrix(layer.weights.data(), DType::kFloat32, out, in);
  layer.of_cpu = cpu.pack_linear(std::span(&view, 1), dtype);
  return layer;
}

struct Case {
  std::int32_t rows;
  std::int32_t in;
  std::int32_t out;
  bool bf16;
  bool bias;
  bool accumulate;
};

void check(const Layer& layer, const Case& c, const LinearParams& p,
           const std::vector<float>& before, const std::vector<float>& of_cpu) {
  for (std::int32_t r = 0; r < c.rows; ++r) {
    for (std::int32_t o = 0; o < p.out_stride; ++o) {
      const std::size_t i = at(r * p.out_stride + o);
      if (o >= c.out) {
        ASSERT_EQ(p.out[i], before[i]);
        continue;
      }
      double sum =
          (c.accumulate ? double{before[i]} : 0.0) + (c.bias ? double{layer.bias[at(o)]} : 0.0);
      double largest = std::abs(sum);
      for (std::int32_t k = 0; k < c.in; ++k) {
        const float x = p.in[r * p.in_stride + k];
        const double term = double{c.bf16 ? test::round_bf16(x) : x} *
                            layer.weights[at(std::int64_t{o} * c.in + k)];
        sum += term;
        largest = std::max(largest, std::abs(term));
      }
      ASSERT_NEAR(p.out[i], sum, test::tolerance(c.in, largest)) << r << "," << o;
      ASSERT_NEAR(p.out[i], of_cpu[i], 2 * test::tolerance(c.in, largest)) << r << "," << o;
    }
  }
}

TEST(Linear, MatchesOracle) {
  Random random(1);
  const auto cpu = make_cpu_backend(1);
  for (int round = 0; round < 80; ++round) {
    const Case c{random.integer(1, 40),     random.integer(1, round % 4 == 0 ? 400 : 90),
                 random.integer(1, 70),     random.integer(0, 1) == 1,
                 random.integer(0, 1) == 1, random.integer(0, 1) == 1};
    SCOPED_TRACE(testing::Message()
                 << "rows " << c.rows << " in " << c.in << " out " << c.out << " bf16 " << c.bf16);
    const Layer layer = make_layer(random, *cpu, c.in, c.out, c.bf16, round % 3 != 0);
    LinearParams p;
    p.in_stride = c.in + random.integer(0, 5);
    p.out_stride = c.out + random.integer(0, 5);
    const std::vector<float> in = random.normals(at(c.rows * p.in_stride));
    const std::vector<float> before = random.normals(at(c.rows * p.out_stride));
    std::vector<float> out = before;
    std::vector<float> of_cpu = before;
    p.in = in.data();
    p.bias = c.bias ? layer.bias.data() : nullptr;
    p.num_rows = c.rows;
    p.accumulate = c.accumulate;
    p.weight = &layer.of_cpu;
    p.out = of_cpu.data();
    cpu->linear(p);
    p.weight = &layer.packed;
    p.out = out.data();
    cuda::kernels::linear(p, nullptr);
    ASSERT_NO_FATAL_FAILURE(check(layer, c, p, before, of_cpu));
  }
}

TEST(Linear, EveryBatchGivesTheBitsOfARowAlone) {
  Random random(2);
  const auto cpu = make_cpu_backend(1);
  for (const bool bf16 : {false, true}) {
    constexpr std::int32_t kIn = 136;
    constexpr std::int32_t kOut = 37;
    constexpr std::int32_t kRows = 35;
    Layer layer = make_layer(random, *cpu, kIn, kOut, bf16);
    std::vector<float> x = random.normals(at(kRows * kIn));
    const std::vector<float> before = random.normals(at(kRows * kOut));
    const auto run = [&](std::int32_t first, std::int32_t rows, float* out) {
      LinearParams p;
      p.in = x.data() + first * kIn;
      p.weight = &layer.packed;
      p.bias = layer.bias.data();
      p.out = out;
      p.num_rows = rows;
      p.in_stride = kIn;
      p.out_stride = kOut;
      p.accumulate = true;
      cuda::kernels::linear(p, nullptr);
    };
    std::vector<float> alone = before;
    for (std::int32_t r = 0; r < kRows; ++r) run(r, 1, alone.data() + r * kOut);
    for (const std::int32_t rows : {2, 7, 8, 9, 32, 33, 35}) {
      std::vector<float> out = before;
      run(0, rows, out.data());
      ASSERT_TRUE(test::same_bits(out.data(), alone.data(), at(rows * kOut))) << rows;
    }
    emulation::for_each_schedule(1, [&] {
      std::vector<float> out = before;
      run(0, 5, out.data());
      EXPECT_TRUE(test::same_bits(out.data(), alone.data(), 5 * kOut));
    });
    for (std::int32_t k = 0; k < kIn; ++k) x[at(3 * kIn + k)] = std::nanf("");
    std::vector<float> out = before;
    run(0, 12, out.data());
    for (std::int32_t r = 0; r < 12; ++r) {
      if (r == 3) {
        EXPECT_TRUE(std::isnan(out[at(r * kOut)]));
      } else {
        EXPECT_TRUE(test::same_bits(&out[at(r * kOut)], &alone[at(r * kOut)], kOut)) << r;
      }
    }
  }
}

TEST(Linear, NoRowsNoLaunch) {
  PackedLinear packed;
  LinearParams p;
  p.weight = &packed;
  EXPECT_NO_THROW(cuda::kernels::linear(p, nullptr));
}

}  // namespace
}  // namespace smartspec
