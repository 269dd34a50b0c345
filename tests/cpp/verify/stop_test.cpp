// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What ends a request, in vLLM's order, and taking tokens back.
#include <gtest/gtest.h>

#include "smartspec/sampler.hpp"
#include "verify/oracle.hpp"
#include "verify/support.hpp"

namespace smartspec::verify_test {
namespace {

// Tokens: 0 "a" 1 "b" 2 "c" 3 "ab" 4 "" 5 "bca" 6 "cc" 7 "abab" (eos).
constexpr int kVocab = 8;

struct Feed {
  SamplingParams params;
  Sampler make() const { return Sampler(params, 0, {}, kVocab, tiny_vocabulary(kVocab)); }
};

TEST(Stop, EosAndStopIds) {
  Feed feed;
  feed.params.stop_token_ids = {2, 7};
  auto s = feed.make();
  EXPECT_EQ(s.accept(0), FinishReason::kNone);
  EXPECT_EQ(s.accept(2), FinishReason::kStop);
  EXPECT_EQ(s.matched_stop_token(), 2);
  s.rewind(1);
  EXPECT_EQ(s.matched_stop_token(), -1);
  EXPECT_EQ(s.accept(7), FinishReason::kStop);
  EXPECT_EQ(s.matched_stop_token(), -1) << "eos comes first";
  feed.params.ignore_eos = true;
  auto t = feed.make();
  EXPECT_EQ(t.accept(7), FinishReason::kStop);
  EXPECT_EQ(t.matched_stop_token(), 7) << "ignore_eos does not cover stop_token_ids";
  feed.params.stop_token_ids.clear();
  EXPECT_EQ(feed.make().accept(7), FinishReason::kNone);
}

TEST(Stop, StringsSpanTokensAndOutrankLength) {
  Feed feed;
  feed.params.max_tokens = 3;
  feed.params.stop = {"zz", "abb", "bb"};
  auto s = feed.make();
  EXPECT_EQ(s.accept(3), FinishReason::kNone);
  EXPECT_EQ(s.accept(4), FinishReason::kNone);
  EXPECT_EQ(s.accept(5), FinishReason::kStop) << "'ab' + '' + 'bca', at max_tokens";
  EXPECT_EQ(s.matched_stop_string(), 1) << "first of the list, not first in the text";
  s.rewind(2);
  EXPECT_EQ(s.matched_stop_string(), -1);
  EXPECT_EQ(s.accept(0), FinishReason::kLength);
  s.rewind(3);  // nothing to take back: still ended
  EXPECT_EQ(s.num_output_tokens(), 3);
}

TEST(Stop, EosOutranksAStopString) {
  Feed feed;
  feed.params.stop = {"abab"};
  auto s = feed.make();
  EXPECT_EQ(s.accept(7), FinishReason::kStop);
  EXPECT_EQ(s.matched_stop_string(), -1);
}

TEST(Stop, MinTokensDelaysEverything) {
  Feed feed;
  feed.params.min_tokens = 2;
  feed.params.max_tokens = 10;
  feed.params.stop = {"a"};
  feed.params.stop_token_ids = {1};
  auto s = feed.make();
  EXPECT_EQ(s.accept(1), FinishReason::kNone);
  EXPECT_EQ(s.accept(0), FinishReason::kNone) << "stop strings count from token min_tokens + 1";
  EXPECT_EQ(s.accept(2), FinishReason::kNone) << "the 'a' of token 2 is not found later";
  EXPECT_EQ(s.accept(0), FinishReason::kStop);
  s.rewind(1);
  EXPECT_EQ(s.accept(1), FinishReason::kStop) << "stop ids count from token min_tokens on";
}

TEST(Stop, LengthAtTheLastToken) {
  Feed feed;
  feed.params.max_tokens = 2;
  auto s = feed.make();
  EXPECT_EQ(s.accept(0), FinishReason::kNone);
  EXPECT_EQ(s.accept(0), FinishReason::kLength);
}

TEST(Stop, TokensBeyondTheTokenizerHaveNoText) {
  auto stops = std::make_shared<StopVocabulary>();
  stops->token_bytes = {"a"};
  SamplingParams params;
  params.stop = {"aa"};
  Sampler s(params, 0, {}, 4, stops);
  EXPECT_EQ(s.accept(0), FinishReason::kNone);
  EXPECT_EQ(s.accept(3), FinishReason::kNone);
  EXPECT_EQ(s.accept(0), FinishReason::kStop);
}

// Random accepts and rewinds: the sampler must look like one that never tried anything.
TEST(Rewind, RestoresTheStateExactly) {
  Random random(21);
  for (int i = 0; i < 2000 / kShrink; ++i) {
    const int vocab = 8 + random.below(20);
    const auto params = random_params(random, vocab);
    const auto prompt = random.tokens(random.below(5), vocab);
    const auto stops = tiny_vocabulary(vocab);
    const std::uint64_t seed = random.next();
    Sampler sampler(params, seed, prompt, vocab, stops);
    Oracle oracle{params, seed, prompt, stops, {}};
    for (int op = 0; op < 40; ++op) {
      if (random.chance(0.3)) {
        const int mark = random.below(sampler.mark() + 1);
        sampler.rewind(mark);
        const auto kept = oracle.output;
        oracle = Oracle{params, seed, prompt, stops, {}};
        for (int k = 0; k < mark; ++k) oracle.accept(kept[static_cast<std::size_t>(k)]);
      } else {
        const TokenId token = random.token(vocab);
        ASSERT_EQ(sampler.accept(token), oracle.accept(token));
      }
      ASSERT_EQ(sampler.mark(), static_cast<int>(oracle.output.size()));
      ASSERT_EQ(sampler.matched_stop_string(), oracle.stop_string);
      ASSERT_EQ(sampler.matched_stop_token(), oracle.stop_token);
      const auto row = random_row(random, vocab, Shape::kTies);
      const auto order = oracle.order(row);
      if (order.empty() || oracle.ambiguous) continue;
      ASSERT_EQ(sampler.sample(row), order.front()) << "case " << i << " op " << op;
    }
  }
}

}  // namespace
}  // namespace smartspec::verify_test
