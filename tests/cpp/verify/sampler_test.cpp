// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Sampler against the oracle: every draw and every order of siblings, each parameter alone and all
// together, rows of every kind.
#include "smartspec/sampler.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <thread>

#include "smartspec/error.hpp"
#include "verify/oracle.hpp"
#include "verify/support.hpp"

namespace smartspec::verify_test {
namespace {

struct Compared {
  int draws = 0;
  int ambiguous = 0;
};

/// Feeds both sides the same rows for `steps` tokens.
Compared compare(const SamplingParams& params, std::uint64_t seed, int vocab, int steps,
                 Random& random, Shape shape) {
  const auto prompt = random.tokens(random.below(6), vocab);
  const auto stops = tiny_vocabulary(vocab);
  Sampler sampler(params, seed, prompt, vocab, stops);
  Oracle oracle{params, seed, prompt, stops, {}};
  Compared result;
  for (int i = 0; i < steps; ++i) {
    const auto row = random_row(random, vocab, shape);
    const auto order = oracle.order(row);
    if (order.empty()) {
      EXPECT_THROW((void)sampler.sample(row), Error);
      return result;
    }
    const TokenId token = sampler.sample(row);
    std::vector<TokenId> top{-7};
    std::vector<float> scores;
    const int count = 1 + random.below(vocab + 2);
    sampler.sample_top(row, count, top, &scores);
    EXPECT_EQ(top.at(1), token);
    ++result.draws;
    if (oracle.ambiguous) {
      ++result.ambiguous;
    } else {
      EXPECT_EQ(token, order.front());
      std::vector<TokenId> expected{-7};
      expected.insert(expected.end(), order.begin(),
                      order.begin() + std::min<std::ptrdiff_t>(count, std::ssize(order)));
      EXPECT_EQ(top, expected);
      const auto law = oracle.law(oracle.process(row));
      EXPECT_EQ(scores.size() + 1, top.size());
      for (std::size_t k = 0; k < scores.size(); ++k) {
        for (const auto& [v, p] : law) {
          if (v != top[k + 1]) continue;
          EXPECT_NEAR(static_cast<double>(scores[k]), p, 1e-6);
        }
      }
    }
    EXPECT_EQ(sampler.accept(token), oracle.accept(token));
    EXPECT_EQ(sampler.matched_stop_string(), oracle.stop_string);
    EXPECT_EQ(sampler.matched_stop_token(), oracle.stop_token);
    if (::testing::Test::HasFailure()) return result;
  }
  return result;
}

using Edit = std::function<void(SamplingParams&)>;

class OneParameter : public ::testing::TestWithParam<std::pair<const char*, Edit>> {};

TEST_P(OneParameter, MatchesTheOracle) {
  Random random(11);
  int draws = 0;
  int ambiguous = 0;
  for (int i = 0; i < 400 / kShrink; ++i) {
    SamplingParams params;
    params.max_tokens = 1000;
    GetParam().second(params);
    if (i % 4 == 3) params.temperature = 0.0F;
    const auto shape = static_cast<Shape>(i % static_cast<int>(Shape::kCount));
    const auto c = compare(params, random.next(), 8 + random.below(140), 12, random, shape);
    ASSERT_FALSE(HasFailure()) << "case " << i;
    draws += c.draws;
    ambiguous += c.ambiguous;
  }
  EXPECT_GT(draws, 200 / kShrink);
  EXPECT_LT(ambiguous * 10, draws);
}

const std::vector<std::pair<const char*, Edit>> kEdits{
    {"plain", [](auto&) {}},
    {"hot", [](auto& p) { p.temperature = 50.0F; }},
    {"hottest", [](auto& p) { p.temperature = 1e4F; }},
    {"cold", [](auto& p) { p.temperature = 0.01F; }},
    {"coldest", [](auto& p) { p.temperature = 1e-45F; }},
    {"top_k", [](auto& p) { p.top_k = 5; }},
    {"top_k_all", [](auto& p) { p.top_k = 1 << 30; }},
    {"top_p", [](auto& p) { p.top_p = 0.7F; }},
    {"top_p_tiny", [](auto& p) { p.top_p = 1e-45F; }},
    {"top_p_large", [](auto& p) { p.top_p = 0.9999F; }},
    {"min_p", [](auto& p) { p.min_p = 0.1F; }},
    {"min_p_one", [](auto& p) { p.min_p = 1.0F; }},
    {"top_k_top_p", [](auto& p) { p.top_k = 9, p.top_p = 0.8F; }},
    {"all_filters", [](auto& p) { p.top_k = 30, p.top_p = 0.9F, p.min_p = 0.02F; }},
    {"repetition", [](auto& p) { p.repetition_penalty = 1.7F; }},
    {"frequency", [](auto& p) { p.frequency_penalty = 1.1F; }},
    {"presence", [](auto& p) { p.presence_penalty = -1.3F; }},
    {"bias", [](auto& p) { p.logit_bias = {{1, 3.0F}, {6, -100.0F}}; }},
    {"allowed", [](auto& p) { p.allowed_token_ids = {{5, 0, 3, 3}}; }},
    {"bad_words", [](auto& p) { p.bad_words = {{2}, {1, 3}, {0, 4, 5}, {3, 3}}; }},
    {"min_tokens", [](auto& p) { p.min_tokens = 6, p.stop_token_ids = {1, 3}; }}};

INSTANTIATE_TEST_SUITE_P(Sampler, OneParameter, ::testing::ValuesIn(kEdits),
                         [](const auto& test) { return std::string(test.param.first); });

TEST(Sampler, RandomParametersMatchTheOracle) {
  Random random(12);
  int draws = 0;
  int ambiguous = 0;
  for (int i = 0; i < 6000 / kShrink; ++i) {
    const int vocab = 8 + random.below(random.chance(0.1) ? 600 : 60);
    const auto params = random_params(random, vocab);
    const auto shape = static_cast<Shape>(random.below(static_cast<int>(Shape::kCount)));
    const auto c = compare(params, random.next(), vocab, 10, random, shape);
    ASSERT_FALSE(HasFailure()) << "case " << i;
    draws += c.draws;
    ambiguous += c.ambiguous;
  }
  EXPECT_GT(draws, 20000 / kShrink);
  EXPECT_LT(ambiguous * 10, draws);
}

TEST(Sampler, LargeVocabularyMatchesTheOracle) {
  Random random(13);
  for (int i = 0; i < 60 / kShrink + 1; ++i) {
    SamplingParams params;
    params.max_tokens = 1000;
    params.temperature = i % 3 == 0 ? 1.0F : static_cast<float>(0.2 + 2 * random.unit());
    if (i % 4 == 1) params.top_k = 40;
    if (i % 4 == 2) params.top_p = 0.95F;
    const auto shape = static_cast<Shape>(i % static_cast<int>(Shape::kCount));
    compare(params, random.next(), 4096 + random.below(100), 3, random, shape);
    ASSERT_FALSE(HasFailure()) << "case " << i;
  }
}

TEST(Sampler, ExtremeLogitsMatchTheOracle) {
  Random random(14);
  const float big = std::numeric_limits<float>::max();
  for (int i = 0; i < 300 / kShrink; ++i) {
    SamplingParams params;
    params.temperature = i % 2 == 0 ? 1.0F : static_cast<float>(1e4 * random.unit());
    std::vector<float> row(70);
    for (float& l : row) {
      const float choices[] = {big, -big, 0.0F, -0.0F, 1e30F, -1e30F, 1e-45F, -kInf, 3.0F};
      l = choices[random.below(9)];
    }
    row[0] = 1.0F;
    Sampler sampler(params, random.next(), {}, 70, nullptr);
    const Oracle oracle{params, sampler.seed(), {}, nullptr, {}};
    const auto order = oracle.order(row);
    std::vector<TokenId> top;
    sampler.sample_top(row, 70, top, nullptr);
    ASSERT_EQ(top, order) << i;
    ASSERT_EQ(sampler.sample(row), order.front());
  }
}

TEST(Sampler, RefusesRowsThatAreNotFinite) {
  SamplingParams params;
  for (const float temperature : {0.0F, 1.0F}) {
    params.temperature = temperature;
    Sampler sampler(params, 1, {}, 20, nullptr);
    for (const float bad : {NAN, kInf}) {
      for (const int at : {0, 15, 16, 19}) {
        std::vector<float> row(20, 0.5F);
        row[static_cast<std::size_t>(at)] = bad;
        EXPECT_THROW((void)sampler.sample(row), Error);
      }
    }
    EXPECT_THROW((void)sampler.sample(std::vector<float>(20, -kInf)), Error);
    EXPECT_THROW((void)sampler.sample(std::vector<float>(19, 0.0F)), std::invalid_argument);
    std::vector<float> row(20, -kInf);
    row[19] = -std::numeric_limits<float>::max();  // the lowest finite logit is a legal choice
    EXPECT_EQ(sampler.sample(row), 19);
  }
}

TEST(Sampler, MasksHideWhatIsNotFinite) {  // a NaN that no path can draw harms nobody
  SamplingParams params;
  params.allowed_token_ids = {{2, 3}};
  Sampler sampler(params, 1, {}, 4, nullptr);
  EXPECT_GE(sampler.sample(std::vector<float>{NAN, kInf, 0.0F, 0.0F}), 2);
}

TEST(Sampler, SaysWhenNothingIsLeft) {
  SamplingParams params;
  params.allowed_token_ids = {{2}};
  params.bad_words = {{2}};
  Sampler sampler(params, 1, {}, 4, nullptr);
  try {
    (void)sampler.sample(std::vector<float>(4, 0.0F));
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("no token is left"), std::string::npos);
  }
}

TEST(Sampler, RefusesMisuse) {
  SamplingParams params;
  const std::vector<TokenId> prompt{1, 9};
  EXPECT_THROW(Sampler(params, 0, prompt, 9, nullptr), std::invalid_argument);
  params.stop = {"x"};
  EXPECT_THROW(Sampler(params, 0, {}, 9, nullptr), std::invalid_argument);
  EXPECT_THROW(Sampler(params, 0, {}, 9, std::make_shared<StopVocabulary>()),
               std::invalid_argument);
  EXPECT_THROW(Sampler(params, 0, {}, 9, tiny_vocabulary(12)), std::invalid_argument);  // eos 11
  Sampler sampler(params, 0, {}, 9, tiny_vocabulary(9));
  EXPECT_THROW(sampler.accept(-1), std::invalid_argument);
  EXPECT_THROW(sampler.accept(9), std::invalid_argument);
  EXPECT_THROW(sampler.rewind(1), std::invalid_argument);
  EXPECT_THROW(sampler.rewind(-1), std::invalid_argument);
  std::vector<TokenId> top;
  sampler.sample_top(std::vector<float>(9, 0.0F), 0, top, nullptr);
  EXPECT_TRUE(top.empty());
}

// Two samplers used in turn on several threads give what each gives alone: scratch leaves no trace.
TEST(Sampler, ResultsDoNotDependOnThreadsOrScratch) {
  const TinyModel model{300, 5, Shape::kSmooth};
  const auto run = [&](std::uint64_t seed) {
    SamplingParams params;
    params.max_tokens = 1000;
    params.top_p = 0.9F;
    params.repetition_penalty = 1.2F;
    Sampler sampler(params, seed, {}, 300, nullptr);
    std::vector<TokenId> tokens;
    for (int i = 0; i < 40; ++i) {
      tokens.push_back(sampler.sample(model.logits(tokens)));
      sampler.accept(tokens.back());
    }
    return tokens;
  };
  std::vector<std::vector<TokenId>> alone;
  for (std::uint64_t s = 0; s < 8; ++s) alone.push_back(run(s));
  std::vector<std::vector<TokenId>> together(8);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t s = 8; s-- > 0;) {
        if (s % 2 == t) together[s] = run(s);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(together, alone);
}

}  // namespace
}  // namespace smartspec::verify_test
