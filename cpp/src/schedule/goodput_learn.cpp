// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// After the step: costs, acceptance, and the figures that say how good the decisions were.
#include <algorithm>
#include <cmath>

#include "schedule/goodput_impl.hpp"

namespace smartspec {

void SpeculationOverhead::learn(bool drafted, double ratio) noexcept {
  constexpr double kRate = 0.05;
  constexpr double kFade = 0.98;  // of the anchor, per step that drafts
  if (!drafted) {
    anchor_ = 1;
    return;
  }
  anchor_ *= kFade;
  const double seen = std::clamp(ratio - 1, -0.5, 0.5);
  share_ = std::clamp(share_ + kRate * anchor_ * (seen - share_), 0.0, 0.5);
}

void GoodputPolicy::Impl::learn_survival(const StepOutcome& outcome) {
  // Outcomes and drafts come in about the same order: look from where the last one was found.
  const std::span<const RequestOutcome> requests = outcome.requests;
  std::size_t at = 0;
  for (const KeptDraft& kept_draft : kept.all()) {
    for (std::size_t tries = 0; tries < requests.size(); ++tries) {
      const RequestOutcome& request = requests[at];
      if (request.id == kept_draft.id) {
        survival->learn(kept_draft.proposer, kept_draft.id, kept_draft.group,
                        kept_draft.asked_depth, kept_draft.tree, request.emitted);
        break;
      }
      at = at + 1 < requests.size() ? at + 1 : 0;
    }
  }
  kept.clear();
}

/// A probe that came out better than believed is given back, so that the next one follows at once:
/// acceptance may have jumped, and waiting would cost more than looking again. One deviation is
/// enough, because where probes are dear they are of one token: two would never be reached. Luck
/// alone reaches one often; what is given back in the long run is taken from the budget.
void GoodputPolicy::Impl::refund_probe(const StepOutcome& outcome) {
  if (last_probe_cost <= 0) return;
  const SurvivalModel::DepthRecord seen = survival->record(paying, 0);
  const double rate = (seen.accepted + 0.5) / (seen.trials + 1);
  double trials = 0;
  double accepted = 0;
  std::size_t at = 0;
  for (const KeptDraft& made : kept.all()) {
    if (made.proposer != paying || made.asked_depth <= 0 || made.tree.empty()) continue;
    while (at < outcome.requests.size() && outcome.requests[at].id != made.id) ++at;
    if (at == outcome.requests.size()) break;
    if (outcome.requests[at].emitted.empty()) continue;
    ++trials;
    accepted += made.tree.tokens[0] == outcome.requests[at].emitted[0] ? 1 : 0;
  }
  if (trials <= 0) return;
  constexpr double kRate = 1.0 / 32;
  const bool better = accepted > trials * rate + std::sqrt(trials * rate * (1 - rate));
  refunded += kRate * ((better ? 1 : 0) - refunded);
  if (!better) return;
  probe_seconds += last_probe_cost;
  idle_ids.clear();  // plan at the next step
}

void GoodputPolicy::Impl::count(const StepOutcome& outcome, double predicted, double drafting) {
  ++totals.num_steps;
  std::int64_t rejected = 0;
  for (const RequestOutcome& request : outcome.requests) {
    const std::int32_t verified = std::max(request.num_verified, 0);
    const std::int32_t accepted = std::clamp(request.num_accepted, 0, verified);
    const auto bin = std::min<std::size_t>(static_cast<std::size_t>(verified),
                                           totals.length_histogram.size() - 1);
    ++totals.length_histogram[bin];
    totals.num_drafted += verified;
    totals.num_accepted += accepted;
    rejected += verified - accepted;
  }
  StepLoad needed = outcome.load;
  const auto without_them = [&](std::int32_t rows) {
    return static_cast<std::int32_t>(std::max<std::int64_t>(rows - rejected, 0));
  };
  needed.num_tokens = without_them(needed.num_tokens);
  needed.num_logits = without_them(needed.num_logits);
  const double wasted = rejected > 0 ? std::max(0.0, predicted - target.predict(needed)) : 0;
  totals.wasted_seconds += wasted;
  totals.predicted_seconds += predicted + drafting;
  totals.measured_seconds += outcome.seconds;
  for (const DraftWork& work : outcome.drafts) {
    if (std::isfinite(work.seconds)) totals.measured_seconds += std::max(work.seconds, 0.0);
  }
  hindsight_seconds += predicted + drafting - wasted;
  const double error = std::abs(predicted - outcome.seconds) / outcome.seconds;
  step_errors[num_step_errors++ % step_errors.size()] = static_cast<float>(error);
}

void PendingPasses::add(const StepLoad& load, double seconds, double step_seconds,
                        CostModel& cost) {
  constexpr double kWorthWaiting = 8e-3;    // seconds of steps
  constexpr std::int64_t kWellKnown = 256;  // passes; before, each is needed at once
  passes_[size_++] = {load, seconds};
  const double most = kWorthWaiting / step_seconds;
  if (size_ < kMost && static_cast<double>(size_ + 1) <= most &&
      cost.num_observed() >= kWellKnown) {
    return;
  }
  for (const Pass& pass : std::span(passes_).first(size_)) cost.observe(pass.load, pass.seconds);
  size_ = 0;
}

void GoodputPolicy::Impl::observe(const StepOutcome& outcome) {
  if (survival) {
    refund_probe(outcome);
    learn_survival(outcome);
  }
  const bool measured = std::isfinite(outcome.seconds) && outcome.seconds > 0;
  if (!measured) return;
  double drafting = 0;
  for (const DraftWork& work : outcome.drafts) {
    if (work.proposer < 0 || static_cast<std::size_t>(work.proposer) >= draft.size()) continue;
    const auto proposer = static_cast<std::size_t>(work.proposer);
    drafting += draft[proposer].predict(work.load);
    draft_passes[proposer].add(work.load, work.seconds, outcome.seconds, draft[proposer]);
  }
  const bool drafted = !outcome.drafts.empty();
  const double expected = target.predict(outcome.load);
  const double factor = drafted ? 1 + overhead.share() : 1;
  count(outcome, expected * factor, drafting);
  target_passes.add(outcome.load, outcome.seconds / factor, expected, target);
  overhead.learn(drafted, outcome.seconds / expected);
  // Savings are bounded, or a long idle time would pay for a burst of probes.
  probe_seconds = std::min(probe_seconds + (1 - refunded) * options.probe_budget * outcome.seconds,
                           2 * outcome.seconds);
}

PolicyStats GoodputPolicy::stats() const {
  PolicyStats stats = impl_->totals;
  const std::size_t size = std::min(impl_->num_step_errors, impl_->step_errors.size());
  if (size > 0) {
    auto errors = impl_->step_errors;
    const auto middle = errors.begin() + static_cast<std::ptrdiff_t>(size / 2);
    std::nth_element(errors.begin(), middle, errors.begin() + static_cast<std::ptrdiff_t>(size));
    stats.median_step_error = static_cast<double>(*middle);
  }
  if (stats.predicted_seconds > 0) {
    stats.regret = 1 - impl_->hindsight_seconds / stats.predicted_seconds;
  }
  return stats;
}

}  // namespace smartspec
