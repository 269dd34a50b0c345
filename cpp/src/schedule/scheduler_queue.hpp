// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the scheduler keeps per request, and the queue of those that wait.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "smartspec/scheduler.hpp"

namespace smartspec {

struct SchedulerEntry {
  SchedulerRequest request{};
  double rank = 0;           // see Scheduler::Impl::rank_of; fixed for good
  std::int64_t arrival = 0;  // breaks ties
  std::size_t place = 0;     // in the queue, while waiting
  bool running = false;

  std::int32_t num_tokens = 0;    // prompt and emitted
  std::int32_t num_computed = 0;  // of them; 0 while waiting
  std::int32_t num_output_tokens = 0;
  std::int64_t num_drafted = 0;
  std::int64_t num_accepted = 0;
  bool has_emitted = false;
  double first_token_time = 0;

  // Scratch of one step.
  std::int32_t slot = -1;       // among the decodes
  std::int32_t num_causal = 0;  // 0: not part of the step
  std::int32_t num_nodes = 0;
  bool samples = false;
  bool settled = false;  // its outcome was told
  NoSpeculationReason reason = NoSpeculationReason::kPrefill;

  [[nodiscard]] std::int32_t pending() const noexcept { return num_tokens - num_computed; }
  void start_step() noexcept;
};

/// Whose rank is lower; then who came first.
[[nodiscard]] bool runs_before(const SchedulerEntry& a, const SchedulerEntry& b) noexcept;

/// A binary heap that knows where its entries are: O(log n) for everything, and no allocation
/// beyond the growth of one array. Borrows the entries.
class SchedulerQueue {
 public:
  [[nodiscard]] bool empty() const noexcept { return heap_.empty(); }
  [[nodiscard]] std::size_t size() const noexcept { return heap_.size(); }
  [[nodiscard]] SchedulerEntry* first() const noexcept { return heap_.front(); }
  /// In no order but that an entry comes before the two it is the parent of.
  [[nodiscard]] const std::vector<SchedulerEntry*>& entries() const noexcept { return heap_; }

  void push(SchedulerEntry* entry);
  void erase(SchedulerEntry* entry);

 private:
  void put(std::size_t place, SchedulerEntry* entry) noexcept;
  void rise(std::size_t place) noexcept;
  void sink(std::size_t place) noexcept;

  std::vector<SchedulerEntry*> heap_;
};

}  // namespace smartspec
