// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Random verification passes for the device, and what the CPU says about them.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "common/device.cuh"
#include "smartspec/cuda_ops.hpp"
#include "smartspec/error.hpp"
#include "smartspec/sampler.hpp"
#include "verify/support.hpp"

namespace smartspec::test {

using verify_test::Random;
using verify_test::Shape;

/// Rows of one element type and the same numbers as floats.
struct Rows {
  DType dtype = DType::kFloat32;
  int vocab = 0;
  std::int64_t stride = 0;
  std::size_t offset = 0;  // elements before the first row: misaligns it
  std::vector<std::byte> memory;
  std::vector<std::vector<float>> values;  // [rows][vocab]

  void add(std::vector<float> row, float filler) {
    const auto size = size_of(dtype);
    const std::size_t at = values.empty() ? offset * size : memory.size();
    memory.resize(at + static_cast<std::size_t>(stride) * size);
    for (std::size_t i = 0; i < static_cast<std::size_t>(stride); ++i) {
      const bool inside = i < row.size();
      const float x = put(memory.data() + at + i * size, inside ? row[i] : filler);
      if (inside) row[i] = x;
    }
    values.push_back(std::move(row));
  }
  /// Changes one element.
  void set(std::size_t row, TokenId v, float x) {
    const auto at = static_cast<std::int64_t>(offset) + static_cast<std::int64_t>(row) * stride + v;
    values[row][static_cast<std::size_t>(v)] =
        put(memory.data() + static_cast<std::size_t>(at) * size_of(dtype), x);
  }
  [[nodiscard]] const void* data() const { return memory.data() + offset * size_of(dtype); }

 private:
  float put(std::byte* at, float x) const {
    if (dtype == DType::kFloat32) {
      std::memcpy(at, &x, sizeof x);
      return x;
    }
    const bool bf16 = dtype == DType::kBFloat16;
    const std::uint16_t bits = bf16 ? device::to_bf16(x) : device::to_f16(x);
    std::memcpy(at, &bits, sizeof bits);
    return bf16 ? device::from_bf16(bits) : device::from_f16(bits);
  }
};

/// One sequence of a pass, in the CPU's terms.
struct Request {
  TokenTree tree;
  SamplingParams params;
  std::uint64_t seed = 0;
  std::vector<TokenId> prompt;
  std::vector<TokenId> output;
  std::int32_t first_row = 0;
};

/// Everything a Verify points to.
struct Pass {
  int vocab = 0;
  std::vector<Request> requests;
  Rows rows;
  std::vector<std::vector<std::uint32_t>> masks;
  std::vector<std::int32_t> mask_rows;  // [rows]

  // Device arrays.
  std::vector<std::int32_t> logits_offsets, node_offsets{0}, parents, top_k, count_offsets{0};
  std::vector<std::int32_t> output_counts;
  std::vector<TokenId> node_tokens, count_tokens;
  std::vector<float> temperature, top_p, min_p, repetition, frequency, presence, bias;
  std::vector<std::uint64_t> seeds;
  std::vector<std::int64_t> positions;
  std::vector<std::uint32_t> mask_words;
  // Results.
  std::vector<std::int32_t> num_accepted, path, status;
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  std::int64_t path_stride = 0;
  std::vector<std::uint64_t> workspace;

  /// The operation, with a workspace of the right size.
  void run(const cuda::Verify& v) {
    const std::size_t bytes =
        cuda::verify_workspace_bytes(v.rule, v.num_sequences, cuda::kMaxTreeNodes, v.vocab_size);
    workspace.resize((bytes + 7) / 8);
    cuda::verify(v, workspace.data(), bytes, nullptr);
  }

  /// The requests as device arrays. Call when all are there.
  cuda::Verify params(bool wants_logprobs);

  [[nodiscard]] bool allows(std::size_t row, TokenId v) const {
    const std::int32_t mask = mask_rows.empty() ? -1 : mask_rows[row];
    if (mask < 0) return true;
    const auto i = static_cast<std::size_t>(v);
    return (masks[static_cast<std::size_t>(mask)][i / 32] >> (i % 32) & 1U) != 0;
  }
  /// The row as the CPU's sampler gets it: what the mask forbids is -inf.
  [[nodiscard]] std::vector<float> masked(std::size_t row) const {
    std::vector<float> result = rows.values[row];
    for (int v = 0; v < vocab; ++v) {
      if (!allows(row, v)) {
        result[static_cast<std::size_t>(v)] = -std::numeric_limits<float>::infinity();
      }
    }
    return result;
  }
  void check_against_cpu() const;
  void clear_results() {
    num_accepted.assign(num_accepted.size(), -7);
    status.assign(status.size(), -7);
    path.assign(path.size(), -7);
    tokens.assign(path.size(), -7);
    logprobs.assign(path.size(), 7.0F);
  }

