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

/// Among many, a pass is made for others anyway, and a node too many is not verified: little would
/// be saved, and what is not drafted is not learnt from.
bool GoodputPolicy::Impl::may_stop(std::span<const LengthRequest> requests) const {
  return requests.size() == 1 && requests[0].control.min_tokens <= 1 &&
         !(requests[0].control.tpot_target > 0);
}

void GoodputPolicy::Impl::expect_reach(std::span<const LengthRequest> requests) {
  const auto depth = static_cast<std::size_t>(options.max_paid_depth);
  paid_reach.assign(requests.size() * depth, 1.0F);
  if (may_stop(requests)) {
    stops[static_cast<std::size_t>(paying)].expect(requests[0].group, paid_reach);
  }
}

/// A path whose next level would cost more than it promises is not continued, by what its proposer
/// claims of it. A level takes a draft pass and a node.
void GoodputPolicy::Impl::set_stop(std::span<const LengthRequest> requests) {
  constexpr double kReluctance = 0.85;  // who stops gives up all the levels behind, too
  if (!may_stop(requests)) return;
  DraftChoice& choice = best.choices[0];
  if (choice.proposer != paying || choice.depth < 2) return;
  // A node costs as much as those before it or as the next one, whichever is less: costs have
  // edges, and what turns out too dear is not verified.
  const std::int32_t base = segments.front().first_tokens;
  const std::int32_t nodes = std::max(best.num_nodes, 1);
  const double so_far = (seconds_at(base + nodes) - seconds_at(base)) / nodes;
  const double next = seconds_at(base + nodes + 1) - seconds_at(base + nodes);
  const Price price = price_of(requests, best.goodput(), std::min(so_far, next));
  const double cost = price.node + price.ride + price.pass;
  const double accepted = std::max(static_cast<double>(paid_survival[0]), 0.05);
  choice.min_survival = static_cast<float>(std::min(kReluctance * cost / accepted, 1.0));
  choice.claims = survival->claims(paying, requests[0].id, requests[0].group);
}

/// How far the real draft got.
void GoodputPolicy::Impl::learn_stop(const StepView& step, std::span<const LengthRequest> requests,
                                     std::span<const DraftChoice> choices,
                                     std::span<TokenTree* const> trees) {
  if (exploring || !may_stop(requests) || choices[0].depth < 2) return;
  const TokenTree* tree = trees[0];
  const auto proposer = static_cast<std::size_t>(choices[0].proposer);
  if (tree == nullptr || tree->empty() || !step.proposers[proposer].pays_per_depth) return;
  const std::int32_t drawn = *std::max_element(tree->depths.begin(), tree->depths.end()) + 1;
  stops[proposer].learn(requests[0].group, choices[0].depth, drawn);
}

}  // namespace smartspec
