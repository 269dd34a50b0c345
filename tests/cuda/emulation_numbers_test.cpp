// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Number conversions against tables of decoded values, matrix fragments against the tables of the
// PTX ISA and a naive product.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "common/launch.cuh"
#include "emulation/lambda_kernel.hpp"
#include "emulation/schedule.hpp"

namespace smartspec {
namespace {

using namespace device;  // NOLINT: the lambdas below are written as kernels are
using emulation::for_each_schedule;
using emulation::run_lambda;

/// A format by its definition: exponent and mantissa bits below the sign.
struct Format {
  int exponent_bits;
  int mantissa_bits;
  std::uint32_t top;  // largest magnitude a number is rounded to: infinity, or the largest finite
  [[nodiscard]] std::uint32_t sign_bit() const { return 1U << (exponent_bits + mantissa_bits); }
  /// Infinity counts as the power of two that would come next: rounding treats it so.
  [[nodiscard]] double value_of(std::uint32_t magnitude) const {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const auto exponent = static_cast<int>(magnitude >> mantissa_bits);
    const auto mantissa = static_cast<double>(magnitude & ((1U << mantissa_bits) - 1));
    const double fraction = std::ldexp(mantissa, -mantissa_bits);
    return exponent == 0 ? std::ldexp(fraction, 1 - bias)
                         : std::ldexp(1 + fraction, exponent - bias);
  }
};
constexpr Format kBf16{8, 7, 0x7F80};
constexpr Format kF16{5, 10, 0x7C00};
constexpr Format kE4m3{4, 3, 0x7E};
constexpr Format kE5m2{5, 2, 0x7B};

class Rounder {
 public:
  explicit Rounder(const Format& format) : format_(format) {
    for (std::uint32_t i = 0; i <= format.top; ++i) values_.push_back(format.value_of(i));
  }
  /// The nearest number, of two the one whose last bit is 0.
  [[nodiscard]] std::uint32_t operator()(float x) const {
    const std::uint32_t sign = std::signbit(x) ? format_.sign_bit() : 0;
    const double magnitude = std::fabs(static_cast<double>(x));
    const auto above = std::lower_bound(values_.begin(), values_.end(), magnitude);
    if (above == values_.end()) return sign | format_.top;
    auto nearest = static_cast<std::uint32_t>(above - values_.begin());
    if (nearest > 0) {
      const double to_above = *above - magnitude;
      const double to_below = magnitude - values_[nearest - 1];
      if (to_below < to_above || (to_below == to_above && nearest % 2 == 1)) --nearest;
    }
    return sign | nearest;
  }
  [[nodiscard]] const std::vector<double>& values() const { return values_; }

