// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A server that is not there: the real Scheduler and policies, driven in virtual time by requests,
// drafts and step times drawn from models of them. It ranks policies; it proves nothing about a
// device it has no measured coefficients of.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "smartspec/cost_model.hpp"
#include "smartspec/export.hpp"
#include "smartspec/length_policy.hpp"
#include "smartspec/scheduler.hpp"

namespace smartspec {

/// P(draft token accepted | the path before was) = sigmoid(b + x_t - decay * depth): b drawn once
/// per request from `rates` (in a closed loop once per slot, so that no policy changes who is in
/// the batch), x_t wanders from token to token with deviation `spread` (in logits) and correlation
/// `persistence`.
struct AcceptanceModel {
  std::vector<double> rates{0.7};  // acceptance rates in (0, 1), each as likely; 0: never
  // Recorded: acceptance rates in [0, 1] along outputs. Every request takes one of the recordings,
  // each as likely, over and over again. Where there is any, rates and spread are not used.
  std::vector<std::vector<float>> recorded{};
  double spread = 0;
  double persistence = 0.8;
  double decay = 0;
};

struct SimulatedProposer {
  std::string name = "draft";
  bool pays_per_depth = true;
  AcceptanceModel acceptance{};
  double coverage = 1;         // share of steps at which it has anything to propose
  double claim_noise = 0.5;    // deviation of the claimed from the true logit; < 0: claims 1
  double claim_bias = 0;       // added to the claimed logit
  std::int32_t max_depth = 8;  // longest chain
  CostCoefficients pass{};     // true seconds of one of its passes; ignored unless it pays
};

struct SimulatedRequest {
  double arrival = 0;  // seconds
  std::int32_t num_prompt_tokens = 128;
  std::int32_t num_output_tokens = 128;
  std::int32_t priority = 0;
  SpeculationControl control{};
};

/// From this step on, the acceptance of a proposer, the closed loop's batch or the speed change.
struct SimulatedShift {
  std::int64_t step = 0;
  std::int32_t proposer = -1;  // whose acceptance changes; -1: nobody's
  AcceptanceModel acceptance{};
  std::int32_t batch = -1;  // -1: as it was
  double slowdown = 1;      // factor on all times
};

struct SimulationOptions {
  std::vector<SimulatedRequest> requests{};  // open loop, by arrival; or
  std::int32_t batch = 0;                    // closed loop: so many requests always run, no prompts
  std::int32_t context = 1024;       // closed loop: tokens of context at the start of a request
  std::int32_t output_tokens = 150;  // closed loop: mean output (geometric), then a new request
  std::int64_t max_steps = 2000;     // 0: until all requests are done
  std::int64_t warmup_steps = 0;     // not counted in the totals
  std::vector<SimulatedProposer> proposers{};
  std::vector<SimulatedShift> shifts{};
  CostCoefficients target{};  // true seconds of a pass
  double overhead = 0;        // share added to the target's time when anything is drafted
  double time_noise = 0.02;   // deviation of the log of measured times
  double outlier_rate = 0;    // share of steps that take 10 times as long
  SchedulerOptions scheduler{.max_num_seqs = 512, .max_num_batched_tokens = 8192};
  std::int32_t num_kv_blocks = 0;  // 0: not limited
  std::int32_t block_size = 16;
  bool record_steps = false;  // fill SimulationResult::steps
  std::uint64_t seed = 0;
  /// Throws std::invalid_argument naming the field.
  void validate() const;
};

struct SimulatedStep {
  double start = 0;
  double seconds = 0;  // drafting included
  std::int32_t num_decodes = 0;
  std::int32_t num_tokens = 0;  // rows of the target's pass
  std::int32_t num_drafted = 0;
  std::int32_t num_verified = 0;
  std::int32_t num_emitted = 0;
  std::int32_t draft_passes = 0;
  double expected_emitted = 0;  // by the true acceptance, of what was verified
};

struct SimulatedRequestResult {
  double arrival = 0;
  double first_token = 0;
  double finish = 0;  // 0: it did not
  std::int32_t num_output_tokens = 0;
  std::int32_t num_preemptions = 0;
};

struct SimulationResult {
  double seconds = 0;  // virtual time, after warm-up
  std::int64_t num_steps = 0;
  std::int64_t num_emitted = 0;
  double expected_emitted = 0;  // as num_emitted, without the luck of the draws
  std::int64_t num_drafted = 0;
  std::int64_t num_verified = 0;
  std::int64_t num_accepted = 0;
  double goodput = 0;  // expected_emitted / seconds
  std::vector<SimulatedStep> steps;
  std::vector<SimulatedRequestResult> requests;  // open loop
  std::vector<double> output_gaps;  // open loop: seconds between outputs of a request, all of them
  SchedulerStats scheduler;
  double wall_seconds = 0;  // of the simulation itself
};

/// Runs. `policy` null: the oracle, which knows the true acceptance of every draft token before it
/// is drafted and the true cost of everything, and picks draft depth and lengths per request.
/// The same options and seed give the same draws to every policy. Throws std::invalid_argument.
SMARTSPEC_API SimulationResult simulate(const SimulationOptions& options,
                                        std::shared_ptr<LengthPolicy> policy);

}  // namespace smartspec