 private:
  void add_counts(const Request& request);
};

inline void Pass::add_counts(const Request& request) {
  struct Entry {
    TokenId token;
    std::int32_t count;
    float bias;
  };
  std::vector<Entry> entries;
  const auto entry = [&](TokenId token) -> Entry& {
    for (Entry& e : entries) {
      if (e.token == token) return e;
    }
    return entries.emplace_back(Entry{token, -1, 0.0F});
  };
  for (const TokenId t : request.prompt) entry(t).count = 0;
  for (const TokenId t : request.output) {
    Entry& e = entry(t);
    e.count = (e.count > 0 ? e.count : 0) + 1;
  }
  for (const auto& [token, value] : request.params.logit_bias) entry(token).bias = value;
  for (const Entry& e : entries) {
    count_tokens.push_back(e.token);
    output_counts.push_back(e.count);
    bias.push_back(e.bias);
  }
  count_offsets.push_back(static_cast<std::int32_t>(count_tokens.size()));
}

inline cuda::Verify Pass::params(bool wants_logprobs) {
  path_stride = 1;
  for (const Request& r : requests) {
    logits_offsets.push_back(r.first_row);
    for (std::int32_t n = 0; n < r.tree.size(); ++n) {
      const auto i = static_cast<std::size_t>(n);
      node_tokens.push_back(r.tree.tokens[i]);
      parents.push_back(r.tree.parents[i]);
      path_stride = std::max<std::int64_t>(path_stride, r.tree.depths[i] + 2);
    }
    node_offsets.push_back(static_cast<std::int32_t>(node_tokens.size()));
    temperature.push_back(r.params.temperature);
    top_k.push_back(r.params.top_k);
    top_p.push_back(r.params.top_p);
    min_p.push_back(r.params.min_p);
    repetition.push_back(r.params.repetition_penalty);
    frequency.push_back(r.params.frequency_penalty);
    presence.push_back(r.params.presence_penalty);
    seeds.push_back(r.seed);
    positions.push_back(static_cast<std::int64_t>(r.prompt.size() + r.output.size()));
    add_counts(r);
  }
  for (const auto& mask : masks) mask_words.insert(mask_words.end(), mask.begin(), mask.end());
  const std::size_t n = requests.size();
  num_accepted.resize(n);
  status.resize(n);
  path.resize(n * static_cast<std::size_t>(path_stride));
  clear_results();

  cuda::Verify v;
  v.num_sequences = static_cast<std::int32_t>(n);
  v.vocab_size = vocab;
  v.logits = rows.data();
  v.dtype = rows.dtype;
  v.logits_stride = rows.stride;
  v.logits_offsets = logits_offsets.data();
  v.node_offsets = node_offsets.data();
  v.node_tokens = node_tokens.data();
  v.parents = parents.data();
  v.temperature = temperature.data();
  v.top_k = top_k.data();
  v.top_p = top_p.data();
  v.min_p = min_p.data();
  v.seeds = seeds.data();
  v.positions = positions.data();
  v.repetition_penalty = repetition.data();
  v.frequency_penalty = frequency.data();
  v.presence_penalty = presence.data();
  v.count_offsets = count_offsets.data();
  v.count_tokens = count_tokens.data();
  v.output_counts = output_counts.data();
  v.count_bias = bias.data();
  if (!masks.empty()) {
    v.masks = mask_words.data();
    v.mask_stride = static_cast<std::int64_t>(masks.front().size());
    v.mask_rows = mask_rows.data();
  }
  v.num_accepted = num_accepted.data();
  v.path = path.data();
  v.tokens = tokens.data();
  if (wants_logprobs) v.logprobs = logprobs.data();
  v.path_stride = path_stride;
  v.status = status.data();
  return v;
}

/// Results against verify_tree() and compute_logprobs().
inline void Pass::check_against_cpu() const {
  for (std::size_t s = 0; s < requests.size(); ++s) {
    const Request& r = requests[s];
    SCOPED_TRACE("sequence " + std::to_string(s));
    Sampler sampler(r.params, r.seed, r.prompt, vocab, nullptr);
    for (const TokenId t : r.output) sampler.accept(t);
    std::vector<float> row;
    const auto logits = [&](std::int32_t node) -> std::span<const float> {
      row = masked(static_cast<std::size_t>(r.first_row + 1 + node));
      return row;
    };
    Verification expected;
    std::int32_t expected_status = 0;
    try {
      verify_tree(r.tree, logits, sampler, expected);
    } catch (const Error& error) {
      const bool finite = std::string(error.what()).find("not finite") == std::string::npos;
      expected_status = finite ? 2 : 1;
    }
    ASSERT_EQ(status[s], expected_status);
    const std::size_t accepted = expected.path.size();
    ASSERT_EQ(num_accepted[s], static_cast<std::int32_t>(accepted));
    const std::size_t at = s * static_cast<std::size_t>(path_stride);
    for (std::size_t i = 0; i < accepted; ++i) ASSERT_EQ(path[at + i], expected.path[i]) << i;
    for (std::size_t i = 0; i < expected.tokens.size(); ++i) {
      ASSERT_EQ(tokens[at + i], expected.tokens[i]) << "token " << i;
      if (logprobs[at + i] == 7.0F) continue;
      const auto& raw = rows.values[static_cast<std::size_t>(r.first_row + expected.rows[i])];
      const float exact = compute_logprobs(raw, expected.tokens[i], 0).front().logprob;
      if (exact < -1e30F) {
        EXPECT_LT(logprobs[at + i], -1e30F);
      } else {
        EXPECT_NEAR(logprobs[at + i], exact, 1e-5 * std::max(1.0F, -exact / 16.0F)) << i;
      }
    }
    for (std::size_t i = at + accepted + 1; i < at + static_cast<std::size_t>(path_stride); ++i) {
      ASSERT_EQ(tokens[i], -7) << "written beyond the result";
    }
  }
}

}  // namespace smartspec::test
