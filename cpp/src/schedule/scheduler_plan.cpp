// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The policy's side of a step. Policies are anybody's code: whatever one answers, depths, proposers
// and trees end up within what the request, the rows and the drafts allow.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>

#include "schedule/scheduler_impl.hpp"

namespace smartspec {
namespace {

// Share of a step's rows that prompts get whatever a policy says, so that it cannot starve them.
constexpr std::int32_t kLeastChunkShare = 32;

std::int32_t blocks_of(std::int64_t num_tokens, std::int32_t block_size) {
  return block_size > 0 ? static_cast<std::int32_t>((num_tokens + block_size - 1) / block_size) : 0;
}

/// Keeps the nodes of the first `num_levels` levels.
void keep_levels(TokenTree& tree, std::int32_t num_levels, std::vector<std::int32_t>& new_index) {
  const auto n = static_cast<std::size_t>(tree.size());
  if (std::all_of(tree.depths.begin(), tree.depths.end(),
                  [&](std::int32_t depth) { return depth < num_levels; })) {
    return;
  }
  new_index.resize(n);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (tree.depths[i] >= num_levels) continue;
    new_index[i] = static_cast<std::int32_t>(kept);
    const std::int32_t parent = tree.parents[i];
    tree.parents[kept] = parent < 0 ? -1 : new_index[static_cast<std::size_t>(parent)];
    tree.tokens[kept] = tree.tokens[i];
    tree.depths[kept] = tree.depths[i];
    tree.survival[kept++] = tree.survival[i];
  }
  tree.truncate(static_cast<std::int32_t>(kept));
}

}  // namespace

DecodeSlot Scheduler::Impl::make_slot(const SchedulerEntry& entry) const {
  const SpeculationControl& control = entry.request.control;
  DecodeSlot slot{.id = entry.request.id};
  const std::int32_t useful = entry.request.max_tokens - entry.num_output_tokens - 1;
  if (proposers.empty() || policy_depth < 1) {
    slot.reason = NoSpeculationReason::kOff;
  } else if (!control.enabled || control.max_tokens < 1) {
    slot.reason = NoSpeculationReason::kRequest;
  } else if (useful < 1) {
    slot.reason = NoSpeculationReason::kLastToken;
  } else {
    slot.max_depth = std::min({useful, policy_depth, control.max_tokens, kMaxTreeNodes});
  }
  return slot;
}

LengthRequest Scheduler::Impl::show(const SchedulerEntry& entry, std::int32_t max_depth) const {
  const std::int32_t block_size = view.block_size;
  return {
      .id = entry.request.id,
      .num_tokens = entry.num_tokens,
      .max_depth = max_depth,
      .num_drafted = entry.num_drafted,
      .num_accepted = entry.num_accepted,
      .group = entry.request.group,
      .num_output_tokens = entry.num_output_tokens,
      .decode_seconds = entry.has_emitted ? now - entry.first_token_time : 0,
      .block_room = block_size > 0 ? (block_size - entry.num_tokens % block_size) % block_size : 0,
      .backlog = 0,
      .num_remaining = std::max(0, entry.request.max_tokens - entry.num_output_tokens),
      .control = entry.request.control};
}

/// Prompt tokens the step will compute if nothing gives way, `most` at most: chunks of running
/// requests, then of waiting ones while they seem to fit. Adds them to `load` and takes their
/// blocks. An estimate: what the host knows of shared prefixes shows only at admission.
std::int32_t Scheduler::Impl::expect_chunks(std::int32_t most, StepLoad& step,
                                            std::int32_t& blocks) const {
  std::int32_t left = most;
  const auto add = [&](const SchedulerEntry& entry, std::int32_t num_computed) {
    const std::int32_t pending = entry.num_tokens - num_computed;
    const std::int32_t chunk = std::min(pending, left);
    left -= chunk;
    add_causal(num_computed, chunk, chunk == pending, step);
    blocks -= blocks_of(num_computed + chunk, view.block_size) -
              blocks_of(entry.running ? num_computed : 0, view.block_size);
  };
  for (const SchedulerEntry* entry : running) {
    if (left <= 0) return most;
    if (entry->slot < 0) add(*entry, entry->num_computed);
  }
  auto seats = static_cast<std::size_t>(options.max_num_seqs) - running.size();
  for (const SchedulerEntry* entry : waiting.entries()) {
    const bool fits = view.block_size == 0 || running.empty() ||
                      blocks_of(entry->num_tokens, view.block_size) <= blocks;
    if (left <= 0 || seats-- == 0 || !fits) break;
    const std::int32_t known = host.expect_computed(entry->request.id, entry->num_tokens);
    add(*entry, std::clamp(known, 0, entry->num_tokens - 1));
  }
  return most - left;
}

