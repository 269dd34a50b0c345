// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "schedule/sequoia.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "schedule/baseline_support.hpp"
#include "smartspec/baseline_policies.hpp"

namespace smartspec {

namespace {

/// value(m, rank) at a level: the most that m nodes bring below one parent when its children of
/// ranks below `rank` are placed already. The child of this rank gets 1 + (some) nodes, the later
/// ranks the rest; placing none ends the list.
class ShapeSearch {
 public:
  ShapeSearch(std::int32_t num_nodes, std::int32_t max_depth, std::span<const double> rates)
      : rates_(rates),
        ranks_(rates.size()),
        width_(static_cast<std::size_t>(num_nodes) + 1),
        first_child_(width_, 0.0) {
    for (std::int32_t level = 0; level < max_depth; ++level) {
      if (!add_level()) break;
    }
  }

  [[nodiscard]] TreeShape shape() const {
    TreeShape out;
    out.children.emplace_back();
    place(width_ - 1, sizes_.size(), -1, 1.0, out);
    out.num_nodes = static_cast<std::int32_t>(out.children.size()) - 1;
    return out;
  }

 private:
  /// Values with one more level below the parent, from first_child_: those with one less, of a
  /// parent whose first child is to be placed. False when the level brings nothing.
  bool add_level() {
    std::vector<std::uint16_t> sizes(ranks_ * width_, 0);
    std::vector<double> later(width_, 0.0);  // of rank + 1
    std::vector<double> value(width_, 0.0);
    for (std::size_t rank = ranks_; rank-- > 0;) {
      for (std::size_t m = 1; m < width_; ++m) {
        value[m] = 0;
        for (std::size_t size = 1; size <= m; ++size) {
          const double gain = rates_[rank] * (1 + first_child_[size - 1]) + later[m - size];
          if (gain <= value[m]) continue;
          value[m] = gain;
          sizes[rank * width_ + m] = static_cast<std::uint16_t>(size);
        }
      }
      later = value;
    }
    if (later == first_child_) return false;
    first_child_ = std::move(later);
    sizes_.push_back(std::move(sizes));
    return true;
  }

  void place(std::size_t m, std::size_t levels, std::int32_t parent, double survival,
             TreeShape& out) const {
    if (levels == 0) return;
    const std::vector<std::uint16_t>& sizes = sizes_[levels - 1];
    for (std::size_t rank = 0; rank < ranks_; ++rank) {
      const std::size_t size = sizes[rank * width_ + m];
      if (size == 0) return;
      const auto node = static_cast<std::int32_t>(out.children.size()) - 1;
      out.children[static_cast<std::size_t>(parent + 1)].push_back(node);
      out.children.emplace_back();
      const double chance = survival * rates_[rank];
      out.expected_accepted += chance;
      out.num_levels =
          std::max(out.num_levels, static_cast<std::int32_t>(sizes_.size() - levels) + 1);
      place(size - 1, levels - 1, node, chance, out);
      m -= size;
    }
  }

  std::span<const double> rates_;
  std::size_t ranks_;
  std::size_t width_;  // nodes at most, plus one
  std::vector<double> first_child_;
  std::vector<std::vector<std::uint16_t>> sizes_;  // [levels][ranks * width] nodes of that child
};

class SequoiaPolicy final : public PruningPolicy {
 public:
  explicit SequoiaPolicy(TreeShape shape)
      : PruningPolicy("sequoia", shape.num_levels), shape_(std::move(shape)) {}

 protected:
  /// Siblings rank by survival, then as they come.
  void mark(const TokenTree& tree, std::span<const float> survival,
            std::span<std::uint8_t> keep) override {
    const std::size_t size = keep.size();
    order_.resize(size);
    for (std::size_t i = 0; i < size; ++i) order_[i] = static_cast<std::int32_t>(i);
    // Parents stay before children: they survive at least as often and come earlier.
    std::sort(order_.begin(), order_.end(), [&](std::int32_t a, std::int32_t b) {
      const float left = survival[static_cast<std::size_t>(a)];
      const float right = survival[static_cast<std::size_t>(b)];
      return left != right ? left > right : a < b;
    });
    place_.assign(size, -1);
    num_children_.assign(size + 1, 0);
    for (const std::int32_t node : order_) {
      const auto i = static_cast<std::size_t>(node);
      const std::int32_t parent = tree.parents[i];
      if (parent >= 0 && keep[static_cast<std::size_t>(parent)] == 0) continue;
      const std::int32_t above = parent < 0 ? -1 : place_[static_cast<std::size_t>(parent)];
      const auto& ranks = shape_.children[static_cast<std::size_t>(above + 1)];
      const std::size_t rank = num_children_[static_cast<std::size_t>(parent + 1)]++;
      if (rank >= ranks.size()) continue;
      place_[i] = ranks[rank];
      keep[i] = 1;
    }
  }

 private:
  TreeShape shape_;
  std::vector<std::int32_t> order_;        // [n] most likely first
  std::vector<std::int32_t> place_;        // [n] node of the shape
  std::vector<std::size_t> num_children_;  // [n + 1] seen so far; [0]: of the root
};

}  // namespace

TreeShape best_tree_shape(std::int32_t num_nodes, std::int32_t max_depth,
                          std::span<const double> rates) {
  return ShapeSearch(num_nodes, max_depth, rates).shape();
}

std::shared_ptr<LengthPolicy> make_sequoia_policy(std::int32_t num_nodes, std::int32_t max_depth,
                                                  std::vector<double> rank_acceptance) {
  constexpr std::int64_t kMostRanks = 32;
  require_in_range("num_nodes", std::int64_t{num_nodes}, 1, kMaxTreeNodes);
  require_in_range("max_depth", std::int64_t{max_depth}, 1, kMaxTreeNodes);
  require_in_range("rank_acceptance (entries)", static_cast<std::int64_t>(rank_acceptance.size()),
                   1, kMostRanks);
  for (std::size_t j = 0; j < rank_acceptance.size(); ++j) {
    require_in_range("rank_acceptance[" + std::to_string(j) + "]", rank_acceptance[j], 0.0, 1.0);
  }
  return std::make_shared<SequoiaPolicy>(best_tree_shape(num_nodes, max_depth, rank_acceptance));
}

}  // namespace smartspec
