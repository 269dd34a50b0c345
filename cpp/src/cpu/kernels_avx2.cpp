// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Kernels for AVX2 with FMA: 16 lanes as two 8-lane vectors; bf16 is widened.
#include <cstdint>

#include "cpu/kernels.hpp"
#include "cpu/simd_macros.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace smartspec::cpu {
namespace {

constexpr int kTileRows = 5;
constexpr int kPrefetchBytes = 4096;
constexpr int kValueRows = 3;
constexpr int kValueVectors = 2;
constexpr float kInfinity = __builtin_inff();
constexpr int wide_groups(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

struct F16 {
  __m256 lo;
  __m256 hi;
};

SS_INLINE F16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
SS_INLINE F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
SS_INLINE F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
SS_INLINE void store(float* p, F16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
/// All ones in 32-bit lanes below n.
SS_INLINE __m256i first_lanes(int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}
SS_INLINE F16 load_n(const float* p, int n) {
  if (n >= kLanes) return load(p);
  return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}
SS_INLINE void store_n(float* p, F16 a, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), a.lo);
  _mm256_maskstore_ps(p + 8, first_lanes(n - 8), a.hi);
}
SS_INLINE F16 add(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
SS_INLINE F16 sub(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
SS_INLINE F16 mul(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
SS_INLINE F16 div(F16 a, F16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
SS_INLINE F16 fma(F16 a, F16 b, F16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
SS_INLINE void fma_broadcast(F16& acc, F16 w, const float* x) {
  const __m256 b = _mm256_broadcast_ss(x);
  acc.lo = _mm256_fmadd_ps(w.lo, b, acc.lo);
  acc.hi = _mm256_fmadd_ps(w.hi, b, acc.hi);
}
SS_INLINE F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
SS_INLINE float reduce_add(F16 a) {
  const __m256 s = _mm256_add_ps(a.lo, a.hi);
  const __m128 h = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  const __m128 q = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
SS_INLINE float reduce_max(F16 a) {
  const __m256 s = _mm256_max_ps(a.lo, a.hi);
  const __m128 h = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  const __m128 q = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
SS_INLINE __m256i bits_at(const void* p, int half) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p) + half);
}
SS_INLINE __m256 high_half(__m256i b) {
  return _mm256_castsi256_ps(_mm256_and_si256(b, _mm256_set1_epi32(static_cast<int>(0xFFFF0000U))));
}
SS_INLINE F16 even_bf16(const void* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(bits_at(p, 0), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(bits_at(p, 1), 16))};
}
SS_INLINE F16 odd_bf16(const void* p) {
  return {high_half(bits_at(p, 0)), high_half(bits_at(p, 1))};
}
SS_INLINE __m256 widen8(const std::uint16_t* p) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
SS_INLINE F16 widen(const std::uint16_t* p) { return {widen8(p), widen8(p + 8)}; }
SS_INLINE __m256 round8(__m256 a) {
  const __m256i b = _mm256_castps_si256(a);
  const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7FFF)), lsb);
  const __m256i quiet = _mm256_or_si256(b, _mm256_set1_epi32(0x00400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return high_half(_mm256_blendv_epi8(sum, quiet, is_nan));
}
SS_INLINE F16 round_bf16(F16 a) { return {round8(a.lo), round8(a.hi)}; }
SS_INLINE __m256 power8(__m256 t) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(t), 23),
                                              _mm256_set1_epi32(0x3F800000)));
}
SS_INLINE F16 power_of_two(F16 t) { return {power8(t.lo), power8(t.hi)}; }
SS_INLINE F16 zero_below(F16 value, F16 x, float limit) {
  const __m256 bound = _mm256_set1_ps(limit);
  return {_mm256_and_ps(value.lo, _mm256_cmp_ps(x.lo, bound, _CMP_NLT_UQ)),
          _mm256_and_ps(value.hi, _mm256_cmp_ps(x.hi, bound, _CMP_NLT_UQ))};
}
SS_INLINE F16 negative_abs(F16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0F);
  return {_mm256_or_ps(a.lo, sign), _mm256_or_ps(a.hi, sign)};
}
SS_INLINE F16 select_negative(F16 x, F16 a, F16 b) {
  const __m256 none = _mm256_setzero_ps();
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, none, _CMP_LT_OQ)),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, none, _CMP_LT_OQ))};
}
SS_INLINE __m256 keep8(__m256 a, int begin, int end, float other) {
  const __m256i inside = _mm256_andnot_si256(first_lanes(begin), first_lanes(end));
  return _mm256_blendv_ps(_mm256_set1_ps(other), a, _mm256_castsi256_ps(inside));
}
SS_INLINE F16 keep_lanes(F16 a, int begin, int end, float other) {
  return {keep8(a.lo, begin, end, other), keep8(a.hi, begin - 8, end - 8, other)};
}

#define SS_BF16_PAIRS 0
#include "cpu/kernels_body.inc"

constexpr KernelTable kTable = make_table("avx2");

}  // namespace
}  // namespace smartspec::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace smartspec::cpu {
const KernelTable* avx2_kernels() noexcept { return &kTable; }
}  // namespace smartspec::cpu

#else
namespace smartspec::cpu {
const KernelTable* avx2_kernels() noexcept { return nullptr; }
}  // namespace smartspec::cpu
#endif
