// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "propose/suffix/history.hpp"

#include <algorithm>
#include <unordered_map>
#include <utility>

namespace smartspec::suffix {

SequenceStore SequenceStore::adopt(Arena<TokenId> text, std::span<const std::uint32_t> lengths) {
  SequenceStore store;
  store.text_ = std::move(text);
  store.lengths_.assign(lengths.begin(), lengths.end());
  store.owners_.assign(lengths.size(), kNobody);
  store.starts_.reserve(lengths.size());
  std::uint64_t end = 0;
  for (const std::uint32_t length : lengths)
    store.starts_.push_back(std::exchange(end, end + length));
  return store;
}

void SequenceStore::add(std::span<const TokenId> tokens, RequestId owner) {
  starts_.push_back(text_.size());
  lengths_.push_back(tokens.size());
  owners_.push_back(owner);
  const std::size_t first = text_.extend(tokens.size());
  std::copy(tokens.begin(), tokens.end(), text_.data() + first);
}

std::vector<std::span<const TokenId>> SequenceStore::all() const {
  std::vector<std::span<const TokenId>> sequences;
  sequences.reserve(size());
  for (std::uint32_t i = 0; i < size(); ++i) sequences.push_back(tokens(i));
  return sequences;
}

std::size_t Generation::bytes() const noexcept {
  return automaton.bytes() + sequences.bytes() + (frozen ? frozen->bytes() : 0);
}

std::int64_t Generation::num_tokens() const noexcept {
  return frozen ? frozen->num_live_tokens() : automaton.num_live_tokens();
}

std::size_t History::bytes() const noexcept {
  std::size_t bytes = 0;
  for (const auto& generation : generations) bytes += generation->bytes();
  return bytes;
}

namespace {

struct Found {
  const Generation* generation;
  Match match;
  FrozenMatch frozen;
};

}  // namespace

SuffixLookup look_up(const History& history, std::span<const TokenId> context) {
  std::vector<Found> found;
  std::uint32_t longest = 0;
  for (const auto& generation : history.generations) {
    Found entry{generation.get(), {}, {}};
    if (generation->frozen) {
      entry.frozen = generation->frozen->longest_match(context);
      longest = std::max(longest, entry.frozen.length);
    } else {
      entry.match = generation->automaton.match(context);
      longest = std::max(longest, entry.match.length);
    }
    found.push_back(entry);
  }
  SuffixLookup result;
  result.match_length = static_cast<std::int32_t>(longest);
  if (longest == 0) return result;
  std::unordered_map<TokenId, std::int64_t> next;
  std::vector<Continuation> continuations;
  for (const Found& entry : found) {
    if (entry.generation->frozen) {
      if (entry.frozen.length < longest) continue;
      const std::uint32_t count = entry.generation->frozen->count(entry.frozen);
      result.count += count;
      continuations.resize(count);
      continuations.resize(entry.generation->frozen->continuations(entry.frozen, continuations));
      for (const Continuation& each : continuations) next[each.token] += each.count;
    } else {
      if (entry.match.length < longest) continue;
      const SuffixAutomaton& automaton = entry.generation->automaton;
      result.count += automaton.state(automaton.class_of(entry.match)).count;
      automaton.for_each_continuation(
          entry.match, [&](TokenId token, std::uint32_t count) { next[token] += count; });
    }
  }
  for (const auto& [token, count] : next) {
    if (count < result.best_count || (count == result.best_count && token > result.best_token)) {
      continue;
    }
    result.best_token = token;
    result.best_count = count;
  }
  return result;
}

}  // namespace smartspec::suffix
