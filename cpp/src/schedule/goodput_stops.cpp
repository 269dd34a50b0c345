// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Drafts that stop where their proposer does not believe in them itself.
#include <algorithm>

#include "schedule/goodput_impl.hpp"

namespace smartspec {
namespace {

constexpr float kKeep = 1 - 1.0F / 128;  // of what was learnt, per trial
constexpr float kPrior = 4;              // trials

}  // namespace

void DraftStops::learn(std::int32_t group, std::int32_t asked, std::int32_t drawn) noexcept {
  auto& levels = groups_[static_cast<std::size_t>(group)];
  const auto most = std::min<std::int32_t>(asked, static_cast<std::int32_t>(kNumLevels));
  for (std::int32_t level = 1; level < most && level <= drawn; ++level) {
    Rate& rate = levels[static_cast<std::size_t>(level)];
    rate.trials = rate.trials * kKeep + 1;
    rate.passed = rate.passed * kKeep + (level < drawn ? 1.0F : 0.0F);
  }
}

void DraftStops::expect(std::int32_t group, std::span<float> reach) const noexcept {
  const auto& levels = groups_[static_cast<std::size_t>(group)];
  float reached = 1;
  float rate = 1;  // levels not seen are taken to be like the one before
  for (std::size_t d = 0; d < reach.size(); ++d) {
    if (d > 0 && d < kNumLevels) {
      const Rate& seen = levels[d];
      rate = (seen.passed + kPrior * rate) / (seen.trials + kPrior);
    }
    if (d > 0) reached *= rate;
    reach[d] = reached;
  }
}

void GoodputPolicy::Impl::expect_reach(std::span<const LengthRequest> requests) {
  const auto depth = static_cast<std::size_t>(options.max_paid_depth);
  paid_reach.resize(requests.size() * depth);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    stops[static_cast<std::size_t>(paying)].expect(requests[i].group,
                                                   std::span(&paid_reach[i * depth], depth));
  }
}

/// A path whose next level would cost more than it promises is not continued, by what its proposer
/// claims of it. A level takes a row of a draft pass, one to be verified, and the pass, if nobody
/// else gets there.
void GoodputPolicy::Impl::set_stops(std::span<const LengthRequest> requests) {
  constexpr double kReluctance = 0.85;  // who stops gives up all the levels behind, too
  constexpr double kLeast = 1e-3;
  if (best.draft_depth < 2) return;
  const auto max_depth = static_cast<std::size_t>(options.max_paid_depth);
  const auto may_stop = [&](std::size_t i) {
    return best.choices[i].proposer == paying && best.choices[i].depth >= 2;
  };
  const auto stops_at_once = [&](std::size_t i) {
    return std::max(1 - static_cast<double>(paid_reach[i * max_depth + 1]), kLeast);
  };
  double nobody = 1;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    if (may_stop(i)) nobody *= stops_at_once(i);
  }
  const std::int32_t nodes = std::max(best.num_nodes, 1);
  const std::int32_t base = segments.front().first_tokens;
  const double slope = (seconds_at(base + nodes) - seconds_at(base)) / nodes;
  const Price price = price_of(requests, best.goodput(), slope);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    if (!may_stop(i)) continue;
    const LengthRequest& request = requests[i];
    if (request.control.min_tokens > 1 || tokens_needed(request, best.seconds) > 1) continue;
    const double alone = nobody / stops_at_once(i);
    const double cost = price.node + price.ride + alone * price.pass;
    const double next = std::max(static_cast<double>(paid_survival[i * max_depth]), 0.05);
    DraftChoice& choice = best.choices[i];
    choice.min_survival = static_cast<float>(std::min(kReluctance * cost / next, 1.0));
    choice.claims = survival->claims(paying, request.id, request.group);
  }
}

/// How far the real drafts got.
void GoodputPolicy::Impl::learn_stops(const StepView& step, std::span<const LengthRequest> requests,
                                      std::span<const DraftChoice> choices,
                                      std::span<TokenTree* const> trees) {
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const DraftChoice& choice = choices[i];
    const TokenTree* tree = trees[i];
    if (choice.depth < 2 || tree == nullptr || tree->empty()) continue;
    const auto proposer = static_cast<std::size_t>(choice.proposer);
    if (!step.proposers[proposer].pays_per_depth) continue;
    const std::int32_t drawn = *std::max_element(tree->depths.begin(), tree->depths.end()) + 1;
    stops[proposer].learn(requests[i].group, choice.depth, drawn);
  }
}

}  // namespace smartspec
