// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What one forward pass needs to know about its sequences, worked out once and used by every layer.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "backend/backend.hpp"

namespace smartspec::cpu {

inline constexpr std::int32_t kMaxTreeNodes = 256;
/// Rows of one attention task: they read each key and value once, together.
inline constexpr std::int32_t kTaskRows = 16;

/// Ancestors of a tree node, itself included. Nodes come after their parents, so the set bits in
/// ascending order are the path from the root down: ascending positions.
using AncestorSet = std::array<std::uint64_t, kMaxTreeNodes / 64>;

/// Calls f(node) for every member, ascending.
template <class F>
void for_each_node(const AncestorSet& set, F&& f) {
  for (std::size_t w = 0; w < set.size(); ++w) {
    for (std::uint64_t bits = set[w]; bits != 0; bits &= bits - 1) {
      f(static_cast<std::int32_t>(w * 64) + __builtin_ctzll(bits));
    }
  }
}

struct PlannedSequence {
  std::int32_t first_row = 0;
  std::int32_t context_len = 0;
  std::int32_t num_causal = 0;
  std::int32_t tree_start = 0;
  std::int64_t first_node = 0;   // into nodes
  std::int64_t first_block = 0;  // into block_table
};

struct PlannedNode {
  AncestorSet path;        // the node itself included
  std::int32_t depth = 0;  // 0: child of the last causal token
};

/// Consecutive rows of one sequence, all causal or all tree nodes.
struct PlannedTask {
  std::int32_t sequence = 0;
  std::int32_t first_row = 0;  // within the sequence
  std::int32_t num_rows = 0;
  // Tasks of one sequence lie together; heads go outside of rows, so that the keys of one head stay
  // in cache while all rows of the sequence pass over them.
  std::int32_t group_first = 0;  // first task of this sequence
  std::int32_t group_size = 0;
};

class CpuAttentionPlan final : public AttentionPlan {
 public:
  /// Replaces the contents; keeps the memory. Throws std::invalid_argument naming the field.
  void build(std::span<const AttentionSequence> sequences, std::int32_t block_size);

  [[nodiscard]] std::int32_t block_size() const noexcept { return block_size_; }
  /// Tasks of all sequences, the costliest sequence first, and its longest rows first.
  [[nodiscard]] std::span<const PlannedTask> tasks() const noexcept { return tasks_; }
  [[nodiscard]] const PlannedSequence& sequence(std::int32_t i) const noexcept {
    return sequences_[static_cast<std::size_t>(i)];
  }
  [[nodiscard]] const PlannedNode& node(const PlannedSequence& s, std::int32_t i) const noexcept {
    return nodes_[static_cast<std::size_t>(s.first_node + i)];
  }
  [[nodiscard]] const BlockId* block_table(const PlannedSequence& s) const noexcept {
    return block_table_.data() + s.first_block;
  }
  [[nodiscard]] BlockId highest_block() const noexcept { return highest_block_; }
  [[nodiscard]] std::int64_t total_cost() const noexcept { return total_cost_; }

 private:
  void add_sequence(const AttentionSequence& sequence);
  void add_nodes(std::span<const std::int32_t> parents);
  void order_sequences(std::span<const AttentionSequence> sequences);
  void add_tasks(std::int32_t index, const AttentionSequence& sequence);

  std::int32_t block_size_ = 0;
  BlockId highest_block_ = -1;
  std::int64_t total_cost_ = 0;
  std::vector<PlannedSequence> sequences_;
  std::vector<PlannedNode> nodes_;
  std::vector<BlockId> block_table_;
  std::vector<PlannedTask> tasks_;
  std::vector<std::pair<std::int64_t, std::int32_t>> order_;  // cost, sequence
};

}  // namespace smartspec::cpu
