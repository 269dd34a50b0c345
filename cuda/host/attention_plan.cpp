// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "host/attention_plan.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

#include "host/pass_graphs.hpp"

namespace smartspec::cuda {
namespace {

std::int32_t num_nodes(const AttentionSequence& s) { return s.tree_start + s.num_tree; }
std::int64_t num_keys(const AttentionSequence& s) {
  return std::int64_t{s.context_len} + s.num_causal + num_nodes(s);
}
std::size_t num_blocks(const AttentionSequence& s, std::int32_t block_size) {
  return static_cast<std::size_t>((num_keys(s) + block_size - 1) / block_size);
}

bool equal(const AttentionPlanOptions& a, const AttentionPlanOptions& b) {
  return a.num_heads == b.num_heads && a.num_kv_heads == b.num_kv_heads &&
         a.head_dim == b.head_dim && a.kv_dtype == b.kv_dtype &&
         a.batch_invariant == b.batch_invariant && a.invariant_chunk == b.invariant_chunk &&
         a.max_context_len == b.max_context_len && a.sliding_window == b.sliding_window;
}

}  // namespace

void CudaAttentionPlan::check(const AttentionSequence& s, std::size_t index,
                              std::int32_t next_row) const {
  const auto fail = [&](const char* field, std::int64_t value, const std::string& allowed) {
    throw std::invalid_argument("plan_attention: " + std::string(field) + " of sequence " +
                                std::to_string(index) + " is " + std::to_string(value) +
                                "; allowed: " + allowed);
  };
  if (s.context_len < 0) fail("context_len", s.context_len, "at least 0");
  if (s.num_causal < 0) fail("num_causal", s.num_causal, "at least 0");
  if (s.num_tree < 0) fail("num_tree", s.num_tree, "at least 0");
  if (s.first_row != next_row) {
    fail("first_row", s.first_row, std::to_string(next_row) + ", behind the sequence before it");
  }
  if (s.tree_start < 0 || num_nodes(s) > kMaxTreeNodes) {
    fail("the number of tree nodes", num_nodes(s), "[0, " + std::to_string(kMaxTreeNodes) + "]");
  }
  if (static_cast<std::int64_t>(s.tree_parents.size()) != num_nodes(s)) {
    fail("tree_parents.size()", static_cast<std::int64_t>(s.tree_parents.size()),
         std::to_string(num_nodes(s)));
  }
  for (std::size_t node = 0; node < s.tree_parents.size(); ++node) {
    const std::int32_t parent = s.tree_parents[node];
    if (parent < -1 || parent >= static_cast<std::int32_t>(node)) {
      fail("a tree node's parent", parent, "-1 or an earlier node");
    }
  }
  if (num_blocks(s, block_size_) > s.block_table.size()) {
    fail("block_table.size()", static_cast<std::int64_t>(s.block_table.size()),
         "at least " + std::to_string(num_blocks(s, block_size_)));
  }
}

/// [num_sequences, stride]; entries beyond a sequence's own keys are not read, and 0.
void CudaAttentionPlan::append_block_tables(std::span<const AttentionSequence> sequences,
                                            bool pads) {
  std::size_t stride = 1;
  for (const AttentionSequence& s : sequences) {
    stride = std::max(stride, num_blocks(s, block_size_));
  }
  if (pads) stride = std::bit_ceil(std::max(stride, std::size_t{8}));
  for (const AttentionSequence& s : sequences) {
    const auto used = s.block_table.first(num_blocks(s, block_size_));
    for (const BlockId block : used) {
      if (block < 0) throw std::invalid_argument("plan_attention: a block is negative");
      highest_block_ = std::max(highest_block_, block);
    }
    host_.insert(host_.end(), used.begin(), used.end());
    host_.resize(host_.size() + stride - used.size());
  }
  host_.resize(host_.size() +
               stride * (static_cast<std::size_t>(forest_.num_sequences) - sequences.size()));
  forest_.block_table_stride = static_cast<std::int64_t>(stride);
}

void CudaAttentionPlan::build(std::span<const AttentionSequence> sequences, std::int32_t block_size,
                              bool pads, Staging& staging, CUstream_st* stream) {
  if (block_size < 1) throw std::invalid_argument("plan_attention: block_size must be positive");
  block_size_ = block_size;
  highest_block_ = -1;
  longest_ = 0;
  forget();
  forest_ = Forest{};

  const std::int32_t first_row = sequences.empty() ? 0 : sequences.front().first_row;
  std::int32_t rows = first_row;
  std::int32_t nodes = 0;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const AttentionSequence& s = sequences[i];
    check(s, i, rows);
    rows += s.num_causal + s.num_tree;
    nodes += num_nodes(s);
    longest_ = std::max(longest_, num_keys(s));
  }
  pads = pads && rows <= kMaxGraphRows;
  const auto tier = [&](std::int32_t n) { return pads ? tier_of(n) : n; };
  forest_.num_sequences = tier(static_cast<std::int32_t>(sequences.size()));
  forest_.num_rows = tier(rows);
  forest_.num_nodes = tier(nodes);

