// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Random allocation problems and slow, obvious ways to solve them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "smartspec/allocation.hpp"

namespace smartspec::schedule_test {

using Ints = std::vector<std::int32_t>;

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::int32_t integer(std::int32_t low, std::int32_t high) {
    return std::uniform_int_distribution<std::int32_t>(low, high)(engine_);
  }
  double real(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(engine_);
  }
  bool chance(double p) { return real(0, 1) < p; }

 private:
  std::mt19937_64 engine_;
};

/// Owns what an AllocationProblem borrows.
struct Instance {
  Ints offsets{0};
  Ints parents;
  std::vector<float> survival;
  Ints min_nodes, max_nodes, block_room;
  std::vector<CostSegment> cost;
  AllocationProblem numbers;  // without its spans

  AllocationProblem problem() const {
    AllocationProblem problem = numbers;
    problem.offsets = offsets;
    problem.parents = parents;
    problem.survival = survival;
    problem.min_nodes = min_nodes;
    problem.max_nodes = max_nodes;
    problem.block_room = block_room;
    problem.cost = cost;
    return problem;
  }
  std::int32_t requests() const { return static_cast<std::int32_t>(offsets.size()) - 1; }
  std::int32_t nodes() const { return static_cast<std::int32_t>(survival.size()); }
  std::int32_t size_of(std::int32_t r) const { return offsets[r + 1] - offsets[r]; }
  /// Within the whole batch; -1: root.
  std::int32_t parent_of(std::int32_t r, std::int32_t node) const {
    const std::int32_t parent = parents.empty() ? node - offsets[r] - 1 : parents[node];
    return parent < 0 ? -1 : parent + offsets[r];
  }
  double seconds(std::int64_t chosen) const {
    const std::int64_t tokens = numbers.base_tokens + chosen;
    const CostSegment* at = &cost.front();
    for (const CostSegment& segment : cost) at = segment.first_tokens <= tokens ? &segment : at;
    const auto into = static_cast<double>(std::max<std::int64_t>(tokens - at->first_tokens, 0));
    return numbers.fixed_seconds + at->seconds + into * at->seconds_per_token;
  }
  std::int32_t blocks(std::int32_t r, std::int32_t chosen) const {
    if (numbers.block_size == 0) return 0;
    const std::int64_t room = block_room.empty() ? 0 : std::max(block_room[r], 0);
    const std::int64_t more = std::max<std::int64_t>(chosen - room, 0);
    return static_cast<std::int32_t>((more + numbers.block_size - 1) / numbers.block_size);
  }
  std::vector<double> clamped() const {
    std::vector<double> values;
    for (std::int32_t r = 0; r < requests(); ++r) {
      for (std::int32_t i = offsets[r]; i < offsets[r + 1]; ++i) {
        const std::int32_t parent = parent_of(r, i);
        const float least = std::numeric_limits<float>::min();
        const double value = survival[i] >= least ? static_cast<double>(survival[i]) : 0;
        values.push_back(std::min(value, parent < 0 ? 1.0 : values[parent]));
      }
    }
    return values;
  }
};

/// The nodes of each request, the most likely first, the earlier one among equals.
inline std::vector<Ints> ranking(const Instance& in, const std::vector<double>& values) {
  std::vector<Ints> ranks;
  for (std::int32_t r = 0; r < in.requests(); ++r) {
    Ints nodes;
    for (std::int32_t i = in.offsets[r]; i < in.offsets[r + 1]; ++i) nodes.push_back(i);
    std::sort(nodes.begin(), nodes.end(), [&](std::int32_t a, std::int32_t b) {
      return values[a] > values[b] || (values[a] == values[b] && a < b);
    });
    ranks.push_back(nodes);
  }
  return ranks;
}

inline Ints most_nodes(const Instance& in) {
  Ints most;
  for (std::int32_t r = 0; r < in.requests(); ++r) {
    most.push_back(in.max_nodes.empty() ? in.size_of(r)
                                        : std::clamp(in.max_nodes[r], 0, in.size_of(r)));
  }
  return most;
}

