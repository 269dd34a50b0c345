// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// cuda/common/device.cuh on the CPU: the same names, for tests of kernels without a device.
#pragma once

#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../block.hpp"
#include "../matrix.hpp"
#include "../numbers.hpp"

#define SMARTSPEC_DEVICE inline
#define SMARTSPEC_UNROLL
#define SMARTSPEC_KEEP_LOOP

namespace smartspec::device {

inline constexpr int kWarp = 32;

// Place in the grid.
SMARTSPEC_DEVICE int thread_index() { return emulation::place().thread; }
SMARTSPEC_DEVICE int num_threads() { return emulation::place().grid->num_threads; }
SMARTSPEC_DEVICE int block_x() { return emulation::place().block_x; }
SMARTSPEC_DEVICE int block_y() { return emulation::place().block_y; }
SMARTSPEC_DEVICE int num_blocks_x() { return static_cast<int>(emulation::place().grid->blocks_x); }
SMARTSPEC_DEVICE int num_blocks_y() { return static_cast<int>(emulation::place().grid->blocks_y); }
SMARTSPEC_DEVICE int lane_index() { return thread_index() % kWarp; }
SMARTSPEC_DEVICE int warp_index() { return thread_index() / kWarp; }

SMARTSPEC_DEVICE std::byte* shared_memory() { return emulation::place().shared; }

// Barriers.
SMARTSPEC_DEVICE void sync_block() { emulation::wait_block(); }
SMARTSPEC_DEVICE void sync_warp() { emulation::meet(emulation::Sync::kWarp, nullptr, 0, nullptr); }
SMARTSPEC_DEVICE bool sync_block_or(bool any) { return emulation::wait_block_or(any); }

// Warp collectives, all lanes.
namespace detail {
template <class T>
T from_lane(emulation::Sync kind, T value, int source_lane) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  const std::byte* slots = emulation::meet(kind, &value, sizeof(T), nullptr);
  T result;
  std::memcpy(&result, slots + static_cast<std::size_t>(source_lane) * emulation::kSlotBytes,
              sizeof(T));
  return result;
}
}  // namespace detail
template <class T>
SMARTSPEC_DEVICE T shuffle(T value, int source_lane) {
  return detail::from_lane(emulation::Sync::kShuffle, value, source_lane & (kWarp - 1));
}
template <class T>
SMARTSPEC_DEVICE T shuffle_xor(T value, int mask) {
  const int source = lane_index() ^ mask;
  return detail::from_lane(emulation::Sync::kShuffleXor, value,
                           source >= 0 && source < kWarp ? source : lane_index());
}
template <class T>
SMARTSPEC_DEVICE T shuffle_up(T value, int delta) {
  const int source = lane_index() - delta;
  return detail::from_lane(emulation::Sync::kShuffleUp, value,
                           source >= 0 && source < kWarp ? source : lane_index());
}
SMARTSPEC_DEVICE std::uint32_t ballot(bool predicate) {
  const std::byte* slots =
      emulation::meet(emulation::Sync::kBallot, &predicate, sizeof(predicate), nullptr);
  std::uint32_t mask = 0;
  for (std::size_t lane = 0; lane < kWarp; ++lane) {
    mask |= std::to_integer<std::uint32_t>(slots[lane * emulation::kSlotBytes]) << lane;
  }
  return mask;
}

// Copies from global to shared memory that run on their own: done when they are waited for.
SMARTSPEC_DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
  emulation::begin_copy(shared, global, valid);
}
SMARTSPEC_DEVICE void commit_copies() { emulation::close_copy_group(); }
template <int kPending>
SMARTSPEC_DEVICE void wait_copies() {
  static_assert(kPending >= 0);
  emulation::finish_copies(kPending);
}

// Matrix products, all lanes.
namespace detail {
// The row is read when the lane comes, not when the last one does: the instruction does not order
// the lanes' memory accesses, so a missing sync_warp() before it has to show.
inline void load_matrix(emulation::Sync kind, std::uint32_t (&out)[4], const void* shared_row,
                        void (*distribute)(std::byte*)) {
  emulation::RowSlot slot{};
  emulation::check_shared(shared_row, sizeof(slot.row), "load_matrix_x4");
  std::memcpy(slot.row, shared_row, sizeof(slot.row));
  const std::byte* slots = emulation::meet(kind, &slot, sizeof(slot), distribute);
  std::memcpy(&slot, slots + static_cast<std::size_t>(lane_index()) * emulation::kSlotBytes,
              sizeof(slot));
  std::memcpy(out, slot.fragment, sizeof(out));
}
inline void multiply(emulation::Sync kind, float (&acc)[4], const std::uint32_t (&a)[4],
                     const std::uint32_t (&b)[2], void (*product)(std::byte*)) {
  emulation::MmaSlot slot{};
  std::memcpy(slot.acc, acc, sizeof(acc));
  std::memcpy(slot.a, a, sizeof(a));
  std::memcpy(slot.b, b, sizeof(b));
  const std::byte* slots = emulation::meet(kind, &slot, sizeof(slot), product);
  std::memcpy(&slot, slots + static_cast<std::size_t>(lane_index()) * emulation::kSlotBytes,
              sizeof(slot));
  std::memcpy(acc, slot.acc, sizeof(acc));
}
}  // namespace detail
SMARTSPEC_DEVICE void load_matrix_x4(std::uint32_t (&out)[4], const void* shared_row) {
  detail::load_matrix(emulation::Sync::kLoadMatrix, out, shared_row, emulation::distribute_rows);
}
SMARTSPEC_DEVICE void load_matrix_x4_transposed(std::uint32_t (&out)[4], const void* shared_row) {
  detail::load_matrix(emulation::Sync::kLoadMatrixTransposed, out, shared_row,
                      emulation::distribute_rows_transposed);
}
/// acc += a * b, f32 accumulators: sums in ascending k, see multiply_bf16() of matrix.hpp.
SMARTSPEC_DEVICE void mma_bf16(float (&acc)[4], const std::uint32_t (&a)[4],
                               const std::uint32_t (&b)[2]) {
  detail::multiply(emulation::Sync::kMmaBf16, acc, a, b, emulation::multiply_bf16);
}
SMARTSPEC_DEVICE void mma_f16(float (&acc)[4], const std::uint32_t (&a)[4],
                              const std::uint32_t (&b)[2]) {
  detail::multiply(emulation::Sync::kMmaF16, acc, a, b, emulation::multiply_f16);
}

