// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "block.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "fibre.hpp"
#include "random.hpp"
#include "schedule.hpp"
#include "shared_memory.hpp"
#include "smartspec/error.hpp"

namespace smartspec::emulation {
namespace {

constexpr std::size_t kCopyBytes = 16;
constexpr int kMaxAtomics = 1 << 17;  // of one thread between two waits; more: it spins
constexpr int kMaxRounds = 256;       // of one warp while others could run

Schedule current_schedule;
std::atomic<std::uint64_t> num_launches{0};

struct Cancelled {};  // unwinds the other threads of a block that has failed

const char* name_of(Sync kind) {
  switch (kind) {
    case Sync::kNone:
      return "nothing";
    case Sync::kBlock:
      return "sync_block";
    case Sync::kBlockOr:
      return "sync_block_or";
    case Sync::kWarp:
      return "sync_warp";
    case Sync::kShuffle:
      return "shuffle";
    case Sync::kShuffleXor:
      return "shuffle_xor";
    case Sync::kShuffleUp:
      return "shuffle_up";
    case Sync::kBallot:
      return "ballot";
    case Sync::kLoadMatrix:
      return "load_matrix_x4";
    case Sync::kLoadMatrixTransposed:
      return "load_matrix_x4_transposed";
    case Sync::kMmaBf16:
      return "mma_bf16";
    case Sync::kMmaF16:
      return "mma_f16";
  }
  return "?";
}

struct Copy {
  std::byte* to;
  const std::byte* from;
  bool valid;
};

struct Thread {
  Place place;
  Fibre fibre;
  Sync waiting = Sync::kNone;
  bool has_begun = false;
  bool has_ended = false;
  int num_atomics = 0;                  // since it last waited
  std::vector<Copy> copies;             // not done yet, oldest first
  std::vector<std::size_t> group_ends;  // of closed groups, in `copies`
};

struct Warp {
  Sync kind = Sync::kNone;  // of the rendezvous under way
  int num_met = 0;
  int num_ready = 0;
  int parity = 0;
  // Two sets: one is read while the next rendezvous fills the other; the one after that cannot
  // begin before all lanes have come to it.
  alignas(16) std::byte slots[2][kLanes * kSlotBytes];
};

/// One multiprocessor of one OS thread.
class Machine {
 public:
  void run(const Grid& grid, int block_x, int block_y, Order order, std::uint64_t seed,
           void (*body)(const void*), const void* kernel);
  [[nodiscard]] bool is_busy() const { return running_ != nullptr || is_scheduling_; }

  Thread& running() {
    if (running_ == nullptr) fail_outside_kernel();
    return *running_;
  }
  void pass_atomic();
  void meet_block(Sync kind, bool any);
  [[nodiscard]] bool any_of_last_barrier() const { return any_[1 - any_parity_]; }
  const std::byte* meet_warp(Sync kind, const void* brought, std::size_t bytes,
                             void (*finish)(std::byte*));
  [[nodiscard]] const SharedMemory& shared() const { return shared_; }

