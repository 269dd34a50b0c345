// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/suffix_index.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "propose/suffix/index_impl.hpp"

namespace smartspec {
namespace {

using suffix::DraftTask;
using suffix::kGroupSize;
using suffix::kNobody;
using suffix::RequestState;

constexpr std::size_t kMinBytes = std::size_t{1} << 20;
constexpr std::size_t kMaxHashBytes = 64;
// Preloading lets drafts through between texts, after this many tokens.
constexpr std::size_t kPreloadSlice = 4096;
constexpr std::size_t kUsualDraft = 16;  // tokens; room for longer ones is made when asked for

SuffixIndexOptions check(SuffixIndexOptions options) {
  if (options.vocab_size < 0) {
    throw std::invalid_argument("vocab_size must be at least 0 (0: not checked), got " +
                                std::to_string(options.vocab_size));
  }
  if (options.max_bytes < kMinBytes) {
    throw std::invalid_argument("max_bytes must be at least " + std::to_string(kMinBytes) +
                                ", got " + std::to_string(options.max_bytes));
  }
  if (options.generation_bytes == 0) options.generation_bytes = options.max_bytes / 4;
  if (options.generation_bytes > options.max_bytes / 4) {
    throw std::invalid_argument("generation_bytes must be at most a quarter of max_bytes, " +
                                std::to_string(options.max_bytes / 4) + ", got " +
                                std::to_string(options.generation_bytes));
  }
  if (options.tokenizer_hash.size() > kMaxHashBytes) {
    throw std::invalid_argument("tokenizer_hash must be at most 64 bytes, got " +
                                std::to_string(options.tokenizer_hash.size()));
  }
  return options;
}

/// One request of a draft call.
struct Lane {
  RequestState* request;
  std::size_t row;
  std::size_t num_wanted;
};

void check_draft(std::span<const RequestId> ids, std::span<const std::int32_t> max_tokens,
                 const SuffixDraftOptions& options, const SuffixDrafts& out) {
  if (options.max_tokens < 1 || options.max_tokens > kMaxTreeNodes) {
    throw std::invalid_argument("draft: max_tokens must be in [1, " +
                                std::to_string(kMaxTreeNodes) + "], got " +
                                std::to_string(options.max_tokens));
  }
  if (!(options.min_survival >= 0.0F && options.min_survival <= 1.0F)) {
    throw std::invalid_argument("draft: min_survival must be in [0, 1], got " +
                                std::to_string(options.min_survival));
  }
  if (options.tree_width < 1 || options.tree_width > suffix::kMaxPicks) {
    throw std::invalid_argument("draft: tree_width must be in [1, " +
                                std::to_string(suffix::kMaxPicks) + "], got " +
                                std::to_string(options.tree_width));
  }
  const auto wants = [](std::string_view field, std::size_t size, std::size_t expected) {
    if (size == expected) return;
    throw std::invalid_argument("draft: " + std::string(field) + " must hold " +
                                std::to_string(expected) + " elements, got " +
                                std::to_string(size));
  };
  const std::size_t cells = ids.size() * static_cast<std::size_t>(options.max_tokens);
  wants("tokens", out.tokens.size(), cells);
  wants("parents", out.parents.size(), cells);
  wants("survival", out.survival.size(), cells);
  wants("lengths", out.lengths.size(), ids.size());
  if (!out.match_lengths.empty()) wants("match_lengths", out.match_lengths.size(), ids.size());
  if (max_tokens.empty()) return;
  wants("max_tokens", max_tokens.size(), ids.size());
  for (std::size_t i = 0; i < max_tokens.size(); ++i) {
    if (max_tokens[i] >= 0 && max_tokens[i] <= options.max_tokens) continue;
    throw std::invalid_argument("draft: max_tokens[" + std::to_string(i) + "] must be in [0, " +
                                std::to_string(options.max_tokens) + "], got " +
                                std::to_string(max_tokens[i]));
  }
}

void draft_group(std::span<const Lane> lanes, const SuffixDraftOptions& options,
                 const SuffixDrafts& out) {
  thread_local std::array<DraftTask, kGroupSize> tasks;
  std::array<RequestState*, kGroupSize> group;
  for (const Lane& lane : lanes) suffix::prefetch(*lane.request);
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    group[i] = lanes[i].request;
    group[i]->mutex.lock();  // in the order of addresses, as every draft does
    suffix::prefetch_reached(*group[i]);
  }
  suffix::anchor(std::span(group).first(lanes.size()));
  const auto width = static_cast<std::size_t>(options.max_tokens);
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    const auto row = [&](auto cells) {
      return cells.subspan(lanes[i].row * width, lanes[i].num_wanted);
    };
    tasks[i].begin(*group[i], options, {row(out.tokens), row(out.parents), row(out.survival)});
  }
  std::uint32_t running = (1U << lanes.size()) - 1;
  while (running != 0) {
    for (std::size_t i = 0; i < lanes.size(); ++i) {
      if ((running >> i & 1) != 0) tasks[i].prefetch();
    }
    for (std::size_t i = 0; i < lanes.size(); ++i) {
      if ((running >> i & 1) != 0 && !tasks[i].advance()) running &= ~(1U << i);
    }
  }
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    out.lengths[lanes[i].row] = tasks[i].size();
    if (!out.match_lengths.empty()) out.match_lengths[lanes[i].row] = tasks[i].match_length();
    group[i]->mutex.unlock();
  }
}

}  // namespace

