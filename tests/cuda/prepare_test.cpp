// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What prepare_forest writes, how the work is handed to blocks, and which keys rows see, against
// plain enumeration.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "kernels/tree_attention/plan.cuh"
#include "schedule.hpp"
#include "tree_attention_check.hpp"

namespace smartspec::cuda {
namespace {

/// A pass of which only the lengths matter: one page, tiny heads.
Scene lengths_only(std::uint32_t seed, const SceneOptions& base) {
  SceneOptions options = base;
  options.seed = seed;
  options.head_dim = 1;
  options.page_size = 256;
  return make_scene(options);
}

struct Prepared {
  explicit Prepared(const Scene& scene) : run(scene), plan_options(scene.options.plan) {
    prepare();
  }
  void prepare() {
    run.state =
        prepare_forest(run.forest, plan_options, run.workspace, run.workspace_bytes, nullptr);
    plan = make_plan(plan_options, run.forest, run.workspace).plan;
  }
  SceneRun run;
  AttentionPlanOptions plan_options;
  AttentionPlan plan{};
};

int row_tiles_of(const AttentionPlan& plan, const SceneSequence& s) {
  return (s.num_rows() * plan.group + plan.tile_rows - 1) / plan.tile_rows;
}

/// Rows of a row tile, from its packed rows one by one.
std::vector<int> rows_of_tile(const AttentionPlan& plan, const SceneSequence& s, int row_tile) {
  std::set<int> rows;
  for (int packed = row_tile * plan.tile_rows; packed < (row_tile + 1) * plan.tile_rows; ++packed) {
    if (packed / plan.group < s.num_rows()) rows.insert(packed / plan.group);
  }
  return {rows.begin(), rows.end()};
}

/// Key tiles from the first to the last that a row of the tile may see, without looking at depths.
TileRange naive_tiles(const AttentionPlan& plan, const SceneSequence& s, int row_tile) {
  int first = s.num_keys();
  int last = 0;
  for (const int row : rows_of_tile(plan, s, row_tile)) {
    const std::vector<SceneKey> keys = keys_seen(s, row, 0);
    last = std::max(last, keys.back().index);
    const int position = row < s.num_causal ? s.context_len + row : s.context_len + s.num_causal;
    first = std::min(first, plan.window == 0 ? 0 : std::max(0, position - plan.window + 1));
  }
  return {first / kTileKeys, last / kTileKeys + 1};
}

std::vector<int> chunks_of(const AttentionPlan& plan, TileRange tiles) {
  std::set<int> chunks;
  for (int tile = tiles.first; tile < tiles.end; ++tile) chunks.insert(tile / plan.chunk_tiles);
  return {chunks.begin(), chunks.end()};
}

SceneOptions random_options(Random& random) {
  SceneOptions options;
  options.num_sequences = draw(random, 1, 12);
  options.num_kv_heads = draw(random, 1, 3);
  options.num_heads = options.num_kv_heads * draw(random, 1, 9);
  options.max_context = draw(random, 0, 1) == 0 ? 100 : 2000;
  options.max_causal = draw(random, 0, 2) == 0 ? 0 : draw(random, 1, 150);
  options.max_nodes = draw(random, 1, 64);
  options.earlier_nodes = draw(random, 0, 1) == 0;
  if (draw(random, 0, 2) == 0) options.plan.sliding_window = draw(random, 1, 300);
  options.window = options.plan.sliding_window;
  options.plan.batch_invariant = draw(random, 0, 1) == 0;
  options.plan.invariant_chunk = 64 * draw(random, 1, 5);
  options.plan.max_context_len = draw(random, 1, 3000);
  return options;
}

// ---- The trees

void expect_trees(const Scene& scene, const Prepared& prepared) {
  std::size_t node = 0;
  for (const SceneSequence& s : scene.sequences) {
    for (int i = 0; i < s.num_nodes(); ++i, ++node) {
      std::vector<std::uint32_t> set(kAncestorWords);
      int length = 0;
      for (int at = i; at >= 0; at = s.parents[static_cast<std::size_t>(at)], ++length) {
        set[static_cast<std::size_t>(at / 32)] |= 1U << (at % 32);
      }
      const std::uint32_t* got = prepared.run.state.ancestors + node * kAncestorWords;
      ASSERT_EQ(std::vector<std::uint32_t>(got, got + kAncestorWords), set) << "node " << node;
      ASSERT_EQ(prepared.run.state.depths[node], length - 1) << "node " << node;
    }
  }
}

TEST(PrepareForest, FindsAncestorsAndDepthsOfRandomTrees) {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    SceneOptions options;
    options.num_sequences = 9;
    options.max_nodes = seed % 2 == 0 ? 40 : kMaxTreeNodes;
    options.max_context = 10;
    const Scene scene = lengths_only(seed, options);
    expect_trees(scene, Prepared(scene));
  }
}

TEST(PrepareForest, FindsAncestorsOfTheLargestTrees) {
  SceneSequence chain{.context_len = 3, .tree_rows = kMaxTreeNodes};
  SceneSequence star = chain;
  for (int i = 0; i < kMaxTreeNodes; ++i) chain.parents.push_back(i - 1);
  star.parents.assign(kMaxTreeNodes, -1);
  SceneOptions options;
  options.head_dim = 1;
  const Scene scene = make_scene(options, {chain, SceneSequence{}, star, chain});
  expect_trees(scene, Prepared(scene));
}

TEST(PrepareForest, EndsOnParentsThatAreNotBeforeTheirChildren) {
  SceneSequence s{.context_len = 3, .tree_rows = 4, .parents = {0, 2, 1, -7}};
  SceneOptions options;
  options.head_dim = 1;
  const Scene scene = make_scene(options, {s});
  const Prepared prepared(scene);
  const std::vector<std::int32_t> depths(prepared.run.state.depths, prepared.run.state.depths + 4);
  EXPECT_EQ(depths, (std::vector<std::int32_t>{0, 0, 1, 0}));
}

// ---- The work

TEST(PrepareForest, SumsUpWork) {
  Random random(5);
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    const Scene scene = lengths_only(seed, random_options(random));
    const Prepared prepared(scene);
    const AttentionPlan& plan = prepared.plan;
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < scene.sequences.size(); ++i) {
      ASSERT_EQ(plan.tile_offsets[i], sum) << "seed " << seed << " sequence " << i;
      for (int t = 0; t < row_tiles_of(plan, scene.sequences[i]); ++t) {
        const TileRange tiles = naive_tiles(plan, scene.sequences[i], t);
        sum += plan.num_kv_heads * (plan.batch_invariant
                                        ? static_cast<int>(chunks_of(plan, tiles).size())
                                        : tiles.end - tiles.first);
      }
    }
    ASSERT_EQ(plan.tile_offsets[scene.sequences.size()], sum) << "seed " << seed;
  }
}

