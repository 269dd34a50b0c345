// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "schedule/baseline_support.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace smartspec {

namespace {

template <class T>
void check_range(std::string_view field, T value, T first, T last) {
  // Written so that NaN fails.
  if (value >= first && value <= last) return;
  throw std::invalid_argument(std::string(field) + " must be in [" + std::to_string(first) + ", " +
                              std::to_string(last) + "], got " + std::to_string(value));
}

double sound_seconds(double seconds) {
  return std::isfinite(seconds) && seconds > 0 ? seconds : 0.0;
}

std::int32_t pick_proposer(const StepView& step, const LengthRequest& request,
                           std::span<const Candidate> candidates) {
  const std::int32_t wanted = request.control.proposer;
  for (const Candidate& candidate : candidates) {
    const bool allowed = wanted < 0 || candidate.proposer == wanted;
    if (allowed && candidate.tree != nullptr && !candidate.tree->empty()) return candidate.proposer;
  }
  for (std::size_t p = 0; p < step.proposers.size(); ++p) {
    const auto proposer = static_cast<std::int32_t>(p);
    if (step.proposers[p].pays_per_depth && (wanted < 0 || proposer == wanted)) return proposer;
  }
  return -1;
}

}  // namespace

void require_in_range(std::string_view field, std::int64_t value, std::int64_t first,
                      std::int64_t last) {
  check_range(field, value, first, last);
}

void require_in_range(std::string_view field, double value, double first, double last) {
  check_range(field, value, first, last);
}

void sound_survival(const TokenTree& tree, std::vector<float>& survival) {
  survival.resize(tree.tokens.size());
  for (std::size_t i = 0; i < survival.size(); ++i) {
    const std::int32_t parent = tree.parents[i];
    const float bound = parent < 0 ? 1.0F : survival[static_cast<std::size_t>(parent)];
    const float claim = tree.survival[i];
    survival[i] = claim > 0 ? std::min(claim, bound) : 0.0F;
  }
}

void count_outcome(const StepOutcome& outcome, PolicyStats& stats) {
  ++stats.num_steps;
  stats.measured_seconds += sound_seconds(outcome.seconds);
  for (const DraftWork& work : outcome.drafts) {
    stats.measured_seconds += sound_seconds(work.seconds);
  }
  const auto last = static_cast<std::int32_t>(stats.length_histogram.size()) - 1;
  for (const RequestOutcome& request : outcome.requests) {
    ++stats.length_histogram[static_cast<std::size_t>(std::clamp(request.num_verified, 0, last))];
    stats.num_drafted += request.num_verified;
    stats.num_accepted += request.num_accepted;
  }
}

void TreePruner::prune(TokenTree& tree, std::span<std::uint8_t> keep) {
  const std::size_t size = tree.tokens.size();
  position_.resize(size);
  std::int32_t kept = 0;
  for (std::size_t i = 0; i < size; ++i) {
    const std::int32_t parent = tree.parents[i];
    if (parent >= 0 && keep[static_cast<std::size_t>(parent)] == 0) keep[i] = 0;
    if (keep[i] == 0) continue;
    const auto to = static_cast<std::size_t>(kept);
    position_[i] = kept++;
    tree.tokens[to] = tree.tokens[i];
    tree.parents[to] = parent < 0 ? -1 : position_[static_cast<std::size_t>(parent)];
    tree.depths[to] = tree.depths[i];
    tree.survival[to] = tree.survival[i];
  }
  tree.truncate(kept);
}

void BaselinePolicy::plan(const StepView& step, std::span<const LengthRequest> requests,
                          std::span<const Candidate> candidates, std::span<DraftChoice> choices) {
  if (requests.empty()) return;
  const std::int32_t longest = length(step);
  std::size_t next = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const std::size_t first = next;
    while (next < candidates.size() && candidates[next].request <= static_cast<std::int32_t>(i)) {
      ++next;
    }
    choices[i] = {};
    const std::int32_t depth = std::min(longest, requests[i].max_depth);
    if (depth <= 0) continue;
    const std::int32_t proposer =
        pick_proposer(step, requests[i], candidates.subspan(first, next - first));
    if (proposer < 0) continue;
    choices[i] = {
        .proposer = proposer, .depth = depth, .min_survival = min_survival(proposer, depth)};
  }
}

void PruningPolicy::allocate(const StepView& /*step*/, std::span<const LengthRequest> /*requests*/,
                             std::span<const DraftChoice> /*choices*/,
                             std::span<const DraftWork> /*drafts*/,
                             std::span<TokenTree* const> trees) {
  for (TokenTree* tree : trees) {
    if (tree == nullptr || tree->empty()) continue;
    sound_survival(*tree, survival_);
    keep_.assign(survival_.size(), 0);
    mark(*tree, survival_, keep_);
    pruner_.prune(*tree, keep_);
  }
}

void BatchPruner::collect(std::span<TokenTree* const> trees) {
  offsets.assign(1, 0);
  parents.clear();
  survival.clear();
  for (const TokenTree* tree : trees) {
    if (tree != nullptr) {
      sound_survival(*tree, sound_);
      parents.insert(parents.end(), tree->parents.begin(), tree->parents.end());
      survival.insert(survival.end(), sound_.begin(), sound_.end());
    }
    offsets.push_back(static_cast<std::int32_t>(parents.size()));
  }
  keep.assign(parents.size(), 0);
}

void BatchPruner::prune(std::span<TokenTree* const> trees) {
  for (std::size_t i = 0; i < trees.size(); ++i) {
    if (trees[i] == nullptr) continue;
    const auto first = static_cast<std::size_t>(offsets[i]);
    pruner_.prune(*trees[i], std::span(keep).subspan(first, trees[i]->tokens.size()));
  }
}

}  // namespace smartspec
