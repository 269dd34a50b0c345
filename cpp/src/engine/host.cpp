// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Completions and their memory, as the scheduler asks for it.
#include <algorithm>
#include <exception>
#include <stdexcept>
#include <utility>

#include "engine/engine_core.hpp"

namespace smartspec {
namespace {

std::vector<std::shared_ptr<Proposer>> not_null(std::vector<std::shared_ptr<Proposer>> proposers) {
  for (const auto& proposer : proposers) {
    if (proposer == nullptr) throw std::invalid_argument("proposers must not be null");
  }
  return proposers;
}

std::vector<std::string> names_of(const std::vector<std::shared_ptr<Proposer>>& proposers) {
  std::vector<std::string> names;
  for (const auto& proposer : proposers) names.emplace_back(proposer->name());
  return names;
}

}  // namespace

EngineCore::EngineCore(std::shared_ptr<const Model> model, const EngineOptions& options,
                       std::shared_ptr<const StopVocabulary> stops,
                       std::vector<std::shared_ptr<Proposer>> proposers,
                       std::shared_ptr<LengthPolicy> policy)
    : model_(std::move(model)),
      options_(resolve_options(options, *model_)),
      stops_(std::move(stops)),
      proposers_(not_null(std::move(proposers))),
      names_(names_of(proposers_)),
      kv_({.num_blocks = options_.num_kv_blocks,
           .block_size = options_.block_size,
           .enable_prefix_caching = options_.enable_prefix_caching,
           .hash_seed = options_.prefix_hash_seed}),
      decoder_(model_, options_.num_kv_blocks, options_.block_size, *options_.kv_dtype,
               options_.max_model_len),
      scheduler_(scheduler_options(), std::move(policy), *this),
      drafts_(proposers_.size()) {
  for (std::size_t i = 0; i < proposers_.size(); ++i) {
    stats_.proposers.push_back(
        {.name = names_[i], .pays_per_depth = proposers_[i]->pays_per_depth()});
  }
}

SchedulerOptions EngineCore::scheduler_options() const {
  SchedulerOptions options{.max_num_seqs = options_.max_num_seqs,
                           .max_num_batched_tokens = options_.max_num_batched_tokens,
                           .aging_seconds = options_.aging_seconds,
                           .proposers = names_,
                           .pays_per_depth = {},
                           .vocab_size = model_->config().vocab_size};
  for (const auto& proposer : proposers_) {
    options.pays_per_depth.push_back(proposer->pays_per_depth());
  }
  return options;
}

Completion* EngineCore::find(RequestId key) const {
  const auto entry = completions_.find(key);
  return entry == completions_.end() ? nullptr : entry->second.get();
}

void EngineCore::enqueue(std::unique_ptr<Completion> completion) {
  const RequestInfo& info = *completion->info;
  const RequestId key = completion->key();
  scheduler_.add({.id = key,
                  .priority = info.priority,
                  .num_prompt_tokens = completion->num_prompt(),
                  .max_tokens = info.sampling.max_tokens,
                  .group = info.sampling.temperature > 0 ? 1 : 0,
                  .control = info.control},
                 now());
  completions_.emplace(key, std::move(completion));
}

/// Forgets a completion everywhere.
void EngineCore::end(Completion& completion) {
  const RequestId key = completion.key();
  completion.finished = true;
  scheduler_.remove(key);
  for (const auto& proposer : proposers_) {
    try {
      proposer->finish(key);
    } catch (const std::exception& error) {
      note_proposer_error(error.what());
    }
  }
  completions_.erase(key);
}

void EngineCore::drop(RequestId id) {
  while (true) {
    const auto entry = completions_.lower_bound(id);
    if (entry == completions_.end() || entry->second->info->id != id) return;
    end(*entry->second);
  }
}

bool EngineCore::preempt(RequestId id, std::int32_t index) {
  const Completion* completion = find(id + index);
  if (completion == nullptr || completion->info->id != id) return false;
  return scheduler_.preempt(completion->key());
}

KvHost::Admission EngineCore::admit(RequestId id, std::int32_t num_tokens, bool alone,
                                    std::int32_t& num_computed) {
  Completion& completion = *find(id);
  const std::int32_t shareable = completion.num_prompt() - 1;
  const Completion* sibling = nullptr;
  if (const auto family = siblings_.find(completion.info->id); family != siblings_.end()) {
    for (const Completion* other : family->second) {
      sibling = other;
      if (kv_.verified_length(other->sequence) >= shareable) break;
      sibling = nullptr;
    }
    // It will share the prompt once that is computed.
    if (sibling == nullptr && !family->second.empty()) return Admission::kNotYet;
  }
  if (sibling != nullptr && shareable > 0) {
    completion.sequence = kv_.fork(sibling->sequence, shareable);
  } else {
    completion.sequence = kv_.add_sequence(completion.info->cache_salt);
    // Prompt logprobs need every row of the prompt, so nothing may be skipped.
    if (!completion.wants_prompt_logprobs()) {
      kv_.match_prefix(completion.sequence, completion.tokens);
    }
  }
  num_computed = kv_.verified_length(completion.sequence);
  // Room for everything that is pending, or it would be preempted before it emits a token.
  const std::int32_t pending = num_tokens - num_computed;
  if (!alone && kv_.blocks_needed(completion.sequence, pending) > kv_.stats().num_free) {
    kv_.remove_sequence(completion.sequence);
    completion.sequence = -1;
    return Admission::kNoRoom;
  }
  if (completion.info->sampling.n > 1) siblings_[completion.info->id].push_back(&completion);
  completion.num_found = num_computed;
  completion.has_run = false;
  return Admission::kAdmitted;
}

/// Only what a sibling has: asking the prefix cache costs a hash per block, each step again.
std::int32_t EngineCore::expect_computed(RequestId id, std::int32_t /*num_tokens*/) const {
  const Completion& completion = *find(id);
  return siblings_.contains(completion.info->id) ? completion.num_prompt() - 1 : 0;
}

bool EngineCore::reserve(RequestId id, std::int32_t num_rows) {
  return kv_.reserve(find(id)->sequence, num_rows, moves_);
}

void EngineCore::rollback(RequestId id) { kv_.rollback(find(id)->sequence); }

void EngineCore::release(RequestId id) {
  Completion& completion = *find(id);
  kv_.remove_sequence(completion.sequence);
  completion.sequence = -1;
  completion.rows = {};
  if (completion.has_run && !completion.finished) ++completion.stats.num_preemptions;
  const auto family = siblings_.find(completion.info->id);
  if (family == siblings_.end()) return;
  std::erase(family->second, &completion);
  if (family->second.empty()) siblings_.erase(family);
}

std::string EngineCore::check_integrity() const {
  if (std::string fault = kv_.check_integrity(); !fault.empty()) return fault;
  if (std::string fault = scheduler_.check_integrity(); !fault.empty()) return fault;
  if (kv_.num_sequences() != scheduler_.num_running()) {
    return "KV sequences " + std::to_string(kv_.num_sequences()) + " != running requests " +
           std::to_string(scheduler_.num_running());
  }
  for (const auto& [key, completion] : completions_) {
    const std::string who = "request " + std::to_string(completion->info->id);
    if (scheduler_.is_running(key) != (completion->sequence >= 0)) {
      return who + " has a sequence while it waits, or none while it runs";
    }
    if (completion->sequence < 0) continue;
    if (kv_.reserved(completion->sequence) != 0) return "a reservation is open between steps";
    if (kv_.verified_length(completion->sequence) >= completion->num_tokens()) {
      return who + " has no pending token";
    }
  }
  return {};
}

}  // namespace smartspec
