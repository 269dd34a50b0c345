// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "kv/kv_ledger.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace smartspec::kv {
namespace {

constexpr std::int32_t kMaxInt = std::numeric_limits<std::int32_t>::max();
// A SequenceId is a slot index and, above it, a count of the slot's uses: stale ids are noticed.
constexpr std::int32_t kSlotBits = 20;
constexpr std::int32_t kSlotMask = (1 << kSlotBits) - 1;

[[noreturn]] void misuse(const std::string& text) {
  throw std::invalid_argument("KvCache: " + text);
}

std::string text_of(std::int64_t value) { return std::to_string(value); }

KvCacheOptions checked(const KvCacheOptions& options) {
  if (options.block_size < 16 || options.block_size % 16 != 0) {
    misuse("block_size is " + text_of(options.block_size) +
           "; allowed are positive multiples of 16");
  }
  const std::int32_t most = kMaxInt / options.block_size;
  if (options.num_blocks < 1 || options.num_blocks > most) {
    misuse("num_blocks is " + text_of(options.num_blocks) + "; allowed are 1 to " + text_of(most) +
           " with block_size " + text_of(options.block_size));
  }
  return options;
}

void check_tokens(std::span<const TokenId> tokens) {
  TokenId smallest = 0;
  for (const TokenId token : tokens) smallest = std::min(smallest, token);
  if (smallest < 0) misuse("a token is " + text_of(smallest) + "; allowed are 0 and above");
}

/// Room for `size` elements, with growth that is constant per element when amortized.
template <class T>
void make_room(std::vector<T>& vector, std::size_t size) {
  if (size > vector.capacity()) vector.reserve(std::max(size, 2 * vector.capacity()));
}

std::size_t as_size(std::int32_t value) noexcept { return static_cast<std::size_t>(value); }

}  // namespace

KvLedger::KvLedger(const KvCacheOptions& options, std::uint64_t hash_mask)
    : options_(checked(options)), hasher_(options.hash_seed, hash_mask), pool_(options.num_blocks) {
  if (options.enable_prefix_caching) index_.emplace(options.num_blocks, options.block_size);
}

// Sequences.

const KvLedger::Sequence& KvLedger::find(SequenceId sequence) const {
  const std::size_t index = static_cast<std::size_t>(sequence & kSlotMask);
  if (index >= slots_.size() || !slots_[index].live || slots_[index].id != sequence) {
    misuse("sequence " + text_of(sequence) + " does not exist");
  }
  return slots_[index];
}

KvLedger::Sequence& KvLedger::find(SequenceId sequence) {
  return const_cast<Sequence&>(static_cast<const KvLedger&>(*this).find(sequence));
}

/// A slot with an empty sequence, not live yet; it stays first on the free list until it is.
KvLedger::Sequence& KvLedger::claim_slot() {
  if (first_free_slot_ < 0) {
    if (slots_.size() > as_size(kSlotMask)) {
      throw std::length_error("KvCache: more than " + text_of(kSlotMask + 1) + " live sequences");
    }
    const auto slot = static_cast<std::int32_t>(slots_.size());
    slots_.emplace_back().id = slot;
    first_free_slot_ = last_free_slot_ = slot;
  }
  return slots_[as_size(first_free_slot_)];
}

SequenceId KvLedger::add_sequence(std::uint64_t cache_salt) {
  Sequence& sequence = claim_slot();
  first_free_slot_ = sequence.next_free;
  if (first_free_slot_ < 0) last_free_slot_ = -1;
  sequence.next_free = -1;
  sequence.salt = cache_salt;
  sequence.live = true;
  ++num_sequences_;
  return sequence.id;
}

std::int32_t KvLedger::match_prefix(SequenceId id, std::span<const TokenId> tokens) {
  Sequence& sequence = find(id);
  if (sequence.verified != 0 || sequence.reserved != 0) {
    misuse("match_prefix needs an empty sequence; sequence " + text_of(id) + " has " +
           text_of(sequence.verified) + " verified tokens and " + text_of(sequence.reserved) +
           " reserved slots");
  }
  check_tokens(tokens);
  if (!index_ || tokens.empty()) return 0;
  const std::size_t size = as_size(options_.block_size);
  const std::size_t most = std::min((tokens.size() - 1) / size, as_size(index_->size()));
  make_room(sequence.table, most);
  make_room(sequence.chain, most);
  make_room(sequence.tokens, most * size);

  Hash128 hash = hasher_.root(sequence.salt);
  BlockId parent = kNoBlock;
  for (std::size_t block = 0; block < most; ++block) {
    const std::span<const TokenId> content = tokens.subspan(block * size, size);
    hash = hasher_.extend(hash, content);
    const BlockId node = index_->find(hash, parent, sequence.salt, content);
    if (node == kNoBlock) break;
    if (index_->is_idle(node)) index_->revive(node);
    pool_.add_reference(node);
    sequence.table.push_back(node);
    sequence.chain.push_back({hash, node, index_->serial(node)});
    parent = node;
  }
  const std::size_t found = sequence.table.size() * size;
  sequence.tokens.assign(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(found));
  sequence.verified = static_cast<std::int32_t>(found);
  prefix_queries_ += static_cast<std::int64_t>(tokens.size());
  prefix_hits_ += static_cast<std::int64_t>(found);
  return sequence.verified;
}

