// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Kernels for AVX-512 with bf16 dot products (vdpbf16ps): two k per step, f32 accumulators. The
// instruction takes subnormal inputs as zero.
#include <cstdint>

#include "cpu/kernels.hpp"
#include "cpu/simd_macros.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                     \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#endif

namespace smartspec::cpu {
namespace {

#include "cpu/simd_avx512.inc"

struct KindBf16 {
  using X = std::uint32_t;  // two bf16: even k in the low half
  static constexpr int kXPerStep = 1;
  template <int kG, int kM>
  SS_INLINE static void step(F16 (&acc)[kG][kM], const char* const (&w)[kG], std::int64_t at,
                             const X* x) {
    __m512 line[kG];
    SS_UNROLL
    for (int g = 0; g < kG; ++g) line[g] = _mm512_loadu_ps(w[g] + at);
    SS_UNROLL
    for (int m = 0; m < kM; ++m) {
      SS_UNROLL
      for (int g = 0; g < kG; ++g) {
        asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc[g][m]) : "v"(line[g]), "m"(x[m]));
      }
    }
  }
};

/// 16 pairs from 32 consecutive floats, of which `n` exist.
SS_INLINE void round_pairs(const float* in, std::int64_t n, std::uint32_t* out) {
  const __m512 a = n >= 16 ? load(in) : load_n(in, static_cast<int>(n));
  __m512 b = zero();
  if (n >= 32) {
    b = load(in + 16);
  } else if (n > 16) {
    b = load_n(in + 16, static_cast<int>(n - 16));
  }
  // The rounded value is the upper 16-bit lane of each 32-bit element.
  const __m512i upper =
      _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                       25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  const __m512i low = _mm512_castps_si512(round_bf16(a));
  const __m512i high = _mm512_castps_si512(round_bf16(b));
  _mm512_storeu_si512(out, _mm512_permutex2var_epi16(low, upper, high));
}

#define SS_BF16_PAIRS 1
#include "cpu/kernels_body.inc"

constexpr KernelTable kTable = make_table("avx512_bf16");

}  // namespace
}  // namespace smartspec::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace smartspec::cpu {
const KernelTable* avx512_bf16_kernels() noexcept { return &kTable; }
}  // namespace smartspec::cpu

#else
namespace smartspec::cpu {
const KernelTable* avx512_bf16_kernels() noexcept { return nullptr; }
}  // namespace smartspec::cpu
#endif
