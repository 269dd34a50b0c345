// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// One row of logits as a draw sees it: masked tokens are -inf, and tokens that penalties or a bias
// change are apart. Those are few, so they are not written to a copy of the row: a bitmap in shared
// memory hides them from the dense passes, and every pass then looks at them one by one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "common/device.cuh"
#include "core/token_order.hpp"
#include "kernels/rows/pack.cuh"
#include "smartspec/cuda_ops.hpp"
#include "smartspec/types.hpp"

namespace smartspec::cuda::verification {

inline constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

SMARTSPEC_DEVICE bool bit_of(const std::uint32_t* words, std::int32_t i) {
  return (words[i / 32] >> (i % 32) & 1U) != 0;
}

template <DType kType>
struct Row {
  const void* logits = nullptr;           // [vocab]
  const std::uint32_t* mask = nullptr;    // bits of allowed tokens; null: all
  const std::uint32_t* edited = nullptr;  // shared: bits of tokens in Edits, from begin; null: none
  std::int32_t begin = 0;                 // the tokens looked at: a multiple of 64, up to
  std::int32_t end = 0;                   // another one or the whole vocabulary
  bool aligned = false;                   // to four elements

  [[nodiscard]] SMARTSPEC_DEVICE float raw(std::int32_t v) const {
    float x[1];
    kernels::load_numbers<kType, 1>(logits, v, x);
    return x[0];
  }
  [[nodiscard]] SMARTSPEC_DEVICE bool allows(std::int32_t v) const {
    return mask == nullptr || bit_of(mask, v);
  }
  /// What the dense passes see.
  [[nodiscard]] SMARTSPEC_DEVICE float visible(std::int32_t v) const {
    return allows(v) && !(edited != nullptr && bit_of(edited, v - begin)) ? raw(v) : kMinusInf;
  }

  /// Tokens v..v+3, v a multiple of 4; -inf beyond the end.
  SMARTSPEC_DEVICE void load_raw(std::int32_t v, float (&x)[4]) const {
    if (aligned && v + 4 <= end) {
      kernels::load_numbers<kType, 4>(logits, v, x);
      return;
    }
    SMARTSPEC_UNROLL
    for (int i = 0; i < 4; ++i) x[i] = v + i < end ? raw(v + i) : kMinusInf;
  }
  /// Makes -inf of what the dense passes do not see.
  SMARTSPEC_DEVICE void hide(std::int32_t v, float (&x)[4]) const {
    std::uint32_t bits = ~std::uint32_t{0};
    if (v >= end) return;
    if (mask != nullptr) bits &= mask[v / 32] >> (v % 32);
    if (edited != nullptr) bits &= ~(edited[(v - begin) / 32] >> (v % 32));
    SMARTSPEC_UNROLL
    for (int i = 0; i < 4; ++i) x[i] = (bits >> i & 1U) != 0 ? x[i] : kMinusInf;
  }
};

/// Calls visit(v, x) for each four tokens of the row, x as load_raw() gives it.
template <int kThreads, DType kType, class Visit>
SMARTSPEC_DEVICE void for_each_quad(const Row<kType>& row, Visit visit) {
  constexpr int kUnroll = 4;  // loads in flight
  for (std::int32_t first = row.begin + 4 * device::thread_index(); first < row.end;
       first += kUnroll * 4 * kThreads) {
    float x[kUnroll][4];
    SMARTSPEC_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const std::int32_t v = first + u * 4 * kThreads;
      if (v < row.end) row.load_raw(v, x[u]);
    }
    SMARTSPEC_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const std::int32_t v = first + u * 4 * kThreads;
      if (v < row.end) visit(v, x[u]);
    }
  }
}

inline constexpr std::int32_t kMaxPath = kMaxTreeNodes + 1;  // tokens of a path and the one after

/// Lies in shared memory.
struct PathTokens {
  TokenId tokens[kMaxPath];      // of the walked path
  TokenId extra[kMaxPath];       // the distinct ones that have no entry of their own
  std::int32_t added[kMaxPath];  // whether tokens[i] brought an extra one
};

