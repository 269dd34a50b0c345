// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Drives a KV cache with arbitrary operations next to a naive model, for random tests and fuzzing.
// The model keeps each sequence as a plain list of tokens and simulates the memory: one value per
// slot, a function of the whole prefix, so that reading another prefix's K and V cannot go unseen.
#pragma once

#include <algorithm>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <vector>

#include "smartspec/kv_cache.hpp"

namespace smartspec::kv_test {

struct ModelFailure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void expect(bool condition, const std::string& text) {
  if (!condition) throw ModelFailure(text);
}

inline std::uint64_t mix(std::uint64_t state, std::uint64_t value) {
  state ^= value + 0x9E3779B97F4A7C15U + (state << 6) + (state >> 2);
  state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9U;
  return state ^ (state >> 27);
}

struct DriverOptions {
  std::int32_t max_sequences = 12;
  std::int32_t max_length = 160;
  bool exact_prefixes = false;  // the pool never evicts: hits must equal the model's
  int integrity_interval = 1;   // operations
};

/// `Source(bound)` gives a number below `bound`: a random generator, or a fuzzer's bytes.
template <class Cache, class Source>
class KvDriver {
 public:
  KvDriver(Cache& cache, Source source, DriverOptions options)
      : cache_(cache), source_(source), options_(options) {
    const KvCacheOptions& kv = cache.options();
    block_size_ = kv.block_size;
    memory_.resize(static_cast<std::size_t>(kv.num_blocks) *
                   static_cast<std::size_t>(kv.block_size));
  }

  /// One operation, or one whole step of reserve, write, commit for several sequences.
  void operation() {
    if (one_in(2)) {
      step();
    } else {
      single_operation();
    }
    ++count_;
    if (count_ % options_.integrity_interval == 0) check_all();
  }

  /// Removes everything; nothing may be lost.
  void finish() {
    while (!live_.empty()) remove(live_.size() - 1);
    check_all();
    const KvCacheStats stats = cache_.stats();
    expect(cache_.num_sequences() == 0, "sequences left");
    expect(stats.num_free == stats.num_blocks, "blocks lost");
  }

  /// Operations that exercised something rare; tests assert that each happened.
  struct Coverage {
    std::int64_t commits = 0, moves = 0, copies = 0, refused = 0, rollbacks = 0, hits = 0,
                 forks = 0;
  };
  const Coverage& coverage() const { return coverage_; }

 private:
  struct Sequence {
    SequenceId id = 0;
    std::uint64_t salt = 0;
    std::uint32_t document = 0;  // whose tokens it follows, mostly
    bool stale = false;          // holds data from before a clear
    std::vector<TokenId> tokens;
    std::vector<std::uint64_t> values;  // per token
    std::int32_t reserved = 0;
    std::size_t first_copy = 0;  // of the open reservation in copies_
    std::size_t last_copy = 0;
    std::vector<std::int32_t> path;  // planned
    std::vector<TokenId> path_tokens;
  };

  std::uint32_t below(std::uint32_t bound) { return source_(bound); }
  bool one_in(std::uint32_t n) { return below(n) == 0; }
  std::size_t pick() { return below(static_cast<std::uint32_t>(live_.size())); }
  std::int32_t length_of(const Sequence& sequence) const {
    return static_cast<std::int32_t>(sequence.tokens.size());
  }

  // Few documents and rare deviations: prefixes are shared, and duplicated, all the time.
  TokenId token_at(std::uint32_t document, std::size_t position) {
    if (one_in(128)) return static_cast<TokenId>(below(2));
    return static_cast<TokenId>(mix(document / 2, position < 40 ? 0 : document) % 7 + position % 3);
  }

  static void append(Sequence& sequence, TokenId token) {
    const std::uint64_t before =
        sequence.values.empty() ? mix(1, sequence.salt) : sequence.values.back();
    sequence.tokens.push_back(token);
    sequence.values.push_back(mix(before, static_cast<std::uint64_t>(token)));
  }

  void single_operation() {
    if (live_.empty() ||
        (live_.size() < static_cast<std::size_t>(options_.max_sequences) && one_in(4))) {
      return add();
    }
    const std::size_t i = pick();
    switch (below(10)) {
      case 0:
      case 1:
        return remove(i);
      case 2:
      case 3:
      case 4:
        return match(live_[i]);
      case 5:
      case 6:
        return fork(i);
      case 7:
        return truncate(live_[i]);
      case 8:
        return roll_back(live_[i]);
      default:
        if (one_in(16)) return clear();
        return misuse(live_[i]);
    }
  }