TEST(PrepareForest, SumsUpWorkOfManySequencesInAnyOrder) {
  SceneOptions options;
  options.num_sequences = 700;
  options.max_context = 200;
  options.max_nodes = 3;
  const Scene scene = lengths_only(3, options);
  Prepared prepared(scene);
  const auto count = static_cast<std::size_t>(options.num_sequences) + 1;
  const std::vector<std::int64_t> first(prepared.plan.tile_offsets,
                                        prepared.plan.tile_offsets + count);
  std::int64_t sum = 0;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    ASSERT_EQ(first[i], sum);
    for (int t = 0; t < row_tiles_of(prepared.plan, scene.sequences[i]); ++t) {
      const TileRange tiles = naive_tiles(prepared.plan, scene.sequences[i], t);
      sum += prepared.plan.num_kv_heads * (tiles.end - tiles.first);
    }
  }
  ASSERT_EQ(first.back(), sum);
  emulation::for_each_schedule(2, [&] {
    prepared.prepare();
    ASSERT_TRUE(std::equal(first.begin(), first.end(), prepared.plan.tile_offsets));
  });
}

using Unit = std::tuple<int, int, int>;  // sequence, KV head, row tile

struct Piece {
  WorkItem item{};
  int block = 0;
};

std::map<Unit, std::vector<Piece>> all_items(const AttentionPlan& plan, const Forest& forest) {
  std::map<Unit, std::vector<Piece>> units;
  for (int block = 0; block < plan.num_blocks; ++block) {
    Cursor cursor = first_item(plan, forest, block);
    WorkItem item;
    while (next_item(plan, forest, cursor, item)) {
      units[{item.sequence, item.kv_head, item.row_tile}].push_back({item, block});
    }
  }
  return units;
}

