// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Which rows run in this step, and who gives way when blocks run out: first drafts, then requests.
#include <algorithm>
#include <utility>

#include "engine/engine_core.hpp"

namespace smartspec {

void EngineCore::schedule_rows(Completion& completion, std::int32_t num_causal) {
  const std::int32_t pending = completion.num_tokens() - kv_.verified_length(completion.sequence);
  completion.rows.num_causal = num_causal;
  completion.rows.samples = num_causal == pending;
  rows_left_ -= num_causal + completion.tree.size();
}

void EngineCore::collect_decodes() {
  decodes_.clear();
  for (const auto& completion : running_) {
    completion->rows = {};
    completion->tree.clear();
    completion->verification.clear();
    const std::int32_t verified = kv_.verified_length(completion->sequence);
    if (completion->num_tokens() - verified != 1) {
      completion->stats.no_speculation_reason = NoSpeculationReason::kPrefill;
    } else if (static_cast<std::int32_t>(decodes_.size()) < rows_left_) {
      decodes_.push_back(completion.get());
    }
  }
}

void EngineCore::release(Completion& completion) {
  if (completion.sequence >= 0) kv_.remove_sequence(completion.sequence);
  completion.sequence = -1;
  completion.rows = {};
}

void EngineCore::preempt_running(std::size_t position) {
  auto completion = std::move(running_[position]);
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(position));
  release(*completion);
  completion->tree.clear();
  ++completion->stats.num_preemptions;
  ++stats_.num_preemptions;
  preempted_now_ = true;
  waiting_.insert(std::move(completion));
}

bool EngineCore::preempt(RequestId id, std::int32_t index) {
  for (std::size_t i = 0; i < running_.size(); ++i) {
    if (running_[i]->info->id == id && running_[i]->index == index) {
      preempt_running(i);
      return true;
    }
  }
  return false;
}

bool EngineCore::reserve_or_preempt(Completion& completion, std::int32_t num_rows) {
  while (!kv_.reserve(completion.sequence, num_rows, moves_)) {
    // The last in order gives way, but nobody whose rows are already part of this step.
    const std::unique_ptr<Completion>& last = running_.back();
    if (last.get() == &completion || last->rows.num_causal > 0) return false;
    preempt_running(running_.size() - 1);
  }
  return true;
}

void EngineCore::drop_reserved_drafts() {
  for (Completion* completion : decodes_) {
    if (completion->sequence < 0 || completion->rows.num_causal == 0) continue;
    if (completion->tree.empty()) continue;
    rows_left_ += completion->tree.size();
    completion->tree.clear();
    completion->stats.no_speculation_reason = NoSpeculationReason::kKvExhausted;
    kv_.rollback(completion->sequence);
    // Cannot fail: the rollback just returned at least as much.
    (void)kv_.reserve(completion->sequence, 1, moves_);
  }
}

void EngineCore::reserve_decodes() {
  for (Completion* completion : decodes_) {
    if (completion->sequence < 0) continue;  // preempted for one before it
    bool fits = kv_.reserve(completion->sequence, 1 + completion->tree.size(), moves_);
    if (!fits && !completion->tree.empty()) {
      completion->tree.clear();
      completion->stats.no_speculation_reason = NoSpeculationReason::kKvExhausted;
      fits = kv_.reserve(completion->sequence, 1, moves_);
    }
    if (!fits) {
      drop_reserved_drafts();
      fits = reserve_or_preempt(*completion, 1);
    }
    if (fits) {
      schedule_rows(*completion, 1);
      continue;
    }
    preempt(completion->info->id, completion->index);
  }
}

void EngineCore::schedule_prefills() {
  // By index: preemption removes from the back while we walk.
  for (std::size_t i = 0; i < running_.size() && rows_left_ > 0; ++i) {
    Completion& completion = *running_[i];
    if (completion.rows.num_causal > 0) continue;
    const std::int32_t pending = completion.num_tokens() - kv_.verified_length(completion.sequence);
    const std::int32_t chunk = std::min(pending, rows_left_);
    if (reserve_or_preempt(completion, chunk)) schedule_rows(completion, chunk);
  }
}

const Completion* EngineCore::find_sibling(const Completion& completion) const {
  for (const auto& other : running_) {
    if (other->info == completion.info) return other.get();
  }
  return nullptr;
}

bool EngineCore::admit_one(Completion& completion) {
  const bool alone = running_.empty();
  const Completion* sibling = find_sibling(completion);
  const std::int32_t shareable = completion.num_prompt() - 1;
  if (sibling != nullptr && shareable > 0) {
    completion.sequence = kv_.fork(sibling->sequence, shareable);
  } else {
    completion.sequence = kv_.add_sequence(completion.info->cache_salt);
    // Prompt logprobs need every row of the prompt, so nothing may be skipped.
    if (!completion.wants_prompt_logprobs()) {
      kv_.match_prefix(completion.sequence, completion.tokens);
    }
  }
  const std::int32_t verified = kv_.verified_length(completion.sequence);
  const std::int32_t pending = completion.num_tokens() - verified;
  // Room for everything that is pending, or it would be preempted before it emits a token.
  const bool fits = kv_.blocks_needed(completion.sequence, pending) <= kv_.stats().num_free;
  const std::int32_t chunk = std::min(pending, rows_left_);
  if ((!fits && !alone) || !kv_.reserve(completion.sequence, chunk, moves_)) {
    release(completion);
    return false;
  }
  if (!completion.was_admitted) {
    completion.was_admitted = true;
    completion.stats.num_cached_tokens = std::min(verified, completion.num_prompt());
  }
  completion.stats.no_speculation_reason = NoSpeculationReason::kPrefill;
  completion.rows = {};
  completion.tree.clear();
  completion.verification.clear();
  schedule_rows(completion, chunk);
  return true;
}

void EngineCore::admit() {
  if (preempted_now_) return;  // who was just sent away must not come back at once
  for (auto next = waiting_.begin(); next != waiting_.end() && rows_left_ > 0;) {
    if (static_cast<std::int32_t>(running_.size()) >= options_.max_num_seqs) return;
    const Completion* sibling = find_sibling(**next);
    const bool sibling_in_prefill =
        sibling != nullptr && kv_.verified_length(sibling->sequence) < (*next)->num_prompt() - 1;
    if (sibling_in_prefill) {  // it will share the sibling's prompt once that is computed
      ++next;
      continue;
    }
    if (!admit_one(**next)) return;
    auto node = waiting_.extract(next++);
    const auto place = std::upper_bound(running_.begin(), running_.end(), node.value(), Order{});
    running_.insert(place, std::move(node.value()));
  }
}

}  // namespace smartspec
