// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Before drafting: who drafts with which proposer, and how deep, from what is expected.
#include <algorithm>
#include <cmath>
#include <utility>

#include "schedule/goodput_impl.hpp"

namespace smartspec {
namespace {

/// Nodes are cheap while a pass waits for memory and dear once arithmetic is the limit: a plan made
/// afresh is tried with a price from either end, then with that of the best. So many may follow it.
constexpr int kPlanAge = 4;
constexpr std::size_t kManyRequests = 64;  // below, plans are cheap and always made afresh

std::int64_t context_of(const LengthRequest& request) noexcept {
  return std::max(request.num_tokens, 0);
}

/// What of a backlog this step has to answer for. Catching up is paid once and serves until the
/// request ends: it is spread over the steps that the rest of the request may take.
std::int32_t share_of_backlog(const LengthRequest& request) noexcept {
  constexpr std::int32_t kTokensPerStep = 4;
  constexpr std::int32_t kMostSteps = 64;
  const std::int32_t remaining = std::max(request.num_remaining, request.max_depth);
  const std::int32_t steps = std::clamp(remaining / kTokensPerStep, 1, kMostSteps);
  return (std::max(request.backlog, 0) + steps - 1) / steps;
}

/// Load of the draft passes that `choices` ask of `proposer`, one level after the other, and the
/// probability that the pass is made: paths may stop before.
/// `backlog_of`: rows of a request's backlog that count. `reach_of(i, level)`: that it gets there.
template <typename Visit, typename Backlog, typename Reach>
void for_each_pass(std::span<const LengthRequest> requests, std::span<const DraftChoice> choices,
                   std::int32_t proposer, const Backlog& backlog_of, const Reach& reach_of,
                   const Visit& visit) {
  for (std::int32_t level = 1;; ++level) {
    StepLoad load;
    double nobody = 1;
    double expected = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      if (choices[i].proposer != proposer || choices[i].depth < level) continue;
      const std::int32_t rows = 1 + (level == 1 ? backlog_of(requests[i]) : 0);
      const auto reach = static_cast<double>(reach_of(i, level));
      nobody *= 1 - reach;
      expected += reach;
      load.num_tokens += rows;
      ++load.num_sequences;
      load.kv_tokens += context_of(requests[i]);
      load.attention_pairs += rows * context_of(requests[i]);
    }
    if (load.num_sequences == 0) return;
    const double made = 1 - nobody;
    if (made <= 0) return;
    // As many as get there when anyone does.
    const double share = expected / made / load.num_sequences;
    const auto part = [&](auto whole) {
      return static_cast<decltype(whole)>(std::llround(static_cast<double>(whole) * share));
    };
    load.num_tokens = std::max(part(load.num_tokens), 1);
    load.num_sequences = std::max(part(load.num_sequences), 1);
    load.num_logits = load.num_sequences;
    load.kv_tokens = part(load.kv_tokens);
    load.attention_pairs = part(load.attention_pairs);
    visit(load, made);
  }
}

bool same_choices(std::span<const DraftChoice> a, std::span<const DraftChoice> b) noexcept {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const DraftChoice& x, const DraftChoice& y) {
                      return x.proposer == y.proposer && x.depth == y.depth;
                    });
}

}  // namespace

void KeptDrafts::add(const LengthRequest& request, std::int32_t proposer, std::int32_t asked_depth,
                     const TokenTree& tree) {
  if (size_ == drafts_.size()) drafts_.emplace_back();
  KeptDraft& draft = drafts_[size_++];
  draft.id = request.id;
  draft.proposer = proposer;
  draft.group = request.group;
  draft.asked_depth = asked_depth;
  draft.tree = tree;
}

double tokens_needed(const LengthRequest& request, double seconds) noexcept {
  constexpr double kCatchUpSteps = 8;
  const double target = request.control.tpot_target;
  if (!(target > 0)) return 0;
  const double behind = request.decode_seconds / target - request.num_output_tokens + 1;
  return std::max(0.0, seconds / target + behind / kCatchUpSteps);
}

