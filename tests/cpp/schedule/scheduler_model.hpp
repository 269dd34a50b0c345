// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// For tests of the scheduler: a host that counts blocks and watches the protocol, and the whole
// scheduling rule once more, written for reading.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "smartspec/scheduler.hpp"

namespace smartspec::test {

class FakeHost final : public KvHost {
 public:
  FakeHost(std::int32_t num_blocks, std::int32_t block_size)
      : num_blocks_(num_blocks), block_size_(block_size) {}

  struct Sequence {
    std::int32_t computed = 0;
    std::int32_t reserved = 0;
  };

  Admission admit(RequestId id, std::int32_t num_tokens, bool alone,
                  std::int32_t& num_computed) override {
    expect(!sequences.contains(id), "admitted twice", id);
    // Some follow a sibling, some find half of their tokens computed.
    const auto sibling = sequences.find(id - 1);
    if (has_siblings && id % 5 == 1 && sibling != sequences.end() &&
        sibling->second.computed == 0) {
      return Admission::kNotYet;
    }
    const std::int32_t found = has_siblings && id % 3 == 0 ? num_tokens / 2 : 0;
    if (block_size_ > 0 && !alone && blocks_of(num_tokens) > free_blocks()) {
      return Admission::kNoRoom;
    }
    if (block_size_ > 0 && blocks_of(found) > free_blocks()) return Admission::kNoRoom;
    sequences[id] = {.computed = found, .reserved = 0};
    num_computed = found;
    return Admission::kAdmitted;
  }
  bool reserve(RequestId id, std::int32_t num_rows) override {
    Sequence& sequence = at(id);
    expect(sequence.reserved == 0 && num_rows > 0, "reserved twice, or nothing", id);
    const std::int32_t more =
        blocks_of(sequence.computed + num_rows) - blocks_of(sequence.computed);
    if (block_size_ > 0 && more > free_blocks()) return false;
    sequence.reserved = num_rows;
    return true;
  }
  void rollback(RequestId id) override { at(id).reserved = 0; }
  void release(RequestId id) override {
    expect(sequences.erase(id) == 1, "released unknown", id);
    for (const auto& [other, sequence] : sequences) {
      most_reserved_at_release = std::max(most_reserved_at_release, sequence.reserved);
    }
  }
  [[nodiscard]] std::int32_t block_size() const override { return block_size_; }
  [[nodiscard]] std::int32_t free_blocks() const override {
    std::int32_t used = 0;
    for (const auto& [id, sequence] : sequences) {
      used += blocks_of(sequence.computed + sequence.reserved);
    }
    return num_blocks_ - used;
  }

  void commit(RequestId id, std::int32_t num_rows) {
    Sequence& sequence = at(id);
    expect(num_rows <= sequence.reserved, "committed more than reserved", id);
    sequence.computed += num_rows;
    sequence.reserved = 0;
  }

  std::map<RequestId, Sequence> sequences;
  std::string fault;  // the first one
  bool has_siblings = false;
  std::int32_t most_reserved_at_release = 0;  // by others

 private:
  [[nodiscard]] std::int32_t blocks_of(std::int32_t num_tokens) const {
    return block_size_ > 0 ? (num_tokens + block_size_ - 1) / block_size_ : 0;
  }
  void expect(bool holds, const char* what, RequestId id) {
    if (!holds && fault.empty()) fault = "request " + std::to_string(id) + " " + what;
  }
  Sequence& at(RequestId id) {
    expect(sequences.contains(id), "is unknown to the host", id);
    return sequences[id];
  }

