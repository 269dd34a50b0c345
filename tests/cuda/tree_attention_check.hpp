// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Runs a scene through prepare_forest and tree_attention and compares with the oracle. Outputs are
// poisoned before; what lies around the rows must stay as it was.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "host/runtime.hpp"
#include "kernels/tree_attention/tree_attention.h"
#include "smartspec/cuda_ops.hpp"
#include "tree_attention_scene.hpp"

namespace smartspec::cuda {

/// Owns device memory.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(const std::vector<T>& host)
      : size_(host.size()), data_(static_cast<T*>(allocate_device(bytes()))) {
    write(host);
  }
  ~DeviceArray() { free_device(data_); }
  DeviceArray(DeviceArray&& other) noexcept
      : size_(std::exchange(other.size_, 0)), data_(std::exchange(other.data_, nullptr)) {}
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
    return *this;
  }

  void write(const std::vector<T>& host) {
    copy(data_, host.data(), bytes(), nullptr);
    synchronize(nullptr);
  }
  [[nodiscard]] std::vector<T> read() const {
    std::vector<T> host(size_);
    copy(host.data(), data_, bytes(), nullptr);
    synchronize(nullptr);
    return host;
  }
  [[nodiscard]] T* get() const { return data_; }
  [[nodiscard]] std::size_t bytes() const { return size_ * sizeof(T); }

 private:
  std::size_t size_ = 0;
  T* data_ = nullptr;
};

/// Which kernel runs: the one that the entry point takes, or the simple one.
enum class Path { kEntry, kSimple };

struct SceneOutput {
  std::vector<std::byte> out;  // [rows, heads, dim] of the scene's rows, without gaps
  std::vector<float> lse;      // [rows, heads]
  bool only_rows_written = true;
};

/// A scene in device memory; may run many times, with a workspace zeroed once.
class SceneRun {
 public:
  static constexpr int kQGap = 32;  // elements between rows
  static constexpr int kOutGap = 16;
  static constexpr int kGuardRows = 2;
  static constexpr std::byte kPoison{0xFF};  // NaN of all float types

  explicit SceneRun(const Scene& scene)
      : scene_(scene), num_rows_(static_cast<std::size_t>(scene.num_rows())) {
    upload_forest();
    upload_cache();
    upload_queries();
    const std::size_t bytes = attention_workspace_bytes(scene.options.plan, forest.num_sequences,
                                                        forest.num_rows, forest.num_nodes);
    workspace_ = DeviceArray<std::byte>(std::vector<std::byte>(bytes));
    workspace = workspace_.get();
    workspace_bytes = bytes;
  }
  explicit SceneRun(Scene&&) = delete;  // it is referred to

  SceneOutput run(Path path = Path::kEntry) {
    const std::size_t row_bytes = out_row_bytes();
    out_.write(std::vector<std::byte>(out_.bytes(), kPoison));
    const std::size_t lse_size = lse_.bytes() / sizeof(float);
    if (lse_size > 0) lse_.write(std::vector<float>(lse_size, kUnwritten));
    state = prepare_forest(forest, scene_.options.plan, workspace, workspace_bytes, nullptr);
    if (path == Path::kEntry) {
      tree_attention(attention, forest, scene_.options.plan, state, workspace, workspace_bytes,
                     nullptr);
    } else {
      TreeAttention complete = attention;
      if (complete.scale == 0.0F) {
        complete.scale = 1.0F / std::sqrt(static_cast<float>(scene_.options.head_dim));
      }
      const Workspace used = make_plan(scene_.options.plan, forest, workspace);
      launch_simple_attention(complete, forest, used.plan, state, nullptr);
    }
    return collect(row_bytes);
  }

  // To be changed by tests before run().
  Forest forest{};
  TreeAttention attention{};
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
  ForestState state{};  // of the last run

 private:
  static constexpr float kUnwritten = -12345.0F;

  [[nodiscard]] std::size_t out_row_bytes() const {
    return (scene_.row_size() + kOutGap) * size_of(scene_.options.dtype);
  }

  template <class T>
  const T* keep(std::vector<DeviceArray<T>>& arrays, const std::vector<T>& host) {
    return arrays.emplace_back(host).get();
  }

