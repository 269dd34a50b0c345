// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Reading and changing a state's further continuations.
#pragma once

#include <cstdint>

#include "propose/suffix/automaton.hpp"

namespace smartspec::suffix {

inline constexpr std::uint32_t kNoSlots = 0xFFFFFFFF;

inline std::uint32_t hash_token(TokenId token) noexcept {
  auto x = static_cast<std::uint32_t>(token);
  x = (x ^ (x >> 16)) * 0x7FEB352DU;
  return x ^ (x >> 15);
}

/// Calls visit(edge) for every edge but the best one, which stands in the state.
template <class Visit>
void for_each_edge(const State& state, Edge* edges, Visit&& visit) {
  const std::uint32_t slots = used_slots(state);
  for (std::uint32_t i = 0; i < slots; ++i) {
    if (edges[state.edges + i].token >= 0) visit(edges[state.edges + i]);
  }
}

}  // namespace smartspec::suffix