void expect_pieces(const AttentionPlan& plan, const TileRange& tiles,
                   const std::vector<Piece>& pieces) {
  const auto count = static_cast<std::int32_t>(pieces.size());
  int next = tiles.first;
  for (std::int32_t p = 0; p < count; ++p) {  // blocks are asked in order, so pieces are in order
    const WorkItem& item = pieces[static_cast<std::size_t>(p)].item;
    ASSERT_EQ(item.piece, p);
    ASSERT_EQ(item.num_pieces, count);
    ASSERT_EQ(item.first_key_tile, next);
    ASSERT_LT(item.first_key_tile, item.end_key_tile);
    next = item.end_key_tile;
    ASSERT_EQ(item.ending == Ending::kWhole, count == 1);
    if (plan.batch_invariant && p > 0) {
      ASSERT_EQ(item.first_key_tile % plan.chunk_tiles, 0);
    }
    if (item.ending == Ending::kPartial) {
      ASSERT_EQ(item.slot, piece_slot(plan, item, p));
      ASSERT_EQ(item.first_slot, pieces[0].item.slot);
      ASSERT_EQ(item.counter, pieces[0].item.counter);
    } else if (item.ending == Ending::kInTurn) {
      ASSERT_EQ(pieces[static_cast<std::size_t>(p)].block, pieces[0].block);
      ASSERT_EQ(item.slot, pieces[0].block);
    }
  }
  ASSERT_EQ(next, tiles.end);
  if (!plan.batch_invariant) return;
  ASSERT_EQ(static_cast<std::size_t>(count), chunks_of(plan, tiles).size());
}

/// Every (unit, key tile) once, and no two pieces share a slot or two units a counter.
void expect_cover(const Scene& scene, const AttentionPlan& plan, const Forest& forest) {
  const std::map<Unit, std::vector<Piece>> units = all_items(plan, forest);
  std::size_t num_units = 0;
  std::set<std::int32_t> slots;
  std::set<std::int32_t> counters;
  for (int i = 0; i < forest.num_sequences; ++i) {
    const SceneSequence& s = scene.sequences[static_cast<std::size_t>(i)];
    for (int head = 0; head < plan.num_kv_heads; ++head) {
      for (int tile = 0; tile < row_tiles_of(plan, s); ++tile, ++num_units) {
        const auto found = units.find({i, head, tile});
        ASSERT_NE(found, units.end()) << i << " " << head << " " << tile;
        ASSERT_NO_FATAL_FAILURE(expect_pieces(plan, naive_tiles(plan, s, tile), found->second));
        if (found->second[0].item.ending != Ending::kPartial) continue;
        for (const Piece& piece : found->second) {
          ASSERT_TRUE(slots.insert(piece.item.slot).second);
          ASSERT_LT(piece.item.slot, plan.num_slots);
        }
        ASSERT_TRUE(counters.insert(found->second[0].item.counter).second);
        ASSERT_LT(found->second[0].item.counter, kNumCounters);
      }
    }
  }
  ASSERT_EQ(units.size(), num_units);
}

