// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The loop around a policy: who is admitted, which prompt chunks, decodes and drafts share a step,
// and who gives way when memory is short. Owns no memory and runs no model, so that a server, the
// engine and the simulator drive the same object.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "smartspec/export.hpp"
#include "smartspec/length_policy.hpp"

namespace smartspec {

struct SchedulerOptions {
  std::int32_t max_num_seqs = 64;             // requests running at once
  std::int32_t max_num_batched_tokens = 512;  // rows of a step; >= max_num_seqs
  double aging_seconds = 30;  // waiting this long raises a request by one priority; 0: never
  std::vector<std::string> proposers{};                                // names
  std::vector<bool> pays_per_depth{};                                  // [proposers]
  std::int32_t vocab_size = std::numeric_limits<std::int32_t>::max();  // of drafted tokens
};

struct SchedulerRequest {
  RequestId id = 0;
  std::int32_t priority = 0;  // lower runs first; ties by arrival
  std::int32_t num_prompt_tokens = 1;
  std::int32_t max_tokens = 16;  // output tokens at most
  std::int32_t group = 0;        // 0: greedy, 1: sampled
  SpeculationControl control{};
};

/// The memory of sequences, seen from the scheduler; calls come from within its own. A sequence is
/// admitted, then per step reserved and (outside) committed, and at the end released.
class SMARTSPEC_API KvHost {
 public:
  virtual ~KvHost() = default;

  enum class Admission : std::uint8_t {
    kAdmitted,  // it exists now
    kNotYet,    // better later, others may go first (a sibling computes the same prompt)
    kNoRoom,    // nothing behind it should be tried either
  };
  /// Makes the sequence and finds what of its num_tokens is computed already (prefix cache, fork).
  /// `alone`: nothing else runs, so refusing would wait for ever.
  virtual Admission admit(RequestId id, std::int32_t num_tokens, bool alone,
                          std::int32_t& num_computed) = 0;
  /// What admit() would find computed now; lets a step be planned for what it will cost. May guess.
  [[nodiscard]] virtual std::int32_t expect_computed(RequestId /*id*/,
                                                     std::int32_t /*num_tokens*/) const {
    return 0;
  }
  /// Room for num_rows tokens behind what is computed; false: nothing has changed.
  [[nodiscard]] virtual bool reserve(RequestId id, std::int32_t num_rows) = 0;
  /// Gives back an open reservation; nothing happens when there is none.
  virtual void rollback(RequestId id) = 0;
  /// Preempted or ended: everything of it goes.
  virtual void release(RequestId id) = 0;

  [[nodiscard]] virtual std::int32_t block_size() const = 0;  // 0: memory is not limited
  [[nodiscard]] virtual std::int32_t free_blocks() const = 0;
};

/// A request that decodes at this step.
struct DecodeSlot {
  RequestId id = 0;
  std::int32_t max_depth = 0;  // 0: it may not draft, for `reason`
  NoSpeculationReason reason = NoSpeculationReason::kNone;
};

/// A request with rows in this step.
struct ScheduledRows {
  RequestId id = 0;
  std::int32_t num_causal = 0;  // prompt chunk, or 1: the newest token
  std::int32_t decode = -1;     // index into begin_step()'s slots, -1: a prompt chunk
  std::int32_t num_nodes = 0;   // draft nodes
  bool samples = false;         // its last causal row is the newest token: a token is drawn
  NoSpeculationReason reason = NoSpeculationReason::kPrefill;  // why it drafts nothing
};

struct SchedulerStats {
  std::int64_t num_steps = 0;
  std::int64_t num_preemptions = 0;
  std::int32_t num_running = 0;
  std::int32_t num_waiting = 0;
  PolicyStats policy{};
};

/// A step is begin_step, plan, schedule, finish_step, in this order; add, remove and preempt come
/// between steps (remove and preempt within one abandon it: its reservations are rolled back). A
/// step in which nobody has rows although requests wait or run means that the first of them does
/// not fit into the host's memory at all.
///
/// What gives way when rows or blocks are short: drafts first, then the running request that comes
/// last. Waiting requests rise with time, so none starves; one keeps its rank when it runs or is
/// preempted. A policy cannot break any of this: depths and proposers out of range mean no draft,
/// trees that are not sound after pruning are cleared, and prompts get 1/32 of the rows whatever it
/// says. Times are the caller's, real or virtual; one that is not finite or goes backwards counts
/// as no progress. Deterministic, reads no clock. Steady requests cause no heap allocation; add,
/// remove and admission are O(log waiting) plus O(running). Not thread-safe.
class SMARTSPEC_API Scheduler {
 public:
  /// `policy` null: make_off_policy(). `host` must outlive the scheduler. Throws
  /// std::invalid_argument naming the option.
  Scheduler(const SchedulerOptions& options, std::shared_ptr<LengthPolicy> policy, KvHost& host);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  /// Throws std::invalid_argument naming the field, and when the id is known.
  void add(const SchedulerRequest& request, double now);
  /// Ended or aborted, running or waiting; releases its memory. False: unknown.
  bool remove(RequestId id);
  /// For tests: preempts a running request. False: it is not running.
  bool preempt(RequestId id);