void Scheduler::Impl::add_causal(std::int64_t context, std::int32_t num_rows, bool samples,
                                 StepLoad& step) {
  step.num_tokens += num_rows;
  ++step.num_sequences;
  step.num_logits += samples ? 1 : 0;
  // Draft nodes read the same keys and values again; they are charged as attention pairs only.
  step.kv_tokens += context + num_rows;
  step.attention_pairs += num_rows * context + std::int64_t{num_rows} * (num_rows + 1) / 2;
}

/// What the step looks like without drafts, for the policy.
void Scheduler::Impl::look_ahead() {
  const auto num_decodes = static_cast<std::int32_t>(decoding.size());
  view = {.now = now,
          .base = {},
          .num_decodes = num_decodes,
          .token_budget = 0,
          .block_size = std::max(host.block_size(), 0),
          .free_blocks = 0,
          .proposers = proposers};
  std::int32_t blocks = view.block_size > 0 ? host.free_blocks() : 0;
  decoding_views.clear();
  for (std::size_t i = 0; i < decoding.size(); ++i) {
    const SchedulerEntry& entry = *decoding[i];
    add_causal(entry.num_computed, 1, true, view.base);
    if (view.block_size > 0 && entry.num_computed % view.block_size == 0) --blocks;
    decoding_views.push_back(show(entry, slots[i].max_depth));
  }
  const std::int32_t room = rows_left - num_decodes;
  const bool prompts_wait =
      running.size() > decoding.size() ||
      (!waiting.empty() && running.size() < static_cast<std::size_t>(options.max_num_seqs));
  view.token_budget = prompts_wait ? room / 2 : room;  // drafts never starve prompts
  view.free_blocks = std::max(blocks, 0);
  chunk_rows_left = rows_left;

  StepLoad with_chunks = view.base;
  std::int32_t blocks_left = blocks;
  const std::int32_t wanted = expect_chunks(room, with_chunks, blocks_left);
  if (wanted > 0) {
    const std::int32_t least =
        num_decodes == 0 ? wanted : std::max(options.max_num_batched_tokens / kLeastChunkShare, 1);
    const std::int32_t allowed =
        std::max(policy->max_prefill_tokens(view, decoding_views, wanted), std::min(least, wanted));
    if (allowed < wanted) {
      chunk_rows_left = allowed;
      with_chunks = view.base;
      blocks_left = blocks;
      expect_chunks(allowed, with_chunks, blocks_left);
    }
  }
  view.base = with_chunks;
  view.free_blocks = std::max(blocks_left, 0);
}

void Scheduler::Impl::collect_requests(std::span<const std::int32_t> backlog) {
  if (!backlog.empty() && backlog.size() != slots.size()) {
    throw std::invalid_argument("plan: backlog must be empty or have one entry per slot (" +
                                std::to_string(slots.size()) + "), got " +
                                std::to_string(backlog.size()));
  }
  requests.clear();
  slot_of.clear();
  request_of.assign(slots.size(), -1);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i].max_depth < 1) continue;
    request_of[i] = static_cast<std::int32_t>(requests.size());
    slot_of.push_back(static_cast<std::int32_t>(i));
    requests.push_back(decoding_views[i]);
    if (!backlog.empty()) requests.back().backlog = std::max(backlog[i], 0);
  }
}

bool Scheduler::Impl::may_use(const SpeculationControl& control, std::int32_t proposer) const {
  return proposer >= 0 && proposer < static_cast<std::int32_t>(proposers.size()) &&
         (control.proposer < 0 || control.proposer == proposer);
}