  std::int32_t num_blocks_;
  std::int32_t block_size_;
};

/// Answers with what the test says, and keeps what it was shown.
class StubPolicy final : public LengthPolicy {
 public:
  [[nodiscard]] std::string_view name() const override { return "stub"; }
  [[nodiscard]] std::int32_t max_depth() const override { return depth; }
  std::int32_t max_prefill_tokens(const StepView& step, std::span<const LengthRequest> requests,
                                  std::int32_t most) override {
    decodes_only = step.base;
    num_decodes_shown = requests.size();
    wanted = most;
    allowed = on_prefill ? on_prefill(most) : most;
    return allowed;
  }
  void plan(const StepView& step, std::span<const LengthRequest> requests,
            std::span<const Candidate> candidates, std::span<DraftChoice> choices) override {
    view = step;
    shown.assign(requests.begin(), requests.end());
    offered.assign(candidates.begin(), candidates.end());
    if (on_plan) on_plan(choices);
  }
  void allocate(const StepView&, std::span<const LengthRequest>, std::span<const DraftChoice>,
                std::span<const DraftWork>, std::span<TokenTree* const> trees) override {
    if (on_allocate) on_allocate(trees);
  }
  void observe(const StepOutcome& outcome) override {
    seen = outcome;
    ++num_observed;
  }
  void finish(RequestId id) override { finished.push_back(id); }

  std::int32_t depth = 16;
  std::function<std::int32_t(std::int32_t)> on_prefill;
  std::function<void(std::span<DraftChoice>)> on_plan;
  std::function<void(std::span<TokenTree* const>)> on_allocate;
  StepView view;
  StepLoad decodes_only;
  std::size_t num_decodes_shown = 0;
  std::int32_t wanted = 0;
  std::int32_t allowed = 0;
  std::vector<LengthRequest> shown;
  std::vector<Candidate> offered;
  StepOutcome seen;
  std::int64_t num_observed = 0;
  std::vector<RequestId> finished;
};

inline const SchedulerOptions kOptions{.max_num_seqs = 8,
                                       .max_num_batched_tokens = 64,
                                       .proposers = {"free", "paid"},
                                       .pays_per_depth = {false, true}};

inline TokenTree chain_of(std::int32_t length) {
  TokenTree tree;
  for (std::int32_t i = 0; i < length; ++i) tree.add(i, i - 1, 1.0F);
  return tree;
}

/// One step of a host whose drafts are accepted as `accepted` says; requests end by max_tokens.
struct Driver {
  Scheduler& scheduler;
  FakeHost& host;
  std::int32_t draft_length = 0;
  std::vector<ScheduledRows> rows{};
  std::vector<TokenTree> trees{};
  std::vector<TokenTree*> pointers{};
  std::vector<RequestOutcome> outcomes{};
  std::vector<TokenId> text = std::vector<TokenId>(300, 7);
  std::map<RequestId, std::int32_t> left{};  // output tokens

  void add(SchedulerRequest request, double now) {
    left[request.id] = request.max_tokens;
    scheduler.add(request, now);
  }
  std::vector<DraftChoice> plan(double now) {
    const auto slots = scheduler.begin_step(now);
    trees.resize(std::max(trees.size(), slots.size()));
    pointers.clear();
    for (std::size_t i = 0; i < slots.size(); ++i) pointers.push_back(&trees[i]);
    const auto choices = scheduler.plan({});
    return {choices.begin(), choices.end()};
  }
  /// Ids that emitted.
  std::vector<RequestId> finish(double now, bool accept_all = true) {
    const auto scheduled = scheduler.schedule(pointers, {});
    rows.assign(scheduled.begin(), scheduled.end());
    outcomes.clear();
    std::vector<RequestId> ended;
    for (const ScheduledRows& row : rows) {
      const std::int32_t accepted =
          row.samples && accept_all ? std::min(row.num_nodes, left[row.id] - 1) : 0;
      host.commit(row.id, row.num_causal + accepted);
      if (!row.samples) continue;
      outcomes.push_back(
          {.id = row.id,
           .num_accepted = accepted,
           .emitted = std::span(text).first(static_cast<std::size_t>(accepted + 1))});
      left[row.id] -= accepted + 1;
      if (left[row.id] <= 0) ended.push_back(row.id);
    }
    scheduler.finish_step(outcomes, {}, 0.01, now);
    for (const RequestId id : ended) scheduler.remove(id);
    return ended;
  }
  std::vector<RequestId> step(double now) {
    const auto choices = plan(now);
    for (std::size_t i = 0; i < choices.size(); ++i) {
      trees[i] = chain_of(choices[i].depth > 0 ? draft_length : 0);
    }
    return finish(now);
  }
};

/// Quadratic and obvious: every decision re-sorts and re-counts.
class NaiveScheduler {
 public:
  struct Row {
    RequestId id = 0;
    std::int32_t num_causal = 0;
    std::int32_t num_nodes = 0;
    bool samples = false;
  };
  struct Request {
    SchedulerRequest asked;
    double start = 0;
    std::int64_t arrival = 0;
    std::int32_t tokens = 0;
    std::int32_t computed = 0;
    std::int32_t output = 0;
    bool running = false;
    bool decodes = false;
    bool in_step = false;
    std::int32_t drafted = 0;
    Row row;
  };

