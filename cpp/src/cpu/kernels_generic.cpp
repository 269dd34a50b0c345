// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Kernels for any CPU the compiler targets by default: 16 lanes as four 4-lane compiler vectors,
// multiply then add (no fused operation). The primitives defined here are the list that every ISA
// file provides to kernels_body.inc.
#include <cstdint>

#include "cpu/kernels.hpp"
#include "cpu/simd_macros.hpp"

namespace smartspec::cpu {
namespace {

constexpr int kTileRows = 2;
constexpr int kPrefetchBytes = 4096;
constexpr int kValueRows = 2;
constexpr int kValueVectors = 1;
constexpr float kInfinity = __builtin_inff();
constexpr int wide_groups(int) { return 1; }

using Vec4 = float __attribute__((vector_size(16)));
using Int4 = std::int32_t __attribute__((vector_size(16)));
using Bits4 = std::uint32_t __attribute__((vector_size(16)));
struct F16 {
  Vec4 v[4];
};

#define SS_EACH SS_UNROLL for (int i = 0; i < 4; ++i)
SS_INLINE F16 set1(float x) {
  const Vec4 v = {x, x, x, x};
  return {{v, v, v, v}};
}
SS_INLINE F16 zero() { return set1(0.0F); }
SS_INLINE F16 load(const float* p) {
  F16 r;
  __builtin_memcpy(&r, p, sizeof(r));
  return r;
}
SS_INLINE void store(float* p, F16 a) { __builtin_memcpy(p, &a, sizeof(a)); }
SS_INLINE F16 load_n(const float* p, int n) {
  float lanes[kLanes] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
SS_INLINE void store_n(float* p, F16 a, int n) {
  float lanes[kLanes];
  store(lanes, a);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
SS_INLINE F16 add(F16 a, F16 b) {
  SS_EACH a.v[i] = a.v[i] + b.v[i];
  return a;
}
SS_INLINE F16 sub(F16 a, F16 b) {
  SS_EACH a.v[i] = a.v[i] - b.v[i];
  return a;
}
SS_INLINE F16 mul(F16 a, F16 b) {
  SS_EACH a.v[i] = a.v[i] * b.v[i];
  return a;
}
SS_INLINE F16 div(F16 a, F16 b) {
  SS_EACH a.v[i] = a.v[i] / b.v[i];
  return a;
}
SS_INLINE F16 fma(F16 a, F16 b, F16 c) { return add(mul(a, b), c); }
SS_INLINE void fma_broadcast(F16& acc, F16 w, const float* x) { acc = fma(w, set1(*x), acc); }
SS_INLINE F16 max(F16 a, F16 b) {
  SS_EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return a;
}
SS_INLINE float reduce_add(F16 a) {
  const Vec4 s = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
  return (s[0] + s[2]) + (s[1] + s[3]);
}
SS_INLINE float reduce_max(F16 a) {
  float lanes[kLanes];
  store(lanes, a);
  float best = lanes[0];
  for (int i = 1; i < kLanes; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}
SS_INLINE F16 even_bf16(const void* p) {
  F16 r;
  Bits4 b[4];
  __builtin_memcpy(b, p, sizeof(b));
  SS_EACH r.v[i] = reinterpret_cast<Vec4>(b[i] << 16);
  return r;
}
SS_INLINE F16 odd_bf16(const void* p) {
  F16 r;
  Bits4 b[4];
  __builtin_memcpy(b, p, sizeof(b));
  SS_EACH r.v[i] = reinterpret_cast<Vec4>(b[i] & 0xFFFF0000U);
  return r;
}
SS_INLINE F16 widen(const std::uint16_t* p) {
  std::uint32_t bits[kLanes];
  for (int i = 0; i < kLanes; ++i) bits[i] = static_cast<std::uint32_t>(p[i]) << 16;
  F16 r;
  __builtin_memcpy(&r, bits, sizeof(r));
  return r;
}
/// Round to bf16 (nearest even) and widen again; NaN becomes a quiet NaN.
SS_INLINE F16 round_bf16(F16 a) {
  SS_EACH {
    const Bits4 b = reinterpret_cast<Bits4>(a.v[i]);
    const Bits4 rounded = (b + 0x7FFFU + ((b >> 16) & 1U)) & 0xFFFF0000U;
    const Bits4 quiet = (b | 0x00400000U) & 0xFFFF0000U;
    const Bits4 is_nan = reinterpret_cast<Bits4>(a.v[i] != a.v[i]);
    a.v[i] = reinterpret_cast<Vec4>((is_nan & quiet) | (~is_nan & rounded));
  }
  return a;
}
/// 2^n for the integer n in the low bits of t = n + 1.5 * 2^23.
SS_INLINE F16 power_of_two(F16 t) {
  SS_EACH t.v[i] = reinterpret_cast<Vec4>((reinterpret_cast<Bits4>(t.v[i]) << 23) + 0x3F800000U);
  return t;
}
/// value where !(x < limit), else 0.
SS_INLINE F16 zero_below(F16 value, F16 x, float limit) {
  const Vec4 bound = {limit, limit, limit, limit};
  SS_EACH {
    const Bits4 below = reinterpret_cast<Bits4>(x.v[i] < bound);
    value.v[i] = reinterpret_cast<Vec4>(reinterpret_cast<Bits4>(value.v[i]) & ~below);
  }
  return value;
}
SS_INLINE F16 negative_abs(F16 a) {
  SS_EACH a.v[i] = reinterpret_cast<Vec4>(reinterpret_cast<Bits4>(a.v[i]) | 0x80000000U);
  return a;
}
/// a where x < 0, else b.
SS_INLINE F16 select_negative(F16 x, F16 a, F16 b) {
  SS_EACH a.v[i] = x.v[i] < 0.0F ? a.v[i] : b.v[i];
  return a;
}
/// a in lanes [begin, end), else `other`.
SS_INLINE F16 keep_lanes(F16 a, int begin, int end, float other) {
  float lanes[kLanes];
  store(lanes, a);
  for (int i = 0; i < kLanes; ++i) {
    if (i < begin || i >= end) lanes[i] = other;
  }
  return load(lanes);
}
#undef SS_EACH

#define SS_BF16_PAIRS 0
#include "cpu/kernels_body.inc"

constexpr KernelTable kTable = make_table("generic");

}  // namespace

const KernelTable* generic_kernels() noexcept { return &kTable; }

}  // namespace smartspec::cpu
