// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The policy's face, and the choice after drafting: which real nodes are verified now.
#include "smartspec/goodput_policy.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "schedule/goodput_impl.hpp"

namespace smartspec {
namespace {

constexpr std::int32_t kLeastPrefill = 32;  // prompts go on, whatever the targets

void check(const char* field, double value, double low, double high) {
  if (value >= low && value <= high) return;
  throw std::invalid_argument(std::string(field) + " must be in [" + std::to_string(low) + ", " +
                              std::to_string(high) + "], got " + std::to_string(value));
}

GoodputOptions checked(const GoodputOptions& options) {
  check("max_depth", options.max_depth, 0, kMaxTreeNodes);
  check("max_paid_depth", options.max_paid_depth, 0, SurvivalModel::kMaxDepth);
  check("probe_budget", options.probe_budget, 0, 1);
  check("margin", options.margin, 0, 1);
  options.target.validate();
  options.draft.validate();
  return options;
}

}  // namespace

GoodputPolicy::Impl::Impl(const GoodputOptions& given)
    : options(checked(given)), target(options.target, options.cost) {}

/// Seconds of the step with that many rows in all, by this step's segments.
double GoodputPolicy::Impl::seconds_at(std::int32_t num_tokens) const {
  const auto next = std::upper_bound(segments.begin(), segments.end(), num_tokens,
                                     [](std::int32_t tokens, const CostSegment& segment) {
                                       return tokens < segment.first_tokens;
                                     });
  const CostSegment& segment = next == segments.begin() ? segments.front() : *std::prev(next);
  return segment.seconds +
         std::max(0, num_tokens - segment.first_tokens) * segment.seconds_per_token;
}

void GoodputPolicy::Impl::put_limits(std::span<const LengthRequest> requests) {
  min_nodes.clear();
  max_nodes.clear();
  block_room.clear();
  for (const LengthRequest& request : requests) {
    max_nodes.push_back(request.control.max_tokens);
    min_nodes.push_back(std::min(request.control.min_tokens, request.control.max_tokens));
    block_room.push_back(std::max(request.block_room, 0));
  }
  selected.resize(survivals.size());
}

AllocationProblem GoodputPolicy::Impl::problem(const StepView& step, double fixed_seconds) const {
  return {.offsets = offsets,
          .parents = parents,
          .survival = survivals,
          .min_nodes = min_nodes,
          .max_nodes = max_nodes,
          .base_value = static_cast<double>(std::max(step.num_decodes, 1)),
          .base_tokens = step.base.num_tokens,
          .fixed_seconds = fixed_seconds,
          .cost = segments,
          .token_budget = std::max(step.token_budget, 0),
          .block_size = step.block_size,
          .free_blocks = step.free_blocks,
          .block_room = block_room};
}

void GoodputPolicy::Impl::put_trees(std::span<const LengthRequest> requests,
                                    std::span<const DraftChoice> choices,
                                    std::span<TokenTree* const> trees) {
  offsets.assign(1, 0);
  survivals.clear();
  parents.clear();
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const TokenTree* tree = trees[i];
    if (tree != nullptr && !tree->empty()) {
      const std::size_t first = survivals.size();
      survivals.resize(first + static_cast<std::size_t>(tree->size()));
      survival->calibrate(choices[i].proposer, requests[i].id, requests[i].group, *tree,
                          std::span(survivals).subspan(first));
      if (exploring && choices[i].proposer == paying) {
        for (std::int32_t n = 0; n < tree->size(); ++n) {
          const auto depth = static_cast<std::size_t>(tree->depths[static_cast<std::size_t>(n)]);
          float& value = survivals[first + static_cast<std::size_t>(n)];
          value = std::min(1.0F, value * optimism[std::min(depth, optimism.size() - 1)]);
        }
      }
      parents.insert(parents.end(), tree->parents.begin(), tree->parents.end());
    }
    offsets.push_back(static_cast<std::int32_t>(survivals.size()));
  }
  put_limits(requests);
}

/// The fewest most likely nodes of a request that bring `tokens` drafts' worth; all of them where
/// they do not suffice.
std::int32_t GoodputPolicy::Impl::nodes_for(std::size_t request, double tokens) {
  sorted.assign(survivals.begin() + offsets[request], survivals.begin() + offsets[request + 1]);
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  std::int32_t count = 0;
  for (const float value : sorted) {
    if (tokens <= 0 || value <= 0) break;
    tokens -= static_cast<double>(value);
    ++count;
  }
  return count;
}

