// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Generations as files hold them: without a trace of forgotten sequences, in an order that makes
// reading them safe in one pass. Lookups stay the same; drafts too, except that continuations which
// occur no more are gone altogether. Internal; pure; thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "propose/suffix/arena.hpp"
#include "propose/suffix/automaton.hpp"
#include "propose/suffix/frozen.hpp"

namespace smartspec::suffix {

/// Every link leads to a smaller id, edge tables stand in the order of their states without gaps,
/// and there are no free ones. Ids are otherwise kept in order, for what was appended together is
/// read together.
struct AutomatonImage {
  Arena<State> states;
  Arena<Edge> edges;
  SuffixAutomaton::Summary summary;
};

/// Copies the classes that still occur; needs settled counts. Contexts that only forgotten text
/// told apart stay in classes of their own, which append and match do not mind.
[[nodiscard]] AutomatonImage image_of(const SuffixAutomaton& automaton);

struct FrozenImage {
  std::vector<TokenId> text;
  std::vector<std::uint32_t> order;
};

/// Equal to a segment built from the sequences that are not forgotten.
[[nodiscard]] FrozenImage image_of(const FrozenSegment& segment);

}  // namespace smartspec::suffix
