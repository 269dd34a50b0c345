// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// How many of the most likely nodes to take: the size that maximises value / seconds, exactly.
// Internal; not thread-safe; callers hold the preconditions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "smartspec/cost_model.hpp"

namespace smartspec::schedule {

/// Survivals as integers: the bits of a float in [0, 1] sort as the float does.
using Key = std::int32_t;
inline constexpr Key kCertain = 0x3F800000;  // 1.0F
inline constexpr int kBucketShift = 18;      // 32 buckets per power of two: 2 to 3 % wide
inline constexpr Key kForced = kCertain + (1 << kBucketShift);       // taken already
inline constexpr std::size_t kMaxKeys = (std::size_t{1} << 23) - 1;  // what a cell can count

struct SizeQuery {
  std::span<const Key> keys;          // 0: no candidate; kForced: no candidate either
  double value = 0;                   // before the first candidate
  double fixed_seconds = 0;           // beside the cost
  std::int64_t first_tokens = 0;      // rows before the first candidate
  std::int64_t limit = 0;             // most candidates
  std::span<const CostSegment> cost;  // not empty, ascending
};

struct SizeChoice {
  std::int64_t count = 0;
  double value = 0;
  double seconds = 0;
  Key threshold = kForced;  // candidates above it are taken
  std::int64_t ties = 0;    // and so many at the threshold, the earliest
  bool all_ties = true;     // the same as all of them
  bool limited = false;     // a size beyond the limit would have been better
};

/// A histogram keeps count and exact sum of each bucket of survivals, so the value of every size
/// that ends with a bucket is exact. Sizes inside a bucket are bounded from above by what its edges
/// allow, and only buckets whose bound beats the best exact size are sorted: about one per piece of
/// the cost. O(keys + buckets + segments); no heap allocation once it has seen as many keys.
class SizeSearch {
 public:
  SizeSearch();
  SizeChoice find(const SizeQuery& query);

 private:
  struct Bucket {
    std::int32_t index;
    std::int32_t count;
    std::int64_t before;  // candidates above it
    double value_before;  // of the step with those
    double sum;
    double turn;  // its optimistic value rises at the upper edge until here, then at the lower one
  };
  struct Point {
    double value;
    double seconds;
    std::int64_t count;
    bool better_than(const Point& other) const;
  };
  struct Refined {
    std::size_t bucket;
    std::size_t begin;  // of its members
  };

  void fill_buckets(const SizeQuery& query);
  void scan_ends(const SizeQuery& query);
  void choose_suspects(const SizeQuery& query);
  void collect_members(const SizeQuery& query);
  void refine(const SizeQuery& query, const Refined& refined);
  void sort_members(std::span<Key> members);

  static constexpr std::size_t kNumBuckets = (std::size_t{kForced} >> kBucketShift) + 1;
  static constexpr std::size_t kNumCells = (kNumBuckets + 7) / 8 * 8;

  std::vector<std::uint64_t>
      cells_;                    // [kNumCells] count and sum of the low bits; zero between calls
  std::vector<Bucket> buckets_;  // those that are not empty, most likely first
  std::size_t num_buckets_ = 0;
  double value_of_all_ = 0;
  std::vector<Refined> suspects_;
  std::size_t num_suspects_ = 0;
  std::vector<std::size_t> slots_;  // [kNumBuckets] where the next member goes; 0: not a suspect
  std::vector<Key> members_;        // [1 + keys]
  std::vector<Key> sorted_;         // scratch of the radix sort
  Point best_{};                    // of sizes whose value is known exactly
  Point bound_{};                   // also of sizes that reach at least this
  Point beyond_{};                  // the best behind the limit
  SizeChoice choice_;
};

}  // namespace smartspec::schedule