  void upload_forest() {
    std::vector<std::int32_t> rows{0}, nodes{0}, contexts, causal, parents;
    std::size_t longest = 0;
    for (const SceneSequence& s : scene_.sequences) {
      rows.push_back(rows.back() + s.num_rows());
      nodes.push_back(nodes.back() + s.num_nodes());
      contexts.push_back(s.context_len);
      causal.push_back(s.num_causal);
      parents.insert(parents.end(), s.parents.begin(), s.parents.end());
      longest = std::max(longest, s.pages.size());
    }
    const std::size_t stride = longest + 3;
    std::vector<BlockId> table(stride * scene_.sequences.size(), 0x7FFFFF00);
    for (std::size_t i = 0; i < scene_.sequences.size(); ++i) {
      std::copy(scene_.sequences[i].pages.begin(), scene_.sequences[i].pages.end(),
                table.begin() + static_cast<std::ptrdiff_t>(i * stride));
    }
    forest.num_sequences = static_cast<std::int32_t>(scene_.sequences.size());
    forest.num_rows = rows.back() + scene_.options.spare_rows;
    forest.num_nodes = nodes.back() + scene_.options.spare_rows;
    parents.resize(parents.size() + static_cast<std::size_t>(scene_.options.spare_rows), 1 << 30);
    forest.row_offsets = keep(ints_, rows);
    forest.context_lens = keep(ints_, contexts);
    forest.num_causal = scene_.options.max_causal > 0 ? keep(ints_, causal) : nullptr;
    forest.node_offsets = keep(ints_, nodes);
    forest.parents = parents.empty() ? nullptr : keep(ints_, parents);
    forest.block_table = keep(ints_, table);
    forest.block_table_stride = static_cast<std::int64_t>(stride);
  }

  void upload_cache() {
    const SceneOptions& o = scene_.options;
    PagedKv& kv = attention.kv;
    kv.dtype = o.kv_dtype;
    kv.page_size = o.page_size;
    kv.num_kv_heads = o.num_kv_heads;
    kv.head_dim = o.head_dim;
    kv.token_stride = std::int64_t{o.head_dim} * (o.heads_outside ? 1 : o.num_kv_heads);
    kv.head_stride = std::int64_t{o.head_dim} * (o.heads_outside ? o.page_size : 1);
    const std::size_t page = scene_.kv_index(1, 0, 0);
    kv.page_stride = static_cast<std::int64_t>(o.interleaved ? 2 * page : page);
    if (o.interleaved) {
      const std::size_t bytes = page * size_of(o.kv_dtype);
      std::vector<std::byte> both;
      for (std::size_t at = 0; at < scene_.k.size(); at += bytes) {
        both.insert(both.end(), &scene_.k[at], &scene_.k[at] + bytes);
        both.insert(both.end(), &scene_.v[at], &scene_.v[at] + bytes);
      }
      cache_.emplace_back(both);
      kv.k = cache_[0].get();
      kv.v = cache_[0].get() + bytes;
    } else {
      cache_.emplace_back(scene_.k);
      cache_.emplace_back(scene_.v);
      kv.k = cache_[0].get();
      kv.v = cache_[1].get();
    }
    if (o.has_scales) {
      kv.k_scale = keep(floats_, scene_.k_scale);
      kv.v_scale = keep(floats_, scene_.v_scale);
    }
  }

  void upload_queries() {
    const SceneOptions& o = scene_.options;
    const std::size_t element = size_of(o.dtype);
    const std::size_t row_bytes = scene_.row_size() * element;
    const std::size_t stride = row_bytes + kQGap * element;
    const std::size_t total = num_rows_ + static_cast<std::size_t>(o.spare_rows);
    std::vector<std::byte> q(total * stride, kPoison);
    std::size_t row = 0;
    for (const SceneSequence& s : scene_.sequences) {
      for (int r = 0; r < s.num_rows(); ++r, ++row) {
        std::memcpy(q.data() + row * stride,
                    scene_.q.data() + static_cast<std::size_t>(s.q_row + r) * row_bytes, row_bytes);
      }
    }
    q_ = DeviceArray<std::byte>(q);
    out_ = DeviceArray<std::byte>(std::vector<std::byte>((total + kGuardRows) * out_row_bytes()));
    attention.q = q_.get();
    attention.out = out_.get();
    attention.dtype = o.dtype;
    attention.q_stride = static_cast<std::int64_t>(scene_.row_size()) + kQGap;
    attention.out_stride = static_cast<std::int64_t>(scene_.row_size()) + kOutGap;
    if (o.has_lse) {
      lse_ = DeviceArray<float>(
          std::vector<float>((total + kGuardRows) * static_cast<std::size_t>(o.num_heads)));
      attention.lse = lse_.get();
    }
    attention.scale = o.scale;
    attention.soft_cap = o.soft_cap;
    attention.sliding_window = o.window;
  }

