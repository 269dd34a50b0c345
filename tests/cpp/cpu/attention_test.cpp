// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Attention against the double-precision oracle over random shapes, and the verbs around it.
#include <algorithm>
#include <stdexcept>

#include "cpu/attention_scene.hpp"

namespace smartspec {
namespace {

using test::PerIsa;
using test::Random;
using test::Shape;
using test::Stage;
using test::Story;

Shape random_shape(Random& random) {
  Shape shape;
  shape.num_kv_heads = random.integer(1, 3);
  shape.num_heads = shape.num_kv_heads * random.integer(1, 8);
  shape.head_dim = random.choice(std::vector<int>{2, 18, 32, 40, 48, 64, 80, 96, 128});
  shape.block_size = random.choice(std::vector<int>{16, 32, 48});
  shape.window = random.integer(0, 2) == 0 ? random.integer(1, 200) : 0;
  shape.dtype = random.integer(0, 1) == 0 ? DType::kFloat32 : DType::kBFloat16;
  return shape;
}

void expect_rows_near_oracle(const Shape& shape, const Story& story, int first_index,
                             const float* out, int rows) {
  for (int r = 0; r < rows; ++r) {
    const test::OracleRow want = test::attend_exactly(shape, story, first_index + r);
    for (std::size_t i = 0; i < want.out.size(); ++i) {
      ASSERT_NEAR(out[static_cast<std::size_t>(r) * shape.out() + i], want.out[i], want.bound)
          << "row " << r << " element " << i << " dim " << shape.head_dim << " heads "
          << shape.num_heads << "/" << shape.num_kv_heads << " window " << shape.window << " bf16 "
          << (shape.dtype == DType::kBFloat16) << " prefix " << story.prefix();
    }
  }
}

class Attention : public PerIsa {};

TEST_P(Attention, RandomStoriesMatchOracle) {
  auto one = backend(1);
  auto two = backend(2);
  Random random(11);
  for (int round = 0; round < test::rounds(60); ++round) {
    const Shape shape = random_shape(random);
    const int context = random.integer(0, 300);
    const int causal = random.integer(0, 40);
    const int tree = random.integer(causal == 0 ? 1 : 0, 40);
    const bool levels = causal == 0 && tree > 1 && random.integer(0, 1) == 0;
    const Story story =
        test::random_story(random, shape, context, causal, tree, random.integer(0, 1) == 0,
                           levels ? random.integer(1, tree - 1) : 0);
    const std::vector<float> out =
        test::run_story(round % 2 == 0 ? *one : *two, shape, story, 0xFF, &random);
    expect_rows_near_oracle(shape, story, context + story.tree_start, out.data(),
                            causal + tree - story.tree_start);
  }
}

TEST_P(Attention, LargestTreeMatchesOracle) {
  auto b = backend(2);
  Random random(12);
  const Shape shape{4, 2, 32, 16, 0, DType::kBFloat16};
  for (const bool wide : {true, false}) {
    const Story story = test::random_story(random, shape, 121, 1, 256, wide);
    const std::vector<float> out = test::run_story(*b, shape, story, 0xFF, &random);
    expect_rows_near_oracle(shape, story, 121, out.data(), 257);
  }
}

TEST_P(Attention, ALongChainOfDraftsMatchesOracle) {
  auto b = backend(1);
  Random random(13);
  const Shape shape{2, 1, 64, 16, 90, DType::kBFloat16};
  Story story = test::random_story(random, shape, 100, 2, 200, false);
  for (int i = 0; i < 200; ++i) story.parents[static_cast<std::size_t>(i)] = i - 1;
  const std::vector<float> out = test::run_story(*b, shape, story, 0xFF, &random);
  expect_rows_near_oracle(shape, story, 100, out.data(), 202);
}

TEST_P(Attention, MovedTokensAttendLikeWrittenOnes) {
  auto b = backend(2);
  Random random(14);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Shape shape{4, 2, 48, 16, 0, dtype};
    const Story story = test::random_story(random, shape, 70, 0, 0, false);
    const auto last_row = [&](bool move) {
      Stage stage(*b, shape, 12, 0xFF);
      std::vector<BlockId> blocks = stage.take_blocks(70);
      const std::vector<BlockId> others = stage.take_blocks(70);
      const std::vector<BlockId>& first = move ? others : blocks;
      const Stage::Rows context{&story, first, 0, 69, 0, 0};
      stage.pass(std::span(&context, 1));
      if (move) {
        std::vector<SlotId> from;
        std::vector<SlotId> to;
        for (int i = 0; i < 69; ++i) {
          const auto block = static_cast<std::size_t>(i / 16);
          from.push_back(others[block] * 16 + i % 16);
          to.push_back(blocks[block] * 16 + i % 16);
        }
        // Through a neighbour lane and back: moves happen in order.
        from.push_back(to[3]);
        to.push_back(blocks[4] * 16 + 9);
        from.push_back(to.back());
        to.push_back(blocks[0] * 16 + 3);
        b->move_kv(stage.kv(), {from, to});
      }
      const Stage::Rows rest{&story, blocks, 69, 70, 0, 0};
      return stage.pass(std::span(&rest, 1));
    };
    EXPECT_TRUE(test::same_bits(last_row(true), last_row(false)));
  }
}

TEST_P(Attention, RefusesBadPlansAndCaches) {
  auto b = backend(1);
  const std::vector<BlockId> blocks = {0};
  const std::vector<std::int32_t> cyclic = {-1, 1};
  const std::vector<std::int32_t> many(257, -1);
  AttentionSequence s;
  s.num_causal = 17;
  s.block_table = blocks;
  EXPECT_THROW((void)b->plan_attention(std::span(&s, 1), 16, nullptr), std::invalid_argument);
  s.num_causal = 1;
  EXPECT_NO_THROW((void)b->plan_attention(std::span(&s, 1), 16, nullptr));
  EXPECT_THROW((void)b->plan_attention(std::span(&s, 1), 8, nullptr), std::invalid_argument);
  s.num_tree = 2;
  EXPECT_THROW((void)b->plan_attention(std::span(&s, 1), 16, nullptr), std::invalid_argument);
  s.tree_parents = cyclic;
  EXPECT_THROW((void)b->plan_attention(std::span(&s, 1), 16, nullptr), std::invalid_argument);
  s.num_tree = 257;
  s.tree_parents = many;
  EXPECT_THROW((void)b->plan_attention(std::span(&s, 1), 16, nullptr), std::invalid_argument);
  EXPECT_THROW((void)b->allocate_kv(1, 4, 24, 1, 16, DType::kFloat32), std::invalid_argument);
  EXPECT_THROW((void)b->allocate_kv(1, 4, 16, 1, 15, DType::kFloat32), std::invalid_argument);
  EXPECT_THROW((void)b->allocate_kv(1, 4, 16, 1, 16, DType::kFloat16), std::invalid_argument);
  EXPECT_THROW((void)b->allocate_kv(0, 4, 16, 1, 16, DType::kFloat32), std::invalid_argument);
  EXPECT_THROW((void)b->allocate_kv(1, 2000000000, 16, 1, 16, DType::kFloat32),
               std::invalid_argument);
  KvMemory kv = b->allocate_kv(1, 2, 16, 1, 16, DType::kFloat32);
  const std::vector<SlotId> from = {32};
  const std::vector<SlotId> to = {0};
  EXPECT_THROW(b->move_kv(kv, {from, to}), std::invalid_argument);
  EXPECT_THROW(b->move_kv(kv, {from, {}}), std::invalid_argument);
}

SMARTSPEC_PER_ISA(Attention);

}  // namespace
}  // namespace smartspec
