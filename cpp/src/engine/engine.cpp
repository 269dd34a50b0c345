// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/engine.hpp"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "engine/engine_core.hpp"

namespace smartspec {
namespace {

std::uint64_t splitmix64(std::uint64_t value) {
  value += 0x9E3779B97F4A7C15ULL;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
  return value ^ (value >> 31);
}

std::shared_ptr<const StopVocabulary> checked(std::shared_ptr<const StopVocabulary> stops,
                                              std::int32_t vocab_size) {
  if (stops == nullptr) return std::make_shared<const StopVocabulary>();
  for (const TokenId token : stops->eos_token_ids) {
    if (token < 0 || token >= vocab_size) {
      throw std::invalid_argument("eos_token_ids must be in [0, " + std::to_string(vocab_size) +
                                  "), got " + std::to_string(token));
    }
  }
  if (!stops->token_bytes.empty() &&
      stops->token_bytes.size() != static_cast<std::size_t>(vocab_size)) {
    throw std::invalid_argument("token_bytes must have one entry per token (" +
                                std::to_string(vocab_size) + "), got " +
                                std::to_string(stops->token_bytes.size()));
  }
  return stops;
}

void check_tokens(const char* field, std::span<const TokenId> tokens, std::int32_t vocab_size) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocab_size) continue;
    throw std::invalid_argument(std::string(field) + "[" + std::to_string(i) + "] must be in [0, " +
                                std::to_string(vocab_size) + "), got " + std::to_string(tokens[i]));
  }
}

std::shared_ptr<const Model> not_null(std::shared_ptr<const Model> model) {
  if (model == nullptr) throw std::invalid_argument("model must not be null");
  return model;
}

}  // namespace

struct Engine::Impl {
  Impl(std::shared_ptr<const Model> model, const EngineOptions& options,
       std::shared_ptr<const StopVocabulary> stops,
       std::vector<std::shared_ptr<Proposer>> proposers, std::shared_ptr<LengthPolicy> policy)
      : core(model, options, checked(std::move(stops), model->config().vocab_size),
             std::move(proposers), std::move(policy)) {}

  EngineCore core;

  // What other threads hand in; taken over at the next step boundary.
  mutable std::mutex mutex;
  RequestId next_id = 0;
  std::vector<std::unique_ptr<Completion>> arrived;  // in order
  std::vector<RequestId> aborted;
  std::unordered_map<RequestId, std::int32_t> live;  // unfinished completions per request

  void take_inbox() {
    const std::lock_guard lock(mutex);
    for (auto& completion : arrived) core.enqueue(std::move(completion));
    arrived.clear();
    for (const RequestId id : aborted) core.drop(id);
    aborted.clear();
  }

  /// Drops outputs of requests aborted meanwhile and forgets those that ended.
  std::span<const RequestOutput> settle(std::span<RequestOutput> outputs) {
    const std::lock_guard lock(mutex);
    const auto end =
        std::remove_if(outputs.begin(), outputs.end(),
                       [&](const RequestOutput& output) { return !live.contains(output.id); });
    const auto kept = outputs.first(static_cast<std::size_t>(end - outputs.begin()));
    for (const RequestOutput& output : kept) {
      if (output.finish_reason == FinishReason::kNone) continue;
      const auto entry = live.find(output.id);
      if (--entry->second == 0) live.erase(entry);
    }
    return kept;
  }

  std::shared_ptr<RequestInfo> check(Request request) const;
  SpeculationControl check_control(const Request& request) const;
};

SpeculationControl Engine::Impl::check_control(const Request& request) const {
  const std::int32_t most = request.max_draft_tokens.value_or(kMaxTreeNodes);
  if (most < 0 || most > kMaxTreeNodes) {
    throw std::invalid_argument("max_draft_tokens must be in [0, " + std::to_string(kMaxTreeNodes) +
                                "], got " + std::to_string(most));
  }
  if (request.min_draft_tokens < 0 || request.min_draft_tokens > most) {
    throw std::invalid_argument("min_draft_tokens must be in [0, " + std::to_string(most) +
                                "] (max_draft_tokens), got " +
                                std::to_string(request.min_draft_tokens));
  }
  if (!(request.tpot_target >= 0) || !std::isfinite(request.tpot_target)) {
    throw std::invalid_argument("tpot_target must be finite and at least 0 (none), got " +
                                std::to_string(request.tpot_target));
  }
  SpeculationControl control{.enabled = request.speculate,
                             .min_tokens = request.min_draft_tokens,
                             .max_tokens = most,
                             .tpot_target = request.tpot_target};
  if (!request.proposer) return control;
  std::string allowed;
  const std::vector<std::string>& names = core.proposer_names();
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i] == *request.proposer) {
      control.proposer = static_cast<std::int32_t>(i);
      return control;
    }
    allowed += (i > 0 ? ", " : "") + names[i];
  }
  throw std::invalid_argument("proposer must be one of the engine's (" +
                              (names.empty() ? "it has none" : allowed) + "), got \"" +
                              request.proposer->substr(0, 80) + "\"");
}

