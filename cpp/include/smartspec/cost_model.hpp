// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// How long a forward pass takes, predicted from what it computes and learnt from what passes took.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "smartspec/export.hpp"

namespace smartspec {

/// What a pass computes, or several passes of the same model together (a draft model's).
struct StepLoad {
  std::int32_t num_passes = 1;
  std::int32_t num_tokens = 0;       // rows: prompt chunks, newest tokens, draft nodes
  std::int32_t num_sequences = 0;    // requests that have rows
  std::int32_t num_logits = 0;       // rows whose logits are computed
  std::int64_t kv_tokens = 0;        // sum over sequences: context whose keys and values are read
  std::int64_t attention_pairs = 0;  // sum over rows: keys they attend to
};

/// Seconds of a pass as a function of one of its loads, the tokens: from `first_tokens` on,
/// seconds + (n - first_tokens) * seconds_per_token. Segments ascend, and so do the seconds; the
/// last one has no end.
struct CostSegment {
  std::int32_t first_tokens = 0;
  double seconds = 0;
  double seconds_per_token = 0;
};

/// The numbers behind a CostModel; what a profile stores. A pass of n tokens takes
///   staircase(pad(n)) + per_sequence * sequences + per_logit * logits + per_kv_token * kv_tokens
///   + per_attention_pair * attention_pairs + per_expert * expected experts loaded
/// seconds, per pass. pad() rounds up to the next tier (above the last one: not at all), as CUDA
/// graphs do. The staircase is linear between its knots, and with the last slope behind them.
/// Experts loaded by n tokens that pick k of E independently: E * (1 - (1 - k/E)^n), interpolated
/// between knots. Several passes share their tokens evenly; no count needs to divide.
struct CostCoefficients {
  std::vector<std::int32_t> tokens{1};  // [k] knots, ascending, >= 1
  std::vector<double> seconds{1e-3};    // [k] non-decreasing, > 0
  std::vector<std::int32_t> tiers{};    // ascending; empty: nothing is padded
  double per_sequence = 0;
  double per_logit = 0;
  double per_kv_token = 0;
  double per_attention_pair = 0;
  std::int32_t num_experts = 0;  // 0: a dense model
  std::int32_t experts_per_token = 0;
  double per_expert = 0;

  /// Throws std::invalid_argument naming the field.
  void validate() const;
};

/// What is known of a model and a device before anything was measured.
struct Roofline {
  double weight_bytes = 0;          // read by every pass
  double kv_bytes_per_token = 0;    // keys and values of one position, all layers
  double flops_per_token = 0;       // 2 * parameters, without the output layer
  double flops_per_logit = 0;       // 2 * hidden * vocabulary
  double flops_per_pair = 0;        // 4 * heads * head_dim * layers
  double bytes_per_second = 20e9;   // of memory
  double flops_per_second = 100e9;  // reached by matrix products
  double overhead_seconds = 50e-6;  // of a pass that computes nothing
};
/// Largest of what memory and arithmetic need, plus the overhead. Throws std::invalid_argument on
/// values that are negative, not finite, or zero where they divide.
SMARTSPEC_API CostCoefficients make_roofline(const Roofline& roofline);

/// A pass, or several together, and what they took.
struct CostSample {
  StepLoad load{};
  double seconds = 0;
};
/// The coefficients that explain the samples best: non-negative least squares on relative errors,
/// outliers weighing less, with knots where there are samples. Tiers and experts are not fitted. A
/// term that the samples hold constant cannot be told from the staircase, so vary them all. Throws
/// std::invalid_argument when there are none or seconds are not finite and positive.
SMARTSPEC_API CostCoefficients fit_cost(std::span<const CostSample> samples);

struct CostModelOptions {
  bool learn = true;
  double memory_passes = 2000;  // what an observation counts fades over this many
  double outlier_ratio = 3;     // a pass off by more is not believed until it repeats
  double start_error = 0.6;     // relative, of the start: a roofline may be off so far, a profile
                                // of the same machine and model perhaps 0.1
};

/// Predicts, and corrects itself with every observation: a speed factor that follows clock changes
/// within some tens of passes, the staircase where it was visited (its neighbours follow, so no
/// region stays wrong for lack of visits) and the linear terms. Single long passes (first runs,
/// page faults, another process) hardly move it. Deterministic. Not thread-safe.
class SMARTSPEC_API CostModel {
 public:
  /// Throws std::invalid_argument as CostCoefficients::validate() does.
  explicit CostModel(CostCoefficients start, const CostModelOptions& options = {});
  ~CostModel();
  CostModel(CostModel&&) noexcept;
  CostModel& operator=(CostModel&&) noexcept;

  /// Seconds, > 0. Negative counts are taken for zero.
  [[nodiscard]] double predict(const StepLoad& load) const;

  /// The pass `base` as a function of its total tokens, from base.num_tokens to at least
  /// `max_tokens`, when every token more also adds a row of logits and `pairs_per_token` attention
  /// pairs. Replaces `segments`; allocates only until its capacity suffices.
  void segments(const StepLoad& base, double pairs_per_token, std::int32_t max_tokens,
                std::vector<CostSegment>& segments) const;

  /// Seconds that are not finite or not positive are ignored. No heap allocation.
  void observe(const StepLoad& load, double seconds);

  /// As learnt so far.
  [[nodiscard]] CostCoefficients coefficients() const;
  [[nodiscard]] double speed() const noexcept;  // predictions / coefficients(): what is recent
  [[nodiscard]] std::int64_t num_observed() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smartspec
