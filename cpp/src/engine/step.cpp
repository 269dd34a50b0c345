// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// One step: run the scheduled rows, verify, commit, learn, emit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <utility>

#include "engine/engine_core.hpp"
#include "smartspec/error.hpp"

namespace smartspec {
namespace {

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

/// Adds the time it lives to a total.
class EngineCore::Stopwatch {
 public:
  Stopwatch(const EngineCore& core, double& total) : core_(core), total_(total) {}
  ~Stopwatch() { total_ += core_.seconds_since(start_); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  const EngineCore& core_;
  double& total_;
  double start_ = core_.now();
};

double EngineCore::seconds_since(double start) const {
  const double seconds = now() - start;
  return seconds > 0 && std::isfinite(seconds) ? seconds : 0;
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
  for (Completion* completion : scheduled_) add_rows(*completion);
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

void EngineCore::collect_prompt_logprobs(Completion& completion) {
  const StepRows& rows = completion.rows;
  if (rows.num_prompt_logits == 0) return;
  const auto vocab = static_cast<std::size_t>(model_->config().vocab_size);
  const auto logits = decoder_.logits(rows.first_logits, rows.num_prompt_logits);
  for (std::size_t at = 0; at < logits.size(); at += vocab) {
    const auto next = static_cast<std::size_t>(completion.prompt_logprobs.size() + 1);
    completion.prompt_logprobs.push_back(
        compute_logprobs(logits.subspan(at, vocab), completion.info->prompt[next],
                         *completion.info->sampling.prompt_logprobs));
  }
}

/// On the device, where logits lie far from the host: all trees in one launch, and only tokens come
/// back. The host draws for whoever needs more than tokens, or more rules than numbers tell.
void EngineCore::walk_trees() {
  if (!decoder_.can_walk() || options_.record_logits_hash) return;
  walked_.clear();
  walks_.clear();
  draw_states_.resize(std::max(draw_states_.size(), scheduled_.size()));
  drawn_.resize(std::max(drawn_.size(), scheduled_.size()));
  for (Completion* completion : scheduled_) {
    DrawState& draws = draw_states_[walked_.size()];
    if (!completion->rows.samples || completion->info->sampling.logprobs ||
        !completion->sampler.describe(draws)) {
      continue;
    }
    walked_.push_back(completion);
    walks_.push_back({.first_logits = completion->rows.root_logits(),
                      .tokens = completion->tree.tokens,
                      .parents = completion->tree.parents,
                      .draws = &draws});
  }
  decoder_.walk(walks_, {drawn_.data(), walks_.size()});
  for (std::size_t i = 0; i < walked_.size(); ++i) walked_[i]->drawn = drawn_[i];
}

void EngineCore::verify(Completion& completion) {
  Verification& verified = completion.verification;
  std::span<const float> logits;
  const auto vocab = static_cast<std::size_t>(model_->config().vocab_size);
  const auto row_of = [&](std::int32_t node) {
    return logits.subspan(static_cast<std::size_t>(node + 1) * vocab, vocab);
  };
  if (!completion.drawn.empty()) {
    accept_drawn(completion.tree, completion.drawn, completion.sampler, verified);
  } else {
    logits = decoder_.logits(completion.rows.root_logits(), 1 + completion.tree.size());
    // By reference: the capture would not fit into the std::function and be allocated each time.
    verify_tree(completion.tree, std::cref(row_of), completion.sampler, verified);
  }

  count(completion);
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

void EngineCore::count(Completion& completion) {
  const std::int32_t num_nodes = completion.tree.size();
  const auto num_accepted = static_cast<std::int64_t>(completion.verification.path.size());
  RequestStats& stats = completion.stats;
  stats.num_drafted += num_nodes;
  stats.num_accepted += num_accepted;
  ++stats.num_steps;
  stats_.num_drafted += num_nodes;
  stats_.num_accepted += num_accepted;
  stats_.num_emitted += std::ssize(completion.verification.tokens);
  if (completion.rows.is_decode) {
    const std::int32_t longest = static_cast<std::int32_t>(stats.length_histogram.size()) - 1;
    ++stats.length_histogram[static_cast<std::size_t>(std::min(num_nodes, longest))];
  }
  if (num_nodes == 0) return;
  stats.proposer = completion.drafter;
  ProposerStats& drafter = stats_.proposers[static_cast<std::size_t>(completion.drafter)];
  drafter.num_drafted += num_nodes;
  drafter.num_accepted += num_accepted;
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

void EngineCore::verify_and_commit() {
  for (Completion* entry : scheduled_) {
    Completion& completion = *entry;
    try {
      collect_prompt_logprobs(completion);
      if (completion.rows.samples) verify(completion);
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

/// Also of requests that drafted nothing: a proposer that learns text must not miss the last tokens
/// of a request, nor those of steps whose lengths were 0.
void EngineCore::tell_proposers() {
  emitters_.clear();
  for (const Completion* completion : scheduled_) {
    if (completion->verification.tokens.empty() || !completion->info->control.enabled) continue;
    emitters_.push_back(show(*completion, 0, 0));
  }
  if (emitters_.empty()) return;
  for (std::size_t p = 0; p < proposers_.size(); ++p) {
    outcomes_.clear();
    for (const Completion* completion : scheduled_) {
      if (completion->verification.tokens.empty() || !completion->info->control.enabled) continue;
      Proposer::Outcome outcome{.id = completion->key(),
                                .tree = nullptr,
                                .accepted_path = {},
                                .emitted = completion->verification.tokens,
                                .request = &emitters_[outcomes_.size()]};
      if (completion->drafter == static_cast<std::int32_t>(p) && !completion->tree.empty()) {
        outcome.tree = &completion->tree;
        outcome.accepted_path = completion->verification.path;
      }
      outcomes_.push_back(outcome);
    }
    try {
      proposers_[p]->observe(outcomes_);
    } catch (const std::exception& error) {
      note_proposer_error(error.what());
    }
  }
}

void EngineCore::tell_scheduler(double seconds) {
  const Stopwatch watch(*this, stats_.decision_seconds);
  request_outcomes_.clear();
  for (const Completion* completion : scheduled_) {
    const Verification& verified = completion->verification;
    if (verified.tokens.empty()) continue;
    request_outcomes_.push_back({.id = completion->key(),
                                 .num_verified = completion->tree.size(),
                                 .num_accepted = static_cast<std::int32_t>(verified.path.size()),
                                 .emitted = verified.tokens});
  }
  scheduler_.finish_step(request_outcomes_, works_, seconds, now());
}

void EngineCore::finish_ended() {
  for (Completion* completion : scheduled_) {
    if (completion->finished) end(*completion);
  }
  scheduled_.clear();
}

/// Which rows run.
void EngineCore::decide() {
  std::span<const DecodeSlot> slots;
  {
    const Stopwatch watch(*this, stats_.decision_seconds);
    slots = scheduler_.begin_step(now());
  }
  collect_decodes(slots);
  propose_free(slots);
  std::span<const DraftChoice> choices;
  {
    const Stopwatch watch(*this, stats_.decision_seconds);
    choices = scheduler_.plan(candidates_, backlog_);
  }
  propose_paid(choices);
  take_drafts(choices);
  const Stopwatch watch(*this, stats_.decision_seconds);
  collect_scheduled(scheduler_.schedule(trees_, works_));
}

void EngineCore::collect_scheduled(std::span<const ScheduledRows> rows) {
  for (const ScheduledRows& row : rows) {
    Completion* completion =
        row.decode >= 0 ? decodes_[static_cast<std::size_t>(row.decode)] : find(row.id);
    completion->rows = {
        .num_causal = row.num_causal, .samples = row.samples, .is_decode = row.decode >= 0};
    completion->drawn = {};
    completion->verification.clear();
    NoSpeculationReason& reason = completion->stats.no_speculation_reason;
    reason = row.reason;
    if (row.decode < 0) {
      completion->tree.clear();
    } else if (completion->draft_failed && reason == NoSpeculationReason::kNothingFound) {
      reason = NoSpeculationReason::kProposerError;
    }
    completion->has_run = true;
    if (!completion->was_scheduled) {
      completion->was_scheduled = true;
      completion->stats.num_cached_tokens =
          std::min(completion->num_found, completion->num_prompt());
    }
    scheduled_.push_back(completion);
  }
}

std::span<RequestOutput> EngineCore::step() {
  const double start = now();
  // What the caller does between steps is part of what a step takes while requests run. A lone
  // pause is not: the shorter one of the last two counts.
  const double pause = was_busy_ ? seconds_since(last_end_) : 0;
  const double outside = std::min(pause, last_pause_);
  last_pause_ = pause;
  was_busy_ = false;
  num_outputs_ = 0;
  moves_.clear();
  scheduled_.clear();
  if (completions_.empty()) return {};
  decide();
  build_batch();
  if (batch_.num_rows() == 0) return {};

  const double forward_start = now();
  run_moves();
  decoder_.run(batch_);
  walk_trees();
  stats_.forward_seconds += seconds_since(forward_start);

  const double verify_start = now();
  verify_and_commit();
  stats_.verify_seconds += seconds_since(verify_start);

  ++stats_.num_steps;
  stats_.num_tokens_computed += batch_.num_rows();
  tell_proposers();
  const double inside = seconds_since(start) - paid_now_;
  tell_scheduler(inside + std::min(outside, inside));
  finish_ended();
  stats_.step_seconds += seconds_since(start);
  was_busy_ = !completions_.empty();
  last_end_ = now();
  return {outputs_.data(), num_outputs_};
}

EngineStats EngineCore::stats() const {
  EngineStats stats = stats_;
  stats.scheduler = scheduler_.stats();
  stats.scheduler.policy.decision_seconds = stats_.decision_seconds;
  stats.num_preemptions = stats.scheduler.num_preemptions;
  stats.num_running = stats.scheduler.num_running;
  stats.num_waiting = stats.scheduler.num_waiting;
  stats.kv = kv_.stats();
  return stats;
}

}  // namespace smartspec
