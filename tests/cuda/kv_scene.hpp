// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the KV tests share: caches of random shape and layout, filled with random bytes, so that
// everything written beside its place shows.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/cpu_test_util.hpp"
#include "numbers_oracle.hpp"
#include "smartspec/cuda_ops.hpp"

namespace smartspec::test {

using Bytes = std::vector<std::byte>;

inline Bytes random_bytes(Random& random, std::size_t n) {
  Bytes bytes(n);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.engine()() & 0xFFU);
  return bytes;
}

inline const std::vector<DType> kKvTypes = {DType::kFloat32,    DType::kBFloat16,   DType::kFloat16,
                                            DType::kFloat8E4M3, DType::kFloat8E5M2, DType::kInt8};

/// Where an element lies, as cuda_ops.hpp says.
inline std::size_t element(const cuda::PagedKv& kv, SlotId slot, int head, int dim) {
  return static_cast<std::size_t>(slot / kv.page_size * kv.page_stride +
                                  slot % kv.page_size * kv.token_stride + head * kv.head_stride +
                                  dim);
}

/// Layers of one shape with memory of their own.
struct Caches {
  int num_pages = 0;
  std::size_t offset = 0;  // bytes before the first element: misaligns it
  std::vector<cuda::PagedKv> layers;
  std::vector<Bytes> memory;  // 2 per layer: K, V

  [[nodiscard]] const cuda::PagedKv& shape() const { return layers.front(); }
  [[nodiscard]] int num_slots() const { return num_pages * shape().page_size; }
  [[nodiscard]] std::size_t size() const { return size_of(shape().dtype); }
};

/// Strides: token-major or head-major, dense or with gaps.
inline void choose_strides(Random& random, cuda::PagedKv& kv) {
  const bool gaps = random.integer(0, 2) == 0;
  const int align = random.integer(0, 1) == 0 ? 1 : 16;
  const auto gap = [&] { return gaps ? std::int64_t{random.integer(0, 3)} * align : 0; };
  if (random.integer(0, 1) == 0) {
    kv.head_stride = kv.head_dim + gap();
    kv.token_stride = kv.num_kv_heads * kv.head_stride + gap();
    kv.page_stride = kv.page_size * kv.token_stride + gap();
  } else {
    kv.token_stride = kv.head_dim + gap();
    kv.head_stride = kv.page_size * kv.token_stride + gap();
    kv.page_stride = kv.num_kv_heads * kv.head_stride + gap();
  }
}

/// num_pages may be raised so that there are at least `min_slots`.
inline Caches make_caches(Random& random, cuda::PagedKv kv, int num_layers, int min_slots) {
  Caches caches;
  choose_strides(random, kv);
  caches.num_pages = std::max(2, (min_slots + kv.page_size - 1) / kv.page_size);
  caches.offset = random.integer(0, 2) == 0 ? size_of(kv.dtype) : 0;
  const auto elements = static_cast<std::size_t>(caches.num_pages * kv.page_stride);
  const std::size_t bytes = caches.offset + elements * size_of(kv.dtype);
  for (int l = 0; l < num_layers; ++l) {
    for (int i = 0; i < 2; ++i) caches.memory.push_back(random_bytes(random, bytes));
    kv.k = caches.memory[caches.memory.size() - 2].data() + caches.offset;
    kv.v = caches.memory[caches.memory.size() - 1].data() + caches.offset;
    caches.layers.push_back(kv);
  }
  return caches;
}

inline cuda::PagedKv random_shape(Random& random, const std::vector<int>& head_dims) {
  cuda::PagedKv kv;
  kv.dtype = random.choice(kKvTypes);
  kv.page_size = random.choice<int>({1, 3, 16, 256});
  kv.num_kv_heads = random.integer(1, 4);
  kv.head_dim = random.choice(head_dims);
  if (kv.page_size == 256) {  // keeps the memory small
    kv.num_kv_heads = std::min(kv.num_kv_heads, 2);
    kv.head_dim = std::min(kv.head_dim, 32);
  }
  return kv;
}

inline std::vector<int> shuffled(Random& random, int n) {
  std::vector<int> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random.engine());
  return order;
}

inline void expect_refused(const std::string& text, const auto& call) {
  try {
    call();
    ADD_FAILURE() << "not refused: " << text;
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos)
        << error.what() << "\nlacks: " << text;
  }
}

}  // namespace smartspec::test
