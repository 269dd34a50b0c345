// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The frozen tier of the suffix index: finished sequences that no longer change, searchable at
// 8.0 to 8.4 bytes per token. The text, and its positions sorted by the context that ends at them
// (a suffix array of the reversed text), so all occurrences of a context are one interval.
// Internal. Const members are safe to call from many threads at once; forget() needs them all out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "propose/suffix/suffix_sort.hpp"
#include "smartspec/types.hpp"

namespace smartspec::suffix {

/// Occurrences of a context: order()[begin, end), each the position of the context's last token.
struct FrozenMatch {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  std::uint32_t length = 0;  // matched tokens; 0: nothing matched
  friend bool operator==(const FrozenMatch&, const FrozenMatch&) = default;
};

struct Continuation {
  TokenId token = kSeparator;
  std::uint32_t count = 0;  // occurrences followed by `token` among those looked at
  friend bool operator==(const Continuation&, const Continuation&) = default;
};

/// Text: kSeparator, first sequence, kSeparator, second sequence, ..., kSeparator. So text()[p + 1]
/// exists for every token, and is kSeparator where the sequence ends.
class FrozenSegment {
 public:
  static constexpr std::uint32_t kAll = std::numeric_limits<std::uint32_t>::max();

  /// Copies and sorts; n log n for any text. A negative token, which is never valid, ends its
  /// sequence: the rest of it is left out. Throws std::bad_alloc, and std::length_error from 2^32
  /// tokens and separators on; nothing else.
  static FrozenSegment build(std::span<const std::span<const TokenId>> sequences);

  /// Borrows arrays that `owner` keeps alive (a mapped file). Reads all of both once. Throws
  /// FormatError unless the text is well formed and `order` is a permutation of its tokens; whether
  /// `order` is sorted is not checked: if not, answers are wrong but every access stays in bounds
  /// and every search ends.
  static FrozenSegment view(std::span<const TokenId> text, std::span<const std::uint32_t> order,
                            std::shared_ptr<const void> owner);

  FrozenSegment(FrozenSegment&&) noexcept = default;
  FrozenSegment& operator=(FrozenSegment&&) noexcept = default;
  FrozenSegment(const FrozenSegment&) = delete;
  FrozenSegment& operator=(const FrozenSegment&) = delete;

  /// The longest suffix of `context`, of at most `max_length` tokens, that a sequence contains and
  /// that is not forgotten everywhere.
  FrozenMatch longest_match(std::span<const TokenId> context,
                            std::uint32_t max_length = kAll) const;

  /// Occurrences that are not forgotten.
  std::uint32_t count(const FrozenMatch& match) const;

  /// Writes the positions of up to positions.size() occurrences, evenly spread over the interval
  /// (so over the longer contexts, not over time), all of them if they fit; returns how many.
  std::size_t sample(const FrozenMatch& match, std::span<std::uint32_t> positions) const;

  /// The most frequent next token, the smallest id among equals; none if every occurrence ends its
  /// sequence. Exact, in time of the count, unless `max_scan` is smaller than that: then from
  /// max_scan occurrences evenly spread. Allocates from 32 different tokens on.
  std::optional<Continuation> best_continuation(const FrozenMatch& match,
                                                std::uint32_t max_scan = kAll) const;
  /// The same for the out.size() most frequent ones, in decreasing order; returns how many.
  std::size_t continuations(const FrozenMatch& match, std::span<Continuation> out,
                            std::uint32_t max_scan = kAll) const;

  /// From now on none of these sequences' positions is counted, sampled or matched; their text
  /// stays. One pass over order() per call, so many at once are cheaper. Returns how many were not
  /// forgotten before; throws std::invalid_argument if one is >= num_sequences().
  std::uint32_t forget(std::span<const std::uint32_t> sequences);
  bool forget(std::uint32_t sequence) { return forget(std::span(&sequence, 1)) > 0; }
  bool forgotten(std::uint32_t sequence) const;

