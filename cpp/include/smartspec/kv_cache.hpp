// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Bookkeeping of a paged KV cache: block pool, sequences as transactions, prefix cache.
// Holds no tensor memory; it says which slots to write, read and copy. (Paging: PagedAttention,
// Kwon et al. 2023, section 4; prefix reuse as in vLLM: chained hashes of full blocks.)
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "smartspec/export.hpp"
#include "smartspec/types.hpp"

namespace smartspec {

using SequenceId = std::int32_t;

struct KvCacheOptions {
  std::int32_t num_blocks = 0;   // >= 1
  std::int32_t block_size = 16;  // tokens per block, a multiple of 16
  bool enable_prefix_caching = true;
  std::uint64_t hash_seed = 0;  // keys the prefix hashes; make it random where tenants are hostile
};

/// Copy the K and V of one token, all layers and heads. Moves in one list are executed in order and
/// never read a slot that an earlier move of the list wrote. Execute the moves of commit() before
/// the next reserve(), and the copies of reserve() before writing; those of a reservation that was
/// rolled back meanwhile may be executed or dropped.
struct KvMove {
  SlotId source = 0;
  SlotId destination = 0;
};

struct KvCacheStats {
  std::int32_t num_blocks = 0;
  std::int32_t num_free = 0;    // allocatable now: never used, released, or cached without a user
  std::int32_t num_cached = 0;  // blocks findable through the prefix cache
  std::int64_t prefix_queries = 0;  // tokens looked up
  std::int64_t prefix_hits = 0;     // tokens found
  std::int64_t evictions = 0;       // cached blocks given up for new data
};

/// A sequence has a verified length: tokens whose K and V are final. Beyond it lies at most one
/// open reservation, which commit() or rollback() closes. Not thread-safe: one owner drives it.
/// Misuse throws std::invalid_argument; an exhausted pool is normal load and reported by reserve()
/// returning false with nothing changed.
class SMARTSPEC_API KvCache {
 public:
  explicit KvCache(const KvCacheOptions& options);
  ~KvCache();
  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;
  KvCache(const KvCache&) = delete;  // a copy would hand out the same blocks twice
  KvCache& operator=(const KvCache&) = delete;

  /// A new empty sequence. `cache_salt` separates tenants: blocks are shared within one salt only.
  SequenceId add_sequence(std::uint64_t cache_salt = 0);

  /// Attaches the longest cached prefix of `tokens` made of full blocks, at most tokens.size() - 1
  /// tokens so that one is left to run. Only on an empty sequence. Returns the verified length.
  std::int32_t match_prefix(SequenceId sequence, std::span<const TokenId> tokens);

  /// A sequence sharing the first `length` (<= verified length) tokens; the shared partial block is
  /// copied on the first reservation of whichever sequence writes it while it is still shared.
  SequenceId fork(SequenceId sequence, std::int32_t length);

  /// Opens a reservation of `num_slots` >= 1 slots after the verified length. Slots keep logical
  /// order: offset i lives at logical index verified_length + i. Copy-on-write copies the caller
  /// must perform before writing are appended to `copies`. False: pool exhausted, nothing changed.
  [[nodiscard]] bool reserve(SequenceId sequence, std::int32_t num_slots,
                             std::vector<KvMove>& copies);

  /// Keeps the reserved offsets in `path` (strictly ascending), in order, and frees the rest.
  /// `tokens` (same length as `path`) become the next verified tokens. Appends the moves that make
  /// the kept slots contiguous to `moves` (none when path is 0, 1, 2, ...). Full blocks are
  /// published to the prefix cache.
  void commit(SequenceId sequence, std::span<const std::int32_t> path,
              std::span<const TokenId> tokens, std::vector<KvMove>& moves);

  /// Drops the open reservation; nothing happens when there is none.
  void rollback(SequenceId sequence);

  /// Forgets verified tokens beyond `length` and frees their blocks. No open reservation allowed.
  void truncate(SequenceId sequence, std::int32_t length);

  /// Releases every block. Published blocks stay findable until evicted (least recently used
  /// first).
  void remove_sequence(SequenceId sequence);

  [[nodiscard]] std::int32_t verified_length(SequenceId sequence) const;
  [[nodiscard]] std::int32_t reserved(SequenceId sequence) const;  // 0: no open reservation
  /// Blocks of the verified tokens and of the open reservation. Valid until the next non-const
  /// call.
  [[nodiscard]] std::span<const BlockId> block_table(SequenceId sequence) const;
  /// Physical slot of logical index `index` < verified_length + reserved.
  [[nodiscard]] SlotId slot(SequenceId sequence, std::int32_t index) const;
  /// Blocks that reserve(sequence, num_slots) would take from the pool.
  [[nodiscard]] std::int32_t blocks_needed(SequenceId sequence, std::int32_t num_slots) const;

  [[nodiscard]] std::int32_t num_sequences() const noexcept;
  [[nodiscard]] const KvCacheOptions& options() const noexcept;
  [[nodiscard]] KvCacheStats stats() const noexcept;
  /// Forgets all published blocks, for example when the weights changed. Live sequences keep their
  /// blocks, and publish no more: what they compute depends on K and V from before.
  void clear_prefix_cache();

  /// For tests and fuzzers: empty when sound, else the first broken invariant.
  [[nodiscard]] std::string check_integrity() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smartspec
