// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The obviously right answer to every question about contexts: all substrings in a map.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <span>
#include <vector>

#include "smartspec/types.hpp"

namespace smartspec::testing {

using Tokens = std::vector<TokenId>;

class SubstringOracle {
 public:
  explicit SubstringOracle(std::size_t max_length) : max_length_(max_length) {}

  void add(std::span<const TokenId> sequence) {
    for (std::size_t i = 0; i < sequence.size(); ++i) {
      for (std::size_t n = 0; n <= max_length_ && i + n <= sequence.size(); ++n) {
        Context& context = contexts_[Tokens(sequence.begin() + static_cast<std::ptrdiff_t>(i),
                                            sequence.begin() + static_cast<std::ptrdiff_t>(i + n))];
        ++context.count;
        if (i + n < sequence.size()) ++context.next[sequence[i + n]];
      }
    }
  }

  [[nodiscard]] std::uint32_t count(std::span<const TokenId> context) const {
    const auto found = contexts_.find(Tokens(context.begin(), context.end()));
    return found == contexts_.end() ? 0 : found->second.count;
  }
  /// Tokens of the longest suffix of `context` that occurs, up to max_length.
  [[nodiscard]] std::uint32_t longest_match(std::span<const TokenId> context) const {
    for (std::size_t n = std::min(context.size(), max_length_); n > 0; --n) {
      if (count(context.last(n)) > 0) return static_cast<std::uint32_t>(n);
    }
    return 0;
  }
  /// How often the most frequent continuation follows, and how often `token` does.
  [[nodiscard]] std::uint32_t best_count(std::span<const TokenId> context) const {
    const auto found = contexts_.find(Tokens(context.begin(), context.end()));
    std::uint32_t best = 0;
    if (found == contexts_.end()) return 0;
    for (const auto& [token, count] : found->second.next) best = std::max(best, count);
    return best;
  }
  [[nodiscard]] std::uint32_t next_count(std::span<const TokenId> context, TokenId token) const {
    const auto found = contexts_.find(Tokens(context.begin(), context.end()));
    if (found == contexts_.end()) return 0;
    const auto next = found->second.next.find(token);
    return next == found->second.next.end() ? 0 : next->second;
  }

 private:
  struct Context {
    std::uint32_t count = 0;
    std::map<TokenId, std::uint32_t> next;
  };
  std::size_t max_length_;
  std::map<Tokens, Context> contexts_;
};

inline Tokens random_tokens(std::mt19937& random, std::size_t size, TokenId vocab_size) {
  Tokens tokens(size);
  for (TokenId& token : tokens) {
    token = static_cast<TokenId>(random() % static_cast<std::uint32_t>(vocab_size));
  }
  return tokens;
}

/// Text that repeats itself: copies of earlier stretches with some noise between them.
inline Tokens repetitive_tokens(std::mt19937& random, std::size_t size, TokenId vocab_size) {
  Tokens tokens = random_tokens(random, std::min<std::size_t>(size, 3), vocab_size);
  while (tokens.size() < size) {
    const std::size_t begin = random() % tokens.size();
    const std::size_t count = 1 + random() % 12;
    for (std::size_t i = 0; i < count && tokens.size() < size; ++i) {
      tokens.push_back(tokens[begin + i % (tokens.size() - begin)]);
    }
    tokens.push_back(static_cast<TokenId>(random() % static_cast<std::uint32_t>(vocab_size)));
  }
  tokens.resize(size);
  return tokens;
}

}  // namespace smartspec::testing
