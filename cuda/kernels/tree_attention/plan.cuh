// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What a block of tree attention works on, and which keys a row sees. Everything is worked out on
// the device from the lengths there, so a captured graph stays right when they change; every
// function is pure and gives all threads of a block the same answer.
//
// Work is counted per unit (tree_attention.h) and laid out in the order sequence, KV head, row
// tile; tile_offsets holds its prefix sums per sequence.
// - Balanced: work is key tiles, and block b does the tiles [b W / B, (b + 1) W / B) of W with B
//   blocks (Stream-K, Osama et al. 2023). A unit that crosses a boundary is cut into pieces.
// - Batch-invariant: work is pieces, the keys of a unit cut at multiples of chunk_tiles, so that a
//   row's sums do not depend on the other sequences. With no more pieces than slots they are split
//   evenly over the blocks; else ("in turn") a block does the units that begin in its share, piece
//   by piece, and folds each into one slot. Both fold pieces from left to right with the same
//   arithmetic, so results are equal bit by bit.
//
// A kernel does
//   Cursor cursor = first_item(plan, forest, block_x());
//   WorkItem item;
//   while (next_item(plan, forest, cursor, item)) { ... }
// and ends each item by `item.ending`:
//   kWhole    write the rows out.
//   kPartial  store to `slot`, fence, add 1 to counters[counter]; the block that finds
//             num_pieces - 1 there resets it to 0, fences, folds the slots piece_slot(item, 0),
//             piece_slot(item, 1), ... in this order and writes the rows out.
//   kInTurn   piece > 0: fold what `slot` holds with this piece, in this order. Last piece: write
//             out, else store to `slot`. Only this block touches the slot.
#pragma once

#include "common/device.cuh"
#include "kernels/tree_attention/tree_attention.h"

