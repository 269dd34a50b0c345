// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What SuffixIndex is made of, and who may touch what:
//
// - `writer` serialises everything that changes anything but a draft's own request.
// - `gate` is held shared by drafts, exclusively by whoever changes what drafts read.
// - RequestState::mutex is held by whoever drafts for a request or indexes its prompt.
// Taken in this order. Freezing reads sealed generations, which nobody changes, without any.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "propose/suffix/drafter.hpp"
#include "propose/suffix/history.hpp"
#include "propose/suffix/request.hpp"
#include "propose/suffix/request_table.hpp"
#include "smartspec/suffix_index.hpp"

namespace smartspec::suffix {
class FileWriter;
}

namespace smartspec {

/// A readers-writer lock under which a stream of readers cannot keep a writer out for ever.
class FairGate {
 public:
  void lock() {
    const std::lock_guard turn(turnstile_);
    gate_.lock();
  }
  void unlock() { gate_.unlock(); }
  void lock_shared() {
    const std::lock_guard turn(turnstile_);
    gate_.lock_shared();
  }
  void unlock_shared() { gate_.unlock_shared(); }

 private:
  std::mutex turnstile_;
  std::shared_mutex gate_;
};

/// Runs jobs one after another on a thread of its own, started with the first job.
class Background {
 public:
  ~Background();
  void run(std::function<void()> job);
  /// Returns when at most `num_pending` jobs wait or run.
  void wait(std::size_t num_pending = 0);

 private:
  void work();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::function<void()>> jobs_;
  std::size_t num_running_ = 0;
  bool is_stopping_ = false;
  std::thread thread_;
};

struct SuffixIndex::Impl {
  using History = suffix::History;
  using Generation = suffix::Generation;
  using RequestState = suffix::RequestState;
  using Histories = std::map<std::string, std::unique_ptr<History>, std::less<>>;

  /// Where an output, or a part of it, stands in the history.
  struct Place {
    History* history = nullptr;
    std::uint64_t generation = 0;
    std::uint32_t sequence = 0;
  };
  /// New tokens of one request, checked.
  struct Slice {
    RequestState* request = nullptr;
    std::span<const TokenId> tokens;
  };

  explicit Impl(const SuffixIndexOptions& checked) : options(checked) {}

  // suffix_index.cpp
  [[nodiscard]] RequestState& request(RequestId id) const;
  [[nodiscard]] History& history(std::string_view name);  // created when it is new
  void check_tokens(std::string_view field, std::span<const TokenId> tokens) const;
  static void check_offsets(std::string_view field, std::span<const std::int64_t> offsets,
                            std::int64_t num_tokens);

  // update.cpp
  void check_update(const SuffixUpdate& batch, std::vector<Slice>& slices);
  void index_prompt(Slice& slice);
  void index_outputs(std::span<Slice> group);
  void keep_within_bounds(std::span<const Slice> fed);

  // file_save.cpp, file_load.cpp
  void write(const std::string& path, std::unique_ptr<suffix::FileWriter>& file) const;
  void replace(Histories loaded, Histories& retired);

  // generations.cpp; the caller holds `writer`, and `gate` exclusively
  [[nodiscard]] std::shared_ptr<Generation> new_generation();
  void keep_output(RequestState& request);
  void leave_generation(RequestState& request);
  void leave_forgotten(RequestState& request);
  void seal(History& history);
  bool seal_if_full(History& history);
  void add_sequence(History& history, std::span<const TokenId> sequence);
  void freeze(const std::shared_ptr<Generation>& generation);
  void publish(const std::shared_ptr<Generation>& generation, suffix::FrozenSegment segment);
  void evict_to_bound();
  void drop(History& history, std::size_t generation);
  void forget(const Place& place);
  [[nodiscard]] std::size_t history_bytes() const;
  /// Memory whose release takes a while; freed by the background thread or at the next unlock.
  void discard(std::shared_ptr<void> memory);

  SuffixIndexOptions options;
  mutable std::mutex writer;
  mutable FairGate gate;
  suffix::RequestTable requests;
  Histories histories;
  std::unordered_map<RequestId, std::vector<Place>> places;
  std::uint64_t next_generation = 1;
  std::vector<Slice> slices;  // scratch of update()
  std::uint64_t epoch = 0;    // marks the requests of one batch
  std::int64_t evicted_tokens = 0;
  std::int64_t drafted_tokens = 0;
  std::int64_t accepted_tokens = 0;
  double expected_tokens = 0;
  mutable Background background;  // last: its jobs use the rest
};

}  // namespace smartspec