std::shared_ptr<RequestInfo> Engine::Impl::check(Request request) const {
  const std::int32_t vocab_size = core.model().config().vocab_size;
  const std::int32_t max_len = core.options().max_model_len;
  request.sampling.validate(vocab_size);
  const std::size_t length = request.prompt_token_ids.size();
  if (length < 1 || length >= static_cast<std::size_t>(max_len)) {
    throw std::invalid_argument("prompt_token_ids must have between 1 and " +
                                std::to_string(max_len - 1) + " tokens (max_model_len - 1), got " +
                                std::to_string(length));
  }
  check_tokens("prompt_token_ids", request.prompt_token_ids, vocab_size);
  if (request.prediction.size() > static_cast<std::size_t>(max_len)) {
    throw std::invalid_argument("prediction must have at most " + std::to_string(max_len) +
                                " tokens (max_model_len), got " +
                                std::to_string(request.prediction.size()));
  }
  check_tokens("prediction", request.prediction, vocab_size);
  const SpeculationControl control = check_control(request);
  if (!request.sampling.stop.empty() && core.stops()->token_bytes.empty()) {
    throw std::invalid_argument("stop: stop strings need the engine's StopVocabulary::token_bytes");
  }
  auto info = std::make_shared<RequestInfo>();
  info->prompt = std::move(request.prompt_token_ids);
  info->sampling = std::move(request.sampling);
  info->sampling.max_tokens =
      std::min(info->sampling.max_tokens, max_len - static_cast<std::int32_t>(length));
  info->sampling.min_tokens = std::min(info->sampling.min_tokens, info->sampling.max_tokens);
  info->priority = request.priority;
  info->cache_salt = request.cache_salt;
  info->control = control;
  info->prediction = std::move(request.prediction);
  return info;
}

Engine::Engine(std::shared_ptr<const Model> model, const EngineOptions& options,
               std::shared_ptr<const StopVocabulary> stops, std::shared_ptr<Proposer> proposer,
               std::shared_ptr<LengthPolicy> policy)
    : Engine(std::move(model), options, std::move(stops),
             proposer != nullptr ? std::vector{std::move(proposer)}
                                 : std::vector<std::shared_ptr<Proposer>>{},
             std::move(policy)) {}

Engine::Engine(std::shared_ptr<const Model> model, const EngineOptions& options,
               std::shared_ptr<const StopVocabulary> stops,
               std::vector<std::shared_ptr<Proposer>> proposers,
               std::shared_ptr<LengthPolicy> policy)
    : impl_(std::make_unique<Impl>(not_null(std::move(model)), options, std::move(stops),
                                   std::move(proposers), std::move(policy))) {}

Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

RequestId Engine::add_request(Request request) {
  std::shared_ptr<RequestInfo> info = impl_->check(std::move(request));
  const std::int32_t n = info->sampling.n;
  RequestId id = 0;
  {
    const std::lock_guard lock(impl_->mutex);
    id = impl_->next_id;
    impl_->next_id += n;  // completion i is id + i towards proposers
  }
  info->id = id;
  const std::uint64_t seed =
      info->sampling.seed
          ? static_cast<std::uint64_t>(*info->sampling.seed)
          : splitmix64(impl_->core.options().seed ^ splitmix64(static_cast<std::uint64_t>(id)));
  std::vector<std::unique_ptr<Completion>> completions;
  for (std::int32_t index = 0; index < n; ++index) {
    Sampler sampler(info->sampling, seed_of_completion(seed, index), info->prompt,
                    impl_->core.model().config().vocab_size, impl_->core.stops());
    completions.push_back(std::make_unique<Completion>(info, index, std::move(sampler)));
  }
  const std::lock_guard lock(impl_->mutex);
  for (auto& completion : completions) impl_->arrived.push_back(std::move(completion));
  impl_->live.emplace(id, n);
  return id;
}

bool Engine::abort(RequestId id) {
  const std::lock_guard lock(impl_->mutex);
  if (impl_->live.erase(id) == 0) return false;
  impl_->aborted.push_back(id);
  return true;
}

std::span<const RequestOutput> Engine::step() {
  impl_->take_inbox();
  return impl_->settle(impl_->core.step());
}

bool Engine::has_unfinished() const {
  const std::lock_guard lock(impl_->mutex);
  return !impl_->live.empty() || !impl_->aborted.empty();
}

EngineStats Engine::stats() const {
  EngineStats stats = impl_->core.stats();
  const std::lock_guard lock(impl_->mutex);
  stats.num_waiting += static_cast<std::int32_t>(impl_->arrived.size());
  return stats;
}

const EngineOptions& Engine::options() const noexcept { return impl_->core.options(); }
const ModelConfig& Engine::model_config() const noexcept { return impl_->core.model().config(); }

bool Engine::preempt(RequestId id, std::int32_t index) { return impl_->core.preempt(id, index); }
void Engine::clear_prefix_cache() { impl_->core.clear_prefix_cache(); }
std::string Engine::check_integrity() const { return impl_->core.check_integrity(); }

}  // namespace smartspec
