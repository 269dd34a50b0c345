// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Accesses of 1 to 16 bytes, and runs of numbers of any element type as f32.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/device.cuh"
#include "smartspec/types.hpp"

namespace smartspec::cuda::kernels {

/// kBytes that move in one instruction; the address must be aligned to kBytes.
template <int kBytes>
struct [[gnu::may_alias]] alignas(kBytes) Bits {
  static_assert(kBytes == 1 || kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16);
  using Word = std::conditional_t<kBytes >= 4, std::uint32_t,
                                  std::conditional_t<kBytes == 2, std::uint16_t, std::uint8_t>>;
  static constexpr int kWords = kBytes >= 4 ? kBytes / 4 : 1;
  Word words[kWords];
};

template <int kBytes>
SMARTSPEC_DEVICE Bits<kBytes> load_bits(const void* from) {
  return *static_cast<const Bits<kBytes>*>(from);
}
template <int kBytes>
SMARTSPEC_DEVICE void store_bits(void* to, const Bits<kBytes>& bits) {
  *static_cast<Bits<kBytes>*>(to) = bits;
}

/// Nearest, ties to even; out of range saturates, NaN becomes 0.
SMARTSPEC_DEVICE std::uint8_t to_int8(float x) {
  if (x != x) return 0;
  const float clamped = x < -128.0F ? -128.0F : x > 127.0F ? 127.0F : x;
  return static_cast<std::uint8_t>(static_cast<int>(std::rint(clamped)));
}

template <DType kType>
SMARTSPEC_DEVICE std::uint8_t encode_byte(float x) {
  if constexpr (kType == DType::kFloat8E4M3) return device::to_e4m3(x);
  if constexpr (kType == DType::kFloat8E5M2) return device::to_e5m2(x);
  return to_int8(x);
}

/// Largest access for a run of that many bytes.
constexpr int access_bytes(std::size_t run_bytes) noexcept {
  return run_bytes < 16 ? static_cast<int>(run_bytes) : 16;
}

/// Elements [index, index + kN) of `base`; kType is a 16- or 32-bit float. The run is aligned to
/// access_bytes of its length.
template <DType kType, int kN>
SMARTSPEC_DEVICE void load_numbers(const void* base, std::int64_t index, float (&x)[kN]) {
  constexpr int kSize = kType == DType::kFloat32 ? 4 : 2;
  constexpr int kBytes = access_bytes(std::size_t{kN} * kSize);
  constexpr int kPerAccess = kBytes / kSize;
  const auto* from = static_cast<const std::byte*>(base) + index * kSize;
  SMARTSPEC_UNROLL
  for (int first = 0; first < kN; first += kPerAccess) {
    const Bits<kBytes> bits = load_bits<kBytes>(from + first * kSize);
    SMARTSPEC_UNROLL
    for (int i = 0; i < kPerAccess; ++i) {
      if constexpr (kSize == 4) {
        x[first + i] = std::bit_cast<float>(bits.words[i]);
      } else {
        const auto half = static_cast<std::uint16_t>(
            kPerAccess == 1 ? bits.words[0] : bits.words[i / 2] >> (i % 2 * 16));
        x[first + i] = kType == DType::kBFloat16 ? device::from_bf16(half) : device::from_f16(half);
      }
    }
  }
}

/// The kBytes that hold x[first...] as kType.
template <DType kType, int kBytes, int kN>
SMARTSPEC_DEVICE Bits<kBytes> encode(const float (&x)[kN], int first) {
  Bits<kBytes> bits;
  SMARTSPEC_UNROLL
  for (int w = 0; w < Bits<kBytes>::kWords; ++w) {
    if constexpr (kType == DType::kFloat32) {
      bits.words[w] = std::bit_cast<std::uint32_t>(x[first + w]);
    } else if constexpr (kType == DType::kBFloat16 || kType == DType::kFloat16) {
      if constexpr (kBytes == 2) {
        bits.words[w] =
            kType == DType::kBFloat16 ? device::to_bf16(x[first]) : device::to_f16(x[first]);
      } else {
        const float low = x[first + 2 * w];
        const float high = x[first + 2 * w + 1];
        bits.words[w] =
            kType == DType::kBFloat16 ? device::pack_bf16(low, high) : device::pack_f16(low, high);
      }
    } else if constexpr (kBytes == 1) {
      bits.words[w] = encode_byte<kType>(x[first]);
    } else {
      bits.words[w] = 0;
      SMARTSPEC_UNROLL
      for (int i = 0; i < 4; ++i) {
        bits.words[w] |= std::uint32_t{encode_byte<kType>(x[first + 4 * w + i])} << (8 * i);
      }
    }
  }
  return bits;
}

/// Rounds to nearest even; 8-bit types saturate. Aligned as for load_numbers.
template <DType kType, int kN>
SMARTSPEC_DEVICE void store_numbers(void* base, std::int64_t index, const float (&x)[kN]) {
  constexpr int kSize = static_cast<int>(size_of(kType));
  constexpr int kBytes = access_bytes(std::size_t{kN} * kSize);
  auto* to = static_cast<std::byte*>(base) + index * kSize;
  SMARTSPEC_UNROLL
  for (int first = 0; first < kN; first += kBytes / kSize) {
    store_bits<kBytes>(to + first * kSize, encode<kType, kBytes>(x, first));
  }
}

}  // namespace smartspec::cuda::kernels
