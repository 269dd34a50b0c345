// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "schedule/scheduler_queue.hpp"

namespace smartspec {

void SchedulerEntry::start_step() noexcept {
  slot = -1;
  num_causal = 0;
  num_nodes = 0;
  samples = false;
  settled = false;
  reason = NoSpeculationReason::kPrefill;
}

bool runs_before(const SchedulerEntry& a, const SchedulerEntry& b) noexcept {
  if (a.rank != b.rank) return a.rank < b.rank;
  return a.arrival < b.arrival;
}

void SchedulerQueue::put(std::size_t place, SchedulerEntry* entry) noexcept {
  heap_[place] = entry;
  entry->place = place;
}

void SchedulerQueue::rise(std::size_t place) noexcept {
  SchedulerEntry* entry = heap_[place];
  while (place > 0) {
    const std::size_t parent = (place - 1) / 2;
    if (!runs_before(*entry, *heap_[parent])) break;
    put(place, heap_[parent]);
    place = parent;
  }
  put(place, entry);
}

void SchedulerQueue::sink(std::size_t place) noexcept {
  SchedulerEntry* entry = heap_[place];
  while (true) {
    std::size_t child = 2 * place + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && runs_before(*heap_[child + 1], *heap_[child])) ++child;
    if (!runs_before(*heap_[child], *entry)) break;
    put(place, heap_[child]);
    place = child;
  }
  put(place, entry);
}

void SchedulerQueue::push(SchedulerEntry* entry) {
  heap_.push_back(entry);
  rise(heap_.size() - 1);
}

void SchedulerQueue::erase(SchedulerEntry* entry) {
  const std::size_t place = entry->place;
  SchedulerEntry* last = heap_.back();
  heap_.pop_back();
  if (last == entry) return;
  put(place, last);
  rise(place);
  sink(last->place);
}

}  // namespace smartspec
