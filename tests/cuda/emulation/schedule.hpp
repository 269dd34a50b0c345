// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// For tests: in which order the emulation runs blocks, warps and lanes.
#pragma once

#include <cstdint>

namespace smartspec::emulation {

enum class Order : std::uint8_t {
  kMixed,     // each block takes one of the others at random
  kForward,   // lowest first; a warp runs to the next block barrier before others do
  kReverse,   // highest first; the same
  kShuffled,  // at random, again at each step
};

struct Schedule {
  Order order = Order::kMixed;
  std::uint64_t seed = 0;
};

/// Of all later launches. The same schedule gives the same orders again. Not to be changed while
/// something is launched by another thread.
void set_schedule(Schedule schedule);
Schedule schedule();

/// Sets a schedule, and the one before at the end.
class ScopedSchedule {
 public:
  explicit ScopedSchedule(Schedule next) : before_(schedule()) { set_schedule(next); }
  ~ScopedSchedule() { set_schedule(before_); }
  ScopedSchedule(const ScopedSchedule&) = delete;
  ScopedSchedule& operator=(const ScopedSchedule&) = delete;

 private:
  Schedule before_;
};

/// Calls run() once forward, once in reverse and `num_shuffled` times at random: what a kernel
/// without races computes is the same each time.
template <class Run>
void for_each_schedule(int num_shuffled, Run run) {
  for (int i = -2; i < num_shuffled; ++i) {
    const Order order = i == -2 ? Order::kForward : i == -1 ? Order::kReverse : Order::kShuffled;
    const ScopedSchedule scope({order, static_cast<std::uint64_t>(i + 2)});
    run();
  }
}

}  // namespace smartspec::emulation
