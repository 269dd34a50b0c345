// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The target walk: draw the target's own token at a node, step to the child that carries it, else
// emit it and stop. Only the rows of the path are read.
//
// One launch per level for the first levels (split walk): several blocks share a row, and the last
// one to finish chooses the token from their best ones, so no block waits for another. Sequences
// whose filters look at a whole row, and levels further down, are walked by one block each.
//
// Compiled without contraction of a * b + c (nvcc --fmad=false), like everything that must give the
// bits of cpp/src/verify. Predicted for an H200, bf16, vocabulary 128k, no filters, per walked row:
// 256 KB from memory and again from the cache nearby (about 5 us each where one multiprocessor
// reads them), and about 25 instructions per token, 15 of them Philox: 131072 * 25 / (128 lanes
// * 1.755 GHz) = 15 us on one multiprocessor. 64 sequences in 8 blocks each: 7 us per level for the
// whole device at best, against 20 us with a block per sequence.
#pragma once

#include <cstdint>

#include "common/device.cuh"
#include "common/launch.cuh"
#include "kernels/verify/search.cuh"
#include "kernels/verify/select.cuh"
#include "kernels/verify/sequence.cuh"
#include "kernels/verify/verify.h"
#include "smartspec/cuda_ops.hpp"

namespace smartspec::cuda::verification {

inline constexpr std::int32_t kMaxParts = 32;  // blocks that share a row

/// Where a walk is, between launches; lies in the workspace.
struct WalkState {
  std::int32_t node;
  std::int32_t accepted;
  std::int32_t done;
  std::int32_t arrived;  // blocks of this level; 0 between launches
};

/// What one block found in its part of a row; lies in the workspace.
struct Part {
  std::uint64_t key;  // ordered_bits() of the best key; 0: nothing is left
  double raw_sum;
  float raw_max;
  std::int32_t status;  // kNotFinite or 0
  TokenId token;
  std::int32_t unused;
};

/// Writes what was drawn; true when the walk goes on to `node`. All threads.
template <DType kType, int kThreads>
SMARTSPEC_DEVICE bool advance(const Sequence<kType, kThreads>& sequence, std::int32_t& node,
                              std::int32_t& accepted, TokenId token, double log_sum) {
  const Verify& verify = sequence.verify;
  const std::int64_t at = sequence.index * verify.path_stride + accepted;
  const std::int32_t child = sequence.find_child(node, token);
  const bool goes_on = child >= 0 && accepted + 1 < verify.path_stride;
  if (device::thread_index() == 0) {
    verify.tokens[at] = token;
    if (verify.logprobs != nullptr) {
      const auto logit = static_cast<double>(sequence.row(node).raw(token));
      verify.logprobs[at] = static_cast<float>(logit - log_sum);
    }
    if (goes_on) verify.path[at] = child;
  }
  if (!goes_on) return false;
  node = child;
  ++accepted;
  return true;
}

template <DType kType, int kThreads>
SMARTSPEC_DEVICE void finish(const Sequence<kType, kThreads>& sequence, std::int32_t accepted,
                             std::int32_t status) {
  if (device::thread_index() != 0) return;
  sequence.verify.num_accepted[sequence.index] = accepted;
  sequence.verify.status[sequence.index] = status;
}

/// The rest of a walk by one block.
template <DType kType, int kThreads>
SMARTSPEC_DEVICE void walk_alone(Sequence<kType, kThreads>& sequence, std::int32_t node,
                                 std::int32_t accepted) {
  const bool wants_logprobs = sequence.verify.logprobs != nullptr;
  while (true) {
    const Row<kType> row = sequence.row(node);
    const Summary summary = sequence.summarize(row);
    if (summary.status != 0) return finish(sequence, accepted, summary.status);
    const TokenId token = draw(sequence, row, summary, sequence.position + accepted);
    const double log_sum = wants_logprobs ? summary.log_sum() : 0.0;
    if (!advance(sequence, node, accepted, token, log_sum)) break;
    sequence.edits.push(token);
  }
  finish(sequence, accepted, 0);
}

/// Tells the edits of the tokens that earlier launches emitted.
template <DType kType, int kThreads>
SMARTSPEC_DEVICE void push_path(Sequence<kType, kThreads>& sequence, std::int32_t accepted) {
  const TokenId* tokens = sequence.verify.tokens + sequence.index * sequence.verify.path_stride;
  for (std::int32_t i = 0; i < accepted; ++i) sequence.edits.push(tokens[i]);
}

/// One block per sequence. Null states: from the root.
template <DType kType, int kBlockThreads>
struct TargetWalk {
  static constexpr int kThreads = kBlockThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr const char* kName = "verify (target walk)";
  Verify verify;
  SharedShape shape;
  bool aligned;
  const WalkState* states;

