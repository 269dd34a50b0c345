// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The life of generations: filled, sealed, frozen, evicted. An automaton cannot delete, so history
// is bounded by dropping whole generations, oldest first.
#include <algorithm>

#include "propose/suffix/index_impl.hpp"

namespace smartspec {

using suffix::FrozenSegment;
using suffix::kNobody;
using suffix::kRoot;
using suffix::StateId;
using suffix::SuffixAutomaton;

namespace {

// Below, growing is cheap and pages are few; above, reserving them keeps everything in place.
constexpr std::size_t kReserveFrom = std::size_t{4} << 20;
constexpr std::size_t kBytesPerToken = 58;

}  // namespace

std::shared_ptr<suffix::Generation> SuffixIndex::Impl::new_generation() {
  auto generation = std::make_shared<Generation>();
  generation->id = next_generation++;
  return generation;
}

/// Hands what the request put out in this generation over to the generation.
void SuffixIndex::Impl::keep_output(RequestState& state) {
  Generation& live = state.history->live();
  if (state.generation != live.id || state.live_length == 0) return;
  const std::span<const TokenId> text(state.text);
  live.sequences.add(text.last(state.live_length), state.id);
  places[state.id].push_back({state.history, live.id, live.sequences.size() - 1});
}

/// The request goes on in the live generation, of which it knows nothing yet.
void SuffixIndex::Impl::leave_generation(RequestState& state) {
  state.generation = state.history->live().id;
  state.live_end = kRoot;
  state.live_length = 0;
  state.live_match = {};
  state.live_position = -1;
}

/// The places of the request's text may lie in what was forgotten. Its own end in the live
/// generation is no place to find it at, unless the same stands elsewhere, too.
void SuffixIndex::Impl::leave_forgotten(RequestState& state) {
  state.older.clear();
  state.live_position = -1;
  const SuffixAutomaton& live = state.history->live().automaton;
  StateId known = state.live_end;
  if (state.live_length == 0 || live.state(known).count > 1) return;  // to be looked for
  while (known != kRoot && live.state(known).count <= 1) known = live.state(known).link;
  state.live_match = {known, live.state(known).length};
  state.live_position = static_cast<std::int64_t>(state.text.size());
}

void SuffixIndex::Impl::seal(History& history) {
  history.live().automaton.settle();
  std::vector<RequestState*> active;
  requests.for_each([&](RequestState& state) {
    if (state.history == &history) active.push_back(&state);
  });
  for (RequestState* state : active) keep_output(*state);
  const std::shared_ptr<Generation> sealed = history.generations.back();
  history.generations.push_back(new_generation());
  for (RequestState* state : active) leave_generation(*state);
  if (options.freeze) freeze(sealed);
}

bool SuffixIndex::Impl::seal_if_full(History& history) {
  Generation& live = history.live();
  if (live.bytes() >= options.generation_bytes) {
    seal(history);
    return true;
  }
  if (!live.is_reserved && live.automaton.bytes() >= kReserveFrom) {
    live.automaton.reserve(options.generation_bytes / kBytesPerToken);
    live.is_reserved = true;
  }
  return false;
}

/// A text is cut where its generation is full, but only if it is long for a generation.
void SuffixIndex::Impl::add_sequence(History& history, std::span<const TokenId> sequence) {
  const std::size_t piece =
      std::max(suffix::kTokensBetweenChecks, options.generation_bytes / kBytesPerToken / 2);
  suffix::StateId end = kRoot;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < sequence.size(); ++i) {
    end = history.live().automaton.append(end, sequence[i]).state;
    if ((i + 1) % piece != 0) continue;
    if (history.live().bytes() < options.generation_bytes) continue;
    history.live().sequences.add(sequence.subspan(begin, i + 1 - begin), kNobody);
    seal(history);
    evict_to_bound();
    begin = i + 1;
    end = kRoot;
  }
  history.live().sequences.add(sequence.subspan(begin), kNobody);
  seal_if_full(history);
}

void SuffixIndex::Impl::freeze(const std::shared_ptr<Generation>& generation) {
  if (!options.background) {
    publish(generation, FrozenSegment::build(generation->sequences.all()));
    return;
  }
  background.run([this, generation] {
    std::optional<FrozenSegment> segment;
    try {
      segment = FrozenSegment::build(generation->sequences.all());
    } catch (const std::exception&) {
      return;  // out of memory: it stays an automaton until it is evicted
    }
    std::unique_lock writing(writer);
    std::unique_lock changing(gate);
    publish(generation, std::move(*segment));
  });
}

void SuffixIndex::Impl::publish(const std::shared_ptr<Generation>& generation,
                                FrozenSegment segment) {
  if (generation->is_dropped) return;
  if (!generation->forgotten.empty()) segment.forget(generation->forgotten);
  discard(
      std::make_shared<SuffixAutomaton>(std::exchange(generation->automaton, SuffixAutomaton())));
  generation->sequences.drop_text();
  generation->forgotten = {};
  generation->frozen = std::move(segment);
}

void SuffixIndex::Impl::discard(std::shared_ptr<void> memory) {
  if (options.background)
    background.run([memory = std::move(memory)]() mutable { memory.reset(); });
}

std::size_t SuffixIndex::Impl::history_bytes() const {
  std::size_t bytes = 0;
  for (const auto& [name, history] : histories) bytes += history->bytes();
  return bytes;
}

void SuffixIndex::Impl::evict_to_bound() {
  while (history_bytes() > options.max_bytes) {
    History* oldest = nullptr;
    for (const auto& [name, history] : histories) {
      if (history->bytes() <= Generation().bytes()) continue;
      if (oldest == nullptr || history->generations.front()->id < oldest->generations.front()->id) {
        oldest = history.get();
      }
    }
    if (oldest == nullptr) return;
    drop(*oldest, 0);
  }
}

/// Also of the live generation, which an empty one then replaces.
void SuffixIndex::Impl::drop(History& history, std::size_t index) {
  const auto at = history.generations.begin() + static_cast<std::ptrdiff_t>(index);
  std::shared_ptr<Generation> dropped = *at;
  const bool is_live = index + 1 == history.generations.size();
  history.generations.erase(at);
  dropped->is_dropped = true;
  evicted_tokens += dropped->num_tokens();
  for (const RequestId owner : dropped->sequences.owners()) {
    const auto found = places.find(owner);
    if (found == places.end()) continue;
    std::erase_if(found->second,
                  [&](const Place& place) { return place.generation == dropped->id; });
    if (found->second.empty()) places.erase(found);
  }
  if (is_live) {
    history.generations.push_back(new_generation());
    requests.for_each([&](RequestState& state) {
      if (state.history == &history) leave_generation(state);
    });
  }
  discard(std::move(dropped));
}

void SuffixIndex::Impl::forget(const Place& place) {
  for (const auto& generation : place.history->generations) {
    if (generation->id != place.generation) continue;
    if (generation->frozen) {
      generation->frozen->forget(place.sequence);
    } else {
      generation->automaton.forget(generation->sequences.tokens(place.sequence));
      generation->forgotten.push_back(place.sequence);
    }
  }
}

}  // namespace smartspec
