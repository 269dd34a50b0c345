// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The published blocks: a tree of token prefixes, found by hash, with an eviction order.
// Internal; not thread-safe. No method but the constructor allocates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kv/block_pool.hpp"
#include "kv/prefix_hash.hpp"
#include "smartspec/types.hpp"

namespace smartspec::kv {

/// A published block is a node, named by its block id. Its parent is published too (or it starts a
/// prefix), so equal parents mean equal prefixes, and one prefix has at most one node.
/// A node without users is *idle* and waits, oldest first, for eviction. An idle node is younger in
/// that order than its idle children, so chains shrink from their ends.
class PrefixIndex {
 public:
  PrefixIndex(std::int32_t num_blocks, std::int32_t block_size);

  std::int32_t size() const noexcept { return size_; }
  std::int32_t num_idle() const noexcept { return num_idle_; }
  bool contains(BlockId block) const noexcept { return at(block).serial != 0; }
  bool is_idle(BlockId block) const noexcept { return at(block).idle; }
  /// Differs for every publication, so it tells a node from a later one in the same block.
  std::uint64_t serial(BlockId block) const noexcept { return at(block).serial; }

  /// The node for `tokens` (one block) after `parent` (kNoBlock: at the start), or kNoBlock.
  BlockId find(const Hash128& hash, BlockId parent, std::uint64_t salt,
               std::span<const TokenId> tokens) const noexcept;

  /// Publishes a block in use. Needs: not published yet, parent published, find() == kNoBlock.
  void insert(BlockId block, const Hash128& hash, BlockId parent, std::uint64_t salt,
              std::span<const TokenId> tokens) noexcept;

  /// The last user left: the node becomes idle, and the youngest. Idle ancestors stay younger.
  void retire(BlockId block) noexcept;
  /// An idle node gets a user.
  void revive(BlockId block) noexcept;
  BlockId oldest_idle() const noexcept { return oldest_; }

  /// Forgets `block` and its descendants, which nobody could find any more, and returns how many.
  /// Those that were idle go back to `pool`.
  std::int32_t erase_subtree(BlockId block, BlockPool& pool) noexcept;
  void clear(BlockPool& pool) noexcept;

  /// Empty when sound, else the first broken invariant.
  std::string check(const BlockPool& pool) const;

 private:
  struct Node {
    Hash128 hash;
    std::uint64_t salt = 0;
    std::uint64_t serial = 0;  // 0: not published
    BlockId parent = kNoBlock;
    BlockId first_child = kNoBlock;
    BlockId previous_sibling = kNoBlock;
    BlockId next_sibling = kNoBlock;
    BlockId next_in_bucket = kNoBlock;
    BlockId older = kNoBlock;  // neighbours among idle nodes
    BlockId younger = kNoBlock;
    bool idle = false;
  };

  Node& at(BlockId block) noexcept { return nodes_[static_cast<std::size_t>(block)]; }
  const Node& at(BlockId block) const noexcept { return nodes_[static_cast<std::size_t>(block)]; }
  std::size_t bucket_of(const Hash128& hash) const noexcept {
    return static_cast<std::size_t>(hash.low) & (buckets_.size() - 1);
  }
  std::span<const TokenId> tokens_of(BlockId block) const noexcept {
    const auto size = static_cast<std::size_t>(block_size_);
    return {tokens_.data() + static_cast<std::size_t>(block) * size, size};
  }
  void erase_leaf(BlockId block, BlockPool& pool) noexcept;
  void append_idle(BlockId block) noexcept;
  void unlink_idle(BlockId block) noexcept;
  std::string check_node(BlockId block, const BlockPool& pool) const;
  std::string check_idle_order() const;

  std::int32_t block_size_;
  std::vector<Node> nodes_;       // by block
  std::vector<TokenId> tokens_;   // [num_blocks, block_size]
  std::vector<BlockId> buckets_;  // a power of two of chain heads
  std::int32_t size_ = 0;
  std::int32_t num_idle_ = 0;
  BlockId oldest_ = kNoBlock;
  BlockId youngest_ = kNoBlock;
  std::uint64_t last_serial_ = 0;
};

}  // namespace smartspec::kv
