// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "host/linear.hpp"

#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "host/runtime.hpp"
#include "kernels/linear/linear.h"
#include "kernels/rows/rows.h"

namespace smartspec::cuda {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::invalid_argument("pack_linear: " + what);
}

std::uint16_t bf16_of(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (x != x) return static_cast<std::uint16_t>((bits | 0x00400000U) >> 16);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

/// Files need not align their tensors, so elements are copied out.
template <class T>
T element(const std::byte* data, std::size_t i) noexcept {
  T value;
  std::memcpy(&value, data + i * sizeof(T), sizeof(T));
  return value;
}

/// Between float32 and bfloat16; the model's loader has converted everything else.
std::vector<std::byte> convert(const TensorView& part, DType dtype) {
  const auto count = static_cast<std::size_t>(part.num_elements());
  const auto* in = static_cast<const std::byte*>(part.data);
  std::vector<std::byte> out(count * size_of(dtype));
  for (std::size_t i = 0; i < count; ++i) {
    if (dtype == DType::kBFloat16) {
      const std::uint16_t value = bf16_of(element<float>(in, i));
      std::memcpy(out.data() + i * sizeof(value), &value, sizeof(value));
    } else {
      const auto bits = static_cast<std::uint32_t>(element<std::uint16_t>(in, i)) << 16;
      std::memcpy(out.data() + i * sizeof(bits), &bits, sizeof(bits));
    }
  }
  return out;
}

void check_part(const TensorView& part, std::int64_t in_features) {
  if (part.rank != 2 || part.data == nullptr) fail("every part must be a matrix with data");
  if (part.shape[1] != in_features) {
    fail("in_features " + std::to_string(part.shape[1]) + " differs from " +
         std::to_string(in_features) + " of the first part");
  }
  if (part.dtype != DType::kFloat32 && part.dtype != DType::kBFloat16) {
    fail(std::string("weights of dtype ") + name_of(part.dtype) + "; allowed: float32, bfloat16");
  }
}

}  // namespace

PackedLinear pack_linear(std::span<const TensorView> parts, DType dtype, Staging& staging,
                         CUstream_st* stream) {
  if (parts.empty()) fail("there are no weights");
  if (dtype != DType::kFloat32 && dtype != DType::kBFloat16) {
    fail(std::string("dtype ") + name_of(dtype) + "; allowed: float32, bfloat16");
  }
  const std::int64_t in_features = parts.front().shape[1];
  std::int64_t out_features = 0;
  for (const TensorView& part : parts) {
    check_part(part, in_features);
    out_features += part.shape[0];
  }
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (in_features < 1 || in_features > kMost) fail("in_features " + std::to_string(in_features));
  if (out_features < 1 || out_features > kMost) {
    fail("out_features " + std::to_string(out_features));
  }

  PackedLinear packed;
  packed.dtype = dtype;
  packed.in_features = static_cast<std::int32_t>(in_features);
  packed.out_features = static_cast<std::int32_t>(out_features);
  packed.data = allocate_buffer(static_cast<std::size_t>(in_features) *
                                static_cast<std::size_t>(out_features) * size_of(dtype));
  auto* at = packed.data.as<std::byte>();
  for (const TensorView& part : parts) {
    const std::size_t bytes = static_cast<std::size_t>(part.num_elements()) * size_of(dtype);
    if (part.dtype == dtype) {
      staging.upload(at, part.data, bytes, stream);
    } else {
      staging.upload(at, convert(part, dtype).data(), bytes, stream);
    }
    at += bytes;
  }
  return packed;
}

LinearRunner::LinearRunner(bool batch_invariant)
    : cublas_(batch_invariant ? nullptr : load_cublas_lt()) {}

void LinearRunner::run(const LinearParams& p, CUstream_st* stream) {
  if (p.num_rows <= 0) return;
  const PackedLinear& w = *p.weight;
  if (cublas_ == nullptr) {
    kernels::linear(p, stream);
    return;
  }
  MatmulProblem problem;
  problem.in = p.in;
  problem.weight = w.data.data();
  problem.bias = p.bias;
  problem.out = p.out;
  problem.dtype = w.dtype;
  problem.rows = p.num_rows;
  problem.in_features = w.in_features;
  problem.out_features = w.out_features;
  problem.in_stride = p.in_stride;
  problem.out_stride = p.out_stride;
  problem.accumulate = p.accumulate;
  if (w.dtype == DType::kBFloat16) {
    const auto elements =
        static_cast<std::size_t>(p.num_rows) * static_cast<std::size_t>(w.in_features);
    reserve_buffer(activations_, elements * sizeof(std::uint16_t), stream);
    kernels::convert_rows({.in = p.in,
                           .out = activations_.as<std::uint16_t>(),
                           .num_rows = p.num_rows,
                           .dim = w.in_features,
                           .in_stride = p.in_stride,
                           .out_stride = w.in_features},
                          stream);
    problem.in = activations_.data();
    problem.in_stride = w.in_features;
  }
  if (!cublas_->multiply(problem, stream)) kernels::linear(p, stream);
}

}  // namespace smartspec::cuda
