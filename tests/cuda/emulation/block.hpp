// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Runs the blocks of a launch one after another on the CPU, each thread as a fibre that runs until
// it waits. Everything that needs several threads is a rendezvous here. One launch at a time per OS
// thread; OS threads do not share anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace smartspec::emulation {

/// The kernel did what a device does not allow or what leaves its result to chance.
class EmulationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Sync : std::uint8_t {
  kNone,
  kBlock,
  kBlockOr,
  kWarp,
  kShuffle,
  kShuffleXor,
  kShuffleUp,
  kBallot,
  kLoadMatrix,
  kLoadMatrixTransposed,
  kMmaBf16,
  kMmaF16,
};

inline constexpr int kLanes = 32;
inline constexpr std::size_t kSlotBytes = 48;  // what one lane brings to a rendezvous, at most
inline constexpr std::size_t kMaxSharedBytes = 227 * 1024;
inline constexpr int kMaxThreads = 1024;

struct Grid {
  const char* kernel_name = "";
  std::int64_t blocks_x = 0;
  std::int64_t blocks_y = 0;
  int num_threads = 0;
  std::size_t shared_bytes = 0;
};

/// Calls body(kernel) in each thread of each block. Throws DeviceError where the device would
/// refuse the launch, EmulationError, or what the kernel throws.
void run_grid(const Grid& grid, void (*body)(const void*), const void* kernel);

// The rest is called by threads of a running kernel.

struct Place {
  int thread = 0;
  int block_x = 0;
  int block_y = 0;
  const Grid* grid = nullptr;
  std::byte* shared = nullptr;
};
extern thread_local constinit const Place* current_place;

[[noreturn]] void fail_outside_kernel();
inline const Place& place() {
  if (current_place == nullptr) fail_outside_kernel();
  return *current_place;
}
/// Throws EmulationError that names kernel, block and thread.
[[noreturn]] void fail(const std::string& what);

/// Before an atomic or a fence: other threads may run first.
void pass_atomic();

void wait_block();
bool wait_block_or(bool any);

/// Waits for all lanes of the warp, which bring `bytes` each. The last one to come calls `finish`,
/// if there is one, with the 32 slots of kSlotBytes. The returned slots stay as they are until the
/// caller's next rendezvous.
const std::byte* meet(Sync kind, const void* brought, std::size_t bytes,
                      void (*finish)(std::byte* slots));

void begin_copy(void* shared, const void* global, bool valid);
void close_copy_group();
void finish_copies(int num_pending);

/// Throws unless [data, data + bytes) lies in the block's shared memory and is aligned to `bytes`.
void check_shared(const void* data, std::size_t bytes, const char* what);

}  // namespace smartspec::emulation
