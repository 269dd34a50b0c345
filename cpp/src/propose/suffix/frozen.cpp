// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "propose/suffix/frozen.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <stdexcept>
#include <string>
#include <utility>

#include "smartspec/error.hpp"

namespace smartspec::suffix {
namespace {

// One bucket per 16 tokens: 0.25 bytes per token at most.
constexpr std::size_t kTokensPerBucket = 16;
constexpr std::size_t kFewestBuckets = 16;

/// How often each token was seen: open addressing, on the stack while there are few.
class Tally {
 public:
  void add(TokenId token) {
    Continuation* slot = find(token);
    if (slot->count++ > 0) return;
    slot->token = token;
    if (++used_ * 2 > slots_.size()) grow();
  }
  std::span<const Continuation> slots() const noexcept { return slots_; }

 private:
  Continuation* find(TokenId token) noexcept {
    const std::size_t mask = slots_.size() - 1;
    std::size_t i = (static_cast<std::uint32_t>(token) * 0x9E3779B1U >> 7) & mask;
    while (slots_[i].count > 0 && slots_[i].token != token) i = (i + 1) & mask;
    return &slots_[i];
  }
  void grow() {
    std::vector<Continuation> old(slots_.begin(), slots_.end());
    heap_.assign(old.size() * 4, {});
    slots_ = heap_;
    for (const Continuation& entry : old) {
      if (entry.count > 0) *find(entry.token) = entry;
    }
  }

  std::array<Continuation, 64> few_{};
  std::vector<Continuation> heap_;
  std::span<Continuation> slots_ = few_;
  std::size_t used_ = 0;
};

[[noreturn]] void reject(const std::string& what) { throw FormatError("frozen segment: " + what); }

std::string at(std::size_t index, long long value) {
  return "[" + std::to_string(index) + "] is " + std::to_string(value);
}

void check_text(std::span<const TokenId> text) {
  if (text.empty() || text.size() > FrozenSegment::kAll) {
    reject("text.size() is " + std::to_string(text.size()) + ", must be 1 to 2^32 - 1");
  }
  if (text.front() != kSeparator) reject("text" + at(0, text.front()) + ", must be -1");
  if (text.back() != kSeparator) {
    reject("text" + at(text.size() - 1, text.back()) + ", must be -1 at the end");
  }
  for (std::size_t p = 0; p < text.size(); ++p) {
    if (text[p] < kSeparator) reject("text" + at(p, text[p]) + ", must be -1 or a token");
  }
}

void check_order(std::span<const TokenId> text, std::span<const std::uint32_t> order) {
  std::vector<bool> taken(text.size());
  std::size_t tokens = 0;
  for (std::size_t p = 0; p < text.size(); ++p) {
    taken[p] = text[p] == kSeparator;
    tokens += text[p] == kSeparator ? 0 : 1;
  }
  if (order.size() != tokens) {
    reject("order.size() is " + std::to_string(order.size()) + ", must be the number of tokens, " +
           std::to_string(tokens));
  }
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (order[i] >= text.size()) {
      reject("order" + at(i, order[i]) + ", must be below " + std::to_string(text.size()));
    }
    if (taken[order[i]]) {
      reject("order" + at(i, order[i]) + ", a separator or a position that stands before");
    }
    taken[order[i]] = true;
  }
}

}  // namespace

FrozenSegment FrozenSegment::build(std::span<const std::span<const TokenId>> sequences) {
  std::size_t size = 1;
  for (const auto& sequence : sequences) size += sequence.size() + 1;
  if (size > kAll) throw std::length_error("frozen segment: 2^32 tokens or more");
  FrozenSegment segment;
  std::vector<TokenId>& text = segment.own_text_;
  text.reserve(size);
  text.push_back(kSeparator);
  for (const auto& sequence : sequences) {
    const auto end =
        std::find_if(sequence.begin(), sequence.end(), [](TokenId t) { return t < 0; });
    text.insert(text.end(), sequence.begin(), end);
    text.push_back(kSeparator);
  }
  segment.own_order_ = sort_by_left_context(text);
  segment.text_ = text;
  segment.order_ = segment.own_order_;
  segment.index_text();
  return segment;
}

FrozenSegment FrozenSegment::view(std::span<const TokenId> text,
                                  std::span<const std::uint32_t> order,
                                  std::shared_ptr<const void> owner) {
  check_text(text);
  check_order(text, order);
  FrozenSegment segment;
  segment.text_ = text;
  segment.order_ = order;
  segment.owner_ = std::move(owner);
  segment.index_text();
  return segment;
}

