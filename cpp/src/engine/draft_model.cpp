// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/draft_model.hpp"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>

#include "model/decoder.hpp"
#include "smartspec/error.hpp"
#include "smartspec/kv_cache.hpp"

namespace smartspec {
namespace {

/// What the draft model knows of one request. Its cache may hold drafted tokens that were rejected
/// since; the next call cuts them off by comparing tokens, so sitting out steps costs nothing.
struct DraftState {
  SequenceId sequence = -1;
  std::vector<TokenId> cached;  // tokens whose K and V are in the cache
  std::optional<Sampler> sampler;
  std::int32_t num_accepted = 0;  // of the request's tokens, by the sampler; 0: not created yet
};

/// One request of the current call.
struct Lane {
  DraftState* state = nullptr;
  const ProposeRequest* request = nullptr;
  TokenTree* tree = nullptr;
  std::int32_t depth = 0;    // levels to draft
  std::int32_t next = 0;     // index of the next token to run
  std::int32_t end = 0;      // one behind the last token to run before the next draw
  std::int32_t parent = -1;  // newest node of the chain
  std::int32_t logits = -1;  // row of the current pass, -1: none
  std::int32_t sampler_mark = 0;
  float survival = 1;  // of the chain, its claims read as the request says
};

DraftModelOptions resolve(DraftModelOptions options, const Model& model) {
  if (options.tree_width < 1 || options.tree_width > kMaxTreeNodes) {
    throw std::invalid_argument("tree_width must be in [1, " + std::to_string(kMaxTreeNodes) +
                                "], got " + std::to_string(options.tree_width));
  }
  if (options.max_num_seqs < 1 || options.max_num_batched_tokens < options.max_num_seqs) {
    throw std::invalid_argument(
        "max_num_batched_tokens must be at least max_num_seqs (>= 1), got " +
        std::to_string(options.max_num_batched_tokens) + " and " +
        std::to_string(options.max_num_seqs));
  }
  const std::int32_t longest = model.config().max_position_embeddings;
  if (options.max_model_len < 0 || options.max_model_len > longest) {
    throw std::invalid_argument("max_model_len must be in [0, " + std::to_string(longest) +
                                "], got " + std::to_string(options.max_model_len));
  }
  if (options.max_model_len == 0) options.max_model_len = longest;
  if (options.num_kv_blocks == 0) {
    const std::int64_t per_request =
        (options.max_model_len + options.block_size - 1) / options.block_size;
    const std::int64_t block_bytes = model.bytes_per_kv_token(model.dtype()) * options.block_size;
    const std::int64_t affordable =
        std::max<std::int64_t>(options.kv_memory_bytes / block_bytes, 1);
    options.num_kv_blocks = static_cast<std::int32_t>(
        std::min<std::int64_t>(per_request * options.max_num_seqs, affordable));
  }
  return options;
}

}  // namespace

struct DraftModelProposer::Impl {
  Impl(std::shared_ptr<const Model> draft, const DraftModelOptions& draft_options)
      : options(resolve(draft_options, *draft)),
        model(std::move(draft)),
        kv({.num_blocks = options.num_kv_blocks, .block_size = options.block_size}),
        decoder(model, options.num_kv_blocks, options.block_size, model->dtype(),
                options.max_model_len),
        stops(std::make_shared<const StopVocabulary>()) {}

  DraftModelOptions options;
  std::shared_ptr<const Model> model;
  KvCache kv;
  Decoder decoder;
  std::shared_ptr<const StopVocabulary> stops;
  std::unordered_map<RequestId, DraftState> states;

  ProposeWork work;

  // Scratch of one call; capacity is kept.
  std::vector<Lane> lanes;
  ForwardBatch batch;
  std::vector<KvMove> moves;
  std::vector<SlotId> sources, destinations;
  std::vector<TokenId> candidates;
  std::vector<float> scores;
  std::vector<std::int32_t> path;