/// The tokens of one sequence whose logits change. Equal in all threads of the block.
struct Edits {
  const TokenId* tokens = nullptr;       // [num_entries] distinct
  const std::int32_t* counts = nullptr;  // [num_entries] in the output; -1: not seen at all
  const float* bias = nullptr;           // [num_entries] or null
  std::int32_t num_entries = 0;
  float repetition = 1.0F;
  float frequency = 0.0F;
  float presence = 0.0F;
  bool penalties = false;           // tokens of the path are edited too
  std::uint32_t* bitmap = nullptr;  // shared, [(end - begin) / 32]; null: nothing is edited
  std::int32_t begin = 0;           // the tokens looked at, as in Row
  std::int32_t end = 0;
  PathTokens* path = nullptr;  // shared
  std::int32_t num_path = 0;
  std::int32_t num_extra = 0;

  [[nodiscard]] SMARTSPEC_DEVICE std::int32_t size() const {
    return bitmap == nullptr ? 0 : num_entries + num_extra;
  }
  [[nodiscard]] SMARTSPEC_DEVICE bool holds(TokenId v) const { return v >= begin && v < end; }
  [[nodiscard]] SMARTSPEC_DEVICE TokenId token(std::int32_t j) const {
    return j < num_entries ? tokens[j] : path->extra[j - num_entries];
  }

  /// As the CPU's sampler does it: bias, repetition, frequency, presence.
  template <DType kType>
  [[nodiscard]] SMARTSPEC_DEVICE float logit(const Row<kType>& row, std::int32_t j) const {
    const TokenId v = token(j);
    if (!row.allows(v)) return kMinusInf;
    float l = row.raw(v);
    std::int32_t count = -1;
    if (j < num_entries) {
      if (bias != nullptr) l += bias[j];
      count = counts == nullptr ? -1 : counts[j];
    }
    if (!penalties) return l;
    std::int32_t on_path = 0;
    for (std::int32_t i = 0; i < num_path; ++i) on_path += path->tokens[i] == v ? 1 : 0;
    if (on_path > 0) count = (count > 0 ? count : 0) + on_path;
    if (repetition != 1.0F && count >= 0) l = core::repeated(l, repetition);
    if (count > 0) {
      l -= frequency * static_cast<float>(count);
      l -= presence;
    }
    return l;
  }

  // All threads.
  SMARTSPEC_DEVICE void push(TokenId token) {
    if (bitmap == nullptr) return;
    const bool adds = penalties && holds(token) && !bit_of(bitmap, token - begin);
    device::sync_block();  // the bitmap has been read
    if (device::thread_index() == 0) {
      path->tokens[num_path] = token;
      path->added[num_path] = adds ? 1 : 0;
      if (adds) {
        path->extra[num_extra] = token;
        bitmap[(token - begin) / 32] |= 1U << (token % 32);
      }
    }
    device::sync_block();
    ++num_path;
    num_extra += adds ? 1 : 0;
  }
  SMARTSPEC_DEVICE void pop() {
    if (bitmap == nullptr) return;
    --num_path;
    const TokenId token = path->tokens[num_path];
    const bool added = path->added[num_path] != 0;
    device::sync_block();
    if (added && device::thread_index() == 0) bitmap[(token - begin) / 32] &= ~(1U << (token % 32));
    device::sync_block();
    num_extra -= added ? 1 : 0;
  }
};

/// Calls visit(token, logit) for each edited token among those looked at.
template <int kThreads, DType kType, class Visit>
SMARTSPEC_DEVICE void for_each_edit(const Row<kType>& row, const Edits& edits, Visit visit) {
  for (std::int32_t j = device::thread_index(); j < edits.size(); j += kThreads) {
    const TokenId v = edits.token(j);
    if (edits.holds(v)) visit(v, edits.logit(row, j));
  }
}

}  // namespace smartspec::cuda::verification