  SceneOutput collect(std::size_t row_bytes) const {
    const std::vector<std::byte> all = out_.read();
    const std::size_t used = scene_.row_size() * size_of(scene_.options.dtype);
    SceneOutput output;
    for (std::size_t at = 0; at < all.size(); ++at) {
      if (at < num_rows_ * row_bytes && at % row_bytes < used) {
        output.out.push_back(all[at]);
      } else if (all[at] != kPoison) {
        output.only_rows_written = false;
      }
    }
    if (!scene_.options.has_lse) return output;
    output.lse = lse_.read();
    const std::size_t lse_size = num_rows_ * static_cast<std::size_t>(scene_.options.num_heads);
    for (std::size_t i = lse_size; i < output.lse.size(); ++i) {
      if (output.lse[i] != kUnwritten) output.only_rows_written = false;
    }
    output.lse.resize(lse_size);
    return output;
  }

  const Scene& scene_;
  std::size_t num_rows_;
  std::vector<DeviceArray<std::int32_t>> ints_;
  std::vector<DeviceArray<float>> floats_;
  std::vector<DeviceArray<std::byte>> cache_;
  DeviceArray<std::byte> q_;
  DeviceArray<std::byte> out_;
  DeviceArray<float> lse_;
  DeviceArray<std::byte> workspace_;
};

/// `product_rounding`: error of one rounding of what the kernel multiplies (weights, and queries
/// when it narrows them): 2^-24 in f32, 2^-9 in bf16, 2^-12 in f16.
inline ::testing::AssertionResult matches_oracle(const Scene& scene, const SceneOutput& output,
                                                 double product_rounding) {
  if (!output.only_rows_written) {
    return ::testing::AssertionFailure() << "wrote outside of its rows";
  }
  const SceneOptions& o = scene.options;
  const auto dim = static_cast<std::size_t>(o.head_dim);
  const double out_rounding = rounding_of(o.dtype);
  double squared_error = 0.0;
  double squares = 0.0;
  std::size_t at = 0;  // row, head
  for (std::size_t i = 0; i < scene.sequences.size(); ++i) {
    const SceneSequence& s = scene.sequences[i];
    for (int row = 0; row < s.num_rows(); ++row) {
      for (int head = 0; head < o.num_heads; ++head, ++at) {
        const ExpectedRow expected = attend_exactly(scene, s, row, head);
        const auto name = [&] {
          return " sequence " + std::to_string(i) + " row " + std::to_string(row) + " head " +
                 std::to_string(head);
        };
        const double terms = std::sqrt(static_cast<double>(expected.num_keys + dim));
        const double bound = expected.largest * (4.0 * product_rounding + 8.0 * 0x1p-24 * terms);
        for (std::size_t d = 0; d < dim; ++d) {
          const double got = decode(o.dtype, output.out, at * dim + d);
          const double error = std::abs(got - expected.out[d]);
          if (!(error <= bound + 2.0 * out_rounding * std::abs(expected.out[d]))) {
            return ::testing::AssertionFailure()
                   << got << " is not " << expected.out[d] << " within " << bound << ":" << name()
                   << " dim " << d;
          }
          squared_error += error * error;
          squares += expected.out[d] * expected.out[d];
        }
        if (!o.has_lse) continue;
        const double lse_error = std::abs(static_cast<double>(output.lse[at]) - expected.lse);
        const double lse_rounding = 16.0 * 0x1p-24 * terms + 2.0 * product_rounding;
        if (!(lse_error <= lse_rounding * (1.0 + std::abs(expected.lse)))) {
          return ::testing::AssertionFailure()
                 << "lse " << output.lse[at] << " is not " << expected.lse << ":" << name();
        }
      }
    }
  }
  const double rounding = 4.0 * std::max(product_rounding, out_rounding) + 16.0 * 0x1p-24;
  if (squared_error > rounding * rounding * squares) {
    return ::testing::AssertionFailure() << "mean error " << std::sqrt(squared_error / squares);
  }
  return ::testing::AssertionSuccess();
}

/// Prepares, attends and compares.
inline ::testing::AssertionResult check_attention(const Scene& scene, Path path = Path::kEntry,
                                                  double product_rounding = 0x1p-24) {
  SceneRun run(scene);
  return matches_oracle(scene, run.run(path), product_rounding);
}

}  // namespace smartspec::cuda