  void add() {
    Sequence sequence;
    sequence.salt = below(2);
    sequence.document = below(6);
    sequence.id = cache_.add_sequence(sequence.salt);
    expect(cache_.verified_length(sequence.id) == 0, "a new sequence is not empty");
    for (const Sequence& other : live_) expect(other.id != sequence.id, "an id was given twice");
    live_.push_back(std::move(sequence));
    if (!one_in(4)) match(live_.back());
  }

  void remove(std::size_t i) {
    drop_copies(live_[i]);
    cache_.remove_sequence(live_[i].id);
    live_.erase(live_.begin() + static_cast<std::ptrdiff_t>(i));
  }

  void match(Sequence& sequence) {
    if (length_of(sequence) != 0 || sequence.reserved != 0) return;
    Sequence wanted;
    wanted.salt = sequence.salt;
    const std::uint32_t size = below(static_cast<std::uint32_t>(options_.max_length));
    for (std::size_t i = 0; i < size; ++i) append(wanted, token_at(sequence.document, i));
    const std::int32_t found = cache_.match_prefix(sequence.id, wanted.tokens);
    expect(found == 0 || found < length_of(wanted), "no token is left to run");
    expect(found % block_size_ == 0, "a match is not of full blocks");
    if (options_.exact_prefixes) {
      std::int32_t known = 0;
      while (known + block_size_ < length_of(wanted) && is_published(wanted, known + block_size_)) {
        known += block_size_;
      }
      const bool caching = cache_.options().enable_prefix_caching;
      expect(found == (caching ? known : 0),
             "found " + std::to_string(found) + " tokens, not " + std::to_string(known));
    }
    for (std::int32_t end = block_size_; end <= found; end += block_size_) {
      expect(is_published(wanted, end), "found a prefix that nobody published");
    }
    wanted.tokens.resize(static_cast<std::size_t>(found));
    wanted.values.resize(static_cast<std::size_t>(found));
    sequence.tokens = std::move(wanted.tokens);
    sequence.values = std::move(wanted.values);
    sequence.stale = false;
    coverage_.hits += found > 0 ? 1 : 0;
  }

  bool is_published(const Sequence& sequence, std::int32_t length) const {
    return published_.contains(sequence.values[static_cast<std::size_t>(length - 1)]);
  }

  void fork(std::size_t i) {
    if (live_.size() >= static_cast<std::size_t>(options_.max_sequences)) return;
    const std::int32_t length = static_cast<std::int32_t>(
        one_in(3) ? live_[i].tokens.size()
                  : below(static_cast<std::uint32_t>(length_of(live_[i]) + 1)));
    Sequence child;
    child.id = cache_.fork(live_[i].id, length);
    child.salt = live_[i].salt;
    child.document = one_in(2) ? below(6) : live_[i].document;
    child.stale = live_[i].stale && length > 0;
    child.tokens.assign(live_[i].tokens.begin(), live_[i].tokens.begin() + length);
    child.values.assign(live_[i].values.begin(), live_[i].values.begin() + length);
    live_.push_back(std::move(child));
    ++coverage_.forks;
  }

  void truncate(Sequence& sequence) {
    if (sequence.reserved != 0) return;
    const std::uint32_t length = below(static_cast<std::uint32_t>(length_of(sequence) + 1));
    cache_.truncate(sequence.id, static_cast<std::int32_t>(length));
    sequence.tokens.resize(length);
    sequence.values.resize(length);
    sequence.stale = sequence.stale && length > 0;
  }

  void roll_back(Sequence& sequence) {
    drop_copies(sequence);
    cache_.rollback(sequence.id);
    sequence.reserved = 0;
    sequence.stale = sequence.stale && length_of(sequence) > 0;
    ++coverage_.rollbacks;
  }

  // The caller may forget the copies of a reservation that it gave up, or execute them.
  void drop_copies(Sequence& sequence) {
    if (sequence.reserved == 0 || one_in(2)) return;
    for (std::size_t i = sequence.first_copy; i < sequence.last_copy; ++i) copies_[i].source = -1;
  }

  void clear() {
    cache_.clear_prefix_cache();
    published_.clear();
    for (Sequence& sequence : live_)
      sequence.stale = length_of(sequence) > 0 || sequence.reserved > 0;
  }

  // Several sequences at once, as an engine does, with other operations in between.
  void step() {
    copies_.clear();
    for (Sequence& sequence : live_) sequence.path.clear();
    const std::uint32_t actions = 1 + below(8);
    for (std::uint32_t i = 0; i < actions; ++i) {
      if (!live_.empty() && !one_in(4)) {
        reserve(live_[pick()]);
      } else {
        single_operation();
      }
    }
    execute(copies_);
    coverage_.copies += static_cast<std::int64_t>(copies_.size());
    write_all();
    std::vector<KvMove> moves;
    for (std::size_t i = 0; i < live_.size(); ++i) {
      if (live_[i].reserved == 0) continue;
      if (one_in(8)) {
        roll_back(live_[i]);
      } else {
        commit(live_[i], moves);
      }
    }
    execute(moves);
    coverage_.moves += static_cast<std::int64_t>(moves.size());
    for (const Sequence& sequence : live_) {
      if (!sequence.path.empty()) check_content(sequence);
    }
  }

