// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// How likely is it that a token offered by the suffix index is the one the model will produce?
// Learnt online from verified tokens. Logistic mixing of adaptive predictions with a final
// adaptive map, after M. Mahoney, "Adaptive Weighing of Context Models for Lossless Data
// Compression" (2005); what is mixed, and in which contexts, is ours.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>

#include "smartspec/types.hpp"

namespace smartspec::suffix {

/// Where a context was found: the request's own text, live shared outputs, a frozen segment.
enum class Source : std::uint8_t { kLocal, kLive, kFrozen };

/// What one context says about the next token.
struct Evidence {
  TokenId token = 0;
  Source source = Source::kLocal;
  bool deterministic = false;      ///< the context was only ever followed by `token`
  std::uint32_t match_length = 0;  ///< tokens of context matched
  std::uint32_t count = 0;         ///< its occurrences, the text's own end not included
  std::uint32_t token_count = 0;   ///< of those, followed by `token`
};

/// Where in the draft the node is whose next token is asked for.
struct NodeContext {
  std::int32_t depth = 0;           ///< drafted tokens above it; 0 at the root
  float parent_probability = 1.0F;  ///< the Pick's that led here; 1 at the root (not used yet)
};

struct Pick {
  TokenId token = 0;
  float probability = 0;  ///< that this token is right given that the path to its parent was
};

inline constexpr int kMaxEvidence = 9;  ///< further pieces are ignored, as are > 3 of one source
inline constexpr int kMaxPicks = 4;

/// Opaque: what choose() looked at, for learn(). Fill nothing in by hand.
struct Trace {
  std::array<TokenId, kMaxEvidence> token;
  std::array<std::uint16_t, kMaxEvidence> cell;
  std::uint8_t size = 0;
  std::uint8_t picks = 0;
  std::uint8_t run = 0;
};
static_assert(std::is_trivially_copyable_v<Trace> && sizeof(Trace) <= 64);

/// What is known about one request beyond its text; start with a default-constructed one.
struct RequestCalibration {
  std::uint32_t run = 0;  ///< best picks right in a row, up to now
};
static_assert(sizeof(RequestCalibration) <= 16);

/// Thread safety: choose() and state() may run concurrently with each other, not with learn().
class Calibration {
 public:
  Calibration();  ///< the prior
  Calibration(const Calibration& other);
  Calibration& operator=(const Calibration& other);
  ~Calibration();

  /// Distinct tokens, most probable first, at most min(picks.size(), kMaxPicks); returns how many.
  /// `evidence`: within each source longest match first. Any values are safe: probabilities are
  /// finite and in [0.001, 0.999], and their sum is at most 1.
  int choose(std::span<const Evidence> evidence, const NodeContext& node,
             const RequestCalibration& request, std::span<Pick> picks, Trace& trace) const;

  /// `truth` followed the node that `trace` was filled for. To be called for every node whose
  /// path was right (also where nothing was picked), in the order of the text.
  void learn(const Trace& trace, TokenId truth, RequestCalibration& request);

  /// To be stored with the index; the bytes belong to this object. Native byte order.
  std::span<const std::byte> state() const;
  /// Throws FormatError on bytes that state() of this version cannot have given.
  static Calibration from_state(std::span<const std::byte> bytes);

 private:
  struct Tables;
  struct Candidate;
  struct MapPoint;
  using Candidates = std::span<Candidate, kMaxEvidence>;

  int score(const Trace& trace, Candidates candidates) const;
  static const Candidate& bring_best(Candidates candidates, int k, int n);
  static MapPoint map_point(int rank, const Candidate& first, const Candidate& x);
  void learn_map(const MapPoint& point, bool hit);
  void learn_weights(const Trace& trace, const Candidate& x, float error);
  void learn_cells(const Trace& trace, const Candidate& x, bool hit);

  std::unique_ptr<Tables> tables_;
};

}  // namespace smartspec::suffix
