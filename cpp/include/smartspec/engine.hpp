// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The engine: continuous batching over one target model, speculating as a proposer and a length
// policy say, and emitting exactly what plain decoding would emit.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "smartspec/export.hpp"
#include "smartspec/kv_cache.hpp"
#include "smartspec/length_policy.hpp"
#include "smartspec/model.hpp"
#include "smartspec/proposer.hpp"
#include "smartspec/sampler.hpp"
#include "smartspec/sampling_params.hpp"
#include "smartspec/scheduler.hpp"

namespace smartspec {

/// Names and meaning as in vLLM.
struct EngineOptions {
  std::int32_t max_num_seqs = 64;  // requests running at once
  std::int32_t max_num_batched_tokens =
      512;                         // rows of one forward pass: prefill, decode and drafts
  std::int32_t block_size = 16;    // tokens per KV block, a multiple of 16
  std::int32_t num_kv_blocks = 0;  // 0: enough for max_num_seqs requests, at most kv_memory_bytes
  std::int64_t kv_memory_bytes = std::int64_t{1} << 30;  // cap of the automatic choice
  std::int32_t max_model_len = 0;                        // 0: max_position_embeddings
  std::optional<DType> kv_dtype{};                       // empty: the model's dtype
  bool enable_prefix_caching = true;
  double aging_seconds = 30;  // waiting this long raises a request by one priority; 0: never
  std::uint64_t seed = 0;     // of requests that bring none
  std::uint64_t prefix_hash_seed = 0;
  bool record_logits_hash = false;  // debugging: RequestOutput::logits_hashes
  /// Seconds since whenever, for virtual time and repeatable decisions; empty: the steady clock.
  /// Called in step(), must not throw; going backwards, NaN or infinity is taken for no time.
  std::function<double()> clock{};
};

struct Request {
  std::vector<TokenId> prompt_token_ids{};
  SamplingParams sampling{};
  std::int32_t priority = 0;          // lower runs first, as in vLLM; ties by arrival
  std::uint64_t cache_salt = 0;       // prefix-cache tenant
  bool speculate = true;              // false: this request never drafts
  std::int32_t min_draft_tokens = 0;  // nodes verified at least, where so many are drafted
  std::optional<std::int32_t> max_draft_tokens{};  // nodes verified at most
  std::optional<std::string> proposer{};           // only this one of the engine's, by name
  double tpot_target = 0;  // seconds per output token, for policies that know targets; 0: none
  // Text the output may resemble, for proposers that can use it (OpenAI's predicted outputs); at
  // most max_model_len tokens.
  std::vector<TokenId> prediction{};
};

struct RequestStats {
  std::int64_t num_drafted = 0;   // draft tokens verified
  std::int64_t num_accepted = 0;  // of them accepted
  std::int64_t num_steps = 0;     // forward passes that emitted tokens
  std::int64_t num_preemptions = 0;
  std::int32_t num_cached_tokens = 0;  // prompt tokens found in the prefix cache at first admission
  std::int32_t proposer = -1;          // whose draft was verified last, into EngineStats::proposers
  std::array<std::int32_t, 17> length_histogram{};  // decoding steps by nodes verified; 16: more
  NoSpeculationReason no_speculation_reason = NoSpeculationReason::kPrefill;  // of the last step
};

/// What one step did for one completion of one request.
struct RequestOutput {
  RequestId id = 0;
  std::int32_t index = 0;  // completion, [0, n)
  std::vector<TokenId> new_token_ids;
  std::vector<PositionLogprobs> logprobs;         // [new_token_ids] when asked for
  std::vector<PositionLogprobs> prompt_logprobs;  // once, with the first token: [prompt - 1]
  std::vector<std::uint64_t> logits_hashes;       // [new_token_ids] when EngineOptions asks for it
  FinishReason finish_reason = FinishReason::kNone;
  std::int32_t stop_string_index = -1;  // with kStop
  TokenId stop_token_id = -1;           // with kStop: a stop_token_ids entry
  std::string error;                    // with kError
  RequestStats stats;
};

struct ProposerStats {
  std::string name;
  bool pays_per_depth = false;
  std::int64_t num_calls = 0;
  std::int64_t num_proposed = 0;  // nodes it returned
  std::int64_t num_drafted = 0;   // of them verified
  std::int64_t num_accepted = 0;
  double seconds = 0;
};

struct EngineStats {
  std::int64_t num_steps = 0;
  std::int64_t num_tokens_computed = 0;  // rows run
  std::int64_t num_drafted = 0;
  std::int64_t num_accepted = 0;
  std::int64_t num_emitted = 0;
  std::int64_t num_preemptions = 0;
  std::int64_t num_invalid_drafts = 0;
  std::int64_t num_proposer_errors = 0;
  std::string last_proposer_error;
  std::int32_t num_running = 0;
  std::int32_t num_waiting = 0;
  double propose_seconds = 0;   // totals by stage: free and paid drafting together
  double paid_seconds = 0;      // of them, by proposers that pay per depth
  double decision_seconds = 0;  // scheduler and policy
  double forward_seconds = 0;
  double verify_seconds = 0;
  double step_seconds = 0;  // everything, so the rest is bookkeeping
  std::vector<ProposerStats> proposers;
  SchedulerStats scheduler;
  KvCacheStats kv;
};

/// Not thread-safe except add_request() and abort(), which any thread may call while another is in
/// step(): they take effect at the next step boundary.
class SMARTSPEC_API Engine {
 public:
  /// `proposer` may be null (no speculation); `policy` null means make_off_policy(). Throws
  /// std::invalid_argument on options out of range.
  Engine(std::shared_ptr<const Model> model, const EngineOptions& options,
         std::shared_ptr<const StopVocabulary> stops, std::shared_ptr<Proposer> proposer = nullptr,
         std::shared_ptr<LengthPolicy> policy = nullptr);
  /// Several proposers, among which the policy chooses per request. One that pays per depth is
  /// asked after the policy, for what it wants; the others for every request at every step.
  Engine(std::shared_ptr<const Model> model, const EngineOptions& options,
         std::shared_ptr<const StopVocabulary> stops,
         std::vector<std::shared_ptr<Proposer>> proposers,
         std::shared_ptr<LengthPolicy> policy = nullptr);
  ~Engine();
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;

  /// Checks everything; throws std::invalid_argument naming the field, and then nothing changed.
  RequestId add_request(Request request);

  /// Ends the request; its blocks are free after the next step. False: unknown or already ended.
  /// No output follows for it.
  bool abort(RequestId id);

  /// One pass of the loop: propose, plan, draft, schedule, forward, verify, commit, learn.
  /// Outputs of requests that emitted or ended; valid until the next call.
  std::span<const RequestOutput> step();

  [[nodiscard]] bool has_unfinished() const;
  [[nodiscard]] EngineStats stats() const;
  [[nodiscard]] const EngineOptions& options() const noexcept;  // with automatic choices filled in
  [[nodiscard]] const ModelConfig& model_config() const noexcept;

  /// For tests: preempts a running request now (recompute on return). False: it is not running.
  bool preempt(RequestId id, std::int32_t index = 0);
  void clear_prefix_cache();
  /// For tests and fuzzers: empty when sound, else the first broken invariant.
  [[nodiscard]] std::string check_integrity() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smartspec
