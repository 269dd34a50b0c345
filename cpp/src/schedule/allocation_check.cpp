// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "schedule/allocation_check.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>

#include "schedule/size_search.hpp"

namespace smartspec::schedule {
namespace {

template <class Number>
[[noreturn]] void reject(const std::string& field, Number value, const std::string& allowed) {
  throw std::invalid_argument("AllocationProblem." + field + ": " + std::to_string(value) + "; " +
                              allowed);
}

constexpr double kMost = std::numeric_limits<double>::max();

void check_amount(const char* field, double value) {
  if (!(value >= 0 && value <= kMost)) reject(field, value, "must be finite and >= 0");
}

void check_cost(std::span<const CostSegment> cost) {
  if (cost.empty()) reject("cost", 0, "segments; at least one is needed");
  const auto amount = [](double value) { return value >= 0 && value <= kMost; };
  const CostSegment* before = cost.data();
  for (const CostSegment& segment : cost) {
    const auto name = [&](const char* field) {
      return "cost[" + std::to_string(&segment - cost.data()) + "]." + field;
    };
    if (!amount(segment.seconds)) {
      reject(name("seconds"), segment.seconds, "must be finite and >= 0");
    }
    if (!amount(segment.seconds_per_token)) {
      reject(name("seconds_per_token"), segment.seconds_per_token, "must be finite and >= 0");
    }
    if (segment.first_tokens < before->first_tokens) {
      reject(name("first_tokens"), segment.first_tokens, "must not descend");
    }
    if (segment.seconds < before->seconds) {
      reject(name("seconds"), segment.seconds, "must not descend");
    }
    before = &segment;
  }
}

void check_sizes(const AllocationProblem& problem, std::size_t selected) {
  const std::size_t nodes = problem.survival.size();
  const std::size_t requests = num_requests(problem);
  if (nodes > kMaxKeys) reject("survival", nodes, "at most " + std::to_string(kMaxKeys) + " nodes");
  if (selected != nodes) reject("selected", selected, "one for each of the survivals is needed");
  if (!problem.parents.empty() && problem.parents.size() != nodes) {
    reject("parents", problem.parents.size(), "must be empty or as long as survival");
  }
  const auto check = [&](const char* field, std::span<const std::int32_t> values) {
    if (!values.empty() && values.size() != requests) {
      reject(field, values.size(), "must be empty or have one number per request");
    }
  };
  check("min_nodes", problem.min_nodes);
  check("max_nodes", problem.max_nodes);
  check("block_room", problem.block_room);
  if (requests == 0) {
    if (nodes != 0) reject("offsets", requests, "requests cannot have nodes");
    return;
  }
  const auto& offsets = problem.offsets;
  if (offsets.front() != 0) reject("offsets[0]", offsets.front(), "must be 0");
  bool ascending = true;
  for (std::size_t r = 0; r < requests; ++r) ascending &= offsets[r] <= offsets[r + 1];
  if (!ascending) reject("offsets", requests, "requests; must not descend");
  if (static_cast<std::size_t>(offsets[requests]) != nodes) {
    reject("offsets", offsets[requests], "must end with the number of survivals");
  }
}

}  // namespace

void check(const AllocationProblem& problem, std::size_t num_selected) {
  check_sizes(problem, num_selected);
  check_amount("base_value", problem.base_value);
  check_amount("fixed_seconds", problem.fixed_seconds);
  check_cost(problem.cost);
  if (problem.base_tokens < 0) reject("base_tokens", problem.base_tokens, "must be >= 0");
  if (problem.block_size < 0) reject("block_size", problem.block_size, "must be >= 0");
  // What starts above zero stays there: the seconds ascend.
  const CostSegment* first = &problem.cost.front();
  for (const CostSegment& segment : problem.cost) {
    if (segment.first_tokens <= problem.base_tokens) first = &segment;
  }
  const std::int64_t into = std::int64_t{problem.base_tokens} - first->first_tokens;
  const double seconds =
      problem.fixed_seconds + first->seconds +
      static_cast<double>(std::max<std::int64_t>(into, 0)) * first->seconds_per_token;
  if (!(seconds > 0)) reject("cost", seconds, "seconds at base_tokens; must be > 0");
}

void reject_parents(const AllocationProblem& problem) {
  for (std::size_t r = 0; r < num_requests(problem); ++r) {
    for (std::int32_t i = problem.offsets[r]; i < problem.offsets[r + 1]; ++i) {
      const std::int32_t parent = problem.parents[static_cast<std::size_t>(i)];
      if (parent >= -1 && parent < i - problem.offsets[r]) continue;
      reject("parents[" + std::to_string(i) + "]", parent, "must be -1 or an earlier node");
    }
  }
}

}  // namespace smartspec::schedule
