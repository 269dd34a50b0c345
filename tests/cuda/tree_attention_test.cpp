// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The simple attention kernel and the entry points. tree_attention_tensor_test.cpp has the tests of
// the tensor-core kernel.
#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "schedule.hpp"
#include "tree_attention_check.hpp"

namespace smartspec::cuda {
namespace {

/// What has no tensor-core kernel.
SceneOptions simple_scene(std::uint32_t seed) {
  SceneOptions options;
  options.seed = seed;
  options.head_dim = 24;
  options.kv_dtype = DType::kFloat32;
  options.dtype = DType::kFloat32;
  return options;
}

// ---- The simple kernel

TEST(SimpleAttention, MatchesTheOracleForAllCacheAndRowTypes) {
  std::uint32_t seed = 1;
  for (const DType kv : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3,
                         DType::kFloat8E5M2, DType::kInt8}) {
    for (const DType rows : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      SceneOptions options = simple_scene(++seed);
      options.kv_dtype = kv;
      options.dtype = rows;
      options.has_scales = size_of(kv) == 1;
      EXPECT_TRUE(check_attention(make_scene(options), Path::kSimple))
          << name_of(kv) << " " << name_of(rows);
    }
  }
}

TEST(SimpleAttention, MatchesTheOracleForAllPageSizesAndLayouts) {
  std::uint32_t seed = 100;
  for (const int page_size : {1, 3, 16, 256}) {
    for (const bool heads_outside : {false, true}) {
      SceneOptions options = simple_scene(++seed);
      options.page_size = page_size;
      options.heads_outside = heads_outside;
      options.interleaved = seed % 2 == 0;
      options.max_causal = 12;
      options.earlier_nodes = true;
      EXPECT_TRUE(check_attention(make_scene(options), Path::kSimple)) << page_size;
    }
  }
}

TEST(SimpleAttention, MatchesTheOracleForAllHeadShapes) {
  std::uint32_t seed = 200;
  for (const int head_dim : {1, 31, 32, 80, 100, 256}) {
    for (const int group : {1, 2, 4, 8}) {
      SceneOptions options = simple_scene(++seed);
      options.head_dim = head_dim;
      options.num_kv_heads = group == 8 ? 1 : 2;
      options.num_heads = group * options.num_kv_heads;
      options.max_context = 40;
      options.max_nodes = 6;
      options.num_sequences = 3;
      EXPECT_TRUE(check_attention(make_scene(options), Path::kSimple)) << head_dim << " " << group;
    }
  }
}

TEST(SimpleAttention, MatchesTheOracleForMixedPasses) {
  Random random(3);
  for (std::uint32_t seed = 300; seed < 330; ++seed) {
    SceneOptions options = simple_scene(seed);
    options.head_dim = 8;
    options.page_size = draw(random, 1, 20);
    options.num_sequences = draw(random, 1, 6);
    options.max_context = draw(random, 0, 300);
    options.max_causal = draw(random, 0, 20);
    options.max_nodes = draw(random, 1, 40);
    options.earlier_nodes = draw(random, 0, 1) == 0;
    options.window = seed % 3 == 0 ? 0 : draw(random, 1, seed % 3 == 1 ? 8 : 80);
    options.soft_cap = draw(random, 0, 1) == 0 ? 0.0F : 1.5F;
    options.scale = draw(random, 0, 1) == 0 ? 0.0F : 0.7F;
    options.has_lse = draw(random, 0, 3) > 0;
    options.spare_rows = draw(random, 0, 2);
    EXPECT_TRUE(check_attention(make_scene(options), Path::kSimple)) << "seed " << seed;
  }
}

TEST(SimpleAttention, LargeScoresDoNotOverflow) {
  SceneOptions options = simple_scene(7);
  options.scale = 60.0F;
  Scene scene = make_scene(options);
  SceneRun run(scene);
  const SceneOutput output = run.run(Path::kSimple);
  // Rounding of scores of some hundreds shows in the weights.
  EXPECT_TRUE(matches_oracle(scene, output, 0x1p-16));
}

TEST(SimpleAttention, IsTheSameInAnyOrder) {
  SceneOptions options = simple_scene(9);
  options.max_causal = 5;
  options.max_context = 80;
  const Scene scene = make_scene(options);
  SceneRun run(scene);
  const SceneOutput first = run.run(Path::kSimple);
  ASSERT_TRUE(matches_oracle(scene, first, 0x1p-24));
  emulation::for_each_schedule(2, [&] {
    const SceneOutput again = run.run(Path::kSimple);
    EXPECT_EQ(again.out, first.out);
    EXPECT_EQ(again.lse, first.lse);
  });
}

TEST(SimpleAttention, ARowDoesNotDependOnTheBatch) {
  SceneOptions options = simple_scene(10);
  options.max_causal = 9;
  options.num_sequences = 5;
  const Scene scene = make_scene(options);
  const SceneOutput together = SceneRun(scene).run(Path::kSimple);
  const std::size_t row_bytes = scene.row_size() * size_of(options.dtype);
  for (std::size_t i = 0; i < scene.sequences.size(); ++i) {
    const Scene alone = only_sequence(scene, i);
    const SceneOutput output = SceneRun(alone).run(Path::kSimple);
    const auto begin =
        together.out.begin() +
        static_cast<std::ptrdiff_t>(static_cast<std::size_t>(scene.sequences[i].q_row) * row_bytes);
    EXPECT_TRUE(std::equal(output.out.begin(), output.out.end(), begin)) << i;
  }
}

TEST(SimpleAttention, AChainVerifiesAsItDecodes) {
  // One pass over a chain of nodes gives bit by bit what passes of one row each give.
  SceneOptions options = simple_scene(12);
  options.max_causal = 1;
  SceneSequence chain{.context_len = 61, .tree_rows = 7};
  for (int i = 0; i < chain.tree_rows; ++i) chain.parents.push_back(i - 1);
  const Scene scene = make_scene(options, {chain});
  const SceneOutput verified = SceneRun(scene).run(Path::kSimple);
  const std::size_t row_bytes = scene.row_size() * size_of(options.dtype);
  for (int i = 0; i < 7; ++i) {
    Scene decode = scene;
    decode.sequences[0].context_len = 61 + i;
    decode.sequences[0].num_causal = 1;
    decode.sequences[0].tree_rows = 0;
    decode.sequences[0].parents.clear();
    decode.sequences[0].q_row = i;
    const SceneOutput output = SceneRun(decode).run(Path::kSimple);
    EXPECT_TRUE(std::equal(output.out.begin(), output.out.end(),
                           verified.out.begin() + static_cast<std::ptrdiff_t>(
                                                      static_cast<std::size_t>(i) * row_bytes)))
        << i;
  }
}

// ---- Entry points

TEST(TreeAttentionEntry, RunsWhatHasNoTensorKernel) {
  for (std::uint32_t seed = 20; seed < 26; ++seed) {
    SceneOptions options = simple_scene(seed);
    options.plan.batch_invariant = seed % 2 == 0;
    options.max_causal = 4;
    if (seed % 3 == 0) options.window = options.plan.sliding_window = 33;
    EXPECT_TRUE(check_attention(make_scene(options))) << seed;
  }
}

TEST(TreeAttentionEntry, OneWorkspaceServesPassesOfAllSizes) {
  AttentionPlanOptions plan;
  plan.num_heads = 4;
  plan.num_kv_heads = 2;
  plan.head_dim = 24;
  plan.kv_dtype = DType::kFloat32;
  for (const bool invariant : {false, true}) {
    plan.batch_invariant = invariant;
    const DeviceArray<std::byte> workspace(
        std::vector<std::byte>(attention_workspace_bytes(plan, 6, 200, 200)));
    for (std::uint32_t seed = 40; seed < 46; ++seed) {
      SceneOptions options = simple_scene(seed);
      options.num_sequences = 1 + static_cast<int>(seed % 6);
      options.plan.batch_invariant = invariant;
      const Scene scene = make_scene(options);
      SceneRun run(scene);
      run.workspace = workspace.get();
      run.workspace_bytes = workspace.bytes();
      EXPECT_TRUE(matches_oracle(scene, run.run(), 0x1p-24)) << seed;
    }
    const std::vector<std::byte> after = workspace.read();
    EXPECT_TRUE(std::all_of(after.begin(), after.begin() + kNumCounters * 4, [](std::byte b) {
      return b == std::byte{0};
    })) << "counters return to zero";
  }
}

TEST(TreeAttentionEntry, WorkspaceGrowsWithTheSizes) {
  AttentionPlanOptions options;
  options.num_heads = 32;
  options.num_kv_heads = 8;
  options.head_dim = 128;
  for (const bool invariant : {false, true}) {
    options.batch_invariant = invariant;
    Random random(1);
    for (int i = 0; i < 200; ++i) {
      const int sequences = draw(random, 0, 300);
      const int rows = draw(random, 0, 9000);
      const int nodes = draw(random, 0, 9000);
      const std::size_t bytes = attention_workspace_bytes(options, sequences, rows, nodes);
      EXPECT_GE(attention_workspace_bytes(options, sequences + draw(random, 0, 3),
                                          rows + draw(random, 0, 99), nodes + draw(random, 0, 99)),
                bytes);
      EXPECT_LE(bytes, kMaxPartialBytes + (std::size_t{1} << 22));
    }
  }
}

TEST(TreeAttentionEntry, NothingToDo) {
  SceneOptions options = simple_scene(1);
  const Scene scene = make_scene(options, {SceneSequence{.context_len = 3}});
  EXPECT_TRUE(check_attention(scene));  // no rows
  SceneRun run(scene);
  run.forest = Forest{};
  EXPECT_NO_THROW(run.run());  // no sequences
}

/// What the entry points say about a scene that `spoil` changed.
std::string refusal(const std::function<void(SceneRun&, AttentionPlanOptions&)>& spoil,
                    bool tensor = false) {
  SceneOptions options = simple_scene(5);
  if (tensor) {
    options.kv_dtype = DType::kBFloat16;
    options.dtype = DType::kBFloat16;
    options.head_dim = 64;
  }
  options.num_sequences = 2;
  options.max_context = 10;
  const Scene scene = make_scene(options);
  SceneRun run(scene);
  AttentionPlanOptions plan = scene.options.plan;
  const ForestState good =
      prepare_forest(run.forest, plan, run.workspace, run.workspace_bytes, nullptr);
  run.state = good;
  spoil(run, plan);
  try {
    prepare_forest(run.forest, plan, run.workspace, run.workspace_bytes, nullptr);
    tree_attention(run.attention, run.forest, plan, run.state, run.workspace, run.workspace_bytes,
                   nullptr);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

#define EXPECT_REFUSAL(expected, ...)                                                  \
  EXPECT_EQ(refusal([]([[maybe_unused]] SceneRun& run,                                 \
                       [[maybe_unused]] AttentionPlanOptions& plan) { __VA_ARGS__; }), \
            expected)

TEST(TreeAttentionEntry, RefusesOptions) {
  EXPECT_REFUSAL("accepted", );
  EXPECT_REFUSAL("prepare_forest: options.num_kv_heads is 0; allowed: 1 to 1024",
                 plan.num_kv_heads = 0);
  EXPECT_REFUSAL("prepare_forest: options.num_heads is 5; allowed: multiples of num_kv_heads 2",
                 plan.num_heads = 5);
  EXPECT_REFUSAL("prepare_forest: options.head_dim is 257; allowed: 1 to 256", plan.head_dim = 257);
  EXPECT_REFUSAL("prepare_forest: options.sliding_window is -1; allowed: at least 0",
                 plan.sliding_window = -1);
  EXPECT_REFUSAL("prepare_forest: options.invariant_chunk is 100; allowed: multiples of 64",
                 plan.batch_invariant = true;
                 plan.invariant_chunk = 100);
  EXPECT_REFUSAL("prepare_forest: options.max_context_len is 0; allowed: at least 1",
                 plan.batch_invariant = true;
                 plan.max_context_len = 0);
}

TEST(TreeAttentionEntry, RefusesForests) {
  EXPECT_REFUSAL("prepare_forest: forest.num_sequences is -1; allowed: at least 0",
                 run.forest.num_sequences = -1);
  EXPECT_REFUSAL("prepare_forest: forest.num_rows is 5; allowed: 0 to 0",
                 run.forest.num_sequences = 0;
                 run.forest.num_rows = 5);
  EXPECT_REFUSAL("prepare_forest: forest.row_offsets is null; allowed: device memory",
                 run.forest.row_offsets = nullptr);
  EXPECT_REFUSAL("prepare_forest: forest.parents is null; allowed: device memory",
                 run.forest.parents = nullptr);
  EXPECT_REFUSAL("prepare_forest: forest.block_table_stride is 0; allowed: at least 1",
                 run.forest.block_table_stride = 0);
}

TEST(TreeAttentionEntry, RefusesWorkspaces) {
  EXPECT_REFUSAL("prepare_forest: workspace is null; allowed: device memory",
                 run.workspace = nullptr);
  const std::string little =
      refusal([](SceneRun& run, AttentionPlanOptions&) { run.workspace_bytes -= 1; });
  EXPECT_NE(little.find("prepare_forest: workspace_bytes is "), std::string::npos) << little;
  EXPECT_NE(little.find("; allowed: at least "), std::string::npos) << little;
  EXPECT_REFUSAL("prepare_forest: workspace is not aligned; allowed: multiples of 16 bytes",
                 run.workspace = static_cast<std::byte*>(run.workspace) + 8);
  EXPECT_REFUSAL(
      "tree_attention: state is not that of prepare_forest; allowed: what it returned for this "
      "workspace and sizes",
      run.state = {});
}

TEST(TreeAttentionEntry, RefusesAttention) {
  EXPECT_REFUSAL("tree_attention: dtype is int32; allowed: float32, bfloat16, float16",
                 run.attention.dtype = DType::kInt32);
  EXPECT_REFUSAL("tree_attention: kv.dtype is int8; allowed: float32 of options.kv_dtype",
                 run.attention.kv.dtype = DType::kInt8);
  EXPECT_REFUSAL("tree_attention: kv.num_kv_heads is 1; allowed: 2 to 2",
                 run.attention.kv.num_kv_heads = 1);
  EXPECT_REFUSAL("tree_attention: kv.page_size is 257; allowed: 1 to 256",
                 run.attention.kv.page_size = 257);
  EXPECT_REFUSAL("tree_attention: kv.k is null; allowed: device memory",
                 run.attention.kv.k = nullptr);
  EXPECT_REFUSAL("tree_attention: kv.k_scale is set; allowed: null for float32",
                 run.attention.kv.k_scale = run.attention.lse);
  EXPECT_REFUSAL("tree_attention: q_stride is 95; allowed: at least 96",
                 run.attention.q_stride = 95);
  EXPECT_REFUSAL("tree_attention: q is null; allowed: device memory", run.attention.q = nullptr);
  EXPECT_REFUSAL("tree_attention: sliding_window is 7; allowed: 9 of options.sliding_window",
                 plan.sliding_window = 9;
                 run.attention.sliding_window = 7);
  EXPECT_REFUSAL("tree_attention: scale is nan; allowed: finite numbers",
                 run.attention.scale = std::nanf(""));
  EXPECT_REFUSAL("tree_attention: soft_cap is -1.000000; allowed: finite numbers from 0 on",
                 run.attention.soft_cap = -1.0F);
}

TEST(TreeAttentionEntry, TensorCoresNeedAlignment) {
  const auto refused = [](const std::function<void(SceneRun&, AttentionPlanOptions&)>& spoil) {
    return refusal(spoil, true);
  };
  EXPECT_EQ(refused([](SceneRun& run, AttentionPlanOptions&) { run.attention.q_stride += 1; }),
            "tree_attention: q_stride is 289; allowed: multiples of 8 (16 bytes)");
  EXPECT_EQ(refused([](SceneRun& run, AttentionPlanOptions&) {
              run.attention.kv.k = static_cast<std::byte*>(run.attention.kv.k) + 2;
            }),
            "tree_attention: kv.k is not aligned; allowed: multiples of 16 bytes");
}

}  // namespace
}  // namespace smartspec::cuda
