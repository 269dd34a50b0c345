// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// verify_tree against plain decoding by the oracle: whatever the trees, the same tokens, logprobs
// and finish reasons, with every parameter in play.
#include <gtest/gtest.h>

#include "smartspec/error.hpp"
#include "smartspec/sampler.hpp"
#include "verify/oracle.hpp"
#include "verify/support.hpp"

namespace smartspec::verify_test {
namespace {

struct Decoded {
  std::vector<TokenId> tokens;
  std::vector<PositionLogprobs> logprobs;
  FinishReason reason = FinishReason::kNone;
  int stop_string = -1;
  bool ambiguous = false;
};

Decoded decode_plainly(const TinyModel& model, Oracle oracle) {
  Decoded result;
  while (result.reason == FinishReason::kNone) {
    auto prefix = oracle.prompt;
    prefix.insert(prefix.end(), oracle.output.begin(), oracle.output.end());
    const auto row = model.logits(prefix);
    const auto order = oracle.order(row);
    result.ambiguous = result.ambiguous || oracle.ambiguous;
    if (order.empty()) {
      result.reason = FinishReason::kError;
      break;
    }
    if (oracle.params.logprobs) {
      result.logprobs.push_back(compute_logprobs(row, order.front(), *oracle.params.logprobs));
    }
    result.reason = oracle.accept(order.front());
  }
  result.tokens = oracle.output;
  result.stop_string = oracle.stop_string;
  return result;
}

/// Junk, the true continuation `future` up to some depth, and mixtures of both.
TokenTree random_tree(Random& random, std::span<const TokenId> future, int vocab) {
  TokenTree tree;
  const int size = random.below(13);
  std::int32_t on_path = -1;
  std::size_t depth = 0;
  for (int i = 0; i < size; ++i) {
    if (depth < future.size() && random.chance(0.5)) {
      if (random.chance(0.1)) tree.add(future[depth], on_path);  // a twin, found first
      on_path = tree.add(future[depth++], on_path);
    } else {
      tree.add(random.token(vocab), random.below(tree.size() + 1) - 1);
    }
  }
  return tree;
}

void check_structure(const TokenTree& tree, const Verification& out) {
  ASSERT_EQ(out.rows.size(), out.tokens.size());
  ASSERT_EQ(out.rows.front(), 0);
  std::int32_t node = -1;
  for (std::size_t i = 0; i < out.path.size(); ++i) {
    const auto n = static_cast<std::size_t>(out.path[i]);
    ASSERT_EQ(tree.parents[n], node);
    ASSERT_EQ(tree.tokens[n], out.tokens[i]);
    node = out.path[i];
    if (i + 1 == out.rows.size()) continue;
    ASSERT_EQ(out.rows[i + 1], node + 1);
  }
  const bool ended_on_a_node = out.path.size() == out.tokens.size();
  ASSERT_TRUE(ended_on_a_node || out.path.size() + 1 == out.tokens.size());
  if (ended_on_a_node) {
    ASSERT_NE(out.finish_reason, FinishReason::kNone);
  } else {
    ASSERT_LT(tree.find_child(node, out.tokens.back()), 0);
  }
}

TEST(VerifyTree, EqualsPlainDecoding) {
  Random random(41);
  int tokens = 0;
  int accepted = 0;
  int inside = 0;  // requests that ended on a node of a tree
  for (int i = 0; i < 8000 / kShrink; ++i) {
    const TinyModel model{8 + random.below(57), random.next(),
                          static_cast<Shape>(random.below(static_cast<int>(Shape::kCount)))};
    const auto params = random_params(random, model.vocab);
    const auto prompt = random.tokens(1 + random.below(5), model.vocab);
    const auto stops = tiny_vocabulary(model.vocab);
    const std::uint64_t seed = random.next();
    const auto plain = decode_plainly(model, {params, seed, prompt, stops, {}});
    if (plain.ambiguous) continue;

    Sampler sampler(params, seed, prompt, model.vocab, stops);
    Decoded got;
    Verification out;
    while (got.reason == FinishReason::kNone) {
      auto prefix = prompt;
      prefix.insert(prefix.end(), got.tokens.begin(), got.tokens.end());
      const auto done = std::min(got.tokens.size(), plain.tokens.size());
      const auto tree = random_tree(random, std::span(plain.tokens).subspan(done), model.vocab);
      if (random.chance(0.3)) {  // a draft model looks ahead and returns
        const auto mark = sampler.mark();
        for (int k = 0; k < 3; ++k) sampler.accept(random.token(model.vocab));
        sampler.rewind(mark);
      }
      std::vector<float> row;
      try {
        verify_tree(
            tree,
            [&](std::int32_t node) {
              row = model.logits(path_prefix(tree, node, prefix));
              return std::span<const float>(row);
            },
            sampler, out);
        check_structure(tree, out);
        got.reason = out.finish_reason;
      } catch (const Error&) {
        got.reason = FinishReason::kError;
      }
      ASSERT_FALSE(HasFatalFailure());
      got.tokens.insert(got.tokens.end(), out.tokens.begin(), out.tokens.end());
      got.logprobs.insert(got.logprobs.end(), out.logprobs.begin(), out.logprobs.end());
      accepted += static_cast<int>(out.path.size());
      inside += out.path.size() == out.tokens.size() ? 1 : 0;
      ASSERT_LE(got.tokens.size(), plain.tokens.size()) << "case " << i;
    }
    ASSERT_EQ(got.tokens, plain.tokens) << "case " << i;
    ASSERT_EQ(got.reason, plain.reason);
    ASSERT_EQ(sampler.matched_stop_string(), plain.stop_string);
    ASSERT_EQ(got.logprobs.size(), plain.logprobs.size());
    for (std::size_t k = 0; k < got.logprobs.size(); ++k) {
      ASSERT_EQ(got.logprobs[k].size(), plain.logprobs[k].size());
      for (std::size_t j = 0; j < got.logprobs[k].size(); ++j) {
        ASSERT_EQ(got.logprobs[k][j].token, plain.logprobs[k][j].token);
        ASSERT_EQ(got.logprobs[k][j].logprob, plain.logprobs[k][j].logprob);
        ASSERT_EQ(got.logprobs[k][j].rank, plain.logprobs[k][j].rank);
      }
    }
    tokens += static_cast<int>(got.tokens.size());
  }
  EXPECT_GT(tokens, 30000 / kShrink);
  EXPECT_GT(accepted, 10000 / kShrink);  // the trees were not all junk
  EXPECT_GT(inside, 500 / kShrink);
}

TEST(VerifyTree, StopsExactlyInsideAnAcceptedRun) {
  SamplingParams params;
  params.temperature = 0.0F;
  params.stop_token_ids = {2};
  params.logprobs = 1;
  Sampler sampler(params, 0, {}, 4, nullptr);
  const std::vector<TokenId> tokens{1, 2, 3};
  const auto tree = TokenTree::chain(tokens);
  std::vector<std::vector<float>> rows{{0, 9, 0, 0}, {0, 0, 9, 0}, {0, 0, 0, 9}, {9, 0, 0, 0}};
  std::vector<std::int32_t> asked;
  Verification out;
  verify_tree(
      tree,
      [&](std::int32_t node) {
        asked.push_back(node);
        return std::span<const float>(rows[static_cast<std::size_t>(node + 1)]);
      },
      sampler, out);
  EXPECT_EQ(out.tokens, (std::vector<TokenId>{1, 2}));
  EXPECT_EQ(out.path, (std::vector<std::int32_t>{0, 1}));
  EXPECT_EQ(out.rows, (std::vector<std::int32_t>{0, 1}));
  EXPECT_EQ(out.logprobs.size(), 2U);
  EXPECT_EQ(out.finish_reason, FinishReason::kStop);
  EXPECT_EQ(asked, (std::vector<std::int32_t>{-1, 0}));
}

// The draft-side order: the best token of sample_top is always the draw, so a tree of the `count`
// best under the target's own logits is accepted at its first child.
TEST(VerifyTree, SharedNoiseDraftsOfTheSameModelAreAccepted) {
  const TinyModel model{50, 9, Shape::kSmooth};
  SamplingParams params;
  params.max_tokens = 1000;
  Sampler draft(params, 5, {}, 50, nullptr);
  Sampler target(params, 5, {}, 50, nullptr);
  std::vector<TokenId> output;
  for (int i = 0; i < 50; ++i) {
    std::vector<TokenId> best;
    draft.sample_top(model.logits(output), 3, best, nullptr);
    TokenTree tree;
    for (const TokenId v : best) tree.add(v, -1);
    Verification out;
    std::vector<float> row;
    verify_tree(
        tree,
        [&](std::int32_t node) {
          row = model.logits(path_prefix(tree, node, output));
          return std::span<const float>(row);
        },
        target, out);
    ASSERT_EQ(out.path, std::vector<std::int32_t>{0});
    for (const TokenId v : out.tokens) {
      draft.accept(v);
      output.push_back(v);
    }
  }
}

}  // namespace
}  // namespace smartspec::verify_test
