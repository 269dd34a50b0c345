// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the baseline policies share: the choice among several proposers, counts for stats(), and
// pruning trees by rules. Not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "smartspec/length_policy.hpp"
#include "smartspec/token_tree.hpp"

namespace smartspec {

/// Throws std::invalid_argument naming `field` unless first <= value <= last.
void require_in_range(std::string_view field, std::int64_t value, std::int64_t first,
                      std::int64_t last);
void require_in_range(std::string_view field, double value, double first, double last);

/// survival[i] of the tree as it can be compared: NaN counts as 0, never above the parent's, so
/// that every "at least x" is closed under ancestors.
void sound_survival(const TokenTree& tree, std::vector<float>& survival);

/// Counts for stats(). Times that are not finite or negative count as 0.
void count_outcome(const StepOutcome& outcome, PolicyStats& stats);

class TreePruner {
 public:
  /// Keeps the nodes with keep[i] != 0 all of whose ancestors are kept too, in their order.
  /// Clears keep[i] of the others. No heap allocation once it has seen a tree of that size.
  void prune(TokenTree& tree, std::span<std::uint8_t> keep);

 private:
  std::vector<std::int32_t> position_;  // [n] of a kept node in the pruned tree
};

/// One length for all requests of a step, full drafts kept. The proposer of a request is the first
/// that has a candidate for it which is not empty, else the first that pays; of these only the one
/// that the request's control names, if any.
class BaselinePolicy : public LengthPolicy {
 public:
  BaselinePolicy(std::string_view name, std::int32_t max_tokens)
      : name_(name), max_tokens_(max_tokens) {}
  [[nodiscard]] std::string_view name() const override { return name_; }
  [[nodiscard]] std::int32_t max_depth() const override { return max_tokens_; }
  void plan(const StepView& step, std::span<const LengthRequest> requests,
            std::span<const Candidate> candidates, std::span<DraftChoice> choices) override;
  void observe(const StepOutcome& outcome) override { count_outcome(outcome, stats_); }
  [[nodiscard]] PolicyStats stats() const override { return stats_; }

 protected:
  /// Levels at this step; called once per step that has requests.
  virtual std::int32_t length(const StepView& /*step*/) { return max_tokens_; }
  /// Below this a draft of `depth` levels by a paying proposer has no use for a path.
  [[nodiscard]] virtual float min_survival(std::int32_t /*proposer*/,
                                           std::int32_t /*depth*/) const {
    return 0;
  }

  PolicyStats stats_;

 private:
  std::string_view name_;  // of static storage
  std::int32_t max_tokens_;
};

/// A rule that looks at one tree at a time.
class PruningPolicy : public BaselinePolicy {
 public:
  using BaselinePolicy::BaselinePolicy;
  void allocate(const StepView& step, std::span<const LengthRequest> requests,
                std::span<const DraftChoice> choices, std::span<const DraftWork> drafts,
                std::span<TokenTree* const> trees) override;

 protected:
  /// keep[i] is 0 on entry; `survival` is sound.
  virtual void mark(const TokenTree& tree, std::span<const float> survival,
                    std::span<std::uint8_t> keep) = 0;

 private:
  std::vector<float> survival_;
  std::vector<std::uint8_t> keep_;
  TreePruner pruner_;
};

/// A rule that looks at the nodes of all trees at once.
class BatchPruner {
 public:
  /// Collects the nodes; replaces what was collected before.
  void collect(std::span<TokenTree* const> trees);
  /// Prunes the trees given to collect() by `keep`.
  void prune(std::span<TokenTree* const> trees);

  std::vector<std::int32_t> offsets;  // [trees + 1]
  std::vector<std::int32_t> parents;  // [nodes] within the tree
  std::vector<float> survival;        // [nodes] sound
  std::vector<std::uint8_t> keep;     // [nodes] 0 after collect()

 private:
  std::vector<float> sound_;
  TreePruner pruner_;
};

}  // namespace smartspec