 private:
  Format format_;
  std::vector<double> values_;
};

/// At every number, at every midpoint and beside it, and at floats spread over all bit patterns.
template <class Convert>
void check_rounding(const Format& format, Convert convert) {
  const Rounder rounder(format);
  const auto check = [&](float x) {
    ASSERT_EQ(static_cast<std::uint32_t>(convert(x)), rounder(x)) << std::hexfloat << x;
    ASSERT_EQ(static_cast<std::uint32_t>(convert(-x)), rounder(-x)) << std::hexfloat << -x;
  };
  for (std::size_t i = 0; i + 1 < rounder.values().size(); ++i) {
    const auto low = static_cast<float>(rounder.values()[i]);
    const auto middle = static_cast<float>(rounder.values()[i] / 2 + rounder.values()[i + 1] / 2);
    check(low);
    check(middle);
    check(std::nextafter(middle, 0.0F));
    check(std::nextafter(middle, std::numeric_limits<float>::infinity()));
  }
  check(std::numeric_limits<float>::infinity());
  check(std::numeric_limits<float>::max());
  for (std::uint32_t bits = 0; bits < 0x7F800000U; bits += 9973) check(std::bit_cast<float>(bits));
}

TEST(Numbers, RoundToNearestEven) {
  check_rounding(kBf16, to_bf16);
  check_rounding(kF16, to_f16);
  check_rounding(kE4m3, to_e4m3);
  check_rounding(kE5m2, to_e5m2);
}

TEST(Numbers, NanBecomesTheCanonicalOne) {
  for (const std::uint32_t bits : {0x7FC00000U, 0xFFC00000U, 0x7F800001U, 0xFFFFFFFFU}) {
    const float nan = std::bit_cast<float>(bits);
    EXPECT_EQ(to_bf16(nan), 0x7FFF);
    EXPECT_EQ(to_f16(nan), 0x7FFF);
    EXPECT_EQ(to_e4m3(nan), 0x7F);
    EXPECT_EQ(to_e5m2(nan), 0x7F);
  }
}

void check_decoding(const Format& format, std::uint32_t bits, float decoded) {
  const std::uint32_t magnitude = bits & (format.sign_bit() - 1);
  const double value = format.value_of(magnitude);
  ASSERT_EQ(decoded, static_cast<float>((bits & format.sign_bit()) != 0 ? -value : value)) << bits;
  ASSERT_EQ(std::signbit(decoded), (bits & format.sign_bit()) != 0) << bits;
}

TEST(Numbers, DecodeExactly) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto x = static_cast<std::uint16_t>(bits);
    const std::uint32_t magnitude = bits & 0x7FFFU;
    if (magnitude < 0x7F80) check_decoding(kBf16, bits, from_bf16(x));
    if (magnitude < 0x7C00) check_decoding(kF16, bits, from_f16(x));
    ASSERT_EQ(std::isinf(from_bf16(x)), magnitude == 0x7F80);
    ASSERT_EQ(std::isinf(from_f16(x)), magnitude == 0x7C00);
    ASSERT_EQ(std::isnan(from_bf16(x)), magnitude > 0x7F80);
    ASSERT_EQ(std::isnan(from_f16(x)), magnitude > 0x7C00);
  }
}

TEST(Numbers, EightBitFloatsBecomeF16InPairs) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const std::uint32_t e4m3 = e4m3x2_to_f16x2(static_cast<std::uint16_t>(bits));
    const std::uint32_t e5m2 = e5m2x2_to_f16x2(static_cast<std::uint16_t>(bits));
    for (const int half : {0, 1}) {
      const std::uint32_t byte = bits >> (8 * half) & 0xFFU;
      const float from_e4m3 = from_f16(static_cast<std::uint16_t>(e4m3 >> (16 * half)));
      const float from_e5m2 = from_f16(static_cast<std::uint16_t>(e5m2 >> (16 * half)));
      if ((byte & 0x7FU) <= 0x7EU) {
        check_decoding(kE4m3, byte, from_e4m3);
      } else {
        ASSERT_TRUE(std::isnan(from_e4m3));
      }
      if ((byte & 0x7FU) <= 0x7BU) {
        check_decoding(kE5m2, byte, from_e5m2);
      } else {
        ASSERT_EQ(std::isnan(from_e5m2), (byte & 0x7FU) != 0x7CU);
        ASSERT_EQ(std::isinf(from_e5m2), (byte & 0x7FU) == 0x7CU);
      }
    }
  }
}

TEST(Numbers, BitsAndBytes) {
  EXPECT_EQ(pack_bf16(1.0F, -2.0F), 0xC0003F80U);
  EXPECT_EQ(pack_f16(1.0F, -2.0F), 0xC0003C00U);
  EXPECT_EQ(permute_bytes(0x33221100U, 0x77665544U, 0x3210U), 0x33221100U);
  EXPECT_EQ(permute_bytes(0x33221100U, 0x77665544U, 0x7421U), 0x77442211U);
  EXPECT_EQ(count_bits(0xF0F00001U), 9);
  EXPECT_EQ(lowest_bit(0), 32);
  EXPECT_EQ(lowest_bit(0x80000000U), 31);
  EXPECT_EQ(exp2_approx(-3.0F), 0.125F);
  EXPECT_EQ(exp2_approx(-std::numeric_limits<float>::infinity()), 0.0F);
  EXPECT_EQ(log2_approx(8.0F), 3.0F);
  EXPECT_NEAR(tanh_approx(0.5F), 0.46211716F, 1e-6F);
}

