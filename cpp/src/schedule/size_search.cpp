// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "schedule/size_search.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <utility>

namespace smartspec::schedule {
namespace {

constexpr std::uint64_t kLowMask = (std::uint64_t{1} << kBucketShift) - 1;
// A cell: count in the upper bits, sum of the keys' low bits in the lower ones.
constexpr int kCountShift = 41;
constexpr std::uint64_t kOneKey = std::uint64_t{1} << kCountShift;
static_assert(kMaxKeys * kLowMask < kOneKey && kMaxKeys <= ~std::uint64_t{0} >> kCountShift);

double survival_of(Key key) { return static_cast<double>(std::bit_cast<float>(key)); }

// The lowest survival of a bucket, and the weight of the last bit of a survival there. Nothing is
// denormal: such survivals have key 0.
double lowest_of(std::int32_t bucket) { return survival_of(bucket << kBucketShift); }
double last_bit_of(std::int32_t bucket) {
  constexpr int kMantissaBits = 23;
  constexpr double kLastBit = 0x1p-23;
  const Key exponent = (bucket >> (kMantissaBits - kBucketShift)) << kMantissaBits;
  return survival_of(exponent) * kLastBit;
}

// Walks the cost upwards. Below its first segment it is level.
class CostCursor {
 public:
  CostCursor(const SizeQuery& query, std::int64_t before)
      : segments_(query.cost), fixed_(query.fixed_seconds), origin_(query.first_tokens + before) {
    const auto later = std::upper_bound(segments_.begin(), segments_.end(), origin_,
                                        [](std::int64_t tokens, const CostSegment& segment) {
                                          return tokens < segment.first_tokens;
                                        });
    next_ = static_cast<std::size_t>(later - segments_.begin());
    if (next_ == 0) {
      start_ = fixed_ + segments_[0].seconds;
      find_last();
    } else {
      --next_;
      enter();
    }
  }

  /// Sizes may only grow from call to call.
  void seek(std::int64_t count) {
    while (count > last_) enter();
  }
  /// The last size that lies in the present segment.
  std::int64_t last() const { return last_; }
  double slope() const { return slope_; }
  /// Whether a size not above the present one lies in the same segment.
  bool contains(std::int64_t count) const { return static_cast<double>(count) >= first_; }
  double seconds(double count) const { return start_ + (count - first_) * slope_; }

 private:
  void enter() {
    const CostSegment& segment = segments_[next_++];
    first_ = static_cast<double>(segment.first_tokens - origin_);
    start_ = fixed_ + segment.seconds;
    slope_ = segment.seconds_per_token;
    find_last();
  }
  void find_last() {
    last_ = next_ < segments_.size() ? segments_[next_].first_tokens - origin_ - 1
                                     : std::numeric_limits<std::int64_t>::max();
  }