void FrozenSegment::index_text() {
  TokenId largest = 0;
  std::size_t separators = 0;
  for (const TokenId token : text_) {
    largest = std::max(largest, token);
    separators += token == kSeparator ? 1 : 0;
  }
  const std::size_t buckets = std::max(order_.size() / kTokensPerBucket, kFewestBuckets);
  while (bucket(largest) >= buckets) ++shift_;
  bucket_begin_.assign(bucket(largest) + std::size_t{2}, 0);
  starts_.reserve(separators);
  for (std::size_t p = 0; p < text_.size(); ++p) {
    if (text_[p] == kSeparator) {
      starts_.push_back(static_cast<std::uint32_t>(p + 1));  // the last one: text_.size()
    } else {
      ++bucket_begin_[bucket(text_[p]) + 1];
    }
  }
  for (std::size_t i = 1; i < bucket_begin_.size(); ++i) bucket_begin_[i] += bucket_begin_[i - 1];
}

FrozenMatch FrozenSegment::longest_match(std::span<const TokenId> context,
                                         std::uint32_t max_length) const {
  FrozenSearch search(*this, context, max_length);
  while (search.step()) {
  }
  return search.result();
}

/// Calls its visitor with up to `most` positions of a match, evenly spread over the live ones.
class FrozenSegment::OccurrenceWalk {
 public:
  OccurrenceWalk(const FrozenSegment& segment, const FrozenMatch& match, std::uint32_t most)
      : segment_(segment), match_(segment.clip(match)), live_(segment.count(match)) {
    taken_ = std::min(live_, most);
  }
  std::uint32_t size() const noexcept { return taken_; }

  template <class Visitor>
  void visit(Visitor&& visitor) const {
    std::uint32_t rank = match_.begin;
    std::uint64_t seen = 0;  // live occurrences before rank
    for (std::uint64_t i = 0; i < taken_; ++i) {
      const std::uint64_t target = i * live_ / taken_;
      rank = advance(rank, static_cast<std::uint32_t>(target - seen));
      seen = target;
      visitor(segment_.order_[rank]);
    }
  }

 private:
  /// The live rank with `skip` live ones from `rank` on before it.
  std::uint32_t advance(std::uint32_t rank, std::uint32_t skip) const noexcept {
    if (segment_.dead_.empty()) return rank + skip;
    std::uint64_t word = ~segment_.dead_[rank / 64] & (~std::uint64_t{0} << (rank % 64));
    std::uint32_t base = rank / 64;
    for (;;) {
      const auto live = static_cast<std::uint32_t>(std::popcount(word));
      if (skip < live) break;
      skip -= live;
      word = ~segment_.dead_[++base];
    }
    for (; skip > 0; --skip) word &= word - 1;
    return base * 64 + static_cast<std::uint32_t>(std::countr_zero(word));
  }

  const FrozenSegment& segment_;
  FrozenMatch match_;
  std::uint32_t live_;
  std::uint32_t taken_;
};

FrozenMatch FrozenSegment::clip(const FrozenMatch& match) const noexcept {
  FrozenMatch clipped = match;
  clipped.end = std::min(match.end, num_tokens());
  clipped.begin = std::min(match.begin, clipped.end);
  return clipped;
}

std::uint32_t FrozenSegment::count(const FrozenMatch& match) const {
  const auto [begin, end, length] = clip(match);
  if (dead_.empty() || begin == end) return end - begin;
  const std::uint32_t first = begin / 64;
  const std::uint32_t last = (end - 1) / 64;
  std::uint32_t dead = 0;
  for (std::uint32_t i = first; i <= last; ++i) {
    std::uint64_t word = dead_[i];
    if (i == first) word &= ~std::uint64_t{0} << (begin % 64);
    if (i == last) word &= ~std::uint64_t{0} >> (63 - (end - 1) % 64);
    dead += static_cast<std::uint32_t>(std::popcount(word));
  }
  return end - begin - dead;
}

std::size_t FrozenSegment::sample(const FrozenMatch& match,
                                  std::span<std::uint32_t> positions) const {
  const auto most = static_cast<std::uint32_t>(std::min<std::size_t>(positions.size(), kAll));
  const OccurrenceWalk walk(*this, match, most);
  std::size_t written = 0;
  walk.visit([&](std::uint32_t position) { positions[written++] = position; });
  return written;
}