// Matrices.

struct Product {
  std::vector<std::uint16_t> a;  // [16, 16] row, k
  std::vector<std::uint16_t> b;  // [8, 16] column, k
  std::vector<float> acc;        // [16, 8]
};

template <class Encode>
Product random_product(std::mt19937& random, Encode encode) {
  std::uniform_real_distribution<float> uniform(-2.0F, 2.0F);
  Product product{std::vector<std::uint16_t>(256), std::vector<std::uint16_t>(128),
                  std::vector<float>(128)};
  for (auto& x : product.a) x = encode(uniform(random));
  for (auto& x : product.b) x = encode(uniform(random));
  for (auto& x : product.acc) x = uniform(random);
  return product;
}

template <class Decode>
std::vector<float> naive(const Product& product, Decode decode) {
  std::vector<float> out = product.acc;
  for (std::size_t row = 0; row < 16; ++row) {
    for (std::size_t column = 0; column < 8; ++column) {
      for (std::size_t k = 0; k < 16; ++k) {
        out[row * 8 + column] +=
            decode(product.a[row * 16 + k]) * decode(product.b[column * 16 + k]);
      }
    }
  }
  return out;
}

std::uint32_t pair_of(const std::uint16_t* data) {
  return static_cast<std::uint32_t>(data[0]) | static_cast<std::uint32_t>(data[1]) << 16;
}

/// Fragments gathered element by element, by the formulas of the PTX ISA, "Matrix fragments for
/// mma.m16n8k16 with floating point type" (a0..a7, b0..b3, c0..c3).
template <class Multiply>
std::vector<float> multiply_by_formulas(const Product& product, Multiply multiply) {
  std::vector<float> out(128, -1.0F);
  run_lambda<32>({}, [&] {
    const auto group = static_cast<std::size_t>(lane_index() >> 2);
    const auto in_group = static_cast<std::size_t>(lane_index() % 4);
    std::uint32_t a[4] = {};
    std::uint32_t b[2] = {};
    float c[4] = {};
    for (std::size_t i = 0; i < 8; ++i) {
      const std::size_t row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
      const std::size_t k = in_group * 2 + (i & 1U) + (i >= 4 ? 8 : 0);
      a[i / 2] |= static_cast<std::uint32_t>(product.a[row * 16 + k]) << (16 * (i % 2));
    }
    for (std::size_t i = 0; i < 4; ++i) {
      const std::size_t k = in_group * 2 + (i & 1U) + (i >= 2 ? 8 : 0);
      b[i / 2] |= static_cast<std::uint32_t>(product.b[group * 16 + k]) << (16 * (i % 2));
    }
    const auto place = [&](std::size_t i) {
      return (i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1U);
    };
    for (std::size_t i = 0; i < 4; ++i) c[i] = product.acc[place(i)];
    multiply(c, a, b);
    for (std::size_t i = 0; i < 4; ++i) out[place(i)] = c[i];
  });
  return out;
}

TEST(Matrix, ProductsAreThoseOfTheNaiveOne) {
  std::mt19937 random(5);
  for_each_schedule(8, [&] {
    const Product bf16 = random_product(random, to_bf16);
    EXPECT_EQ(multiply_by_formulas(bf16, [](auto&... x) { mma_bf16(x...); }),
              naive(bf16, from_bf16));
    const Product f16 = random_product(random, to_f16);
    EXPECT_EQ(multiply_by_formulas(f16, [](auto&... x) { mma_f16(x...); }), naive(f16, from_f16));
  });
}

