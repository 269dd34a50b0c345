// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "kv/prefix_index.hpp"

#include <algorithm>
#include <bit>

namespace smartspec::kv {

PrefixIndex::PrefixIndex(std::int32_t num_blocks, std::int32_t block_size)
    : block_size_(block_size),
      nodes_(static_cast<std::size_t>(num_blocks)),
      tokens_(static_cast<std::size_t>(num_blocks) * static_cast<std::size_t>(block_size)),
      buckets_(std::bit_ceil(static_cast<std::size_t>(num_blocks)), kNoBlock) {}

BlockId PrefixIndex::find(const Hash128& hash, BlockId parent, std::uint64_t salt,
                          std::span<const TokenId> tokens) const noexcept {
  for (BlockId block = buckets_[bucket_of(hash)]; block != kNoBlock;
       block = at(block).next_in_bucket) {
    const Node& node = at(block);
    if (node.hash == hash && node.parent == parent && node.salt == salt &&
        std::ranges::equal(tokens_of(block), tokens)) {
      return block;
    }
  }
  return kNoBlock;
}

void PrefixIndex::insert(BlockId block, const Hash128& hash, BlockId parent, std::uint64_t salt,
                         std::span<const TokenId> tokens) noexcept {
  Node& node = at(block);
  node.hash = hash;
  node.salt = salt;
  node.serial = ++last_serial_;
  node.parent = parent;
  if (parent != kNoBlock) {
    node.next_sibling = at(parent).first_child;
    if (node.next_sibling != kNoBlock) at(node.next_sibling).previous_sibling = block;
    at(parent).first_child = block;
  }
  BlockId& head = buckets_[bucket_of(hash)];
  node.next_in_bucket = head;
  head = block;
  std::ranges::copy(tokens, tokens_.begin() + static_cast<std::ptrdiff_t>(block) * block_size_);
  ++size_;
}

void PrefixIndex::append_idle(BlockId block) noexcept {
  Node& node = at(block);
  node.older = youngest_;
  node.younger = kNoBlock;
  (youngest_ == kNoBlock ? oldest_ : at(youngest_).younger) = block;
  youngest_ = block;
}

void PrefixIndex::unlink_idle(BlockId block) noexcept {
  Node& node = at(block);
  (node.older == kNoBlock ? oldest_ : at(node.older).younger) = node.younger;
  (node.younger == kNoBlock ? youngest_ : at(node.younger).older) = node.older;
  node.older = kNoBlock;
  node.younger = kNoBlock;
}

void PrefixIndex::retire(BlockId block) noexcept {
  at(block).idle = true;
  ++num_idle_;
  append_idle(block);
  // A parent can be idle before its child: the child's sequence held a private duplicate of it.
  for (BlockId up = at(block).parent; up != kNoBlock && at(up).idle; up = at(up).parent) {
    unlink_idle(up);
    append_idle(up);
  }
}

void PrefixIndex::revive(BlockId block) noexcept {
  unlink_idle(block);
  at(block).idle = false;
  --num_idle_;
}

void PrefixIndex::erase_leaf(BlockId block, BlockPool& pool) noexcept {
  Node& node = at(block);
  if (node.previous_sibling != kNoBlock) {
    at(node.previous_sibling).next_sibling = node.next_sibling;
  } else if (node.parent != kNoBlock) {
    at(node.parent).first_child = node.next_sibling;
  }
  if (node.next_sibling != kNoBlock) {
    at(node.next_sibling).previous_sibling = node.previous_sibling;
  }
  BlockId* link = &buckets_[bucket_of(node.hash)];
  while (*link != block) link = &at(*link).next_in_bucket;
  *link = node.next_in_bucket;
  if (node.idle) {
    revive(block);
    pool.give_back(block);
  }
  node = Node{};
  --size_;
}

std::int32_t PrefixIndex::erase_subtree(BlockId block, BlockPool& pool) noexcept {
  std::int32_t erased = 0;
  for (BlockId node = block;;) {
    while (at(node).first_child != kNoBlock) node = at(node).first_child;
    const BlockId parent = at(node).parent;
    erase_leaf(node, pool);
    ++erased;
    if (node == block) return erased;
    node = parent;
  }
}

void PrefixIndex::clear(BlockPool& pool) noexcept {
  for (BlockId block = oldest_; block != kNoBlock; block = at(block).younger) pool.give_back(block);
  std::ranges::fill(nodes_, Node{});
  std::ranges::fill(buckets_, kNoBlock);
  size_ = 0;
  num_idle_ = 0;
  oldest_ = kNoBlock;
  youngest_ = kNoBlock;
}

std::string PrefixIndex::check_node(BlockId block, const BlockPool& pool) const {
  const Node& node = at(block);
  const std::string name = "published block " + std::to_string(block);
  if (node.parent != kNoBlock && !contains(node.parent)) return name + " has a dead parent";
  if (node.parent != kNoBlock && at(node.parent).salt != node.salt) {
    return name + " has another salt than its parent";
  }
  if (find(node.hash, node.parent, node.salt, tokens_of(block)) != block) {
    return name + " is not the one found for its tokens";
  }
  if (node.idle != (pool.references(block) == 0)) return name + " has a wrong idle mark";
  for (BlockId child = node.first_child, previous = kNoBlock; child != kNoBlock;
       previous = child, child = at(child).next_sibling) {
    if (at(child).parent != block || at(child).previous_sibling != previous) {
      return name + " has a broken list of children";
    }
  }
  return {};
}

std::string PrefixIndex::check_idle_order() const {
  std::vector<char> seen(nodes_.size(), 0);
  std::int32_t count = 0;
  BlockId previous = kNoBlock;
  for (BlockId block = oldest_; block != kNoBlock; block = at(block).younger) {
    const std::string name = "idle block " + std::to_string(block);
    if (!contains(block) || !at(block).idle) return name + " is in the eviction order wrongly";
    if (at(block).older != previous || ++count > num_idle_) {
      return "the eviction order is broken at " + name;
    }
    if (at(block).parent != kNoBlock && seen[static_cast<std::size_t>(at(block).parent)] != 0) {
      return name + " would be evicted after its parent";
    }
    seen[static_cast<std::size_t>(block)] = 1;
    previous = block;
  }
  if (count != num_idle_ || previous != youngest_) return "the eviction order lost a block";
  return {};
}

std::string PrefixIndex::check(const BlockPool& pool) const {
  std::int32_t published = 0;
  std::int32_t idle = 0;
  std::int32_t children = 0;
  std::int32_t with_parent = 0;
  for (BlockId block = 0; block < static_cast<BlockId>(nodes_.size()); ++block) {
    const Node& node = at(block);
    if (node.serial == 0) {
      if (node.idle) return "block " + std::to_string(block) + " is idle but not published";
      continue;
    }
    ++published;
    idle += node.idle ? 1 : 0;
    with_parent += node.parent != kNoBlock ? 1 : 0;
    if (std::string broken = check_node(block, pool); !broken.empty()) return broken;
    for (BlockId child = node.first_child; child != kNoBlock; child = at(child).next_sibling) {
      ++children;
    }
  }
  std::int32_t in_buckets = 0;
  for (const BlockId head : buckets_) {
    for (BlockId block = head; block != kNoBlock; block = at(block).next_in_bucket) ++in_buckets;
  }
  if (published != size_ || in_buckets != size_) return "the prefix index miscounts its blocks";
  if (children != with_parent) return "the prefix index lost a child";
  if (idle != num_idle_) return "the prefix index miscounts its idle blocks";
  return check_idle_order();
}

}  // namespace smartspec::kv
