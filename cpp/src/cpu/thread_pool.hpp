// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A fixed set of threads that run the tasks of one job at a time together with the caller.
//
// The caller never waits for a worker that has not started on the job: on a busy machine the caller
// just does the work itself. Idle workers spin briefly, then sleep. One caller at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace smartspec::cpu {

class ThreadPool {
 public:
  /// `num_threads` counts the caller; 0 takes the cores this process may run on. Throws
  /// std::invalid_argument when negative or above 1024.
  explicit ThreadPool(std::int32_t num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] std::int32_t num_threads() const noexcept {
    return static_cast<std::int32_t>(workers_.size()) + 1;
  }

  /// Calls f(task, thread) for every task in [0, num_tasks), thread in [0, num_threads()); tasks
  /// are handed out in ascending order. Returns when all are done. f must not throw.
  template <class F>
  void run(std::int64_t num_tasks, const F& f) {
    if (workers_.empty() || num_tasks <= 1) {
      for (std::int64_t i = 0; i < num_tasks; ++i) f(i, 0);
      return;
    }
    run_shared(num_tasks, &f, [](const void* function, std::int64_t task, std::int32_t thread) {
      (*static_cast<const F*>(function))(task, thread);
    });
  }

 private:
  using Call = void (*)(const void* function, std::int64_t task, std::int32_t thread);
  void run_shared(std::int64_t num_tasks, const void* function, Call call);
  void work(std::int32_t thread);
  std::uint32_t wait_for_job(std::uint32_t seen);
  bool join_job(std::uint32_t epoch);
  void drain(std::int32_t thread);

  // The job; written by the caller only while no worker takes part in it.
  const void* function_ = nullptr;
  Call call_ = nullptr;
  std::int64_t num_tasks_ = 0;

  alignas(64) std::atomic<std::int64_t> next_task_{0};
  alignas(64) std::atomic<std::uint32_t> epoch_{0};    // counts jobs; sleepers wait on it
  alignas(64) std::atomic<std::uint64_t> members_{0};  // epoch << 32 | open << 31 | workers inside
  alignas(64) std::atomic<std::int32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace smartspec::cpu
