// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// KvLedger::check_integrity: recounts everything from the sequences' block tables.
#include <algorithm>

#include "kv/kv_ledger.hpp"

namespace smartspec::kv {

std::string KvLedger::check_sequence(const Sequence& sequence) const {
  const std::string name = "sequence " + std::to_string(sequence.id);
  if (sequence.verified < 0 || sequence.reserved < 0) return name + " has a negative length";
  const auto full = static_cast<std::size_t>(sequence.verified / options_.block_size);
  if (sequence.table.size() !=
      static_cast<std::size_t>(blocks_for(sequence.verified + sequence.reserved))) {
    return name + " has a block table of the wrong size";
  }
  if (std::ranges::any_of(sequence.table, [this](BlockId block) {
        return block < 0 || block >= pool_.num_blocks();
      })) {
    return name + " has a block out of range";
  }
  if (sequence.cow_source != kNoBlock &&
      (sequence.reserved == 0 || sequence.verified % options_.block_size == 0)) {
    return name + " pins a block without need";
  }
  if (sequence.reserved > 0) {
    // Slots about to be written belong to this sequence alone.
    for (std::int32_t index = sequence.verified; index < sequence.verified + sequence.reserved;) {
      const std::int32_t offset = index % options_.block_size;
      const BlockId block = sequence.table[static_cast<std::size_t>(index / options_.block_size)];
      if (offset == 0 && pool_.references(block) != 1) return name + " reserves a shared block";
      index += options_.block_size - offset;
    }
  }
  if (!index_) {
    const bool empty = sequence.tokens.empty() && sequence.chain.empty();
    return empty ? std::string{} : name + " stores tokens without prefix caching";
  }
  if (sequence.tokens.size() != static_cast<std::size_t>(sequence.verified)) {
    return name + " stores the wrong number of tokens";
  }
  if (sequence.chain.size() != (sequence.may_publish ? full : 0)) {
    return name + " has a chain of the wrong length";
  }
  for (std::size_t block = 0; block < sequence.chain.size(); ++block) {
    const ChainLink& link = sequence.chain[block];
    if (!alive(link)) continue;
    const auto size = static_cast<std::size_t>(options_.block_size);
    const BlockId parent = block > 0 ? sequence.chain[block - 1].node : kNoBlock;
    if (index_->find(link.hash, parent, sequence.salt,
                     std::span(sequence.tokens).subspan(block * size, size)) != link.node) {
      return name + " has a wrong chain";
    }
  }
  return {};
}

std::string KvLedger::check_references() const {
  const auto num_blocks = static_cast<std::size_t>(pool_.num_blocks());
  std::vector<std::int32_t> references(num_blocks, 0);
  std::vector<std::int32_t> pins(num_blocks, 0);
  for (const Sequence& sequence : slots_) {
    if (!sequence.live) continue;
    for (const BlockId block : sequence.table) ++references[static_cast<std::size_t>(block)];
    if (sequence.cow_source == kNoBlock) continue;
    ++references[static_cast<std::size_t>(sequence.cow_source)];
    ++pins[static_cast<std::size_t>(sequence.cow_source)];
  }
  std::vector<char> is_free(num_blocks, 0);
  if (std::string broken = pool_.check_free_list(is_free); !broken.empty()) return broken;
  for (BlockId block = 0; block < pool_.num_blocks(); ++block) {
    const auto i = static_cast<std::size_t>(block);
    const std::string name = "block " + std::to_string(block);
    if (pool_.references(block) != references[i] || pool_.pins(block) != pins[i]) {
      return name + " has " + std::to_string(pool_.references(block)) + " references and " +
             std::to_string(pool_.pins(block)) + " pins; the sequences have " +
             std::to_string(references[i]) + " and " + std::to_string(pins[i]);
    }
    const bool idle = index_ && index_->is_idle(block);
    if ((is_free[i] != 0) + (references[i] > 0) + idle != 1) {
      return name + " is not exactly one of free, in use, cached without a user";
    }
    if (is_free[i] != 0 && published(block)) return name + " is free but published";
  }
  return {};
}

std::string KvLedger::check_integrity() const {
  std::int32_t live = 0;
  for (const Sequence& sequence : slots_) {
    if (!sequence.live) {
      if (!sequence.table.empty() || !sequence.chain.empty() || !sequence.tokens.empty()) {
        return "a removed sequence still holds blocks or tokens";
      }
      continue;
    }
    ++live;
    if (std::string broken = check_sequence(sequence); !broken.empty()) return broken;
  }
  if (live != num_sequences_) return "the number of sequences is wrong";
  std::int32_t free_slots = 0;
  for (std::int32_t slot = first_free_slot_; slot >= 0;
       slot = slots_[static_cast<std::size_t>(slot)].next_free) {
    if (slots_[static_cast<std::size_t>(slot)].live || ++free_slots > 1 << 20) {
      return "the list of free sequence slots is broken";
    }
  }
  if (static_cast<std::size_t>(free_slots + live) != slots_.size())
    return "a sequence slot is lost";
  if (std::string broken = check_references(); !broken.empty()) return broken;
  return index_ ? index_->check(pool_) : std::string{};
}

}  // namespace smartspec::kv
