// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Fixed-size KV blocks: free list, reference counts and pins. Internal; not thread-safe; callers
// hold the preconditions (asserted by KvLedger's integrity check, not here).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "smartspec/types.hpp"

namespace smartspec::kv {

inline constexpr BlockId kNoBlock = -1;

/// A block with references is in use. Without, it is on the free list or held by the prefix index
/// for reuse; the pool does not know which, so dropping the last reference frees nothing.
///
/// A pin is a reference that only needs the first `length` slots of the block to stay as they are:
/// the original of a copy-on-write block, kept until the copying reservation is closed, because a
/// rollback goes back to it.
class BlockPool {
 public:
  explicit BlockPool(std::int32_t num_blocks);

  std::int32_t num_blocks() const noexcept { return static_cast<std::int32_t>(blocks_.size()); }
  std::int32_t num_free() const noexcept { return static_cast<std::int32_t>(free_.size()); }
  std::int32_t references(BlockId block) const noexcept { return at(block).references; }
  std::int32_t pins(BlockId block) const noexcept { return at(block).pins; }

  /// A free block with one reference. Needs num_free() > 0.
  BlockId take() noexcept {
    const BlockId block = free_.back();
    free_.pop_back();
    at(block).references = 1;
    return block;
  }
  /// Puts a block without references on the free list; the one freed last is taken first.
  void give_back(BlockId block) noexcept { free_.push_back(block); }  // capacity is num_blocks

  void add_reference(BlockId block) noexcept { ++at(block).references; }
  /// Returns how many references are left.
  std::int32_t drop_reference(BlockId block) noexcept { return --at(block).references; }

  /// Turns one reference into a pin of the first `length` slots, and back.
  void pin(BlockId block, std::int32_t length) noexcept;
  void unpin(BlockId block) noexcept;

  /// Whether somebody else needs slots at `offset` or beyond, or may come to write there.
  bool shared_beyond(BlockId block, std::int32_t offset) const noexcept {
    const Block& entry = at(block);
    return entry.references - entry.pins > 1 || (entry.pins > 0 && entry.pinned_length > offset);
  }

  /// Marks each free block in `is_free` (num_blocks zeros); empty when the free list is sound.
  std::string check_free_list(std::vector<char>& is_free) const;

 private:
  struct Block {
    std::int32_t references = 0;  // uses in block tables, plus pins
    std::int32_t pins = 0;
    std::int32_t pinned_length = 0;  // largest length pinned since pins was last 0
  };
  Block& at(BlockId block) noexcept { return blocks_[static_cast<std::size_t>(block)]; }
  const Block& at(BlockId block) const noexcept { return blocks_[static_cast<std::size_t>(block)]; }

  std::vector<Block> blocks_;
  std::vector<BlockId> free_;
};

}  // namespace smartspec::kv