void Scheduler::Impl::collect_candidates(std::span<const Candidate> offered) {
  candidates.clear();
  first_candidate.assign(requests.size() + 1, 0);
  for (std::size_t i = 0; i < offered.size(); ++i) {
    const Candidate& candidate = offered[i];
    const bool in_order = i == 0 || offered[i - 1].request < candidate.request ||
                          (offered[i - 1].request == candidate.request &&
                           offered[i - 1].proposer < candidate.proposer);
    if (!in_order || candidate.tree == nullptr || candidate.request < 0 ||
        candidate.request >= static_cast<std::int32_t>(slots.size()) || candidate.proposer < 0 ||
        candidate.proposer >= static_cast<std::int32_t>(proposers.size())) {
      throw std::invalid_argument("plan: candidate " + std::to_string(i) +
                                  " must name a slot, a proposer and a tree, ordered by slot, then "
                                  "proposer, each pair once");
    }
    const std::int32_t request = request_of[static_cast<std::size_t>(candidate.request)];
    if (request < 0) continue;
    const auto r = static_cast<std::size_t>(request);
    if (!may_use(requests[r].control, candidate.proposer)) continue;
    candidates.push_back(
        {.request = request, .proposer = candidate.proposer, .tree = candidate.tree});
    ++first_candidate[r + 1];
  }
  for (std::size_t r = 0; r < requests.size(); ++r) first_candidate[r + 1] += first_candidate[r];
}

DraftChoice Scheduler::Impl::hold_to_limits(DraftChoice choice, std::size_t request) const {
  const LengthRequest& shown = requests[request];
  const auto first = candidates.begin() + first_candidate[request];
  const auto last = candidates.begin() + first_candidate[request + 1];
  const auto found = [&](std::int32_t proposer) {
    return std::any_of(first, last, [&](const Candidate& candidate) {
      return candidate.proposer == proposer && !candidate.tree->empty();
    });
  };
  if (choice.depth < 1 || !may_use(shown.control, choice.proposer) ||
      (!proposers[static_cast<std::size_t>(choice.proposer)].pays_per_depth &&
       !found(choice.proposer))) {
    choice = {};
  }
  const std::int32_t least = std::min(shown.control.min_tokens, shown.max_depth);
  if (least > 0) {
    for (std::int32_t pays = 0; pays < 2 && choice.proposer < 0; ++pays) {
      for (std::int32_t i = 0; i < static_cast<std::int32_t>(proposers.size()); ++i) {
        if (proposers[static_cast<std::size_t>(i)].pays_per_depth != (pays == 1)) continue;
        if (!may_use(shown.control, i) || (pays == 0 && !found(i))) continue;
        choice.proposer = i;
        break;
      }
    }
    choice.depth = choice.proposer < 0 ? 0 : std::max(choice.depth, least);
    choice.min_survival = 0;
  }
  choice.depth = std::min(choice.depth, shown.max_depth);
  // Written so that NaN becomes 0.
  choice.min_survival = choice.min_survival > 0 ? std::min(choice.min_survival, 1.0F) : 0.0F;
  if (!std::isfinite(choice.claims.offset) || !std::isfinite(choice.claims.scale)) {
    choice.claims = {};
    choice.min_survival = 0;
  }
  return choice;
}

void Scheduler::Impl::choose() {
  request_choices.assign(requests.size(), {});
  policy->plan(view, requests, candidates, request_choices);
  for (std::size_t r = 0; r < requests.size(); ++r) {
    const auto slot = static_cast<std::size_t>(slot_of[r]);
    NoSpeculationReason& reason = decoding[slot]->reason;
    DraftChoice& choice = request_choices[r];
    choice = view.token_budget > 0 ? hold_to_limits(choice, r) : DraftChoice{};
    choices[slot] = choice;
    if (view.token_budget <= 0) {
      reason = NoSpeculationReason::kTokenBudget;
    } else if (choice.proposer >= 0) {
      reason = NoSpeculationReason::kNone;
    } else {
      const SpeculationControl& control = requests[r].control;
      bool had_choice = std::any_of(candidates.begin() + first_candidate[r],
                                    candidates.begin() + first_candidate[r + 1],
                                    [](const Candidate& c) { return !c.tree->empty(); });
      for (std::size_t i = 0; i < proposers.size() && !had_choice; ++i) {
        had_choice = proposers[i].pays_per_depth && may_use(control, static_cast<std::int32_t>(i));
      }
      reason = had_choice ? NoSpeculationReason::kPolicy : NoSpeculationReason::kNothingFound;
    }
  }
}

