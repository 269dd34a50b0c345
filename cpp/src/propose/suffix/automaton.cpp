// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "propose/suffix/automaton.hpp"

#include <algorithm>
#include <cstring>
#include <queue>
#include <stdexcept>
#include <tuple>

#include "propose/suffix/edge_table.hpp"

namespace smartspec::suffix {

SuffixAutomaton::SuffixAutomaton() {
  free_slots_.fill(kNoSlots);
  new_state(0);
}

TextEnd SuffixAutomaton::append(StateId last, TokenId token) {
  if (num_tokens_ >= kMaxTokens) throw std::length_error("suffix automaton: too many tokens");
  TextEnd end = extend(last, token);
  ++num_tokens_;
  count_occurrence(last, token, 1);
  // What was forgotten everywhere was not seen: nothing counts there but this very occurrence.
  while (end.seen.state != kRoot && states_[end.seen.state].count <= 1) {
    const StateId link = states_[end.seen.state].link;
    end.seen = {link, states_[link].length};
  }
  if (debts_.size() >= 1024 && debts_.size() >= states_.size() / 16) settle();
  return end;
}

// The classical construction; a sequence that repeats another's beginning meets states that are
// already there.
TextEnd SuffixAutomaton::extend(StateId last, TokenId token) {
  const std::uint32_t length = states_[last].length + 1;
  if (const StateId next = find(last, token); next != kNoState) {
    const StateId end = states_[next].length == length ? next : split(next, length, last, token);
    return {end, {end, length}};
  }
  const StateId end = new_state(length);
  StateId context = last;
  StateId next = kNoState;
  do {
    add_edge(context, token, end);
    context = states_[context].link;
  } while (context != kNoState && (next = find(context, token)) == kNoState);
  if (context == kNoState) {
    states_[end].link = kRoot;
  } else {
    const std::uint32_t solid = states_[context].length + 1;
    states_[end].link = states_[next].length == solid ? next : split(next, solid, context, token);
  }
  const StateId link = states_[end].link;
  return {end, {link, states_[link].length}};
}

StateId SuffixAutomaton::new_state(std::uint32_t length) {
  const auto id = static_cast<StateId>(states_.extend(1));
  states_[id] = State{length, kNoState, 0, 0, -1, kNoState, 0, 0, 0};
  return id;
}

// Moves the contexts of at most `length` tokens out of `original` into a class of their own, to
// which `context` and its links then lead by `token`.
StateId SuffixAutomaton::split(StateId original, std::uint32_t length, StateId context,
                               TokenId token) {
  const auto shorter = static_cast<StateId>(states_.extend(1));
  State state = states_[original];
  state.length = length;
  if (state.num_edges > 0) {
    const std::uint32_t slots = take_slots(state.log2_slots);
    std::memcpy(&edges_[slots], &edges_[state.edges], sizeof(Edge) << state.log2_slots);
    state.edges = slots;
  }
  states_[shorter] = state;
  states_[original].link = shorter;
  for (; context != kNoState && find(context, token) == original; context = states_[context].link) {
    redirect(context, token, shorter);
  }
  return shorter;
}

// One walk over the contexts of a text end: each class they lead to by `token` counts once, and
// each context's most frequent continuation is kept at hand.
void SuffixAutomaton::count_occurrence(StateId last, TokenId token, std::int32_t delta) {
  states_[kRoot].count += static_cast<std::uint32_t>(delta);
  StateId counted = kNoState;
  StateId context = last;
  for (int chain = 0; context != kNoState; ++chain) {
    const State& state = states_[context];
    Edge* edge = state.best_token == token ? nullptr : find_edge(state, token);
    if (edge == nullptr && state.best_token != token) return;  // a faulty program's index
    const StateId next = edge == nullptr ? state.best_to : edge->to;
    if (chain >= kMaxChain && next != counted) break;
    if (next != counted) states_[next].count += static_cast<std::uint32_t>(delta);
    counted = next;
    refresh_best(context, edge, delta);
    context = state.link;
  }
  // Owed to classes not counted at all: the part of a counted one that is split off before debts
  // are settled takes this occurrence along.
  if (context != kNoState) debts_.push_back({context, token, delta});
}

// After the count of where `edge` leads has changed; null: the best one.
void SuffixAutomaton::refresh_best(StateId context, Edge* edge, std::int32_t delta) {
  State& state = states_[context];
  if (edge == nullptr) {
    state.best_count = states_[state.best_to].count;
    if (delta < 0 && state.num_edges > 0) outdated_.push_back(context);
  } else if (delta > 0 && states_[edge->to].count >= state.best_count) {
    make_best(state, *edge);
  }
}

// Looks through all continuations for one more frequent than the best has become.
void SuffixAutomaton::search_best(StateId context) {
  State& state = states_[context];
  Edge* best = nullptr;
  std::uint32_t best_count = state.best_count;
  for_each_edge(state, edges_.data(), [&](Edge& edge) {
    if (states_[edge.to].count <= best_count) return;
    best_count = states_[edge.to].count;
    best = &edge;
  });
  if (best != nullptr) make_best(state, *best);
}

// The debts walk up together, longest context first, so that where they meet they go on as one.
void SuffixAutomaton::settle() {
  if (debts_.empty()) return;
  using Entry = std::tuple<std::uint32_t, StateId, TokenId, std::int32_t, std::int32_t>;
  std::priority_queue<Entry> queue;  // by length, state, token
  for (const Debt& debt : debts_) {
    queue.emplace(states_[debt.state].length, debt.state, debt.token, debt.delta, 0);
  }
  debts_.clear();
  while (!queue.empty()) {
    auto [length, context, token, delta, seen] = queue.top();
    queue.pop();
    while (!queue.empty() && std::get<1>(queue.top()) == context &&
           std::get<2>(queue.top()) == token) {
      delta += std::get<3>(queue.top());
      seen += std::get<4>(queue.top());
      queue.pop();
    }
    const State& state = states_[context];
    Edge* edge = state.best_token == token ? nullptr : find_edge(state, token);
    if (edge == nullptr && state.best_token != token) continue;
    const StateId next = edge == nullptr ? state.best_to : edge->to;
    states_[next].count += static_cast<std::uint32_t>(delta - seen);
    refresh_best(context, edge, delta);
    const StateId link = states_[context].link;
    if (link == kNoState) continue;
    queue.emplace(states_[link].length, link, token, delta, find(link, token) == next ? delta : 0);
  }
}

void SuffixAutomaton::forget(std::span<const TokenId> sequence) {
  settle();
  StateId last = kRoot;
  for (const TokenId token : sequence) {
    count_occurrence(last, token, -1);
    last = find(last, token);
    if (last == kNoState) break;
  }
  settle();
  // Once for each context, not once for each time it occurred: the shortest have most of the edges.
  std::sort(outdated_.begin(), outdated_.end());
  outdated_.erase(std::unique(outdated_.begin(), outdated_.end()), outdated_.end());
  for (const StateId context : outdated_) search_best(context);
  outdated_ = {};
}

void SuffixAutomaton::follow(Match& match, TokenId token, std::uint32_t max_contexts) const {
  StateId state = match.state;
  std::uint32_t length = match.length;
  for (;; --max_contexts) {
    const StateId next = find(state, token);
    if (next != kNoState && states_[next].count > 0) {
      match = {next, length + 1};
      return;
    }
    if (state == kRoot || max_contexts == 1) {
      match = {};
      return;
    }
    state = states_[state].link;
    length = states_[state].length;
  }
}

Match SuffixAutomaton::match(std::span<const TokenId> context) const {
  Match match;
  for (const TokenId token : context) advance(match, token);
  return match;
}

ContextCounts SuffixAutomaton::lookup(const Match& match) const {
  const State& state = states_[class_of(match)];
  ContextCounts counts{state.count, -1, 0};
  for_each_continuation(match, [&](TokenId token, std::uint32_t count) {
    if (count <= counts.best_count) return;
    counts.best_token = token;
    counts.best_count = count;
  });
  return counts;
}

std::size_t SuffixAutomaton::bytes() const noexcept {
  return states_.bytes() + edges_.bytes() + debts_.capacity() * sizeof(Debt);
}

void SuffixAutomaton::reserve(std::size_t num_tokens) {
  states_.reserve(num_tokens * 2);
  edges_.reserve(num_tokens * 2);
}

}  // namespace smartspec::suffix