TEST(WorkPlan, CoversEveryTileOnce) {
  Random random(11);
  for (std::uint32_t seed = 0; seed < 100; ++seed) {
    const Scene scene = lengths_only(seed, random_options(random));
    Prepared prepared(scene);
    for (int grid = 0; grid < 5; ++grid) {
      prepared.plan.num_blocks = grid == 0 ? prepared.plan.max_blocks : draw(random, 1, 40);
      prepared.plan.num_slots = std::max(prepared.plan.num_slots, 2 * prepared.plan.num_blocks);
      ASSERT_NO_FATAL_FAILURE(expect_cover(scene, prepared.plan, prepared.run.forest))
          << "seed " << seed << " blocks " << prepared.plan.num_blocks;
    }
  }
}

TEST(WorkPlan, TakesPiecesInTurnWhenSlotsAreFew) {
  Random random(12);
  int in_turn = 0;
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    SceneOptions options = random_options(random);
    options.plan.batch_invariant = true;
    const Scene scene = lengths_only(seed, options);
    Prepared prepared(scene);
    prepared.plan.num_blocks = draw(random, 1, 20);
    prepared.plan.num_slots = prepared.plan.num_blocks;
    ASSERT_NO_FATAL_FAILURE(expect_cover(scene, prepared.plan, prepared.run.forest));
    in_turn += prepared.plan.tile_offsets[options.num_sequences] > prepared.plan.num_slots;
  }
  EXPECT_GT(in_turn, 30);
}

TEST(WorkPlan, RowTilesFitTheAverageSequence) {
  AttentionPlanOptions options;
  options.num_heads = 32;
  options.num_kv_heads = 8;
  options.head_dim = 128;
  const auto tile_rows = [&](std::int32_t rows) {
    const Forest forest{.num_sequences = 10, .num_rows = rows};
    return make_plan(options, forest, nullptr).plan.tile_rows;
  };
  EXPECT_EQ(tile_rows(0), 16);
  EXPECT_EQ(tile_rows(40), 16);
  EXPECT_EQ(tile_rows(41), 64);
  EXPECT_EQ(tile_rows(160), 64);
  EXPECT_EQ(tile_rows(161), 128);
  options.kv_dtype = DType::kInt8;
  EXPECT_EQ(tile_rows(161), 64);
  options.kv_dtype = DType::kFloat16;
  options.head_dim = 256;
  EXPECT_EQ(tile_rows(161), 64);
  options.head_dim = 64;
  options.batch_invariant = true;
  EXPECT_EQ(tile_rows(10), 64);
  EXPECT_EQ(tile_rows(1000), 64);
}

TEST(WorkPlan, BlocksDoEqualWork) {
  SceneOptions options;
  options.num_sequences = 7;
  options.max_context = 3000;
  const Scene scene = lengths_only(2, options);
  Prepared prepared(scene);
  prepared.plan.num_blocks = 13;
  std::vector<int> tiles(13);
  for (const auto& [unit, pieces] : all_items(prepared.plan, prepared.run.forest)) {
    for (const Piece& piece : pieces) {
      tiles[static_cast<std::size_t>(piece.block)] +=
          piece.item.end_key_tile - piece.item.first_key_tile;
    }
  }
  EXPECT_LE(*std::max_element(tiles.begin(), tiles.end()),
            *std::min_element(tiles.begin(), tiles.end()) + 1);
}

TEST(WorkPlan, LeavesBlocksIdleRatherThanCutFine) {
  SceneOptions options;
  options.head_dim = 1;
  options.num_kv_heads = 1;
  options.num_heads = 1;
  SceneSequence s{.context_len = 640, .tree_rows = 1, .parents = {-1}};  // 11 tiles
  const Scene scene = make_scene(options, {s});
  Prepared prepared(scene);
  prepared.plan.num_blocks = 8;
  const auto units = all_items(prepared.plan, prepared.run.forest);
  ASSERT_EQ(units.size(), 1U);
  EXPECT_EQ(units.begin()->second.size(), 3U);
}