  void reserve(Sequence& sequence) {
    if (sequence.reserved != 0 || length_of(sequence) > options_.max_length) return;
    const std::int32_t slots = 1 + static_cast<std::int32_t>(one_in(4) ? below(60) : below(8));
    const std::int32_t needed = cache_.blocks_needed(sequence.id, slots);
    const std::int32_t free = cache_.stats().num_free;
    sequence.first_copy = copies_.size();
    const bool fits = cache_.reserve(sequence.id, slots, copies_);
    sequence.last_copy = copies_.size();
    expect(fits == (needed <= free), "reserve and blocks_needed disagree");
    expect(free - cache_.stats().num_free == (fits ? needed : 0),
           "took not what blocks_needed says");
    expect(cache_.reserved(sequence.id) == (fits ? slots : 0), "reserved not what was asked");
    expect(fits || sequence.first_copy == sequence.last_copy, "copies without a reservation");
    if (fits) sequence.reserved = slots;
    if (!fits) ++coverage_.refused;
  }

  void execute(const std::vector<KvMove>& moves) {
    std::unordered_set<SlotId> written;
    for (const KvMove& move : moves) {
      if (move.source < 0) continue;
      expect(!written.contains(move.source), "a move reads what an earlier one wrote");
      memory_[static_cast<std::size_t>(move.destination)] =
          memory_[static_cast<std::size_t>(move.source)];
      written.insert(move.destination);
    }
  }

  // Garbage in all reserved slots, except K and V of the tokens that will be kept.
  void write_all() {
    std::unordered_set<SlotId> written;
    for (Sequence& sequence : live_) {
      if (sequence.reserved == 0) continue;
      plan_path(sequence);
      Sequence after;
      after.salt = sequence.salt;
      if (!sequence.values.empty()) after.values.push_back(sequence.values.back());
      std::size_t next = 0;
      for (std::int32_t offset = 0; offset < sequence.reserved; ++offset) {
        const SlotId slot = cache_.slot(sequence.id, length_of(sequence) + offset);
        expect(written.insert(slot).second, "two sequences write one slot");
        std::uint64_t value = mix(++garbage_, 77);
        if (next < sequence.path.size() && sequence.path[next] == offset) {
          append(after, sequence.path_tokens[next++]);
          value = after.values.back();
        }
        memory_[static_cast<std::size_t>(slot)] = value;
      }
    }
  }

  void plan_path(Sequence& sequence) {
    sequence.path.clear();
    sequence.path_tokens.clear();
    const std::uint32_t skip = one_in(3) ? 2 + below(3) : 0;  // 0: contiguous
    const auto length =
        static_cast<std::int32_t>(below(static_cast<std::uint32_t>(sequence.reserved + 1)));
    for (std::int32_t offset = 0; offset < length; ++offset) {
      if (skip != 0 && one_in(skip)) continue;
      sequence.path_tokens.push_back(
          token_at(sequence.document, sequence.tokens.size() + sequence.path.size()));
      sequence.path.push_back(offset);
    }
  }

  void commit(Sequence& sequence, std::vector<KvMove>& moves) {
    cache_.commit(sequence.id, sequence.path, sequence.path_tokens, moves);
    for (const TokenId token : sequence.path_tokens) append(sequence, token);
    sequence.reserved = 0;
    sequence.stale = sequence.stale && length_of(sequence) > 0;
    expect(cache_.reserved(sequence.id) == 0, "the reservation is still open");
    if (!sequence.stale) {
      for (std::int32_t end = block_size_; end <= length_of(sequence); end += block_size_) {
        published_.insert(sequence.values[static_cast<std::size_t>(end - 1)]);
      }
    }
    ++coverage_.commits;
  }

  void check_content(const Sequence& sequence) const {
    const std::int32_t length = length_of(sequence);
    expect(cache_.verified_length(sequence.id) == length, "wrong verified length");
    const auto blocks = static_cast<std::size_t>((length + block_size_ - 1) / block_size_);
    expect(cache_.block_table(sequence.id).size() == blocks, "wrong number of blocks");
    for (std::int32_t i = 0; i < length; ++i) {
      const auto slot = static_cast<std::size_t>(cache_.slot(sequence.id, i));
      expect(
          memory_[slot] == sequence.values[static_cast<std::size_t>(i)],
          "sequence " + std::to_string(sequence.id) + " reads wrong data at " + std::to_string(i));
    }
  }

