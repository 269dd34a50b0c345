// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "schedule/turbospec.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>

#include "schedule/baseline_support.hpp"
#include "smartspec/baseline_policies.hpp"

namespace smartspec {

namespace {

constexpr double kFreeDraftShare = 0.04;  // of the target's time, for prompt lookup
constexpr double kLargestAcceptance = 0.999;

/// Two deviations from the authors' branch. It feeds the tokens of the step without drafts twice
/// (once as rows, once as one per request), which the negative coefficient per request of its own
/// fits takes back; coefficients here are measured with every row counted once, so rows are counted
/// once. And it bars requests from speculating until they end after a length of 0, because its
/// draft models lose their cache then; ours catch up.
class TurboSpecPolicy final : public BaselinePolicy {
 public:
  explicit TurboSpecPolicy(const TurboSpecOptions& options)
      : BaselinePolicy("turbospec", options.max_tokens),
        options_(options),
        target_(options.target, CostModelOptions{.learn = false}),
        draft_(options.draft, CostModelOptions{.learn = false}),
        length_(options.max_tokens) {}

  void allocate(const StepView& step, std::span<const LengthRequest> /*requests*/,
                std::span<const DraftChoice> choices, std::span<const DraftWork> /*drafts*/,
                std::span<TokenTree* const> trees) override {
    if (!deciding_) return;
    deciding_ = false;
    Batch batch{.step = &step};
    for (std::size_t i = 0; i < trees.size(); ++i) {
      if (trees[i] == nullptr || trees[i]->empty()) continue;
      ++batch.num_matched;
      batch.num_paid += pays(step, choices[i].proposer) ? 1 : 0;
      const std::vector<std::int32_t>& depths = trees[i]->depths;
      batch.longest = std::max(batch.longest, *std::max_element(depths.begin(), depths.end()) + 1);
    }
    // As in the branch: a deciding step without any draft leaves the length as it was.
    if (batch.num_matched == 0) return;
    length_ = best_length(batch);
    for (TokenTree* tree : trees) {
      if (tree != nullptr) cut(*tree);
    }
  }

  void observe(const StepOutcome& outcome) override {
    BaselinePolicy::observe(outcome);
    std::int64_t drafted = 0;
    std::int64_t accepted = 0;
    for (const RequestOutcome& request : outcome.requests) {
      drafted += request.num_verified;
      accepted += request.num_accepted;
    }
    if (drafted <= 0) return;
    ratios_.push_back(static_cast<double>(accepted) / static_cast<double>(drafted));
    if (ratios_.size() > static_cast<std::size_t>(options_.window)) ratios_.pop_front();
  }

 protected:
  std::int32_t length(const StepView& /*step*/) override {
    deciding_ = num_steps_ % options_.period == 0;
    ++num_steps_;
    return deciding_ ? options_.max_tokens : length_;
  }

 private:
  struct Batch {
    const StepView* step = nullptr;
    std::int32_t num_matched = 0;  // requests that have a draft
    std::int32_t num_paid = 0;     // of these, by a proposer that pays per depth
    std::int32_t longest = 0;
  };

  static bool pays(const StepView& step, std::int32_t proposer) {
    const auto p = static_cast<std::size_t>(std::max(proposer, 0));
    return proposer >= 0 && p < step.proposers.size() && step.proposers[p].pays_per_depth;
  }

  [[nodiscard]] double acceptance() const {
    if (ratios_.empty()) return std::min(options_.first_acceptance, kLargestAcceptance);
    const double sum = std::accumulate(ratios_.begin(), ratios_.end(), 0.0);
    return std::clamp(sum / static_cast<double>(ratios_.size()), 0.0, kLargestAcceptance);
  }

  [[nodiscard]] double seconds(const Batch& batch, std::int32_t length) const {
    const StepLoad& base = batch.step->base;
    StepLoad load = base;
    load.num_tokens += batch.num_matched * length;
    load.num_logits += batch.num_matched * length;
    const double target = target_.predict(load);
    if (length == 0) return target;
    double draft = kFreeDraftShare * target;
    if (batch.num_paid > 0) {
      const std::int32_t rows = batch.num_paid * length;
      const std::int64_t context = base.kv_tokens * length;
      draft = draft_.predict({.num_passes = length,
                              .num_tokens = rows,
                              .num_sequences = rows,
                              .num_logits = rows,
                              .kv_tokens = context,
                              .attention_pairs = context});
    }
    return target * (1 + options_.overhead) + draft;
  }

  [[nodiscard]] std::int32_t best_length(const Batch& batch) const {
    const double alpha = acceptance();
    const double plain = std::max(batch.step->num_decodes - batch.num_matched, 0);
    double best_goodput = -1;
    std::int32_t best = 0;
    for (std::int32_t length = 0; length <= batch.longest; ++length) {
      const double tokens = batch.num_matched * geometric_length(alpha, length) + plain;
      const double goodput = tokens / seconds(batch, length);
      if (!(goodput > best_goodput)) break;
      best_goodput = goodput;
      best = length;
    }
    return best;
  }

  void cut(TokenTree& tree) {
    keep_.resize(tree.depths.size());
    for (std::size_t i = 0; i < keep_.size(); ++i) keep_[i] = tree.depths[i] < length_ ? 1 : 0;
    pruner_.prune(tree, keep_);
  }

  TurboSpecOptions options_;
  CostModel target_;
  CostModel draft_;
  std::deque<double> ratios_;  // accepted / drafted of the last steps that drafted
  std::int64_t num_steps_ = 0;
  std::int32_t length_;
  bool deciding_ = false;
  std::vector<std::uint8_t> keep_;
  TreePruner pruner_;
};

}  // namespace

std::shared_ptr<LengthPolicy> make_turbospec_policy(const TurboSpecOptions& options) {
  constexpr std::int64_t kMany = 1 << 30;
  require_in_range("max_tokens", std::int64_t{options.max_tokens}, 1, kMaxTreeNodes);
  require_in_range("period", std::int64_t{options.period}, 1, kMany);
  require_in_range("window", std::int64_t{options.window}, 1, kMany);
  require_in_range("first_acceptance", options.first_acceptance, 0.0, 1.0);
  require_in_range("overhead", options.overhead, 0.0, 1e9);
  return std::make_shared<TurboSpecPolicy>(options);
}

}  // namespace smartspec