  // row_offsets, node_offsets, context_lens, num_causal, parents, block_table
  const auto count = static_cast<std::size_t>(forest_.num_sequences);
  host_.assign(1, first_row);
  for (const AttentionSequence& s : sequences) {
    host_.push_back(host_.back() + s.num_causal + s.num_tree);
  }
  host_.resize(count + 1, rows);
  host_.push_back(0);
  for (const AttentionSequence& s : sequences) host_.push_back(host_.back() + num_nodes(s));
  host_.resize(2 * (count + 1), nodes);
  for (const AttentionSequence& s : sequences) host_.push_back(s.context_len);
  host_.resize(2 * (count + 1) + count);
  for (const AttentionSequence& s : sequences) host_.push_back(s.num_causal);
  host_.resize(2 * (count + 1) + 2 * count);
  for (const AttentionSequence& s : sequences) {
    host_.insert(host_.end(), s.tree_parents.begin(), s.tree_parents.end());
  }
  host_.resize(host_.size() + static_cast<std::size_t>(forest_.num_nodes - nodes));
  append_block_tables(sequences, pads);

  const std::size_t bytes = host_.size() * sizeof(std::int32_t);
  reserve_buffer(device_, bytes, stream);
  staging.upload(device_.data(), host_.data(), bytes, stream);
  forest_.row_offsets = device_.as<const std::int32_t>();
  forest_.node_offsets = forest_.row_offsets + count + 1;
  forest_.context_lens = forest_.node_offsets + count + 1;
  forest_.num_causal = forest_.context_lens + count;
  forest_.parents = forest_.num_causal + count;
  forest_.block_table = forest_.parents + forest_.num_nodes;
}

void CudaAttentionPlan::forget() const noexcept {
  for (Prepared& p : prepared_) p.is_current = false;
}

void CudaAttentionPlan::append_signature(std::vector<std::uint64_t>& signature) const {
  const auto add = [&](auto value) { signature.push_back(static_cast<std::uint64_t>(value)); };
  add(forest_.num_sequences);
  add(forest_.num_rows);
  add(forest_.num_nodes);
  add(forest_.block_table_stride);
  add(block_size_);
  add(reinterpret_cast<std::uintptr_t>(device_.data()));
  for (const Prepared& p : prepared_) {
    add(reinterpret_cast<std::uintptr_t>(p.workspace.data()));
    add(p.workspace.size());
  }
}

const CudaAttentionPlan::Prepared& CudaAttentionPlan::prepare(AttentionPlanOptions options,
                                                              CUstream_st* stream) const {
  if (options.batch_invariant) {
    // In steps, so that a sequence that grows does not ask for new workspace at every pass.
    constexpr std::int64_t kStep = 4096;
    options.max_context_len = std::max<std::int64_t>(1, (longest_ + kStep - 1) / kStep) * kStep;
  }
  auto same = [&](const Prepared& p) { return equal(p.options, options); };
  auto found = std::ranges::find_if(prepared_, same);
  if (found != prepared_.end() && found->is_current) return *found;
  if (found == prepared_.end()) {
    // One of an earlier pass whose memory may be taken over, else a new one.
    found = std::ranges::find_if(prepared_, [](const Prepared& p) { return !p.is_current; });
    if (found == prepared_.end()) found = prepared_.emplace(prepared_.end());
  }
  found->options = options;
  const std::size_t bytes = attention_workspace_bytes(options, forest_.num_sequences,
                                                      forest_.num_rows, forest_.num_nodes);
  reserve_buffer(found->workspace, bytes, stream);
  found->state =
      prepare_forest(forest_, options, found->workspace.data(), found->workspace.size(), stream);
  found->is_current = true;
  return *found;
}

}  // namespace smartspec::cuda