/// How many nodes each request gets whatever they gain: one each in turn while there is room.
inline Ints forced_nodes(const Instance& in) {
  const Ints most = most_nodes(in);
  Ints forced(most.size(), 0);
  if (in.min_nodes.empty()) return forced;
  std::int64_t tokens = std::max(in.numbers.token_budget, 0);
  std::int32_t blocks = std::max(in.numbers.free_blocks, 0);
  for (bool any = true; any;) {
    any = false;
    for (std::int32_t r = 0; r < in.requests(); ++r) {
      if (forced[r] >= std::min(in.min_nodes[r], most[r])) continue;
      const std::int32_t opens = in.blocks(r, forced[r] + 1) - in.blocks(r, forced[r]);
      if (tokens == 0 || opens > blocks) continue;
      ++forced[r];
      --tokens;
      blocks -= opens;
      any = true;
    }
  }
  return forced;
}

struct Best {
  double goodput = 0;
  std::int64_t size = 0;  // the smallest that reaches it, over all nodes
};

/// Sorts all candidates and tries every size. Without blocks.
inline Best sort_and_scan(const Instance& in) {
  const std::vector<double> values = in.clamped();
  const std::vector<Ints> ranks = ranking(in, values);
  const Ints forced = forced_nodes(in);
  const Ints most = most_nodes(in);
  double value = in.numbers.base_value;
  std::int64_t size = 0;
  std::vector<double> rest;
  for (std::int32_t r = 0; r < in.requests(); ++r) {
    for (std::int32_t i = 0; i < most[r]; ++i) {
      const double survival = values[ranks[r][i]];
      if (i >= forced[r]) {
        rest.push_back(survival);
      } else {
        value += survival;
        ++size;
      }
    }
  }
  std::sort(rest.begin(), rest.end(), std::greater<>());
  Best best{value / in.seconds(size), size};
  for (const double survival : rest) {
    if (size >= std::max(in.numbers.token_budget, 0)) break;
    value += survival;
    ++size;
    const double goodput = value / in.seconds(size);
    if (goodput > best.goodput) best = {goodput, size};
  }
  return best;
}

/// Tries every set that is closed under ancestors. Up to about 14 nodes.
inline Best exhaustive(const Instance& in) {
  const std::vector<double> values = in.clamped();
  const std::vector<Ints> ranks = ranking(in, values);
  const Ints forced = forced_nodes(in);
  const Ints most = most_nodes(in);
  std::uint32_t must = 0;
  Ints parents(values.size());
  Ints owner(values.size());
  for (std::int32_t r = 0; r < in.requests(); ++r) {
    for (std::int32_t i = 0; i < forced[r]; ++i) must |= 1U << ranks[r][i];
    for (std::int32_t i = in.offsets[r]; i < in.offsets[r + 1]; ++i) {
      parents[i] = in.parent_of(r, i);
      owner[i] = r;
    }
  }
  Best best;
  for (std::uint32_t set = 0; set < 1U << values.size(); ++set) {
    if ((set & must) != must) continue;
    bool allowed = true;
    double value = in.numbers.base_value;
    Ints count(static_cast<std::size_t>(in.requests()), 0);
    std::int32_t size = 0;
    for (std::int32_t i = 0; i < in.nodes(); ++i) {
      if ((set >> i & 1) == 0) continue;
      allowed &= parents[i] < 0 || (set >> parents[i] & 1) != 0;
      value += values[i];
      ++count[owner[i]];
      ++size;
    }
    std::int32_t blocks = 0;
    for (std::int32_t r = 0; r < in.requests(); ++r) {
      allowed &= count[r] <= most[r];
      blocks += in.blocks(r, count[r]);
    }
    allowed &= size <= std::max(in.numbers.token_budget, 0);
    allowed &= in.numbers.block_size == 0 || blocks <= std::max(in.numbers.free_blocks, 0);
    if (!allowed) continue;
    const double goodput = value / in.seconds(size);
    if (goodput > best.goodput || size == 0) best = {goodput, size};
  }
  return best;
}