  NaiveScheduler(SchedulerOptions options, FakeHost& host) : options_(options), host_(host) {}

  void add(const SchedulerRequest& asked, double now) {
    requests_[asked.id] = {.asked = asked,
                           .start = now,
                           .arrival = next_arrival_++,
                           .tokens = asked.num_prompt_tokens,
                           .row = {}};
  }
  void remove(RequestId id) {
    if (requests_.at(id).running) host_.release(id);
    requests_.erase(id);
  }
  void preempt(RequestId id) {
    requests_.at(id).running = false;
    requests_.at(id).computed = 0;
    host_.release(id);
  }
  Request& at(RequestId id) { return requests_.at(id); }
  [[nodiscard]] bool contains(RequestId id) const { return requests_.contains(id); }
  [[nodiscard]] std::size_t size() const { return requests_.size(); }

  std::vector<RequestId> in_order(bool running) {
    std::vector<RequestId> ids;
    for (const auto& [id, request] : requests_) {
      if (request.running == running) ids.push_back(id);
    }
    std::sort(ids.begin(), ids.end(), [&](RequestId a, RequestId b) {
      return std::pair(rank(a), at(a).arrival) < std::pair(rank(b), at(b).arrival);
    });
    return ids;
  }

  std::vector<RequestId> begin() {
    std::vector<RequestId> decodes;
    for (auto& [id, request] : requests_) {
      request.row = {.id = id};
      request.in_step = request.decodes = false;
      request.drafted = 0;
    }
    for (const RequestId id : in_order(true)) {
      if (at(id).tokens - at(id).computed != 1) continue;
      at(id).decodes = true;
      decodes.push_back(id);
    }
    return decodes;
  }

  /// To the rows that drafts may have: the even share of what is left, in order.
  void cut_drafts(std::map<RequestId, std::int32_t>& drafted) {
    std::int32_t num_decodes = 0, total = 0, num_drafting = 0;
    for (const RequestId id : in_order(true)) num_decodes += at(id).decodes ? 1 : 0;
    for (const auto& [id, nodes] : drafted) {
      total += nodes;
      num_drafting += nodes > 0 ? 1 : 0;
    }
    const auto num_running = static_cast<std::int32_t>(in_order(true).size());
    std::int32_t budget = options_.max_num_batched_tokens - num_decodes;
    if (num_running > num_decodes ||
        (!in_order(false).empty() && num_running < options_.max_num_seqs)) {
      budget /= 2;
    }
    if (total <= budget) return;
    for (const RequestId id : in_order(true)) {
      const auto entry = drafted.find(id);
      if (entry == drafted.end() || entry->second == 0) continue;
      entry->second = std::min(entry->second, budget / num_drafting--);
      budget -= entry->second;
    }
  }

  /// `drafted`: nodes per decoding request. `chunk_rows`: what prompts may have.
  std::vector<Row> schedule(const std::map<RequestId, std::int32_t>& drafted,
                            std::int32_t chunk_rows) {
    rows_left_ = options_.max_num_batched_tokens;
    preempted_ = false;
    const std::vector<RequestId> order = in_order(true);
    for (const RequestId id : order) {
      if (!at(id).running || !at(id).decodes) continue;
      const auto entry = drafted.find(id);
      const std::int32_t nodes = entry == drafted.end() ? 0 : entry->second;
      if (nodes > 0 && host_.reserve(id, 1 + nodes)) {
        take(id, 1, nodes);
      } else if (make_room(id, 1)) {
        take(id, 1, 0);
      } else {
        send_away(id);
      }
    }
    for (const RequestId id : order) {
      if (!at(id).running || at(id).in_step) continue;
      const std::int32_t chunk =
          std::min({at(id).tokens - at(id).computed, rows_left_, chunk_rows});
      if (chunk <= 0 || !make_room(id, chunk)) continue;
      take(id, chunk, 0);
      chunk_rows -= chunk;
    }
    if (!preempted_) admit(chunk_rows);
    std::vector<Row> rows;
    for (const RequestId id : in_order(true)) {
      if (at(id).in_step) rows.push_back(at(id).row);
    }
    return rows;
  }