void GoodputPolicy::Impl::take_candidates(const StepView& step,
                                          std::span<const LengthRequest> requests,
                                          std::span<const Candidate> candidates) {
  const std::size_t num_proposers = std::max<std::size_t>(step.proposers.size(), 1);
  if (!survival || draft.size() != num_proposers) {
    SurvivalModelOptions survival_options = options.survival;
    survival_options.num_proposers = static_cast<std::int32_t>(num_proposers);
    survival.emplace(survival_options);
    draft.clear();
    for (std::size_t i = 0; i < num_proposers; ++i) draft.emplace_back(options.draft, options.cost);
    draft_passes.assign(num_proposers, {});
    stops.assign(num_proposers, {});
  }
  kept.clear();
  offers.clear();
  node_survival.clear();
  node_parents.clear();
  for (const Candidate& candidate : candidates) {
    const LengthRequest& request = requests[static_cast<std::size_t>(candidate.request)];
    const std::int32_t asked =
        std::min(request.max_depth, std::max(options.max_depth, options.max_paid_depth));
    kept.add(request, candidate.proposer, asked, *candidate.tree);
    if (candidate.tree->empty()) continue;
    const std::size_t first = node_survival.size();
    const auto size = static_cast<std::size_t>(candidate.tree->size());
    node_survival.resize(first + size);
    survival->calibrate(candidate.proposer, request.id, request.group, *candidate.tree,
                        std::span(node_survival).subspan(first));
    node_parents.insert(node_parents.end(), candidate.tree->parents.begin(),
                        candidate.tree->parents.end());
    offers.push_back({.request = candidate.request,
                      .proposer = candidate.proposer,
                      .first_node = static_cast<std::int32_t>(first),
                      .num_nodes = candidate.tree->size()});
  }
}

/// Prompt chunks are computed whatever is drafted. With their time in the ratio drafts would look
/// cheap beside them, so it is taken out.
void GoodputPolicy::Impl::price_steps(const StepView& step,
                                      std::span<const LengthRequest> requests) {
  std::int64_t context = 0;
  for (const LengthRequest& request : requests) context += context_of(request);
  const double mean_context =
      requests.empty() ? 0 : static_cast<double>(context) / static_cast<double>(requests.size());
  target.segments(step.base, mean_context, step.base.num_tokens + step.token_budget, segments);
  prompt_seconds = 0;
  if (step.base.num_tokens <= step.num_decodes) return;
  const double with_prompts = seconds_at(step.base.num_tokens);
  prompt_seconds = with_prompts - target.predict({.num_tokens = step.num_decodes,
                                                  .num_sequences = step.num_decodes,
                                                  .num_logits = step.num_decodes,
                                                  .kv_tokens = context,
                                                  .attention_pairs = context});
  prompt_seconds = std::clamp(prompt_seconds, 0.0, 0.99 * with_prompts);
  for (CostSegment& segment : segments) segment.seconds -= prompt_seconds;
}

/// Of every request, the candidate whose nodes are worth most above their price. One that must
/// draft takes what there is.
void GoodputPolicy::Impl::choose_offers(std::span<const LengthRequest> requests,
                                        double node_price) {
  best_offer.assign(requests.size(), -1);
  offer_value.assign(requests.size(), 0.0);
  for (std::size_t i = 0; i < offers.size(); ++i) {
    const Offer& offer = offers[i];
    double value = 0;
    for (std::int32_t n = 0; n < offer.num_nodes; ++n) {
      const float node = node_survival[static_cast<std::size_t>(offer.first_node + n)];
      value += std::max(0.0, static_cast<double>(node) - node_price);
    }
    const auto request = static_cast<std::size_t>(offer.request);
    const bool forced = requests[request].control.min_tokens > 0 && best_offer[request] < 0;
    if (value <= offer_value[request] && !forced) continue;
    offer_value[request] = value;
    best_offer[request] = static_cast<std::int32_t>(i);
  }
}

void GoodputPolicy::Impl::expect_paid(std::span<const LengthRequest> requests) {
  const auto depth = static_cast<std::size_t>(options.max_paid_depth);
  paid_survival.resize(requests.size() * depth);
  paid_depths.resize(requests.size());
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const LengthRequest& request = requests[i];
    const bool allowed = request.control.proposer < 0 || request.control.proposer == paying;
    const std::int32_t most =
        std::min({options.max_paid_depth, request.max_depth, request.control.max_tokens});
    paid_depths[i] = allowed ? std::max(most, 0) : 0;
    float* const levels = &paid_survival[i * depth];
    survival->expect(paying, request.id, request.group, std::span(levels, depth));
    if (!exploring) continue;
    float bound = 1;
    for (std::size_t d = 0; d < depth; ++d) {
      levels[d] = bound = std::min(bound, levels[d] * optimism[d]);
    }
  }
  expect_reach(requests);  // after expect(), which refuses groups out of range
}

