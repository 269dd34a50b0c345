// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the suffix index keeps of one active request.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <vector>

#include "propose/suffix/automaton.hpp"
#include "propose/suffix/calibration.hpp"
#include "propose/suffix/frozen.hpp"
#include "propose/suffix/history.hpp"

namespace smartspec::suffix {

inline constexpr std::size_t kMaxSamples = 8;     // occurrences of a frozen context looked at
inline constexpr std::size_t kAnchorTokens = 64;  // of context, to find a text's place anew

/// Where the text stands in an older generation.
struct OlderCursor {
  std::uint64_t generation = 0;
  std::int64_t position = -1;  // tokens of text it is valid for
  bool is_frozen = false;
  Match match;               // an automaton not frozen yet
  std::uint32_t length = 0;  // a frozen segment: tokens matched ...
  std::uint32_t num_samples = 0;
  std::array<std::uint32_t, kMaxSamples> samples{};  // ... and where their last token stands
};

/// The last draft, kept to learn from the tokens that follow.
struct PendingDraft {
  struct Node {  // the root first
    TokenId token = -1;
    std::int32_t parent = -1;  // a node's index less one, as in TokenTree
    float survival = 1;
    bool is_expanded = false;  // its trace was filled
  };
  std::int64_t position = -1;  // tokens of text it continues; -1: none
  std::int32_t num_nodes = 0;  // drafted, the root not counted
  std::vector<Node> nodes;     // [1 + num_nodes] in use
  std::vector<Trace> traces;   // [1 + num_nodes] in use
};

struct RequestState {
  RequestId id = 0;
  History* history = nullptr;
  std::int64_t num_prompt_tokens = 0;
  bool is_shared = true;
  std::uint64_t epoch = 0;  // of the last batch it was in

  std::vector<TokenId> text;  // prompt and output
  SuffixAutomaton local;      // prediction, prompt and output
  StateId local_end = kRoot;
  Match local_match;

  // Its output in the live generation, and where the whole text stands there.
  std::uint64_t generation = 0;
  StateId live_end = kRoot;
  std::uint32_t live_length = 0;  // tokens of output in that generation
  Match live_match;
  std::int64_t live_position = -1;  // tokens of text live_match is valid for

  mutable std::mutex mutex;  // guards what drafting writes, and `local`
  std::vector<OlderCursor> older;
  PendingDraft pending;
  RequestCalibration calibration;

  [[nodiscard]] std::size_t bytes() const noexcept {
    return local.bytes() + text.capacity() * sizeof(TokenId) + sizeof(*this);
  }
};

}  // namespace smartspec::suffix
