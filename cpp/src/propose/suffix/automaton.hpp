// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// An online generalised suffix automaton with live counts: every substring of every sequence seen
// so far, how often it occurs, and what most often follows it.
//
// Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text"; several
// sequences share one automaton by restarting at the root. Its link tree is the suffix tree of the
// reversed text, so a context's count is kept by walking links: 4.4 of them per token in code.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "propose/suffix/arena.hpp"
#include "smartspec/types.hpp"

namespace smartspec::suffix {

using StateId = std::uint32_t;
inline constexpr StateId kRoot = 0;
inline constexpr StateId kNoState = 0xFFFFFFFF;

/// One class of contexts with the same end positions: half a cache line.
struct State {
  std::uint32_t length;      // tokens of the longest context in the class
  StateId link;              // the class of its longest suffix outside this class
  std::uint32_t count;       // occurrences; exact after settle()
  std::uint32_t best_count;  // of those, followed by best_token
  TokenId best_token;        // the most frequent continuation, the latest of equals; -1: none yet
  StateId best_to;           // where it leads
  std::uint32_t edges;       // first slot of the other continuations
  std::uint32_t num_edges : 27;
  std::uint32_t log2_slots : 5;
};
static_assert(sizeof(State) == 32);

struct Edge {
  TokenId token;  // -1: a free slot of a hashed table
  StateId to;
};

// Further continuations stand in a row up to eight of them, in a hashed table with linear probing,
// at most three quarters full, beyond.
inline constexpr std::uint32_t kLinearLog2 = 3;

/// Slots that may hold edges: the first num_edges of a row, any of a hashed table.
inline std::uint32_t used_slots(const State& state) noexcept {
  if (state.num_edges == 0) return 0;
  return state.log2_slots <= kLinearLog2 ? state.num_edges : 1U << state.log2_slots;
}

/// Where a text stands in an automaton: its longest suffix that occurs there.
struct Match {
  StateId state = kRoot;
  std::uint32_t length = 0;  // tokens
};

/// Where a text ends in an automaton that holds it.
struct TextEnd {
  StateId state = kRoot;
  Match seen;  // its longest suffix that occurs elsewhere, or earlier, too
};

/// What is known of one context; see SuffixAutomaton::lookup.
struct ContextCounts {
  std::uint32_t count = 0;       // occurrences
  TokenId best_token = -1;       // most frequent continuation (any of equals), -1: none
  std::uint32_t best_count = 0;  // its occurrences
};

/// Amortised O(1) per appended or matched token, 32-bit ids, no pointers inside. Holds at most
/// max_states states; append throws std::length_error beyond. Not thread-safe: const members may
/// run side by side, nothing else beside a writer.
class SuffixAutomaton {
 public:
  // A state per token and less than one clone per token.
  static constexpr std::uint32_t kMaxTokens = 0x7FFFFFF0;
  static constexpr std::uint32_t kNoLimit = 0xFFFFFFFF;

  SuffixAutomaton();
  SuffixAutomaton(SuffixAutomaton&&) noexcept = default;
  SuffixAutomaton& operator=(SuffixAutomaton&&) noexcept = default;

  /// Appends `token` >= 0 to the sequence whose text so far ends in `last` (kRoot: a new sequence)
  /// and returns its new end. `seen` is free: it is where the end's link leads.
  TextEnd append(StateId last, TokenId token);

  /// Takes one sequence's occurrences out of the counts; contexts that occur nowhere else are gone
  /// for match and lookup, their memory stays. `sequence` must have been appended from the root and
  /// not been forgotten yet.
  void forget(std::span<const TokenId> sequence);

  /// Brings the counts up to date that append() left for later on contexts nested more than
  /// kMaxChain deep (one token repeated, say). Amortised O(log size) per append.
  void settle();

  /// Follows the text by one token.
  void advance(Match& match, TokenId token) const {
    match.state = class_of(match);
    follow(match, token, kNoLimit);
  }
  /// The same where match.state is class_of(match), as it stays while nobody appends. Gives up
  /// (nothing matched) when none of the `max_contexts` longest contexts goes on with `token`.
  void follow(Match& match, TokenId token, std::uint32_t max_contexts) const;
  /// Where `context` stands: O(size of context).
  [[nodiscard]] Match match(std::span<const TokenId> context) const;
  /// Exact counts of the matched context; scans its continuations. Call settle() before.
  [[nodiscard]] ContextCounts lookup(const Match& match) const;

