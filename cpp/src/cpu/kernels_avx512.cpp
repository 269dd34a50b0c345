// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Kernels for AVX-512 without bf16 dot products: bf16 is widened and multiplied in f32.
#include <cstdint>

#include "cpu/kernels.hpp"
#include "cpu/simd_macros.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif

namespace smartspec::cpu {
namespace {

#include "cpu/simd_avx512.inc"

#define SS_BF16_PAIRS 0
#include "cpu/kernels_body.inc"

constexpr KernelTable kTable = make_table("avx512");

}  // namespace
}  // namespace smartspec::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace smartspec::cpu {
const KernelTable* avx512_kernels() noexcept { return &kTable; }
}  // namespace smartspec::cpu

#else
namespace smartspec::cpu {
const KernelTable* avx512_kernels() noexcept { return nullptr; }
}  // namespace smartspec::cpu
#endif
