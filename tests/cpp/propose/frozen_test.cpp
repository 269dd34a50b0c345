// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The frozen tier against brute force: 5000 random segments of 100 queries (1500 segments under
// AddressSanitizer), and arrays a hostile file may hold.
#include "propose/suffix/frozen.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "propose/frozen_test_util.hpp"
#include "smartspec/error.hpp"

namespace smartspec::suffix {
namespace {

/// Everything the segment answers, by looking at every position.
class Oracle {
 public:
  explicit Oracle(const std::vector<Tokens>& sequences) : sequences_(sequences) {}
  void forget(std::uint32_t sequence) { forgotten_.insert(sequence); }

  std::uint32_t common(std::uint32_t s, std::size_t p, std::span<const TokenId> context) const {
    std::uint32_t n = 0;
    while (n < context.size() && n <= p && context[context.size() - 1 - n] >= 0 &&
           sequences_[s][p - n] == context[context.size() - 1 - n]) {
      ++n;
    }
    return n;
  }
  template <class Visitor>
  void each(Visitor&& visitor) const {
    for (std::uint32_t s = 0; s < sequences_.size(); ++s) {
      if (forgotten_.count(s) > 0) continue;
      for (std::size_t p = 0; p < sequences_[s].size(); ++p) visitor(s, p);
    }
  }
  std::uint32_t longest(std::span<const TokenId> context, std::uint32_t max_length) const {
    std::uint32_t best = 0;
    each([&](std::uint32_t s, std::size_t p) { best = std::max(best, common(s, p, context)); });
    return std::min(best, max_length);
  }
  /// Positions in the text of the last `length` tokens of the context.
  std::set<std::uint32_t> occurrences(std::span<const TokenId> context,
                                      std::uint32_t length) const {
    std::vector<std::uint32_t> starts(1, 1);
    for (const Tokens& s : sequences_) {
      starts.push_back(starts.back() + static_cast<std::uint32_t>(s.size()) + 1);
    }
    std::set<std::uint32_t> found;
    each([&](std::uint32_t s, std::size_t p) {
      if (common(s, p, context) >= length) found.insert(starts[s] + static_cast<std::uint32_t>(p));
    });
    return found;
  }

