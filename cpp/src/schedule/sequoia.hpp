// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The tree shape with the highest expected length (Sequoia, arXiv 2402.12374, section 4.1).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace smartspec {

struct TreeShape {
  /// children[0] are those of the root (the last verified token), children[i + 1] those of node i:
  /// their nodes by rank, without gaps. Parents come before children.
  std::vector<std::vector<std::int32_t>> children;
  std::int32_t num_nodes = 0;
  std::int32_t num_levels = 0;
  double expected_accepted = 0;  // sum over nodes of the product of rates on their path
};

/// At most num_nodes nodes and max_depth levels when the child of rank j is accepted with rates[j],
/// given that its parent is; nodes that add nothing are left out.
/// O(num_nodes^2 * rates * max_depth).
TreeShape best_tree_shape(std::int32_t num_nodes, std::int32_t max_depth,
                          std::span<const double> rates);

}  // namespace smartspec
