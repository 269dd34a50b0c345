// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Feeding new tokens to the index: checks first, so that a bad batch changes nothing.
#include <algorithm>
#include <stdexcept>

#include "propose/suffix/index_impl.hpp"

namespace smartspec {
namespace {

using suffix::kGroupSize;
using suffix::kNoState;
using suffix::kRoot;
using suffix::Match;
using suffix::RequestState;
using suffix::State;
using suffix::StateId;
using suffix::SuffixAutomaton;
using suffix::TextEnd;

// Links an append walks on average are 4; the few longer walks are not worth looking further.
constexpr std::size_t kPrefetchedLinks = 4;
constexpr std::size_t kLargePrompt = 32768;  // tokens, worth reserving pages for

/// Brings the lines an append will touch into the cache, many appends side by side.
class AppendPrefetch {
 public:
  void add(const SuffixAutomaton& automaton, StateId last, TokenId token) {
    walks_[size_++] = {&automaton, last, token, {}};
    automaton.prefetch(last);
  }
  void run() {
    for (std::size_t depth = 0; depth < kPrefetchedLinks; ++depth) {
      for (std::size_t i = 0; i < size_; ++i) follow_link(walks_[i], depth);
    }
    for (std::size_t i = 0; i < size_; ++i) reach_targets(walks_[i]);
    size_ = 0;
  }

 private:
  struct Walk {
    const SuffixAutomaton* automaton;
    StateId context;
    TokenId token;
    std::array<StateId, kPrefetchedLinks> contexts;
  };

  static void follow_link(Walk& walk, std::size_t depth) {
    walk.contexts[depth] = walk.context;
    if (walk.context == kNoState) return;
    const State& state = walk.automaton->state(walk.context);
    if (state.best_token == walk.token) {
      walk.automaton->prefetch(state.best_to);
    } else {
      walk.automaton->prefetch_edges(state);
    }
    walk.context = state.link;
    if (walk.context != kNoState) walk.automaton->prefetch(walk.context);
  }
  static void reach_targets(const Walk& walk) {
    for (const StateId context : walk.contexts) {
      if (context == kNoState) return;
      if (walk.automaton->state(context).best_token == walk.token) continue;
      const StateId next = walk.automaton->find(context, walk.token);
      if (next != kNoState) walk.automaton->prefetch(next);
    }
  }

