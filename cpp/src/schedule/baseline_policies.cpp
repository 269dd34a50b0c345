// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/baseline_policies.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "schedule/baseline_support.hpp"
#include "smartspec/allocation.hpp"

namespace smartspec {

namespace {

void require_tokens(std::int32_t max_tokens) {
  require_in_range("max_tokens", std::int64_t{max_tokens}, 1, kMaxTreeNodes);
}

/// The batch is the decoding requests: vLLM counts prefills too, so its length jumps whenever a
/// prompt arrives (vLLM issue 51466).
class TablePolicy final : public BaselinePolicy {
 public:
  TablePolicy(std::vector<BatchLength> table, std::int32_t longest)
      : BaselinePolicy("table", longest), table_(std::move(table)) {}

 protected:
  std::int32_t length(const StepView& step) override {
    for (const BatchLength& row : table_) {
      if (step.num_decodes >= row.first && step.num_decodes <= row.last) return row.num_tokens;
    }
    return 0;
  }

 private:
  std::vector<BatchLength> table_;
};

class ThresholdPolicy final : public PruningPolicy {
 public:
  ThresholdPolicy(std::int32_t max_tokens, double threshold)
      : PruningPolicy("threshold", max_tokens), least_(static_cast<float>(1 - threshold)) {}

 protected:
  [[nodiscard]] float min_survival(std::int32_t /*proposer*/,
                                   std::int32_t /*depth*/) const override {
    return least_;
  }
  void mark(const TokenTree& /*tree*/, std::span<const float> survival,
            std::span<std::uint8_t> keep) override {
    for (std::size_t i = 0; i < keep.size(); ++i) keep[i] = survival[i] >= least_ ? 1 : 0;
  }

 private:
  float least_;
};

class DiscoPolicy final : public PruningPolicy {
 public:
  DiscoPolicy(std::int32_t max_tokens, double confidence)
      : PruningPolicy("disco", max_tokens), confidence_(static_cast<float>(confidence)) {}

 protected:
  /// Tokens of at least `confidence` each survive at least confidence^depth: what is below stops.
  /// The rule itself speaks of single tokens, which a bound on whole paths cannot say, so a paying
  /// proposer drafts somewhat deeper here than in the paper.
  [[nodiscard]] float min_survival(std::int32_t /*proposer*/, std::int32_t depth) const override {
    constexpr double kRounding = 0.999;
    return static_cast<float>(kRounding * std::pow(static_cast<double>(confidence_), depth));
  }
  void mark(const TokenTree& tree, std::span<const float> survival,
            std::span<std::uint8_t> keep) override {
    for (std::size_t i = 0; i < keep.size(); ++i) {
      const std::int32_t parent = tree.parents[i];
      const float before = parent < 0 ? 1.0F : survival[static_cast<std::size_t>(parent)];
      // Claims are products: dividing (c * before) by before may come out a rounding below c.
      constexpr float kRounding = 1 - 1e-6F;
      const float claim = before > 0 ? survival[i] / before : 0.0F;
      keep[i] = claim >= kRounding * confidence_ ? 1 : 0;
    }
  }

 private:
  float confidence_;
};

class DynamicDepthPolicy final : public PruningPolicy {
 public:
  DynamicDepthPolicy(std::int32_t max_tokens, double threshold)
      : PruningPolicy("dynamic_depth", max_tokens), threshold_(threshold) {}

  void allocate(const StepView& step, std::span<const LengthRequest> requests,
                std::span<const DraftChoice> choices, std::span<const DraftWork> drafts,
                std::span<TokenTree* const> trees) override {
    widths_.resize(std::max(widths_.size(), step.proposers.size()), 0);
    for (std::size_t i = 0; i < trees.size() && i < choices.size(); ++i) {
      const auto proposer = static_cast<std::size_t>(std::max(choices[i].proposer, 0));
      if (trees[i] == nullptr || trees[i]->empty() || proposer >= widths_.size()) continue;
      const bool chain = trees[i]->depths.back() + 1 == trees[i]->size();
      widths_[proposer] = std::max(widths_[proposer], std::uint8_t{chain ? kChain : kTree});
    }
    PruningPolicy::allocate(step, requests, choices, drafts, trees);
  }

