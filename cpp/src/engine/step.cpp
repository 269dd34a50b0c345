// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// One step: run the scheduled rows, verify, commit, learn, emit.
#include <chrono>
#include <cstring>
#include <functional>
#include <utility>

#include "engine/engine_core.hpp"
#include "smartspec/error.hpp"

namespace smartspec {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Order-sensitive 64-bit digest of a row's bits, for exactness tests.
std::uint64_t hash_row(std::span<const float> row) {
  std::uint64_t hash = 0x9E3779B97F4A7C15ULL;
  for (const float value : row) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    hash = (hash ^ bits) * 0xD6E8FEB86659FD93ULL;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace

EngineCore::EngineCore(std::shared_ptr<const Model> model, const EngineOptions& options,
                       std::shared_ptr<const StopVocabulary> stops,
                       std::shared_ptr<Proposer> proposer, std::shared_ptr<LengthPolicy> policy)
    : model_(std::move(model)),
      options_(resolve_options(options, *model_)),
      stops_(std::move(stops)),
      proposer_(std::move(proposer)),
      policy_(std::move(policy)),
      kv_({.num_blocks = options_.num_kv_blocks,
           .block_size = options_.block_size,
           .enable_prefix_caching = options_.enable_prefix_caching,
           .hash_seed = options_.prefix_hash_seed}),
      decoder_(model_, options_.num_kv_blocks, options_.block_size, *options_.kv_dtype,
               options_.max_model_len) {}

void EngineCore::enqueue(std::unique_ptr<Completion> completion) {
  waiting_.insert(std::move(completion));
}

void EngineCore::drop(RequestId id) {
  const auto end = [&](Completion& completion) {
    release(completion);
    completion.finished = true;
    if (proposer_ == nullptr) return;
    try {
      proposer_->finish(completion.key());
    } catch (const std::exception& error) {
      note_proposer_error(error.what());
    }
  };
  std::erase_if(running_, [&](const std::unique_ptr<Completion>& completion) {
    if (completion->info->id != id) return false;
    end(*completion);
    return true;
  });
  for (auto entry = waiting_.begin(); entry != waiting_.end();) {
    if ((*entry)->info->id != id) {
      ++entry;
      continue;
    }
    end(**entry);
    entry = waiting_.erase(entry);
  }
}

RequestOutput& EngineCore::new_output(const Completion& completion) {
  if (num_outputs_ == outputs_.size()) outputs_.emplace_back();
  RequestOutput& output = outputs_[num_outputs_++];
  output.id = completion.info->id;
  output.index = completion.index;
  output.new_token_ids.clear();
  output.logprobs.clear();
  output.prompt_logprobs.clear();
  output.logits_hashes.clear();
  output.finish_reason = FinishReason::kNone;
  output.stop_string_index = -1;
  output.stop_token_id = -1;
  output.error.clear();
  return output;
}

void EngineCore::add_rows(Completion& completion) {
  StepRows& rows = completion.rows;
  const std::int32_t verified = kv_.verified_length(completion.sequence);
  const std::int32_t num_tree = completion.tree.size();
  rows.first_row = batch_.num_rows();
  rows.num_prompt_logits = 0;
  rows.first_logits = static_cast<std::int32_t>(batch_.logits_rows.size());
  for (std::int32_t i = 0; i < rows.num_causal; ++i) {
    const std::int32_t position = verified + i;
    const bool is_last = i + 1 == rows.num_causal;
    if (completion.wants_prompt_logprobs() && position + 1 < completion.num_prompt() &&
        position >= static_cast<std::int32_t>(completion.prompt_logprobs.size())) {
      batch_.logits_rows.push_back(batch_.num_rows());
      ++rows.num_prompt_logits;
    } else if (is_last && rows.samples) {
      batch_.logits_rows.push_back(batch_.num_rows());
    }
    batch_.tokens.push_back(completion.tokens[static_cast<std::size_t>(position)]);
    batch_.positions.push_back(position);
    batch_.slots.push_back(kv_.slot(completion.sequence, position));
  }
  for (std::int32_t node = 0; node < num_tree; ++node) {
    const auto i = static_cast<std::size_t>(node);
    batch_.logits_rows.push_back(batch_.num_rows());
    batch_.tokens.push_back(completion.tree.tokens[i]);
    batch_.positions.push_back(completion.num_tokens() + completion.tree.depths[i]);
    batch_.slots.push_back(kv_.slot(completion.sequence, verified + rows.num_causal + node));
  }
  batch_.sequences.push_back({.first_row = rows.first_row,
                              .context_len = verified,
                              .num_causal = rows.num_causal,
                              .num_tree = num_tree,
                              .tree_start = 0,
                              .tree_parents = completion.tree.parents,
                              .block_table = kv_.block_table(completion.sequence)});
}

void EngineCore::build_batch() {
  batch_.clear();
  for (const auto& completion : running_) {
    if (completion->rows.num_causal > 0) add_rows(*completion);
  }
}

void EngineCore::run_moves() {
  if (moves_.empty()) return;
  move_sources_.clear();
  move_destinations_.clear();
  for (const KvMove& move : moves_) {
    move_sources_.push_back(move.source);
    move_destinations_.push_back(move.destination);
  }
  decoder_.move_kv(move_sources_, move_destinations_);
  moves_.clear();
}

void EngineCore::collect_prompt_logprobs(Completion& completion, std::span<const float> logits) {
  const auto vocab = static_cast<std::size_t>(model_->config().vocab_size);
  for (std::int32_t i = 0; i < completion.rows.num_prompt_logits; ++i) {
    const auto row = static_cast<std::size_t>(completion.rows.first_logits + i);
    const auto next = static_cast<std::size_t>(completion.prompt_logprobs.size() + 1);
    completion.prompt_logprobs.push_back(
        compute_logprobs(logits.subspan(row * vocab, vocab), completion.info->prompt[next],
                         *completion.info->sampling.prompt_logprobs));
  }
}

void EngineCore::verify(Completion& completion, std::span<const float> logits) {
  const auto vocab = static_cast<std::size_t>(model_->config().vocab_size);
  const auto root =
      static_cast<std::size_t>(completion.rows.first_logits + completion.rows.num_prompt_logits);
  const auto row_of = [&](std::int32_t node) {
    return logits.subspan((root + static_cast<std::size_t>(node + 1)) * vocab, vocab);
  };
  // By reference: the capture would not fit into the std::function and be allocated each time.
  verify_tree(completion.tree, std::cref(row_of), completion.sampler, completion.verification);

  Verification& verified = completion.verification;
  completion.stats.num_drafted += completion.tree.size();
  completion.stats.num_accepted += static_cast<std::int64_t>(verified.path.size());
  ++completion.stats.num_steps;
  stats_.num_drafted += completion.tree.size();
  stats_.num_accepted += static_cast<std::int64_t>(verified.path.size());
  stats_.num_emitted += static_cast<std::int64_t>(verified.tokens.size());

  RequestOutput& output = new_output(completion);
  output.new_token_ids.assign(verified.tokens.begin(), verified.tokens.end());
  output.logprobs = verified.logprobs;
  output.prompt_logprobs = std::move(completion.prompt_logprobs);
  completion.prompt_logprobs.clear();
  output.finish_reason = verified.finish_reason;
  output.stop_string_index = completion.sampler.matched_stop_string();
  output.stop_token_id = completion.sampler.matched_stop_token();
  if (options_.record_logits_hash) {
    for (const std::int32_t row : verified.rows) {
      output.logits_hashes.push_back(hash_row(row_of(row - 1)));
    }
  }
  output.stats = completion.stats;
  completion.finished = verified.finish_reason != FinishReason::kNone;
}

void EngineCore::commit(Completion& completion) {
  path_.clear();
  path_tokens_.clear();
  const std::int32_t num_causal = completion.rows.num_causal;
  const std::int32_t verified = kv_.verified_length(completion.sequence);
  for (std::int32_t i = 0; i < num_causal; ++i) {
    path_.push_back(i);
    path_tokens_.push_back(completion.tokens[static_cast<std::size_t>(verified + i)]);
  }
  for (const std::int32_t node : completion.verification.path) {
    path_.push_back(num_causal + node);
    path_tokens_.push_back(completion.tree.tokens[static_cast<std::size_t>(node)]);
  }
  kv_.commit(completion.sequence, path_, path_tokens_, moves_);
  completion.tokens.insert(completion.tokens.end(), completion.verification.tokens.begin(),
                           completion.verification.tokens.end());
}

void EngineCore::verify_and_commit(std::span<const float> logits) {
  for (const auto& entry : running_) {
    Completion& completion = *entry;
    if (completion.rows.num_causal == 0) continue;
    try {
      collect_prompt_logprobs(completion, logits);
      if (completion.rows.samples) verify(completion, logits);
    } catch (const Error& error) {
      // Its logits are unusable (NaN, or everything masked): it ends, nobody else notices.
      RequestOutput& output = new_output(completion);
      output.finish_reason = FinishReason::kError;
      output.error = error.what();
      output.stats = completion.stats;
      completion.finished = true;
      completion.verification.clear();
      kv_.rollback(completion.sequence);
      continue;
    }
    commit(completion);
  }
  run_moves();
}

void EngineCore::learn(double seconds) {
  if (!drafting_.empty()) {
    verified_.clear();
    accepted_.clear();
    for (const Completion* completion : drafting_) {
      verified_.push_back(completion->tree.size());
      accepted_.push_back(static_cast<std::int32_t>(completion->verification.path.size()));
    }
    policy_->observe(length_requests_, verified_, accepted_, seconds);
  }
  if (proposer_ != nullptr) tell_proposer();
}

/// Also of requests that drafted nothing: a proposer that learns text must not miss the last tokens
/// of a request, nor those of steps whose lengths were 0.
void EngineCore::tell_proposer() {
  emitters_.clear();
  outcomes_.clear();
  for (const auto& completion : running_) {
    if (completion->verification.tokens.empty() || !completion->info->speculate) continue;
    emitters_.push_back(show(*completion, 0, 0));
    outcomes_.push_back({.id = completion->key(),
                         .tree = &completion->tree,
                         .accepted_path = completion->verification.path,
                         .emitted = completion->verification.tokens});
  }
  if (outcomes_.empty()) return;
  for (std::size_t i = 0; i < outcomes_.size(); ++i) outcomes_[i].request = &emitters_[i];
  try {
    proposer_->observe(outcomes_);
  } catch (const std::exception& error) {
    note_proposer_error(error.what());
  }
}

void EngineCore::finish_ended() {
  std::erase_if(running_, [&](const std::unique_ptr<Completion>& completion) {
    if (!completion->finished) return false;
    release(*completion);
    if (proposer_ != nullptr) {
      try {
        proposer_->finish(completion->key());
      } catch (const std::exception& error) {
        note_proposer_error(error.what());
      }
    }
    return true;
  });
}

std::span<RequestOutput> EngineCore::step() {
  const auto start = Clock::now();
  num_outputs_ = 0;
  rows_left_ = options_.max_num_batched_tokens;
  preempted_now_ = false;
  moves_.clear();
  drafting_.clear();

  collect_decodes();
  const auto propose_start = Clock::now();
  propose();
  stats_.propose_seconds += seconds_since(propose_start);
  reserve_decodes();
  schedule_prefills();
  admit();
  build_batch();
  if (batch_.num_rows() == 0) return {};

  const auto forward_start = Clock::now();
  run_moves();
  const std::span<const float> logits = decoder_.forward(batch_);
  stats_.forward_seconds += seconds_since(forward_start);

  const auto verify_start = Clock::now();
  verify_and_commit(logits);
  stats_.verify_seconds += seconds_since(verify_start);

  ++stats_.num_steps;
  stats_.num_tokens_computed += batch_.num_rows();
  learn(seconds_since(start));
  finish_ended();
  stats_.step_seconds += seconds_since(start);
  return {outputs_.data(), num_outputs_};
}

EngineStats EngineCore::stats() const {
  EngineStats stats = stats_;
  stats.num_running = static_cast<std::int32_t>(running_.size());
  stats.num_waiting = static_cast<std::int32_t>(waiting_.size());
  stats.kv = kv_.stats();
  return stats;
}

std::string EngineCore::check_integrity() const {
  if (std::string fault = kv_.check_integrity(); !fault.empty()) return fault;
  if (kv_.num_sequences() != static_cast<std::int32_t>(running_.size())) {
    return "KV sequences " + std::to_string(kv_.num_sequences()) + " != running requests " +
           std::to_string(running_.size());
  }
  for (const auto& completion : running_) {
    if (kv_.reserved(completion->sequence) != 0) return "a reservation is open between steps";
    if (kv_.verified_length(completion->sequence) >= completion->num_tokens()) {
      return "request " + std::to_string(completion->info->id) + " has no pending token";
    }
  }
  return {};
}

}  // namespace smartspec