SequenceId KvLedger::fork(SequenceId id, std::int32_t length) {
  if (const std::int32_t verified = find(id).verified; length < 0 || length > verified) {
    misuse("fork length is " + text_of(length) + "; allowed are 0 to " + text_of(verified) +
           ", the verified length of sequence " + text_of(id));
  }
  Sequence& child = claim_slot();
  const Sequence& parent = find(id);  // after claim_slot, which may move the slots
  const std::size_t blocks = as_size(blocks_for(length));
  const std::size_t full = as_size(length / options_.block_size);
  make_room(child.table, blocks);
  make_room(child.chain, full);
  make_room(child.tokens, as_size(length));

  child.table.assign(parent.table.begin(),
                     parent.table.begin() + static_cast<std::ptrdiff_t>(blocks));
  // The copy in an open reservation may not have happened yet; the original is pinned.
  const std::size_t partial = as_size(parent.verified / options_.block_size);
  if (parent.cow_source != kNoBlock && partial < blocks) child.table[partial] = parent.cow_source;
  for (const BlockId block : child.table) pool_.add_reference(block);
  if (index_) {
    child.tokens.assign(parent.tokens.begin(), parent.tokens.begin() + length);
    child.chain.assign(
        parent.chain.begin(),
        parent.chain.begin() + static_cast<std::ptrdiff_t>(std::min(full, parent.chain.size())));
  }
  child.may_publish = parent.may_publish || length == 0;
  child.verified = length;
  return add_sequence(parent.salt);  // the slot claimed above
}

void KvLedger::remove_sequence(SequenceId id) {
  Sequence& sequence = find(id);
  drop_reservation(sequence);
  release_table_beyond(sequence, 0);
  sequence.tokens.clear();
  sequence.chain.clear();
  sequence.verified = 0;
  sequence.may_publish = true;
  sequence.live = false;
  const std::int32_t index = id & kSlotMask;
  sequence.id = static_cast<SequenceId>((static_cast<std::uint32_t>(id) + (1U << kSlotBits)) &
                                        static_cast<std::uint32_t>(kMaxInt));
  (last_free_slot_ < 0 ? first_free_slot_ : slots_[as_size(last_free_slot_)].next_free) = index;
  last_free_slot_ = index;
  --num_sequences_;
}

// Blocks.

std::int32_t KvLedger::blocks_for(std::int32_t length) const noexcept {
  return length / options_.block_size + (length % options_.block_size != 0 ? 1 : 0);
}

std::int32_t KvLedger::num_available() const noexcept {
  return pool_.num_free() + (index_ ? index_->num_idle() : 0);
}

BlockId KvLedger::take_block() noexcept {
  if (pool_.num_free() == 0) evictions_ += index_->erase_subtree(index_->oldest_idle(), pool_);
  return pool_.take();
}

void KvLedger::release_block(BlockId block) noexcept {
  if (pool_.drop_reference(block) != 0) return;
  if (published(block)) {
    index_->retire(block);
  } else {
    pool_.give_back(block);
  }
}

/// Last blocks first: among published ones they become the older, so prefixes outlive suffixes.
void KvLedger::release_table_beyond(Sequence& sequence, std::int32_t num_blocks) noexcept {
  while (sequence.table.size() > as_size(num_blocks)) {
    release_block(sequence.table.back());
    sequence.table.pop_back();
  }
}

// Transactions.

