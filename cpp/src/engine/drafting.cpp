// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Candidate trees for the decoding requests. Nothing in here can change an output: a tree that is
// not sound is dropped and counted.
#include <algorithm>
#include <exception>

#include "engine/engine_core.hpp"

namespace smartspec {

void EngineCore::note_proposer_error(const std::string& text) {
  ++stats_.num_proposer_errors;
  stats_.last_proposer_error = text;
}

ProposeRequest EngineCore::show(const Completion& completion, std::int32_t max_depth,
                                std::int32_t max_nodes) {
  return {.id = completion.key(),
          .tokens = completion.tokens,
          .num_prompt_tokens = completion.num_prompt(),
          .max_depth = max_depth,
          .max_nodes = max_nodes,
          .sampling = &completion.info->sampling,
          .seed = completion.sampler.seed(),
          .cache_salt = completion.info->cache_salt,
          .prediction = completion.info->prediction};
}

void EngineCore::select_candidates() {
  drafting_.clear();
  length_requests_.clear();
  for (Completion* completion : decodes_) {
    NoSpeculationReason& reason = completion->stats.no_speculation_reason;
    if (proposer_ == nullptr || policy_ == nullptr) {
      reason = NoSpeculationReason::kOff;
    } else if (!completion->info->speculate || completion->info->max_draft_tokens == 0) {
      reason = NoSpeculationReason::kRequest;
    } else if (completion->max_draft_depth() < 1) {
      reason = NoSpeculationReason::kLastToken;
    } else {
      const std::int32_t depth =
          std::min(completion->max_draft_depth(), completion->info->max_draft_tokens);
      length_requests_.push_back({.id = completion->key(),
                                  .num_tokens = completion->num_tokens(),
                                  .max_depth = depth,
                                  .num_drafted = completion->stats.num_drafted,
                                  .num_accepted = completion->stats.num_accepted});
      drafting_.push_back(completion);
    }
  }
}

void EngineCore::call_proposer() {
  trees_.resize(std::max(trees_.size(), propose_requests_.size()));
  const std::span<TokenTree> trees(trees_.data(), propose_requests_.size());
  for (TokenTree& tree : trees) tree.clear();
  try {
    proposer_->propose(propose_requests_, trees);
  } catch (const std::exception& error) {
    note_proposer_error(error.what());
    for (Completion* completion : drafting_) {
      completion->stats.no_speculation_reason = NoSpeculationReason::kProposerError;
    }
    for (TokenTree& tree : trees) tree.clear();
    return;
  }
  for (std::size_t i = 0; i < trees.size(); ++i) {
    NoSpeculationReason& reason = drafting_[i]->stats.no_speculation_reason;
    reason = trees[i].empty() ? NoSpeculationReason::kNothingFound : NoSpeculationReason::kNone;
    std::string fault = trees[i].validate(model_->config().vocab_size, kMaxTreeNodes,
                                          propose_requests_[i].max_depth);
    if (fault.empty()) continue;
    ++stats_.num_invalid_drafts;
    stats_.last_proposer_error = std::string(proposer_->name()) + ": " + fault;
    reason = NoSpeculationReason::kProposerError;
    trees[i].clear();
  }
}

void EngineCore::cut_to_budget(std::int32_t budget) {
  for (std::size_t i = 0; i < drafting_.size(); ++i) {
    TokenTree& tree = drafting_[i]->tree;
    std::swap(tree, trees_[i]);
    // An even share of what is left: a wide tree must not take its neighbours' drafts.
    const std::int32_t share = budget / static_cast<std::int32_t>(drafting_.size() - i);
    if (tree.size() > share) tree.truncate(share);
    if (tree.empty() && drafting_[i]->stats.no_speculation_reason == NoSpeculationReason::kNone) {
      drafting_[i]->stats.no_speculation_reason =
          share == 0 ? NoSpeculationReason::kTokenBudget : NoSpeculationReason::kPolicy;
    }
    budget -= tree.size();
  }
}

void EngineCore::propose() {
  select_candidates();
  if (drafting_.empty()) return;
  std::int32_t budget = rows_left_ - static_cast<std::int32_t>(decodes_.size());
  const bool prefill_waits = running_.size() > decodes_.size() || !waiting_.empty();
  if (prefill_waits) budget /= 2;  // drafts never starve prompts

  depths_.assign(drafting_.size(), 0);
  policy_->choose_depths(length_requests_, depths_);
  propose_requests_.clear();
  std::size_t kept = 0;
  for (std::size_t i = 0; i < drafting_.size(); ++i) {
    Completion* completion = drafting_[i];
    const std::int32_t depth = std::clamp(depths_[i], 0, length_requests_[i].max_depth);
    if (depth == 0 || budget <= 0) {
      completion->stats.no_speculation_reason =
          depth == 0 ? NoSpeculationReason::kPolicy : NoSpeculationReason::kTokenBudget;
      continue;
    }
    propose_requests_.push_back(show(*completion, std::min(depth, kMaxTreeNodes), kMaxTreeNodes));
    length_requests_[kept] = length_requests_[i];
    drafting_[kept++] = completion;
  }
  drafting_.resize(kept);
  length_requests_.resize(kept);
  if (drafting_.empty()) return;

  call_proposer();
  const std::span<TokenTree> trees(trees_.data(), drafting_.size());
  policy_->prune(length_requests_, trees, budget);
  for (std::size_t i = 0; i < trees.size(); ++i) {
    const std::string fault =
        trees[i].validate(model_->config().vocab_size, kMaxTreeNodes, kMaxTreeNodes);
    if (!fault.empty()) trees[i].clear();  // a policy that pruned a parent away
  }
  cut_to_budget(budget);
}

}  // namespace smartspec
