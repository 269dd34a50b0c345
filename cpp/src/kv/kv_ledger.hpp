// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What KvCache does, with the hash exposed: tests force collisions. Internal; the contract of each
// method is in smartspec/kv_cache.hpp.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kv/block_pool.hpp"
#include "kv/prefix_index.hpp"
#include "smartspec/kv_cache.hpp"

namespace smartspec::kv {

class KvLedger {
 public:
  explicit KvLedger(const KvCacheOptions& options, std::uint64_t hash_mask = ~std::uint64_t{0});

  SequenceId add_sequence(std::uint64_t cache_salt = 0);
  std::int32_t match_prefix(SequenceId sequence, std::span<const TokenId> tokens);
  SequenceId fork(SequenceId sequence, std::int32_t length);
  [[nodiscard]] bool reserve(SequenceId sequence, std::int32_t num_slots,
                             std::vector<KvMove>& copies);
  void commit(SequenceId sequence, std::span<const std::int32_t> path,
              std::span<const TokenId> tokens, std::vector<KvMove>& moves);
  void rollback(SequenceId sequence);
  void truncate(SequenceId sequence, std::int32_t length);
  void remove_sequence(SequenceId sequence);

  std::int32_t verified_length(SequenceId sequence) const { return find(sequence).verified; }
  std::int32_t reserved(SequenceId sequence) const { return find(sequence).reserved; }
  std::span<const BlockId> block_table(SequenceId sequence) const { return find(sequence).table; }
  SlotId slot(SequenceId sequence, std::int32_t index) const;
  std::int32_t blocks_needed(SequenceId sequence, std::int32_t num_slots) const;

  std::int32_t num_sequences() const noexcept { return num_sequences_; }
  const KvCacheOptions& options() const noexcept { return options_; }
  KvCacheStats stats() const noexcept;
  void clear_prefix_cache();
  std::string check_integrity() const;

 private:
  /// The node that holds the same tokens as a full block of a sequence: the block itself, or the
  /// one published first. Dead once the node is erased, which `serial` tells.
  struct ChainLink {
    Hash128 hash;
    BlockId node = kNoBlock;
    std::uint64_t serial = 0;
  };

  struct Sequence {
    SequenceId id = 0;  // of this slot's present or next user
    bool live = false;
    bool may_publish = true;  // false: holds K and V from before clear_prefix_cache()
    std::int32_t verified = 0;
    std::int32_t reserved = 0;
    BlockId cow_source = kNoBlock;  // pinned original of the partial block, while reserved > 0
    std::uint64_t salt = 0;
    std::vector<BlockId> table;
    std::vector<TokenId> tokens;   // verified ones; empty without prefix caching
    std::vector<ChainLink> chain;  // of the full blocks; empty when !may_publish
    std::int32_t next_free = -1;   // slot index
  };

  enum class PartialBlock : std::uint8_t { kWritable, kCopy, kUnpublish };
  struct Plan {
    std::int32_t new_blocks = 0;  // beyond the table
    PartialBlock partial = PartialBlock::kWritable;
    std::int32_t taken() const noexcept {
      return new_blocks + (partial == PartialBlock::kCopy ? 1 : 0);
    }
  };

  const Sequence& find(SequenceId sequence) const;
  Sequence& find(SequenceId sequence);
  Sequence& claim_slot();
  std::int32_t blocks_for(std::int32_t length) const noexcept;
  std::int32_t num_available() const noexcept;
  bool published(BlockId block) const noexcept { return index_ && index_->contains(block); }

  Plan plan(const Sequence& sequence, std::int32_t num_slots) const;
  BlockId take_block() noexcept;
  void release_block(BlockId block) noexcept;
  void release_table_beyond(Sequence& sequence, std::int32_t num_blocks) noexcept;
  void copy_partial_block(Sequence& sequence, std::span<KvMove> copies) noexcept;
  void drop_reservation(Sequence& sequence) noexcept;
  void check_path(const Sequence& sequence, std::span<const std::int32_t> path,
                  std::span<const TokenId> tokens) const;
  bool alive(const ChainLink& link) const noexcept;
  void publish_full_blocks(Sequence& sequence) noexcept;
  SlotId slot_of(const Sequence& sequence, std::int32_t index) const noexcept;

  std::string check_sequence(const Sequence& sequence) const;
  std::string check_references() const;

  KvCacheOptions options_;
  PrefixHasher hasher_;
  BlockPool pool_;
  std::optional<PrefixIndex> index_;  // empty: no prefix caching
  std::vector<Sequence> slots_;       // reused first in, first out, with their buffers
  std::int32_t first_free_slot_ = -1;
  std::int32_t last_free_slot_ = -1;
  std::int32_t num_sequences_ = 0;
  std::int64_t prefix_queries_ = 0;
  std::int64_t prefix_hits_ = 0;
  std::int64_t evictions_ = 0;
};

}  // namespace smartspec::kv
