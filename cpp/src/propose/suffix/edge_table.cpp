// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "propose/suffix/edge_table.hpp"

#include <utility>

namespace smartspec::suffix {
namespace {

std::uint32_t free_slot(const Edge* table, std::uint32_t mask, TokenId token) {
  std::uint32_t i = hash_token(token) & mask;
  while (table[i].token >= 0) i = (i + 1) & mask;
  return i;
}

// Takes the edge out of slot `i` and closes the gap, so that probing needs no tombstones.
void erase_hashed(Edge* table, std::uint32_t mask, std::uint32_t i) {
  for (std::uint32_t j = (i + 1) & mask; table[j].token >= 0; j = (j + 1) & mask) {
    const std::uint32_t home = hash_token(table[j].token) & mask;
    if (((j - home) & mask) < ((j - i) & mask)) continue;
    table[i] = table[j];
    i = j;
  }
  table[i].token = -1;
}

}  // namespace

Edge* SuffixAutomaton::find_edge(const State& state, TokenId token) const {
  if (state.num_edges == 0) return nullptr;
  Edge* table = edges_.data() + state.edges;
  if (state.log2_slots <= kLinearLog2) {
    for (std::uint32_t i = 0; i < state.num_edges; ++i) {
      if (table[i].token == token) return table + i;
    }
    return nullptr;
  }
  const std::uint32_t mask = (1U << state.log2_slots) - 1;
  for (std::uint32_t i = hash_token(token) & mask; table[i].token >= 0; i = (i + 1) & mask) {
    if (table[i].token == token) return table + i;
  }
  return nullptr;
}

// A free table's first slot names the next one.
std::uint32_t SuffixAutomaton::take_slots(std::uint32_t log2_slots) {
  const std::uint32_t first = free_slots_[log2_slots];
  if (first == kNoSlots)
    return static_cast<std::uint32_t>(edges_.extend(std::size_t{1} << log2_slots));
  free_slots_[log2_slots] = edges_[first].to;
  return first;
}

void SuffixAutomaton::give_slots(std::uint32_t first, std::uint32_t log2_slots) {
  edges_[first].to = free_slots_[log2_slots];
  free_slots_[log2_slots] = first;
}

void SuffixAutomaton::grow_edges(StateId id) {
  const State old = states_[id];
  const std::uint32_t log2_slots = old.num_edges == 0 ? 0 : old.log2_slots + 1U;
  const std::uint32_t first = take_slots(log2_slots);
  Edge* table = edges_.data() + first;
  const std::uint32_t mask = (1U << log2_slots) - 1;
  if (log2_slots > kLinearLog2) {
    for (std::uint32_t i = 0; i <= mask; ++i) table[i].token = -1;
  }
  std::uint32_t filled = 0;
  for_each_edge(old, edges_.data(), [&](const Edge& edge) {
    table[log2_slots <= kLinearLog2 ? filled++ : free_slot(table, mask, edge.token)] = edge;
  });
  if (old.num_edges > 0) give_slots(old.edges, old.log2_slots);
  states_[id].edges = first;
  states_[id].log2_slots = log2_slots & 31U;
}

void SuffixAutomaton::add_edge(StateId id, TokenId token, StateId to) {
  if (states_[id].best_token < 0) {
    states_[id].best_token = token;
    states_[id].best_to = to;
    return;
  }
  const State& before = states_[id];
  const std::uint32_t slots = 1U << before.log2_slots;
  const bool is_full = before.num_edges == 0 || (before.log2_slots <= kLinearLog2
                                                     ? before.num_edges == slots
                                                     : (before.num_edges + 1U) * std::uint64_t{4} >
                                                           std::uint64_t{3} * slots);
  if (is_full) grow_edges(id);
  State& state = states_[id];
  Edge* table = edges_.data() + state.edges;
  const std::uint32_t slot = state.log2_slots <= kLinearLog2
                                 ? state.num_edges
                                 : free_slot(table, (1U << state.log2_slots) - 1, token);
  table[slot] = {token, to};
  state.num_edges = (state.num_edges + 1U) & 0x7FFFFFFU;
}

void SuffixAutomaton::redirect(StateId id, TokenId token, StateId to) {
  State& state = states_[id];
  if (state.best_token == token) {
    state.best_to = to;
  } else {
    find_edge(state, token)->to = to;
  }
}

// Swaps an edge of the table with the one that stands in the state.
void SuffixAutomaton::make_best(State& state, Edge& edge) {
  const Edge promoted = edge;
  const Edge demoted{state.best_token, state.best_to};
  if (state.log2_slots <= kLinearLog2) {
    edge = demoted;
  } else {
    Edge* table = edges_.data() + state.edges;
    const std::uint32_t mask = (1U << state.log2_slots) - 1;
    erase_hashed(table, mask, static_cast<std::uint32_t>(&edge - table));
    table[free_slot(table, mask, demoted.token)] = demoted;
  }
  state.best_token = promoted.token;
  state.best_to = promoted.to;
  state.best_count = states_[promoted.to].count;
}

}  // namespace smartspec::suffix
