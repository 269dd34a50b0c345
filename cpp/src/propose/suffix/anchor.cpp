// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Where a request's text stands in the generations of its namespace.
#include <algorithm>

#include "propose/suffix/drafter.hpp"

namespace smartspec::suffix {
namespace {

// A text that recent outputs know this deep is not looked up in frozen ones.
constexpr std::uint32_t kDeepEnough = 16;
// Shorter contexts are better known to the request itself and to the live generation.
constexpr std::uint32_t kMinFrozenMatch = 2;

std::span<const TokenId> tail(const RequestState& request) {
  const std::span<const TokenId> text(request.text);
  return text.last(std::min(text.size(), kAnchorTokens));
}

std::span<const TokenId> since(const RequestState& request, std::int64_t position) {
  return std::span<const TokenId>(request.text).subspan(static_cast<std::size_t>(position));
}

void follow(const SuffixAutomaton& automaton, const RequestState& request, Match& match,
            std::int64_t& position) {
  const auto end = static_cast<std::int64_t>(request.text.size());
  if (position < 0 || end - position > static_cast<std::int64_t>(kAnchorTokens)) {
    match = automaton.match(tail(request));
  } else {
    for (const TokenId token : since(request, position)) automaton.advance(match, token);
  }
  position = end;
}

// An occurrence that goes on as the text does is still a longest match: a longer one now would have
// been a longer one then. False: none goes on.
bool follow_samples(const FrozenSegment& segment, const RequestState& request,
                    OlderCursor& cursor) {
  const std::span<const TokenId> text = segment.text();
  std::uint32_t kept = 0;
  const std::span<const TokenId> tokens = since(request, cursor.position);
  for (std::uint32_t i = 0; i < cursor.num_samples; ++i) {
    const std::size_t next = std::size_t{cursor.samples[i]} + 1;
    if (tokens.size() > text.size() - next ||
        !std::equal(tokens.begin(), tokens.end(),
                    text.begin() + static_cast<std::ptrdiff_t>(next))) {
      continue;
    }
    cursor.samples[kept++] = cursor.samples[i] + static_cast<std::uint32_t>(tokens.size());
  }
  cursor.num_samples = kept;
  cursor.length += static_cast<std::uint32_t>(tokens.size());
  return kept > 0;
}

// One cursor per older generation, in their order; those of generations that are gone go.
void align_cursors(RequestState& request) {
  const auto& generations = request.history->generations;
  std::size_t kept = 0;
  for (std::size_t i = 0; i + 1 < generations.size(); ++i) {
    const auto found = std::find_if(
        request.older.begin() + static_cast<std::ptrdiff_t>(std::min(kept, request.older.size())),
        request.older.end(),
        [&](const OlderCursor& cursor) { return cursor.generation == generations[i]->id; });
    OlderCursor cursor;
    cursor.generation = generations[i]->id;
    if (found != request.older.end()) cursor = *found;
    if (kept == request.older.size()) {
      request.older.push_back(cursor);
    } else {
      request.older[kept] = cursor;
    }
    ++kept;
  }
  request.older.resize(kept);
}

struct Search {
  OlderCursor* cursor;
  const FrozenSegment* segment;
};

struct Scratch {
  std::vector<Search> wanted;
  std::vector<FrozenSearch> searches;
};

void anchor_one(RequestState& request, Scratch& scratch) {
  const auto end = static_cast<std::int64_t>(request.text.size());
  anchor_live(request);
  if (request.history->generations.size() == 1 && request.older.empty()) return;
  align_cursors(request);
  const bool is_deep =
      std::max(request.live_match.length, request.local_match.length) >= kDeepEnough;
  for (std::size_t i = 0; i < request.older.size(); ++i) {
    const Generation& generation = *request.history->generations[i];
    OlderCursor& cursor = request.older[i];
    if (!generation.frozen) {
      follow(generation.automaton, request, cursor.match, cursor.position);
      continue;
    }
    const bool is_current = cursor.is_frozen && cursor.position == end;
    const bool follows = !is_current && cursor.is_frozen && cursor.num_samples > 0 &&
                         follow_samples(*generation.frozen, request, cursor);
    if (!cursor.is_frozen) cursor = {generation.id, -1, true, {}, 0, 0, {}};
    cursor.position = end;
    if (is_current || follows) continue;
    cursor.num_samples = 0;
    cursor.length = 0;
    if (is_deep) continue;
    scratch.wanted.push_back({&cursor, &*generation.frozen});
    scratch.searches.emplace_back(*generation.frozen, tail(request));
  }
}

}  // namespace

void anchor_live(RequestState& request) {
  if (request.live_position == static_cast<std::int64_t>(request.text.size())) return;
  follow(request.history->live().automaton, request, request.live_match, request.live_position);
}

void anchor(std::span<RequestState* const> group) {
  thread_local Scratch scratch;
  scratch.wanted.clear();
  scratch.searches.clear();
  std::size_t most = 0;
  for (const RequestState* request : group) most += request->history->generations.size();
  scratch.wanted.reserve(most);
  scratch.searches.reserve(most);
  for (RequestState* request : group) anchor_one(*request, scratch);
  run_interleaved(scratch.searches);
  for (std::size_t i = 0; i < scratch.wanted.size(); ++i) {
    const FrozenMatch& match = scratch.searches[i].result();
    OlderCursor& cursor = *scratch.wanted[i].cursor;
    if (match.length < kMinFrozenMatch) continue;
    cursor.length = match.length;
    cursor.num_samples =
        static_cast<std::uint32_t>(scratch.wanted[i].segment->sample(match, cursor.samples));
  }
}

}  // namespace smartspec::suffix
