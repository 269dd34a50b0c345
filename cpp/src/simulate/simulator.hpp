// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The event loop of simulate().
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "simulate/sim_drafts.hpp"
#include "simulate/sim_requests.hpp"
#include "smartspec/simulator.hpp"

namespace smartspec::sim {

/// One run. Borrows the options.
class Simulation {
 public:
  Simulation(const SimulationOptions& options, std::shared_ptr<LengthPolicy> policy);
  SimulationResult run();

 private:
  void apply_shifts();
  void set_batch(std::int32_t batch);
  void add_arrivals();
  void step();
  std::span<const Candidate> propose(std::span<const DecodeSlot> slots);
  void draft(std::span<const DecodeSlot> slots, std::span<const DraftChoice> choices);
  void draft_paid(std::int32_t proposer, std::span<const DecodeSlot> slots,
                  std::span<const DraftChoice> choices);
  double verify(std::span<const ScheduledRows> rows, std::span<const DraftChoice> choices,
                SimulatedStep& record);
  std::int32_t emit(SimRequest& request, const TokenTree* tree);
  double expect(SimRequest& request, std::int32_t proposer, const TokenTree& tree);
  void settle(std::span<const DecodeSlot> slots, std::span<const DraftChoice> choices);
  void take_outputs();
  void count(const SimulatedStep& record);
  SimulationResult finish();

  const SimulationOptions& options_;
  Luck luck_;
  RequestPool pool_;
  World world_;
  TokenKv kv_;
  std::optional<Scheduler> scheduler_;

  double now_ = 0;
  std::int64_t step_ = 0;
  std::int32_t idle_steps_ = 0;
  std::size_t next_shift_ = 0;
  std::size_t next_arrival_ = 0;
  double counted_from_ = 0;
  SimulationResult result_;

  // Of one step; capacity is kept.
  std::vector<std::int32_t> free_, paying_;  // proposers
  std::vector<std::int32_t> backlog_;        // [slots]
  std::vector<TokenTree> candidate_trees_;   // [slots * free proposers]
  std::vector<Candidate> candidates_;
  std::vector<TokenTree> paid_trees_;        // [slots]
  std::vector<TokenTree*> trees_;            // [slots], null: nothing drafted
  std::vector<std::int32_t> levels_;         // [slots] drafted in paid passes
  std::vector<std::int32_t> accepted_;       // [slots]
  std::vector<std::int32_t> tokens_before_;  // [slots]
  DraftPasses passes_;
  std::vector<DraftWork> works_;
  std::vector<RequestOutcome> outcomes_;
  std::vector<TokenId> emitted_;
  std::vector<double> survival_;
  std::vector<RequestId> done_;
};

}  // namespace smartspec::sim