double GoodputPolicy::Impl::draft_seconds(std::span<const LengthRequest> requests,
                                          std::span<const DraftChoice> choices,
                                          bool whole_backlog) const {
  double seconds = 0;
  const CostModel& cost = draft[static_cast<std::size_t>(paying)];
  const auto backlog = [&](const LengthRequest& request) {
    return whole_backlog ? std::max(request.backlog, 0) : share_of_backlog(request);
  };
  const auto depth = static_cast<std::size_t>(options.max_paid_depth);
  const auto reach = [&](std::size_t i, std::int32_t level) {
    return paid_reach[i * depth + static_cast<std::size_t>(level - 1)];
  };
  for_each_pass(requests, choices, paying, backlog, reach,
                [&](const StepLoad& load, double made) { seconds += made * cost.predict(load); });
  if (seconds > 0) seconds += overhead.share() * seconds_at(segments.front().first_tokens);
  return seconds;
}

Price GoodputPolicy::Impl::price_of(std::span<const LengthRequest> requests, double goodput,
                                    double seconds_per_node) const {
  const auto rows = static_cast<std::int32_t>(requests.size());
  StepLoad load{.num_tokens = 1, .num_sequences = 1, .num_logits = 1};
  std::int64_t context = 0;
  for (const LengthRequest& request : requests) context += context_of(request);
  load.kv_tokens = load.attention_pairs = rows > 0 ? context / rows : 0;
  const CostModel& cost = draft[static_cast<std::size_t>(paying)];
  const double one = cost.predict(load);
  double ride = 0;
  if (rows > 1) {
    load.num_tokens = load.num_sequences = load.num_logits = rows;
    load.kv_tokens = load.attention_pairs = context;
    ride = std::max(0.0, (cost.predict(load) - one) / (rows - 1));
  }
  return {.node = goodput * seconds_per_node,
          .ride = goodput * ride,
          .pass = goodput * std::max(0.0, one - ride)};
}

/// The best depth of drafting at these prices, and who rides along how deep: `tried.choices`.
/// Requests behind their target get what they need for nothing.
void GoodputPolicy::Impl::assign(std::span<const LengthRequest> requests, const Price& price,
                                 double step_seconds) {
  const auto max_depth = static_cast<std::size_t>(options.max_paid_depth);
  choose_offers(requests, price.node);
  level_values.assign(max_depth + 1, 0.0);
  level_idle.assign(max_depth, 1.0);
  std::size_t least = 0;  // levels that targets ask for
  const auto walk = [&](std::size_t i, const auto& visit) {
    const float* levels = &paid_survival[i * max_depth];
    const float* reach = &paid_reach[i * max_depth];
    const double wanted = tokens_needed(requests[i], step_seconds) - 1;
    double value = 0;
    double tokens = 0;
    for (std::size_t d = 0; d < static_cast<std::size_t>(paid_depths[i]); ++d) {
      const bool needed =
          tokens < wanted || static_cast<std::int32_t>(d) < requests[i].control.min_tokens;
      const double rows = needed ? 0 : static_cast<double>(reach[d]);
      const double gain = static_cast<double>(levels[d]) - rows * (price.node + price.ride);
      if (gain <= 0 && !needed) break;
      value += gain;
      tokens += static_cast<double>(levels[d]);
      visit(d + 1, value, needed);
    }
  };
  for (std::size_t i = 0; i < requests.size(); ++i) {
    std::size_t reached = 0;
    double value = 0;
    level_values[0] += offer_value[i];
    walk(i, [&](std::size_t depth, double at_depth, bool needed) {
      level_values[depth] += std::max(offer_value[i], at_depth);
      level_idle[depth - 1] *= 1 - static_cast<double>(paid_reach[i * max_depth + depth - 1]);
      reached = depth;
      value = at_depth;
      if (needed && best_offer[i] < 0) least = std::max(least, depth);
    });
    for (std::size_t d = reached + 1; d <= max_depth; ++d) {
      level_values[d] += std::max(offer_value[i], value);
    }
  }
  std::size_t deepest = least;
  double passes = 0;
  for (std::size_t d = 0; d <= max_depth; ++d) {
    if (d > 0) passes += 1 - level_idle[d - 1];
    level_values[d] -= passes * price.pass;
    if (d >= least && level_values[d] > level_values[deepest]) deepest = d;
  }
  tried.choices.assign(requests.size(), {});
  for (std::size_t i = 0; i < requests.size(); ++i) {
    DraftChoice& choice = tried.choices[i];
    double paid_value = 0;
    walk(i, [&](std::size_t depth, double value, bool) {
      if (depth > deepest) return;
      paid_value = value;
      choice = {.proposer = paying, .depth = static_cast<std::int32_t>(depth)};
    });
    if (best_offer[i] < 0 || paid_value > offer_value[i]) continue;
    choice = {.proposer = offers[static_cast<std::size_t>(best_offer[i])].proposer,
              .depth = requests[i].max_depth};
  }
}

