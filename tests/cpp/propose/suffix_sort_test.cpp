// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The sort of the frozen tier by a linear check: pathological texts of 10^6 tokens (10^5 under
// AddressSanitizer) and random ones of many shapes.
#include "propose/suffix/suffix_sort.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "propose/frozen_test_util.hpp"

namespace smartspec::suffix {
namespace {

/// Linear in the text: neighbours compare by their last token, then by the rank of what precedes.
void check_sorted(std::span<const TokenId> text, std::span<const std::uint32_t> order) {
  std::vector<std::uint32_t> rank(text.size(), FrozenSegment::kAll);
  std::uint32_t separators = 0;
  for (std::size_t p = 0; p < text.size(); ++p) {
    if (text[p] == kSeparator) rank[p] = separators++;
  }
  ASSERT_EQ(order.size() + separators, text.size());
  for (std::uint32_t i = 0; i < order.size(); ++i) {
    ASSERT_EQ(rank[order[i]], FrozenSegment::kAll) << "not a permutation";
    rank[order[i]] = separators + i;
  }
  for (std::size_t i = 1; i < order.size(); ++i) {
    const std::uint32_t a = order[i - 1];
    const std::uint32_t b = order[i];
    const bool ascending = text[a] != text[b] ? text[a] < text[b] : rank[a - 1] < rank[b - 1];
    ASSERT_TRUE(ascending) << "order[" << i << "]";
  }
}

Tokens fibonacci_word(std::uint32_t size) {
  Tokens word = {0};
  Tokens before = {1};
  while (word.size() < size) {
    Tokens next = word;
    next.insert(next.end(), before.begin(), before.end());
    before = std::exchange(word, std::move(next));
  }
  word.resize(size);
  return word;
}

std::map<const char*, std::vector<Tokens>> pathological_texts() {
  Random random(4);
  Tokens distinct(kLong);
  std::iota(distinct.begin(), distinct.end(), 0);
  Tokens period(kLong);
  for (std::uint32_t i = 0; i < kLong; ++i) period[i] = static_cast<TokenId>(i % 7);
  const Tokens copied = random.tokens(kLong / 8, 300);
  Tokens sparse = random.tokens(kLong / 8, 5);
  for (TokenId& t : sparse) t = t < 3 ? t : std::numeric_limits<TokenId>::max() - t;
  Tokens wide = random.tokens(kLong / 8, std::numeric_limits<TokenId>::max());
  return {
      {"one token", {Tokens(kLong, 5)}},
      {"token 0", {Tokens(kLong / 2, 0), Tokens(kLong / 2, 0)}},
      {"Fibonacci word", {fibonacci_word(kLong)}},
      {"all distinct", {distinct}},
      {"descending", {Tokens(distinct.rbegin(), distinct.rend())}},
      {"period", {period}},
      {"copies", std::vector<Tokens>(8, copied)},
      {"sequences of one token", std::vector<Tokens>(kLong / 8, Tokens(1, 3))},
      {"empty sequences", std::vector<Tokens>(1000)},
      {"few large ids", {sparse, sparse}},
      {"many large ids", {wide, wide}},
  };
}

TEST(SuffixSort, SortsPathologicalTexts) {
  for (const auto& [name, sequences] : pathological_texts()) {
    SCOPED_TRACE(name);
    const FrozenSegment segment = build(sequences);
    check_sorted(segment.text(), segment.order());
    ASSERT_FALSE(HasFatalFailure());
    const Tokens& first = sequences.front();
    const auto most = static_cast<std::uint32_t>(first.size());
    if (most == 0) continue;
    // The whole first sequence occurs as often as sequences equal it, and nothing is longer.
    Tokens context = first;
    context.insert(context.begin(), 12345);
    const FrozenMatch match = segment.longest_match(context);
    EXPECT_EQ(match.length, most);
    EXPECT_EQ(segment.count(match),
              static_cast<std::uint32_t>(std::count(sequences.begin(), sequences.end(), first)));
    EXPECT_FALSE(segment.best_continuation(match).has_value());
    // One token less on the right: continued by the last one.
    context.pop_back();
    if (most > 1) {
      EXPECT_EQ(segment.best_continuation(segment.longest_match(context))->token, first.back());
    }
  }
}

TEST(SuffixSort, SortsRandomTextsOfManyShapes) {
  Random random(5);
  for (int i = 0; i < kSegments / 3; ++i) {
    const std::uint32_t vocab = 1 + random.below(1U << random.below(20));
    std::vector<Tokens> sequences(1 + random.below(6));
    for (Tokens& s : sequences) s = random.tokens(random.below(400), vocab);
    // A long copy with a change reaches the doubling rounds.
    sequences.push_back(sequences.front());
    if (!sequences.back().empty()) sequences.back()[0] = random.token(vocab);
    const FrozenSegment segment = build(sequences);
    check_sorted(segment.text(), segment.order());
    ASSERT_FALSE(HasFatalFailure()) << "text " << i;
  }
}

}  // namespace
}  // namespace smartspec::suffix
