// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The interface of everything that drafts: prompt lookup, suffix index, draft model, or a user's
// own in C++ or Python.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "smartspec/export.hpp"
#include "smartspec/token_tree.hpp"
#include "smartspec/types.hpp"

namespace smartspec {

struct SamplingParams;

/// One running request that may draft at this step. Everything is borrowed for the call.
struct ProposeRequest {
  RequestId id = 0;
  std::span<const TokenId> tokens;  // prompt and verified output, the newest token included
  std::int32_t num_prompt_tokens = 0;
  std::int32_t max_depth = 0;  // longest useful path; >= 1
  std::int32_t max_nodes = 0;  // nodes the engine will take; >= max_depth
  const SamplingParams* sampling = nullptr;
  std::uint64_t seed = 0;                    // keys the sampling noise: a draft model may share it
  std::uint64_t cache_salt = 0;              // tenant: nothing learnt from it may reach another
  std::span<const TokenId> prediction = {};  // text the output may resemble, from the user
  float min_survival = 0;  // a path whose survival falls below need not be continued
  ClaimReading claims{};   // how its survival is read: the product over its nodes
};

/// What the last propose() ran, over all its passes; for predicting what the next one costs.
struct ProposeWork {
  std::int32_t num_passes = -1;      // -1: it does not count
  std::int32_t num_tokens = 0;       // rows
  std::int32_t num_sequences = 0;    // sum over the passes of requests that had rows
  std::int32_t num_logits = 0;       // rows whose logits were computed
  std::int64_t kv_tokens = 0;        // context whose keys and values were read
  std::int64_t attention_pairs = 0;  // sum over rows: keys they attended to
};

/// Drafts for a whole batch at once. The engine calls it from its step thread, one call at a time.
/// A proposer is keyed by position, not by call: a request may sit out steps, be preempted or be
/// recomputed, and the next call simply shows its tokens.
class SMARTSPEC_API Proposer {
 public:
  virtual ~Proposer() = default;

  [[nodiscard]] virtual std::string_view name() const = 0;

  /// Fills trees[i] for requests[i]; an empty tree means "nothing to propose". Trees arrive empty.
  /// Whatever it returns or throws cannot change any output: an invalid tree is dropped and
  /// counted, an exception costs every request of the call its drafts for this step.
  virtual void propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) = 0;

  /// Every level of a draft costs a pass over a model, so it is asked only where that is worth it,
  /// and for as many levels as are. Others are asked at every step. Must not change.
  [[nodiscard]] virtual bool pays_per_depth() const { return false; }

  /// Tokens of the request that a cache of its own lacks, so that the next draft costs more; an
  /// estimate that looks at no token.
  [[nodiscard]] virtual std::int32_t backlog(RequestId /*id*/,
                                             std::span<const TokenId> /*tokens*/) const {
    return 0;
  }

  [[nodiscard]] virtual ProposeWork last_work() const { return {}; }

  /// What a step did to one request: the accepted path of the tree that was verified, and the
  /// emitted tokens.
  struct Outcome {
    RequestId id = 0;
    const TokenTree* tree = nullptr;  // null or empty: nothing of this proposer was verified
    std::span<const std::int32_t> accepted_path;
    std::span<const TokenId> emitted;
    // As propose() would show it now: `tokens` ends with `emitted`; max_depth and max_nodes are 0.
    const ProposeRequest* request = nullptr;
  };
  /// Called after each step, before finish(), with every request that emitted tokens at it, also
  /// those that drafted nothing or were never proposed for; not with requests that asked for no
  /// speculation. An exception is counted and has no other effect.
  virtual void observe(std::span<const Outcome> /*outcomes*/) {}

  /// The request ended or was aborted; its state may go.
  virtual void finish(RequestId /*id*/) {}
};

}  // namespace smartspec
