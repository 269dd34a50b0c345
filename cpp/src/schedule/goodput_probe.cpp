// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Drafts made to learn: what would pay if the trials so far had been unlucky, and one level more.
#include <algorithm>
#include <cmath>
#include <utility>

#include "schedule/goodput_impl.hpp"

namespace smartspec {
namespace {

constexpr double kOptimism = 3;  // standard deviations, of what is tried to learn

}  // namespace

/// The upper end of what the trials of each depth allow, as a factor on what is expected.
void GoodputPolicy::Impl::be_optimistic() {
  optimism.assign(static_cast<std::size_t>(options.max_paid_depth), 1.0F);
  double factor = 1;
  for (std::int32_t d = 0; d < options.max_paid_depth; ++d) {
    const SurvivalModel::DepthRecord seen = survival->record(paying, d);
    const double trials = std::max(seen.trials, 0.0) + 1;
    const double rate = std::clamp(seen.accepted / trials, 0.5 / trials, 1.0);
    factor *= std::min(1 / rate, 1 + kOptimism * std::sqrt((1 - rate) / (rate * trials)));
    optimism[static_cast<std::size_t>(d)] = static_cast<float>(factor);
  }
}

/// Estimates from few trials err either way, and one that errs low would not be tried again. So
/// what would pay if the trials had been unlucky is tried, when what it would cost if they had not
/// been is saved up (optimism in the face of uncertainty, as in UCB1, on a budget). True: tried, or
/// being saved up for.
bool GoodputPolicy::Impl::explore(const StepView& step, std::span<const LengthRequest> requests,
                                  std::span<DraftChoice> choices) {
  const LastPlan before = last_plan;
  exploring = true;
  be_optimistic();
  std::swap(best, plain);
  best.clear(requests.size());
  best.expected_tokens = plain.expected_tokens;
  best.seconds = plain.seconds;
  plan_paid(step, requests);
  exploring = false;
  last_plan = before;
  bool promising = best.draft_depth > 0;
  if (promising) {
    double hoped = best.expected_tokens - std::max(step.num_decodes, 1);
    hoped /= static_cast<double>(optimism[static_cast<std::size_t>(best.draft_depth - 1)]);
    const double tokens = std::max(step.num_decodes, 1) + hoped;
    const double loss = std::max(0.0, best.seconds - tokens / plain.goodput());
    // A probe of one level tells as much of that level, when it is cheaper.
    tried.choices.assign(requests.size(), {.proposer = paying, .depth = 1});
    promising = loss <= draft_seconds(requests, tried.choices);
    if (promising && loss <= probe_seconds) {
      probe_seconds -= loss;
      exploring = true;
      for (const DraftChoice& choice : best.choices) totals.num_probes += choice.proposer == paying;
      std::copy(best.choices.begin(), best.choices.end(), choices.begin());
    }
  }
  std::swap(best, plain);
  return promising;
}

/// The paying proposer of which least is known.
std::int32_t GoodputPolicy::Impl::choose_probe(const StepView& step) const {
  std::int32_t proposer = -1;
  for (std::int32_t p = 0; p < static_cast<std::int32_t>(step.proposers.size()); ++p) {
    if (!step.proposers[static_cast<std::size_t>(p)].pays_per_depth) continue;
    if (proposer < 0 || survival->evidence(p) < survival->evidence(proposer)) proposer = p;
  }
  return proposer;
}

/// One level more than the plan has, for as many requests as what was saved up for learning pays:
/// in turn those that could ride in passes made anyway, and those that need one more. Unverified
/// drafts are scored on the emitted tokens, so a probe costs its draft rows, and the draft of a
/// free proposer that it stands in for.
void GoodputPolicy::Impl::probe(std::span<const LengthRequest> requests,
                                std::span<DraftChoice> choices) {
  if (probe_seconds <= 0 || requests.empty()) return;
  const double seconds_per_token = best.seconds / std::max(best.expected_tokens, 1.0);
  const double planned = draft_seconds(requests, choices, true);
  std::int32_t deepest = 0;
  for (const DraftChoice& choice : choices) {
    if (choice.proposer == paying) deepest = std::max(deepest, choice.depth);
  }
  const std::uint64_t turn = probe_turn++;
  const std::size_t start = static_cast<std::size_t>(turn / 2) % requests.size();
  const auto depth_of = [&](std::size_t i) {
    return choices[i].proposer == paying ? choices[i].depth : 0;
  };
  const auto eligible = [&](std::size_t i, bool new_pass) {
    const LengthRequest& request = requests[i];
    return (depth_of(i) == deepest) == new_pass &&
           depth_of(i) <
               std::min({request.max_depth, request.control.max_tokens, options.max_paid_depth}) &&
           (request.control.proposer < 0 || request.control.proposer == paying);
  };
  const bool new_pass = deepest == 0 || turn % 2 == 0;
  for (std::size_t wanted = requests.size(); wanted > 0; wanted /= 2) {
    tried.choices.assign(choices.begin(), choices.end());
    std::size_t taken = 0;
    double cost = -planned;
    for (std::size_t k = 0; k < requests.size() && taken < wanted; ++k) {
      const std::size_t i = (start + k) % requests.size();
      if (!eligible(i, new_pass)) continue;
      if (choices[i].proposer != paying) cost += offer_value[i] * seconds_per_token;
      tried.choices[i] = {.proposer = paying,
                          .depth = depth_of(i) + 1,
                          .min_survival = depth_of(i) > 0 ? choices[i].min_survival : 0,
                          .claims = choices[i].claims};
      ++taken;
    }
    if (taken == 0) return;
    cost += draft_seconds(requests, tried.choices, true);
    if (cost > probe_seconds) continue;
    last_probe_cost = std::max(cost, 0.0);
    probe_seconds -= last_probe_cost;
    totals.num_probes += static_cast<std::int64_t>(taken);
    std::copy(tried.choices.begin(), tried.choices.end(), choices.begin());
    return;
  }
}

}  // namespace smartspec
