// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "propose/suffix/drafter.hpp"

#include <algorithm>

namespace smartspec::suffix {
namespace {

// The longest context and the next shorter one; asking more of them gains nothing. A context that
// long, and only ever followed by one token, needs no second opinion.
constexpr int kContexts = 2;
constexpr std::uint32_t kDeepContext = 8;
// Next to a match this deep, one less than a quarter as deep costs more to follow than it adds.
constexpr std::uint32_t kDeepMatch = 16;

int gather_contexts(const SuffixAutomaton& automaton, const Match& match, Source source,
                    std::uint32_t self, std::span<Evidence> evidence) {
  int found = 0;
  std::uint32_t length = match.length;
  for (StateId id = match.state; id != kRoot && found < kContexts;) {
    const State& state = automaton.state(id);
    const bool is_deterministic = state.num_edges == 0;
    if (state.best_count > 0 && state.count > self) {
      evidence[static_cast<std::size_t>(found++)] = {
          state.best_token, source, is_deterministic, length, state.count - self, state.best_count};
      if (is_deterministic && length >= kDeepContext) break;
    }
    id = state.link;
    length = automaton.state(id).length;
  }
  return found;
}

void drop_shallow(Match& a, Match& b) {
  if (a.length >= kDeepMatch && b.length * 4 < a.length) b = {};
  if (b.length >= kDeepMatch && a.length * 4 < b.length) a = {};
}

void prefetch_match(const SuffixAutomaton& automaton, const Match& match) {
  const State& state = automaton.state(match.state);
  if (state.best_to != kNoState) automaton.prefetch(state.best_to);
  if (state.link != kNoState) automaton.prefetch(state.link);
  automaton.prefetch_edges(state);
}

}  // namespace

void DraftTask::begin(RequestState& request, const SuffixDraftOptions& options,
                      const DraftRow& row) {
  request_ = &request;
  history_ = request.history;
  options_ = options;
  row_ = row;
  num_nodes_ = 0;
  heap_.clear();
  const std::size_t capacity = row.tokens.size() + 1;
  heap_.reserve(capacity * static_cast<std::size_t>(options.tree_width));
  nodes_.resize(std::max(nodes_.size(), capacity));
  PendingDraft& pending = request.pending;
  pending.position = static_cast<std::int64_t>(request.text.size());
  if (pending.nodes.size() < capacity) {
    pending.nodes.resize(capacity);
    pending.traces.resize(capacity);
  }
  Node& root = nodes_[0];
  root = Node{};
  root.local = request.local_match;
  choose_shared(request);
  choose_frozen(request);
  root.local.state = request.local.class_of(root.local);
  root.shared.state = shared_->class_of(root.shared);
  drop_shallow(root.local, root.shared);
  if (frozen_ != nullptr) root.samples = (1U << cursor_->num_samples) - 1;
  match_length_ = static_cast<std::int32_t>(
      std::max({root.local.length, root.shared.length, cursor_ == nullptr ? 0 : cursor_->length}));
  request.local.prefetch(root.local.state);
  shared_->prefetch(root.shared.state);
  pending.num_nodes = 0;
  pending.nodes[0] = {};
}

// The automaton that knows the longest context: the live one, or one still waiting to be frozen.
void DraftTask::choose_shared(RequestState& request) {
  const Generation& live = history_->live();
  shared_ = &live.automaton;
  nodes_[0].shared = request.live_match;
  shared_self_ = request.live_length > 0 && request.live_match.length <= request.live_length;
  for (const OlderCursor& cursor : request.older) {
    if (cursor.match.length <= nodes_[0].shared.length) continue;
    for (const auto& generation : history_->generations) {
      if (generation->id != cursor.generation || generation->frozen) continue;
      shared_ = &generation->automaton;
      nodes_[0].shared = cursor.match;
      shared_self_ = 0;
    }
  }
}

void DraftTask::choose_frozen(RequestState& request) {
  frozen_ = nullptr;
  cursor_ = nullptr;
  for (const OlderCursor& cursor : request.older) {
    if (cursor.num_samples == 0 || (cursor_ != nullptr && cursor.length < cursor_->length))
      continue;
    for (const auto& generation : history_->generations) {
      if (generation->id != cursor.generation || !generation->frozen) continue;
      frozen_ = &*generation->frozen;
      cursor_ = &cursor;
    }
  }
  if (frozen_ == nullptr) return;
  for (std::uint32_t i = 0; i < cursor_->num_samples; ++i) {
    __builtin_prefetch(frozen_->text().data() + cursor_->samples[i]);
  }
}

void prefetch(const RequestState& request) {
  const auto* lines = reinterpret_cast<const char*>(&request);
  for (std::size_t i = 0; i < sizeof(RequestState); i += 64) __builtin_prefetch(lines + i);
}

void prefetch_reached(const RequestState& request) {
  request.local.prefetch(request.local_match.state);
  request.history->live().automaton.prefetch(request.live_match.state);
  __builtin_prefetch(request.text.data() + request.text.size(), 1);
  const PendingDraft& pending = request.pending;
  for (std::size_t i = 0; i < pending.nodes.size() && i < 16; i += 4) {
    __builtin_prefetch(pending.nodes.data() + i, 1);
  }
  for (std::size_t i = 0; i < pending.traces.size() && i < 8; ++i) {
    __builtin_prefetch(pending.traces.data() + i, 1);
  }
}

void DraftTask::prefetch() const {
  const Node& node = nodes_[static_cast<std::size_t>(heap_.empty() ? 0 : heap_.front().parent + 1)];
  prefetch_match(request_->local, node.local);
  prefetch_match(*shared_, node.shared);
}

int DraftTask::gather(const Node& node, std::span<Evidence> evidence) const {
  const std::uint32_t at_end = node.depth == 0 ? 1 : 0;  // the text's own end is no evidence
  int found = gather_contexts(request_->local, node.local, Source::kLocal, at_end, evidence);
  found += gather_contexts(*shared_, node.shared, Source::kLive, at_end * shared_self_,
                           evidence.subspan(static_cast<std::size_t>(found)));
  if (node.samples == 0) return found;
  std::array<TokenId, kMaxSamples> next;
  std::uint32_t count = 0;
  for (std::uint32_t i = 0; i < cursor_->num_samples; ++i) {
    if ((node.samples >> i & 1) == 0) continue;
    const TokenId token =
        frozen_->text()[cursor_->samples[i] + static_cast<std::uint32_t>(node.depth) + 1];
    if (token >= 0) next[count++] = token;
  }
  TokenId best = -1;
  std::uint32_t best_count = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto votes =
        static_cast<std::uint32_t>(std::count(next.begin(), next.begin() + count, next[i]));
    if (votes > best_count) {
      best = next[i];
      best_count = votes;
    }
  }
  if (best < 0) return found;
  evidence[static_cast<std::size_t>(found)] = {
      best,
      Source::kFrozen,
      best_count == count,
      cursor_->length + static_cast<std::uint32_t>(node.depth),
      count,
      best_count};
  return found + 1;
}

