// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Everything a kernel asks of the machine that C++ cannot say. Kernels contain no CUDA built-ins of
// their own, so that the tests can compile them with a second implementation of this header
// (tests/cuda/emulation/common/device.cuh), which runs a thread block on the CPU.
//
// Kernels are functors: launch() of launch.cuh runs `kernel()` once per thread. Blocks are
// one-dimensional, all shared memory is dynamic. Every function here that says "all lanes" or "all
// threads" must be reached by all of them together.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstddef>
#include <cstdint>

#define SMARTSPEC_DEVICE __device__ __forceinline__
#define SMARTSPEC_UNROLL _Pragma("unroll")
#define SMARTSPEC_KEEP_LOOP _Pragma("unroll 1")

namespace smartspec::device {

inline constexpr int kWarp = 32;

// Place in the grid.
SMARTSPEC_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SMARTSPEC_DEVICE int num_threads() { return static_cast<int>(blockDim.x); }
SMARTSPEC_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
SMARTSPEC_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
SMARTSPEC_DEVICE int num_blocks_x() { return static_cast<int>(gridDim.x); }
SMARTSPEC_DEVICE int num_blocks_y() { return static_cast<int>(gridDim.y); }
SMARTSPEC_DEVICE int lane_index() { return static_cast<int>(threadIdx.x % kWarp); }
SMARTSPEC_DEVICE int warp_index() { return static_cast<int>(threadIdx.x / kWarp); }

/// The block's dynamic shared memory, aligned to 128 bytes; not initialised.
SMARTSPEC_DEVICE std::byte* shared_memory() {
  extern __shared__ __align__(128) std::byte smartspec_shared[];
  return smartspec_shared;
}

// Barriers.
SMARTSPEC_DEVICE void sync_block() { __syncthreads(); }
SMARTSPEC_DEVICE void sync_warp() { __syncwarp(); }
SMARTSPEC_DEVICE bool sync_block_or(bool any) { return __syncthreads_or(any ? 1 : 0) != 0; }

// Warp collectives, all lanes. T: 4 or 8 bytes, trivially copyable.
template <class T>
SMARTSPEC_DEVICE T shuffle(T value, int source_lane) {
  return __shfl_sync(0xFFFFFFFFU, value, source_lane);
}
template <class T>
SMARTSPEC_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFU, value, mask);
}
/// From the lane `delta` below; lanes without one keep theirs.
template <class T>
SMARTSPEC_DEVICE T shuffle_up(T value, int delta) {
  return __shfl_up_sync(0xFFFFFFFFU, value, static_cast<unsigned>(delta));
}
SMARTSPEC_DEVICE std::uint32_t ballot(bool predicate) {
  return __ballot_sync(0xFFFFFFFFU, predicate);
}

// Copies from global to shared memory that run on their own. The bytes may be read after
// wait_copies() and a barrier. Both addresses are aligned to the size of the copy.
/// 16 bytes; zeros when `valid` is false (the address is then not read).
SMARTSPEC_DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
}
SMARTSPEC_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
/// Returns when at most kPending of the thread's committed groups are under way.
template <int kPending>
SMARTSPEC_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Matrix products, all lanes. Fragments as PTX defines them for m16n8k16 with 16-bit inputs: with
// g = lane / 4 and t = lane % 4, accumulators are rows {g, g, g+8, g+8}, columns {2t, 2t+1, 2t,
// 2t+1}; a[0..3] hold rows {g, g+8, g, g+8} at k = {2t.., 2t.., 2t+8.., 2t+8..}; b[0..1] hold
// column g at k = {2t.., 2t+8..}; the lower half of a register is the lower k.
/// Four 8 x 8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
SMARTSPEC_DEVICE void load_matrix_x4(std::uint32_t (&out)[4], const void* shared_row) {
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from)
               : "memory");
}
SMARTSPEC_DEVICE void load_matrix_x4_transposed(std::uint32_t (&out)[4], const void* shared_row) {
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from)
               : "memory");
}
/// acc += a * b, f32 accumulators.
SMARTSPEC_DEVICE void mma_bf16(float (&acc)[4], const std::uint32_t (&a)[4],
                               const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
SMARTSPEC_DEVICE void mma_f16(float (&acc)[4], const std::uint32_t (&a)[4],
                              const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Across blocks. A block publishes with fence_device() before the atomic, and fences after it
// before it reads what others published.
SMARTSPEC_DEVICE int atomic_add(int* address, int value) { return atomicAdd(address, value); }
SMARTSPEC_DEVICE float atomic_add(float* address, float value) { return atomicAdd(address, value); }
SMARTSPEC_DEVICE std::uint64_t atomic_add(std::uint64_t* address, std::uint64_t value) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(address),
                   static_cast<unsigned long long>(value));
}
SMARTSPEC_DEVICE std::uint64_t atomic_max(std::uint64_t* address, std::uint64_t value) {
  return atomicMax(reinterpret_cast<unsigned long long*>(address),
                   static_cast<unsigned long long>(value));
}
SMARTSPEC_DEVICE int atomic_max(int* address, int value) { return atomicMax(address, value); }
SMARTSPEC_DEVICE void fence_device() { __threadfence(); }