KvLedger::Plan KvLedger::plan(const Sequence& sequence, std::int32_t num_slots) const {
  if (sequence.reserved != 0) {
    misuse("sequence " + text_of(sequence.id) + " already has a reservation of " +
           text_of(sequence.reserved) + " slots; commit or roll back first");
  }
  const std::int32_t most = kMaxInt / options_.block_size * options_.block_size - sequence.verified;
  if (num_slots < 1 || num_slots > most) {
    misuse("num_slots is " + text_of(num_slots) + "; allowed are 1 to " + text_of(most));
  }
  Plan plan;
  const std::int32_t blocks = blocks_for(sequence.verified);
  plan.new_blocks = blocks_for(sequence.verified + num_slots) - blocks;
  const std::int32_t offset = sequence.verified % options_.block_size;
  if (offset == 0) return plan;
  const BlockId partial = sequence.table[as_size(blocks - 1)];
  if (pool_.shared_beyond(partial, offset)) {
    plan.partial = PartialBlock::kCopy;
  } else if (published(partial)) {
    // Nobody else uses it: worth a copy, but not worth failing for.
    plan.partial =
        num_available() > plan.new_blocks ? PartialBlock::kCopy : PartialBlock::kUnpublish;
  }
  return plan;
}

std::int32_t KvLedger::blocks_needed(SequenceId id, std::int32_t num_slots) const {
  return plan(find(id), num_slots).taken();
}

bool KvLedger::reserve(SequenceId id, std::int32_t num_slots, std::vector<KvMove>& copies) {
  Sequence& sequence = find(id);
  const Plan plan = this->plan(sequence, num_slots);
  if (plan.taken() > num_available()) return false;

  make_room(sequence.table, sequence.table.size() + as_size(plan.new_blocks));
  if (plan.partial == PartialBlock::kCopy) {
    const std::size_t before = copies.size();
    copies.resize(before + as_size(sequence.verified % options_.block_size));
    copy_partial_block(sequence, std::span(copies).subspan(before));
  } else if (plan.partial == PartialBlock::kUnpublish) {
    evictions_ += index_->erase_subtree(sequence.table.back(), pool_);
  }
  for (std::int32_t i = 0; i < plan.new_blocks; ++i) sequence.table.push_back(take_block());
  sequence.reserved = num_slots;
  return true;
}

/// The original stays pinned until the reservation closes: a rollback goes back to it, whether or
/// not the caller performed the copies.
void KvLedger::copy_partial_block(Sequence& sequence, std::span<KvMove> copies) noexcept {
  const std::int32_t length = sequence.verified % options_.block_size;
  BlockId& entry = sequence.table.back();
  sequence.cow_source = entry;
  pool_.pin(entry, length);
  entry = take_block();
  for (std::int32_t i = 0; i < length; ++i) {
    copies[as_size(i)] = {sequence.cow_source * options_.block_size + i,
                          entry * options_.block_size + i};
  }
}

void KvLedger::drop_reservation(Sequence& sequence) noexcept {
  if (sequence.reserved == 0) return;
  release_table_beyond(sequence, blocks_for(sequence.verified));
  if (sequence.cow_source != kNoBlock) {
    release_block(sequence.table.back());
    pool_.unpin(sequence.cow_source);
    sequence.table.back() = sequence.cow_source;
    sequence.cow_source = kNoBlock;
  }
  sequence.reserved = 0;
  if (sequence.verified == 0) sequence.may_publish = true;
}

void KvLedger::rollback(SequenceId id) { drop_reservation(find(id)); }

void KvLedger::check_path(const Sequence& sequence, std::span<const std::int32_t> path,
                          std::span<const TokenId> tokens) const {
  if (sequence.reserved == 0) {
    misuse("sequence " + text_of(sequence.id) + " has no open reservation to commit");
  }
  if (path.size() != tokens.size()) {
    misuse("path has " + text_of(static_cast<std::int64_t>(path.size())) + " entries and tokens " +
           text_of(static_cast<std::int64_t>(tokens.size())) + "; they must be as many");
  }
  std::int32_t last = -1;
  for (const std::int32_t offset : path) {
    if (offset <= last || offset >= sequence.reserved) {
      misuse("path has " + text_of(offset) + " after " + text_of(last) +
             "; offsets must ascend strictly within 0 to " + text_of(sequence.reserved - 1) +
             ", the reservation of sequence " + text_of(sequence.id));
    }
    last = offset;
  }
  check_tokens(tokens);
}

