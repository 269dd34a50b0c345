// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What a block knows about its sequence: sampling parameters, rows, edited tokens, and the first
// pass over a row. Members are equal in all threads of the block unless they say otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "common/device.cuh"
#include "core/noise.hpp"
#include "core/token_order.hpp"
#include "kernels/verify/block.cuh"
#include "kernels/verify/row.cuh"
#include "smartspec/cuda_ops.hpp"

namespace smartspec::cuda::verification {

inline constexpr float kLog2E = 1.44269504F;
inline constexpr int kBins = 2048;    // of a histogram of select.cuh
inline constexpr int kListed = 1024;  // tokens that it sorts at once

/// Lies in shared memory while a cut is searched for.
struct Selection {
  std::uint64_t masses[kBins];
  std::uint64_t keys[kListed];
  std::uint64_t weights[kListed];
  std::uint64_t above;  // mass of the bins before the crossing one
  std::int32_t bin;     // where the target is reached
  std::int32_t count;   // tokens of that bin
};

/// Start of the shared memory; Selection and the bitmap of edited tokens follow when there are any.
struct Shared {
  alignas(16) std::byte scratch[kScratchBytes];
  std::int32_t bound;  // search.cuh
  std::int32_t unused[3];
  PathTokens path;
};

struct SharedShape {
  std::uint32_t selection = 0;  // offset; 0: no filters
  std::uint32_t bitmap = 0;     // offset; 0: nothing is edited
  std::uint32_t rest = 0;       // offset of what the kernel adds
  std::uint32_t bytes = 0;
};
constexpr SharedShape shared_shape(const Verify& v, std::size_t rest_bytes) {
  const auto align = [](std::size_t bytes) { return (bytes + 15) / 16 * 16; };
  SharedShape shape;
  std::size_t at = align(sizeof(Shared));
  if (v.top_k != nullptr || v.top_p != nullptr) {
    shape.selection = static_cast<std::uint32_t>(at);
    at += align(sizeof(Selection));
  }
  if (v.count_offsets != nullptr) {
    shape.bitmap = static_cast<std::uint32_t>(at);
    at += align((static_cast<std::size_t>(v.vocab_size) / 32 + 1) * 4);
  }
  shape.rest = static_cast<std::uint32_t>(at);
  shape.bytes = static_cast<std::uint32_t>(at + align(rest_bytes));
  return shape;
}

/// log2(e) / T, finite.
SMARTSPEC_DEVICE float log2_scale(double inv_t) {
  return inv_t < 2e38 ? static_cast<float>(inv_t) * kLog2E : 2.9e38F;
}

/// First pass over a processed row.
struct Summary {
  float max = kMinusInf;
  TokenId first = -1;  // lowest id that has it
  std::int32_t status = 0;
  float lowest = 0.0F;  // least finite logit; only with filters
  // Of exp of the raw logits; only with logprobs.
  float raw_max = kMinusInf;
  double raw_sum = 0.0;  // relative to raw_max
  [[nodiscard]] SMARTSPEC_DEVICE double log_sum() const {
    return static_cast<double>(raw_max) + core::portable_log(raw_sum);
  }
};

inline constexpr std::int32_t kNotFinite = 1;
inline constexpr std::int32_t kNothingLeft = 2;

/// Running sum of exp(x - max), in single precision. One thread's.
struct LogSum {
  float max = kMinusInf;
  float sum = 0.0F;
  SMARTSPEC_DEVICE void add(const float (&x)[4]) {
    float top = max;
    SMARTSPEC_UNROLL
    for (int i = 0; i < 4; ++i) top = x[i] > top ? x[i] : top;
    if (top == kMinusInf) return;
    if (top > max) {
      sum *= device::exp2_approx((max - top) * kLog2E);
      max = top;
    }
    SMARTSPEC_UNROLL
    for (int i = 0; i < 4; ++i) sum += device::exp2_approx((x[i] - max) * kLog2E);
  }
};

template <DType kType, int kThreads>
struct Sequence {
  const Verify& verify;
  std::int32_t index;
  Shared* shared = nullptr;
  Selection* selection = nullptr;
  float temperature = 1.0F;
  std::int32_t top_k = 0;
  float top_p = 1.0F;
  float min_p = 0.0F;
  std::uint64_t seed = 0;
  std::int64_t position = 0;  // of the first draw
  std::int64_t first_row = 0;
  std::int32_t first_node = 0;
  std::int32_t num_nodes = 0;
  bool aligned = false;
  Edits edits{};