/// Raises min_nodes to what TPOT targets need, and returns how many nodes the step can take before
/// it becomes too long for them.
std::int32_t GoodputPolicy::Impl::meet_targets(std::span<const LengthRequest> requests,
                                               std::int32_t token_budget, double fixed_seconds) {
  const std::int32_t base = segments.front().first_tokens;
  double seconds = fixed_seconds + seconds_at(base);
  std::int64_t forced = 0;
  for (int round = 0; round < 2; ++round) {
    forced = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const double needed = tokens_needed(requests[i], seconds);
      if (needed > 1) min_nodes[i] = std::max(min_nodes[i], nodes_for(i, needed - 1));
      min_nodes[i] = std::min(min_nodes[i], max_nodes[i]);
      forced += min_nodes[i];
    }
    const auto nodes = static_cast<std::int32_t>(std::min<std::int64_t>(forced, token_budget));
    seconds = fixed_seconds + seconds_at(base + nodes);
  }
  std::int32_t most = token_budget;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const double needed = tokens_needed(requests[i], seconds);
    if (needed <= 0) continue;
    double expected = 1;
    sorted.assign(survivals.begin() + offsets[i], survivals.begin() + offsets[i + 1]);
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const auto own = std::min(static_cast<std::size_t>(min_nodes[i]), sorted.size());
    for (std::size_t n = 0; n < own; ++n) expected += static_cast<double>(sorted[n]);
    const double slack = expected / needed;  // the step may be longer by this factor
    std::int32_t low = 0;
    std::int32_t high = most;
    while (low < high) {
      const std::int32_t middle = low + (high - low + 1) / 2;
      const bool fits = fixed_seconds + seconds_at(base + middle) <= seconds * slack;
      (fits ? low : high) = fits ? middle : middle - 1;
    }
    most = std::min(most, low);
  }
  return std::max(most, static_cast<std::int32_t>(std::min<std::int64_t>(forced, token_budget)));
}

void GoodputPolicy::Impl::prune(std::span<TokenTree* const> trees) {
  for (std::size_t i = 0; i < trees.size(); ++i) {
    if (trees[i] == nullptr || trees[i]->empty()) continue;
    TokenTree& tree = *trees[i];
    const auto first = static_cast<std::size_t>(offsets[i]);
    new_index.assign(static_cast<std::size_t>(tree.size()), -1);
    std::size_t size = 0;
    for (std::size_t n = 0; n < new_index.size(); ++n) {
      if (selected[first + n] == 0) continue;
      const std::int32_t parent = tree.parents[n];
      tree.tokens[size] = tree.tokens[n];
      tree.parents[size] = parent < 0 ? -1 : new_index[static_cast<std::size_t>(parent)];
      tree.depths[size] = tree.depths[n];
      tree.survival[size] = survivals[first + n];
      new_index[n] = static_cast<std::int32_t>(size++);
    }
    tree.truncate(static_cast<std::int32_t>(size));
  }
}

/// Also that nothing was drafted: earlier drafts may still be scored on what is emitted now.
void GoodputPolicy::Impl::keep_paid(const StepView& step, std::span<const LengthRequest> requests,
                                    std::span<const DraftChoice> choices,
                                    std::span<TokenTree* const> trees) {
  static const TokenTree kNothing;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    for (std::int32_t p = 0; p < static_cast<std::int32_t>(step.proposers.size()); ++p) {
      if (!step.proposers[static_cast<std::size_t>(p)].pays_per_depth) continue;
      const bool asked = choices[i].proposer == p && choices[i].depth > 0 && trees[i] != nullptr;
      kept.add(requests[i], p, asked ? choices[i].depth : 0, asked ? *trees[i] : kNothing);
    }
  }
}

