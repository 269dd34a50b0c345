// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Shapes of the tensor-core attention kernel: who of a block does what, and what lies where in
// shared memory.
#pragma once

#include <cstdint>

#include "common/device.cuh"
#include "kernels/tree_attention/tensor.h"

namespace smartspec::cuda::tensor {

inline constexpr int kThreads = 128;
inline constexpr int kWarps = kThreads / device::kWarp;
inline constexpr int kMinStages = 2;
inline constexpr int kMaxStages = 4;
inline constexpr int kMaxRowTile = 128;

/// A block has 4 warps: kRowWarps share the rows, kKeyWarps the keys of a tile. A warp holds
/// kRowBlocks times 16 rows; with two, a fragment of K or V that it has loaded (and converted) is
/// used twice, which shared memory's bandwidth needs from 64 rows on. Their registers do not fit
/// from head_dim 256 on.
template <int kDim, Kind kOf, int kRows>
struct Traits {
  static constexpr int kHeadDim = kDim;
  static constexpr Kind kKind = kOf;
  static constexpr int kRowTile = kRows;
  static constexpr bool kIsByte = kKind == Kind::kE4M3 || kKind == Kind::kBytes;
  static constexpr bool kIsBFloat16 = kKind == Kind::kBFloat16;

  static constexpr int kRowBlocks = kRowTile == 16 || kHeadDim > 128 ? 1 : 2;
  static constexpr int kRowWarps = kRowTile / (16 * kRowBlocks);
  static constexpr int kKeyWarps = kWarps / kRowWarps;
  static_assert(kRowWarps * kKeyWarps == kWarps);

  static constexpr int kWarpKeys = kTileKeys / kKeyWarps;
  /// Keys whose scores a warp holds at once: as many as the registers have room for beside Q and
  /// the outputs.
  static constexpr int kMaxStepKeys = kRowBlocks == 2 && kHeadDim > 80 ? 16 : 32;
  static constexpr int kStepKeys = kWarpKeys < kMaxStepKeys ? kWarpKeys : kMaxStepKeys;
  static constexpr int kDimBlocks = kHeadDim / 16;

  static constexpr int kElementBytes = kIsByte ? 1 : 2;
  static constexpr int kKeyBytes = kHeadDim * kElementBytes;
  static constexpr int kKeyChunks = kKeyBytes / 16;
  /// From key to key in shared memory: an odd number of 16-byte units, so that the 8 rows of a
  /// matrix lie in 8 groups of banks.
  static constexpr int kKeyStride = (kKeyChunks | 1) * 16;
  static constexpr int kTileBytes = kTileKeys * kKeyStride;
  // Q passes through the last stage, outputs of warps that share rows through the first ones.
  static constexpr int kQueryStride = (kHeadDim / 8 | 1) * 16;
  static constexpr int kQueryBytes = kRowTile * kQueryStride;
  /// K, then V.
  static constexpr int kStageBytes = 2 * kTileBytes > kQueryBytes ? 2 * kTileBytes : kQueryBytes;
  static_assert(kHeadDim % 16 == 0);
  static_assert(kKeyWarps == 1 ||
                kKeyWarps / 2 * kRowTile * kHeadDim * 4 <= kMinStages * kStageBytes);
  static constexpr int kTileStride = kHeadDim + 4;  // of outputs, in floats
  static_assert(kRowTile * kTileStride * 4 <= kMinStages * kStageBytes);
};

}  // namespace smartspec::cuda::tensor