  /// Tokens [begin, end) of the vocabulary only, see Row.
  SMARTSPEC_DEVICE Sequence(const Verify& v, std::int32_t s, const SharedShape& shape,
                            bool rows_aligned, std::int32_t begin, std::int32_t end)
      : verify(v), index(s), aligned(rows_aligned) {
    edits.begin = begin;
    edits.end = end;
    std::byte* base = device::shared_memory();
    shared = reinterpret_cast<Shared*>(base);
    if (shape.selection != 0) selection = reinterpret_cast<Selection*>(base + shape.selection);
    if (v.temperature != nullptr) temperature = v.temperature[s];
    if (v.top_k != nullptr) top_k = v.top_k[s];
    if (v.top_p != nullptr) top_p = v.top_p[s];
    if (v.min_p != nullptr) min_p = v.min_p[s];
    seed = v.seeds[s];
    position = v.positions[s];
    first_row = v.logits_offsets[s];
    first_node = v.node_offsets[s];
    num_nodes = v.node_offsets[s + 1] - first_node;
    if (shape.bitmap != 0) begin_edits(reinterpret_cast<std::uint32_t*>(base + shape.bitmap));
  }

  [[nodiscard]] SMARTSPEC_DEVICE bool greedy() const { return temperature == 0.0F; }
  [[nodiscard]] SMARTSPEC_DEVICE bool filters() const { return limits_count() || top_p < 1.0F; }
  [[nodiscard]] SMARTSPEC_DEVICE bool limits_count() const {
    return top_k > 0 && top_k < verify.vocab_size;
  }
  /// Node -1: the last verified token.
  [[nodiscard]] SMARTSPEC_DEVICE Row<kType> row(std::int32_t node) const {
    const std::int64_t i = first_row + 1 + node;
    Row<kType> result;
    result.logits = static_cast<const std::byte*>(verify.logits) +
                    i * verify.logits_stride * static_cast<std::int64_t>(size_of(kType));
    if (verify.mask_rows != nullptr && verify.mask_rows[i] >= 0) {
      result.mask = verify.masks + verify.mask_rows[i] * verify.mask_stride;
    }
    result.edited = edits.bitmap;
    result.begin = edits.begin;
    result.end = edits.end;
    result.aligned = aligned;
    return result;
  }
  [[nodiscard]] SMARTSPEC_DEVICE TokenId token(std::int32_t node) const {
    return verify.node_tokens[first_node + node];
  }
  [[nodiscard]] SMARTSPEC_DEVICE std::int32_t parent(std::int32_t node) const {
    return verify.parents[first_node + node];
  }

  /// First child of `node` that carries `token`, or -1. All threads.
  [[nodiscard]] SMARTSPEC_DEVICE std::int32_t find_child(std::int32_t node, TokenId wanted) const {
    constexpr std::int32_t kNone = std::numeric_limits<std::int32_t>::max();
    std::int32_t found = kNone;
    for (std::int32_t n = device::thread_index(); n < num_nodes && found == kNone; n += kThreads) {
      if (parent(n) == node && token(n) == wanted) found = n;
    }
    found = reduce<kThreads>(found, kNone, Min{}, shared->scratch);
    return found == kNone ? -1 : found;
  }

  /// Maximum and soundness of the processed row. All threads.
  [[nodiscard]] SMARTSPEC_DEVICE Summary summarize(const Row<kType>& row) const;