void GoodputPolicy::Impl::allocate(const StepView& step, std::span<const LengthRequest> requests,
                                   std::span<const DraftChoice> choices,
                                   std::span<const DraftWork> drafts,
                                   std::span<TokenTree* const> trees) {
  keep_paid(step, requests, choices, trees);
  if (idle) {  // nothing was planned, so nothing is verified
    for (TokenTree* tree : trees) {
      if (tree != nullptr) tree->clear();
    }
    return;
  }
  put_trees(requests, choices, trees);
  learn_stop(step, requests, choices, trees);
  double drafting = 0;
  for (const DraftWork& work : drafts) {
    if (std::isfinite(work.seconds)) drafting += std::max(0.0, work.seconds);
  }
  AllocationProblem now = problem(step, drafting);
  const bool any_target = std::any_of(requests.begin(), requests.end(), [](const auto& request) {
    return request.control.tpot_target > 0;
  });
  if (any_target)
    now.token_budget = meet_targets(requests, now.token_budget, drafting + prompt_seconds);
  Allocation chosen = allocator.solve(now, selected);
  const double none = now.base_value / (drafting + seconds_at(now.base_tokens));
  const bool forced = any_target || std::any_of(min_nodes.begin(), min_nodes.end(),
                                                [](std::int32_t nodes) { return nodes > 0; });
  if (!forced && drafting <= 0 &&
      chosen.expected_tokens < chosen.seconds * none * (1 + options.margin)) {
    std::fill(selected.begin(), selected.end(), std::uint8_t{0});
    chosen = {.num_nodes = 0, .expected_tokens = now.base_value};
  }
  const std::int32_t nodes = std::max(chosen.num_nodes, 1);
  last_price = none * (seconds_at(now.base_tokens + nodes) - seconds_at(now.base_tokens)) / nodes;
  totals.expected_accepted += chosen.expected_tokens - now.base_value;
  prune(trees);
}

GoodputPolicy::GoodputPolicy(const GoodputOptions& options)
    : impl_(std::make_unique<Impl>(options)) {}
GoodputPolicy::~GoodputPolicy() = default;

std::string_view GoodputPolicy::name() const { return "goodput"; }

std::int32_t GoodputPolicy::max_depth() const {
  return std::max(impl_->options.max_depth, impl_->options.max_paid_depth);
}

std::int32_t GoodputPolicy::max_prefill_tokens(const StepView& step,
                                               std::span<const LengthRequest> requests,
                                               std::int32_t wanted) {
  // How long a step may be for the requests that have a target and are not hopelessly behind.
  double longest = -1;
  for (const LengthRequest& request : requests) {
    const double target = request.control.tpot_target;
    if (!(target > 0)) continue;
    const double allowed = target * request.num_output_tokens - request.decode_seconds;
    const double seconds = std::max(allowed, target);
    longest = longest < 0 ? seconds : std::min(longest, seconds);
  }
  if (longest < 0 || wanted <= kLeastPrefill) return wanted;
  std::int32_t low = kLeastPrefill;
  std::int32_t high = wanted;
  StepLoad load = step.base;
  const std::int32_t without = step.base.num_tokens;
  while (low < high) {
    const std::int32_t middle = low + (high - low + 1) / 2;
    load.num_tokens = without + middle;
    const bool fits = impl_->target.predict(load) <= longest;
    (fits ? low : high) = fits ? middle : middle - 1;
  }
  return low;
}

void GoodputPolicy::plan(const StepView& step, std::span<const LengthRequest> requests,
                         std::span<const Candidate> candidates, std::span<DraftChoice> choices) {
  impl_->plan(step, requests, candidates, choices);
}

void GoodputPolicy::allocate(const StepView& step, std::span<const LengthRequest> requests,
                             std::span<const DraftChoice> choices,
                             std::span<const DraftWork> drafts, std::span<TokenTree* const> trees) {
  impl_->allocate(step, requests, choices, drafts, trees);
}

void GoodputPolicy::observe(const StepOutcome& outcome) { impl_->observe(outcome); }

void GoodputPolicy::finish(RequestId id) {
  if (impl_->survival) impl_->survival->finish(id);
}

const CostModel& GoodputPolicy::target_cost() const noexcept { return impl_->target; }

const CostModel* GoodputPolicy::draft_cost(std::int32_t proposer) const noexcept {
  const auto index = static_cast<std::size_t>(proposer);
  return proposer >= 0 && index < impl_->draft.size() ? &impl_->draft[index] : nullptr;
}

const SurvivalModel* GoodputPolicy::survival() const noexcept {
  return impl_->survival ? &*impl_->survival : nullptr;
}

std::shared_ptr<LengthPolicy> make_goodput_policy(const GoodputOptions& options) {
  return std::make_shared<GoodputPolicy>(options);
}

}  // namespace smartspec