 private:
  static void run_thread(void* argument);
  void prepare(const Grid& grid, int block_x, int block_y);
  void schedule_all();
  bool run_warp(int warp);
  void resume(Thread& thread);
  void wait(Thread& thread, Sync kind);
  void release_block();
  void cancel();
  [[nodiscard]] std::string describe_deadlock() const;

  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  SharedMemory shared_;
  Grid grid_;
  int block_x_ = 0;
  int block_y_ = 0;
  void (*body_)(const void*) = nullptr;
  const void* kernel_ = nullptr;
  Order order_ = Order::kForward;
  Random random_{0};
  Thread* running_ = nullptr;
  bool is_scheduling_ = false;
  bool is_cancelling_ = false;
  std::exception_ptr error_;
  int num_ended_ = 0;
  int num_at_barrier_ = 0;
  Sync barrier_kind_ = Sync::kNone;
  bool any_[2] = {};
  int any_parity_ = 0;
};

thread_local std::unique_ptr<Machine> local_machine;

Machine& machine() {
  if (local_machine == nullptr) local_machine = std::make_unique<Machine>();
  return *local_machine;
}

void check_all_copied(const Thread& thread) {
  if (thread.copies.empty()) return;
  fail(std::to_string(thread.copies.size()) + " asynchronous copies were never waited for");
}

void Machine::run_thread(void* argument) {
  auto& thread = *static_cast<Thread*>(argument);
  Machine& self = machine();
  try {
    self.body_(self.kernel_);
    check_all_copied(thread);
  } catch (const Cancelled&) {
  } catch (...) {
    if (self.error_ == nullptr) self.error_ = std::current_exception();
  }
  thread.has_ended = true;
  ++self.num_ended_;
  --self.warps_[static_cast<std::size_t>(thread.place.thread / kLanes)].num_ready;
}

void Machine::prepare(const Grid& grid, int block_x, int block_y) {
  const auto num_threads = static_cast<std::size_t>(grid.num_threads);
  while (threads_.size() < num_threads) threads_.push_back(std::make_unique<Thread>());
  warps_.resize(num_threads / kLanes);
  for (Warp& warp : warps_) {
    warp.num_met = 0;
    warp.num_ready = kLanes;
  }
  grid_ = grid;
  block_x_ = block_x;
  block_y_ = block_y;
  std::byte* shared = shared_.prepare(grid.shared_bytes);
  for (std::size_t i = 0; i < num_threads; ++i) {
    Thread& thread = *threads_[i];
    thread.place = {static_cast<int>(i), block_x, block_y, &grid_, shared};
    thread.waiting = Sync::kNone;
    thread.num_atomics = 0;
    thread.has_begun = false;
    thread.has_ended = false;
    thread.copies.clear();
    thread.group_ends.clear();
  }
  is_cancelling_ = false;
  error_ = nullptr;
  num_ended_ = 0;
  num_at_barrier_ = 0;
  any_[0] = any_[1] = false;
}

void Machine::run(const Grid& grid, int block_x, int block_y, Order order, std::uint64_t seed,
                  void (*body)(const void*), const void* kernel) {
  prepare(grid, block_x, block_y);
  body_ = body;
  kernel_ = kernel;
  random_ = Random(seed);
  order_ = order;
  if (order == Order::kMixed) {
    constexpr Order kOrders[] = {Order::kForward, Order::kReverse, Order::kShuffled,
                                 Order::kShuffled};
    order_ = kOrders[random_.next() % 4];
  }
  is_scheduling_ = true;
  schedule_all();
  if (error_ != nullptr) cancel();
  is_scheduling_ = false;
  const bool is_intact = shared_.is_intact();
  if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
  if (!is_intact) {
    throw EmulationError("emulation: kernel " + std::string(grid.kernel_name) + ", block (" +
                         std::to_string(block_x) + ", " + std::to_string(block_y) +
                         ") wrote outside of its " + std::to_string(grid.shared_bytes) +
                         " bytes of shared memory");
  }
}

void Machine::schedule_all() {
  std::vector<int> warp_order(warps_.size());
  std::iota(warp_order.begin(), warp_order.end(), 0);
  if (order_ == Order::kReverse) std::reverse(warp_order.begin(), warp_order.end());
  while (num_ended_ < grid_.num_threads) {
    if (order_ == Order::kShuffled) random_.shuffle(warp_order);
    bool has_progressed = false;
    for (const int warp : warp_order) {
      has_progressed |= run_warp(warp);
      if (error_ != nullptr) return;
    }
    if (!has_progressed) {
      error_ = std::make_exception_ptr(EmulationError(describe_deadlock()));
      return;
    }
  }
}

/// Runs the warp until all its lanes wait for other warps, in random order for less than that.
bool Machine::run_warp(int warp) {
  std::array<int, kLanes> lanes{};
  std::iota(lanes.begin(), lanes.end(), warp * kLanes);
  if (order_ == Order::kReverse) std::reverse(lanes.begin(), lanes.end());
  const Warp& state = warps_[static_cast<std::size_t>(warp)];
  bool has_progressed = false;
  for (int round = 0; state.num_ready > 0 && round < kMaxRounds; ++round) {
    has_progressed = true;
    if (order_ == Order::kShuffled) random_.shuffle(lanes);
    for (const int lane : lanes) {
      Thread& thread = *threads_[static_cast<std::size_t>(lane)];
      if (thread.has_ended || thread.waiting != Sync::kNone) continue;
      resume(thread);
      if (error_ != nullptr) return true;
    }
    if (order_ == Order::kShuffled && random_.next() % 4 == 0) break;
  }
  return has_progressed;
}

void Machine::resume(Thread& thread) {
  if (!thread.has_begun) {
    thread.has_begun = true;
    thread.fibre.assign(&Machine::run_thread, &thread);
  }
  running_ = &thread;
  current_place = &thread.place;
  thread.fibre.resume();
  running_ = nullptr;
  current_place = nullptr;
}

/// Parks the running thread; with kNone it only lets others go first.
void Machine::wait(Thread& thread, Sync kind) {
  thread.waiting = kind;
  thread.fibre.park();
  if (is_cancelling_) throw Cancelled();
}

/// Other threads may go first, now and then: what a kernel does around an atomic is where threads
/// see each other without a barrier.
void Machine::pass_atomic() {
  Thread& thread = running();
  if (++thread.num_atomics > kMaxAtomics) {
    fail("did " + std::to_string(kMaxAtomics) +
         " atomics without waiting: it spins for what does "
         "not come");
  }
  const bool lets_others =
      thread.num_atomics % 64 == 0 || (order_ == Order::kShuffled && random_.next() % 4 == 0);
  if (lets_others) wait(thread, Sync::kNone);
}

void Machine::cancel() {
  is_cancelling_ = true;
  for (const auto& thread : threads_) {
    if (thread->has_begun && !thread->has_ended) resume(*thread);
  }
}

void Machine::meet_block(Sync kind, bool any) {
  Thread& thread = running();
  if (num_at_barrier_ > 0 && barrier_kind_ != kind) {
    fail(std::string("is at ") + name_of(kind) + " while others wait in " + name_of(barrier_kind_));
  }
  thread.num_atomics = 0;
  barrier_kind_ = kind;
  any_[any_parity_] |= any;
  --warps_[static_cast<std::size_t>(thread.place.thread / kLanes)].num_ready;
  if (++num_at_barrier_ == grid_.num_threads) {
    release_block();
    kind = Sync::kNone;
  }
  wait(thread, kind);
}

void Machine::release_block() {
  num_at_barrier_ = 0;
  any_parity_ = 1 - any_parity_;
  any_[any_parity_] = false;
  for (int i = 0; i < grid_.num_threads; ++i) {
    threads_[static_cast<std::size_t>(i)]->waiting = Sync::kNone;
  }
  for (Warp& warp : warps_) warp.num_ready = kLanes;
}

const std::byte* Machine::meet_warp(Sync kind, const void* brought, std::size_t bytes,
                                    void (*finish)(std::byte*)) {
  Thread& thread = running();
  const int first = thread.place.thread / kLanes * kLanes;
  Warp& warp = warps_[static_cast<std::size_t>(thread.place.thread / kLanes)];
  if (warp.num_met > 0 && warp.kind != kind) {
    fail(std::string("is at ") + name_of(kind) + " while lanes of its warp wait in " +
         name_of(warp.kind));
  }
  thread.num_atomics = 0;
  warp.kind = kind;
  std::byte* slots = warp.slots[warp.parity];
  if (bytes > 0) {
    std::memcpy(slots + static_cast<std::size_t>(thread.place.thread - first) * kSlotBytes, brought,
                bytes);
  }
  --warp.num_ready;
  if (++warp.num_met == kLanes) {
    if (finish != nullptr) finish(slots);
    warp.num_met = 0;
    warp.num_ready = kLanes;
    warp.parity = 1 - warp.parity;
    for (int i = first; i < first + kLanes; ++i) {
      threads_[static_cast<std::size_t>(i)]->waiting = Sync::kNone;
    }
    kind = Sync::kNone;
  }
  wait(thread, kind);
  return slots;
}

std::string Machine::describe_deadlock() const {
  std::string text = "emulation: kernel " + std::string(grid_.kernel_name) + ", block (" +
                     std::to_string(block_x_) + ", " + std::to_string(block_y_) +
                     "): no thread can go on:";
  const auto describe = [](const Thread& thread) -> std::string {
    return thread.has_ended ? "ended" : std::string("in ") + name_of(thread.waiting);
  };
  for (int begin = 0, end = 0; begin < grid_.num_threads; begin = end) {
    const std::string what = describe(*threads_[static_cast<std::size_t>(begin)]);
    while (end < grid_.num_threads && describe(*threads_[static_cast<std::size_t>(end)]) == what) {
      ++end;
    }
    if (text.size() > 1000) return text + " ...";
    text += (begin == 0 ? " threads " : ", ") + std::to_string(begin) + "-" +
            std::to_string(end - 1) + " " + what;
  }
  return text;
}

void check_grid(const Grid& grid) {
  const auto refuse = [&](const std::string& what) {
    throw DeviceError(std::string(grid.kernel_name) + ": " + what);
  };
  if (grid.blocks_x < 0 || grid.blocks_x > 0x7FFFFFFF) {
    refuse("blocks_x " + std::to_string(grid.blocks_x) + ", allowed [0, 2147483647]");
  }
  if (grid.blocks_y < 0 || grid.blocks_y > 65535) {
    refuse("blocks_y " + std::to_string(grid.blocks_y) + ", allowed [0, 65535]");
  }
  if (grid.num_threads < 1 || grid.num_threads > kMaxThreads || grid.num_threads % kLanes != 0) {
    refuse("kThreads " + std::to_string(grid.num_threads) + ", allowed multiples of 32 up to 1024");
  }
  if (grid.shared_bytes > kMaxSharedBytes) {
    refuse("shared_bytes " + std::to_string(grid.shared_bytes) + ", allowed up to " +
           std::to_string(kMaxSharedBytes));
  }
}

}  // namespace

thread_local constinit const Place* current_place = nullptr;

void set_schedule(Schedule schedule) {
  current_schedule = schedule;
  num_launches = 0;
}

Schedule schedule() { return current_schedule; }

void run_grid(const Grid& grid, void (*body)(const void*), const void* kernel) {
  if (grid.blocks_x == 0 || grid.blocks_y == 0) return;
  check_grid(grid);
  Machine& machine_here = machine();
  if (machine_here.is_busy()) throw EmulationError("emulation: a kernel launches a kernel");
  const auto [order, seed] = current_schedule;
  Random random(seed ^ (num_launches++ << 32));
  std::vector<std::int64_t> blocks(static_cast<std::size_t>(grid.blocks_x * grid.blocks_y));
  std::iota(blocks.begin(), blocks.end(), 0);
  const std::uint64_t pick = random.next() % 3;
  if (order == Order::kReverse || (order == Order::kMixed && pick == 0)) {
    std::reverse(blocks.begin(), blocks.end());
  } else if (order == Order::kShuffled || (order == Order::kMixed && pick == 1)) {
    random.shuffle(blocks);
  }
  for (const std::int64_t block : blocks) {
    machine_here.run(grid, static_cast<int>(block % grid.blocks_x),
                     static_cast<int>(block / grid.blocks_x), order, random.next(), body, kernel);
  }
}

void fail_outside_kernel() {
  throw EmulationError("emulation: a device function was called outside of a kernel");
}

void fail(const std::string& what) {
  const Place& here = place();
  throw EmulationError("emulation: kernel " + std::string(here.grid->kernel_name) + ", block (" +
                       std::to_string(here.block_x) + ", " + std::to_string(here.block_y) +
                       "), thread " + std::to_string(here.thread) + ": " + what);
}

void pass_atomic() { machine().pass_atomic(); }

void wait_block() { machine().meet_block(Sync::kBlock, false); }

bool wait_block_or(bool any) {
  Machine& here = machine();
  here.meet_block(Sync::kBlockOr, any);
  return here.any_of_last_barrier();
}

const std::byte* meet(Sync kind, const void* brought, std::size_t bytes,
                      void (*finish)(std::byte*)) {
  return machine().meet_warp(kind, brought, bytes, finish);
}

void check_shared(const void* data, std::size_t bytes, const char* what) {
  const SharedMemory& shared = machine().shared();
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const auto begin = reinterpret_cast<std::uintptr_t>(shared.data());
  if (address < begin || address + bytes > begin + shared.bytes()) {
    fail(std::string(what) + " outside of the " + std::to_string(shared.bytes()) +
         " bytes of shared memory, at byte " +
         std::to_string(static_cast<std::int64_t>(address - begin)));
  }
  if (address % bytes != 0) {
    fail(std::string(what) + " at byte " + std::to_string(address - begin) +
         " of shared memory, which is not a multiple of " + std::to_string(bytes));
  }
}

void begin_copy(void* shared, const void* global, bool valid) {
  check_shared(shared, kCopyBytes, "copy_async_16");
  const auto address = reinterpret_cast<std::uintptr_t>(global);
  if (address % kCopyBytes != 0) {
    fail("copy_async_16 from an address that is not a multiple of 16");
  }
  auto* to = static_cast<std::byte*>(shared);
  // Whoever reads before the copy has been waited for sees this.
  std::memset(to, static_cast<int>(kPoison), kCopyBytes);
  machine().running().copies.push_back({to, static_cast<const std::byte*>(global), valid});
}

void close_copy_group() {
  Thread& thread = machine().running();
  thread.group_ends.push_back(thread.copies.size());
}

void finish_copies(int num_pending) {
  Thread& thread = machine().running();
  const std::size_t pending = static_cast<std::size_t>(num_pending);
  if (thread.group_ends.size() <= pending) return;
  const std::size_t num_groups = thread.group_ends.size() - pending;
  const std::size_t num_copies = thread.group_ends[num_groups - 1];
  for (std::size_t i = 0; i < num_copies; ++i) {
    const Copy& copy = thread.copies[i];
    if (copy.valid) {
      std::memcpy(copy.to, copy.from, kCopyBytes);
    } else {
      std::memset(copy.to, 0, kCopyBytes);
    }
  }
  thread.copies.erase(thread.copies.begin(),
                      thread.copies.begin() + static_cast<std::ptrdiff_t>(num_copies));
  thread.group_ends.erase(thread.group_ends.begin(),
                          thread.group_ends.begin() + static_cast<std::ptrdiff_t>(num_groups));
  for (std::size_t& end : thread.group_ends) end -= num_copies;
}

}  // namespace smartspec::emulation
