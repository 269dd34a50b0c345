// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Drafting: best-first by calibrated survival, evidence mixed per token from the request's own
// text, live shared outputs and one frozen segment. Groups of requests advance in lock-step, so
// that one's cache misses pass while the others compute.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "propose/suffix/request.hpp"
#include "smartspec/suffix_index.hpp"

namespace smartspec::suffix {

/// Requests drafted side by side: enough to hide a memory access, few enough to stay in L1.
inline constexpr std::size_t kGroupSize = 16;

/// One request's outputs: rows of SuffixDrafts.
struct DraftRow {
  std::span<TokenId> tokens;
  std::span<std::int32_t> parents;
  std::span<float> survival;
};

/// Drafts for one request, one node per advance(). Scratch memory: reuse it.
class DraftTask {
 public:
  /// Anchors the request in its history's generations and looks at the last token. `row`'s size is
  /// the number of nodes wanted. Holds request.mutex of the caller.
  void begin(RequestState& request, const SuffixDraftOptions& options, const DraftRow& row);

  void prefetch() const;
  /// Adds the most probable node and what may follow it. False: done.
  bool advance();
  [[nodiscard]] std::int32_t size() const noexcept { return num_nodes_; }
  [[nodiscard]] std::int32_t match_length() const noexcept { return match_length_; }

 private:
  struct Node {
    Match local;
    Match shared;
    float survival = 1;
    std::int32_t depth = 0;  // tokens drafted above and with it
    float probability = 1;
    std::uint32_t samples = 0;  // bit i: occurrence i of the frozen context still agrees
  };
  struct Candidate {
    float survival;
    float probability;
    std::int32_t parent;  // -1: the root
    TokenId token;
    bool operator<(const Candidate& other) const noexcept { return survival < other.survival; }
  };

  void expand(std::int32_t node);
  int gather(const Node& node, std::span<Evidence> evidence) const;
  void choose_shared(RequestState& request);
  void choose_frozen(RequestState& request);
  Node child(const Node& parent, TokenId token) const;

  RequestState* request_ = nullptr;
  const History* history_ = nullptr;
  const SuffixAutomaton* shared_ = nullptr;
  const FrozenSegment* frozen_ = nullptr;
  const OlderCursor* cursor_ = nullptr;
  std::uint32_t shared_self_ = 0;  // occurrences of the context that are the text's own end
  SuffixDraftOptions options_;
  DraftRow row_;
  std::int32_t num_nodes_ = 0;
  std::int32_t match_length_ = 0;
  std::vector<Node> nodes_;  // [1 + nodes], the root first
  std::vector<Candidate> heap_;
};

/// Brings a request's state into the cache, then what it leads to: two steps, so that many can do
/// each side by side.
void prefetch(const RequestState& request);
void prefetch_reached(const RequestState& request);

/// Brings the request's places in all older generations up to its text, and its place in the live
/// one if it has lost it. Searches of frozen segments run in lock-step over the group.
void anchor(std::span<RequestState* const> group);
/// Of that the live generation only, as far as it is lost.
void anchor_live(RequestState& request);

/// Teaches the calibration with `truth`, the tokens that followed the pending draft.
struct LearntDraft {
  std::int32_t drafted = 0;
  std::int32_t accepted = 0;
  double expected = 0;
};
LearntDraft learn(RequestState& request, std::span<const TokenId> truth);

}  // namespace smartspec::suffix
