// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "kv/block_pool.hpp"

#include <algorithm>

namespace smartspec::kv {

BlockPool::BlockPool(std::int32_t num_blocks) : blocks_(static_cast<std::size_t>(num_blocks)) {
  free_.reserve(blocks_.size());
  for (BlockId block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

void BlockPool::pin(BlockId block, std::int32_t length) noexcept {
  Block& entry = at(block);
  ++entry.pins;
  entry.pinned_length = std::max(entry.pinned_length, length);
}

void BlockPool::unpin(BlockId block) noexcept {
  Block& entry = at(block);
  if (--entry.pins == 0) entry.pinned_length = 0;
}

std::string BlockPool::check_free_list(std::vector<char>& is_free) const {
  for (const BlockId block : free_) {
    const std::string name = "block " + std::to_string(block);
    if (block < 0 || block >= num_blocks()) return name + " on the free list is out of range";
    if (is_free[static_cast<std::size_t>(block)] != 0) return name + " is on the free list twice";
    if (references(block) != 0) return name + " is on the free list but has references";
    is_free[static_cast<std::size_t>(block)] = 1;
  }
  return {};
}

}  // namespace smartspec::kv