namespace smartspec::cuda {

/// One sequence of a forest. Keys: [0, context_len) context, then num_causal rows, then nodes.
struct SequenceShape {
  std::int32_t first_row = 0;  // of the pass
  std::int32_t num_rows = 0;
  std::int32_t context_len = 0;
  std::int32_t num_causal = 0;
  std::int32_t first_node = 0;  // of the pass
  std::int32_t num_nodes = 0;
  std::int32_t tree_start = 0;  // nodes that earlier passes wrote; row num_causal is this node
  std::int32_t prefix_len = 0;  // context_len + num_causal: the key of node 0
};

SMARTSPEC_DEVICE SequenceShape load_sequence(const Forest& forest, std::int32_t sequence) {
  SequenceShape shape;
  shape.first_row = forest.row_offsets[sequence];
  shape.num_rows = forest.row_offsets[sequence + 1] - shape.first_row;
  shape.context_len = forest.context_lens[sequence];
  shape.num_causal = forest.num_causal == nullptr ? 0 : forest.num_causal[sequence];
  shape.first_node = forest.node_offsets[sequence];
  shape.num_nodes = forest.node_offsets[sequence + 1] - shape.first_node;
  shape.tree_start = shape.num_nodes - (shape.num_rows - shape.num_causal);
  shape.prefix_len = shape.context_len + shape.num_causal;
  return shape;
}

/// Key that a row (within its sequence) writes; no row sees a later one.
SMARTSPEC_DEVICE std::int32_t own_key(const SequenceShape& shape, std::int32_t row) {
  return shape.context_len + row + (row < shape.num_causal ? 0 : shape.tree_start);
}

// ---- Units

struct TileRange {
  std::int32_t first = 0;
  std::int32_t end = 0;
};

SMARTSPEC_DEVICE std::int32_t num_row_tiles(const AttentionPlan& plan, const SequenceShape& shape) {
  return (shape.num_rows * plan.group + plan.tile_rows - 1) / plan.tile_rows;
}

/// Rows of a row tile, within the sequence: [first, end). Its packed rows may begin and end within
/// a row.
SMARTSPEC_DEVICE TileRange tile_row_range(const AttentionPlan& plan, const SequenceShape& shape,
                                          std::int32_t row_tile) {
  const std::int32_t first = row_tile * plan.tile_rows;
  const std::int32_t all = shape.num_rows * plan.group;
  const std::int32_t end = first + plan.tile_rows < all ? first + plan.tile_rows : all;
  return {first / plan.group, (end - 1) / plan.group + 1};
}

/// First key that any of the rows from `row` on sees through the window. Nodes lie at prefix_len or
/// later, and all keys before have positions equal to their indices.
SMARTSPEC_DEVICE std::int32_t first_key_in_window(const SequenceShape& shape, std::int32_t row,
                                                  std::int32_t window) {
  const std::int32_t position =
      shape.context_len + (row < shape.num_causal ? row : shape.num_causal);
  return window > 0 && position >= window ? position - window + 1 : 0;
}

/// Key tiles that the unit visits; never empty. A kernel whose window is smaller than the plan's
/// (plan.window 0: all keys) may skip tiles before first_key_in_window.
SMARTSPEC_DEVICE TileRange unit_key_tiles(const AttentionPlan& plan, const SequenceShape& shape,
                                          std::int32_t row_tile) {
  const TileRange rows = tile_row_range(plan, shape, row_tile);
  return {first_key_in_window(shape, rows.first, plan.window) / kTileKeys,
          own_key(shape, rows.end - 1) / kTileKeys + 1};
}

/// Work of the unit: key tiles, or pieces in batch-invariant mode.
SMARTSPEC_DEVICE std::int32_t unit_work(const AttentionPlan& plan, TileRange tiles) {
  if (!plan.batch_invariant) return tiles.end - tiles.first;
  return (tiles.end - 1) / plan.chunk_tiles - tiles.first / plan.chunk_tiles + 1;
}

// ---- Items

enum class Ending : std::int32_t { kWhole, kPartial, kInTurn };

struct WorkItem {
  SequenceShape shape{};
  std::int32_t sequence = 0;
  std::int32_t kv_head = 0;
  std::int32_t row_tile = 0;
  std::int32_t first_key_tile = 0;  // visits [first_key_tile, end_key_tile), at least one
  std::int32_t end_key_tile = 0;
  Ending ending = Ending::kWhole;
  std::int32_t piece = 0;  // of num_pieces; 0 and 1 when whole
  std::int32_t num_pieces = 1;
  std::int32_t slot = 0;        // of this piece
  std::int32_t first_slot = 0;  // of piece 0
  std::int32_t counter = 0;     // of the unit
};

/// Where a block stands. A copy looks ahead.
struct Cursor {
  std::int32_t block = 0;
  std::int64_t total = 0;
  std::int32_t num_blocks = 0;  // that have work
  std::int64_t next = 0;        // work to do next
  std::int64_t end = 0;         // of the block's share
  bool in_turn = false;
  // The unit that `next` lies in.
  std::int64_t unit_begin = 0;
  std::int64_t unit_end = 0;
  std::int32_t sequence = 0;
  std::int32_t kv_head = 0;
  std::int32_t row_tile = 0;
  SequenceShape shape{};
  TileRange tiles{};
};

/// First work of a block's share; that of the next block ends it.
SMARTSPEC_DEVICE std::int64_t share_begin(const Cursor& cursor, std::int32_t block) {
  return block * cursor.total / cursor.num_blocks;
}
/// The block whose share holds `work`.
SMARTSPEC_DEVICE std::int32_t block_of(const Cursor& cursor, std::int64_t work) {
  return static_cast<std::int32_t>(((work + 1) * cursor.num_blocks - 1) / cursor.total);
}

namespace plan_detail {

/// The sequence that holds `work`: the last one that begins at or before it.
SMARTSPEC_DEVICE std::int32_t find_sequence(const AttentionPlan& plan, std::int32_t num_sequences,
                                            std::int64_t work) {
  std::int32_t low = 0;
  std::int32_t high = num_sequences;
  while (high - low > 1) {
    const std::int32_t middle = low + (high - low) / 2;
    if (plan.tile_offsets[middle] <= work) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

SMARTSPEC_DEVICE void enter_unit(const AttentionPlan& plan, Cursor& cursor) {
  cursor.tiles = unit_key_tiles(plan, cursor.shape, cursor.row_tile);
  cursor.unit_end = cursor.unit_begin + unit_work(plan, cursor.tiles);
}

/// To the unit after the present one, which is not the last.
SMARTSPEC_DEVICE void advance_unit(const AttentionPlan& plan, const Forest& forest,
                                   Cursor& cursor) {
  cursor.unit_begin = cursor.unit_end;
  if (++cursor.row_tile == num_row_tiles(plan, cursor.shape)) {
    cursor.row_tile = 0;
    if (++cursor.kv_head == plan.num_kv_heads) {
      cursor.kv_head = 0;
      do {
        ++cursor.sequence;  // sequences without rows have no work
      } while (plan.tile_offsets[cursor.sequence + 1] <= cursor.unit_begin);
      cursor.shape = load_sequence(forest, cursor.sequence);
    }
  }
  enter_unit(plan, cursor);
}

SMARTSPEC_DEVICE void describe_balanced(const Cursor& cursor, std::int64_t stop, WorkItem& item) {
  const auto from = static_cast<std::int32_t>(cursor.next - cursor.unit_begin);
  item.first_key_tile = cursor.tiles.first + from;
  item.end_key_tile = item.first_key_tile + static_cast<std::int32_t>(stop - cursor.next);
  const std::int32_t first_block = block_of(cursor, cursor.unit_begin);
  item.num_pieces = block_of(cursor, cursor.unit_end - 1) - first_block + 1;
  item.piece = block_of(cursor, cursor.next) - first_block;
  item.ending = item.num_pieces == 1 ? Ending::kWhole : Ending::kPartial;
  // A block has at most one piece that begins its unit and one that continues another: two slots.
  item.first_slot = 2 * first_block + 1;
  item.slot = item.piece == 0 ? item.first_slot : 2 * (first_block + item.piece);
  item.counter = first_block;
}

SMARTSPEC_DEVICE void describe_invariant(const AttentionPlan& plan, const Cursor& cursor,
                                         WorkItem& item) {
  item.piece = static_cast<std::int32_t>(cursor.next - cursor.unit_begin);
  item.num_pieces = static_cast<std::int32_t>(cursor.unit_end - cursor.unit_begin);
  const std::int32_t chunk = cursor.tiles.first / plan.chunk_tiles + item.piece;
  const std::int32_t begin = chunk * plan.chunk_tiles;
  const std::int32_t end = begin + plan.chunk_tiles;
  item.first_key_tile = begin > cursor.tiles.first ? begin : cursor.tiles.first;
  item.end_key_tile = end < cursor.tiles.end ? end : cursor.tiles.end;
  if (item.num_pieces == 1) {
    item.ending = Ending::kWhole;
  } else if (cursor.in_turn) {
    item.ending = Ending::kInTurn;
    item.first_slot = cursor.block;
    item.slot = cursor.block;
  } else {
    item.ending = Ending::kPartial;
    item.first_slot = static_cast<std::int32_t>(cursor.unit_begin);
    item.slot = item.first_slot + item.piece;
    item.counter = item.first_slot;
  }
}

}  // namespace plan_detail

/// Slot of piece `piece` of the item's unit.
SMARTSPEC_DEVICE std::int32_t piece_slot(const AttentionPlan& plan, const WorkItem& item,
                                         std::int32_t piece) {
  if (plan.batch_invariant) return item.first_slot + piece;
  return piece == 0 ? item.first_slot : item.first_slot - 1 + 2 * piece;
}

SMARTSPEC_DEVICE Cursor first_item(const AttentionPlan& plan, const Forest& forest,
                                   std::int32_t block) {
  Cursor cursor;
  cursor.block = block;
  cursor.total = forest.num_sequences == 0 ? 0 : plan.tile_offsets[forest.num_sequences];
  if (cursor.total == 0) return cursor;
  const std::int64_t finest = plan.batch_invariant ? 1 : kMinTilesPerBlock;
  const std::int64_t useful = (cursor.total + finest - 1) / finest;
  cursor.num_blocks =
      useful < plan.num_blocks ? static_cast<std::int32_t>(useful) : plan.num_blocks;
  if (block >= cursor.num_blocks) return cursor;
  cursor.in_turn = plan.batch_invariant && cursor.total > plan.num_slots;
  cursor.next = share_begin(cursor, block);
  cursor.end = share_begin(cursor, block + 1);

  cursor.sequence = plan_detail::find_sequence(plan, forest.num_sequences, cursor.next);
  cursor.shape = load_sequence(forest, cursor.sequence);
  const std::int64_t begin = plan.tile_offsets[cursor.sequence];
  const std::int64_t per_head =
      (plan.tile_offsets[cursor.sequence + 1] - begin) / plan.num_kv_heads;
  cursor.kv_head = static_cast<std::int32_t>((cursor.next - begin) / per_head);
  cursor.unit_begin = begin + cursor.kv_head * per_head;
  plan_detail::enter_unit(plan, cursor);
  while (cursor.unit_end <= cursor.next) {  // a prefill has some hundred row tiles, a tree a few
    ++cursor.row_tile;
    cursor.unit_begin = cursor.unit_end;
    plan_detail::enter_unit(plan, cursor);
  }
  if (cursor.in_turn && cursor.unit_begin < cursor.next) {  // the unit belongs to an earlier block
    cursor.next = cursor.unit_end;
    if (cursor.next < cursor.end) plan_detail::advance_unit(plan, forest, cursor);
  }
  return cursor;
}

/// False when the block is done; `item` is then as it was.
SMARTSPEC_DEVICE bool next_item(const AttentionPlan& plan, const Forest& forest, Cursor& cursor,
                                WorkItem& item) {
  // A unit taken in turn is finished beyond the share.
  const bool inside = cursor.in_turn && cursor.next < cursor.unit_end;
  if (cursor.next >= cursor.end && !inside) return false;
  if (cursor.next == cursor.unit_end) plan_detail::advance_unit(plan, forest, cursor);
  item.shape = cursor.shape;
  item.sequence = cursor.sequence;
  item.kv_head = cursor.kv_head;
  item.row_tile = cursor.row_tile;
  if (plan.batch_invariant) {
    plan_detail::describe_invariant(plan, cursor, item);
    ++cursor.next;
  } else {
    const std::int64_t stop = cursor.unit_end < cursor.end ? cursor.unit_end : cursor.end;
    plan_detail::describe_balanced(cursor, stop, item);
    cursor.next = stop;
  }
  return true;
}

// ---- Visibility

/// What one row sees. Keys [begin, end) without exception, then the nodes of `ancestors`.
struct RowView {
  std::int32_t begin = 0;
  std::int32_t end = 0;
  std::int32_t first_tree_key = 0;           // key of node 0
  std::int32_t min_depth = 0;                // of nodes it sees; <= 0: all
  const std::uint32_t* ancestors = nullptr;  // [kAncestorWords]; null for causal rows
  const std::int32_t* depths = nullptr;      // [num_nodes] of the sequence
};

/// `row` is within the sequence.
SMARTSPEC_DEVICE RowView load_row(const SequenceShape& shape, const ForestState& state,
                                  std::int32_t row, std::int32_t window) {
  RowView view;
  view.first_tree_key = shape.prefix_len;
  std::int32_t position = shape.context_len + row;
  if (row < shape.num_causal) {
    view.end = position + 1;
  } else {
    const std::int64_t node = shape.tree_start + row - shape.num_causal;
    view.ancestors = state.ancestors + (shape.first_node + node) * kAncestorWords;
    view.depths = state.depths + shape.first_node;
    view.end = shape.prefix_len;
    position = shape.prefix_len + view.depths[node];
  }
  const std::int32_t first = window > 0 ? position - window + 1 : 0;
  view.begin = first > 0 ? first : 0;
  view.min_depth = first - shape.prefix_len;
  return view;
}

/// Whether the row sees `key`, which is below the sequence's number of keys.
SMARTSPEC_DEVICE bool sees(const RowView& row, std::int32_t key) {
  if (key < row.end) return key >= row.begin;
  const std::int32_t node = key - row.first_tree_key;
  if (row.ancestors == nullptr || node < 0) return false;
  if ((row.ancestors[node / 32] >> (node % 32) & 1U) == 0) return false;
  return row.min_depth <= 0 || row.depths[node] >= row.min_depth;
}

namespace plan_detail {

/// Bits [first, end) of 64, both clamped.
SMARTSPEC_DEVICE std::uint64_t bit_range(std::int32_t first, std::int32_t end) {
  if (first < 0) first = 0;
  if (end > 64) end = 64;
  if (first >= end) return 0;
  return ~std::uint64_t{0} >> (64 - (end - first)) << first;
}

/// Bits [first, first + 64) of a set of nodes, first >= 0; zeros beyond it.
SMARTSPEC_DEVICE std::uint64_t set_bits(const std::uint32_t* set, std::int32_t first) {
  const std::int32_t word = first / 32;
  const std::int32_t shift = first % 32;
  std::uint64_t bits = 0;
  if (word < kAncestorWords) bits = set[word];
  if (word + 1 < kAncestorWords) bits |= static_cast<std::uint64_t>(set[word + 1]) << 32;
  bits >>= shift;
  if (shift > 0 && word + 2 < kAncestorWords) {
    bits |= static_cast<std::uint64_t>(set[word + 2]) << (64 - shift);
  }
  return bits;
}

}  // namespace plan_detail

/// Bit i: the row sees key first_key + i. Zeros beyond the row's own key.
SMARTSPEC_DEVICE std::uint64_t visible_keys(const RowView& row, std::int32_t first_key) {
  const std::uint64_t before = plan_detail::bit_range(row.begin - first_key, row.end - first_key);
  const std::int32_t first_node = first_key - row.first_tree_key;
  if (row.ancestors == nullptr || first_node <= -64) return before;
  std::uint64_t nodes = first_node >= 0 ? plan_detail::set_bits(row.ancestors, first_node)
                                        : plan_detail::set_bits(row.ancestors, 0) << -first_node;
  if (row.min_depth > 0) {  // only when the tree is deeper than the window
    for (std::int32_t i = 0; i < 64; ++i) {
      const std::uint64_t bit = std::uint64_t{1} << i;
      if ((nodes & bit) != 0 && row.depths[first_node + i] < row.min_depth) nodes &= ~bit;
    }
  }
  return before | nodes;
}

/// Whether some row of the row tile may not see some key of the key tile. False for all but the
/// last tiles of a context.
SMARTSPEC_DEVICE bool needs_mask(const AttentionPlan& plan, const SequenceShape& shape,
                                 std::int32_t row_tile, std::int32_t key_tile,
                                 std::int32_t window) {
  const TileRange rows = tile_row_range(plan, shape, row_tile);
  const std::int32_t first_key = key_tile * kTileKeys;
  const std::int32_t first_end =
      rows.first < shape.num_causal ? shape.context_len + rows.first + 1 : shape.prefix_len;
  // A node's depth is at most its index, so no position is beyond the last row's own key.
  return first_key + kTileKeys > first_end ||
         (window > 0 && first_key <= own_key(shape, rows.end - 1) - window);
}

}  // namespace smartspec::cuda
