// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Two backends side by side: the CUDA backend on the emulated device, and the CPU backend that says
// what is right.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "backend/backend.hpp"
#include "host/cuda_backend.hpp"
#include "smartspec/model.hpp"

namespace smartspec::testing {

/// An array in a backend's memory.
template <class T>
class DeviceArray {
 public:
  DeviceArray(Backend& backend, const std::vector<T>& values)
      : backend_(&backend),
        buffer_(backend.allocate(values.size() * sizeof(T))),
        size_(values.size()) {
    backend.upload(buffer_.data(), values.data(), values.size() * sizeof(T));
  }
  DeviceArray(Backend& backend, std::size_t size) : DeviceArray(backend, std::vector<T>(size)) {}
  [[nodiscard]] T* data() const { return buffer_.as<T>(); }
  [[nodiscard]] std::vector<T> read() const {
    std::vector<T> out(size_);
    backend_->download(out.data(), buffer_.data(), size_ * sizeof(T));
    return out;
  }

 private:
  Backend* backend_;
  Buffer buffer_;
  std::size_t size_;
};

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::int32_t below(std::int32_t end) {
    return static_cast<std::int32_t>(engine_() % static_cast<std::uint64_t>(end));
  }
  std::vector<float> normals(std::size_t count, float scale = 1.0F) {
    std::normal_distribution<float> normal(0.0F, scale);
    std::vector<float> out(count);
    for (float& value : out) value = normal(engine_);
    return out;
  }
  std::vector<std::int32_t> integers(std::size_t count, std::int32_t end) {
    std::vector<std::int32_t> out(count);
    for (std::int32_t& value : out) value = below(end);
    return out;
  }
  std::mt19937_64& engine() { return engine_; }

 private:
  std::mt19937_64 engine_;
};

inline std::vector<std::uint16_t> bf16_of(const std::vector<float>& values) {
  std::vector<std::uint16_t> out;
  for (const float value : values) {  // test data is never NaN
    const auto bits = std::bit_cast<std::uint32_t>(value);
    out.push_back(static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16));
  }
  return out;
}

inline TensorView matrix(const void* data, DType dtype, std::int64_t rows, std::int64_t columns) {
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.rank = 2;
  view.shape = {rows, columns, 0, 0};
  return view;
}

/// |a - b| <= tolerance * max(1, |b|) everywhere; NaN is never close.
inline ::testing::AssertionResult close(std::span<const float> a, std::span<const float> b,
                                        double tolerance) {
  if (a.size() != b.size()) {
    return ::testing::AssertionFailure() << a.size() << " values and " << b.size();
  }
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double bound = tolerance * std::max(1.0, std::abs(static_cast<double>(b[i])));
    if (!(std::abs(static_cast<double>(a[i]) - b[i]) <= bound)) {
      return ::testing::AssertionFailure()
             << "[" << i << "]: " << a[i] << " and " << b[i] << ", tolerance " << bound;
    }
  }
  return ::testing::AssertionSuccess();
}

/// |a - b| / |b|, of vectors of one size.
inline double relative_error(std::span<const float> a, std::span<const float> b) {
  double difference = 0;
  double size = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / size);
}

inline std::shared_ptr<Runtime> cuda_runtime(bool batch_invariant = false) {
  return std::make_shared<Runtime>(cuda::make_cuda_backend({.batch_invariant = batch_invariant}));
}

}  // namespace smartspec::testing