  std::span<const CostSegment> segments_;
  double fixed_;
  std::int64_t origin_;
  std::size_t next_;
  std::int64_t last_ = 0;
  double first_ = 0;
  double start_ = 0;
  double slope_ = 0;
};

}  // namespace

bool SizeSearch::Point::better_than(const Point& other) const {
  const double mine = value * other.seconds;
  const double theirs = other.value * seconds;
  return mine > theirs || (mine == theirs && count < other.count);
}

SizeSearch::SizeSearch()
    : cells_(kNumCells, 0), buckets_(kNumCells), suspects_(kNumCells), slots_(kNumCells, 0) {}

void SizeSearch::fill_buckets(const SizeQuery& query) {
  std::uint64_t* const cells = cells_.data();
  for (const Key key : query.keys) {
    cells[key >> kBucketShift] += kOneKey | (static_cast<std::uint64_t>(key) & kLowMask);
  }
  const auto take = [&](std::size_t index) { return std::exchange(cells[index], 0U); };
  std::int64_t left = static_cast<std::int64_t>(query.keys.size());
  left -= static_cast<std::int64_t>(take(0) >> kCountShift);
  left -= static_cast<std::int64_t>(take(kNumBuckets - 1) >> kCountShift);

  Bucket* next = buckets_.data();
  std::int64_t before = 0;
  double value = query.value;
  for (std::size_t line = kNumCells; left > before; line -= 8) {
    const std::uint64_t* const row = cells + line - 8;
    if ((row[0] | row[1] | row[2] | row[3] | row[4] | row[5] | row[6] | row[7]) == 0) continue;
    for (std::size_t index = line; index-- > line - 8;) {
      const std::uint64_t cell = take(index);
      const auto count = static_cast<std::int32_t>(cell >> kCountShift);
      const auto low = static_cast<double>(static_cast<std::int64_t>(cell & (kOneKey - 1)));
      const auto bucket = static_cast<std::int32_t>(index);
      const double sum = count * lowest_of(bucket) + low * last_bit_of(bucket);
      *next = {bucket, count, before, value, sum, low * (1.0 / (kLowMask + 1))};
      next += count > 0 ? 1 : 0;
      before += count;
      value += sum;
    }
  }
  num_buckets_ = static_cast<std::size_t>(next - buckets_.data());
  value_of_all_ = value;
}

void SizeSearch::scan_ends(const SizeQuery& query) {
  CostCursor cost(query, 0);
  const std::int64_t limit = query.limit;
  best_ = bound_ = {query.value, cost.seconds(0.0), 0};
  beyond_ = best_;
  choice_ = {.value = best_.value, .seconds = best_.seconds};
  for (std::size_t i = 0; i < num_buckets_; ++i) {
    const Bucket& bucket = buckets_[i];
    const std::int64_t last = bucket.before + bucket.count;
    for (std::int64_t at = bucket.before; at < last;) {
      cost.seek(at + 1);
      std::int64_t end = std::min(last, cost.last());
      if (at < limit) end = std::min(end, limit);
      // Within a bucket the survivals fall, so its average so far is at least its average.
      const double value = end == last
                               ? bucket.value_before + bucket.sum
                               : bucket.value_before + bucket.sum / bucket.count *
                                                           static_cast<double>(end - bucket.before);
      const Point point{value, cost.seconds(static_cast<double>(end)), end};
      at = end;
      if (end > limit) {
        if (point.better_than(beyond_)) beyond_ = point;
        continue;
      }
      if (point.better_than(bound_)) bound_ = point;
      if (end == last && point.better_than(best_)) {
        best_ = point;
        choice_.threshold = bucket.index << kBucketShift;
      }
    }
    // Not even everything would be worth the time that this much takes.
    const double seconds = cost.seconds(static_cast<double>(last));
    if (value_of_all_ * best_.seconds <= best_.value * seconds) num_buckets_ = i + 1;
  }
}

void SizeSearch::choose_suspects(const SizeQuery& query) {
  constexpr double kRounding = 1 - 1e-13;
  CostCursor cost(query, 0);
  const double price = bound_.value / bound_.seconds * kRounding;
  num_suspects_ = 0;
  std::size_t next = 1;
  for (std::size_t i = 0; i < num_buckets_ && buckets_[i].before < query.limit; ++i) {
    const Bucket& bucket = buckets_[i];
    const std::int64_t end = bucket.before + bucket.count;
    const double lower = lowest_of(bucket.index);
    const double upper = lowest_of(bucket.index + 1);
    cost.seek(bucket.before + 1);
    double rate = price * cost.slope();
    // Every node pays, or none does, and the sizes at both ends are known exactly.
    const bool decided = rate <= lower || rate >= upper;
    if (decided && end <= std::min(cost.last(), query.limit) && cost.contains(bucket.before)) {
      continue;
    }
    // Optimistic value less price: rises with the upper edge's slope, then the lower one's. On a
    // piece of the cost it is concave, so one of its ends or the turn decides.
    const auto gain = [&](double count) {
      const double rising = bucket.value_before + count * upper;
      const double falling = bucket.value_before + bucket.sum - (bucket.count - count) * lower;
      return std::min(rising, falling) -
             price * cost.seconds(static_cast<double>(bucket.before) + count);
    };
    const std::int64_t last = std::min(end - 1, query.limit);
    bool suspect = false;
    for (std::int64_t at = bucket.before; at < last && !suspect;) {
      cost.seek(at + 1);
      rate = price * cost.slope();
      const double from = static_cast<double>(at + 1 - bucket.before);
      at = std::min(last, cost.last());
      const double to = static_cast<double>(at - bucket.before);
      suspect = gain(rate <= lower   ? to
                     : rate >= upper ? from
                                     : std::clamp(bucket.turn, from, to)) > 0;
    }
    if (!suspect) continue;
    suspects_[num_suspects_++] = {i, next};
    next += static_cast<std::size_t>(bucket.count);
  }
}

void SizeSearch::collect_members(const SizeQuery& query) {
  for (std::size_t i = 0; i < num_suspects_; ++i) {
    slots_[static_cast<std::size_t>(buckets_[suspects_[i].bucket].index)] = suspects_[i].begin;
  }
  const Key high = (buckets_[suspects_[0].bucket].index + 1) << kBucketShift;
  const Key low = buckets_[suspects_[num_suspects_ - 1].bucket].index << kBucketShift;
  const auto visit = [&](Key key) {
    std::size_t& slot = slots_[static_cast<std::size_t>(key >> kBucketShift)];
    members_[slot] = key;  // members_[0] takes what is of no interest
    slot += slot != 0 ? 1 : 0;
  };
  // Members are rare: whole blocks without any pass in a few vector instructions.
  constexpr std::size_t kBlock = 32;
  const std::size_t size = query.keys.size();
  const Key* const keys = query.keys.data();
  std::size_t i = 0;
  for (; i + kBlock <= size; i += kBlock) {
    Key any = 0;
    for (std::size_t j = 0; j < kBlock; ++j) {
      any |= static_cast<Key>(keys[i + j] >= low) & static_cast<Key>(keys[i + j] < high);
    }
    if (any == 0) continue;
    for (std::size_t j = 0; j < kBlock; ++j) visit(keys[i + j]);
  }
  for (; i < size; ++i) visit(keys[i]);
  for (std::size_t s = 0; s < num_suspects_; ++s) {
    slots_[static_cast<std::size_t>(buckets_[suspects_[s].bucket].index)] = 0;
  }
}

void SizeSearch::sort_members(std::span<Key> members) {
  constexpr std::size_t kSmall = 64;
  if (members.size() <= kSmall) {
    std::sort(members.begin(), members.end(), std::greater<>());
    return;
  }
  constexpr int kDigitBits = kBucketShift / 2;
  constexpr Key kDigitMask = (1 << kDigitBits) - 1;
  static_assert(kDigitBits * 2 == kBucketShift);
  std::span<Key> from = members;
  std::span<Key> to(sorted_.data(), members.size());
  for (const int shift : {0, kDigitBits}) {
    std::array<std::uint32_t, std::size_t{kDigitMask} + 1> starts{};
    const auto digit = [&](Key key) {
      return static_cast<std::size_t>(kDigitMask - ((key >> shift) & kDigitMask));
    };
    for (const Key key : from) ++starts[digit(key)];
    std::uint32_t sum = 0;
    for (std::uint32_t& start : starts) sum += std::exchange(start, sum);
    for (const Key key : from) to[starts[digit(key)]++] = key;
    std::swap(from, to);
  }
}

void SizeSearch::refine(const SizeQuery& query, const Refined& refined) {
  const Bucket& bucket = buckets_[refined.bucket];
  const std::span<Key> members(members_.data() + refined.begin,
                               static_cast<std::size_t>(bucket.count));
  sort_members(members);
  CostCursor cost(query, bucket.before);
  double value = bucket.value_before;
  const auto steps = std::min<std::int64_t>(bucket.count - 1, query.limit - bucket.before);
  std::int64_t found = 0;
  for (std::int64_t n = 1; n <= steps; ++n) {
    value += survival_of(members[static_cast<std::size_t>(n - 1)]);
    cost.seek(n);
    const Point point{value, cost.seconds(static_cast<double>(n)), bucket.before + n};
    if (!point.better_than(best_)) continue;
    best_ = point;
    found = n;
  }
  if (found == 0) return;
  const auto end = members.begin() + found;
  const Key last = *(end - 1);
  const auto first = std::lower_bound(members.begin(), end, last, std::greater<>());
  choice_.threshold = last;
  choice_.ties = end - first;
  choice_.all_ties = *end != last;  // there is one more: `found` is below the bucket's count
}

SizeChoice SizeSearch::find(const SizeQuery& query) {
  if (members_.size() <= query.keys.size()) {
    members_.resize(query.keys.size() + 1);
    sorted_.resize(query.keys.size());
  }
  fill_buckets(query);
  scan_ends(query);
  choose_suspects(query);
  if (num_suspects_ > 0) {
    collect_members(query);
    for (std::size_t i = 0; i < num_suspects_; ++i) refine(query, suspects_[i]);
  }
  choice_.count = best_.count;
  choice_.value = best_.value;
  choice_.seconds = best_.seconds;
  choice_.limited = beyond_.count > query.limit && beyond_.better_than(best_);
  return choice_;
}

}  // namespace smartspec::schedule