SuffixIndex::SuffixIndex(const SuffixIndexOptions& options)
    : impl_(std::make_unique<Impl>(check(options))) {}

SuffixIndex::~SuffixIndex() = default;

const SuffixIndexOptions& SuffixIndex::options() const noexcept { return impl_->options; }

RequestState& SuffixIndex::Impl::request(RequestId id) const {
  RequestState* found = requests.find(id);
  if (found == nullptr) {
    throw std::invalid_argument("request " + std::to_string(id) + " is not active");
  }
  return *found;
}

suffix::History& SuffixIndex::Impl::history(std::string_view name) {
  const auto found = histories.find(name);
  if (found != histories.end()) return *found->second;
  auto created = std::make_unique<History>();
  created->name = std::string(name);
  created->generations.push_back(new_generation());
  return *histories.emplace(created->name, std::move(created)).first->second;
}

void SuffixIndex::Impl::check_tokens(std::string_view field,
                                     std::span<const TokenId> tokens) const {
  const TokenId limit = options.vocab_size > 0 ? options.vocab_size : 0x7FFFFFFF;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < limit) continue;
    throw std::invalid_argument(std::string(field) + "[" + std::to_string(i) + "] must be in [0, " +
                                std::to_string(limit) + "), got " + std::to_string(tokens[i]));
  }
}

void SuffixIndex::Impl::check_offsets(std::string_view field, std::span<const std::int64_t> offsets,
                                      std::int64_t num_tokens) {
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    const bool is_last = i + 1 == offsets.size();
    const std::int64_t least = is_last ? num_tokens : i == 0 ? 0 : offsets[i - 1];
    const std::int64_t most = i == 0 ? 0 : num_tokens;
    if (offsets[i] >= least && offsets[i] <= most) continue;
    throw std::invalid_argument(
        std::string(field) + "[" + std::to_string(i) + "] = " + std::to_string(offsets[i]) +
        ": they must ascend from 0 to " + std::to_string(num_tokens) + ", the number of tokens");
  }
  if (offsets.empty()) {
    throw std::invalid_argument(std::string(field) + " must hold at least 1 element, got 0");
  }
}

void SuffixIndex::start_request(const SuffixRequest& request) {
  if (request.id < 0) {
    throw std::invalid_argument("request id must be at least 0, got " + std::to_string(request.id));
  }
  if (request.num_prompt_tokens < 0) {
    throw std::invalid_argument("num_prompt_tokens must be at least 0, got " +
                                std::to_string(request.num_prompt_tokens));
  }
  const std::lock_guard writing(impl_->writer);
  impl_->check_tokens("prediction", request.prediction);
  if (impl_->requests.find(request.id) != nullptr) {
    throw std::invalid_argument("request " + std::to_string(request.id) + " is already active");
  }
  if (impl_->places.contains(request.id)) {
    throw std::invalid_argument("request " + std::to_string(request.id) +
                                " is finished and its output remembered: forget it first, or use "
                                "another id");
  }
  auto state = std::make_unique<RequestState>();
  state->id = request.id;
  state->num_prompt_tokens = request.num_prompt_tokens;
  state->is_shared = request.share_output;
  state->pending.nodes.resize(kUsualDraft + 1);
  state->pending.traces.resize(kUsualDraft + 1);
  suffix::StateId end = suffix::kRoot;
  for (const TokenId token : request.prediction) end = state->local.append(end, token).state;
  const std::lock_guard changing(impl_->gate);
  state->history = &impl_->history(request.name_space);
  impl_->leave_generation(*state);
  impl_->requests.insert(std::move(state));
}

void SuffixIndex::finish_request(RequestId id) {
  const std::lock_guard writing(impl_->writer);
  RequestState& state = impl_->request(id);
  std::unique_ptr<RequestState> finished;  // freed after the drafts of others go on
  const std::lock_guard changing(impl_->gate);
  impl_->keep_output(state);
  finished = impl_->requests.take(id);
  impl_->evict_to_bound();  // its output stands there twice now, until the generation is frozen
}

std::int64_t SuffixIndex::num_tokens(RequestId id) const {
  const std::lock_guard writing(impl_->writer);
  return static_cast<std::int64_t>(impl_->request(id).text.size());
}

bool SuffixIndex::is_active(RequestId id) const {
  const std::lock_guard writing(impl_->writer);
  return impl_->requests.find(id) != nullptr;
}

