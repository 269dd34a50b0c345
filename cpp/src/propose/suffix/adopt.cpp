// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Taking an automaton over from a file: the checksum says that the bytes are the ones written, this
// says that following and extending them stays inside and ends, whatever a faulty program wrote.
#include <algorithm>
#include <thread>
#include <vector>

#include "propose/suffix/automaton.hpp"
#include "propose/suffix/edge_table.hpp"
#include "smartspec/error.hpp"

namespace smartspec::suffix {
namespace {

/// Of a range of states, read in order.
struct Inspection {
  bool is_sound = true;
  std::size_t fault = 0;       // the first state that is not
  std::size_t first_slot = 0;  // their edge tables stand in [first_slot, last_slot)
  std::size_t last_slot = 0;
  bool has_tables = false;
};

class Inspector {
 public:
  Inspector(std::span<const State> states, std::span<const Edge> edges, std::uint32_t num_tokens,
            TokenId token_limit)
      : states_(states), edges_(edges), num_tokens_(num_tokens), token_limit_(token_limit) {}

  Inspection inspect(std::size_t begin, std::size_t end) const {
    Inspection result;
    for (std::size_t id = begin; id < end; ++id) {
      const State& state = states_[id];
      bool is_sound = is_sound_state(state, id);
      if (is_sound && state.num_edges > 0) is_sound = is_sound_table(state, result);
      if (is_sound) continue;
      result.is_sound = false;
      result.fault = id;
      break;
    }
    return result;
  }

 private:
  // Links lead to smaller ids, so every walk up ends at the root; nothing else leads there, so no
  // split moves it. Lengths do not bound anything. Bitwise: this runs over millions.
  bool is_sound_state(const State& state, std::size_t id) const {
    const bool is_linked = (state.link < id) | ((id == kRoot) & (state.link == kNoState));
    const bool is_open = (state.best_token >= 0) & leads_inside(state.best_token, state.best_to);
    const bool is_closed = (state.best_token == -1) & (state.best_to == kNoState) &
                           (state.best_count == 0) & (state.num_edges == 0);
    return is_linked & (state.length <= num_tokens_) & (is_open | is_closed);
  }

  bool leads_inside(TokenId token, StateId to) const {
    return (token < token_limit_) & (to < states_.size()) & (to != kRoot);
  }

  // Tables that stand one behind the other do not overlap: growing ones would break each other's
  // bounds.
  bool is_sound_table(const State& state, Inspection& so_far) const {
    const std::size_t slots = std::size_t{1} << state.log2_slots;
    if (!so_far.has_tables) {
      so_far.has_tables = true;
      so_far.first_slot = so_far.last_slot = state.edges;
    }
    if (state.edges != so_far.last_slot || state.edges > edges_.size() ||
        slots > edges_.size() - state.edges || state.num_edges > slots) {
      return false;
    }
    so_far.last_slot += slots;
    bool is_sound = true;
    std::size_t found = 0;
    for (const Edge& edge : edges_.subspan(state.edges, used_slots(state))) {
      const bool is_used = edge.token >= 0;
      is_sound &= is_used ? leads_inside(edge.token, edge.to) : edge.token == -1;
      found += is_used ? 1 : 0;
    }
    // A hashed table has a free slot, so that probing ends.
    const bool has_room = state.log2_slots <= kLinearLog2 || found < slots;
    return is_sound && found == state.num_edges && has_room;
  }

  std::span<const State> states_;
  std::span<const Edge> edges_;
  std::uint32_t num_tokens_;
  TokenId token_limit_;
};

[[noreturn]] void reject(const std::string& what) { throw FormatError("automaton: " + what); }

}  // namespace

SuffixAutomaton SuffixAutomaton::adopt(Arena<State> states, Arena<Edge> edges,
                                       const Summary& summary, int num_threads,
                                       TokenId token_limit) {
  const std::size_t size = states.size();
  if (size == 0 || size > 2 * (std::size_t{summary.num_tokens} + 1) ||
      summary.num_tokens > kMaxTokens) {
    reject(std::to_string(size) + " states for " + std::to_string(summary.num_tokens) +
           " tokens, must be 1 to twice as many plus two");
  }
  for (const std::uint32_t first : summary.free_slots) {
    if (first != kNoSlots) reject("free edge tables, must be none");
  }
  const Inspector inspector(states.span(), edges.span(), summary.num_tokens, token_limit);
  const std::size_t share = size / static_cast<std::size_t>(std::max(num_threads, 1)) + 1;
  std::vector<Inspection> parts((size + share - 1) / share);
  const auto inspect = [&](std::size_t part) {
    parts[part] = inspector.inspect(part * share, std::min((part + 1) * share, size));
  };
  {
    std::vector<std::jthread> threads;
    for (std::size_t part = 1; part < parts.size(); ++part) threads.emplace_back(inspect, part);
    inspect(0);
  }
  std::size_t slots = 0;
  for (const Inspection& part : parts) {
    if (!part.is_sound) {
      reject("state " + std::to_string(part.fault) + " of " + std::to_string(size) +
             " is not well formed, or leads outside");
    }
    if (part.has_tables && part.first_slot != slots) reject("edge tables are not in order");
    if (part.has_tables) slots = part.last_slot;
  }
  if (slots != edges.size()) {
    reject(std::to_string(edges.size()) + " edges, must be " + std::to_string(slots));
  }
  SuffixAutomaton automaton;
  automaton.states_ = std::move(states);
  automaton.edges_ = std::move(edges);
  automaton.num_tokens_ = summary.num_tokens;
  return automaton;
}

}  // namespace smartspec::suffix
