// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Which rows run in a step, and who gives way when rows or blocks run out: first drafts, then
// requests.
#include "smartspec/scheduler.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "schedule/scheduler_impl.hpp"
#include "smartspec/survival_model.hpp"

namespace smartspec {
namespace {

constexpr std::int32_t kMaxRows = 1 << 24;
constexpr std::int32_t kMaxTokens = 1 << 30;
constexpr double kMaxAgingSeconds = 1e9;
// Waiting requests that a step tries in vain because their siblings compute the same prompt.
constexpr std::size_t kMaxPutOff = 1024;

void check_range(const std::string& field, std::int64_t value, std::int64_t low,
                 std::int64_t high) {
  if (value >= low && value <= high) return;
  throw std::invalid_argument(field + " must be in [" + std::to_string(low) + ", " +
                              std::to_string(high) + "], got " + std::to_string(value));
}

void check(const SchedulerOptions& options) {
  check_range("max_num_seqs", options.max_num_seqs, 1, kMaxRows);
  check_range("max_num_batched_tokens", options.max_num_batched_tokens, options.max_num_seqs,
              kMaxRows);
  check_range("vocab_size", options.vocab_size, 1, std::numeric_limits<std::int32_t>::max());
  if (!(options.aging_seconds >= 0 && options.aging_seconds <= kMaxAgingSeconds)) {
    throw std::invalid_argument("aging_seconds must be in [0, 1e9], got " +
                                std::to_string(options.aging_seconds));
  }
  if (options.proposers.size() != options.pays_per_depth.size()) {
    throw std::invalid_argument("pays_per_depth must have one entry per proposer (" +
                                std::to_string(options.proposers.size()) + "), got " +
                                std::to_string(options.pays_per_depth.size()));
  }
}

}  // namespace

Scheduler::Impl::Impl(const SchedulerOptions& scheduler_options,
                      std::shared_ptr<LengthPolicy> length_policy, KvHost& kv_host)
    : options(scheduler_options),
      policy(length_policy != nullptr ? std::move(length_policy) : make_off_policy()),
      host(kv_host) {
  check(options);
  for (std::size_t i = 0; i < options.proposers.size(); ++i) {
    proposers.push_back(
        {.name = options.proposers[i], .pays_per_depth = options.pays_per_depth[i]});
  }
}

SchedulerEntry* Scheduler::Impl::find(RequestId id) const {
  const auto entry = entries.find(id);
  return entry == entries.end() ? nullptr : entry->second.get();
}

/// While it waits, a request rises by one priority per aging_seconds. All that wait rise alike, so
/// their order never changes: by the time at which each would reach priority 0. A request keeps its
/// rank when it runs and when it is preempted, so whoever came later in its class stays behind it.
double Scheduler::Impl::rank_of(std::int32_t priority) const {
  return options.aging_seconds > 0 ? priority * options.aging_seconds + now : priority;
}

void Scheduler::Impl::advance(double time) noexcept {
  if (!std::isfinite(time)) return;
  now = has_time ? std::max(now, time) : time;
  has_time = true;
}

/// A step that was begun and not finished, after an exception for example.
void Scheduler::Impl::abandon_step() {
  if (phase == Phase::kIdle) return;
  phase = Phase::kIdle;
  for (SchedulerEntry* entry : running) {
    if (entry->num_causal == 0) continue;
    entry->num_causal = 0;
    host.rollback(entry->request.id);
  }
}

std::size_t Scheduler::Impl::position_of(const SchedulerEntry& entry) const {
  const auto place = std::lower_bound(
      running.begin(), running.end(), &entry,
      [](const SchedulerEntry* a, const SchedulerEntry* b) { return runs_before(*a, *b); });
  return static_cast<std::size_t>(place - running.begin());
}

void Scheduler::Impl::preempt_running(std::size_t position) {
  SchedulerEntry* entry = running[position];
  running.erase(running.begin() + static_cast<std::ptrdiff_t>(position));
  if (entry->slot >= 0 && phase != Phase::kIdle)
    trees[static_cast<std::size_t>(entry->slot)]->clear();
  entry->running = false;
  entry->num_computed = 0;
  entry->num_causal = 0;
  entry->num_nodes = 0;
  entry->reason = NoSpeculationReason::kPrefill;
  waiting.push(entry);
  ++num_preemptions;
  preempted_now = true;
  host.release(entry->request.id);
}

void Scheduler::Impl::collect_decodes() {
  decoding.clear();
  slots.clear();
  for (SchedulerEntry* entry : running) {
    entry->start_step();
    if (entry->pending() != 1 || static_cast<std::int32_t>(slots.size()) >= rows_left) continue;
    entry->slot = static_cast<std::int32_t>(slots.size());
    slots.push_back(make_slot(*entry));
    decoding.push_back(entry);
    entry->reason = slots.back().reason;
  }
  choices.assign(slots.size(), {});
}

void Scheduler::Impl::take_rows(SchedulerEntry& entry, std::int32_t num_causal) {
  entry.num_causal = num_causal;
  entry.num_nodes = entry.slot >= 0 ? trees[static_cast<std::size_t>(entry.slot)]->size() : 0;
  entry.samples = num_causal == entry.pending();
  rows_left -= num_causal + entry.num_nodes;
}

/// True when there were any.
bool Scheduler::Impl::drop_reserved_drafts() {
  bool dropped = false;
  for (SchedulerEntry* entry : decoding) {
    if (!entry->running || entry->num_causal == 0 || entry->num_nodes == 0) continue;
    dropped = true;
    trees[static_cast<std::size_t>(entry->slot)]->clear();
    entry->reason = NoSpeculationReason::kKvExhausted;
    rows_left += entry->num_nodes;
    entry->num_nodes = 0;
    host.rollback(entry->request.id);
    // Cannot fail on a sane host: the rollback just returned at least as much.
    if (host.reserve(entry->request.id, 1)) continue;
    entry->num_causal = 0;
    ++rows_left;
  }
  return dropped;
}

bool Scheduler::Impl::reserve_or_give_way(SchedulerEntry& entry, std::int32_t num_rows) {
  if (host.reserve(entry.request.id, num_rows)) return true;
  if (drop_reserved_drafts() && host.reserve(entry.request.id, num_rows)) return true;
  do {
    // The last in order gives way, but nobody whose rows are already part of this step.
    const SchedulerEntry* last = running.back();
    if (last == &entry || last->num_causal > 0) return false;
    preempt_running(running.size() - 1);
  } while (!host.reserve(entry.request.id, num_rows));
  return true;
}

void Scheduler::Impl::reserve_decodes() {
  for (std::size_t i = 0; i < decoding.size(); ++i) {
    SchedulerEntry& entry = *decoding[i];
    if (!entry.running) continue;  // preempted for one before it
    TokenTree& tree = *trees[i];
    bool fits = !tree.empty() && host.reserve(entry.request.id, 1 + tree.size());
    if (!fits && !tree.empty()) {
      tree.clear();
      entry.reason = NoSpeculationReason::kKvExhausted;
    }
    fits = fits || reserve_or_give_way(entry, 1);
    if (fits) {
      take_rows(entry, 1);
    } else {
      preempt_running(position_of(entry));
    }
  }
}

std::int32_t Scheduler::Impl::room_for_chunk(const SchedulerEntry& entry) const {
  return std::min({entry.pending(), rows_left, chunk_rows_left});
}

void Scheduler::Impl::schedule_chunks() {
  // By index: preemption removes from the back while we walk.
  for (std::size_t i = 0; i < running.size(); ++i) {
    SchedulerEntry& entry = *running[i];
    const std::int32_t chunk = room_for_chunk(entry);
    if (entry.num_causal > 0) continue;
    if (chunk <= 0) return;
    if (!reserve_or_give_way(entry, chunk)) continue;
    take_rows(entry, chunk);
    chunk_rows_left -= chunk;
  }
}

bool Scheduler::Impl::admit_one(SchedulerEntry& entry, KvHost::Admission& answer) {
  const RequestId id = entry.request.id;
  std::int32_t num_computed = 0;
  answer = host.admit(id, entry.num_tokens, running.empty(), num_computed);
  if (answer != KvHost::Admission::kAdmitted) return false;
  entry.num_computed = std::clamp(num_computed, 0, entry.num_tokens - 1);
  const std::int32_t chunk = room_for_chunk(entry);
  if (!host.reserve(id, chunk)) {
    answer = KvHost::Admission::kNoRoom;
    entry.num_computed = 0;
    host.release(id);
    return false;
  }
  waiting.erase(&entry);
  entry.start_step();
  entry.running = true;
  running.insert(running.begin() + static_cast<std::ptrdiff_t>(position_of(entry)), &entry);
  take_rows(entry, chunk);
  chunk_rows_left -= chunk;
  return true;
}

/// Whether the blocks that drafts hold at this step are what keeps `entry` waiting.
bool Scheduler::Impl::waits_for_drafts(const SchedulerEntry& entry) const {
  const std::int64_t block_size = view.block_size;
  if (block_size == 0) return false;
  const auto blocks_of = [&](std::int64_t tokens) {
    return (tokens + block_size - 1) / block_size;
  };
  std::int64_t held = 0;
  for (const SchedulerEntry* other : decoding) {
    if (!other->running || other->num_nodes == 0) continue;
    held += blocks_of(std::int64_t{other->num_tokens} + other->num_nodes) -
            blocks_of(other->num_tokens);
  }
  const std::int64_t lacking = blocks_of(entry.num_tokens) - host.free_blocks();
  return lacking > 0 && lacking <= held;
}

void Scheduler::Impl::admit() {
  if (preempted_now) return;  // who was just sent away must not come back at once
  const auto max_num_seqs = static_cast<std::size_t>(options.max_num_seqs);
  put_off.clear();
  while (!waiting.empty() && running.size() < max_num_seqs && put_off.size() < kMaxPutOff &&
         std::min(rows_left, chunk_rows_left) > 0) {
    SchedulerEntry& entry = *waiting.first();
    auto answer = KvHost::Admission::kNoRoom;
    if (admit_one(entry, answer)) continue;
    if (answer == KvHost::Admission::kNotYet) {
      waiting.erase(&entry);
      put_off.push_back(&entry);
      continue;
    }
    if (!waits_for_drafts(entry) || !drop_reserved_drafts() || !admit_one(entry, answer)) break;
  }
  for (SchedulerEntry* entry : put_off) waiting.push(entry);
}

void Scheduler::Impl::check_outcomes(std::span<const RequestOutcome> told) {
  for (const RequestOutcome& outcome : told) {
    SchedulerEntry* entry = find(outcome.id);
    if (entry != nullptr && entry->running && entry->num_causal > 0 && entry->samples &&
        !entry->settled) {
      entry->settled = true;
      continue;
    }
    for (SchedulerEntry* other : running) other->settled = false;
    throw std::invalid_argument("finish_step: request " + std::to_string(outcome.id) +
                                " drew no token at this step, or is named twice");
  }
}

void Scheduler::Impl::settle(SchedulerEntry& entry, const RequestOutcome& outcome) {
  const auto num_emitted = static_cast<std::int32_t>(outcome.emitted.size());
  entry.num_drafted += entry.num_nodes;
  entry.num_accepted += outcome.num_accepted;
  entry.num_output_tokens += num_emitted;
  // The newest token is never computed; a stop may cut what was emitted of an accepted path.
  entry.num_computed = entry.num_tokens + std::min(outcome.num_accepted, num_emitted - 1);
  entry.num_tokens += num_emitted;
  if (!entry.has_emitted) {
    entry.has_emitted = true;
    entry.first_token_time = now;
  }
}

Scheduler::Scheduler(const SchedulerOptions& options, std::shared_ptr<LengthPolicy> policy,
                     KvHost& host)
    : impl_(std::make_unique<Impl>(options, std::move(policy), host)) {}

Scheduler::~Scheduler() = default;

void Scheduler::add(const SchedulerRequest& request, double now) {
  Impl& impl = *impl_;
  check_range("num_prompt_tokens", request.num_prompt_tokens, 1, kMaxTokens - 1);
  check_range("max_tokens", request.max_tokens, 1, kMaxTokens - 1);
  check_range("group", request.group, 0, SurvivalModel::kMaxGroups - 1);
  request.control.validate(static_cast<std::int32_t>(impl.proposers.size()));
  if (impl.entries.contains(request.id)) {
    throw std::invalid_argument("id " + std::to_string(request.id) + " is known already");
  }
  impl.advance(now);
  auto entry = std::make_unique<SchedulerEntry>();
  entry->request = request;
  entry->rank = impl.rank_of(request.priority);
  entry->arrival = impl.next_arrival++;
  entry->num_tokens = request.num_prompt_tokens;
  SchedulerEntry* known = impl.entries.emplace(request.id, std::move(entry)).first->second.get();
  impl.waiting.push(known);
}

bool Scheduler::remove(RequestId id) {
  Impl& impl = *impl_;
  SchedulerEntry* entry = impl.find(id);
  if (entry == nullptr) return false;
  impl.abandon_step();
  const bool was_running = entry->running;
  if (was_running) {
    impl.running.erase(impl.running.begin() +
                       static_cast<std::ptrdiff_t>(impl.position_of(*entry)));
  } else {
    impl.waiting.erase(entry);
  }
  impl.entries.erase(id);
  if (was_running) impl.host.release(id);
  impl.policy->finish(id);
  return true;
}

bool Scheduler::preempt(RequestId id) {
  const SchedulerEntry* entry = impl_->find(id);
  if (entry == nullptr || !entry->running) return false;
  impl_->abandon_step();
  impl_->preempt_running(impl_->position_of(*entry));
  return true;
}

std::span<const DecodeSlot> Scheduler::begin_step(double now) {
  Impl& impl = *impl_;
  impl.abandon_step();
  impl.advance(now);
  impl.rows_left = impl.options.max_num_batched_tokens;
  impl.preempted_now = false;
  impl.policy_depth = impl.policy->max_depth();
  impl.rows.clear();
  impl.load = {};
  impl.collect_decodes();
  impl.look_ahead();
  impl.phase = Impl::Phase::kBegun;
  return impl.slots;
}

std::span<const DraftChoice> Scheduler::plan(std::span<const Candidate> candidates,
                                             std::span<const std::int32_t> backlog) {
  Impl& impl = *impl_;
  if (impl.phase != Impl::Phase::kBegun) {
    throw std::invalid_argument("plan: begin_step() comes first, and one plan() per step");
  }
  impl.collect_requests(backlog);
  impl.collect_candidates(candidates);
  impl.choose();
  impl.phase = Impl::Phase::kPlanned;
  return impl.choices;
}

std::span<const ScheduledRows> Scheduler::schedule(std::span<TokenTree* const> trees,
                                                   std::span<const DraftWork> drafts) {
  Impl& impl = *impl_;
  if (impl.phase == Impl::Phase::kBegun) (void)plan({});
  if (impl.phase != Impl::Phase::kPlanned) {
    throw std::invalid_argument("schedule: begin_step() comes first, and one schedule() per step");
  }
  impl.take_trees(trees);
  impl.prune(drafts);
  impl.reserve_decodes();
  impl.schedule_chunks();
  impl.admit();
  impl.collect_rows();
  impl.phase = Impl::Phase::kScheduled;
  return impl.rows;
}

void Scheduler::finish_step(std::span<const RequestOutcome> outcomes,
                            std::span<const DraftWork> drafts, double seconds, double now) {
  Impl& impl = *impl_;
  if (impl.phase != Impl::Phase::kScheduled) {
    throw std::invalid_argument("finish_step: schedule() comes first");
  }
  impl.check_outcomes(outcomes);
  impl.advance(now);
  impl.outcomes.clear();
  for (RequestOutcome outcome : outcomes) {
    SchedulerEntry& entry = *impl.find(outcome.id);
    if (outcome.emitted.empty()) {  // it failed
      entry.settled = false;
      continue;
    }
    outcome.num_verified = entry.num_nodes;
    outcome.num_accepted = std::clamp(outcome.num_accepted, 0, entry.num_nodes);
    impl.outcomes.push_back(outcome);
    impl.settle(entry, outcome);
  }
  for (SchedulerEntry* entry : impl.running) {
    if (entry->num_causal == 0 || entry->settled) continue;
    if (entry->samples) {
      impl.host.rollback(entry->request.id);
    } else {
      entry->num_computed += entry->num_causal;
    }
  }
  impl.phase = Impl::Phase::kIdle;
  ++impl.num_steps;
  impl.policy->observe({.now = impl.now,
                        .load = impl.load,
                        .seconds = std::isfinite(seconds) && seconds > 0 ? seconds : 0,
                        .drafts = drafts,
                        .requests = impl.outcomes});
}

const StepLoad& Scheduler::load() const noexcept { return impl_->load; }

NoSpeculationReason Scheduler::reason(RequestId id) const {
  const SchedulerEntry* entry = impl_->find(id);
  return entry == nullptr ? NoSpeculationReason::kOff : entry->reason;
}

bool Scheduler::has_unfinished() const noexcept { return !impl_->entries.empty(); }

std::int32_t Scheduler::num_running() const noexcept {
  return static_cast<std::int32_t>(impl_->running.size());
}

std::int32_t Scheduler::num_waiting() const noexcept {
  return static_cast<std::int32_t>(impl_->waiting.size());
}

bool Scheduler::is_running(RequestId id) const {
  const SchedulerEntry* entry = impl_->find(id);
  return entry != nullptr && entry->running;
}

std::vector<RequestId> Scheduler::running() const {
  std::vector<RequestId> ids;
  for (const SchedulerEntry* entry : impl_->running) ids.push_back(entry->request.id);
  return ids;
}

LengthPolicy& Scheduler::policy() noexcept { return *impl_->policy; }

SchedulerStats Scheduler::stats() const {
  return {.num_steps = impl_->num_steps,
          .num_preemptions = impl_->num_preemptions,
          .num_running = num_running(),
          .num_waiting = num_waiting(),
          .policy = impl_->policy->stats()};
}

std::string Scheduler::check_integrity() const {
  const Impl& impl = *impl_;
  if (impl.entries.size() != impl.running.size() + impl.waiting.size()) {
    return "requests " + std::to_string(impl.entries.size()) + " != running " +
           std::to_string(impl.running.size()) + " + waiting " +
           std::to_string(impl.waiting.size());
  }
  if (num_running() > impl.options.max_num_seqs) return "more than max_num_seqs run";
  for (std::size_t i = 0; i < impl.running.size(); ++i) {
    const SchedulerEntry& entry = *impl.running[i];
    const std::string who = "request " + std::to_string(entry.request.id);
    if (!entry.running || impl.find(entry.request.id) != &entry) return who + " runs unknown";
    if (i > 0 && !runs_before(*impl.running[i - 1], entry)) return who + " runs out of order";
    if (entry.num_computed < 0 || entry.pending() < 1) return who + " has no pending token";
  }
  const std::vector<SchedulerEntry*>& heap = impl.waiting.entries();
  for (std::size_t i = 0; i < heap.size(); ++i) {
    const SchedulerEntry& entry = *heap[i];
    const std::string who = "request " + std::to_string(entry.request.id);
    if (entry.running || impl.find(entry.request.id) != &entry) return who + " waits unknown";
    if (entry.place != i) return who + " waits at a place it does not know";
    if (i > 0 && runs_before(entry, *heap[(i - 1) / 2])) return who + " waits out of order";
    if (entry.num_computed != 0) return who + " waits with computed tokens";
  }
  return {};
}

}  // namespace smartspec