void SuffixIndex::draft(std::span<const RequestId> ids, std::span<const std::int32_t> max_tokens,
                        const SuffixDraftOptions& options, const SuffixDrafts& out) const {
  check_draft(ids, max_tokens, options, out);
  thread_local std::vector<Lane> lanes;
  lanes.clear();
  const std::shared_lock reading(impl_->gate);
  for (const RequestId id : ids) impl_->requests.prefetch(id);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::int32_t wanted = max_tokens.empty() ? options.max_tokens : max_tokens[i];
    lanes.push_back({&impl_->request(ids[i]), i, static_cast<std::size_t>(wanted)});
  }
  std::sort(lanes.begin(), lanes.end(),
            [](const Lane& a, const Lane& b) { return std::less<>()(a.request, b.request); });
  const auto twice =
      std::adjacent_find(lanes.begin(), lanes.end(),
                         [](const Lane& a, const Lane& b) { return a.request == b.request; });
  if (twice != lanes.end()) {
    throw std::invalid_argument("draft: ids hold " + std::to_string(twice->request->id) + " twice");
  }
  for (std::size_t begin = 0; begin < lanes.size(); begin += kGroupSize) {
    draft_group(std::span(lanes).subspan(begin, std::min(kGroupSize, lanes.size() - begin)),
                options, out);
  }
}

void SuffixIndex::preload(std::span<const std::int64_t> offsets, std::span<const TokenId> tokens,
                          std::string_view name_space) {
  const auto num_tokens = static_cast<std::int64_t>(tokens.size());
  Impl::check_offsets("preload: offsets", offsets, num_tokens);
  impl_->check_tokens("preload: tokens", tokens);
  for (std::size_t i = 0; i + 1 < offsets.size();) {
    impl_->background.wait(2);  // reading runs ahead of freezing otherwise
    const std::lock_guard writing(impl_->writer);
    const std::lock_guard changing(impl_->gate);
    Impl::History& history = impl_->history(name_space);
    for (std::size_t fed = 0; fed < kPreloadSlice && i + 1 < offsets.size(); ++i) {
      const auto sequence = tokens.subspan(static_cast<std::size_t>(offsets[i]),
                                           static_cast<std::size_t>(offsets[i + 1] - offsets[i]));
      impl_->add_sequence(history, sequence);
      fed += sequence.size() + 1;
    }
    impl_->evict_to_bound();
  }
}

bool SuffixIndex::forget(RequestId id) {
  const std::lock_guard writing(impl_->writer);
  const std::lock_guard changing(impl_->gate);
  bool found = false;
  if (RequestState* active = impl_->requests.find(id); active != nullptr) {
    impl_->keep_output(*active);
    active->is_shared = false;
    impl_->leave_generation(*active);
  }
  const auto places = impl_->places.find(id);
  if (places != impl_->places.end()) {
    for (const Impl::Place& place : places->second) impl_->forget(place);
    impl_->places.erase(places);
    found = true;
  }
  impl_->requests.for_each([&](RequestState& state) { impl_->leave_forgotten(state); });
  impl_->evict_to_bound();
  return found;
}

void SuffixIndex::clear(std::string_view name_space) {
  const std::lock_guard writing(impl_->writer);
  const std::lock_guard changing(impl_->gate);
  const auto found = impl_->histories.find(name_space);
  if (found == impl_->histories.end()) return;
  Impl::History& history = *found->second;
  while (history.generations.size() > 1) impl_->drop(history, 0);
  impl_->drop(history, 0);
  bool is_used = false;
  impl_->requests.for_each([&](RequestState& state) { is_used |= state.history == &history; });
  if (is_used) {
    history.calibration = suffix::Calibration();
  } else {
    impl_->histories.erase(found);
  }
}

SuffixLookup SuffixIndex::lookup(std::span<const TokenId> context,
                                 std::string_view name_space) const {
  impl_->check_tokens("lookup: context", context);
  const std::lock_guard writing(impl_->writer);
  const std::lock_guard changing(impl_->gate);
  const auto found = impl_->histories.find(name_space);
  if (found == impl_->histories.end()) return {};
  found->second->live().automaton.settle();
  return suffix::look_up(*found->second, context);
}

SuffixIndexStats SuffixIndex::stats() const {
  const std::lock_guard writing(impl_->writer);
  SuffixIndexStats stats;
  for (const auto& [name, history] : impl_->histories) {
    for (const auto& generation : history->generations) {
      stats.num_tokens += generation->num_tokens();
      stats.num_bytes += static_cast<std::int64_t>(generation->bytes());
      ++stats.num_generations;
      if (!generation->frozen) continue;
      stats.frozen_tokens += generation->num_tokens();
      stats.frozen_bytes += static_cast<std::int64_t>(generation->bytes());
    }
  }
  stats.num_namespaces = static_cast<std::int32_t>(impl_->histories.size());
  stats.num_requests = static_cast<std::int32_t>(impl_->requests.size());
  impl_->requests.for_each([&](const RequestState& state) {
    stats.request_bytes += static_cast<std::int64_t>(state.bytes());
  });
  stats.evicted_tokens = impl_->evicted_tokens;
  stats.drafted_tokens = impl_->drafted_tokens;
  stats.accepted_tokens = impl_->accepted_tokens;
  stats.expected_tokens = impl_->expected_tokens;
  return stats;
}

void SuffixIndex::wait() const { impl_->background.wait(); }

}  // namespace smartspec