  void check_all() const {
    const std::string broken = cache_.check_integrity();
    expect(broken.empty(), broken);
    expect(cache_.num_sequences() == static_cast<std::int32_t>(live_.size()),
           "wrong num_sequences");
    std::set<BlockId> used;
    for (const Sequence& sequence : live_) {
      check_content(sequence);
      const auto table = cache_.block_table(sequence.id);
      used.insert(table.begin(), table.end());
    }
    const KvCacheStats stats = cache_.stats();
    expect(stats.num_blocks - stats.num_free == static_cast<std::int32_t>(used.size()),
           "blocks in use are not those in the tables");
    expect(!options_.exact_prefixes || stats.evictions == 0, "evicted from a pool large enough");
  }

  template <class Call>
  void expect_misuse(const char* name, Call call) {
    const KvCacheStats before = cache_.stats();
    std::vector<std::vector<BlockId>> tables;
    for (const Sequence& s : live_) {
      const auto table = cache_.block_table(s.id);
      tables.emplace_back(table.begin(), table.end());
    }
    std::vector<KvMove> moves;
    bool thrown = false;
    try {
      call(moves);
    } catch (const std::invalid_argument& error) {
      thrown = std::string(error.what()).size() > 20;
    }
    expect(thrown, std::string("no clear exception: ") + name);
    const KvCacheStats after = cache_.stats();
    expect(moves.empty() && after.num_free == before.num_free &&
               after.num_cached == before.num_cached &&
               after.prefix_queries == before.prefix_queries && after.evictions == before.evictions,
           std::string("misuse changed something: ") + name);
    for (std::size_t i = 0; i < live_.size(); ++i) {
      expect(std::ranges::equal(cache_.block_table(live_[i].id), tables[i]) &&
                 cache_.reserved(live_[i].id) == live_[i].reserved &&
                 cache_.verified_length(live_[i].id) == length_of(live_[i]),
             std::string("misuse changed a sequence: ") + name);
    }
  }

  void misuse(const Sequence& s) {
    using Ints = std::vector<std::int32_t>;
    const std::int32_t length = length_of(s);
    const auto ignore = [](auto&&...) {};
    expect_misuse("unknown id", [&](auto&) { cache_.rollback(s.id ^ (1 << 19)); });
    expect_misuse("negative id", [&](auto&) { cache_.truncate(-1 - s.id, 0); });
    expect_misuse("fork too long", [&](auto&) { cache_.fork(s.id, length + 1); });
    expect_misuse("fork negative", [&](auto&) { cache_.fork(s.id, -1); });
    expect_misuse("truncate", [&](auto&) { cache_.truncate(s.id, length + 1); });
    expect_misuse("slot", [&](auto&) { ignore(cache_.slot(s.id, length + s.reserved)); });
    expect_misuse("slot negative", [&](auto&) { ignore(cache_.slot(s.id, -1)); });
    expect_misuse("no slots", [&](auto& m) { ignore(cache_.reserve(s.id, 0, m)); });
    expect_misuse("too many slots", [&](auto& m) { ignore(cache_.reserve(s.id, INT32_MAX, m)); });
    expect_misuse("negative token", [&](auto&) { cache_.match_prefix(s.id, Ints{0, -5}); });
    if (s.reserved == 0) {
      expect_misuse("commit", [&](auto& m) { cache_.commit(s.id, Ints{0}, Ints{1}, m); });
    } else {
      expect_misuse("reserve twice", [&](auto& m) { ignore(cache_.reserve(s.id, 1, m)); });
      expect_misuse("open truncate", [&](auto&) { cache_.truncate(s.id, 0); });
      expect_misuse("path beyond",
                    [&](auto& m) { cache_.commit(s.id, Ints{s.reserved}, Ints{1}, m); });
      expect_misuse("path twice", [&](auto& m) { cache_.commit(s.id, Ints{0, 0}, Ints{1, 1}, m); });
      expect_misuse("path negative", [&](auto& m) { cache_.commit(s.id, Ints{-1}, Ints{1}, m); });
      expect_misuse("sizes", [&](auto& m) { cache_.commit(s.id, Ints{0}, Ints{}, m); });
      expect_misuse("token", [&](auto& m) { cache_.commit(s.id, Ints{0}, Ints{-1}, m); });
    }
  }

  Cache& cache_;
  Source source_;
  DriverOptions options_;
  Coverage coverage_;
  std::int32_t block_size_ = 0;
  std::vector<std::uint64_t> memory_;  // per slot
  std::vector<Sequence> live_;
  std::vector<KvMove> copies_;
  std::unordered_set<std::uint64_t> published_;  // values of last tokens of full prefixes
  std::uint64_t garbage_ = 0;
  int count_ = 0;
};

}  // namespace smartspec::kv_test
