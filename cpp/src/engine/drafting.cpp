// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Candidate trees for the decoding requests. Nothing in here can change an output: a tree that is
// not sound is dropped and counted.
#include <algorithm>
#include <exception>
#include <utility>

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

void EngineCore::collect_decodes(std::span<const DecodeSlot> slots) {
  decodes_.clear();
  trees_.clear();
  for (const DecodeSlot& slot : slots) {
    Completion* completion = find(slot.id);
    completion->tree.clear();
    completion->drafter = -1;
    completion->draft_failed = false;
    decodes_.push_back(completion);
    trees_.push_back(&completion->tree);
  }
  for (Drafts& drafts : drafts_) {
    drafts.requests.clear();
    drafts.slots.clear();
    drafts.next = 0;
  }
  candidates_.clear();
  works_.clear();
  paid_now_ = 0;
}

void EngineCore::ask(std::size_t proposer, std::size_t slot, std::int32_t max_depth,
                     float min_survival, const ClaimReading& claims) {
  const Completion& completion = *decodes_[slot];
  Drafts& drafts = drafts_[proposer];
  const std::int32_t max_nodes = std::min(completion.info->control.max_tokens, kMaxTreeNodes);
  drafts.requests.push_back(show(completion, max_depth, max_nodes));
  drafts.requests.back().min_survival = min_survival;
  drafts.requests.back().claims = claims;
  drafts.slots.push_back(static_cast<std::int32_t>(slot));
}

bool EngineCore::call_proposer(std::size_t proposer) {
  Drafts& drafts = drafts_[proposer];
  if (drafts.requests.empty()) return false;
  ProposerStats& stats = stats_.proposers[proposer];
  drafts.trees.resize(std::max(drafts.trees.size(), drafts.requests.size()));
  const std::span<TokenTree> trees(drafts.trees.data(), drafts.requests.size());
  for (TokenTree& tree : trees) tree.clear();
  ++stats.num_calls;
  const double start = now();
  bool failed = false;
  try {
    proposers_[proposer]->propose(drafts.requests, trees);
  } catch (const std::exception& error) {
    note_proposer_error(error.what());
    failed = true;
  }
  const double seconds = seconds_since(start);
  stats.seconds += seconds;
  stats_.propose_seconds += seconds;
  if (stats.pays_per_depth) {
    stats_.paid_seconds += seconds;
    paid_now_ += seconds;
  }
  if (failed) {
    for (TokenTree& tree : trees) tree.clear();
    for (const std::int32_t slot : drafts.slots) {
      decodes_[static_cast<std::size_t>(slot)]->draft_failed = true;
    }
    return false;
  }
  check_drafts(proposer);
  if (stats.pays_per_depth) {
    works_.push_back({.proposer = static_cast<std::int32_t>(proposer),
                      .load = work_of(proposer),
                      .seconds = seconds});
  }
  return true;
}

void EngineCore::check_drafts(std::size_t proposer) {
  Drafts& drafts = drafts_[proposer];
  for (std::size_t i = 0; i < drafts.requests.size(); ++i) {
    TokenTree& tree = drafts.trees[i];
    const std::string fault =
        tree.validate(model_->config().vocab_size, kMaxTreeNodes, drafts.requests[i].max_depth);
    if (!fault.empty()) {
      ++stats_.num_invalid_drafts;
      stats_.last_proposer_error = names_[proposer] + ": " + fault;
      decodes_[static_cast<std::size_t>(drafts.slots[i])]->draft_failed = true;
      tree.clear();
    }
    stats_.proposers[proposer].num_proposed += tree.size();
  }
}

/// What the last call ran; of a proposer that does not count, what its trees suggest.
StepLoad EngineCore::work_of(std::size_t proposer) const {
  const ProposeWork work = proposers_[proposer]->last_work();
  if (work.num_passes >= 0) {
    return {.num_passes = work.num_passes,
            .num_tokens = work.num_tokens,
            .num_sequences = work.num_sequences,
            .num_logits = work.num_logits,
            .kv_tokens = work.kv_tokens,
            .attention_pairs = work.attention_pairs};
  }
  StepLoad load{.num_passes = 1};
  const Drafts& drafts = drafts_[proposer];
  for (std::size_t i = 0; i < drafts.requests.size(); ++i) {
    const auto& depths = drafts.trees[i].depths;
    const std::int32_t levels =
        depths.empty() ? 1 : *std::max_element(depths.begin(), depths.end()) + 1;
    load.num_passes = std::max(load.num_passes, levels);
    load.num_tokens += levels;
    load.kv_tokens += std::ssize(drafts.requests[i].tokens) * levels;
  }
  load.num_sequences = load.num_logits = load.num_tokens;
  load.attention_pairs = load.kv_tokens;
  return load;
}

/// Drafts that cost next to nothing, for every request that may draft, and what a paying
/// proposer's draft would have to catch up with first.
void EngineCore::propose_free(std::span<const DecodeSlot> slots) {
  backlog_.assign(slots.size(), 0);
  for (std::size_t p = 0; p < proposers_.size(); ++p) {
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const std::int32_t wanted = decodes_[i]->info->control.proposer;
      if (slots[i].max_depth < 1 || (wanted >= 0 && wanted != static_cast<std::int32_t>(p))) {
        continue;
      }
      if (stats_.proposers[p].pays_per_depth) {
        backlog_[i] =
            std::max(backlog_[i], proposers_[p]->backlog(decodes_[i]->key(), decodes_[i]->tokens));
      } else {
        ask(p, i, slots[i].max_depth, 0, {});
      }
    }
    if (!stats_.proposers[p].pays_per_depth) call_proposer(p);
  }
  for (std::int32_t slot = 0; slot < static_cast<std::int32_t>(slots.size()); ++slot) {
    for (std::size_t p = 0; p < drafts_.size(); ++p) {
      Drafts& drafts = drafts_[p];
      if (drafts.next >= drafts.slots.size() || drafts.slots[drafts.next] != slot) continue;
      candidates_.push_back({.request = slot,
                             .proposer = static_cast<std::int32_t>(p),
                             .tree = &drafts.trees[drafts.next++]});
    }
  }
}

void EngineCore::propose_paid(std::span<const DraftChoice> choices) {
  for (std::size_t p = 0; p < proposers_.size(); ++p) {
    if (!stats_.proposers[p].pays_per_depth) continue;
    for (std::size_t i = 0; i < choices.size(); ++i) {
      if (choices[i].proposer != static_cast<std::int32_t>(p)) continue;
      ask(p, i, choices[i].depth, choices[i].min_survival, choices[i].claims);
    }
    call_proposer(p);
  }
}

/// To every request the draft of the proposer that was chosen for it.
void EngineCore::take_drafts(std::span<const DraftChoice> choices) {
  for (std::size_t p = 0; p < drafts_.size(); ++p) {
    Drafts& drafts = drafts_[p];
    for (std::size_t i = 0; i < drafts.slots.size(); ++i) {
      const auto slot = static_cast<std::size_t>(drafts.slots[i]);
      if (choices[slot].proposer != static_cast<std::int32_t>(p)) continue;
      std::swap(decodes_[slot]->tree, drafts.trees[i]);
      decodes_[slot]->drafter = static_cast<std::int32_t>(p);
    }
  }
}

}  // namespace smartspec
