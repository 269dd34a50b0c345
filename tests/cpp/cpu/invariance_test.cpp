// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Bit equality: whatever batch, split, tree, cache placement or thread count a row rides in, its
// output is the one of plain one-token decoding.
#include <algorithm>

#include "cpu/attention_scene.hpp"

namespace smartspec {
namespace {

using test::PerIsa;
using test::Random;
using test::Shape;
using test::Stage;
using test::Story;
using test::Token;

std::vector<Shape> shapes() {
  return {
      {2, 2, 64, 16, 0, DType::kBFloat16},   {6, 2, 80, 32, 0, DType::kBFloat16},
      {8, 1, 128, 16, 77, DType::kBFloat16}, {3, 3, 48, 16, 0, DType::kFloat32},
      {4, 2, 18, 48, 130, DType::kFloat32},  {5, 1, 32, 16, 3, DType::kBFloat16},
  };
}

class Invariance : public PerIsa {};

TEST_P(Invariance, ChunkedPrefillEqualsDecoding) {
  auto one = backend(1);
  auto two = backend(2);
  Random random(21);
  for (const Shape& shape : shapes()) {
    const int n = 270;
    const Story story = test::random_story(random, shape, n, 0, 0, false);
    const std::vector<float> want = test::decode_plainly(*one, shape, story.context);
    for (int split = 0; split < test::rounds(8); ++split) {
      Stage stage(split % 2 == 0 ? *two : *one, shape, n / shape.block_size + 4, 0xFF);
      const std::vector<BlockId> blocks = stage.take_blocks(n, &random);
      for (int at = 0; at < n;) {
        const int end = std::min(n, at + random.integer(1, split < 2 ? n : 60));
        const Stage::Rows rows{&story, blocks, at, end, 0, 0};
        const std::vector<float> out = stage.pass(std::span(&rows, 1));
        ASSERT_TRUE(test::same_bits(
            out.data(), want.data() + static_cast<std::size_t>(at) * shape.out(), out.size()))
            << "rows " << at << ".." << end << " dim " << shape.head_dim;
        at = end;
      }
    }
  }
}

TEST_P(Invariance, TreesEqualDecodingOfEachPath) {
  auto one = backend(1);
  auto two = backend(2);
  Random random(22);
  for (const Shape& shape : shapes()) {
    for (int round = 0; round < test::rounds(8); ++round) {
      const int context = random.integer(100, 140);  // around a chunk boundary
      const bool levels = round % 2 == 1;
      const int nodes = round == 0 ? 64 : random.integer(2, 30);
      const Story story = test::random_story(random, shape, context, levels ? 0 : 1 + round % 3,
                                             nodes, round % 4 < 2, levels ? nodes / 2 : 0);
      const std::vector<float> got =
          test::run_story(round % 2 == 0 ? *one : *two, shape, story, 0xFF, &random);
      // The prefix is written at once (equal to decoding, as the test above shows); each path is
      // then decoded behind it, over the one before.
      Story plain;
      plain.context = story.context;
      plain.context.insert(plain.context.end(), story.causal.begin(), story.causal.end());
      const int most = story.prefix() + nodes;
      Stage stage(*one, shape, most / shape.block_size + 1);
      const std::vector<BlockId> blocks = stage.take_blocks(most);
      const Stage::Rows prefix{&plain, blocks, 0, story.prefix(), 0, 0};
      stage.pass(std::span(&prefix, 1));
      for (int t = story.tree_start; t < nodes; ++t) {
        const std::size_t row =
            story.causal.size() + static_cast<std::size_t>(t - story.tree_start);
        plain.context.resize(static_cast<std::size_t>(story.prefix()));
        std::vector<float> want;
        for (const int node : story.path(t)) {
          const auto at = static_cast<int>(plain.context.size());
          plain.context.push_back(story.tree[static_cast<std::size_t>(node)]);
          const Stage::Rows rows{&plain, blocks, at, at + 1, 0, 0};
          want = stage.pass(std::span(&rows, 1));
        }
        ASSERT_TRUE(test::same_bits(got.data() + row * shape.out(), want.data(), shape.out()))
            << "node " << t << " of " << nodes << " dim " << shape.head_dim << " window "
            << shape.window;
      }
    }
  }
}

TEST_P(Invariance, RaggedBatchesEqualEachSequenceAlone) {
  auto one = backend(1);
  auto two = backend(2);
  Random random(23);
  for (const Shape& shape : shapes()) {
    for (int round = 0; round < test::rounds(6); ++round) {
      std::vector<Story> stories;
      const int n = random.integer(1, 12);
      for (int i = 0; i < n; ++i) {
        const int tree = random.integer(0, 12);
        stories.push_back(test::random_story(random, shape, random.integer(0, 150),
                                             random.integer(1, 20), tree, true));
      }
      int blocks_needed = 0;
      for (const Story& story : stories) blocks_needed += story.total() / shape.block_size + 1;
      Stage stage(*two, shape, blocks_needed, 0xFF);
      std::vector<std::vector<BlockId>> blocks;
      std::vector<Stage::Rows> contexts;
      std::vector<Stage::Rows> rest;
      for (const Story& story : stories) {
        blocks.push_back(stage.take_blocks(story.total(), &random));
      }
      for (std::size_t i = 0; i < stories.size(); ++i) {
        const auto context = static_cast<int>(stories[i].context.size());
        contexts.push_back({&stories[i], blocks[i], 0, context, 0, 0});
        rest.push_back({&stories[i], blocks[i], context, stories[i].prefix(), 0,
                        static_cast<int>(stories[i].tree.size())});
      }
      std::erase_if(contexts, [](const Stage::Rows& r) { return r.causal_end == 0; });
      if (!contexts.empty()) stage.pass(contexts);
      const std::vector<float> together = stage.pass(rest);
      std::size_t at = 0;
      for (const Story& story : stories) {
        const std::vector<float> alone = test::run_story(*one, shape, story);
        ASSERT_TRUE(test::same_bits(together.data() + at, alone.data(), alone.size()));
        at += alone.size();
      }
    }
  }
}

TEST_P(Invariance, OneRequestOfNanSpoilsNoOther) {
  auto b = backend(2);
  Random random(24);
  for (const Shape& shape : shapes()) {
    Story bad = test::random_story(random, shape, 30, 5, 5, true);
    for (Token& token : bad.context) std::fill(token.begin(), token.end(), std::nanf(""));
    const Story good = test::random_story(random, shape, 40, 3, 9, true);
    Stage stage(*b, shape, 20, 0xFF);
    const std::vector<BlockId> bad_blocks = stage.take_blocks(bad.total());
    const std::vector<BlockId> good_blocks = stage.take_blocks(good.total());
    const std::vector<Stage::Rows> contexts = {{&bad, bad_blocks, 0, 30, 0, 0},
                                               {&good, good_blocks, 0, 40, 0, 0}};
    stage.pass(contexts);
    const std::vector<Stage::Rows> rest = {{&bad, bad_blocks, 30, 35, 0, 5},
                                           {&good, good_blocks, 40, 43, 0, 9}};
    const std::vector<float> out = stage.pass(rest);
    const std::vector<float> alone = test::run_story(*b, shape, good);
    EXPECT_TRUE(test::same_bits(out.data() + 10 * shape.out(), alone.data(), alone.size()));
  }
}

SMARTSPEC_PER_ISA(Invariance);

}  // namespace
}  // namespace smartspec
