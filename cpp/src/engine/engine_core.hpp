// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The step loop and its state. Engine (the public face) adds the thread-safe inbox.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/completion.hpp"
#include "model/decoder.hpp"
#include "smartspec/engine.hpp"
#include "smartspec/scheduler.hpp"

namespace smartspec {

/// Fills in the automatic choices. Throws std::invalid_argument naming the option.
EngineOptions resolve_options(const EngineOptions& options, const Model& model);

/// Everything a proposer was asked for at a step, and its answers.
struct Drafts {
  std::vector<ProposeRequest> requests;
  std::vector<std::int32_t> slots;  // [requests] among the decodes, ascending
  std::vector<TokenTree> trees;     // [requests] or more; capacity is kept
  std::size_t next = 0;             // while walking the slots
};

class EngineCore final : private KvHost {
 public:
  EngineCore(std::shared_ptr<const Model> model, const EngineOptions& options,
             std::shared_ptr<const StopVocabulary> stops,
             std::vector<std::shared_ptr<Proposer>> proposers,
             std::shared_ptr<LengthPolicy> policy);

  void enqueue(std::unique_ptr<Completion> completion);
  /// Ends every completion of the request without output.
  void drop(RequestId id);
  std::span<RequestOutput> step();
  bool preempt(RequestId id, std::int32_t index);
  [[nodiscard]] EngineStats stats() const;
  [[nodiscard]] std::string check_integrity() const;
  void clear_prefix_cache() { kv_.clear_prefix_cache(); }

  [[nodiscard]] const EngineOptions& options() const noexcept { return options_; }
  [[nodiscard]] const Model& model() const noexcept { return *model_; }
  [[nodiscard]] const std::shared_ptr<const StopVocabulary>& stops() const noexcept {
    return stops_;
  }
  [[nodiscard]] const std::vector<std::string>& proposer_names() const noexcept { return names_; }

 private:
  // host.cpp: the scheduler's view of the KV cache
  Admission admit(RequestId id, std::int32_t num_tokens, bool alone,
                  std::int32_t& num_computed) override;
  [[nodiscard]] std::int32_t expect_computed(RequestId id, std::int32_t num_tokens) const override;
  bool reserve(RequestId id, std::int32_t num_rows) override;
  void rollback(RequestId id) override;
  void release(RequestId id) override;
  [[nodiscard]] std::int32_t block_size() const override { return options_.block_size; }
  [[nodiscard]] std::int32_t free_blocks() const override { return kv_.stats().num_free; }
  [[nodiscard]] Completion* find(RequestId key) const;
  [[nodiscard]] SchedulerOptions scheduler_options() const;
  void end(Completion& completion);

  // drafting.cpp: candidate trees
  void collect_decodes(std::span<const DecodeSlot> slots);
  void propose_free(std::span<const DecodeSlot> slots);
  void propose_paid(std::span<const DraftChoice> choices);
  void take_drafts(std::span<const DraftChoice> choices);
  void ask(std::size_t proposer, std::size_t slot, std::int32_t max_depth, float min_survival,
           const ClaimReading& claims);
  bool call_proposer(std::size_t proposer);
  void check_drafts(std::size_t proposer);
  [[nodiscard]] StepLoad work_of(std::size_t proposer) const;
  void note_proposer_error(const std::string& text);
  /// A completion as a proposer sees it; borrows from it.
  [[nodiscard]] static ProposeRequest show(const Completion& completion, std::int32_t max_depth,
                                           std::int32_t max_nodes);

  // step.cpp: run, verify, commit, learn
  class Stopwatch;
  [[nodiscard]] double now() const { return options_.clock(); }
  [[nodiscard]] double seconds_since(double start) const;
  void decide();
  void collect_scheduled(std::span<const ScheduledRows> rows);
  void build_batch();
  void add_rows(Completion& completion);
  void walk_trees();
  void verify_and_commit();
  void verify(Completion& completion);
  void count(Completion& completion);
  void collect_prompt_logprobs(Completion& completion);
  void commit(Completion& completion);
  void tell_proposers();
  void tell_scheduler(double seconds);
  void finish_ended();
  void run_moves();
  RequestOutput& new_output(const Completion& completion);

  std::shared_ptr<const Model> model_;
  EngineOptions options_;
  std::shared_ptr<const StopVocabulary> stops_;
  std::vector<std::shared_ptr<Proposer>> proposers_;
  std::vector<std::string> names_;
  KvCache kv_;
  Decoder decoder_;
  Scheduler scheduler_;
  double last_end_ = 0;    // of the last step
  bool was_busy_ = false;  // requests were left after it
  double last_pause_ = 0;  // seconds before it, while requests were left

  std::map<RequestId, std::unique_ptr<Completion>> completions_;  // by key
  // Admitted completions of requests that have several; they share the prompt.
  std::unordered_map<RequestId, std::vector<Completion*>> siblings_;
  EngineStats stats_;

  // Scratch of one step; capacity is kept.
  std::vector<Completion*> decodes_;    // [slots]
  std::vector<Completion*> scheduled_;  // those that have rows, in order
  std::vector<Drafts> drafts_;          // [proposers_]
  std::vector<Candidate> candidates_;
  std::vector<std::int32_t> backlog_;        // [slots]
  std::vector<TokenTree*> trees_;            // [slots]
  std::vector<DraftWork> works_;             // of paid drafting
  double paid_now_ = 0;                      // seconds of it
  std::vector<ProposeRequest> emitters_;     // completions that emitted tokens at this step
  std::vector<Proposer::Outcome> outcomes_;  // [emitters_]
  std::vector<RequestOutcome> request_outcomes_;
  std::vector<Completion*> walked_;          // whose trees the device walks
  std::vector<WalkSequence> walks_;          // [walked_]
  std::vector<DrawState> draw_states_;       // [walked_] or more; capacity is kept
  std::vector<std::vector<TokenId>> drawn_;  // [walked_] or more
  ForwardBatch batch_;
  std::vector<KvMove> moves_;
  std::vector<SlotId> move_sources_;
  std::vector<SlotId> move_destinations_;
  std::vector<std::int32_t> path_;
  std::vector<TokenId> path_tokens_;
  std::vector<RequestOutput> outputs_;
  std::size_t num_outputs_ = 0;
};

}  // namespace smartspec