  SMARTSPEC_DEVICE void operator()() const {
    const std::int32_t s = device::block_x();
    std::int32_t node = -1;
    std::int32_t accepted = 0;
    if (states != nullptr) {
      if (states[s].done != 0) return;
      node = states[s].node;
      accepted = states[s].accepted;
    }
    Sequence<kType, kThreads> sequence(verify, s, shape, aligned, 0, verify.vocab_size);
    push_path(sequence, accepted);
    walk_alone(sequence, node, accepted);
  }
};

/// One level of all walks: num_parts blocks in a row have the parts of a sequence.
template <DType kType, int kBlockThreads>
struct SplitWalk {
  static constexpr int kThreads = kBlockThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr const char* kName = "verify (split target walk)";
  Verify verify;
  SharedShape shape;
  bool aligned;
  bool is_first;  // level: there is no state yet
  WalkState* states;
  Part* parts;  // [num_sequences, kMaxParts]
  std::int32_t num_parts;
  std::int32_t part_tokens;  // a multiple of 64

  SMARTSPEC_DEVICE void operator()() const {
    const std::int32_t s = device::block_x() / num_parts;
    const std::int32_t own = device::block_x() % num_parts;
    std::int32_t node = -1;
    std::int32_t accepted = 0;
    if (!is_first) {
      if (states[s].done != 0) return;
      node = states[s].node;
      accepted = states[s].accepted;
    }
    if (needs_whole_rows(s)) {
      if (own != 0) return;
      Sequence<kType, kThreads> sequence(verify, s, shape, aligned, 0, verify.vocab_size);
      walk_alone(sequence, node, accepted);
      if (device::thread_index() == 0) states[s].done = 1;
      return;
    }
    const std::int32_t begin = own * part_tokens;
    const std::int32_t left = verify.vocab_size - begin;
    Sequence<kType, kThreads> sequence(verify, s, shape, aligned, begin,
                                       begin + (left < part_tokens ? left : part_tokens));
    push_path(sequence, accepted);
    const Part part = look(sequence, node, accepted);
    if (device::thread_index() == 0) parts[s * std::int64_t{kMaxParts} + own] = part;
    if (is_last(sequence)) conclude(sequence, node, accepted);
  }

 private:
  [[nodiscard]] SMARTSPEC_DEVICE bool needs_whole_rows(std::int32_t s) const {
    if (verify.temperature != nullptr && verify.temperature[s] == 0.0F) return false;
    return (verify.top_k != nullptr && verify.top_k[s] > 0 &&
            verify.top_k[s] < verify.vocab_size) ||
           (verify.top_p != nullptr && verify.top_p[s] < 1.0F) ||
           (verify.min_p != nullptr && verify.min_p[s] > 0.0F);
  }

