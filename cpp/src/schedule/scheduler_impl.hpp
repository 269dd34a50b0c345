// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The state behind Scheduler. scheduler.cpp decides which rows run; scheduler_plan.cpp shows the
// policy what it may see and holds it to what it may do.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "schedule/scheduler_queue.hpp"
#include "smartspec/scheduler.hpp"

namespace smartspec {

struct Scheduler::Impl {
  enum class Phase : std::uint8_t { kIdle, kBegun, kPlanned, kScheduled };

  Impl(const SchedulerOptions& scheduler_options, std::shared_ptr<LengthPolicy> length_policy,
       KvHost& kv_host);

  // scheduler.cpp: requests and rows
  SchedulerEntry* find(RequestId id) const;
  [[nodiscard]] double rank_of(std::int32_t priority) const;
  void advance(double time) noexcept;
  void abandon_step();
  std::size_t position_of(const SchedulerEntry& entry) const;
  void preempt_running(std::size_t position);
  void collect_decodes();
  bool reserve_or_give_way(SchedulerEntry& entry, std::int32_t num_rows);
  bool drop_reserved_drafts();
  void take_rows(SchedulerEntry& entry, std::int32_t num_causal);
  void reserve_decodes();
  void schedule_chunks();
  void admit();
  bool admit_one(SchedulerEntry& entry, KvHost::Admission& answer);
  void collect_rows();
  [[nodiscard]] std::int32_t room_for_chunk(const SchedulerEntry& entry) const;
  [[nodiscard]] bool waits_for_drafts(const SchedulerEntry& entry) const;
  void check_outcomes(std::span<const RequestOutcome> told);
  void settle(SchedulerEntry& entry, const RequestOutcome& outcome);

  // scheduler_plan.cpp: the policy
  [[nodiscard]] DecodeSlot make_slot(const SchedulerEntry& entry) const;
  [[nodiscard]] LengthRequest show(const SchedulerEntry& entry, std::int32_t max_depth) const;
  static void add_causal(std::int64_t context, std::int32_t num_rows, bool samples, StepLoad& step);
  void look_ahead();
  std::int32_t expect_chunks(std::int32_t most, StepLoad& step, std::int32_t& blocks) const;
  void collect_requests(std::span<const std::int32_t> backlog);
  void collect_candidates(std::span<const Candidate> offered);
  void choose();
  [[nodiscard]] DraftChoice hold_to_limits(DraftChoice choice, std::size_t request) const;
  [[nodiscard]] bool may_use(const SpeculationControl& control, std::int32_t proposer) const;
  void take_trees(std::span<TokenTree* const> caller_trees);
  void prune(std::span<const DraftWork> drafts);
  void hold_tree_to_limits(std::size_t request);
  void cut_to_budget();

  SchedulerOptions options;
  std::vector<ProposerView> proposers;  // names borrowed from options
  std::shared_ptr<LengthPolicy> policy;
  KvHost& host;

  std::unordered_map<RequestId, std::unique_ptr<SchedulerEntry>> entries;
  SchedulerQueue waiting;
  std::vector<SchedulerEntry*> running;  // in order
  double now = 0;
  bool has_time = false;
  std::int64_t next_arrival = 0;
  std::int64_t num_steps = 0;
  std::int64_t num_preemptions = 0;

  // Of one step; capacity is kept.
  Phase phase = Phase::kIdle;
  std::int32_t rows_left = 0;
  std::int32_t chunk_rows_left = 0;  // what the policy leaves to prompts
  bool preempted_now = false;
  std::int32_t policy_depth = 0;
  StepView view{};
  StepLoad load{};
  std::vector<SchedulerEntry*> decoding;      // [slots]
  std::vector<DecodeSlot> slots;              // as begin_step() returns them
  std::vector<DraftChoice> choices;           // [slots]
  std::vector<TokenTree*> trees;              // [slots], never null after take_trees()
  std::vector<std::int32_t> slot_of;          // [requests]
  std::vector<std::int32_t> request_of;       // [slots], -1: may not draft
  std::vector<LengthRequest> requests;        // those that may draft
  std::vector<LengthRequest> decoding_views;  // [slots]
  std::vector<Candidate> candidates;          // `request` into requests
  std::vector<std::int32_t> first_candidate;  // [requests + 1]
  std::vector<DraftChoice> request_choices;   // [requests]
  std::vector<TokenTree*> request_trees;      // [requests]
  std::vector<TokenTree> as_drafted;          // [requests] where control.min_tokens > 0
  std::vector<TokenTree> spare_trees;         // stand in for trees that are null
  std::vector<std::int32_t> new_index;        // of tree nodes
  std::vector<SchedulerEntry*> put_off;       // waiting ones the host wants later
  std::vector<ScheduledRows> rows;
  std::vector<RequestOutcome> outcomes;
};

}  // namespace smartspec