/// The caller's trees, cut to the chosen levels; an empty one where there is none.
void Scheduler::Impl::take_trees(std::span<TokenTree* const> caller_trees) {
  if (!caller_trees.empty() && caller_trees.size() != slots.size()) {
    throw std::invalid_argument("schedule: trees must be empty or one per slot (" +
                                std::to_string(slots.size()) + "), got " +
                                std::to_string(caller_trees.size()));
  }
  if (spare_trees.size() < slots.size()) spare_trees.resize(slots.size());
  trees.resize(slots.size());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    TokenTree* tree = caller_trees.empty() ? nullptr : caller_trees[i];
    if (tree == nullptr) {
      tree = &spare_trees[i];
      tree->clear();
    }
    trees[i] = tree;
    if (choices[i].proposer < 0) {
      tree->clear();
      continue;
    }
    NoSpeculationReason& reason = decoding[i]->reason;
    if (!tree->validate(options.vocab_size, kMaxTreeNodes, kMaxTreeNodes).empty()) {
      tree->clear();
      reason = NoSpeculationReason::kProposerError;
      continue;
    }
    keep_levels(*tree, choices[i].depth, new_index);
    if (tree->empty()) reason = NoSpeculationReason::kNothingFound;
  }
}

void Scheduler::Impl::prune(std::span<const DraftWork> drafts) {
  request_trees.clear();
  if (as_drafted.size() < requests.size()) as_drafted.resize(requests.size());
  for (std::size_t r = 0; r < requests.size(); ++r) {
    TokenTree* tree = trees[static_cast<std::size_t>(slot_of[r])];
    request_trees.push_back(tree);
    if (requests[r].control.min_tokens > 0) as_drafted[r] = *tree;
  }
  policy->allocate(view, requests, request_choices, drafts, request_trees);
  for (std::size_t r = 0; r < requests.size(); ++r) hold_tree_to_limits(r);
  cut_to_budget();
}

void Scheduler::Impl::hold_tree_to_limits(std::size_t request) {
  const auto slot = static_cast<std::size_t>(slot_of[request]);
  const SpeculationControl& control = requests[request].control;
  NoSpeculationReason& reason = decoding[slot]->reason;
  TokenTree& tree = *trees[slot];
  if (reason != NoSpeculationReason::kNone) {  // whatever the policy put there: nothing was drafted
    tree.clear();
    return;
  }
  if (!tree.validate(options.vocab_size, kMaxTreeNodes, requests[request].max_depth).empty()) {
    tree.clear();
  }
  if (control.min_tokens > 0) {
    const std::int32_t least = std::min(control.min_tokens, as_drafted[request].size());
    if (tree.size() < least) {
      tree = as_drafted[request];
      tree.truncate(least);
    }
  }
  tree.truncate(control.max_tokens);
  if (tree.empty()) reason = NoSpeculationReason::kPolicy;
}

/// Only for policies that ignore the budget.
void Scheduler::Impl::cut_to_budget() {
  std::int64_t total = 0;
  std::int32_t num_drafting = 0;
  for (const TokenTree* tree : trees) {
    total += tree->size();
    num_drafting += tree->empty() ? 0 : 1;
  }
  std::int32_t budget = std::max(view.token_budget, 0);
  if (total <= budget) return;
  for (std::size_t i = 0; i < trees.size(); ++i) {
    TokenTree& tree = *trees[i];
    if (tree.empty()) continue;
    // An even share of what is left: a wide tree must not take its neighbours' drafts.
    const std::int32_t share = budget / num_drafting--;
    tree.truncate(share);
    if (tree.empty()) decoding[i]->reason = NoSpeculationReason::kTokenBudget;
    budget -= tree.size();
  }
}

/// The step as it came out, and its load.
void Scheduler::Impl::collect_rows() {
  rows.clear();
  load = {};
  for (const SchedulerEntry* entry : running) {
    if (entry->num_causal == 0) continue;
    rows.push_back({.id = entry->request.id,
                    .num_causal = entry->num_causal,
                    .decode = entry->slot,
                    .num_nodes = entry->num_nodes,
                    .samples = entry->samples,
                    .reason = entry->reason});
    add_causal(entry->num_computed, entry->num_causal, entry->samples, load);
    if (entry->num_nodes == 0) continue;
    load.num_tokens += entry->num_nodes;
    load.num_logits += entry->num_nodes;
    for (const std::int32_t depth : trees[static_cast<std::size_t>(entry->slot)]->depths) {
      load.attention_pairs += std::int64_t{entry->num_tokens} + depth + 1;
    }
  }
}

}  // namespace smartspec
