// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Reductions and scans over a block of kThreads threads. Each needs all threads; `scratch` is 256
// bytes of shared memory and may be used again right away.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "common/device.cuh"

namespace smartspec::cuda::verification {

inline constexpr std::size_t kScratchBytes = 256;

/// op is associative and commutative, `neutral` its neutral element; T has 4 or 8 bytes. The same
/// result, bit for bit, in all threads: partners add the same two numbers.
template <int kThreads, class T, class Op>
SMARTSPEC_DEVICE T reduce(T value, T neutral, Op op, std::byte* scratch) {
  constexpr int kWarps = kThreads / device::kWarp;
  static_assert(kThreads % device::kWarp == 0 && kWarps <= device::kWarp);
  SMARTSPEC_UNROLL
  for (int mask = device::kWarp / 2; mask > 0; mask /= 2) {
    value = op(value, device::shuffle_xor(value, mask));
  }
  if constexpr (kWarps > 1) {
    T* slots = reinterpret_cast<T*>(scratch);
    device::sync_block();  // an earlier use may still be read
    if (device::lane_index() == 0) slots[device::warp_index()] = value;
    device::sync_block();
    value = device::lane_index() < kWarps ? slots[device::lane_index()] : neutral;
    SMARTSPEC_UNROLL
    for (int mask = device::kWarp / 2; mask > 0; mask /= 2) {
      value = op(value, device::shuffle_xor(value, mask));
    }
  }
  return value;
}

struct Max {
  template <class T>
  SMARTSPEC_DEVICE T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};
struct Min {
  template <class T>
  SMARTSPEC_DEVICE T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};
struct Sum {
  template <class T>
  SMARTSPEC_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};

/// Sum of the values of the threads below; `total` gets that of all threads.
template <int kThreads, class T>
SMARTSPEC_DEVICE T exclusive_sum(T value, T& total, std::byte* scratch) {
  constexpr int kWarps = kThreads / device::kWarp;
  const int lane = device::lane_index();
  T inclusive = value;
  SMARTSPEC_UNROLL
  for (int delta = 1; delta < device::kWarp; delta *= 2) {
    const T below = device::shuffle_up(inclusive, delta);
    if (lane >= delta) inclusive += below;
  }
  // Not inclusive - value: T may be a float.
  T exclusive = device::shuffle_up(inclusive, 1);
  if (lane == 0) exclusive = T{};
  total = device::shuffle(inclusive, device::kWarp - 1);
  if constexpr (kWarps > 1) {
    T* slots = reinterpret_cast<T*>(scratch);
    device::sync_block();
    if (lane == 0) slots[device::warp_index()] = total;
    device::sync_block();
    T before{};
    T all{};
    for (int w = 0; w < kWarps; ++w) {
      if (w == device::warp_index()) before = all;
      all += slots[w];
    }
    exclusive += before;
    total = all;
  }
  return exclusive;
}

/// Orders the bits of doubles like the doubles; -0 and +0 are the same.
SMARTSPEC_DEVICE std::uint64_t ordered_bits(double x) {
  const auto bits = std::bit_cast<std::uint64_t>(x + 0.0);
  return (bits >> 63) != 0 ? ~bits : bits | (std::uint64_t{1} << 63);
}

/// Orders the bits of floats like the floats, as a signed number; its own inverse.
SMARTSPEC_DEVICE int ordered_int(int bits) { return bits >= 0 ? bits : bits ^ 0x7FFFFFFF; }

}  // namespace smartspec::cuda::verification
