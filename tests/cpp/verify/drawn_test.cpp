// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Draws made elsewhere: what a sampler tells about itself is enough to draw its tokens, and tokens
// that come back are accepted as if it had drawn them.
#include <gtest/gtest.h>

#include <stdexcept>

#include "smartspec/error.hpp"
#include "smartspec/sampler.hpp"
#include "verify/oracle.hpp"
#include "verify/support.hpp"

namespace smartspec::verify_test {
namespace {

/// The token by the numbers alone; -1 when none is left or the oracle cannot tell.
TokenId draw_by(const DrawState& draws, std::vector<float> row) {
  for (std::size_t i = 0; i < draws.count_tokens.size(); ++i) {
    float& l = row[static_cast<std::size_t>(draws.count_tokens[i])];
    const std::int32_t count = draws.output_counts[i];
    if (draws.count_bias[i] != 0.0F) l += draws.count_bias[i];
    if (count >= 0) {
      l = l > 0.0F ? l / draws.repetition_penalty : l * draws.repetition_penalty;
    }
    if (count > 0) {
      l -= draws.frequency_penalty * static_cast<float>(count);
      l -= draws.presence_penalty;
    }
  }
  Oracle oracle;
  oracle.params.temperature = draws.temperature;
  oracle.params.top_k = draws.top_k;
  oracle.params.top_p = draws.top_p;
  oracle.params.min_p = draws.min_p;
  oracle.seed = draws.seed;
  oracle.prompt.resize(static_cast<std::size_t>(draws.position));
  const auto order = oracle.order(row);
  return oracle.ambiguous || order.empty() ? -1 : order.front();
}

TEST(DrawState, TellsWhatIsDrawn) {
  Random random(7);
  int told = 0;
  int edited = 0;
  for (int i = 0; i < 20000 / kShrink; ++i) {
    const int vocab = 8 + random.below(57);
    const auto params = random_params(random, vocab);
    const auto prompt = random.tokens(random.below(6), vocab);
    const auto stops = tiny_vocabulary(vocab);
    Sampler sampler(params, random.next(), prompt, vocab, stops);
    for (int k = random.below(8); k > 0; --k) sampler.accept(random.token(vocab));
    if (random.chance(0.3)) sampler.rewind(random.below(sampler.mark() + 1));
    DrawState draws;
    draws.count_tokens = {1, 2, 3};  // of someone else
    const bool numbers_tell = sampler.describe(draws);
    EXPECT_EQ(numbers_tell, !params.allowed_token_ids && params.bad_words.empty() &&
                                sampler.num_output_tokens() >= params.min_tokens);
    if (!numbers_tell) continue;
    const auto row = random_row(random, vocab, static_cast<Shape>(i % 5));
    const TokenId token = draw_by(draws, row);
    if (token < 0) continue;
    ASSERT_EQ(token, sampler.sample(row)) << "case " << i;
    ++told;
    edited += draws.count_tokens.empty() ? 0 : 1;
  }
  EXPECT_GT(told, 4000 / kShrink);
  EXPECT_GT(edited, 2000 / kShrink);
}

TEST(AcceptDrawn, IsWhatVerifyTreeWouldHaveDone) {
  Random random(8);
  int inside = 0;  // requests that ended on a node of a tree
  for (int i = 0; i < 8000 / kShrink; ++i) {
    const int vocab = 3 + random.below(4);
    SamplingParams params;
    params.max_tokens = 1000;
    const auto prompt = random.tokens(3, vocab);
    Sampler free(params, 5, prompt, vocab, nullptr);
    if (random.chance(0.5)) params.max_tokens = 1 + random.below(4);
    if (random.chance(0.5)) params.stop_token_ids = {random.token(vocab)};
    Sampler one(params, 5, prompt, vocab, nullptr);
    Sampler two(params, 5, prompt, vocab, nullptr);
    TokenTree tree;
    for (int k = random.below(30); k > 0; --k) {
      tree.add(random.token(vocab), random.below(tree.size() + 1) - 1);
    }
    std::vector<std::vector<float>> rows;
    for (int k = 0; k <= tree.size(); ++k) {
      rows.push_back(random_row(random, vocab, Shape::kSmooth));
    }
    const LogitsRow logits = [&](std::int32_t node) {
      return std::span<const float>(rows[static_cast<std::size_t>(node + 1)]);
    };
    Verification whole, right, got;
    verify_tree(tree, logits, free, whole);
    verify_tree(tree, logits, one, right);
    accept_drawn(tree, whole.tokens, two, got);
    ASSERT_EQ(got.tokens, right.tokens) << "case " << i;
    ASSERT_EQ(got.path, right.path);
    ASSERT_EQ(got.rows, right.rows);
    ASSERT_EQ(got.finish_reason, right.finish_reason);
    ASSERT_EQ(two.num_output_tokens(), one.num_output_tokens());
    inside += right.tokens.size() < whole.tokens.size() ? 1 : 0;
  }
  EXPECT_GT(inside, 500 / kShrink);
}

TEST(AcceptDrawn, RefusesWhatIsNoWalk) {
  const std::vector<TokenId> tokens{1, 2};
  const TokenTree tree = TokenTree::chain(tokens);
  const std::vector<std::vector<TokenId>> walks = {{},     {1},       {1, 2},
                                                   {3, 1}, {1, 3, 2}, {1, 2, 3, 4}};
  for (const auto& drawn : walks) {
    Sampler sampler({}, 0, {}, 8, nullptr);
    Verification out;
    EXPECT_THROW(accept_drawn(tree, drawn, sampler, out), std::invalid_argument) << drawn.size();
    EXPECT_EQ(sampler.num_output_tokens(), 0);
  }
}

}  // namespace
}  // namespace smartspec::verify_test
