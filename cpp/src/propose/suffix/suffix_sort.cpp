// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "propose/suffix/suffix_sort.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>

namespace smartspec::suffix {
namespace {

// Ties this deep are rare in ordinary text and endless in repetitive text: doubling takes over.
constexpr std::uint32_t kRadixDepth = 24;

struct Range {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
};

struct Entry {
  std::uint64_t key = 0;
  std::uint32_t position = 0;
};

class Sorter {
 public:
  explicit Sorter(std::span<const TokenId> text) : text_(text) {
    TokenId largest = 0;
    std::size_t tokens = 0;
    for (const TokenId token : text) {
      largest = std::max(largest, token);
      tokens += token != kSeparator ? 1 : 0;
    }
    order_.resize(tokens);
    bits_ = static_cast<std::uint32_t>(std::bit_width(static_cast<std::uint32_t>(largest) + 1U));
    tokens_per_key_ = 64 / bits_;
    // The counting table must not outgrow the text when few tokens have large ids.
    const std::size_t table = std::max<std::size_t>(tokens, 1 << 12);
    while ((static_cast<std::size_t>(largest) >> shift_) >= table) ++shift_;
    num_buckets_ = (static_cast<std::size_t>(largest) >> shift_) + 1;
  }

  std::vector<std::uint32_t> run() {
    const std::uint32_t depth = shift_ == 0 ? 1 : 0;
    const std::vector<std::uint32_t> starts = bucket_by_token();
    std::uint32_t widest = 0;
    for (std::size_t i = 0; i < num_buckets_; ++i) {
      widest = std::max(widest, starts[i + 1] - starts[i]);
    }
    {
      std::vector<Entry> entries(widest);
      for (std::size_t i = 0; i < num_buckets_; ++i) {
        const std::uint32_t size = starts[i + 1] - starts[i];
        if (size < 2) continue;
        for (std::uint32_t j = 0; j < size; ++j) entries[j].position = order_[starts[i] + j];
        refine(std::span(entries).first(size), starts[i], depth);
      }
    }
    if (!deep_.empty()) {
      std::uint32_t sorted = depth;
      while (sorted < kRadixDepth) sorted += tokens_per_key_;
      double_up(sorted);
    }
    return std::move(order_);
  }

 private:
  /// Fills order_ bucket by bucket, each in the order of the text; returns where buckets start.
  std::vector<std::uint32_t> bucket_by_token() {
    std::vector<std::uint32_t> starts(num_buckets_ + 2, 0);
    const auto bucket = [this](TokenId token) { return static_cast<std::size_t>(token) >> shift_; };
    for (const TokenId token : text_) {
      if (token != kSeparator) ++starts[bucket(token) + 2];
    }
    for (std::size_t i = 2; i < starts.size(); ++i) starts[i] += starts[i - 1];
    for (std::size_t p = 0; p < text_.size(); ++p) {
      if (text_[p] == kSeparator) continue;
      order_[starts[bucket(text_[p]) + 1]++] = static_cast<std::uint32_t>(p);
    }
    return starts;
  }

  /// The next tokens to the left, packed so that keys compare as contexts do; zeros follow the
  /// separator, so a key whose last slot is zero ends its context.
  std::uint64_t key_at(std::uint32_t position, std::uint32_t depth) const {
    const TokenId* token = text_.data() + (position - depth);
    std::uint64_t key = 0;
    for (std::uint32_t i = 0; i < tokens_per_key_; ++i, --token) {
      key = (key << bits_) | static_cast<std::uint32_t>(*token + 1LL);
      if (*token == kSeparator) return key << (bits_ * (tokens_per_key_ - 1 - i));
    }
    return key;
  }