  /// Who decodes, and how deep each may draft. Valid until the next begin_step().
  std::span<const DecodeSlot> begin_step(double now);

  /// The policy's choices [slots] (depth 0 where max_depth is 0). Candidates' `request` indexes the
  /// slots; they come ordered by slot, then proposer. `backlog` [slots] or empty: what a paying
  /// proposer's cache lacks. Choices are within the request's control: a proposer that it excludes,
  /// or a free one without a candidate, is never chosen. Throws std::invalid_argument on misuse.
  std::span<const DraftChoice> plan(std::span<const Candidate> candidates,
                                    std::span<const std::int32_t> backlog = {});

  /// Prunes the trees [slots] (null or empty: nothing drafted; those of slots without a choice are
  /// cleared), reserves memory, adds prompt chunks and admits. Rows in running order, decodes and
  /// chunks mixed as they stand; trees end as ScheduledRows::num_nodes says. Trees that are not
  /// sound are cleared. Valid until the next begin_step(). Throws std::invalid_argument on misuse.
  std::span<const ScheduledRows> schedule(std::span<TokenTree* const> trees,
                                          std::span<const DraftWork> drafts);

  /// Load of the step that schedule() made up, draft nodes included.
  [[nodiscard]] const StepLoad& load() const noexcept;

  /// Why a request drafts nothing, after schedule(). kOff when it is unknown.
  [[nodiscard]] NoSpeculationReason reason(RequestId id) const;

  /// What came of it: the outcome of every request that emitted (num_verified is filled in); chunks
  /// that drew no token are computed now. One that had to draw and has no outcome failed: what it
  /// reserved is rolled back. `seconds`: of the step without paid drafting. Requests that ended are
  /// remove()d by the caller afterwards. Throws std::invalid_argument on outcomes of requests that
  /// drew no token.
  void finish_step(std::span<const RequestOutcome> outcomes, std::span<const DraftWork> drafts,
                   double seconds, double now);

  [[nodiscard]] bool has_unfinished() const noexcept;
  [[nodiscard]] std::int32_t num_running() const noexcept;
  [[nodiscard]] std::int32_t num_waiting() const noexcept;
  [[nodiscard]] bool is_running(RequestId id) const;
  /// Running requests in their order; preempted and waiting ones are not among them.
  [[nodiscard]] std::vector<RequestId> running() const;
  [[nodiscard]] LengthPolicy& policy() noexcept;
  [[nodiscard]] SchedulerStats stats() const;
  /// For tests: empty when sound, else the first broken invariant.
  [[nodiscard]] std::string check_integrity() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smartspec