// Arithmetic. The approximate ones have errors of a few units in the last place.
SMARTSPEC_DEVICE float exp2_approx(float x) {
  float result;  // one instruction; results below 2^-126 become 0
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
SMARTSPEC_DEVICE float log2_approx(float x) { return __log2f(x); }
SMARTSPEC_DEVICE float tanh_approx(float x) { return tanhf(x); }
SMARTSPEC_DEVICE int count_bits(std::uint32_t x) { return __popc(x); }
/// Position of the lowest set bit; 32 for 0.
SMARTSPEC_DEVICE int lowest_bit(std::uint32_t x) {
  return x == 0 ? 32 : __ffs(static_cast<int>(x)) - 1;
}
/// Byte i of the result is byte (selector >> 4 i) & 7 of the eight bytes b:a (a is bytes 0..3).
SMARTSPEC_DEVICE std::uint32_t permute_bytes(std::uint32_t a, std::uint32_t b,
                                             std::uint32_t selector) {
  return __byte_perm(a, b, selector);
}

// 16-bit and 8-bit numbers as bits, round to nearest even; 8-bit floats saturate.
SMARTSPEC_DEVICE std::uint16_t to_bf16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
SMARTSPEC_DEVICE float from_bf16(std::uint16_t x) {
  return __bfloat162float(__ushort_as_bfloat16(x));
}
SMARTSPEC_DEVICE std::uint16_t to_f16(float x) { return __half_as_ushort(__float2half_rn(x)); }
SMARTSPEC_DEVICE float from_f16(std::uint16_t x) { return __half2float(__ushort_as_half(x)); }
/// Two values, the first in the lower half.
SMARTSPEC_DEVICE std::uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return static_cast<std::uint32_t>(__bfloat16_as_ushort(pair.x)) |
         static_cast<std::uint32_t>(__bfloat16_as_ushort(pair.y)) << 16;
}
SMARTSPEC_DEVICE std::uint32_t pack_f16(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return static_cast<std::uint32_t>(__half_as_ushort(__low2half(pair))) |
         static_cast<std::uint32_t>(__half_as_ushort(__high2half(pair))) << 16;
}
SMARTSPEC_DEVICE std::uint8_t to_e4m3(float x) {
  return static_cast<std::uint8_t>(__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3));
}
SMARTSPEC_DEVICE std::uint8_t to_e5m2(float x) {
  return static_cast<std::uint8_t>(__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2));
}
/// a - b of each half.
SMARTSPEC_DEVICE std::uint32_t subtract_f16x2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t result;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
/// Two 8-bit floats to two f16, exactly; the lower byte in the lower half.
SMARTSPEC_DEVICE std::uint32_t e4m3x2_to_f16x2(std::uint16_t x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
  // No instruction for it. One bit to the right, an e4m3 is the f16 of 2^-8 its value, subnormal
  // ones included; a carry out of the exponent finds the NaN.
  const std::uint32_t bytes = permute_bytes(x, 0, 0x1404);
  const std::uint32_t nan = ((bytes & 0x7F007F00U) + 0x01000100U) & 0x80008000U;
  const std::uint32_t bits =
      (bytes & 0x80008000U) | (bytes & 0x7F007F00U) >> 1 | (nan - (nan >> 15));
  std::uint32_t result;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(bits), "r"(0x5C005C00U));
  return result;
#else
  const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(x, __NV_E4M3);
  return static_cast<std::uint32_t>(pair.x) | static_cast<std::uint32_t>(pair.y) << 16;
#endif
}
SMARTSPEC_DEVICE std::uint32_t e5m2x2_to_f16x2(std::uint16_t x) {
  return static_cast<std::uint32_t>(x & 0xFFU) << 8 | static_cast<std::uint32_t>(x >> 8) << 24;
}

}  // namespace smartspec::device
