// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the CPU tests share: random data, bf16 conversion, bit comparison, the tolerance rule.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "cpu/isa.hpp"

namespace smartspec::test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int kRoundsDivisor = 8;  // sanitizers: fewer rounds of the same kinds
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
inline constexpr int kRoundsDivisor = 1;
#endif

inline int rounds(int n) { return std::max(1, n / kRoundsDivisor); }

inline std::uint16_t to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (std::isnan(x)) return static_cast<std::uint16_t>((bits | 0x00400000U) >> 16);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}
inline float from_bf16(std::uint16_t x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x) << 16);
}
inline float round_bf16(float x) { return from_bf16(to_bf16(x)); }

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  float normal() { return normal_(engine_); }
  std::vector<float> normals(std::size_t n, float scale = 1.0F) {
    std::vector<float> v(n);
    for (float& x : v) x = normal() * scale;
    return v;
  }
  template <class T>
  const T& choice(const std::vector<T>& from) {
    return from[static_cast<std::size_t>(integer(0, static_cast<int>(from.size()) - 1))];
  }
  std::mt19937_64& engine() { return engine_; }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

inline bool same_bits(const float* a, const float* b, std::size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), a.size());
}

/// The rule of the project: c * eps * sqrt(K) * max|row|, with eps of f32.
inline double tolerance(double k, double max_term) {
  return 8.0 * 1.1920929e-7 * std::sqrt(std::max(k, 1.0)) * std::max(max_term, 1e-6);
}

inline TensorView matrix(const void* data, DType dtype, std::int64_t rows, std::int64_t cols) {
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.rank = 2;
  view.shape = {rows, cols, 0, 0};
  return view;
}

/// One fixture per instruction set this machine has.
class PerIsa : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> backend(std::int32_t threads = 1) const {
    return cpu::make_cpu_backend(threads, GetParam());
  }
};

inline std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const std::string_view name : cpu::supported_isas()) names.emplace_back(name);
  return names;
}

#define SMARTSPEC_PER_ISA(suite)                                               \
  INSTANTIATE_TEST_SUITE_P(Isa, suite, ::testing::ValuesIn(test::isa_names()), \
                           [](const auto& param_info) { return param_info.param; })

}  // namespace smartspec::test
