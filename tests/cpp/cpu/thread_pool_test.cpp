// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The pool runs each task exactly once, for every thread count, also after its workers slept.
#include "cpu/thread_pool.hpp"

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "cpu/cpu_test_util.hpp"

namespace smartspec::cpu {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const std::int32_t threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.num_threads(), threads);
    for (int job = 0; job < test::rounds(4000); ++job) {
      const std::int64_t n = job % 37;
      std::vector<int> count(static_cast<std::size_t>(n), 0);  // plain: tasks may not share one
      std::atomic<bool> bad_thread{false};
      pool.run(n, [&](std::int64_t task, std::int32_t thread) {
        ++count[static_cast<std::size_t>(task)];
        if (thread < 0 || thread >= threads) bad_thread = true;
      });
      for (const int c : count) ASSERT_EQ(c, 1);
      ASSERT_FALSE(bad_thread);
    }
  }
}

TEST(ThreadPool, WakesSleepersAndServesAnyCaller) {
  ThreadPool pool(3);
  std::int64_t sum = 0;
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // long enough to park
    std::vector<std::int64_t> part(64, 0);
    std::thread caller([&] {
      pool.run(64, [&](std::int64_t task, std::int32_t) {
        part[static_cast<std::size_t>(task)] = task;
      });
    });
    caller.join();
    for (const std::int64_t p : part) sum += p;
  }
  EXPECT_EQ(sum, 20 * 64 * 63 / 2);
}

TEST(ThreadPool, StartsAndStopsWithoutWork) {
  for (int i = 0; i < test::rounds(200); ++i) ThreadPool pool(1 + i % 4);
}

TEST(ThreadPool, ChecksItsSize) {
  EXPECT_THROW(ThreadPool(-1), std::invalid_argument);
  EXPECT_THROW(ThreadPool(100000), std::invalid_argument);
  EXPECT_GE(ThreadPool(0).num_threads(), 1);
}

}  // namespace
}  // namespace smartspec::cpu
