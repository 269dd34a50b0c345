// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The goodput policy: at every step, for every request, the length that makes the whole batch
// emit most tokens per second.
#pragma once

#include <memory>
#include <vector>

#include "smartspec/allocation.hpp"
#include "smartspec/cost_model.hpp"
#include "smartspec/export.hpp"
#include "smartspec/length_policy.hpp"
#include "smartspec/survival_model.hpp"

namespace smartspec {

struct GoodputOptions {
  std::int32_t max_depth = 16;      // longest draft of a proposer that does not pay per depth
  std::int32_t max_paid_depth = 8;  // longest draft of one that does
  double probe_budget = 0.003;      // share of time that may go into drafts made only to learn
  double margin = 0.01;             // speculation has to promise this share more than none
  CostCoefficients target{};        // start of the step's cost model
  CostCoefficients draft{};         // start of a paying proposer's, per pass
  CostModelOptions cost{};          // of both
  SurvivalModelOptions survival{};  // num_proposers is filled in
};

/// maximise  (sum over requests of 1 + survival of their verified nodes) / step time
/// Before drafting, from what is learnt: proposer and depth for every request, jointly, since one
/// pass of a draft model serves the whole batch. After drafting, from the calibrated survival of
/// the real nodes: the nodes of the batch that pay (Allocator). Requests with a TPOT target come
/// first: as many nodes as they need to reach it, then goodput with the rest. When nothing is
/// worth speculating, free proposers go on being scored on the emitted tokens and paying ones are
/// probed within probe_budget, so no length is final. (SmartSpec, arXiv 2406.14066, extended to
/// lengths per request and measured costs.) Deterministic given its inputs; it reads no clock.
class SMARTSPEC_API GoodputPolicy final : public LengthPolicy {
 public:
  /// Throws std::invalid_argument naming the option.
  explicit GoodputPolicy(const GoodputOptions& options = {});
  ~GoodputPolicy() override;

  [[nodiscard]] std::string_view name() const override;
  [[nodiscard]] std::int32_t max_depth() const override;
  [[nodiscard]] std::int32_t max_prefill_tokens(const StepView& step,
                                                std::span<const LengthRequest> requests,
                                                std::int32_t wanted) override;
  void plan(const StepView& step, std::span<const LengthRequest> requests,
            std::span<const Candidate> candidates, std::span<DraftChoice> choices) override;
  void allocate(const StepView& step, std::span<const LengthRequest> requests,
                std::span<const DraftChoice> choices, std::span<const DraftWork> drafts,
                std::span<TokenTree* const> trees) override;
  void observe(const StepOutcome& outcome) override;
  void finish(RequestId id) override;
  [[nodiscard]] PolicyStats stats() const override;

  /// What it has learnt, for profiles and for display.
  [[nodiscard]] const CostModel& target_cost() const noexcept;
  /// Of a paying proposer, per pass. Null, as the next one, before the first plan().
  [[nodiscard]] const CostModel* draft_cost(std::int32_t proposer) const noexcept;
  [[nodiscard]] const SurvivalModel* survival() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

SMARTSPEC_API std::shared_ptr<LengthPolicy> make_goodput_policy(const GoodputOptions& options = {});

}  // namespace smartspec
