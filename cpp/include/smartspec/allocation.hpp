// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Which draft nodes of a whole batch are worth verifying now: the choice that maximises goodput,
// expected tokens per second of the step.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "smartspec/cost_model.hpp"
#include "smartspec/export.hpp"

namespace smartspec {

/// Borrowed for the call. R requests, N nodes; nodes of one request lie together, in topological
/// order. Survival is clamped to [0, parent's]; NaN and denormal numbers count as 0, as do negative
/// limits, budgets and rooms.
struct AllocationProblem {
  std::span<const std::int32_t> offsets;         // [R + 1] request r has nodes offsets[r]..[r+1]
  std::span<const std::int32_t> parents;         // [N] within the request, -1: root; empty: chains
  std::span<const float> survival;               // [N] P(whole path to the node is accepted)
  std::span<const std::int32_t> min_nodes = {};  // [R] taken whatever they gain; empty: 0
  std::span<const std::int32_t> max_nodes = {};  // [R] empty: no limit
  double base_value = 0;                         // tokens the step emits without drafts, >= 0
  std::int32_t base_tokens = 0;                  // rows of the step without drafts
  double fixed_seconds = 0;             // spent whatever is chosen: drafting that is done already
  std::span<const CostSegment> cost;    // of the step, from base_tokens on
  std::int32_t token_budget = 1 << 30;  // most nodes over all requests
  // KV memory: a request needs another block for every block_size nodes beyond its block_room.
  std::int32_t block_size = 0;  // 0: no limit
  std::int32_t free_blocks = 0;
  std::span<const std::int32_t> block_room = {};  // [R] rows that fit into its last block
};

struct Allocation {
  std::int32_t num_nodes = 0;
  double expected_tokens = 0;  // base_value + survival of the chosen nodes
  double seconds = 0;          // fixed_seconds + cost(base_tokens + num_nodes)
  bool limited_by_budget = false;
  bool limited_by_blocks = false;
};

/// The optimum over all node sets closed under ancestors, found through bucketed survivals: a node
/// never survives more often than its parent, so the best set of a size is the most likely nodes,
/// and only the size has to be searched. With min_nodes those come first, one per request in turn
/// where budget or blocks do not suffice for all. Scarce KV blocks go to the requests that gain
/// most by one; that can miss the optimum slightly. Ties go to the smaller set, then to earlier
/// requests. O(N), up to 2^23 - 1 nodes; after warm-up no heap allocation. (SmartSpec, arXiv
/// 2406.14066, section 4, for one length; TETRIS, 2502.15197, for a fixed size; Sequoia,
/// 2402.12374, for one request.) Keeps scratch: not thread-safe.
class SMARTSPEC_API Allocator {
 public:
  Allocator();
  ~Allocator();
  Allocator(Allocator&&) noexcept;
  Allocator& operator=(Allocator&&) noexcept;

  /// selected[i] = 1 for chosen nodes, else 0. Throws std::invalid_argument when spans disagree in
  /// length, offsets descend, a parent is not an earlier node, cost is empty or descends, a number
  /// is negative or not finite, or the step takes no time.
  Allocation solve(const AllocationProblem& problem, std::span<std::uint8_t> selected);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smartspec