// Across blocks. Atomic towards launches of other OS threads too.
namespace detail {
template <class T>
T atomic_add(T* address, T value) {
  emulation::pass_atomic();
  return std::atomic_ref<T>(*address).fetch_add(value);
}
template <class T>
T atomic_max(T* address, T value) {
  emulation::pass_atomic();
  const std::atomic_ref<T> target(*address);
  T before = target.load();
  while (before < value && !target.compare_exchange_weak(before, value)) {
  }
  return before;
}
}  // namespace detail
SMARTSPEC_DEVICE int atomic_add(int* address, int value) {
  return detail::atomic_add(address, value);
}
SMARTSPEC_DEVICE float atomic_add(float* address, float value) {
  return detail::atomic_add(address, value);
}
SMARTSPEC_DEVICE std::uint64_t atomic_add(std::uint64_t* address, std::uint64_t value) {
  return detail::atomic_add(address, value);
}
SMARTSPEC_DEVICE std::uint64_t atomic_max(std::uint64_t* address, std::uint64_t value) {
  return detail::atomic_max(address, value);
}
SMARTSPEC_DEVICE int atomic_max(int* address, int value) {
  return detail::atomic_max(address, value);
}
SMARTSPEC_DEVICE void fence_device() { emulation::pass_atomic(); }

// Arithmetic.
SMARTSPEC_DEVICE float exp2_approx(float x) { return std::exp2(x); }
SMARTSPEC_DEVICE float log2_approx(float x) { return std::log2(x); }
SMARTSPEC_DEVICE float tanh_approx(float x) { return std::tanh(x); }
SMARTSPEC_DEVICE int count_bits(std::uint32_t x) { return std::popcount(x); }
SMARTSPEC_DEVICE int lowest_bit(std::uint32_t x) { return std::countr_zero(x); }
SMARTSPEC_DEVICE std::uint32_t permute_bytes(std::uint32_t a, std::uint32_t b,
                                             std::uint32_t selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
  std::uint32_t result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned from = (selector >> (4 * i)) & 7U;
    result |= static_cast<std::uint32_t>((bytes >> (8 * from)) & 0xFFU) << (8 * i);
  }
  return result;
}

// 16-bit and 8-bit numbers as bits.
SMARTSPEC_DEVICE std::uint16_t to_bf16(float x) { return emulation::float_to_bf16(x); }
SMARTSPEC_DEVICE float from_bf16(std::uint16_t x) { return emulation::bf16_to_float(x); }
SMARTSPEC_DEVICE std::uint16_t to_f16(float x) { return emulation::float_to_f16(x); }
SMARTSPEC_DEVICE float from_f16(std::uint16_t x) { return emulation::f16_to_float(x); }
SMARTSPEC_DEVICE std::uint32_t pack_bf16(float low, float high) {
  return static_cast<std::uint32_t>(to_bf16(low)) | static_cast<std::uint32_t>(to_bf16(high)) << 16;
}
SMARTSPEC_DEVICE std::uint32_t pack_f16(float low, float high) {
  return static_cast<std::uint32_t>(to_f16(low)) | static_cast<std::uint32_t>(to_f16(high)) << 16;
}
SMARTSPEC_DEVICE std::uint32_t subtract_f16x2(std::uint32_t a, std::uint32_t b) {
  const auto subtract = [&](unsigned shift) {
    return from_f16(static_cast<std::uint16_t>(a >> shift)) -
           from_f16(static_cast<std::uint16_t>(b >> shift));
  };
  return pack_f16(subtract(0), subtract(16));
}
SMARTSPEC_DEVICE std::uint8_t to_e4m3(float x) { return emulation::float_to_e4m3(x); }
SMARTSPEC_DEVICE std::uint8_t to_e5m2(float x) { return emulation::float_to_e5m2(x); }
SMARTSPEC_DEVICE std::uint32_t e4m3x2_to_f16x2(std::uint16_t x) {
  const auto low = static_cast<std::uint8_t>(x & 0xFFU);
  const auto high = static_cast<std::uint8_t>(x >> 8);
  return static_cast<std::uint32_t>(emulation::e4m3_to_f16(low)) |
         static_cast<std::uint32_t>(emulation::e4m3_to_f16(high)) << 16;
}
SMARTSPEC_DEVICE std::uint32_t e5m2x2_to_f16x2(std::uint16_t x) {
  return (x & 0xFFU) << 8 | static_cast<std::uint32_t>(x >> 8) << 24;
}

}  // namespace smartspec::device
