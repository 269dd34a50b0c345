// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Binary search for a context, resumable between probes. A text read from a hostile file may be
// unsorted: nothing here trusts what an earlier comparison implies about a later one.
#include <algorithm>
#include <array>

#include "propose/suffix/frozen.hpp"

namespace smartspec::suffix {
namespace {

constexpr std::size_t kLanes = 16;  // more gains nothing: about the misses a core keeps in flight

std::uint32_t middle(std::uint32_t low, std::uint32_t high) { return low + (high - low) / 2; }

void prefetch(const void* address) { __builtin_prefetch(address); }

}  // namespace

FrozenSearch::FrozenSearch(const FrozenSegment& segment, std::span<const TokenId> context,
                           std::uint32_t max_length)
    : segment_(&segment),
      limit_(static_cast<std::uint32_t>(std::min<std::size_t>(context.size(), max_length))) {
  if (limit_ == 0 || context.back() < 0) return;
  last_ = &context.back();
  const std::uint32_t bucket = segment.bucket(*last_);
  if (bucket + std::size_t{1} >= segment.bucket_begin_.size()) return;
  prefetch(segment.bucket_begin_.data() + bucket);
  phase_ = Phase::kStart;
}

bool FrozenSearch::step() {
  switch (phase_) {
    case Phase::kStart:
      start();
      break;
    case Phase::kDone:
      break;
    default:
      if (!aimed_) {
        aim(true);
      } else if (phase_ == Phase::kDescend) {
        descend();
      } else if (phase_ == Phase::kBegin) {
        narrow_begin();
      } else {
        narrow_end();
      }
  }
  return phase_ != Phase::kDone;
}

void FrozenSearch::start() {
  const std::uint32_t bucket = segment_->bucket(*last_);
  low_ = segment_->bucket_begin_[bucket];
  high_ = segment_->bucket_begin_[bucket + 1];
  begin_ = {low_, low_, 0};
  end_ = {high_, high_, 0};
  phase_ = Phase::kDescend;
  if (low_ == high_) return finish();
  aim(false);
}

/// Loads the position in the middle of [low_, high_) and prefetches its context and both elements
/// that may be next; or, if the element itself may not be near yet, prefetches that alone.
void FrozenSearch::aim(bool now) {
  const std::uint32_t* order = segment_->order_.data();
  const std::uint32_t mid = middle(low_, high_);
  aimed_ = now;
  if (!now) return prefetch(order + mid);
  position_ = order[mid];
  const std::uint32_t depth = std::min(low_length_, high_length_);
  prefetch(segment_->text_.data() + (position_ - std::min(position_, depth)));
  prefetch(order + middle(low_, mid));
  prefetch(order + middle(mid, high_));
}

/// How many tokens up to `limit` the contexts share, given that they share `depth`. The separator
/// at text[0] ends every walk to the left; a negative token of the context matches nothing.
std::uint32_t FrozenSearch::agree(std::uint32_t position, std::uint32_t depth,
                                  std::uint32_t limit) const noexcept {
  const TokenId* text = segment_->text_.data() + position;
  if (depth > position) depth = 0;  // only in an unsorted order
  while (depth < limit && *(text - depth) == wanted(depth) && wanted(depth) >= 0) ++depth;
  return depth;
}

void FrozenSearch::descend() {
  const std::uint32_t mid = middle(low_, high_);
  const std::uint32_t length = agree(position_, std::min(low_length_, high_length_), limit_);
  if (length == limit_) {
    match_.length = limit_;
    begin_ = {low_, mid, low_length_};
    end_ = {mid + 1, high_, high_length_};
    return enter_begin();
  }
  if (segment_->text_[position_ - length] < wanted(length)) {
    if (length > low_length_) {
      begin_ = {low_, mid, low_length_};
      low_length_ = length;
    }
    low_ = mid + 1;
  } else {
    if (length > high_length_) {
      end_ = {mid + 1, high_, high_length_};
      high_length_ = length;
    }
    high_ = mid;
  }
  if (low_ < high_) return aim(true);
  match_.length = std::max(low_length_, high_length_);
  if (match_.length == 0) return finish();
  if (high_length_ < match_.length) end_ = {high_, high_, 0};
  if (low_length_ < match_.length) begin_ = {low_, low_, 0};
  enter_begin();
}

void FrozenSearch::enter_begin() {
  phase_ = Phase::kBegin;
  low_ = begin_.first;
  high_ = begin_.last;
  low_length_ = high_length_ = begin_.floor;
  if (low_ == high_) return enter_end();
  aim(false);
}

void FrozenSearch::narrow_begin() {
  if (agree(position_, begin_.floor, match_.length) >= match_.length) {
    high_ = middle(low_, high_);
  } else {
    low_ = middle(low_, high_) + 1;
  }
  if (low_ < high_) return aim(true);
  enter_end();
}

void FrozenSearch::enter_end() {
  match_.begin = low_;
  phase_ = Phase::kEnd;
  low_ = end_.first;
  high_ = end_.last;
  low_length_ = high_length_ = end_.floor;
  if (low_ == high_) return finish();
  aim(false);
}

void FrozenSearch::narrow_end() {
  if (agree(position_, end_.floor, match_.length) >= match_.length) {
    low_ = middle(low_, high_) + 1;
  } else {
    high_ = middle(low_, high_);
  }
  if (low_ < high_) return aim(true);
  finish();
}

void FrozenSearch::finish() {
  phase_ = Phase::kDone;
  match_.end = low_;
  if (match_.length == 0) {
    match_ = {};
  } else if (!segment_->dead_.empty()) {
    skip_forgotten();
  }
}

/// If the whole interval is forgotten, the longest live match is that of the nearest live element
/// on either side. Rare, so not resumable.
void FrozenSearch::skip_forgotten() {
  const FrozenSegment& segment = *segment_;
  if (segment.next_live(match_.begin, match_.end) < match_.end) return;
  const std::uint32_t bucket = segment.bucket(*last_);
  const std::uint32_t first = segment.bucket_begin_[bucket];
  const std::uint32_t last = segment.bucket_begin_[bucket + 1];
  const std::uint32_t left = segment.previous_live(match_.begin, first);
  const std::uint32_t right = segment.next_live(match_.end, last);
  std::uint32_t length = 0;
  if (left > first) length = agree(segment.order_[left - 1], 0, limit_);
  if (right < last) length = std::max(length, agree(segment.order_[right], 0, limit_));
  if (length == 0) {
    match_ = {};
    return;
  }
  const auto longer = [&](std::uint32_t position) { return agree(position, 0, length) >= length; };
  const auto* order = segment.order_.data();
  const auto* begin = std::partition_point(order + first, order + match_.begin,
                                           [&](std::uint32_t p) { return !longer(p); });
  const auto* end = std::partition_point(order + match_.end, order + last, longer);
  match_ = {static_cast<std::uint32_t>(begin - order), static_cast<std::uint32_t>(end - order),
            length};
}

void run_interleaved(std::span<FrozenSearch> searches) {
  std::array<FrozenSearch*, kLanes> lanes{};
  std::size_t busy = 0;
  std::size_t next = 0;
  while (busy > 0 || next < searches.size()) {
    while (busy < kLanes && next < searches.size()) lanes[busy++] = &searches[next++];
    for (std::size_t i = 0; i < busy;) {
      if (lanes[i]->step()) {
        ++i;
      } else {
        lanes[i] = lanes[--busy];
      }
    }
  }
}

}  // namespace smartspec::suffix
