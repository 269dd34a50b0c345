// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "cpu/thread_pool.hpp"

#include <chrono>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sched.h>
#endif

namespace smartspec::cpu {
namespace {

constexpr std::int32_t kMaxThreads = 1024;
// Longer than what lies between two passes of a busy engine: waking a sleeper takes 50 us.
constexpr std::chrono::microseconds kWorkerSpin{250};
constexpr int kSpinsPerLook = 64;  // at the clock
constexpr int kCallerSpins = 20000;
constexpr std::uint64_t kOpen = std::uint64_t{1} << 31;

void relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::int32_t available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n == 0 ? 1 : static_cast<std::int32_t>(n);
}

}  // namespace

ThreadPool::ThreadPool(std::int32_t num_threads) {
  if (num_threads < 0 || num_threads > kMaxThreads) {
    throw std::invalid_argument("num_threads: " + std::to_string(num_threads) + " is not in [0, " +
                                std::to_string(kMaxThreads) + "]");
  }
  if (num_threads == 0) num_threads = available_cores();
  workers_.reserve(static_cast<std::size_t>(num_threads - 1));
  try {
    for (std::int32_t t = 1; t < num_threads; ++t) {
      workers_.emplace_back([this, t] { work(t); });
    }
  } catch (...) {
    stop_.store(true);
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_shared(std::int64_t num_tasks, const void* function, Call call) {
  function_ = function;
  call_ = call;
  num_tasks_ = num_tasks;
  next_task_.store(0, std::memory_order_relaxed);
  const std::uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  members_.store((std::uint64_t{epoch} << 32) | kOpen, std::memory_order_release);
  epoch_.store(epoch);  // sequentially consistent, against sleepers_ in wait_for_job
  if (sleepers_.load() > 0) epoch_.notify_all();
  drain(0);
  // Closing keeps late workers out; those inside still hold a task.
  std::uint64_t state = members_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  for (int spins = 0; (state & (kOpen - 1)) != 0; ++spins) {
    if (spins < kCallerSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
    state = members_.load(std::memory_order_acquire);
  }
}

void ThreadPool::drain(std::int32_t thread) {
  for (;;) {
    const std::int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (task >= num_tasks_) return;
    call_(function_, task, thread);
  }
}

std::uint32_t ThreadPool::wait_for_job(std::uint32_t seen) {
  const auto end = std::chrono::steady_clock::now() + kWorkerSpin;
  do {
    for (int spins = 0; spins < kSpinsPerLook; ++spins) {
      const std::uint32_t epoch = epoch_.load(std::memory_order_acquire);
      if (epoch != seen) return epoch;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  sleepers_.fetch_add(1);
  while (epoch_.load() == seen) epoch_.wait(seen);
  sleepers_.fetch_sub(1);
  return epoch_.load();
}

/// Enters the job of this epoch unless it is over already.
bool ThreadPool::join_job(std::uint32_t epoch) {
  std::uint64_t state = members_.load(std::memory_order_acquire);
  while ((state >> 32) == epoch && (state & kOpen) != 0) {
    if (members_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
      return true;
    }
  }
  return false;
}

void ThreadPool::work(std::int32_t thread) {
  std::uint32_t seen = 0;
  while (!stop_.load(std::memory_order_acquire)) {
    seen = wait_for_job(seen);
    if (join_job(seen)) {
      drain(thread);
      members_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }
}

}  // namespace smartspec::cpu