 private:
  const std::vector<Tokens>& sequences_;
  std::set<std::uint32_t> forgotten_;
};

std::vector<Continuation> ranked(const FrozenSegment& segment,
                                 const std::set<std::uint32_t>& found) {
  std::map<TokenId, std::uint32_t> counts;
  for (const std::uint32_t p : found) ++counts[segment.text()[p + 1]];
  counts.erase(kSeparator);
  std::vector<Continuation> out;
  for (const auto& [token, count] : counts) out.push_back({token, count});
  std::stable_sort(out.begin(), out.end(),
                   [](const Continuation& a, const Continuation& b) { return a.count > b.count; });
  return out;
}

void check_match(const FrozenSegment& segment, const FrozenMatch& match, const Oracle& oracle,
                 std::span<const TokenId> context, std::uint32_t max_length) {
  ASSERT_EQ(match.length, oracle.longest(context, max_length));
  if (match.length == 0) {
    ASSERT_EQ(match, FrozenMatch{});
    ASSERT_FALSE(segment.best_continuation(match).has_value());
    return;
  }
  const std::set<std::uint32_t> found = oracle.occurrences(context, match.length);
  ASSERT_EQ(segment.count(match), found.size());
  std::vector<std::uint32_t> positions(found.size() + 3);
  ASSERT_EQ(segment.sample(match, positions), found.size());
  positions.resize(found.size());
  ASSERT_EQ(std::set<std::uint32_t>(positions.begin(), positions.end()), found);

  std::vector<std::uint32_t> few(found.size() / 2);
  ASSERT_EQ(segment.sample(match, few), few.size());
  const std::set<std::uint32_t> distinct(few.begin(), few.end());
  ASSERT_EQ(distinct.size(), few.size());
  ASSERT_TRUE(std::includes(found.begin(), found.end(), distinct.begin(), distinct.end()));

  std::vector<Continuation> expected = ranked(segment, found);
  const auto best = segment.best_continuation(match);
  ASSERT_EQ(best.has_value(), !expected.empty());
  if (best) {
    ASSERT_EQ(*best, expected.front());
  }
  expected.resize(std::min<std::size_t>(expected.size(), 2));
  std::vector<Continuation> top(2);
  top.resize(segment.continuations(match, top));
  ASSERT_EQ(top, expected);
}

/// Half of them a piece of a sequence with perhaps one token changed.
Tokens make_context(Random& random, const std::vector<Tokens>& sequences, std::uint32_t vocab) {
  Tokens context = random.tokens(random.below(9), vocab + 1);
  if (sequences.empty() || random.below(2) == 0) return context;
  const Tokens& from = sequences[random.below(static_cast<std::uint32_t>(sequences.size()))];
  const std::uint32_t end = random.below(static_cast<std::uint32_t>(from.size()) + 1);
  const std::uint32_t begin = random.below(end + 1);
  context.insert(context.end(), from.begin() + begin, from.begin() + end);
  if (!context.empty() && random.below(3) == 0) {
    context[random.below(static_cast<std::uint32_t>(context.size()))] = random.token(vocab + 1);
  }
  if (!context.empty() && random.below(20) == 0) {
    context[random.below(static_cast<std::uint32_t>(context.size()))] = kSeparator;
  }
  return context;
}

std::vector<Tokens> make_sequences(Random& random, std::uint32_t vocab) {
  std::vector<Tokens> sequences(random.below(9));
  for (Tokens& s : sequences) s = random.tokens(random.below(40), vocab);
  if (sequences.size() > 2) sequences.back() = sequences.front();  // whole contexts tie
  return sequences;
}

TEST(Frozen, EqualsBruteForce) {
  Random random(1);
  for (int i = 0; i < kSegments; ++i) {
    const std::uint32_t vocab = 1 + random.below(i % 3 == 0 ? 60 : 4);
    const std::vector<Tokens> sequences = make_sequences(random, vocab);
    const FrozenSegment segment = build(sequences);
    const Oracle oracle(sequences);
    ASSERT_EQ(segment.num_sequences(), sequences.size());
    for (std::uint32_t s = 0; s < sequences.size(); ++s) {
      const auto tokens = segment.sequence(s);
      ASSERT_EQ(Tokens(tokens.begin(), tokens.end()), sequences[s]);
      if (tokens.empty()) continue;
      const auto start = static_cast<std::uint32_t>(tokens.data() - segment.text().data());
      ASSERT_EQ(segment.sequence_of(start), s);
      ASSERT_EQ(segment.sequence_of(start + static_cast<std::uint32_t>(tokens.size()) - 1), s);
    }
    for (int q = 0; q < kQueries; ++q) {
      const Tokens context = make_context(random, sequences, vocab);
      const std::uint32_t most = random.below(2) == 0 ? random.below(12) : FrozenSegment::kAll;
      check_match(segment, segment.longest_match(context, most), oracle, context, most);
      ASSERT_FALSE(HasFatalFailure()) << "segment " << i << " query " << q;
    }
  }
}

TEST(Frozen, ForgettingEqualsAFreshBuildWithout) {
  Random random(2);
  for (int i = 0; i < kSegments; ++i) {
    const std::uint32_t vocab = 1 + random.below(4);
    const std::vector<Tokens> sequences = make_sequences(random, vocab);
    FrozenSegment segment = build(sequences);
    Oracle oracle(sequences);
    std::vector<Tokens> left;
    std::vector<std::uint32_t> going;
    const std::uint32_t odds = 1 + random.below(3);
    for (std::uint32_t s = 0; s < sequences.size(); ++s) {
      if (random.below(odds) > 0) {
        left.push_back(sequences[s]);
        continue;
      }
      oracle.forget(s);
      if (random.below(2) == 0) {
        going.push_back(s);
      } else {
        ASSERT_TRUE(segment.forget(s));
        ASSERT_FALSE(segment.forget(s));
      }
    }
    ASSERT_EQ(segment.forget(going), going.size());
    const FrozenSegment fresh = build(left);
    ASSERT_EQ(segment.num_live_tokens(), fresh.num_tokens());
    for (int q = 0; q < kQueries / 2; ++q) {
      const Tokens context = make_context(random, sequences, vocab);
      const FrozenMatch match = segment.longest_match(context);
      check_match(segment, match, oracle, context, FrozenSegment::kAll);
      ASSERT_FALSE(HasFatalFailure()) << "segment " << i << " query " << q;
      const FrozenMatch other = fresh.longest_match(context);
      ASSERT_EQ(match.length, other.length);
      ASSERT_EQ(segment.count(match), fresh.count(other));
      ASSERT_EQ(segment.best_continuation(match), fresh.best_continuation(other));
    }
  }
}

TEST(Frozen, ForgettingSpansManyWordsOfTheBitmap) {
  std::vector<Tokens> sequences(40, Tokens(50, 7));
  FrozenSegment segment = build(sequences);
  Oracle oracle(sequences);
  Random random(3);
  std::vector<std::uint32_t> order(sequences.size());
  std::iota(order.begin(), order.end(), 0U);
  for (std::size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[random.below(static_cast<std::uint32_t>(i))]);
  }
  for (const std::uint32_t s : order) {
    ASSERT_TRUE(segment.forget(s));
    ASSERT_TRUE(segment.forgotten(s));
    oracle.forget(s);
    for (const std::uint32_t size : {1U, 3U, 49U, 50U, 51U}) {
      const Tokens context(size, 7);
      check_match(segment, segment.longest_match(context), oracle, context, FrozenSegment::kAll);
      ASSERT_FALSE(HasFatalFailure());
    }
  }
  EXPECT_EQ(segment.num_live_tokens(), 0U);
  EXPECT_THROW(segment.forget(40), std::invalid_argument);
}

TEST(Frozen, NoContextCrossesASeparator) {
  const FrozenSegment segment = build({{1, 2}, {3, 4}, {}, {5}});
  EXPECT_EQ(segment.longest_match(Tokens{2, 3, 4}).length, 2U);
  EXPECT_EQ(segment.longest_match(Tokens{2, 3}).length, 1U);
  EXPECT_EQ(segment.longest_match(Tokens{kSeparator, 3}).length, 1U);
  EXPECT_EQ(segment.longest_match(Tokens{2, kSeparator}).length, 0U);
  EXPECT_EQ(segment.longest_match(Tokens{1, 2, kSeparator, 3, 4}).length, 2U);
  EXPECT_EQ(segment.longest_match(Tokens{}).length, 0U);
  EXPECT_EQ(segment.longest_match(Tokens{1, 2}, 0).length, 0U);
  EXPECT_EQ(segment.longest_match(Tokens{std::numeric_limits<TokenId>::max()}).length, 0U);
  EXPECT_FALSE(segment.best_continuation(segment.longest_match(Tokens{1, 2})).has_value());
}

TEST(Frozen, NegativeTokensEndTheirSequence) {
  const FrozenSegment segment = build({{1, 2, -1, 3}, {-7}, {4, 5}});
  ASSERT_EQ(segment.num_sequences(), 3U);
  EXPECT_EQ(segment.sequence(0).size(), 2U);
  EXPECT_EQ(segment.sequence(1).size(), 0U);
  EXPECT_EQ(segment.longest_match(Tokens{3}).length, 0U);
  EXPECT_EQ(segment.longest_match(Tokens{4, 5}).length, 2U);
}

TEST(Frozen, EmptyAndTooLarge) {
  const FrozenSegment empty = build({});
  EXPECT_EQ(empty.num_sequences(), 0U);
  EXPECT_EQ(empty.num_tokens(), 0U);
  EXPECT_EQ(empty.longest_match(Tokens{0}), FrozenMatch{});
  const Tokens piece(1 << 20, 1);
  const std::vector<std::span<const TokenId>> many(4096,
                                                   piece);  // 2^32 tokens, one piece of memory
  EXPECT_THROW((void)FrozenSegment::build(many), std::length_error);
}

TEST(Frozen, ScansNoMoreThanAskedAndSpreadsSamples) {
  // The context {9} is followed by 1 after 100 different tokens, by 2 after 50 larger ones.
  std::vector<Tokens> sequences;
  for (TokenId i = 0; i < 150; ++i) sequences.push_back({100 + i, 9, i < 100 ? 1 : 2});
  const FrozenSegment segment = build(sequences);
  const FrozenMatch match = segment.longest_match(Tokens{9});
  EXPECT_EQ(segment.best_continuation(match), (Continuation{1, 100}));
  EXPECT_EQ(segment.best_continuation(match, 15), (Continuation{1, 10}));
  EXPECT_FALSE(segment.best_continuation(match, 0).has_value());
  std::vector<Continuation> top(4);
  EXPECT_EQ(segment.continuations(match, top, 30), 2U);
  EXPECT_EQ(top[1], (Continuation{2, 10}));
  EXPECT_EQ(segment.continuations(match, {}, 30), 0U);
}

TEST(Frozen, CountsManyDifferentContinuations) {
  std::vector<Tokens> sequences;
  for (TokenId i = 0; i < 500; ++i) {
    for (TokenId n = 0; n <= i % 7; ++n) sequences.push_back({9, 64 * i});
  }
  const FrozenSegment segment = build(sequences);
  std::vector<Continuation> top(500);
  ASSERT_EQ(segment.continuations(segment.longest_match(Tokens{9}), top), 500U);
  for (std::size_t i = 0; i < top.size(); ++i) {
    EXPECT_EQ(top[i].count, static_cast<std::uint32_t>(top[i].token / 64 % 7 + 1));
    if (i > 0) {
      EXPECT_TRUE(top[i - 1].count > top[i].count ||
                  (top[i - 1].count == top[i].count && top[i - 1].token < top[i].token));
    }
  }
}

TEST(Frozen, InterleavedSearchEqualsPlain) {
  Random random(6);
  std::vector<Tokens> sequences;
  for (int i = 0; i < 60; ++i) {
    sequences.push_back(random.tokens(500, i % 2 == 0 ? 4 : 1000));
    sequences.push_back(sequences.back());
    sequences.back()[250] = 3;
  }
  FrozenSegment segment = build(sequences);
  for (const bool forgetful : {false, true}) {
    if (forgetful) segment.forget(5U);
    for (const std::size_t batch : {0U, 1U, 15U, 16U, 17U, 300U}) {
      std::vector<Tokens> contexts(batch);
      std::vector<FrozenSearch> searches(batch);
      for (std::size_t i = 0; i < batch; ++i) {
        contexts[i] = make_context(random, sequences, 1000);
        searches[i] = FrozenSearch(segment, contexts[i], i % 5 == 0 ? 3 : FrozenSegment::kAll);
      }
      run_interleaved(searches);
      for (std::size_t i = 0; i < batch; ++i) {
        ASSERT_FALSE(searches[i].step());
        ASSERT_EQ(searches[i].result(),
                  segment.longest_match(contexts[i], i % 5 == 0 ? 3 : FrozenSegment::kAll));
      }
    }
  }
}

TEST(Frozen, TakesFewBytes) {
  Random random(7);
  std::vector<Tokens> sequences;
  for (int i = 0; i < 200; ++i) {
    Tokens s = random.tokens(500, 150'000);
    for (TokenId& t : s) t = static_cast<TokenId>(t / (1 + random.below(1000)));
    sequences.push_back(std::move(s));
  }
  const FrozenSegment segment = build(sequences);
  EXPECT_LE(static_cast<double>(segment.bytes()) / segment.num_tokens(), 8.5);
}

struct Arrays {
  Tokens text;
  std::vector<std::uint32_t> order;
};

Arrays arrays_of(const FrozenSegment& segment) {
  return {{segment.text().begin(), segment.text().end()},
          {segment.order().begin(), segment.order().end()}};
}

TEST(FrozenView, AnswersLikeTheBuiltOneAndKeepsItsOwner) {
  Random random(8);
  const std::vector<Tokens> sequences = {random.tokens(300, 5), {}, random.tokens(300, 5)};
  const FrozenSegment built = build(sequences);
  auto arrays = std::make_shared<Arrays>(arrays_of(built));
  const std::weak_ptr<Arrays> watch = arrays;
  {
    FrozenSegment first = FrozenSegment::view(arrays->text, arrays->order, arrays);
    arrays.reset();
    const FrozenSegment view = std::move(first);
    EXPECT_FALSE(watch.expired());
    EXPECT_EQ(view.num_sequences(), 3U);
    for (int q = 0; q < 1000; ++q) {
      const Tokens context = make_context(random, sequences, 5);
      ASSERT_EQ(view.longest_match(context), built.longest_match(context));
    }
  }
  EXPECT_TRUE(watch.expired());
}

TEST(FrozenView, RefusesMalformedArrays) {
  const Arrays good = arrays_of(build({{1, 2, 3, 1, 2}, {2, 3}}));
  const auto refuses = [&](auto&& change) {
    Arrays bad = good;
    change(bad);
    EXPECT_THROW((void)FrozenSegment::view(bad.text, bad.order, nullptr), FormatError);
  };
  EXPECT_NO_THROW((void)FrozenSegment::view(good.text, good.order, nullptr));
  refuses([](Arrays& a) { a.text.clear(); });
  refuses([](Arrays& a) { a.text.clear(), a.order.clear(); });
  refuses([](Arrays& a) { a.text.front() = 1; });
  refuses([](Arrays& a) { a.text.back() = 1; });
  refuses([](Arrays& a) { a.text[2] = -2; });
  refuses([](Arrays& a) { a.text[2] = kSeparator; });
  refuses([](Arrays& a) { a.text.push_back(1); });
  refuses([](Arrays& a) { a.order.pop_back(); });
  refuses([](Arrays& a) { a.order.push_back(1); });
  refuses([](Arrays& a) { a.order[0] = a.order[1]; });
  refuses([](Arrays& a) { a.order[3] = 0; });
  refuses([](Arrays& a) { a.order[3] = static_cast<std::uint32_t>(a.text.size()); });
  refuses([](Arrays& a) { a.order[3] = FrozenSegment::kAll; });
}

TEST(FrozenView, AnUnsortedOrderIsHarmless) {
  Random random(9);
  for (int i = 0; i < kSegments; ++i) {
    const std::vector<Tokens> sequences = make_sequences(random, 3);
    Arrays arrays = arrays_of(build(sequences));
    const auto size = static_cast<std::uint32_t>(arrays.order.size());
    for (std::uint32_t n = random.below(size + 1); n > 0; --n) {
      std::swap(arrays.order[random.below(size)], arrays.order[random.below(size)]);
    }
    FrozenSegment view = FrozenSegment::view(arrays.text, arrays.order, nullptr);
    if (!sequences.empty() && i % 2 == 0) view.forget(0U);
    for (int q = 0; q < kQueries / 4; ++q) {
      const Tokens context = make_context(random, sequences, 3);
      const FrozenMatch match = view.longest_match(context);
      ASSERT_LE(match.begin, match.end);
      ASSERT_LE(match.end, view.num_tokens());
      ASSERT_LE(match.length, context.size());
      std::vector<std::uint32_t> positions(5);
      positions.resize(view.sample(match, positions));
      for (const std::uint32_t p : positions) ASSERT_NE(view.text()[p], kSeparator);
      (void)view.best_continuation(match);
    }
  }
}

}  // namespace
}  // namespace smartspec::suffix