TEST(WorkPlan, NothingToDoWithoutRows) {
  SceneOptions options;
  options.head_dim = 1;
  const Scene scene = make_scene(options, {SceneSequence{.context_len = 5}, SceneSequence{}});
  Prepared prepared(scene);
  prepared.plan.num_blocks = 3;
  EXPECT_TRUE(all_items(prepared.plan, prepared.run.forest).empty());
}

// ---- Visibility

/// All rows and key tiles of a sequence.
void expect_visibility(const Prepared& prepared, const SceneSequence& s, std::int32_t sequence,
                       int window) {
  const SequenceShape shape = load_sequence(prepared.run.forest, sequence);
  for (int tile = 0; tile < row_tiles_of(prepared.plan, s); ++tile) {
    const std::vector<int> rows = rows_of_tile(prepared.plan, s, tile);
    const int num_key_tiles = (s.num_keys() + kTileKeys - 1) / kTileKeys;
    for (int key_tile = 0; key_tile < num_key_tiles; ++key_tile) {
      std::uint64_t all = ~std::uint64_t{0};
      for (const int row : rows) {
        std::uint64_t expected = 0;
        for (const SceneKey& key : keys_seen(s, row, window)) {
          if (key.index / kTileKeys == key_tile) expected |= 1ULL << (key.index % kTileKeys);
        }
        const RowView view = load_row(shape, prepared.run.state, row, window);
        ASSERT_EQ(visible_keys(view, key_tile * kTileKeys), expected) << row << " " << key_tile;
        for (int i = 0; i < kTileKeys && key_tile * kTileKeys + i < s.num_keys(); ++i) {
          ASSERT_EQ(sees(view, key_tile * kTileKeys + i), (expected >> i & 1) != 0);
        }
        all &= expected;
      }
      if (!needs_mask(prepared.plan, shape, tile, key_tile, window)) {
        ASSERT_EQ(all, ~std::uint64_t{0}) << tile << " " << key_tile;
      } else if (window == 0) {
        ASSERT_GT((key_tile + 1) * kTileKeys, s.context_len) << "the prefix needs no mask";
      }
    }
  }
}

TEST(Visibility, IsThatOfPathsToTheRoot) {
  Random random(21);
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    SceneOptions options = random_options(random);
    options.num_sequences = 4;
    options.max_context = 300;
    if (seed % 4 == 0) options.max_nodes = kMaxTreeNodes;
    options.plan.sliding_window = 0;
    const Scene scene = lengths_only(seed, options);
    const Prepared prepared(scene);
    for (const int window : {0, 1, 3, 40, 200}) {
      for (std::size_t i = 0; i < scene.sequences.size(); ++i) {
        ASSERT_NO_FATAL_FAILURE(
            expect_visibility(prepared, scene.sequences[i], static_cast<std::int32_t>(i), window))
            << "seed " << seed << " sequence " << i << " window " << window;
      }
    }
  }
}

TEST(Visibility, AnyFirstKeyIsAllowed) {
  SceneOptions options;
  options.max_nodes = 200;
  options.max_context = 90;
  const Scene scene = lengths_only(8, options);
  const Prepared prepared(scene);
  for (std::size_t i = 0; i < scene.sequences.size(); ++i) {
    const SceneSequence& s = scene.sequences[i];
    const SequenceShape shape = load_sequence(prepared.run.forest, static_cast<std::int32_t>(i));
    for (int row = 0; row < s.num_rows(); row += 7) {
      const RowView view = load_row(shape, prepared.run.state, row, 0);
      for (int first = 0; first < s.num_keys(); first += 5) {
        const std::uint64_t bits = visible_keys(view, first);
        for (int k = 0; k < 64 && first + k < s.num_keys(); ++k) {
          ASSERT_EQ((bits >> k & 1) != 0, sees(view, first + k));
        }
      }
    }
  }
}

}  // namespace
}  // namespace smartspec::cuda
