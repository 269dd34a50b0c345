// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "cpu/pack.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/aligned.hpp"
#include "cpu/kernels.hpp"

namespace smartspec::cpu {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::invalid_argument("pack_linear: " + what);
}

std::uint16_t to_bf16(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (x != x) return static_cast<std::uint16_t>((bits | 0x00400000U) >> 16);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

float from_f16(std::uint16_t half) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1FU;
  const std::uint32_t mantissa = half & 0x3FFU;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
  }
  const std::uint32_t wide = exponent == 31 ? 255U : exponent + 112U;
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

/// Files need not align their tensors, so elements are copied out.
template <class T>
T element(const void* row, std::int64_t i) noexcept {
  T value;
  std::memcpy(&value, static_cast<const char*>(row) + i * std::int64_t{sizeof(T)}, sizeof(T));
  return value;
}

float read(const void* row, DType dtype, std::int64_t i) noexcept {
  if (dtype == DType::kFloat32) return element<float>(row, i);
  const auto bits = element<std::uint16_t>(row, i);
  if (dtype == DType::kFloat16) return from_f16(bits);
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

struct Row {
  const void* data;
  DType dtype;
};

std::vector<Row> collect_rows(std::span<const TensorView> parts, std::int64_t in) {
  std::vector<Row> rows;
  for (const TensorView& part : parts) {
    if (part.rank != 2 || part.data == nullptr) fail("every part must be a matrix with data");
    if (part.shape[1] != in) {
      fail("in_features " + std::to_string(part.shape[1]) + " differs from " + std::to_string(in) +
           " of the first part");
    }
    if (part.dtype != DType::kFloat32 && part.dtype != DType::kBFloat16 &&
        part.dtype != DType::kFloat16) {
      fail(std::string("weights of dtype ") + name_of(part.dtype) +
           "; allowed: float32, bfloat16, float16");
    }
    const auto* base = static_cast<const char*>(part.data);
    const std::int64_t bytes = in * static_cast<std::int64_t>(size_of(part.dtype));
    for (std::int64_t r = 0; r < part.shape[0]; ++r) rows.push_back({base + r * bytes, part.dtype});
  }
  return rows;
}

/// One panel of up to 16 rows; missing rows and an odd last k stay zero.
void pack_group(const Row* rows, std::int64_t num_rows, std::int64_t in, bool bf16, char* out) {
  for (std::int64_t r = 0; r < num_rows; ++r) {
    const Row& row = rows[r];
    if (!bf16) {
      auto* panel = reinterpret_cast<float*>(out);
      for (std::int64_t k = 0; k < in; ++k) panel[k * kLanes + r] = read(row.data, row.dtype, k);
      continue;
    }
    auto* panel = reinterpret_cast<std::uint16_t*>(out);
    for (std::int64_t k = 0; k < in; ++k) {
      const std::uint16_t bits = row.dtype == DType::kBFloat16
                                     ? element<std::uint16_t>(row.data, k)
                                     : to_bf16(read(row.data, row.dtype, k));
      panel[(k / 2 * kLanes + r) * 2 + k % 2] = bits;
    }
  }
}

}  // namespace

PackedLinear pack_linear(std::span<const TensorView> parts, DType dtype, ThreadPool& pool) {
  if (parts.empty()) fail("no parts");
  if (dtype != DType::kFloat32 && dtype != DType::kBFloat16) {
    fail(std::string("dtype ") + name_of(dtype) + "; allowed: float32, bfloat16");
  }
  const std::int64_t in = parts.front().shape[1];
  if (in < 1 || in > std::numeric_limits<std::int32_t>::max() / 2) {
    fail("in_features " + std::to_string(in) + " is not in [1, 2^30)");
  }
  const std::vector<Row> rows = collect_rows(parts, in);
  const auto out = static_cast<std::int64_t>(rows.size());
  if (out < 1 || out > std::numeric_limits<std::int32_t>::max() / 2) {
    fail("out_features " + std::to_string(out) + " is not in [1, 2^30)");
  }
  const bool bf16 = dtype == DType::kBFloat16;
  const std::int64_t groups = (out + kLanes - 1) / kLanes;
  const std::int64_t group_bytes = panel_steps(in, bf16) * kLineBytes;
  PackedLinear packed;
  packed.data = allocate_aligned(static_cast<std::size_t>(groups * group_bytes));
  packed.dtype = dtype;
  packed.in_features = static_cast<std::int32_t>(in);
  packed.out_features = static_cast<std::int32_t>(out);
  char* data = packed.data.as<char>();
  pool.run(groups, [&](std::int64_t g, std::int32_t) {
    const std::int64_t first = g * kLanes;
    pack_group(rows.data() + first, std::min<std::int64_t>(kLanes, out - first), in, bf16,
               data + g * group_bytes);
  });
  return packed;
}

}  // namespace smartspec::cpu
