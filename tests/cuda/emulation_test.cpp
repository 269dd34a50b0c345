// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The emulated thread block: order, barriers, collectives, asynchronous copies, and the mistakes it
// has to find.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/launch.cuh"
#include "emulation/block.hpp"
#include "emulation/lambda_kernel.hpp"
#include "emulation/schedule.hpp"
#include "smartspec/error.hpp"

namespace smartspec {
namespace {

using namespace device;  // NOLINT: the lambdas below are written as kernels are
using emulation::EmulationError;
using emulation::for_each_schedule;
using emulation::Order;
using emulation::run_lambda;
using emulation::ScopedSchedule;

/// The text of the EmulationError that run() throws; empty if it throws none.
template <class Run>
std::string error_of(Run run) {
  try {
    run();
  } catch (const EmulationError& error) {
    return error.what();
  }
  return {};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

template <class T>
T* shared_array() {
  return reinterpret_cast<T*>(shared_memory());
}

TEST(Grid, EveryThreadOfEveryBlockRunsOnce) {
  for_each_schedule(3, [] {
    std::vector<int> seen(3 * 5 * 64, 0);
    run_lambda<64>({.blocks_x = 3, .blocks_y = 5}, [&] {
      ASSERT_EQ(num_blocks_x(), 3);
      ASSERT_EQ(num_blocks_y(), 5);
      ASSERT_EQ(num_threads(), 64);
      ASSERT_EQ(warp_index() * 32 + lane_index(), thread_index());
      ++seen[static_cast<std::size_t>((block_y() * 3 + block_x()) * 64 + thread_index())];
    });
    EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
  });
}

std::vector<int> order_under(emulation::Schedule schedule) {
  const ScopedSchedule scope(schedule);
  std::vector<int> order;
  run_lambda<64>({.blocks_x = 4}, [&] {
    order.push_back(block_x() * 64 + thread_index());
    sync_warp();
    order.push_back(block_x() * 64 + thread_index());
  });
  return order;
}

TEST(Grid, SchedulesGiveTheirOrders) {
  const std::vector<int> forward = order_under({Order::kForward, 0});
  const std::vector<int> reverse = order_under({Order::kReverse, 0});
  ASSERT_EQ(forward.size(), 512U);
  EXPECT_EQ(forward[0], 0);
  EXPECT_EQ(forward[31], 31);
  EXPECT_EQ(forward[32], 0);  // the first warp goes on before the second begins
  EXPECT_EQ(forward[511], 255);
  EXPECT_EQ(std::vector<int>(reverse.rbegin() + 32, reverse.rbegin() + 64),
            std::vector<int>(forward.begin() + 32, forward.begin() + 64));
  EXPECT_EQ(order_under({Order::kShuffled, 1}), order_under({Order::kShuffled, 1}));
  EXPECT_NE(order_under({Order::kShuffled, 1}), order_under({Order::kShuffled, 2}));
  EXPECT_NE(order_under({Order::kShuffled, 1}), forward);
  EXPECT_NE(order_under({Order::kMixed, 1}), order_under({Order::kMixed, 3}));
}

TEST(Grid, RefusesWhatADeviceRefuses) {
  int num_runs = 0;
  const auto body = [&num_runs] { ++num_runs; };
  EXPECT_THROW(run_lambda<32>({.shared_bytes = 227 * 1024 + 1}, body), DeviceError);
  EXPECT_THROW(run_lambda<32>({.blocks_y = 65536}, body), DeviceError);
  EXPECT_THROW(run_lambda<32>({.blocks_x = -1}, body), DeviceError);
  EXPECT_THROW(run_lambda<33>({}, body), DeviceError);
  run_lambda<32>({.blocks_x = 0}, body);
  run_lambda<32>({.blocks_y = 0}, body);
  EXPECT_EQ(num_runs, 0);
  run_lambda<1024>({.shared_bytes = 227 * 1024}, body);
  EXPECT_EQ(num_runs, 1024);
}

TEST(Grid, DeviceFunctionsBelongInKernels) {
  EXPECT_THROW(thread_index(), EmulationError);
  EXPECT_THROW(sync_block(), EmulationError);
  EXPECT_THROW(ballot(true), EmulationError);
  EXPECT_THROW(run_lambda<32>({}, [] { run_lambda<32>({}, [] {}); }), EmulationError);
}

TEST(SharedMemory, IsFreshInEveryBlock) {
  run_lambda<32>({.blocks_x = 3, .shared_bytes = 260}, [] {
    ASSERT_EQ(reinterpret_cast<std::uintptr_t>(shared_memory()) % 128, 0U);
    if (thread_index() > 0) return;
    for (int i = 0; i < 65; ++i) {
      ASSERT_NE(shared_array<float>()[i], shared_array<float>()[i]);  // NaN
      shared_array<float>()[i] = 1.0F;
    }
  });
}

#ifdef __SANITIZE_ADDRESS__
TEST(SharedMemoryDeathTest, AccessOutsideIsReported) {
  const auto read = [](std::size_t at) {
    run_lambda<32>({.shared_bytes = 100}, [at] {
      volatile auto sink = shared_memory()[at];
      (void)sink;
    });
  };
  read(99);
  EXPECT_DEATH(read(100), "use-after-poison");
  EXPECT_DEATH(read(static_cast<std::size_t>(-1)), "use-after-poison");
}
#else
TEST(SharedMemory, WritingOutsideIsAnError) {
  const auto write = [](std::ptrdiff_t at) {
    return error_of([at] {
      run_lambda<32>({.shared_bytes = 100}, [at] { shared_memory()[at] = std::byte{1}; });
    });
  };
  EXPECT_EQ(write(99), "");
  EXPECT_TRUE(contains(write(100), "outside of its 100 bytes")) << write(100);
  EXPECT_TRUE(contains(write(-1), "outside of its 100 bytes"));
}
#endif

/// Reverses 128 numbers through shared memory; returns how many came out wrong.
int num_wrong_reversed(bool with_barrier) {
  int num_wrong = 0;
  run_lambda<128>({.blocks_x = 2, .shared_bytes = 512}, [&] {
    shared_array<int>()[thread_index()] = thread_index();
    if (with_barrier) sync_block();
    num_wrong += shared_array<int>()[127 - thread_index()] != 127 - thread_index();
  });
  return num_wrong;
}

TEST(Barrier, MissingOneShows) {
  for_each_schedule(4, [] {
    EXPECT_EQ(num_wrong_reversed(true), 0);
    EXPECT_GT(num_wrong_reversed(false), 0);
  });
}

// All threads read before any writes: the other half of the ways to forget a barrier.
TEST(Barrier, MissingOneBeforeOverwritingShows) {
  int num_wrong = 0;
  for_each_schedule(4, [&] {
    run_lambda<64>({.shared_bytes = 256}, [&] {
      int* shared = shared_array<int>();
      shared[thread_index()] = thread_index();
      sync_block();
      const int next = shared[(thread_index() + 1) % 64];
      shared[thread_index()] = -1;
      num_wrong += next < 0;
    });
  });
  EXPECT_GT(num_wrong, 0);
}

TEST(Barrier, OrIsOfAllThreadsEachTime) {
  for_each_schedule(4, [] {
    run_lambda<96>({}, [] {
      for (int round = 0; round < 20; ++round) {
        const bool any = sync_block_or(round % 3 == 0 && thread_index() == round);
        ASSERT_EQ(any, round % 3 == 0);
        if (round % 4 == 0) sync_block();
      }
    });
  });
}

TEST(Deadlock, NamesWhoWaitsWhere) {
  for_each_schedule(2, [] {
    const std::string barrier = error_of([] {
      run_lambda<64>({.blocks_x = 2}, [] {
        if (block_x() == 1 && thread_index() >= 50) return;
        sync_block();
      });
    });
    EXPECT_EQ(barrier,
              "emulation: kernel lambda, block (1, 0): no thread can go on: threads 0-49 in "
              "sync_block, 50-63 ended");
    const std::string warp = error_of([] {
      run_lambda<64>({}, [] {
        if (thread_index() != 7) shuffle(1, 0);
      });
    });
    EXPECT_TRUE(contains(warp, "0-6 in shuffle, 7-7 ended, 8-31 in shuffle, 32-63 ended")) << warp;
    const std::string both = error_of([] {
      run_lambda<32>({}, [] {
        if (lane_index() < 16) {
          sync_warp();
        } else {
          sync_block();
        }
      });
    });
    EXPECT_TRUE(contains(both, "0-15 in sync_warp, 16-31 in sync_block")) << both;
  });
}

TEST(Deadlock, LanesAtDifferentCollectivesAreAnError) {
  const std::string warp = error_of([] {
    run_lambda<32>({}, [] { lane_index() < 16 ? (void)ballot(true) : (void)shuffle_xor(1, 1); });
  });
  EXPECT_TRUE(contains(warp, "while lanes of its warp wait in")) << warp;
  const std::string block = error_of([] {
    run_lambda<32>({}, [] { lane_index() < 16 ? sync_block() : (void)sync_block_or(true); });
  });
  EXPECT_TRUE(contains(block, "while others wait in")) << block;
}

TEST(Collective, ShufflesMoveValues) {
  for_each_schedule(3, [] {
    run_lambda<64>({}, [] {
      const int me = thread_index() * 3;
      const int base = warp_index() * 32;
      for (int i = 0; i < 40; ++i) {
        ASSERT_EQ(shuffle(me, i), (base + i % 32) * 3);
        ASSERT_EQ(shuffle(static_cast<float>(me), lane_index() ^ 5),
                  static_cast<float>((base + (lane_index() ^ 5)) * 3));
      }
      for (int mask = 1; mask < 32; mask *= 2) {
        const auto wide = static_cast<std::uint64_t>(me) << 40;
        ASSERT_EQ(shuffle_xor(wide, mask),
                  static_cast<std::uint64_t>((base + (lane_index() ^ mask)) * 3) << 40);
      }
      for (int delta = 0; delta < 32; ++delta) {
        const int source = lane_index() < delta ? lane_index() : lane_index() - delta;
        ASSERT_EQ(shuffle_up(me, delta), (base + source) * 3);
      }
      ASSERT_EQ(ballot(lane_index() % 3 == warp_index()),
                warp_index() == 0 ? 0x49249249U : 0x92492492U);
    });
  });
}

TEST(Collective, AtomicsReturnTheValueBefore) {
  std::int32_t count = 0;
  std::int32_t largest = -5;
  std::uint64_t wide = 1;
  std::uint64_t widest = 7;
  float sum = 0.5F;
  std::vector<int> tickets(96, 0);
  run_lambda<32>({.blocks_x = 3}, [&] {
    ++tickets[static_cast<std::size_t>(atomic_add(&count, 1))];
    atomic_max(&largest, thread_index() + 100 * block_x());
    atomic_add(&wide, std::uint64_t{1} << 40);
    atomic_max(&widest, static_cast<std::uint64_t>(thread_index()) << 50);
    atomic_add(&sum, 0.25F);
    fence_device();
  });
  EXPECT_EQ(tickets, std::vector<int>(96, 1));
  EXPECT_EQ(count, 96);
  EXPECT_EQ(largest, 231);
  EXPECT_EQ(wide, (std::uint64_t{96} << 40) + 1);
  EXPECT_EQ(widest, std::uint64_t{31} << 50);
  EXPECT_EQ(sum, 24.5F);
}

TEST(Collective, ThreadsMayWaitForAtomicsOfOthers) {
  for_each_schedule(3, [] {
    int flag = 0;
    run_lambda<96>({}, [&] {
      if (thread_index() == 50) atomic_add(&flag, 1);
      while (atomic_add(&flag, 0) == 0) {
      }
    });
  });
  int never = 0;
  const std::string error = error_of([&] {
    run_lambda<32>({}, [&] {
      while (atomic_add(&never, 0) == 0) {
      }
    });
  });
  EXPECT_TRUE(contains(error, "it spins for what does not come")) << error;
}

// Threads of one block that count without an atomic: needs a switch in between to show.
TEST(Collective, AtomicsAreWhereThreadsInterleave) {
  int num_lost = 0;
  for_each_schedule(4, [&] {
    int count = 0;
    int dummy = 0;
    run_lambda<64>({}, [&] {
      const int before = count;
      atomic_add(&dummy, 1);
      count = before + 1;
    });
    num_lost += 64 - count;
  });
  EXPECT_GT(num_lost, 0);
}

// Copies.

struct alignas(16) Chunk {
  std::int32_t values[4];
  bool operator==(const Chunk&) const = default;
};
constexpr Chunk kUnset{{-1, -1, -1, -1}};

std::vector<Chunk> numbered_chunks() {
  std::vector<Chunk> chunks(64);
  for (int i = 0; i < 64; ++i) chunks[static_cast<std::size_t>(i)] = {{i, i + 1, i + 2, i + 3}};
  return chunks;
}

TEST(AsyncCopy, ArrivesWhenWaitedFor) {
  const std::vector<Chunk> chunks = numbered_chunks();
  for_each_schedule(3, [&] {
    run_lambda<64>({.shared_bytes = 64 * 16}, [&] {
      const int me = thread_index();
      Chunk* shared = shared_array<Chunk>();
      shared[me] = chunks[0];
      const bool valid = me % 5 != 0;
      copy_async_16(&shared[me], valid ? &chunks[static_cast<std::size_t>(me)] : nullptr, valid);
      ASSERT_EQ(shared[me], kUnset);  // reading too early shows
      commit_copies();
      ASSERT_EQ(shared[me], kUnset);
      wait_copies<0>();
      sync_block();
      const int other = 63 - me;
      ASSERT_EQ(shared[other], other % 5 == 0 ? Chunk{} : chunks[static_cast<std::size_t>(other)]);
    });
  });
}

TEST(AsyncCopy, WaitingLeavesTheLatestGroups) {
  const std::vector<Chunk> chunks = numbered_chunks();
  run_lambda<32>({.shared_bytes = 32 * 5 * 16}, [&] {
    Chunk* mine = shared_array<Chunk>() + lane_index() * 5;
    for (int i = 0; i < 4; ++i) {
      copy_async_16(&mine[i], &chunks[static_cast<std::size_t>(i)], true);
      if (i != 1) commit_copies();  // groups: {0}, {1, 2}, {3}
    }
    const auto arrived = [&] {
      int count = 0;
      while (count < 5 && mine[count] != kUnset) ++count;
      return count;
    };
    wait_copies<3>();
    ASSERT_EQ(arrived(), 0);
    wait_copies<2>();
    ASSERT_EQ(arrived(), 1);
    wait_copies<1>();
    ASSERT_EQ(arrived(), 3);
    copy_async_16(&mine[4], chunks.data(), true);
    wait_copies<0>();
    ASSERT_EQ(arrived(), 4);  // the last one is in no group yet
    commit_copies();
    commit_copies();  // empty
    wait_copies<1>();
    ASSERT_EQ(arrived(), 5);
  });
}

TEST(AsyncCopy, MissingBarrierAfterTheWaitShows) {
  const std::vector<Chunk> chunks = numbered_chunks();
  for_each_schedule(2, [&] {
    int num_wrong = 0;
    run_lambda<64>({.shared_bytes = 64 * 16}, [&] {
      const int me = thread_index();
      copy_async_16(shared_array<Chunk>() + me, &chunks[static_cast<std::size_t>(me)], true);
      commit_copies();
      wait_copies<0>();
      num_wrong += shared_array<Chunk>()[63 - me] != chunks[static_cast<std::size_t>(63 - me)];
    });
    EXPECT_GT(num_wrong, 0);
  });
}

TEST(AsyncCopy, MistakesAreErrors) {
  const std::vector<Chunk> chunks = numbered_chunks();
  const auto error_from = [&](int to_byte, int from_byte, bool wait) {
    return error_of([&] {
      run_lambda<32>({.shared_bytes = 64}, [&] {
        if (thread_index() > 0) return;
        copy_async_16(shared_memory() + to_byte,
                      reinterpret_cast<const std::byte*>(chunks.data()) + from_byte, true);
        commit_copies();
        if (wait) wait_copies<0>();
      });
    });
  };
  EXPECT_EQ(error_from(48, 16, true), "");
  EXPECT_TRUE(contains(error_from(48, 16, false), "never waited for"));
  EXPECT_TRUE(contains(error_from(64, 16, true), "outside of the 64 bytes of shared memory"));
  EXPECT_TRUE(contains(error_from(-16, 16, true), "outside of the 64 bytes"));
  EXPECT_TRUE(contains(error_from(8, 16, true), "not a multiple of 16"));
  EXPECT_TRUE(contains(error_from(16, 8, true), "not a multiple of 16"));
}

// Exceptions.

struct Counted {
  explicit Counted(int* alive) : alive_(alive) { ++*alive_; }
  ~Counted() { --*alive_; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  int* alive_;
};

TEST(Exceptions, ReachTheCallerAndUnwindTheOtherThreads) {
  int alive = 0;
  for_each_schedule(3, [&] {
    try {
      run_lambda<128>({.blocks_x = 3}, [&] {
        const Counted counted(&alive);
        sync_block();
        const std::vector<int> heap(100, 1);
        if (block_x() == 1 && thread_index() == 77) throw std::out_of_range("thread 77");
        sync_block();
      });
      FAIL() << "nothing thrown";
    } catch (const std::out_of_range& error) {
      EXPECT_STREQ(error.what(), "thread 77");
    }
    EXPECT_EQ(alive, 0);
    EXPECT_EQ(num_wrong_reversed(true), 0);  // the next launch is not affected
  });
}

TEST(Exceptions, MayBeCaughtInTheKernel) {
  int num_caught = 0;
  run_lambda<64>({}, [&] {
    try {
      if (thread_index() % 2 == 0) throw std::runtime_error("x");
    } catch (const std::runtime_error&) {
      ++num_caught;
    }
    sync_block();
  });
  EXPECT_EQ(num_caught, 32);
}

}  // namespace
}  // namespace smartspec
