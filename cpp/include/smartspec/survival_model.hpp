// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// How likely drafted tokens are accepted: learnt per proposer, per depth and per request from the
// tokens that were emitted.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "smartspec/export.hpp"
#include "smartspec/token_tree.hpp"
#include "smartspec/types.hpp"

namespace smartspec {

struct SurvivalModelOptions {
  std::int32_t num_proposers = 1;
  double first_rate = 0.7;      // acceptance per token that is expected before any observation
  double memory_tokens = 2000;  // what a proposer showed fades over so many of its tokens
  // Tokens after which a request's own record weighs one half, until it is known how much requests
  // really differ: alike, and the record weighs less; most unlike, and it weighs more.
  double request_shrinkage = 16;
};

/// A draft token is a trial once everything before it on its path was emitted; tokens behind the
/// first one that was not are censored: they count neither way. Since the target draws its own
/// token in any case, what was drafted but not verified is scored on the emitted tokens just as
/// well (shadow acceptance), and a draft that proved right so far goes on being scored at the
/// following steps.
///
/// A tree's `survival` is what its proposer claims (1 everywhere: no claim). The model corrects
/// claims as they came out before, and mixes in how the request differs from the proposer's
/// average, shrunk towards no difference. A jump in acceptance is noticed and old evidence dropped.
/// Requests it was not told of start as average ones. Deterministic. Not thread-safe.
class SMARTSPEC_API SurvivalModel {
 public:
  /// Throws std::invalid_argument on options out of range.
  explicit SurvivalModel(const SurvivalModelOptions& options = {});
  ~SurvivalModel();
  SurvivalModel(SurvivalModel&&) noexcept;
  SurvivalModel& operator=(SurvivalModel&&) noexcept;

  /// Before drafting: survival[d] = P(the first d + 1 tokens of a chain by `proposer` are all
  /// accepted), coverage included: a draft that ends earlier counts as not accepted there. Of a
  /// tree that is the chain of the children with the highest claims.
  /// `group`: requests that are alike (greedy, sampled), [0, kMaxGroups).
  void expect(std::int32_t proposer, RequestId id, std::int32_t group,
              std::span<float> survival) const;

  /// Before drafting: what calibrate() will make of claims, as a line through a low and a high one
  /// of a first token: deeper ones are seen only where the draft went on, which is no fair sample.
  /// For telling the proposer where to stop.
  [[nodiscard]] ClaimReading claims(std::int32_t proposer, RequestId id, std::int32_t group) const;

  /// After drafting: survival[i] of node i, corrected. Non-increasing along every path.
  void calibrate(std::int32_t proposer, RequestId id, std::int32_t group, const TokenTree& tree,
                 std::span<float> survival) const;

  /// Evidence: `tree` as the proposer returned it (not pruned; empty: it had nothing) for a request
  /// asked for `asked_depth` tokens, and the tokens the request then emitted. `asked_depth` 0: it
  /// was not asked. Once per step and proposer, also when it was not asked, else a draft is scored
  /// on the wrong tokens. Steady requests cause no heap allocation.
  void learn(std::int32_t proposer, RequestId id, std::int32_t group, std::int32_t asked_depth,
             const TokenTree& tree, std::span<const TokenId> emitted);

  /// Forgets the request's own record.
  void finish(RequestId id);

  /// Of all requests of late: accepted and tried tokens at this depth, decayed.
  struct DepthRecord {
    double trials = 0;
    double accepted = 0;
    double expected = 0;  // sum of what calibrate() said of those trials
  };
  [[nodiscard]] DepthRecord record(std::int32_t proposer, std::int32_t depth) const;
  /// Trials behind what expect() says of this request's own difference, 0 for a new one.
  [[nodiscard]] double evidence(std::int32_t proposer, RequestId id) const;
  /// Effective trials behind the proposer's average now; small: worth a probe.
  [[nodiscard]] double evidence(std::int32_t proposer) const;

  static constexpr std::int32_t kMaxGroups = 4;
  static constexpr std::int32_t kMaxDepth = 32;  // deeper tokens share the last one's record

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smartspec
