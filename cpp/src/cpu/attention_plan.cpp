// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "cpu/attention_plan.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace smartspec::cpu {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::invalid_argument("plan_attention: " + what);
}

void check(const AttentionSequence& s, std::int32_t block_size) {
  if (s.first_row < 0 || s.context_len < 0 || s.num_causal < 0 || s.num_tree < 0 ||
      s.tree_start < 0) {
    fail("first_row, context_len, num_causal, num_tree and tree_start must not be negative");
  }
  if (s.num_tree > kMaxTreeNodes || s.tree_start > kMaxTreeNodes - s.num_tree) {
    fail("tree of " + std::to_string(std::int64_t{s.tree_start} + s.num_tree) +
         " nodes; allowed: at most " + std::to_string(kMaxTreeNodes));
  }
  const auto nodes = static_cast<std::size_t>(s.tree_start + s.num_tree);
  if (s.num_tree > 0 && s.tree_parents.size() != nodes) {
    fail("tree_parents has " + std::to_string(s.tree_parents.size()) + " entries, not " +
         std::to_string(nodes));
  }
  const std::int64_t keys = std::int64_t{s.context_len} + s.num_causal + s.tree_start + s.num_tree;
  const auto blocks = static_cast<std::size_t>((keys + block_size - 1) / block_size);
  if (s.block_table.size() < blocks) {
    fail("block_table has " + std::to_string(s.block_table.size()) + " blocks; " +
         std::to_string(keys) + " tokens need " + std::to_string(blocks));
  }
}

}  // namespace

void CpuAttentionPlan::build(std::span<const AttentionSequence> sequences,
                             std::int32_t block_size) {
  if (block_size < 16 || block_size % 16 != 0) {
    fail("block_size " + std::to_string(block_size) + " is not a positive multiple of 16");
  }
  block_size_ = block_size;
  highest_block_ = -1;
  total_cost_ = 0;
  sequences_.clear();
  nodes_.clear();
  block_table_.clear();
  tasks_.clear();
  for (const AttentionSequence& sequence : sequences) {
    check(sequence, block_size);
    add_sequence(sequence);
  }
  order_sequences(sequences);
  for (const auto& [cost, index] : order_) {
    add_tasks(index, sequences[static_cast<std::size_t>(index)]);
    total_cost_ += cost;
  }
}

/// Longest first balances the threads; equal costs keep the order of the batch.
void CpuAttentionPlan::order_sequences(std::span<const AttentionSequence> sequences) {
  order_.clear();
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const AttentionSequence& s = sequences[i];
    const std::int64_t rows = std::int64_t{s.num_causal} + s.num_tree;
    const std::int64_t keys = std::int64_t{s.context_len} + s.tree_start + (rows + 1) / 2;
    order_.emplace_back(rows * keys, static_cast<std::int32_t>(i));
  }
  std::sort(order_.begin(), order_.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
}

void CpuAttentionPlan::add_sequence(const AttentionSequence& s) {
  PlannedSequence planned;
  planned.first_row = s.first_row;
  planned.context_len = s.context_len;
  planned.num_causal = s.num_causal;
  planned.tree_start = s.tree_start;
  planned.first_node = static_cast<std::int64_t>(nodes_.size());
  planned.first_block = static_cast<std::int64_t>(block_table_.size());
  sequences_.push_back(planned);
  const std::int32_t keys = s.context_len + s.num_causal + s.tree_start + s.num_tree;
  const std::int32_t blocks = (keys + block_size_ - 1) / block_size_;
  for (const BlockId block : s.block_table.first(static_cast<std::size_t>(blocks))) {
    if (block < 0) fail("block_table holds the negative block " + std::to_string(block));
    highest_block_ = std::max(highest_block_, block);
    block_table_.push_back(block);
  }
  if (s.num_tree > 0) add_nodes(s.tree_parents);
}

void CpuAttentionPlan::add_nodes(std::span<const std::int32_t> parents) {
  const std::size_t first = nodes_.size();
  for (std::size_t i = 0; i < parents.size(); ++i) {
    const std::int32_t parent = parents[i];
    if (parent < -1 || parent >= static_cast<std::int32_t>(i)) {
      fail("tree_parents[" + std::to_string(i) + "] is " + std::to_string(parent) +
           "; allowed: -1 or an earlier node");
    }
    PlannedNode node{};
    if (parent >= 0) {
      node = nodes_[first + static_cast<std::size_t>(parent)];
      ++node.depth;
    }
    node.path[i / 64] |= std::uint64_t{1} << (i % 64);
    nodes_.push_back(node);
  }
}

void CpuAttentionPlan::add_tasks(std::int32_t index, const AttentionSequence& s) {
  const std::size_t first = tasks_.size();
  const auto cut = [&](std::int32_t begin, std::int32_t end) {
    for (std::int32_t row = (end - begin - 1) / kTaskRows * kTaskRows; row >= 0; row -= kTaskRows) {
      PlannedTask task;
      task.sequence = index;
      task.first_row = begin + row;
      task.num_rows = std::min(kTaskRows, end - begin - row);
      tasks_.push_back(task);
    }
  };
  if (s.num_tree > 0) cut(s.num_causal, s.num_causal + s.num_tree);
  if (s.num_causal > 0) cut(0, s.num_causal);
  for (std::size_t t = first; t < tasks_.size(); ++t) {
    tasks_[t].group_first = static_cast<std::int32_t>(first);
    tasks_[t].group_size = static_cast<std::int32_t>(tasks_.size() - first);
  }
}

}  // namespace smartspec::cpu