  void sync_sampler(DraftState& state, const ProposeRequest& request) const;
  bool open(Lane& lane);
  bool reserve(Lane& lane, std::int32_t num_slots);
  void release_idle();
  void run_pending();
  std::int32_t add_rows(Lane& lane, std::int32_t budget);
  void draw(Lane& lane, std::span<const float> logits);
  void close(Lane& lane);
  void discard(Lane& lane);
  void run_moves();
};

void DraftModelProposer::Impl::sync_sampler(DraftState& state,
                                            const ProposeRequest& request) const {
  const auto prompt = request.tokens.first(static_cast<std::size_t>(request.num_prompt_tokens));
  if (!state.sampler) {
    // Drafts need the noise, the penalties and the masks, but never end a request themselves.
    SamplingParams params = request.sampling != nullptr ? *request.sampling : SamplingParams{};
    params.stop.clear();
    params.logprobs.reset();
    params.prompt_logprobs.reset();
    state.sampler.emplace(params, request.seed, prompt, model->config().vocab_size, stops);
    state.num_accepted = request.num_prompt_tokens;
  }
  for (; state.num_accepted < static_cast<std::int32_t>(request.tokens.size());
       ++state.num_accepted) {
    state.sampler->accept(request.tokens[static_cast<std::size_t>(state.num_accepted)]);
  }
}

void DraftModelProposer::Impl::release_idle() {
  for (auto& [id, state] : states) {
    const bool in_use = std::any_of(lanes.begin(), lanes.end(),
                                    [&](const Lane& lane) { return lane.state == &state; });
    if (in_use || state.sequence < 0) continue;
    kv.remove_sequence(state.sequence);
    state.sequence = -1;
    state.cached.clear();
  }
}

bool DraftModelProposer::Impl::reserve(Lane& lane, std::int32_t num_slots) {
  if (kv.reserve(lane.state->sequence, num_slots, moves)) return true;
  release_idle();  // requests that sit out this step give up their blocks and catch up later
  return kv.reserve(lane.state->sequence, num_slots, moves);
}

bool DraftModelProposer::Impl::open(Lane& lane) {
  DraftState& state = *lane.state;
  const std::span<const TokenId> tokens = lane.request->tokens;
  const auto num_tokens = static_cast<std::int32_t>(tokens.size());
  // Positions beyond the draft's context cannot be drafted; the request goes on without.
  lane.depth = std::min(lane.request->max_depth, options.max_model_len - num_tokens);
  lane.depth = std::min(lane.depth, lane.request->max_nodes);
  if (lane.depth < 1) return false;

  if (state.sequence < 0) {
    state.sequence = kv.add_sequence();
    const std::int32_t found = kv.match_prefix(state.sequence, tokens);
    state.cached.assign(tokens.begin(), tokens.begin() + found);
  }
  const auto differs =
      std::mismatch(state.cached.begin(), state.cached.end(), tokens.begin(), tokens.end() - 1);
  const auto common = static_cast<std::int32_t>(differs.first - state.cached.begin());
  kv.truncate(state.sequence, common);
  state.cached.resize(static_cast<std::size_t>(common));
  if (!reserve(lane, num_tokens - common + lane.depth - 1)) return false;
  sync_sampler(state, *lane.request);
  lane.sampler_mark = state.sampler->mark();
  lane.next = common;
  lane.end = num_tokens;
  return true;
}

std::int32_t DraftModelProposer::Impl::add_rows(Lane& lane, std::int32_t budget) {
  lane.logits = -1;
  const std::int32_t num_rows = std::min(lane.end - lane.next, budget);
  if (num_rows <= 0) return 0;
  const std::span<const TokenId> tokens = lane.request->tokens;
  const auto num_tokens = static_cast<std::int32_t>(tokens.size());
  batch.sequences.push_back({.first_row = batch.num_rows(),
                             .context_len = lane.next,
                             .num_causal = num_rows,
                             .num_tree = 0,
                             .tree_start = 0,
                             .tree_parents = {},
                             .block_table = kv.block_table(lane.state->sequence)});
  for (std::int32_t i = 0; i < num_rows; ++i, ++lane.next) {
    const TokenId token = lane.next < num_tokens
                              ? tokens[static_cast<std::size_t>(lane.next)]
                              : lane.tree->tokens[static_cast<std::size_t>(lane.parent)];
    lane.state->cached.push_back(token);
    batch.tokens.push_back(token);
    batch.positions.push_back(lane.next);
    batch.slots.push_back(kv.slot(lane.state->sequence, lane.next));
  }
  work.num_tokens += num_rows;
  ++work.num_sequences;
  work.kv_tokens += lane.next;
  work.attention_pairs +=
      std::int64_t{num_rows} * lane.next - std::int64_t{num_rows} * (num_rows - 1) / 2;
  if (lane.next == lane.end) {
    ++work.num_logits;
    lane.logits = static_cast<std::int32_t>(batch.logits_rows.size());
    batch.logits_rows.push_back(batch.num_rows() - 1);
  }
  return num_rows;
}

void DraftModelProposer::Impl::draw(Lane& lane, std::span<const float> logits) {
  const auto vocab = static_cast<std::size_t>(model->config().vocab_size);
  candidates.clear();
  scores.clear();
  const std::int32_t room = lane.request->max_nodes - lane.tree->size();
  lane.state->sampler->sample_top(
      logits.subspan(static_cast<std::size_t>(lane.logits) * vocab, vocab),
      std::min(options.tree_width, room), candidates, &scores);
  const float before =
      lane.parent < 0 ? 1.0F : lane.tree->survival[static_cast<std::size_t>(lane.parent)];
  std::int32_t chain_node = -1;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    // The draft's own probability is a prior; calibration is the scheduler's business.
    const float survival = before * std::clamp(scores[i], 0.0F, 1.0F);
    const std::int32_t node = lane.tree->add(candidates[i], lane.parent, survival);
    if (i == 0) chain_node = node;
  }
  --lane.depth;
  if (chain_node < 0 || lane.tree->size() >= lane.request->max_nodes) lane.depth = 0;
  if (chain_node < 0) return;
  lane.survival *= lane.request->claims.accepted(scores[0]);
  if (lane.survival < lane.request->min_survival) lane.depth = 0;
  lane.parent = chain_node;
  if (lane.depth > 0) {
    lane.state->sampler->accept(candidates[0]);
    lane.end = lane.next + 1;
  }
}