using Table = std::vector<double>;  // [size] the best value of exactly so many nodes

inline Table merge(const Table& a, const Table& b) {
  Table sum(a.size() + b.size() - 1, -1e300);
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < b.size(); ++j) sum[i + j] = std::max(sum[i + j], a[i] + b[j]);
  }
  return sum;
}

/// Tree knapsack: children before parents, then requests one after the other. Knows nothing of
/// sorting. Without min_nodes and blocks.
inline Best tree_knapsack(const Instance& in) {
  const std::vector<double> values = in.clamped();
  const Ints most = most_nodes(in);
  Table all{0.0};
  for (std::int32_t r = 0; r < in.requests(); ++r) {
    std::vector<Table> below(static_cast<std::size_t>(in.size_of(r)), Table{0.0});
    Table roots{0.0};
    for (std::int32_t i = in.offsets[r + 1] - 1; i >= in.offsets[r]; --i) {
      Table& mine = below[i - in.offsets[r]];
      for (double& value : mine) value += values[i];
      mine.insert(mine.begin(), 0.0);  // or nothing of it
      const std::int32_t parent = in.parent_of(r, i);
      Table& above = parent < 0 ? roots : below[parent - in.offsets[r]];
      above = merge(above, mine);
    }
    roots.resize(std::min<std::size_t>(roots.size(), static_cast<std::size_t>(most[r]) + 1));
    all = merge(all, roots);
  }
  Best best;
  const std::int64_t last = std::min<std::int64_t>(static_cast<std::int64_t>(all.size()) - 1,
                                                   std::max(in.numbers.token_budget, 0));
  for (std::int64_t size = 0; size <= last; ++size) {
    const double goodput = (in.numbers.base_value + all[size]) / in.seconds(size);
    if (goodput > best.goodput || size == 0) best = {goodput, size};
  }
  return best;
}

/// Exact with blocks: for every size and number of blocks the best value, request by request.
inline Best block_knapsack(const Instance& in) {
  const std::vector<double> values = in.clamped();
  const std::vector<Ints> ranks = ranking(in, values);
  const Ints forced = forced_nodes(in);
  const Ints most = most_nodes(in);
  const std::int32_t free_blocks = std::max(in.numbers.free_blocks, 0);
  const std::int32_t last = std::min(in.nodes(), std::max(in.numbers.token_budget, 0));
  std::vector<Table> best_value(static_cast<std::size_t>(free_blocks) + 1,
                                Table(static_cast<std::size_t>(last) + 1, -1e300));
  best_value[0][0] = in.numbers.base_value;
  for (std::int32_t r = 0; r < in.requests(); ++r) {
    auto next = best_value;
    for (Table& row : next) std::fill(row.begin(), row.end(), -1e300);
    double value = 0;
    for (std::int32_t count = 0; count <= most[r]; ++count) {
      if (count > 0) value += values[ranks[r][count - 1]];
      if (count < forced[r]) continue;
      const std::int32_t blocks = in.blocks(r, count);
      for (std::int32_t b = 0; b + blocks <= free_blocks; ++b) {
        for (std::int32_t n = 0; n + count <= last; ++n) {
          double& there = next[b + blocks][n + count];
          there = std::max(there, best_value[b][n] + value);
        }
      }
    }
    best_value = std::move(next);
  }
  Best best{-1, 0};
  for (std::int32_t n = 0; n <= last; ++n) {
    for (const Table& row : best_value) {
      const double goodput = row[n] / in.seconds(n);
      if (row[n] >= 0 && goodput > best.goodput) best = {goodput, n};
    }
  }
  return best;
}

}  // namespace smartspec::schedule_test