 private:
  SMARTSPEC_DEVICE void begin_edits(std::uint32_t* bitmap);
};

template <DType kType, int kThreads>
SMARTSPEC_DEVICE void Sequence<kType, kThreads>::begin_edits(std::uint32_t* bitmap) {
  if (verify.repetition_penalty != nullptr) edits.repetition = verify.repetition_penalty[index];
  if (verify.frequency_penalty != nullptr) edits.frequency = verify.frequency_penalty[index];
  if (verify.presence_penalty != nullptr) edits.presence = verify.presence_penalty[index];
  edits.penalties = edits.repetition != 1.0F || edits.frequency != 0.0F || edits.presence != 0.0F;
  const std::int32_t first = verify.count_offsets[index];
  edits.num_entries = verify.count_offsets[index + 1] - first;
  if (!edits.penalties && (verify.count_bias == nullptr || edits.num_entries == 0)) return;
  edits.tokens = verify.count_tokens + first;
  if (verify.output_counts != nullptr) edits.counts = verify.output_counts + first;
  if (verify.count_bias != nullptr) edits.bias = verify.count_bias + first;
  edits.bitmap = bitmap;
  edits.path = &shared->path;
  const std::int32_t words = (edits.end - edits.begin) / 32 + 1;
  for (std::int32_t w = device::thread_index(); w < words; w += kThreads) bitmap[w] = 0;
  device::sync_block();
  for (std::int32_t j = device::thread_index(); j < edits.num_entries; j += kThreads) {
    const TokenId v = edits.tokens[j];
    if (!edits.holds(v)) continue;
    // Distinct tokens: adding their bits is setting them.
    device::atomic_add(reinterpret_cast<int*>(bitmap + (v - edits.begin) / 32),
                       static_cast<int>(1U << (v % 32)));
  }
  device::sync_block();
}

template <DType kType, int kThreads>
SMARTSPEC_DEVICE Summary Sequence<kType, kThreads>::summarize(const Row<kType>& row) const {
  constexpr float kMost = std::numeric_limits<float>::max();
  const bool wants_lowest = filters() && !greedy();
  const bool wants_logprobs = verify.logprobs != nullptr;
  bool finite = true;
  float lowest = kMost;
  float best = kMinusInf;
  TokenId best_token = 0;
  LogSum log_sum;
  const auto take = [&](float l, TokenId v) {
    finite = finite && l <= kMost;  // false for NaN
    if (l > best || (l == best && v < best_token)) {
      best = l;
      best_token = v;
    }
    if (wants_lowest && l > kMinusInf && l < lowest) lowest = l;
  };
  for_each_quad<kThreads>(row, [&](std::int32_t v, float (&x)[4]) {
    if (wants_logprobs) {
      SMARTSPEC_UNROLL
      for (int i = 0; i < 4; ++i) finite = finite && x[i] <= kMost;
      log_sum.add(x);
    }
    row.hide(v, x);
    SMARTSPEC_UNROLL
    for (int i = 0; i < 4; ++i) take(x[i], v + i);
  });
  for_each_edit<kThreads>(row, edits, [&](TokenId v, float l) { take(l, v); });

  Summary result;
  std::uint64_t key = best == kMinusInf ? 0 : core::order_key(best, best_token);
  if (!finite) key = ~std::uint64_t{0};  // above every key of a sound row
  key = reduce<kThreads>(key, std::uint64_t{0}, Max{}, shared->scratch);
  if (key == ~std::uint64_t{0}) {
    result.status = kNotFinite;
    return result;
  }
  if (wants_logprobs) {
    result.raw_max = reduce<kThreads>(log_sum.max, kMinusInf, Max{}, shared->scratch);
    const float share =
        log_sum.max == kMinusInf
            ? 0.0F
            : log_sum.sum * device::exp2_approx((log_sum.max - result.raw_max) * kLog2E);
    result.raw_sum = reduce<kThreads>(static_cast<double>(share), 0.0, Sum{}, shared->scratch);
  }
  if (key == 0) {
    result.status = kNothingLeft;
    return result;
  }
  result.max = core::logit_of(key);
  result.first = core::token_of(key);
  if (wants_lowest) result.lowest = reduce<kThreads>(lowest, kMost, Min{}, shared->scratch);
  return result;
}

}  // namespace smartspec::cuda::verification
