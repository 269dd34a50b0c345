// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The tensor-core attention kernel against double precision, in all its instances and all ways to
// split the work.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/tree_attention/tensor_warp.cuh"
#include "schedule.hpp"
#include "tree_attention_check.hpp"

namespace smartspec::cuda {
namespace {

constexpr DType kCacheTypes[] = {DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3,
                                 DType::kFloat8E5M2, DType::kInt8};
constexpr int kHeadDims[] = {64, 80, 96, 128, 256};

/// Of what the kernel multiplies: weights, and queries where the cache has another type.
double product_rounding(DType kv) { return kv == DType::kBFloat16 ? 0x1p-9 : 0x1p-12; }

SceneOptions tensor_scene(std::uint32_t seed, DType kv, int head_dim) {
  SceneOptions options;
  options.seed = seed;
  options.kv_dtype = kv;
  options.head_dim = head_dim;
  const DType types[] = {DType::kBFloat16, DType::kFloat16, DType::kFloat32};
  options.dtype = types[seed % 3];
  options.has_scales = size_of(kv) == 1;
  options.plan.max_context_len = 2048;
  return options;
}

/// A context and a tree of `num_rows` nodes; the tree's kind is random.
SceneSequence tree_sequence(Random& random, int context_len, int num_rows) {
  SceneSequence s;
  s.context_len = context_len;
  s.parents = random_tree(random, num_rows);
  s.tree_rows = num_rows;
  return s;
}

::testing::AssertionResult check_tensor(const Scene& scene) {
  return check_attention(scene, Path::kEntry, product_rounding(scene.options.kv_dtype));
}

std::int32_t tile_rows_of(const Scene& scene) {
  Forest sizes;
  sizes.num_sequences = static_cast<std::int32_t>(scene.sequences.size());
  sizes.num_rows = scene.num_rows();
  return make_plan(scene.options.plan, sizes, nullptr).plan.tile_rows;
}

// ---- Instances

struct Instance {
  int num_rows = 0;  // per sequence; times 2 heads, about one row tile
  std::int32_t tile_rows = 0;
};

TEST(TensorAttention, AllInstancesMatchTheOracle) {
  std::uint32_t seed = 1;
  for (const DType kv : kCacheTypes) {
    for (const int head_dim : kHeadDims) {
      const bool has_128 = head_dim <= 128 && size_of(kv) == 2;
      for (const Instance& instance : {Instance{6, 16}, Instance{25, 64}, Instance{50, 128}}) {
        Random random(++seed);
        std::vector<SceneSequence> sequences;
        for (const int extra : {-3, 0, 4}) {
          sequences.push_back(
              tree_sequence(random, draw(random, 0, 140), instance.num_rows + extra));
        }
        const Scene scene = make_scene(tensor_scene(seed, kv, head_dim), std::move(sequences));
        EXPECT_EQ(tile_rows_of(scene),
                  has_128 ? instance.tile_rows : std::min(instance.tile_rows, 64));
        EXPECT_TRUE(check_tensor(scene))
            << name_of(kv) << " head_dim " << head_dim << " rows " << instance.num_rows;
      }
    }
  }
}

TEST(TensorAttention, HasInstancesForNothingElse) {
  for (const DType kv : kCacheTypes) {
    for (const int head_dim : kHeadDims) EXPECT_TRUE(has_tensor_kernel(kv, head_dim));
    for (const int head_dim : {16, 48, 112, 192}) EXPECT_FALSE(has_tensor_kernel(kv, head_dim));
  }
  EXPECT_FALSE(has_tensor_kernel(DType::kFloat32, 64));
}

// ---- Scenes

TEST(TensorAttention, AllPageSizesAndLayoutsMatchTheOracle) {
  std::uint32_t seed = 100;
  for (const int page_size : {1, 3, 16, 32, 100, 256}) {
    for (const bool heads_outside : {false, true}) {
      ++seed;
      SceneOptions options = tensor_scene(seed, kCacheTypes[seed % 5], 64);
      options.page_size = page_size;
      options.heads_outside = heads_outside;
      options.interleaved = seed % 3 == 0;
      options.max_causal = 9;
      options.earlier_nodes = true;
      EXPECT_TRUE(check_tensor(make_scene(options))) << page_size << " " << heads_outside;
    }
  }
}

TEST(TensorAttention, AllGroupsMatchTheOracle) {
  std::uint32_t seed = 200;
  for (const int group : {1, 2, 3, 5, 8, 16}) {
    for (const int num_kv_heads : {1, 3}) {
      ++seed;
      SceneOptions options = tensor_scene(seed, kCacheTypes[seed % 5], 80);
      options.num_heads = group * num_kv_heads;
      options.num_kv_heads = num_kv_heads;
      options.max_causal = 5;
      options.max_nodes = 14;
      EXPECT_TRUE(check_tensor(make_scene(options))) << group << " " << num_kv_heads;
    }
  }
}

TEST(TensorAttention, MixedPassesMatchTheOracle) {
  for (std::uint32_t seed = 300; seed < 318; ++seed) {
    Random random(seed);
    SceneOptions options = tensor_scene(seed, kCacheTypes[seed % 5], kHeadDims[seed % 4]);
    options.num_sequences = draw(random, 1, 7);
    options.max_context = 300;
    options.max_causal = draw(random, 0, 1) * 150;  // prefill chunks
    options.max_nodes = draw(random, 1, 70);
    options.earlier_nodes = draw(random, 0, 1) == 1;
    options.window = draw(random, 0, 1) * draw(random, 1, 200);
    options.soft_cap = draw(random, 0, 1) == 1 ? 3.0F : 0.0F;
    options.scale = draw(random, 0, 1) == 1 ? 0.2F : 0.0F;
    options.has_lse = draw(random, 0, 3) > 0;
    options.spare_rows = draw(random, 0, 1) * 5;
    options.plan.batch_invariant = draw(random, 0, 1) == 1;
    options.plan.invariant_chunk = 64 * draw(random, 1, 3);
    if (draw(random, 0, 1) == 1) options.plan.sliding_window = options.window;
    EXPECT_TRUE(check_tensor(make_scene(options))) << "seed " << seed;
  }
}

/// A tree deeper than the window: nodes see only their nearest ancestors.
TEST(TensorAttention, WindowsEndWithinTheTree) {
  for (const int window : {1, 5, 40, 64, 90}) {
    SceneOptions options =
        tensor_scene(static_cast<std::uint32_t>(400 + window), DType::kBFloat16, 64);
    options.window = window;
    Random random(options.seed);
    SceneSequence chain;
    chain.context_len = 200;
    for (int i = 0; i < 80; ++i) chain.parents.push_back(i - 1);
    chain.tree_rows = 80;
    const Scene scene =
        make_scene(options, {chain, tree_sequence(random, 61, 100), tree_sequence(random, 0, 9)});
    EXPECT_TRUE(check_tensor(scene)) << window;
  }
}

TEST(TensorAttention, TheLargestTreeMatchesTheOracle) {
  SceneOptions options = tensor_scene(500, DType::kBFloat16, 64);
  options.num_kv_heads = 1;
  options.num_heads = 1;
  Random random(500);
  EXPECT_TRUE(check_tensor(make_scene(options, {tree_sequence(random, 33, kMaxTreeNodes)})));
}

TEST(TensorAttention, LargeScoresDoNotOverflow) {
  for (const DType kv : kCacheTypes) {
    SceneOptions options = tensor_scene(601, kv, 64);
    options.dtype = DType::kBFloat16;
    options.scale = 10.0F;
    EXPECT_TRUE(check_tensor(make_scene(options))) << name_of(kv);
  }
}

// ---- Ways to split the work

/// One sequence of some thousand keys: more tiles than blocks, units cut into several pieces.
Scene long_scene(std::uint32_t seed, DType kv, int head_dim, int num_rows) {
  SceneOptions options = tensor_scene(seed, kv, head_dim);
  options.num_kv_heads = 1;
  Random random(seed);
  return make_scene(options, {tree_sequence(random, 1400 + 64 * draw(random, 0, 5), num_rows),
                              tree_sequence(random, 300, num_rows)});
}

TEST(TensorAttention, UnitsCutIntoPiecesMatchTheOracle) {
  std::uint32_t seed = 700;
  for (const DType kv : {DType::kBFloat16, DType::kInt8}) {
    for (const int num_rows : {2, 12, 30}) {
      const Scene scene = long_scene(++seed, kv, 64, num_rows);
      SceneRun run(scene);
      const SceneOutput first = run.run();
      EXPECT_TRUE(matches_oracle(scene, first, product_rounding(kv))) << num_rows;
      const SceneOutput again = run.run();  // the counters are back at zero
      EXPECT_EQ(first.out, again.out);
      EXPECT_EQ(first.lse, again.lse);
    }
  }
}

TEST(TensorAttention, PiecesInTurnAreBitwiseTheSameAsPiecesAtOnce) {
  for (const int head_dim : {64, 256}) {
    Scene scene = long_scene(750, DType::kBFloat16, head_dim, 20);
    scene.options.plan.batch_invariant = true;
    scene.options.plan.invariant_chunk = 64;
    SceneRun at_once(scene);
    const SceneOutput expected = at_once.run();
    EXPECT_TRUE(matches_oracle(scene, expected, product_rounding(DType::kBFloat16)));

    scene.options.plan.max_context_len = 64;  // fewer slots than pieces
    SceneRun in_turn(scene);
    ASSERT_LT(in_turn.workspace_bytes, at_once.workspace_bytes);
    const SceneOutput output = in_turn.run();
    EXPECT_EQ(output.out, expected.out);
    EXPECT_EQ(output.lse, expected.lse);
  }
}

TEST(TensorAttention, ARowDoesNotDependOnTheBatchInItsInvariantMode) {
  std::uint32_t seed = 800;
  for (const DType kv : kCacheTypes) {
    SceneOptions options = tensor_scene(++seed, kv, 64);
    options.num_sequences = 6;
    options.max_context = 500;
    options.max_causal = 40;
    options.max_nodes = 40;
    options.window = seed % 2 == 0 ? 100 : 0;
    options.plan.batch_invariant = true;
    options.plan.invariant_chunk = 128;
    const Scene scene = make_scene(options);
    SceneRun run(scene);
    const SceneOutput batch = run.run();
    EXPECT_TRUE(matches_oracle(scene, batch, product_rounding(kv)));
    std::vector<std::byte> out;
    std::vector<float> lse;
    for (std::size_t i = 0; i < scene.sequences.size(); ++i) {
      const Scene alone = only_sequence(scene, i);
      SceneRun alone_run(alone);
      const SceneOutput output = alone_run.run();
      out.insert(out.end(), output.out.begin(), output.out.end());
      lse.insert(lse.end(), output.lse.begin(), output.lse.end());
    }
    EXPECT_EQ(batch.out, out) << name_of(kv);
    EXPECT_EQ(batch.lse, lse) << name_of(kv);
  }
}

/// One pass over a chain of nodes gives bit by bit what passes of one row each give.
TEST(TensorAttention, AChainVerifiesAsItDecodesInTheInvariantMode) {
  for (const int context_len : {61, 122, 700}) {
    SceneOptions options = tensor_scene(850, DType::kBFloat16, 64);
    options.max_causal = 1;
    options.plan.batch_invariant = true;
    options.plan.invariant_chunk = 64;
    SceneSequence chain{.context_len = context_len, .tree_rows = 9};
    for (int i = 0; i < chain.tree_rows; ++i) chain.parents.push_back(i - 1);
    const Scene scene = make_scene(options, {chain});
    const SceneOutput verified = SceneRun(scene).run();
    std::vector<std::byte> decoded;
    for (int i = 0; i < 9; ++i) {
      Scene decode = scene;
      decode.sequences[0] = {.context_len = context_len + i,
                             .num_causal = 1,
                             .pages = scene.sequences[0].pages,
                             .q_row = i};
      const SceneOutput output = SceneRun(decode).run();
      decoded.insert(decoded.end(), output.out.begin(), output.out.end());
    }
    EXPECT_EQ(verified.out, decoded) << context_len;
  }
}

TEST(TensorAttention, IsTheSameInAnyOrder) {
  std::uint32_t seed = 900;
  for (const bool invariant : {false, true}) {
    for (const int num_rows : {3, 30, 60}) {
      ++seed;
      Scene scene = long_scene(seed, kCacheTypes[seed % 5], kHeadDims[seed % 4], num_rows);
      scene.options.plan.batch_invariant = invariant;
      scene.options.plan.invariant_chunk = 256;
      SceneRun run(scene);
      const SceneOutput expected = run.run();
      emulation::for_each_schedule(2, [&] {
        const SceneOutput output = run.run();
        EXPECT_EQ(output.out, expected.out) << num_rows;
        EXPECT_EQ(output.lse, expected.lse) << num_rows;
      });
    }
  }
}

// ---- Parts

/// Weights are summed as they are multiplied, so a mean of equal values is that value.
TEST(TensorAttention, AMeanOfEqualValuesIsThatValue) {
  SceneOptions options = tensor_scene(1000, DType::kBFloat16, 64);
  options.dtype = DType::kBFloat16;
  Scene scene = make_scene(options);
  const std::size_t values = scene.v.size() / 2;
  for (std::size_t i = 0; i < values; ++i) encode(DType::kBFloat16, scene.v, i, 1.3125F);
  SceneRun run(scene);
  const SceneOutput output = run.run();
  for (std::size_t i = 0; i < output.out.size() / 2; ++i) {
    ASSERT_EQ(decode(DType::kBFloat16, output.out, i), 1.3125) << i;
  }
}

/// Of all 256 bytes, at all four places of a word.
template <class T, class Expected>
void expect_widened(const tensor::ByteFormat& format, Expected expected) {
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    const std::uint32_t word =
        byte | (byte ^ 0x5AU) << 8 | (byte ^ 0xFFU) << 16 | (byte ^ 0x81U) << 24;
    std::uint32_t even = 0;
    std::uint32_t odd = 0;
    tensor::widen<T>(even, odd, word, format);
    const std::uint32_t halves[] = {even & 0xFFFFU, odd & 0xFFFFU, even >> 16, odd >> 16};
    for (unsigned i = 0; i < 4; ++i) {
      const auto stored = static_cast<std::uint8_t>(word >> (8 * i));
      const float value = emulation::f16_to_float(static_cast<std::uint16_t>(halves[i]));
      const float wanted = expected(stored);
      if (std::isnan(wanted)) {
        EXPECT_TRUE(std::isnan(value)) << int{stored};
      } else {
        EXPECT_EQ(value, wanted) << int{stored} << " at " << i;
      }
    }
  }
}

TEST(TensorAttention, BytesWidenExactly) {
  using E4M3 = tensor::Traits<64, tensor::Kind::kE4M3, 16>;
  using Bytes = tensor::Traits<64, tensor::Kind::kBytes, 16>;
  expect_widened<E4M3>(
      {}, [](std::uint8_t byte) { return emulation::f16_to_float(emulation::e4m3_to_f16(byte)); });
  expect_widened<Bytes>(tensor::kE5M2Format, [](std::uint8_t byte) {
    return emulation::f16_to_float(static_cast<std::uint16_t>(byte << 8));
  });
  expect_widened<Bytes>(tensor::kInt8Format, [](std::uint8_t byte) {
    return static_cast<float>(static_cast<std::int8_t>(byte));
  });
}

TEST(TensorAttention, StagesFitTheDevice) {
  constexpr std::size_t kFixed = 6000;
  const auto fit = [](std::size_t max_shared_kib, std::size_t stage_bytes) {
    const tensor::Occupancy o = tensor::fit_stages(max_shared_kib * 1024, kFixed, stage_bytes);
    return std::pair{o.num_stages, o.num_blocks};
  };
  using Wide = tensor::Traits<256, tensor::Kind::kBFloat16, 64>;
  using Usual = tensor::Traits<128, tensor::Kind::kBFloat16, 64>;
  using Bytes = tensor::Traits<128, tensor::Kind::kE4M3, 64>;
  EXPECT_EQ(fit(227, Usual::kStageBytes), std::pair(3, 2));
  EXPECT_EQ(fit(163, Usual::kStageBytes), std::pair(2, 2));
  EXPECT_EQ(fit(99, Usual::kStageBytes), std::pair(2, 1));
  EXPECT_EQ(fit(227, Bytes::kStageBytes), std::pair(4, 2));
  EXPECT_EQ(fit(227, Wide::kStageBytes), std::pair(3, 1));
  EXPECT_EQ(fit(163, Wide::kStageBytes), std::pair(2, 1));
  EXPECT_EQ(fit(99, Wide::kStageBytes), std::pair(0, 0));
  EXPECT_EQ(fit(1, Usual::kStageBytes), std::pair(0, 0));
}

}  // namespace
}  // namespace smartspec::cuda