void DraftTask::expand(std::int32_t id) {
  const Node& node = nodes_[static_cast<std::size_t>(id)];
  std::array<Evidence, 2 * kContexts + 1> evidence;
  const int found = gather(node, evidence);
  PendingDraft& pending = request_->pending;
  std::array<Pick, kMaxPicks> picks;
  const int chosen = history_->calibration.choose(
      std::span(evidence).first(static_cast<std::size_t>(found)), {node.depth, node.probability},
      request_->calibration, std::span(picks).first(static_cast<std::size_t>(options_.tree_width)),
      pending.traces[static_cast<std::size_t>(id)]);
  pending.nodes[static_cast<std::size_t>(id)].is_expanded = true;
  for (int i = 0; i < chosen; ++i) {
    const Pick& pick = picks[static_cast<std::size_t>(i)];
    const float survival = node.survival * pick.probability;
    if (survival < options_.min_survival) continue;
    heap_.push_back({survival, pick.probability, id - 1, pick.token});
    std::push_heap(heap_.begin(), heap_.end());
  }
}

DraftTask::Node DraftTask::child(const Node& parent, TokenId token) const {
  Node node = parent;
  ++node.depth;
  if (node.local.length > 0) request_->local.follow(node.local, token, kContexts);
  if (node.shared.length > 0) shared_->follow(node.shared, token, kContexts);
  drop_shallow(node.local, node.shared);
  for (std::uint32_t i = 0; i < kMaxSamples && node.samples >> i != 0; ++i) {
    if ((node.samples >> i & 1) == 0) continue;
    const std::uint32_t at = cursor_->samples[i] + static_cast<std::uint32_t>(node.depth);
    if (frozen_->text()[at] != token) node.samples &= ~(1U << i);
  }
  return node;
}

bool DraftTask::advance() {
  PendingDraft& pending = request_->pending;
  if (!pending.nodes[0].is_expanded) {
    if (row_.tokens.empty()) return false;
    expand(0);
  }
  const auto wanted = static_cast<std::int32_t>(row_.tokens.size());
  if (heap_.empty() || num_nodes_ == wanted) return false;
  std::pop_heap(heap_.begin(), heap_.end());
  const Candidate best = heap_.back();
  heap_.pop_back();
  const auto index = static_cast<std::size_t>(num_nodes_++);
  row_.tokens[index] = best.token;
  row_.parents[index] = best.parent;
  row_.survival[index] = best.survival;
  pending.nodes[index + 1] = {best.token, best.parent, best.survival, false};
  pending.num_nodes = num_nodes_;
  Node& node = nodes_[index + 1];
  node = child(nodes_[static_cast<std::size_t>(best.parent + 1)], best.token);
  node.survival = best.survival;
  node.probability = best.probability;
  if (num_nodes_ == wanted) return false;
  request_->local.prefetch(node.local.state);
  shared_->prefetch(node.shared.state);
  expand(num_nodes_);
  return !heap_.empty();
}

LearntDraft learn(RequestState& request, std::span<const TokenId> truth) {
  PendingDraft& pending = request.pending;
  LearntDraft learnt;
  if (pending.position < 0) return learnt;
  Calibration& calibration = request.history->calibration;
  std::int32_t node = -1;
  for (const TokenId token : truth) {
    const auto index = static_cast<std::size_t>(node + 1);
    if (!pending.nodes[index].is_expanded) break;
    calibration.learn(pending.traces[index], token, request.calibration);
    std::int32_t next = -1;
    for (std::int32_t i = node + 1; i < pending.num_nodes && next < 0; ++i) {
      const PendingDraft::Node& child = pending.nodes[static_cast<std::size_t>(i + 1)];
      if (child.parent == node && child.token == token) next = i;
    }
    if (next < 0) break;
    node = next;
    ++learnt.accepted;
  }
  learnt.drafted = pending.num_nodes;
  for (std::int32_t i = 0; i < pending.num_nodes; ++i) {
    learnt.expected += static_cast<double>(pending.nodes[static_cast<std::size_t>(i + 1)].survival);
  }
  pending.position = -1;
  return learnt;
}

}  // namespace smartspec::suffix