std::size_t FrozenSegment::continuations(const FrozenMatch& match, std::span<Continuation> out,
                                         std::uint32_t max_scan) const {
  const OccurrenceWalk walk(*this, match, max_scan);
  Tally tally;
  walk.visit([&](std::uint32_t position) {
    const TokenId next = text_[position + 1];
    if (next != kSeparator) tally.add(next);
  });
  std::size_t size = 0;
  for (const Continuation& entry : tally.slots()) {
    if (entry.count == 0) continue;
    const auto before = [&entry](const Continuation& other) {
      return other.count > entry.count || (other.count == entry.count && other.token < entry.token);
    };
    std::size_t i = size;
    while (i > 0 && !before(out[i - 1])) --i;
    if (i == out.size()) continue;
    size = std::min(size + 1, out.size());
    std::move_backward(out.begin() + static_cast<std::ptrdiff_t>(i),
                       out.begin() + static_cast<std::ptrdiff_t>(size - 1),
                       out.begin() + static_cast<std::ptrdiff_t>(size));
    out[i] = entry;
  }
  return size;
}

std::optional<Continuation> FrozenSegment::best_continuation(const FrozenMatch& match,
                                                             std::uint32_t max_scan) const {
  if (match.end - match.begin == 1 && match.end <= num_tokens() && max_scan > 0 &&
      dead_.empty()) {  // the common case
    const TokenId next = text_[order_[match.begin] + 1];
    return next == kSeparator ? std::nullopt : std::optional(Continuation{next, 1});
  }
  Continuation best;
  if (continuations(match, std::span(&best, 1), max_scan) == 0) return std::nullopt;
  return best;
}

std::uint32_t FrozenSegment::forget(std::span<const std::uint32_t> sequences) {
  for (const std::uint32_t index : sequences) {
    if (index < num_sequences()) continue;
    throw std::invalid_argument("sequence is " + std::to_string(index) + ", must be below " +
                                std::to_string(num_sequences()));
  }
  std::vector<bool> leaving(text_.size());
  std::vector<bool> after = forgotten_;
  after.resize(num_sequences());
  std::uint32_t fresh = 0;
  for (const std::uint32_t index : sequences) {
    if (after[index]) continue;
    after[index] = true;
    ++fresh;
    std::fill_n(leaving.begin() + starts_[index], sequence(index).size(), true);
  }
  if (fresh == 0) return 0;
  if (dead_.empty()) dead_.assign((order_.size() + 63) / 64, 0);
  forgotten_ = std::move(after);
  for (std::uint32_t rank = 0; rank < order_.size(); ++rank) {
    if (!leaving[order_[rank]]) continue;
    dead_[rank / 64] |= std::uint64_t{1} << (rank % 64);
    ++num_dead_;
  }
  return fresh;
}

bool FrozenSegment::forgotten(std::uint32_t sequence) const {
  return sequence < forgotten_.size() && forgotten_[sequence];
}

std::span<const TokenId> FrozenSegment::sequence(std::uint32_t index) const {
  return text_.subspan(starts_[index], starts_[index + 1] - 1 - starts_[index]);
}

std::uint32_t FrozenSegment::sequence_of(std::uint32_t position) const {
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), position);
  return after == starts_.begin() ? 0 : static_cast<std::uint32_t>(after - starts_.begin()) - 1;
}

std::size_t FrozenSegment::bytes() const noexcept {
  return sizeof(*this) + text_.size_bytes() + order_.size_bytes() +
         (starts_.capacity() + bucket_begin_.capacity()) * sizeof(std::uint32_t) +
         dead_.capacity() * sizeof(std::uint64_t) + forgotten_.capacity() / 8;
}

/// The first live rank in [rank, end), or end.
std::uint32_t FrozenSegment::next_live(std::uint32_t rank, std::uint32_t end) const noexcept {
  while (rank < end && dead(rank)) {
    // Whole words at once: a forgotten run may be as long as the segment.
    const std::uint64_t live = ~dead_[rank / 64] >> (rank % 64);
    if (live != 0) return std::min(rank + static_cast<std::uint32_t>(std::countr_zero(live)), end);
    rank = std::min((rank / 64 + 1) * 64, end);
  }
  return rank;
}

/// One past the last live rank in [begin, rank), or begin.
std::uint32_t FrozenSegment::previous_live(std::uint32_t rank, std::uint32_t begin) const noexcept {
  while (rank > begin && dead(rank - 1)) {
    const std::uint32_t last = rank - 1;
    const std::uint64_t live = ~dead_[last / 64] << (63 - last % 64);
    if (live != 0) {
      return std::max(rank - static_cast<std::uint32_t>(std::countl_zero(live)), begin);
    }
    rank = std::max(last / 64 * 64, begin);
  }
  return rank;
}

}  // namespace smartspec::suffix