 protected:
  /// In a chain the sum of a level is its one survival, so drafting can stop there. In a tree no
  /// path knows its level's sum: a proposer that was not seen drafting chains drafts in full.
  [[nodiscard]] float min_survival(std::int32_t proposer, std::int32_t /*depth*/) const override {
    const auto p = static_cast<std::size_t>(proposer);
    return p < widths_.size() && widths_[p] == kChain ? static_cast<float>(threshold_) : 0.0F;
  }
  void mark(const TokenTree& tree, std::span<const float> survival,
            std::span<std::uint8_t> keep) override {
    sums_.assign(keep.size() + 1, 0.0);
    for (std::size_t i = 0; i < keep.size(); ++i) {
      sums_[static_cast<std::size_t>(tree.depths[i])] += static_cast<double>(survival[i]);
    }
    std::int32_t depth = 0;
    const double threshold = static_cast<double>(static_cast<float>(threshold_));
    while (static_cast<std::size_t>(depth) < keep.size() &&
           sums_[static_cast<std::size_t>(depth)] >= threshold) {
      ++depth;
    }
    for (std::size_t i = 0; i < keep.size(); ++i) keep[i] = tree.depths[i] < depth ? 1 : 0;
  }

 private:
  static constexpr std::uint8_t kChain = 1;
  static constexpr std::uint8_t kTree = 2;
  double threshold_;
  std::vector<double> sums_;          // [levels]
  std::vector<std::uint8_t> widths_;  // [proposers] 0: not seen yet
};

class TetrisPolicy final : public BaselinePolicy {
 public:
  TetrisPolicy(std::int32_t max_tokens, std::int32_t capacity)
      : BaselinePolicy("tetris", max_tokens), capacity_(capacity) {}

  void allocate(const StepView& step, std::span<const LengthRequest> /*requests*/,
                std::span<const DraftChoice> /*choices*/, std::span<const DraftWork> /*drafts*/,
                std::span<TokenTree* const> trees) override {
    batch_.collect(trees);
    const std::size_t size = batch_.keep.size();
    const auto budget =
        static_cast<std::size_t>(std::max(std::min(capacity_, step.token_budget), 0));
    if (size <= budget) return;
    order_.clear();
    for (std::size_t i = 0; i < trees.size(); ++i) {
      const auto first = static_cast<std::size_t>(batch_.offsets[i]);
      const auto last = static_cast<std::size_t>(batch_.offsets[i + 1]);
      for (std::size_t n = first; n < last; ++n) {
        order_.push_back({.survival = batch_.survival[n],
                          .depth = trees[i]->depths[n - first],
                          .node = static_cast<std::int32_t>(n)});
      }
    }
    std::nth_element(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(budget),
                     order_.end());
    for (std::size_t k = 0; k < budget; ++k) {
      batch_.keep[static_cast<std::size_t>(order_[k].node)] = 1;
    }
    batch_.prune(trees);
  }

 private:
  /// Ties go to the shallower node, so that proposers without claims share the capacity, then to
  /// the earlier one: closed under ancestors.
  struct Item {
    float survival = 0;
    std::int32_t depth = 0;
    std::int32_t node = 0;  // of the batch
    bool operator<(const Item& other) const {
      if (survival != other.survival) return survival > other.survival;
      if (depth != other.depth) return depth < other.depth;
      return node < other.node;
    }
  };
  std::int32_t capacity_;
  BatchPruner batch_;
  std::vector<Item> order_;
};

/// What vLLM's table knows: rows, each with logits. Neither context nor prompts nor what was learnt
/// later. Drafting that was done already counts with its measured time, where vLLM has a second
/// table by batch size.
class FullDraftPolicy final : public BaselinePolicy {
 public:
  FullDraftPolicy(std::int32_t max_tokens, CostCoefficients target)
      : BaselinePolicy("full_draft", max_tokens),
        target_(std::move(target), CostModelOptions{.learn = false}) {}