void KvLedger::commit(SequenceId id, std::span<const std::int32_t> path,
                      std::span<const TokenId> tokens, std::vector<KvMove>& moves) {
  Sequence& sequence = find(id);
  check_path(sequence, path, tokens);
  if (path.empty()) return drop_reservation(sequence);

  const auto kept = static_cast<std::int32_t>(path.size());
  const std::int32_t verified = sequence.verified + kept;
  std::int32_t in_place = 0;  // path ascends, so after its first gap every slot moves
  while (in_place < kept && path[as_size(in_place)] == in_place) ++in_place;
  if (index_) {
    make_room(sequence.tokens, as_size(verified));
    make_room(sequence.chain, as_size(verified / options_.block_size));
  }
  std::size_t move = moves.size();
  moves.resize(move + as_size(kept - in_place));
  // From here on nothing throws.
  for (std::int32_t i = in_place; i < kept; ++i) {
    moves[move++] = {slot_of(sequence, sequence.verified + path[as_size(i)]),
                     slot_of(sequence, sequence.verified + i)};
  }
  release_table_beyond(sequence, blocks_for(verified));
  if (sequence.cow_source != kNoBlock) {
    pool_.unpin(sequence.cow_source);
    release_block(sequence.cow_source);
    sequence.cow_source = kNoBlock;
  }
  sequence.verified = verified;
  sequence.reserved = 0;
  if (index_) {
    sequence.tokens.insert(sequence.tokens.end(), tokens.begin(), tokens.end());
    if (sequence.may_publish) publish_full_blocks(sequence);
  }
}

void KvLedger::truncate(SequenceId id, std::int32_t length) {
  Sequence& sequence = find(id);
  if (sequence.reserved != 0) {
    misuse("truncate with an open reservation of " + text_of(sequence.reserved) +
           " slots in sequence " + text_of(id) + "; commit or roll back first");
  }
  if (length < 0 || length > sequence.verified) {
    misuse("truncate length is " + text_of(length) + "; allowed are 0 to " +
           text_of(sequence.verified) + ", the verified length of sequence " + text_of(id));
  }
  release_table_beyond(sequence, blocks_for(length));
  const std::size_t full = as_size(length / options_.block_size);
  if (sequence.chain.size() > full) sequence.chain.resize(full);
  if (index_) sequence.tokens.resize(as_size(length));
  sequence.verified = length;
  if (length == 0) sequence.may_publish = true;
}

// Prefix cache.

bool KvLedger::alive(const ChainLink& link) const noexcept {
  return index_->serial(link.node) == link.serial;
}

/// A block whose tokens are published already stays private; its children are published under that
/// first one. When the first one was evicted meanwhile, the sequence's own block takes its place.
void KvLedger::publish_full_blocks(Sequence& sequence) noexcept {
  const std::size_t size = as_size(options_.block_size);
  const std::size_t full = as_size(sequence.verified) / size;
  std::size_t block = sequence.chain.size();
  if (block == full) return;
  while (block > 0 && !alive(sequence.chain[block - 1])) --block;
  for (; block < full; ++block) {
    const std::span<const TokenId> tokens = std::span(sequence.tokens).subspan(block * size, size);
    const BlockId parent = block > 0 ? sequence.chain[block - 1].node : kNoBlock;
    if (block == sequence.chain.size()) {
      const Hash128 before =
          block > 0 ? sequence.chain[block - 1].hash : hasher_.root(sequence.salt);
      sequence.chain.push_back({hasher_.extend(before, tokens), kNoBlock, 0});
    }
    ChainLink& link = sequence.chain[block];
    link.node = index_->find(link.hash, parent, sequence.salt, tokens);
    if (link.node == kNoBlock) {
      link.node = sequence.table[block];
      index_->insert(link.node, link.hash, parent, sequence.salt, tokens);
    }
    link.serial = index_->serial(link.node);
  }
}

void KvLedger::clear_prefix_cache() {
  if (!index_) return;
  index_->clear(pool_);
  // K and V of before, and all computed from them, may no longer be what others would compute.
  for (Sequence& sequence : slots_) {
    sequence.chain.clear();
    sequence.may_publish = sequence.verified == 0 && sequence.reserved == 0;
  }
}

KvCacheStats KvLedger::stats() const noexcept {
  KvCacheStats stats;
  stats.num_blocks = options_.num_blocks;
  stats.num_free = num_available();
  stats.num_cached = index_ ? index_->size() : 0;
  stats.prefix_queries = prefix_queries_;
  stats.prefix_hits = prefix_hits_;
  stats.evictions = evictions_;
  return stats;
}

SlotId KvLedger::slot_of(const Sequence& sequence, std::int32_t index) const noexcept {
  return sequence.table[as_size(index / options_.block_size)] * options_.block_size +
         index % options_.block_size;
}

SlotId KvLedger::slot(SequenceId id, std::int32_t index) const {
  const Sequence& sequence = find(id);
  if (index < 0 || index >= sequence.verified + sequence.reserved) {
    misuse("index is " + text_of(index) + "; allowed are 0 to " +
           text_of(sequence.verified + sequence.reserved - 1) + " in sequence " + text_of(id));
  }
  return slot_of(sequence, index);
}

}  // namespace smartspec::kv
