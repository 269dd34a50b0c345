// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The step loop and its state. Engine (the public face) adds the thread-safe inbox.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/completion.hpp"
#include "model/decoder.hpp"
#include "smartspec/engine.hpp"

namespace smartspec {

/// Fills in the automatic choices. Throws std::invalid_argument naming the option.
EngineOptions resolve_options(const EngineOptions& options, const Model& model);

class EngineCore {
 public:
  EngineCore(std::shared_ptr<const Model> model, const EngineOptions& options,
             std::shared_ptr<const StopVocabulary> stops, std::shared_ptr<Proposer> proposer,
             std::shared_ptr<LengthPolicy> policy);

  void enqueue(std::unique_ptr<Completion> completion);
  /// Ends every completion of the request without output.
  void drop(RequestId id);
  std::span<RequestOutput> step();
  bool preempt(RequestId id, std::int32_t index);
  [[nodiscard]] bool has_unfinished() const { return !running_.empty() || !waiting_.empty(); }
  [[nodiscard]] EngineStats stats() const;
  [[nodiscard]] std::string check_integrity() const;
  void clear_prefix_cache() { kv_.clear_prefix_cache(); }

  [[nodiscard]] const EngineOptions& options() const noexcept { return options_; }
  [[nodiscard]] const Model& model() const noexcept { return *model_; }
  [[nodiscard]] const std::shared_ptr<const StopVocabulary>& stops() const noexcept {
    return stops_;
  }

 private:
  struct Order {
    bool operator()(const std::unique_ptr<Completion>& a,
                    const std::unique_ptr<Completion>& b) const noexcept {
      return runs_before(*a, *b);
    }
  };

  // schedule.cpp: which rows run
  void collect_decodes();
  void reserve_decodes();
  void schedule_prefills();
  void admit();
  bool admit_one(Completion& completion);
  bool reserve_or_preempt(Completion& completion, std::int32_t num_rows);
  void drop_reserved_drafts();
  void preempt_running(std::size_t position);
  [[nodiscard]] const Completion* find_sibling(const Completion& completion) const;
  void schedule_rows(Completion& completion, std::int32_t num_causal);
  void release(Completion& completion);

  // drafting.cpp: candidate trees
  void propose();
  void select_candidates();
  void call_proposer();
  void cut_to_budget(std::int32_t budget);
  void note_proposer_error(const std::string& text);
  /// A completion as a proposer sees it; borrows from it.
  [[nodiscard]] static ProposeRequest show(const Completion& completion, std::int32_t max_depth,
                                           std::int32_t max_nodes);

  // step.cpp: run, verify, commit, learn
  void build_batch();
  void add_rows(Completion& completion);
  void verify_and_commit(std::span<const float> logits);
  void verify(Completion& completion, std::span<const float> logits);
  void collect_prompt_logprobs(Completion& completion, std::span<const float> logits);
  void commit(Completion& completion);
  void learn(double seconds);
  void tell_proposer();
  void finish_ended();
  RequestOutput& new_output(const Completion& completion);

  std::shared_ptr<const Model> model_;
  EngineOptions options_;
  std::shared_ptr<const StopVocabulary> stops_;
  std::shared_ptr<Proposer> proposer_;
  std::shared_ptr<LengthPolicy> policy_;
  KvCache kv_;
  Decoder decoder_;

  std::set<std::unique_ptr<Completion>, Order> waiting_;
  std::vector<std::unique_ptr<Completion>> running_;  // in scheduling order
  EngineStats stats_;

  // Scratch of one step; capacity is kept.
  std::int32_t rows_left_ = 0;
  bool preempted_now_ = false;
  std::vector<Completion*> decodes_;
  std::vector<Completion*> drafting_;           // decodes that may draft
  std::vector<LengthRequest> length_requests_;  // [drafting_]
  std::vector<std::int32_t> depths_;            // [drafting_]
  std::vector<ProposeRequest> propose_requests_;
  std::vector<TokenTree> trees_;             // [propose_requests_]
  std::vector<ProposeRequest> emitters_;     // completions that emitted tokens at this step
  std::vector<Proposer::Outcome> outcomes_;  // [emitters_]
  std::vector<std::int32_t> verified_;
  std::vector<std::int32_t> accepted_;
  ForwardBatch batch_;
  std::vector<KvMove> moves_;
  std::vector<SlotId> move_sources_;
  std::vector<SlotId> move_destinations_;
  std::vector<std::int32_t> path_;
  std::vector<TokenId> path_tokens_;
  std::vector<RequestOutput> outputs_;
  std::size_t num_outputs_ = 0;

  void run_moves();
};

}  // namespace smartspec