  /// visit(token, count) for every continuation of the matched context that still occurs.
  template <class Visit>
  void for_each_continuation(const Match& match, Visit&& visit) const;

  /// kNoState: no such continuation.
  [[nodiscard]] StateId find(StateId id, TokenId token) const {
    const State& state = states_[id];
    if (state.best_token == token) return state.best_to;
    const Edge* edge = find_edge(state, token);
    return edge == nullptr ? kNoState : edge->to;
  }
  [[nodiscard]] const State& state(StateId id) const noexcept { return states_[id]; }
  /// The class of the match after others' appends may have split it.
  [[nodiscard]] StateId class_of(const Match& match) const noexcept {
    StateId state = match.state;
    while (state != kRoot && match.length <= states_[states_[state].link].length) {
      state = states_[state].link;
    }
    return state;
  }

  void prefetch(StateId id) const noexcept { __builtin_prefetch(states_.data() + id); }
  void prefetch_edges(const State& state) const noexcept {
    if (state.num_edges > 0) __builtin_prefetch(edges_.data() + state.edges);
  }

  [[nodiscard]] std::uint32_t num_tokens() const noexcept { return num_tokens_; }
  [[nodiscard]] std::uint32_t num_live_tokens() const noexcept { return states_[kRoot].count; }
  [[nodiscard]] std::size_t num_states() const noexcept { return states_.size(); }
  [[nodiscard]] std::size_t bytes() const noexcept;  // in use
  /// Address space for about `num_tokens` tokens at once, so that growing never moves anything.
  void reserve(std::size_t num_tokens);

  /// Everything a file must hold besides the two arenas.
  struct Summary {
    std::uint32_t num_tokens = 0;
    std::array<std::uint32_t, 32> free_slots{};  // heads of the free lists of edge tables
  };
  [[nodiscard]] Summary summary() const noexcept { return {num_tokens_, free_slots_}; }
  [[nodiscard]] std::span<const State> states() const noexcept { return states_.span(); }
  [[nodiscard]] std::span<const Edge> edges() const noexcept { return edges_.span(); }
  /// Takes over what image_of() made (image.hpp), read from a file, after checking that every id
  /// in it leads somewhere inside, that tokens are below the limit, that walks along links end and
  /// that edge tables do not overlap. Throws FormatError. `num_threads` share the work.
  static SuffixAutomaton adopt(Arena<State> states, Arena<Edge> edges, const Summary& summary,
                               int num_threads = 1, TokenId token_limit = 0x7FFFFFFF);

 private:
  // Counts owed to a context and its suffixes: `delta` occurrences of (contexts of `state`) +
  // `token`.
  struct Debt {
    StateId state;
    TokenId token;
    std::int32_t delta;
  };
  static constexpr int kMaxChain = 64;

  [[nodiscard]] Edge* find_edge(const State& state, TokenId token) const;
  [[nodiscard]] std::uint32_t take_slots(std::uint32_t log2_slots);
  void give_slots(std::uint32_t first, std::uint32_t log2_slots);
  void grow_edges(StateId state);
  void add_edge(StateId state, TokenId token, StateId to);
  void redirect(StateId state, TokenId token, StateId to);
  StateId split(StateId original, std::uint32_t length, StateId context, TokenId token);
  StateId new_state(std::uint32_t length);
  TextEnd extend(StateId last, TokenId token);
  void count_occurrence(StateId last, TokenId token, std::int32_t delta);
  void refresh_best(StateId context, Edge* edge, std::int32_t delta);
  void search_best(StateId context);
  void make_best(State& state, Edge& edge);

  Arena<State> states_;
  Arena<Edge> edges_;
  std::array<std::uint32_t, 32> free_slots_;
  std::uint32_t num_tokens_ = 0;
  std::vector<Debt> debts_;
  std::vector<StateId> outdated_;  // during forget(): contexts whose best continuation lost counts
};

template <class Visit>
void SuffixAutomaton::for_each_continuation(const Match& match, Visit&& visit) const {
  const State& state = states_[class_of(match)];
  if (state.best_token < 0) return;
  const auto visit_edge = [&](TokenId token, StateId to) {
    if (states_[to].count > 0) visit(token, states_[to].count);
  };
  visit_edge(state.best_token, state.best_to);
  const std::uint32_t slots = used_slots(state);
  for (std::uint32_t i = 0; i < slots; ++i) {
    const Edge& edge = edges_[state.edges + i];
    if (edge.token >= 0) visit_edge(edge.token, edge.to);
  }
}

}  // namespace smartspec::suffix