  void allocate(const StepView& step, std::span<const LengthRequest> /*requests*/,
                std::span<const DraftChoice> /*choices*/, std::span<const DraftWork> drafts,
                std::span<TokenTree* const> trees) override {
    batch_.collect(trees);
    const std::int32_t base_tokens = std::max(step.base.num_tokens, 0);
    const std::int32_t num_decodes = std::max(step.num_decodes, 0);
    const StepLoad load{.num_tokens = base_tokens,
                        .num_logits = std::min(num_decodes, base_tokens)};
    target_.segments(load, 0, base_tokens + static_cast<std::int32_t>(batch_.keep.size()), cost_);
    const AllocationProblem problem{.offsets = batch_.offsets,
                                    .parents = batch_.parents,
                                    .survival = batch_.survival,
                                    .base_value = static_cast<double>(num_decodes),
                                    .base_tokens = base_tokens,
                                    .fixed_seconds = spent(drafts),
                                    .cost = cost_,
                                    .token_budget = std::max(step.token_budget, 0)};
    const Allocation chosen = allocator_.solve(problem, batch_.keep);
    stats_.predicted_seconds += chosen.seconds;
    stats_.expected_accepted += chosen.expected_tokens - problem.base_value;
    batch_.prune(trees);
  }

 private:
  static double spent(std::span<const DraftWork> drafts) {
    double seconds = 0;
    for (const DraftWork& work : drafts) {
      if (std::isfinite(work.seconds) && work.seconds > 0) seconds += work.seconds;
    }
    return seconds;
  }

  CostModel target_;
  Allocator allocator_;
  BatchPruner batch_;
  std::vector<CostSegment> cost_;
};

}  // namespace

std::shared_ptr<LengthPolicy> make_table_policy(std::vector<BatchLength> table) {
  if (table.empty()) throw std::invalid_argument("table must have at least one row");
  std::int64_t before = 0;
  std::int32_t longest = 0;
  for (std::size_t i = 0; i < table.size(); ++i) {
    const std::string row = "table[" + std::to_string(i) + "].";
    constexpr std::int64_t kLargest = 1 << 30;
    require_in_range(row + "first (behind the row before)", table[i].first, before + 1, kLargest);
    require_in_range(row + "last", table[i].last, table[i].first, kLargest);
    require_in_range(row + "num_tokens", std::int64_t{table[i].num_tokens}, 0, kMaxTreeNodes);
    before = table[i].last;
    longest = std::max(longest, table[i].num_tokens);
  }
  return std::make_shared<TablePolicy>(std::move(table), longest);
}

std::shared_ptr<LengthPolicy> make_threshold_policy(std::int32_t max_tokens, double threshold) {
  require_tokens(max_tokens);
  require_in_range("threshold", threshold, 0.0, 1.0);
  return std::make_shared<ThresholdPolicy>(max_tokens, threshold);
}

std::shared_ptr<LengthPolicy> make_disco_policy(std::int32_t max_tokens, double confidence) {
  require_tokens(max_tokens);
  require_in_range("confidence", confidence, 0.0, 1.0);
  return std::make_shared<DiscoPolicy>(max_tokens, confidence);
}

std::shared_ptr<LengthPolicy> make_tetris_policy(std::int32_t max_tokens, std::int32_t capacity) {
  require_tokens(max_tokens);
  require_in_range("capacity", std::int64_t{capacity}, 0, 1 << 30);
  return std::make_shared<TetrisPolicy>(max_tokens, capacity);
}

std::shared_ptr<LengthPolicy> make_full_draft_policy(std::int32_t max_tokens,
                                                     CostCoefficients target) {
  require_tokens(max_tokens);
  return std::make_shared<FullDraftPolicy>(max_tokens, std::move(target));
}

std::shared_ptr<LengthPolicy> make_dynamic_depth_policy(std::int32_t max_tokens, double threshold) {
  require_tokens(max_tokens);
  require_in_range("threshold", threshold, 0.0, 1e9);
  return std::make_shared<DynamicDepthPolicy>(max_tokens, threshold);
}

}  // namespace smartspec
