// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What makes an allocation problem one. Internal. Errors: std::invalid_argument naming the field,
// the value and what is allowed.
#pragma once

#include <cstddef>

#include "smartspec/allocation.hpp"

namespace smartspec::schedule {

inline std::size_t num_requests(const AllocationProblem& problem) {
  return problem.offsets.empty() ? 0 : problem.offsets.size() - 1;
}

/// All but the parents, which are looked at where they are used.
void check(const AllocationProblem& problem, std::size_t num_selected);
/// Throws for the first parent that is not an earlier node.
void reject_parents(const AllocationProblem& problem);

}  // namespace smartspec::schedule