  [[nodiscard]] SMARTSPEC_DEVICE Part look(const Sequence<kType, kThreads>& sequence,
                                           std::int32_t node, std::int32_t accepted) const {
    const Row<kType> row = sequence.row(node);
    const Summary summary = sequence.summarize(row);
    Part part{0, summary.raw_sum, summary.raw_max, 0, -1, 0};
    if (summary.status == kNotFinite) part.status = kNotFinite;
    if (summary.status != 0) return part;
    if (sequence.greedy()) {
      part.token = summary.first;
      part.key = ordered_bits(static_cast<double>(summary.max));
      return part;
    }
    const std::int64_t position = sequence.position + accepted;
    const Drawn drawn = Search<kType, kThreads>(sequence, row, summary, {}, position).run();
    part.token = drawn.token;
    part.key = drawn.key;
    return part;
  }

  /// Whether all other blocks of the sequence have published. All threads.
  [[nodiscard]] SMARTSPEC_DEVICE bool is_last(const Sequence<kType, kThreads>& sequence) const {
    bool last = false;
    if (device::thread_index() == 0) {
      device::fence_device();
      int* arrived = &states[sequence.index].arrived;
      last = device::atomic_add(arrived, 1) + 1 == num_parts;
      if (last) *arrived = 0;
      device::fence_device();
    }
    return device::sync_block_or(last);
  }

  SMARTSPEC_DEVICE void conclude(const Sequence<kType, kThreads>& sequence, std::int32_t node,
                                 std::int32_t accepted) const {
    // Volatile: not from a cache that other multiprocessors do not write to.
    const volatile Part* own = parts + sequence.index * std::int64_t{kMaxParts};
    std::uint64_t key = 0;
    TokenId token = -1;
    bool finite = true;
    float raw_max = kMinusInf;
    for (std::int32_t i = 0; i < num_parts; ++i) {
      const std::uint64_t k = own[i].key;  // parts ascend in tokens: the first of equals stays
      if (k > key) {
        key = k;
        token = own[i].token;
      }
      finite = finite && own[i].status == 0;
      const float m = own[i].raw_max;
      raw_max = m > raw_max ? m : raw_max;
    }
    bool goes_on = false;
    if (!finite || key == 0) {
      finish(sequence, accepted, finite ? kNothingLeft : kNotFinite);
    } else {
      double log_sum = 0.0;
      if (verify.logprobs != nullptr) {
        double sum = 0.0;
        for (std::int32_t i = 0; i < num_parts; ++i) {
          const float m = own[i].raw_max;
          const double below = static_cast<double>(m) - static_cast<double>(raw_max);
          if (m > kMinusInf) sum += own[i].raw_sum * core::portable_exp(below);
        }
        log_sum = static_cast<double>(raw_max) + core::portable_log(sum);
      }
      goes_on = advance(sequence, node, accepted, token, log_sum);
      if (!goes_on) finish(sequence, accepted, 0);
    }
    if (device::thread_index() == 0) {
      states[sequence.index].node = node;
      states[sequence.index].accepted = accepted;
      states[sequence.index].done = goes_on ? 0 : 1;
    }
  }
};

template <DType kType, int kThreads>
void launch_walk(const TargetJob& job, Stream stream) {
  const Verify& v = job.verify;
  const SharedShape shape = shared_shape(v, 0);
  auto* states = static_cast<WalkState*>(job.workspace);
  auto* parts = reinterpret_cast<Part*>(states + v.num_sequences);
  const std::int64_t levels = v.path_stride < job.levels ? v.path_stride : job.levels;
  for (std::int64_t level = 0; level < levels; ++level) {
    const SplitWalk<kType, kThreads> kernel{v,      shape, job.aligned,   level == 0,
                                            states, parts, job.num_parts, job.part_tokens};
    launch({std::int64_t{job.num_parts} * v.num_sequences, 1, shape.bytes}, stream, kernel);
  }
  if (levels == v.path_stride) return;
  const TargetWalk<kType, kThreads> rest{v, shape, job.aligned, levels == 0 ? nullptr : states};
  launch({v.num_sequences, 1, shape.bytes}, stream, rest);
}

}  // namespace smartspec::cuda::verification
