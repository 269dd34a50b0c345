// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the kernel files need from the compiler: forced inlining, full unrolling of short loops (the
// accumulators must be registers at every optimisation level) and per-region instruction sets.
#pragma once

#define SS_INLINE inline __attribute__((always_inline))
#define SS_NOINLINE __attribute__((noinline))

#if defined(__clang__)
#define SS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SS_UNROLL _Pragma("GCC unroll 16")
#endif