/// Runs what is pending, in passes of at most max_num_batched_tokens rows, until every lane has
/// drawn its last level. Prompts catch up here, in the same passes as the others draft.
void DraftModelProposer::Impl::run_pending() {
  while (true) {
    batch.clear();
    std::int32_t budget = options.max_num_batched_tokens;
    for (Lane& lane : lanes) budget -= add_rows(lane, budget);
    if (batch.num_rows() == 0) return;
    ++work.num_passes;
    const std::span<const float> logits = decoder.forward(batch);
    for (Lane& lane : lanes) {
      if (lane.logits < 0) continue;
      try {
        draw(lane, logits);
      } catch (const Error&) {
        lane.depth = 0;  // unusable logits: this request drafts no further
      }
    }
  }
}

void DraftModelProposer::Impl::close(Lane& lane) {
  DraftState& state = *lane.state;
  state.sampler->rewind(lane.sampler_mark);
  const std::int32_t before = kv.verified_length(state.sequence);
  const auto num_cached = static_cast<std::int32_t>(state.cached.size());
  path.clear();
  for (std::int32_t i = before; i < num_cached; ++i) path.push_back(i - before);
  kv.commit(state.sequence, path, std::span(state.cached).subspan(static_cast<std::size_t>(before)),
            moves);
}

/// Forgets what this call did to the request, after an exception.
void DraftModelProposer::Impl::discard(Lane& lane) {
  DraftState& state = *lane.state;
  if (state.sequence >= 0) kv.remove_sequence(state.sequence);
  state = {};
}

void DraftModelProposer::Impl::run_moves() {
  if (moves.empty()) return;
  sources.clear();
  destinations.clear();
  for (const KvMove& move : moves) {
    sources.push_back(move.source);
    destinations.push_back(move.destination);
  }
  decoder.move_kv(sources, destinations);
  moves.clear();
}

DraftModelProposer::DraftModelProposer(std::shared_ptr<const Model> model,
                                       const DraftModelOptions& options,
                                       std::int32_t target_vocab_size) {
  if (model == nullptr) throw std::invalid_argument("draft model must not be null");
  if (model->config().vocab_size != target_vocab_size) {
    throw std::invalid_argument("draft model: vocab_size must equal the target's " +
                                std::to_string(target_vocab_size) + ", got " +
                                std::to_string(model->config().vocab_size));
  }
  impl_ = std::make_unique<Impl>(std::move(model), options);
}

DraftModelProposer::~DraftModelProposer() = default;

std::string_view DraftModelProposer::name() const { return "draft"; }

void DraftModelProposer::propose(std::span<const ProposeRequest> requests,
                                 std::span<TokenTree> trees) {
  Impl& impl = *impl_;
  impl.lanes.clear();
  impl.moves.clear();
  impl.work = {.num_passes = 0};
  // Pointers into the map stay valid: an unordered_map never moves its nodes.
  for (std::size_t i = 0; i < requests.size(); ++i) {
    impl.lanes.push_back(
        {.state = &impl.states[requests[i].id], .request = &requests[i], .tree = &trees[i]});
  }
  try {
    std::erase_if(impl.lanes, [&](Lane& lane) { return !impl.open(lane); });
    impl.run_moves();
    impl.run_pending();
  } catch (...) {
    for (Lane& lane : impl.lanes) impl.discard(lane);
    throw;
  }
  for (Lane& lane : impl.lanes) impl.close(lane);
}

void DraftModelProposer::finish(RequestId id) {
  const auto entry = impl_->states.find(id);
  if (entry == impl_->states.end()) return;
  if (entry->second.sequence >= 0) impl_->kv.remove_sequence(entry->second.sequence);
  impl_->states.erase(entry);
}

bool DraftModelProposer::pays_per_depth() const { return true; }

std::int32_t DraftModelProposer::backlog(RequestId id, std::span<const TokenId> tokens) const {
  const auto entry = impl_->states.find(id);
  const std::size_t cached = entry == impl_->states.end() ? 0 : entry->second.cached.size();
  // Drafted tokens that were rejected count as cached: a few at most, and finding out costs a scan.
  return static_cast<std::int32_t>(tokens.size() - std::min(cached, tokens.size()));
}

ProposeWork DraftModelProposer::last_work() const { return impl_->work; }

std::string DraftModelProposer::check_integrity() const { return impl_->kv.check_integrity(); }

}  // namespace smartspec
