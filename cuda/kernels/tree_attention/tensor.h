// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Between the dispatcher of tensor-core attention (host) and its instances: tensor_inst.cu.in, one
// file per head_dim and kind of cache. Readable by both compilers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tree_attention/tree_attention.h"

namespace smartspec::cuda::tensor {

/// How a cache element becomes an operand of the tensor cores. 8-bit elements become f16, exactly;
/// kBytes are the two formats that only differ from it by a shift or an offset.
enum class Kind : int { kBFloat16, kFloat16, kE4M3, kBytes };

/// kBytes in numbers: an f16 is the byte ^ flip beside a byte of fill, less offset.
struct ByteFormat {
  std::uint32_t flip = 0;
  std::uint32_t fill = 0;
  std::uint32_t offset = 0;
  std::uint32_t even = 0;  // selectors for permute_bytes(elements, fill) of elements 0 and 2
  std::uint32_t odd = 0;   // of 1 and 3
};
/// The upper byte of an f16 is an e5m2.
inline constexpr ByteFormat kE5M2Format{0, 0, 0, 0x2404, 0x3414};
/// With the lower byte x + 128, 0x6400 is 1152 + x.
inline constexpr ByteFormat kInt8Format{0x80808080U, 0x64646464U, 0x64806480U, 0x4240, 0x4341};

struct Call {
  const TreeAttention& attention;
  const Forest& forest;
  const AttentionPlan& plan;
  const ForestState& state;
  Stream stream;
};

/// Copies that are under way at once, per block, and blocks per multiprocessor.
struct Occupancy {
  int num_stages = 0;  // 0: not even two fit
  int num_blocks = 0;
};
[[nodiscard]] Occupancy fit_stages(std::size_t max_shared_bytes, std::size_t fixed_bytes,
                                   std::size_t stage_bytes) noexcept;

/// False when the device has too little shared memory. plan.tile_rows: 16, 64 or, with head_dim up
/// to 128 and 16-bit caches, 128.
template <int kHeadDim, Kind kKind>
bool launch_instance(const Call& call);

}  // namespace smartspec::cuda::tensor
