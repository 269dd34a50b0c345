// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/kv_cache.hpp"

#include "kv/kv_ledger.hpp"

namespace smartspec {

struct KvCache::Impl : kv::KvLedger {
  using KvLedger::KvLedger;
};

KvCache::KvCache(const KvCacheOptions& options) : impl_(std::make_unique<Impl>(options)) {}
KvCache::~KvCache() = default;
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;

SequenceId KvCache::add_sequence(std::uint64_t cache_salt) {
  return impl_->add_sequence(cache_salt);
}
std::int32_t KvCache::match_prefix(SequenceId sequence, std::span<const TokenId> tokens) {
  return impl_->match_prefix(sequence, tokens);
}
SequenceId KvCache::fork(SequenceId sequence, std::int32_t length) {
  return impl_->fork(sequence, length);
}
bool KvCache::reserve(SequenceId sequence, std::int32_t num_slots, std::vector<KvMove>& copies) {
  return impl_->reserve(sequence, num_slots, copies);
}
void KvCache::commit(SequenceId sequence, std::span<const std::int32_t> path,
                     std::span<const TokenId> tokens, std::vector<KvMove>& moves) {
  impl_->commit(sequence, path, tokens, moves);
}
void KvCache::rollback(SequenceId sequence) { impl_->rollback(sequence); }
void KvCache::truncate(SequenceId sequence, std::int32_t length) {
  impl_->truncate(sequence, length);
}
void KvCache::remove_sequence(SequenceId sequence) { impl_->remove_sequence(sequence); }

std::int32_t KvCache::verified_length(SequenceId sequence) const {
  return impl_->verified_length(sequence);
}
std::int32_t KvCache::reserved(SequenceId sequence) const { return impl_->reserved(sequence); }
std::span<const BlockId> KvCache::block_table(SequenceId sequence) const {
  return impl_->block_table(sequence);
}
SlotId KvCache::slot(SequenceId sequence, std::int32_t index) const {
  return impl_->slot(sequence, index);
}
std::int32_t KvCache::blocks_needed(SequenceId sequence, std::int32_t num_slots) const {
  return impl_->blocks_needed(sequence, num_slots);
}
std::int32_t KvCache::num_sequences() const noexcept { return impl_->num_sequences(); }
const KvCacheOptions& KvCache::options() const noexcept { return impl_->options(); }
KvCacheStats KvCache::stats() const noexcept { return impl_->stats(); }
void KvCache::clear_prefix_cache() { impl_->clear_prefix_cache(); }
std::string KvCache::check_integrity() const { return impl_->check_integrity(); }

}  // namespace smartspec
