// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Choosing the target's own token at one position, exactly as plain decoding would, and walking a
// token tree with that rule.
//
// The rule: token = argmax_v (log w_v + g(seed, position, v)), with w the processed distribution
// (penalties, bias, masks, temperature, top-k, top-p, min-p) and g standard Gumbel noise from a
// counter-based generator; temperature 0 is the same without noise. Ties go to the lowest id.
// Gumbel-max: Maddison et al. 2014. Walk ("target walk"): the target's token is drawn at a node; if
// a child carries it, step there, else emit it and stop. Speculation therefore never changes
// output.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "smartspec/export.hpp"
#include "smartspec/sampling_params.hpp"
#include "smartspec/token_tree.hpp"
#include "smartspec/types.hpp"

namespace smartspec {

/// What ends a request.
enum class FinishReason : std::uint8_t { kNone, kStop, kLength, kAbort, kError };

/// One entry of a logprobs list: natural logarithm of softmax of the raw logits (before penalties
/// and temperature, vLLM's "raw_logprobs"); rank 1 is the most likely token.
struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0.0F;
  std::int32_t rank = 0;
};

/// The logprobs of one position: the chosen token first, then the top N, best first.
using PositionLogprobs = std::vector<TokenLogprob>;

/// Top `num_top` logprobs of one row plus the one of `chosen`. O(vocab). Pure.
SMARTSPEC_API PositionLogprobs compute_logprobs(std::span<const float> logits, TokenId chosen,
                                                std::int32_t num_top);

/// What a model and its tokenizer say about stopping; shared by the requests of an engine.
struct StopVocabulary {
  std::vector<TokenId> eos_token_ids;    // all of them end a request unless ignore_eos
  std::vector<std::string> token_bytes;  // [vocab] text of each token; empty: stop strings refused
};

/// Sampling state of one request: parameters, prompt and the tokens emitted so far. The cost of
/// penalties grows with distinct tokens, nothing else with length. Not thread-safe; distinct
/// samplers may be used from distinct threads.
class SMARTSPEC_API Sampler {
 public:
  /// Throws std::invalid_argument on parameters out of range (SamplingParams::validate).
  /// `seed` keys the noise. `stops` is kept alive.
  Sampler(const SamplingParams& params, std::uint64_t seed, std::span<const TokenId> prompt,
          std::int32_t vocab_size, std::shared_ptr<const StopVocabulary> stops);
  ~Sampler();
  Sampler(Sampler&&) noexcept;
  Sampler& operator=(Sampler&&) noexcept;

  /// The token at the next position given `logits` [vocab] of the model there. Does not advance.
  /// A row whose processed distribution is empty or not finite throws Error.
  [[nodiscard]] TokenId sample(std::span<const float> logits);

  /// The `count` best tokens of the same rule, best first (argmax first): what a draft model that
  /// shares the noise proposes as siblings. Appends to `out`; fewer when fewer are allowed.
  /// `scores` (optional, may be null) gets the probability of each under the processed
  /// distribution (temperature 0: under softmax at T = 1), for survival.
  void sample_top(std::span<const float> logits, std::int32_t count, std::vector<TokenId>& out,
                  std::vector<float>* scores);

  /// Appends an emitted token: penalties, bad words and stop strings look at it from now on.
  /// Says whether the request ends with it (kStop: eos, stop id or stop string; kLength).
  FinishReason accept(TokenId token);

  /// A cheap mark of the current state, to try tokens and return: a draft model's lookahead.
  /// rewind(mark()) after any accepts restores the state exactly.
  [[nodiscard]] std::int32_t mark() const noexcept;
  void rewind(std::int32_t mark);

  /// Whether the processed distribution ignores the noise (temperature 0).
  [[nodiscard]] bool is_greedy() const noexcept;
  [[nodiscard]] std::int32_t num_output_tokens() const noexcept;
  /// After accept() returned kStop: the stop string's index in params.stop, the stop token id, or
  /// empty for eos. For `stop_reason`.
  [[nodiscard]] std::int32_t matched_stop_string() const noexcept;  // -1: none
  [[nodiscard]] TokenId matched_stop_token() const noexcept;        // -1: none
  [[nodiscard]] const SamplingParams& params() const noexcept;
  [[nodiscard]] std::uint64_t seed() const noexcept;

  /// The current state for a draw elsewhere; the capacity of `out` is reused. False, with `out`
  /// unspecified, when numbers do not tell it all: allowed_token_ids, bad_words, or min_tokens not
  /// reached yet.
  [[nodiscard]] bool describe(DrawState& out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// What verifying one tree gave.
struct Verification {
  std::vector<std::int32_t> path;          // nodes whose token was emitted, root side first; one
                                           // whose token ends the request is among them
  std::vector<TokenId> tokens;             // emitted: one per node of the path, plus the last one
                                           // drawn unless the request ended inside the path
  std::vector<PositionLogprobs> logprobs;  // [tokens] when params.logprobs is set, else empty
  std::vector<std::int32_t> rows;          // [tokens] logits row each was drawn from
  FinishReason finish_reason = FinishReason::kNone;
  void clear() noexcept;
};

/// Gives the logits [vocab] after a node; node -1 is the last verified token.
using LogitsRow = std::function<std::span<const float>(std::int32_t node)>;

/// Walks `tree` with the rule above and advances `sampler` by the emitted tokens. Stops exactly at
/// the token that ends the request, also inside an accepted run. Rows are asked for along the
/// accepted path only. `out` is overwritten; its capacity is reused. `rows` holds node + 1.
/// Throws what sample() throws; `out` and `sampler` then hold the tokens emitted before.
SMARTSPEC_API void verify_tree(const TokenTree& tree, const LogitsRow& logits, Sampler& sampler,
                               Verification& out);

/// The same walk with tokens that were drawn elsewhere by the same rule (Sampler::describe): those
/// of the nodes along the path, and the one after it last. `logprobs` stays empty. Throws
/// std::invalid_argument, and changes nothing, when `drawn` is no such walk of `tree`.
SMARTSPEC_API void accept_drawn(const TokenTree& tree, std::span<const TokenId> drawn,
                                Sampler& sampler, Verification& out);

/// Seed of completion `index` of a request with `n` > 1: distinct streams from one seed; index 0
/// keeps the seed.
SMARTSPEC_API std::uint64_t seed_of_completion(std::uint64_t seed, std::int32_t index) noexcept;

/// Standard Gumbel noise of (seed, position, token): the one definition everything else agrees
/// with. A draw takes the greatest logit * (1 / T) + gumbel_noise(...), each operation in IEEE
/// double, with position = prompt and output tokens before the drawn one. Same bits on every
/// machine: Philox4x32-10 and a log of our own (cpp/src/verify/rule.hpp has the counter layout).
SMARTSPEC_API double gumbel_noise(std::uint64_t seed, std::int64_t position,
                                  TokenId token) noexcept;

}  // namespace smartspec