  std::span<const TokenId> text() const noexcept { return text_; }
  std::span<const std::uint32_t> order() const noexcept { return order_; }
  std::uint32_t num_sequences() const noexcept {
    return static_cast<std::uint32_t>(starts_.size() - 1);
  }
  std::uint32_t num_tokens() const noexcept { return static_cast<std::uint32_t>(order_.size()); }
  std::uint32_t num_live_tokens() const noexcept { return num_tokens() - num_dead_; }
  /// The tokens of a sequence < num_sequences().
  std::span<const TokenId> sequence(std::uint32_t index) const;
  /// The sequence a position lies in, in log(num_sequences()); the position must be in text().
  std::uint32_t sequence_of(std::uint32_t position) const;
  /// Everything this holds or borrows.
  std::size_t bytes() const noexcept;

 private:
  friend class FrozenSearch;
  class OccurrenceWalk;

  FrozenSegment() = default;
  void index_text();

  std::uint32_t bucket(TokenId token) const noexcept {
    return static_cast<std::uint32_t>(token) >> shift_;
  }
  bool dead(std::uint32_t rank) const noexcept {
    return (dead_[rank / 64] >> (rank % 64) & 1) != 0;
  }
  std::uint32_t next_live(std::uint32_t rank, std::uint32_t end) const noexcept;
  std::uint32_t previous_live(std::uint32_t rank, std::uint32_t begin) const noexcept;
  FrozenMatch clip(const FrozenMatch& match) const noexcept;

  std::span<const TokenId> text_;
  std::span<const std::uint32_t> order_;
  std::vector<TokenId> own_text_;
  std::vector<std::uint32_t> own_order_;
  std::shared_ptr<const void> owner_;
  std::vector<std::uint32_t> starts_;        // of each sequence, then text_.size()
  std::vector<std::uint32_t> bucket_begin_;  // in order_, by last token >> shift_, then the end
  std::uint32_t shift_ = 0;
  std::vector<std::uint64_t> dead_;  // a bit per element of order_; empty: nothing forgotten
  std::vector<bool> forgotten_;
  std::uint32_t num_dead_ = 0;
};

/// longest_match() one probe at a time. Each step() prefetches what the next one reads, so stepping
/// a group of searches in turn hides the cache misses that make a lone search slow on cold text.
/// Borrows the segment and the context.
class FrozenSearch {
 public:
  FrozenSearch() = default;  // done, nothing matched
  FrozenSearch(const FrozenSegment& segment, std::span<const TokenId> context,
               std::uint32_t max_length = FrozenSegment::kAll);

  /// False once done: result() holds.
  bool step();
  const FrozenMatch& result() const noexcept { return match_; }

 private:
  enum class Phase : std::uint8_t { kStart, kDescend, kBegin, kEnd, kDone };

  void start();
  void aim(bool now);
  void descend();
  void narrow_begin();
  void narrow_end();
  void enter_begin();
  void enter_end();
  void finish();
  void skip_forgotten();
  TokenId wanted(std::uint32_t depth) const noexcept { return *(last_ - depth); }
  std::uint32_t agree(std::uint32_t position, std::uint32_t depth,
                      std::uint32_t limit) const noexcept;

  const FrozenSegment* segment_ = nullptr;
  const TokenId* last_ = nullptr;  // of the context
  std::uint32_t limit_ = 0;        // tokens of the context to match
  Phase phase_ = Phase::kDone;
  bool aimed_ = false;  // position_ is that of the middle of [low_, high_)
  std::uint32_t position_ = 0;
  std::uint32_t low_ = 0;
  std::uint32_t high_ = 0;
  // What the last elements below low_ and from high_ on agree on with the context.
  std::uint32_t low_length_ = 0;
  std::uint32_t high_length_ = 0;
  // Where the elements that agree on low_length_ begin, and those on high_length_ end: the answer
  // lies in [first, last], and all in between agree on at least `floor` tokens.
  struct Bracket {
    std::uint32_t first = 0;
    std::uint32_t last = 0;
    std::uint32_t floor = 0;
  };
  Bracket begin_;
  Bracket end_;
  FrozenMatch match_;
};

/// Runs searches to their end in lock-step, 16 at a time.
void run_interleaved(std::span<FrozenSearch> searches);

}  // namespace smartspec::suffix