/// The nodes that `tried.choices` lead one to expect, as an allocation problem.
void GoodputPolicy::Impl::put_expected(std::span<const LengthRequest> requests) {
  offsets.assign(1, 0);
  survivals.clear();
  parents.clear();
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const DraftChoice& choice = tried.choices[i];
    if (choice.proposer == paying && choice.depth > 0) {
      const float* levels = &paid_survival[i * static_cast<std::size_t>(options.max_paid_depth)];
      const float* reach = &paid_reach[i * static_cast<std::size_t>(options.max_paid_depth)];
      float survives = 1;  // of those that are drafted
      for (std::int32_t d = 0; d < choice.depth; ++d) {
        survives = std::min(survives, levels[d] / std::max(reach[d], 1e-6F));
        survivals.push_back(survives);
        parents.push_back(d - 1);
      }
    } else if (choice.proposer >= 0) {
      const Offer& offer = offers[static_cast<std::size_t>(best_offer[i])];
      const auto first = node_survival.begin() + offer.first_node;
      survivals.insert(survivals.end(), first, first + offer.num_nodes);
      const auto first_parent = node_parents.begin() + offer.first_node;
      parents.insert(parents.end(), first_parent, first_parent + offer.num_nodes);
    }
    offsets.push_back(static_cast<std::int32_t>(survivals.size()));
  }
  put_limits(requests);
}

/// What `tried` would emit and take. Levels that the allocation does not want are not drafted.
void GoodputPolicy::Impl::evaluate(const StepView& step, std::span<const LengthRequest> requests) {
  put_expected(requests);
  const double drafting = draft_seconds(requests, tried.choices);
  const Allocation chosen = allocator.solve(problem(step, drafting), selected);
  const auto max_depth = static_cast<std::size_t>(options.max_paid_depth);
  tried.draft_depth = 0;
  double missing_nodes = 0;  // paths that stop before
  double missing_tokens = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    DraftChoice& choice = tried.choices[i];
    if (choice.proposer != paying) continue;
    const auto first = selected.begin() + offsets[i];
    choice.depth = static_cast<std::int32_t>(std::count(first, first + choice.depth, 1));
    for (std::size_t d = 0; d < static_cast<std::size_t>(choice.depth); ++d) {
      missing_nodes += 1 - static_cast<double>(paid_reach[i * max_depth + d]);
      missing_tokens += static_cast<double>(survivals[static_cast<std::size_t>(offsets[i]) + d] -
                                            paid_survival[i * max_depth + d]);
    }
    if (choice.depth == 0) choice = {};
    tried.draft_depth = std::max(tried.draft_depth, choice.depth);
  }
  tried.num_nodes = chosen.num_nodes - static_cast<std::int32_t>(std::lround(missing_nodes));
  tried.expected_tokens = chosen.expected_tokens - missing_tokens;
  tried.seconds =
      seconds_at(step.base.num_tokens + tried.num_nodes) + draft_seconds(requests, tried.choices);
}

/// Prices are averages, blind to the edges of a staircase: a plan may be the best at its own price
/// while one that ends before an edge is better. True if one level less was by the margin,
/// and is `best` now.
bool GoodputPolicy::Impl::shorten(const StepView& step, std::span<const LengthRequest> requests) {
  // Which free draft stands in for a paid one depends on the price that is given up here.
  if (best.draft_depth <= 1 || !offers.empty()) return false;
  tried.choices.assign(best.choices.begin(), best.choices.end());
  bool any = false;
  for (DraftChoice& choice : tried.choices) {
    if (choice.proposer != paying || choice.depth < best.draft_depth) continue;
    --choice.depth;
    any = true;
  }
  if (!any) return false;
  evaluate(step, requests);
  if (tried.goodput() <= best.goodput() * (1 + options.margin)) return false;
  std::swap(tried, best);
  return true;
}