 private:
  [[nodiscard]] double rank(RequestId id) {
    const Request& request = at(id);
    const double aging = options_.aging_seconds;
    return aging > 0 ? request.asked.priority * aging + request.start : request.asked.priority;
  }
  void take(RequestId id, std::int32_t causal, std::int32_t nodes) {
    Request& request = at(id);
    request.in_step = true;
    request.row = {id, causal, nodes, causal == request.tokens - request.computed};
    rows_left_ -= causal + nodes;
  }
  void send_away(RequestId id) {
    preempt(id);
    at(id).in_step = false;
    preempted_ = true;
  }
  bool drop_drafts() {
    bool dropped = false;
    for (auto& [id, request] : requests_) {
      if (!request.running || !request.in_step || request.row.num_nodes == 0) continue;
      host_.rollback(id);
      (void)host_.reserve(id, 1);
      rows_left_ += request.row.num_nodes;
      request.row.num_nodes = 0;
      dropped = true;
    }
    return dropped;
  }
  bool make_room(RequestId id, std::int32_t rows) {
    if (host_.reserve(id, rows)) return true;
    if (drop_drafts() && host_.reserve(id, rows)) return true;
    while (true) {
      const RequestId last = in_order(true).back();
      if (last == id || at(last).in_step) return false;
      send_away(last);
      if (host_.reserve(id, rows)) return true;
    }
  }
  void admit(std::int32_t chunk_rows) {
    for (const RequestId id : in_order(false)) {
      const auto running = static_cast<std::int32_t>(in_order(true).size());
      if (running >= options_.max_num_seqs || std::min(rows_left_, chunk_rows) <= 0) return;
      const auto answer = try_admit(id, running == 0, chunk_rows);
      if (answer == KvHost::Admission::kNotYet || answer == KvHost::Admission::kAdmitted) continue;
      if (!drafts_hold_its_blocks(id) || !drop_drafts()) return;
      if (try_admit(id, running == 0, chunk_rows) != KvHost::Admission::kAdmitted) return;
    }
  }
  KvHost::Admission try_admit(RequestId id, bool alone, std::int32_t& chunk_rows) {
    std::int32_t computed = 0;
    const auto answer = host_.admit(id, at(id).tokens, alone, computed);
    if (answer != KvHost::Admission::kAdmitted) return answer;
    const std::int32_t chunk = std::min({at(id).tokens - computed, rows_left_, chunk_rows});
    if (!host_.reserve(id, chunk)) {
      host_.release(id);
      return KvHost::Admission::kNoRoom;
    }
    at(id).running = true;
    at(id).computed = computed;
    take(id, chunk, 0);
    chunk_rows -= chunk;
    return answer;
  }
  bool drafts_hold_its_blocks(RequestId id) {
    const std::int32_t size = host_.block_size();
    if (size == 0) return false;
    const auto blocks = [&](std::int32_t tokens) { return (tokens + size - 1) / size; };
    std::int32_t held = 0;
    for (const auto& [other, request] : requests_) {
      if (!request.running || request.row.num_nodes == 0) continue;
      held += blocks(request.tokens + request.row.num_nodes) - blocks(request.tokens);
    }
    const std::int32_t lacking = blocks(at(id).tokens) - host_.free_blocks();
    return lacking > 0 && lacking <= held;
  }

  SchedulerOptions options_;
  FakeHost& host_;
  std::map<RequestId, Request> requests_;
  std::int64_t next_arrival_ = 0;
  std::int32_t rows_left_ = 0;
  bool preempted_ = false;
};

}  // namespace smartspec::test