  /// Sorts entries that share their first `depth` tokens into order_[begin, ...).
  void refine(std::span<Entry> entries, std::uint32_t begin, std::uint32_t depth) {
    if (depth >= kRadixDepth) {
      for (std::size_t i = 0; i < entries.size(); ++i) order_[begin + i] = entries[i].position;
      deep_.push_back({begin, begin + static_cast<std::uint32_t>(entries.size())});
      return;
    }
    bool sorted = true;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      entries[i].key = key_at(entries[i].position, depth);
      sorted = sorted && (i == 0 || entries[i - 1].key <= entries[i].key);
    }
    if (!sorted) {
      std::sort(entries.begin(), entries.end(),
                [](const Entry& a, const Entry& b) { return a.key < b.key; });
    }
    const std::uint64_t last_slot = (std::uint64_t{1} << bits_) - 1;
    for (std::size_t i = 0, j; i < entries.size(); i = j) {
      for (j = i + 1; j < entries.size() && entries[j].key == entries[i].key;) ++j;
      const std::span<Entry> run = entries.subspan(i, j - i);
      const std::uint32_t run_begin = begin + static_cast<std::uint32_t>(i);
      if (run.size() > 1 && (run[0].key & last_slot) != 0) {
        refine(run, run_begin, depth + tokens_per_key_);
        continue;
      }
      for (std::size_t k = 0; k < run.size(); ++k) order_[run_begin + k] = run[k].position;
      if (run.size() > 1) {
        std::sort(order_.begin() + run_begin, order_.begin() + run_begin + (j - i));
      }
    }
  }

  /// Ranks by the first `sorted` tokens; every separator ranks by itself, so that contexts differ.
  void rank_all() {
    rank_.resize(text_.size());
    std::uint32_t separators = 0;
    for (std::size_t p = 0; p < text_.size(); ++p) {
      if (text_[p] == kSeparator) rank_[p] = separators++;
    }
    first_rank_ = separators;
    std::size_t range = 0;
    for (std::uint32_t i = 0; i < order_.size(); ++i) {
      while (range < deep_.size() && deep_[range].end <= i) ++range;
      const bool tied = range < deep_.size() && deep_[range].begin <= i;
      rank_[order_[i]] = first_rank_ + (tied ? deep_[range].begin : i);
    }
  }

  /// Ties share `sorted` tokens without a separator, so position - sorted stays in the sequence.
  void double_up(std::uint32_t sorted) {
    rank_all();
    std::vector<std::uint64_t> keys;
    std::vector<Range> next;
    for (; !deep_.empty(); sorted *= 2) {
      next.clear();
      for (const Range& range : deep_) {
        keys.clear();
        for (std::uint32_t i = range.begin; i < range.end; ++i) {
          keys.push_back(std::uint64_t{rank_[order_[i] - sorted]} << 32 | order_[i]);
        }
        if (!std::is_sorted(keys.begin(), keys.end())) std::sort(keys.begin(), keys.end());
        split(range, keys, next);
      }
      deep_.swap(next);
    }
  }

  /// Stores the sorted keys of one group. Ranks only get finer, so groups that come later in the
  /// same round may already read them.
  void split(const Range& range, std::span<const std::uint64_t> keys, std::vector<Range>& next) {
    for (std::size_t i = 0, j; i < keys.size(); i = j) {
      const std::uint32_t begin = range.begin + static_cast<std::uint32_t>(i);
      for (j = i; j < keys.size() && keys[j] >> 32 == keys[i] >> 32; ++j) {
        const auto position = static_cast<std::uint32_t>(keys[j]);
        order_[range.begin + j] = position;
        rank_[position] = first_rank_ + begin;
      }
      if (j - i > 1) next.push_back({begin, begin + static_cast<std::uint32_t>(j - i)});
    }
  }

  std::span<const TokenId> text_;
  std::uint32_t bits_ = 0;            // of a token in a key
  std::uint32_t tokens_per_key_ = 0;  // 2 to 64
  std::uint32_t shift_ = 0;           // of a token to its bucket
  std::size_t num_buckets_ = 0;
  std::vector<std::uint32_t> order_;
  std::vector<Range> deep_;  // ascending groups of order_ still tied
  std::vector<std::uint32_t> rank_;
  std::uint32_t first_rank_ = 0;  // rank of order_[0]
};

}  // namespace

std::vector<std::uint32_t> sort_by_left_context(std::span<const TokenId> text) {
  return Sorter(text).run();
}

}  // namespace smartspec::suffix