  std::array<Walk, 2 * kGroupSize> walks_;
  std::size_t size_ = 0;
};

void append_local(RequestState& request, TokenId token) {
  const TextEnd end = request.local.append(request.local_end, token);
  request.local_end = end.state;
  request.local_match = end.seen;
  request.text.push_back(token);
}

// What append() says was seen before is the whole text's match, unless all of the output was seen:
// then the match may reach into the prompt, and is carried along.
void append_live(RequestState& request, SuffixAutomaton& live, TokenId token) {
  const auto before = static_cast<std::int64_t>(request.text.size());
  const bool is_anchored = request.live_position == before;
  const bool is_carried =
      is_anchored && (!request.is_shared || request.live_match.length >= request.live_length);
  Match carried = request.live_match;
  if (is_carried) live.advance(carried, token);
  if (request.is_shared) {
    const TextEnd end = live.append(request.live_end, token);
    request.live_end = end.state;
    ++request.live_length;
    if (end.seen.length < request.live_length) {
      request.live_match = end.seen;
      request.live_position = before + 1;
      return;
    }
  }
  if (!is_carried) return;  // drafting will find its place anew
  request.live_match = carried;
  request.live_position = before + 1;
}

std::string at(std::string_view field, std::size_t i) {
  return std::string(field) + "[" + std::to_string(i) + "]";
}

}  // namespace

void SuffixIndex::Impl::check_update(const SuffixUpdate& batch, std::vector<Slice>& checked) {
  const std::size_t size = batch.ids.size();
  if (batch.positions.size() != size || batch.offsets.size() != size + 1) {
    throw std::invalid_argument(
        "update: " + std::to_string(size) + " ids need as many positions, got " +
        std::to_string(batch.positions.size()) + ", and one more offset, got " +
        std::to_string(batch.offsets.size()));
  }
  const auto num_tokens = static_cast<std::int64_t>(batch.tokens.size());
  check_offsets("update: offsets", batch.offsets, num_tokens);
  check_tokens("update: tokens", batch.tokens);
  ++epoch;
  checked.clear();
  for (const RequestId id : batch.ids) requests.prefetch(id);
  for (const RequestId id : batch.ids) {
    if (const RequestState* state = requests.find(id)) suffix::prefetch(*state);
  }
  for (std::size_t i = 0; i < size; ++i) {
    RequestState& state = request(batch.ids[i]);
    if (std::exchange(state.epoch, epoch) == epoch) {
      throw std::invalid_argument("update: " + at("ids", i) + " = " + std::to_string(batch.ids[i]) +
                                  " stands there twice");
    }
    const auto known = static_cast<std::int64_t>(state.text.size());
    const std::int64_t position = batch.positions[i];
    if (position < 0 || position > known) {
      throw std::invalid_argument(
          "update: " + at("positions", i) + " = " + std::to_string(position) + " must be in [0, " +
          std::to_string(known) + "], the tokens known of request " + std::to_string(batch.ids[i]));
    }
    const auto tokens =
        batch.tokens.subspan(static_cast<std::size_t>(batch.offsets[i]),
                             static_cast<std::size_t>(batch.offsets[i + 1] - batch.offsets[i]));
    const std::size_t overlap = std::min(tokens.size(), static_cast<std::size_t>(known - position));
    const auto differs =
        std::mismatch(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(overlap),
                      state.text.begin() + static_cast<std::ptrdiff_t>(position));
    if (differs.first != tokens.begin() + static_cast<std::ptrdiff_t>(overlap)) {
      const std::int64_t where = position + (differs.first - tokens.begin());
      throw std::invalid_argument(
          "update: request " + std::to_string(batch.ids[i]) + " has token " +
          std::to_string(*differs.second) + " at position " + std::to_string(where) + ", not " +
          std::to_string(*differs.first) + ": verified tokens do not change");
    }
    if (overlap < tokens.size()) checked.push_back({&state, tokens.subspan(overlap)});
  }
}

// The prompt stays with the request, so drafts of other requests go on meanwhile.
void SuffixIndex::Impl::index_prompt(Slice& slice) {
  RequestState& state = *slice.request;
  const auto known = static_cast<std::int64_t>(state.text.size());
  if (known >= state.num_prompt_tokens) return;
  const std::size_t count =
      std::min(slice.tokens.size(), static_cast<std::size_t>(state.num_prompt_tokens - known));
  const std::lock_guard lock(state.mutex);
  if (known == 0 && count >= kLargePrompt) {
    state.local.reserve(static_cast<std::size_t>(state.num_prompt_tokens));
  }
  for (const TokenId token : slice.tokens.first(count)) append_local(state, token);
  state.pending.position = -1;
  slice.tokens = slice.tokens.subspan(count);
  if (static_cast<std::int64_t>(state.text.size()) < state.num_prompt_tokens) return;
  // So that the first draft need not: nobody changes the live generation while we are writing.
  if (state.generation != state.history->live().id) leave_generation(state);
  suffix::anchor_live(state);
}

// In lock-step over a group: one token of each request after the other, what the next appends will
// touch on its way while the present ones compute.
void SuffixIndex::Impl::index_outputs(std::span<Slice> group) {
  std::size_t longest = 0;
  for (const Slice& slice : group) suffix::prefetch_reached(*slice.request);
  for (const Slice& slice : group) {
    RequestState& state = *slice.request;
    longest = std::max(longest, slice.tokens.size());
    if (state.generation != state.history->live().id) leave_generation(state);
    if (state.pending.position != static_cast<std::int64_t>(state.text.size())) continue;
    const suffix::LearntDraft learnt = suffix::learn(state, slice.tokens);
    drafted_tokens += learnt.drafted;
    accepted_tokens += learnt.accepted;
    expected_tokens += learnt.expected;
  }
  AppendPrefetch prefetch;
  for (std::size_t k = 0; k < longest; ++k) {
    for (const Slice& slice : group) {
      if (k >= slice.tokens.size()) continue;
      RequestState& state = *slice.request;
      prefetch.add(state.local, state.local_end, slice.tokens[k]);
      prefetch.add(state.history->live().automaton, state.live_end, slice.tokens[k]);
    }
    prefetch.run();
    for (const Slice& slice : group) {
      if (k >= slice.tokens.size()) continue;
      append_live(*slice.request, slice.request->history->live().automaton, slice.tokens[k]);
      append_local(*slice.request, slice.tokens[k]);
    }
    if ((k + 1) % suffix::kTokensBetweenChecks == 0) keep_within_bounds(group);
  }
}

void SuffixIndex::Impl::keep_within_bounds(std::span<const Slice> fed) {
  for (const Slice& slice : fed) seal_if_full(*slice.request->history);
  evict_to_bound();
}

void SuffixIndex::update(const SuffixUpdate& batch) {
  const std::lock_guard writing(impl_->writer);
  std::vector<Impl::Slice>& slices = impl_->slices;
  impl_->check_update(batch, slices);
  for (Impl::Slice& slice : slices) impl_->index_prompt(slice);
  std::erase_if(slices, [](const Impl::Slice& slice) { return slice.tokens.empty(); });
  if (slices.empty()) return;
  const std::lock_guard changing(impl_->gate);
  for (std::size_t begin = 0; begin < slices.size(); begin += kGroupSize) {
    impl_->index_outputs(
        std::span(slices).subspan(begin, std::min(kGroupSize, slices.size() - begin)));
  }
  impl_->keep_within_bounds(slices);
}

}  // namespace smartspec