TEST(Matrix, LoadGivesRowsOrColumns) {
  std::vector<std::uint16_t> rows(32 * 8);  // [matrix * 8 + row, 8]
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::uint16_t>(i * 7);
  for_each_schedule(3, [&] {
    run_lambda<32>({.shared_bytes = 512}, [&] {
      const auto lane = static_cast<std::size_t>(lane_index());
      std::memcpy(shared_memory() + lane * 16, &rows[lane * 8], 16);
      sync_warp();
      std::uint32_t straight[4];
      std::uint32_t turned[4];
      load_matrix_x4(straight, shared_memory() + lane * 16);
      load_matrix_x4_transposed(turned, shared_memory() + lane * 16);
      for (std::size_t i = 0; i < 4; ++i) {
        const std::uint16_t* matrix = &rows[i * 64];
        ASSERT_EQ(straight[i], pair_of(matrix + lane / 4 * 8 + lane % 4 * 2));
        const std::uint16_t column[2] = {matrix[lane % 4 * 16 + lane / 4],
                                         matrix[lane % 4 * 16 + 8 + lane / 4]};
        ASSERT_EQ(turned[i], pair_of(column));
      }
    });
  });
}

// As kernels do it: A by rows, B once as [column, k] and once as [k, column].
TEST(Matrix, LoadedFragmentsMultiply) {
  std::mt19937 random(6);
  const Product product = random_product(random, to_bf16);
  std::vector<float> out(128);
  run_lambda<32>({.shared_bytes = 512 + 256 + 256}, [&] {
    auto* a_rows = reinterpret_cast<std::uint16_t*>(shared_memory());
    auto* b_columns = a_rows + 256;
    auto* b_rows = b_columns + 128;
    for (std::size_t i = static_cast<std::size_t>(lane_index()); i < 256; i += 32) {
      a_rows[i] = product.a[i];
      if (i < 128) b_columns[i] = b_rows[i % 16 * 8 + i / 16] = product.b[i];
    }
    sync_warp();
    const int lane = lane_index();
    std::uint32_t a[4];
    std::uint32_t b[4];
    std::uint32_t b_turned[4];
    load_matrix_x4(a, a_rows + lane % 16 * 16 + lane / 16 * 8);
    load_matrix_x4(b, b_columns + lane % 8 * 16 + lane / 8 % 2 * 8);
    load_matrix_x4_transposed(b_turned, b_rows + lane % 16 * 8);
    ASSERT_EQ(b[0], b_turned[0]);
    ASSERT_EQ(b[1], b_turned[1]);
    const std::uint32_t fragment[2] = {b[0], b[1]};
    const int place = lane / 4 * 8 + lane % 4 * 2;
    const float* in = product.acc.data() + place;
    float acc[4] = {in[0], in[1], in[64], in[65]};
    mma_bf16(acc, a, fragment);
    float* to = out.data() + place;
    to[0] = acc[0], to[1] = acc[1], to[64] = acc[2], to[65] = acc[3];
  });
  EXPECT_EQ(out, naive(product, from_bf16));
}

TEST(Matrix, MistakesShow) {
  int num_unset = 0;
  for_each_schedule(2, [&] {
    run_lambda<32>({.shared_bytes = 512}, [&] {
      std::memset(shared_memory() + lane_index() * 16, 0, 16);
      std::uint32_t out[4];
      load_matrix_x4(out, shared_memory() + (31 - lane_index()) * 16);  // no sync_warp() before it
      for (const std::uint32_t x : out) num_unset += x != 0;
    });
  });
  EXPECT_GT(num_unset, 0);
  const auto load_at = [](int byte) {
    run_lambda<32>({.shared_bytes = 512}, [byte] {
      std::uint32_t out[4];
      load_matrix_x4(out, shared_memory() + byte);
    });
  };
  EXPECT_NO_THROW(load_at(496));
  EXPECT_THROW(load_at(500), emulation::EmulationError);
  EXPECT_THROW(load_at(8), emulation::EmulationError);
}

}  // namespace
}  // namespace smartspec