void GoodputPolicy::Impl::plan_paid(const StepView& step, std::span<const LengthRequest> requests) {
  expect_paid(requests);
  const double base_seconds = seconds_at(step.base.num_tokens);
  const double decodes = std::max(step.num_decodes, 1);
  const std::int32_t many = std::min(
      step.token_budget, static_cast<std::int32_t>(requests.size()) * options.max_paid_depth);
  const std::int32_t few = std::min(step.token_budget, static_cast<std::int32_t>(requests.size()));
  const auto slope = [&](std::int32_t nodes) {
    return nodes > 0 ? (seconds_at(step.base.num_tokens + nodes) - base_seconds) / nodes : 0.0;
  };
  double step_seconds = base_seconds;
  const auto attempt = [&](double goodput, double seconds_per_node) {
    assign(requests, price_of(requests, goodput, seconds_per_node), step_seconds);
    if (same_choices(tried.choices, best.asked)) return false;
    tried.asked.assign(tried.choices.begin(), tried.choices.end());
    evaluate(step, requests);
    if (tried.goodput() > best.goodput()) std::swap(tried, best);
    return true;
  };
  const double none = decodes / base_seconds;
  // From one step to the next little changes: most plans start from the last one's price.
  const bool afresh = requests.size() < kManyRequests || last_plan.proposer != paying ||
                      exploring || last_plan.age >= kPlanAge ||
                      std::abs(none - last_plan.none) > 0.1 * none;
  if (afresh) {
    last_plan = {.proposer = paying, .none = none};
    attempt(none, slope(few));
    if (many > few) attempt(none, slope(many));
  } else {
    ++last_plan.age;
    attempt(last_plan.goodput, slope(std::max(last_plan.num_nodes, 1)));
    if (many > last_plan.num_nodes) attempt(last_plan.goodput, slope(many));
  }
  for (int i = 0; afresh && i < 2; ++i) {
    if (best.draft_depth == 0 && best.num_nodes == 0) break;
    step_seconds = best.seconds;
    if (!attempt(best.goodput(), slope(std::max(best.num_nodes, 1)))) break;
  }
  while (shorten(step, requests)) {
  }
  if (best.draft_depth == 0) last_plan.age = kPlanAge;
  last_plan.goodput = best.goodput();
  last_plan.num_nodes = best.num_nodes;
}

void GoodputPolicy::Impl::plan(const StepView& step, std::span<const LengthRequest> requests,
                               std::span<const Candidate> candidates,
                               std::span<DraftChoice> choices) {
  take_candidates(step, requests, candidates);
  exploring = false;
  last_probe_cost = 0;
  const bool any_paying = std::any_of(step.proposers.begin(), step.proposers.end(),
                                      [](const auto& info) { return info.pays_per_depth; });
  idle = any_paying ? may_stay_idle(requests) : offers.empty();
  if (idle) {
    std::fill(choices.begin(), choices.end(), DraftChoice{});
    return;
  }
  price_steps(step, requests);
  best.clear(requests.size());
  const double base_seconds = seconds_at(step.base.num_tokens);
  best.expected_tokens = std::max(step.num_decodes, 1);
  best.seconds = base_seconds * (1 - std::min(options.margin, 0.5));  // none has this head start
  for (std::size_t p = 0; p < step.proposers.size(); ++p) {
    if (!step.proposers[p].pays_per_depth) continue;
    paying = static_cast<std::int32_t>(p);
    plan_paid(step, requests);
    set_stop(requests);
  }
  if (!any_paying || best.draft_depth == 0) {
    // Free drafts are here already: allocate() decides with the real trees.
    choose_offers(requests, last_price);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const std::int32_t offer = best_offer[i];
      best.choices[i] =
          offer < 0 ? DraftChoice{}
                    : DraftChoice{.proposer = offers[static_cast<std::size_t>(offer)].proposer,
                                  .depth = requests[i].max_depth};
    }
  }
  std::copy(best.choices.begin(), best.choices.end(), choices.begin());
  if (!any_paying) return;
  note_plan(requests);
  paying = choose_probe(step);
  expect_reach(requests);
  if (best.draft_depth == 0 && explore(step, requests, choices)) return;
  probe(requests, choices);
}

/// Where nobody drafts, nothing new is learnt of drafts, and to think again at every step costs a
/// cold cache some tens of microseconds each. Plans that draft are made afresh: what is known of
/// the passage a request writes now is gone a few tokens later.
bool GoodputPolicy::Impl::may_stay_idle(std::span<const LengthRequest> requests) {
  constexpr std::int32_t kIdle = 8;
  if (!offers.empty() || idle_ids.size() != requests.size() || ++idle_steps >= kIdle) return false;
  return std::equal(requests.begin(), requests.end(), idle_ids.begin(),
                    [](const LengthRequest& request, RequestId id) { return request.id == id; });
}

void GoodputPolicy::Impl::note_plan(std::span<const LengthRequest> requests) {
  idle_steps = 0;
  idle_ids.clear();
  if (last_plan.num_nodes > 0) return;
  for (const LengthRequest& request : requests) idle_ids.push_back(request.id);
}

}  // namespace smartspec
