// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What one warp of the tensor-core attention kernel does with a tile of keys: scores, online
// softmax (FlashAttention-2, Dao 2023) and the sum of values, all in registers.
//
// Lane = 4 g + t. In each block of 16 rows a lane holds rows g ("half" 0) and g + 8 ("half" 1), and
// columns 2 t, 2 t + 1 of every 8.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/device.cuh"
#include "kernels/tree_attention/tensor_traits.cuh"

namespace smartspec::cuda::tensor {

inline constexpr float kMinusInfinity = -INFINITY;

template <class T>
struct WarpTile {
  std::uint32_t q[T::kRowBlocks][T::kDimBlocks][4];
  float out[T::kRowBlocks][2 * T::kDimBlocks][4];  // not divided by sum
  float max[T::kRowBlocks][2];                     // of log2(e) * score
  float sum[T::kRowBlocks][2];                     // of the lane's columns, until add_lanes()
};

template <class T>
using Scores = float[T::kRowBlocks][T::kStepKeys / 8][4];
template <class T>
using Weights = std::uint32_t[T::kRowBlocks][T::kStepKeys / 16][4];

/// From a product of q and k to log2(e) * score.
struct Scaling {
  float factor = 0.0F;
  float cap = 0.0F;  // 0: log2(e) * score = factor * product; else cap * tanh(factor * product)
};

template <class T>
SMARTSPEC_DEVICE void multiply(float (&acc)[4], const std::uint32_t (&a)[4],
                               const std::uint32_t (&b)[2]) {
  if constexpr (T::kIsBFloat16) {
    device::mma_bf16(acc, a, b);
  } else {
    device::mma_f16(acc, a, b);
  }
}

template <class T>
SMARTSPEC_DEVICE std::uint32_t pack(float low, float high) {
  if constexpr (T::kIsBFloat16) {
    return device::pack_bf16(low, high);
  } else {
    return device::pack_f16(low, high);
  }
}

template <class T>
SMARTSPEC_DEVICE float sum_of_pair(std::uint32_t pair) {
  const auto low = static_cast<std::uint16_t>(pair & 0xFFFFU);
  const auto high = static_cast<std::uint16_t>(pair >> 16);
  if constexpr (T::kIsBFloat16) {
    return device::from_bf16(low) + device::from_bf16(high);
  } else {
    return device::from_f16(low) + device::from_f16(high);
  }
}

/// Four elements of an 8-bit cache as f16: elements 0 and 2, and elements 1 and 3.
template <class T>
SMARTSPEC_DEVICE void widen(std::uint32_t& even, std::uint32_t& odd, std::uint32_t bytes,
                            [[maybe_unused]] const ByteFormat& format) {
  if constexpr (T::kKind == Kind::kE4M3) {
    const std::uint32_t parted = device::permute_bytes(bytes, bytes, 0x3120);
    even = device::e4m3x2_to_f16x2(static_cast<std::uint16_t>(parted & 0xFFFFU));
    odd = device::e4m3x2_to_f16x2(static_cast<std::uint16_t>(parted >> 16));
  } else {
    const std::uint32_t flipped = bytes ^ format.flip;
    even = device::subtract_f16x2(device::permute_bytes(flipped, format.fill, format.even),
                                  format.offset);
    odd = device::subtract_f16x2(device::permute_bytes(flipped, format.fill, format.odd),
                                 format.offset);
  }
}

/// Where a lane's row of load_matrix_x4 lies in 16 rows of 32 bytes. Matrices 0 and 1 are rows 0
/// and 8 onwards, 2 and 3 the 16 bytes to the right of them.
SMARTSPEC_DEVICE int matrix_offset(int stride) {
  const int lane = device::lane_index();
  return lane % 16 * stride + lane / 16 * 16;
}
/// Matrices 0 and 1 are rows 0 onwards and the 16 bytes to the right, 2 and 3 rows 8 onwards.
SMARTSPEC_DEVICE int matrix_offset_across(int stride) {
  const int lane = device::lane_index();
  return (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 16;
}

template <class T>
SMARTSPEC_DEVICE void clear(WarpTile<T>& tile) {
  SMARTSPEC_UNROLL
  for (int r = 0; r < T::kRowBlocks; ++r) {
    SMARTSPEC_UNROLL
    for (int d = 0; d < 2 * T::kDimBlocks; ++d) {
      SMARTSPEC_UNROLL
      for (int i = 0; i < 4; ++i) tile.out[r][d][i] = 0.0F;
    }
    SMARTSPEC_UNROLL
    for (int half = 0; half < 2; ++half) {
      tile.max[r][half] = kMinusInfinity;
      tile.sum[r][half] = 0.0F;
    }
  }
}

/// `rows`: Q of the warp's first row, in shared memory with kQueryStride.
template <class T>
SMARTSPEC_DEVICE void load_queries(WarpTile<T>& tile, const std::byte* rows) {
  const std::byte* mine = rows + matrix_offset(T::kQueryStride);
  SMARTSPEC_UNROLL
  for (int r = 0; r < T::kRowBlocks; ++r) {
    SMARTSPEC_UNROLL
    for (int d = 0; d < T::kDimBlocks; ++d) {
      device::load_matrix_x4(tile.q[r][d], mine + r * 16 * T::kQueryStride + d * 32);
    }
  }
}

/// A pair of 16-byte columns `d` and `d + 1` of 8-bit keys; the second is the first again where
/// there is none, so that nothing beyond a row is read.
template <class T>
SMARTSPEC_DEVICE const std::byte* byte_columns(const std::byte* lane_keys, int d) {
  const bool alone = d + 1 == T::kDimBlocks;
  return lane_keys + d * 16 - (alone ? device::lane_index() / 16 * 16 : 0);
}

/// scores = Q K^T of 16 keys: columns [8 n, 8 n + 16) of the step.
template <class T>
SMARTSPEC_DEVICE void multiply_keys(Scores<T>& scores, int n, const WarpTile<T>& tile,
                                    const std::byte* lane_keys, const ByteFormat& format) {
  std::uint32_t raw[4];
  if constexpr (T::kIsByte) {
    SMARTSPEC_UNROLL
    for (int d = 0; d < T::kDimBlocks; d += 2) {
      device::load_matrix_x4(raw, byte_columns<T>(lane_keys, d));
      SMARTSPEC_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (d + i / 2 == T::kDimBlocks) break;
        std::uint32_t b[2];
        widen<T>(b[0], b[1], raw[i], format);
        SMARTSPEC_UNROLL
        for (int r = 0; r < T::kRowBlocks; ++r) {
          multiply<T>(scores[r][n + i % 2], tile.q[r][d + i / 2], b);
        }
      }
    }
  } else {
    SMARTSPEC_UNROLL
    for (int d = 0; d < T::kDimBlocks; ++d) {
      device::load_matrix_x4(raw, lane_keys + d * 32);
      SMARTSPEC_UNROLL
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t b[2] = {raw[2 * i], raw[2 * i + 1]};
        SMARTSPEC_UNROLL
        for (int r = 0; r < T::kRowBlocks; ++r) {
          multiply<T>(scores[r][n + i], tile.q[r][d], b);
        }
      }
    }
  }
}

/// tile.out += P V of 16 keys. Of 8-bit values, fragment 2 d holds the even dims of 16 and 2 d + 1
/// the odd ones.
template <class T>
SMARTSPEC_DEVICE void multiply_values(WarpTile<T>& tile, const Weights<T>& weights, int n,
                                      const std::byte* lane_values, const ByteFormat& format) {
  std::uint32_t raw[4];
  if constexpr (T::kIsByte) {
    SMARTSPEC_UNROLL
    for (int d = 0; d < T::kDimBlocks; d += 2) {
      device::load_matrix_x4_transposed(raw, byte_columns<T>(lane_values, d));
      SMARTSPEC_UNROLL
      for (int i = 0; i < 2; ++i) {
        if (d + i == T::kDimBlocks) break;
        std::uint32_t even[2];
        std::uint32_t odd[2];
        widen<T>(even[0], odd[0], raw[2 * i], format);
        widen<T>(even[1], odd[1], raw[2 * i + 1], format);
        SMARTSPEC_UNROLL
        for (int r = 0; r < T::kRowBlocks; ++r) {
          multiply<T>(tile.out[r][2 * (d + i)], weights[r][n], even);
          multiply<T>(tile.out[r][2 * (d + i) + 1], weights[r][n], odd);
        }
      }
    }
  } else {
    SMARTSPEC_UNROLL
    for (int d = 0; d < T::kDimBlocks; ++d) {
      device::load_matrix_x4_transposed(raw, lane_values + d * 32);
      SMARTSPEC_UNROLL
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t b[2] = {raw[2 * i], raw[2 * i + 1]};
        SMARTSPEC_UNROLL
        for (int r = 0; r < T::kRowBlocks; ++r) {
          multiply<T>(tile.out[r][2 * d + i], weights[r][n], b);
        }
      }
    }
  }
}

template <class T>
SMARTSPEC_DEVICE void scale_scores(Scores<T>& scores, const Scaling& scaling) {
  SMARTSPEC_UNROLL
  for (int r = 0; r < T::kRowBlocks; ++r) {
    SMARTSPEC_UNROLL
    for (int n = 0; n < T::kStepKeys / 8; ++n) {
      SMARTSPEC_UNROLL
      for (int i = 0; i < 4; ++i) scores[r][n][i] *= scaling.factor;
    }
  }
  if (scaling.cap == 0.0F) return;
  SMARTSPEC_UNROLL
  for (int r = 0; r < T::kRowBlocks; ++r) {
    SMARTSPEC_UNROLL
    for (int n = 0; n < T::kStepKeys / 8; ++n) {
      SMARTSPEC_UNROLL
      for (int i = 0; i < 4; ++i) {
        scores[r][n][i] = scaling.cap * device::tanh_approx(scores[r][n][i]);
      }
    }
  }
}

/// `masks`: of the warp's rows, bit i: the row sees key i of the tile. `first_key`: of the step,
/// within the tile.
template <class T>
SMARTSPEC_DEVICE void mask_scores(Scores<T>& scores, const std::uint64_t* masks, int first_key) {
  const int column = first_key + device::lane_index() % 4 * 2;
  SMARTSPEC_UNROLL
  for (int r = 0; r < T::kRowBlocks; ++r) {
    SMARTSPEC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const std::uint64_t all = masks[16 * r + 8 * half + device::lane_index() / 4];
      const auto keys = static_cast<std::uint32_t>(all >> column);
      SMARTSPEC_UNROLL
      for (int n = 0; n < T::kStepKeys / 8; ++n) {
        if ((keys >> (8 * n) & 1U) == 0) scores[r][n][2 * half] = kMinusInfinity;
        if ((keys >> (8 * n + 1) & 1U) == 0) scores[r][n][2 * half + 1] = kMinusInfinity;
      }
    }
  }
}

/// Multiplies what a lane's rows have summed up so far.
template <class T>
SMARTSPEC_DEVICE void fade_rows(WarpTile<T>& tile, const float (&factor)[T::kRowBlocks][2]) {
  SMARTSPEC_UNROLL
  for (int r = 0; r < T::kRowBlocks; ++r) {
    SMARTSPEC_UNROLL
    for (int d = 0; d < 2 * T::kDimBlocks; ++d) {
      SMARTSPEC_UNROLL
      for (int i = 0; i < 4; ++i) tile.out[r][d][i] *= factor[r][i / 2];
    }
    SMARTSPEC_UNROLL
    for (int half = 0; half < 2; ++half) tile.sum[r][half] *= factor[r][half];
  }
}

/// From scores to weights 2^(score - max of the row so far), and what was summed with a smaller
/// maximum is brought down. The sum is that of the rounded weights, so that an average of equal
/// values is that value. Rows that see nothing: max -inf, all weights 0.
template <class T>
SMARTSPEC_DEVICE void soften(WarpTile<T>& tile, Scores<T>& scores, Weights<T>& weights) {
  float factor[T::kRowBlocks][2];
  bool grew = false;
  SMARTSPEC_UNROLL
  for (int r = 0; r < T::kRowBlocks; ++r) {
    SMARTSPEC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float before = tile.max[r][half];
      float max = before;
      SMARTSPEC_UNROLL
      for (int n = 0; n < T::kStepKeys / 8; ++n) {
        max = std::fmax(max, std::fmax(scores[r][n][2 * half], scores[r][n][2 * half + 1]));
      }
      max = std::fmax(max, device::shuffle_xor(max, 1));
      max = std::fmax(max, device::shuffle_xor(max, 2));
      const float base = max == kMinusInfinity ? 0.0F : max;
      factor[r][half] = device::exp2_approx(before - base);
      grew = grew || max != before;
      tile.max[r][half] = max;
      SMARTSPEC_UNROLL
      for (int n = 0; n < T::kStepKeys / 8; ++n) {
        const float low = device::exp2_approx(scores[r][n][2 * half] - base);
        const float high = device::exp2_approx(scores[r][n][2 * half + 1] - base);
        weights[r][n / 2][n % 2 * 2 + half] = pack<T>(low, high);
      }
    }
  }
  // Seldom after the first tiles. Without it the factors are 1.
  if (device::ballot(grew) != 0) fade_rows<T>(tile, factor);
  SMARTSPEC_UNROLL
  for (int r = 0; r < T::kRowBlocks; ++r) {
    SMARTSPEC_UNROLL
    for (int n = 0; n < T::kStepKeys / 8; ++n) {
      SMARTSPEC_UNROLL
      for (int half = 0; half < 2; ++half) {
        tile.sum[r][half] += sum_of_pair<T>(weights[r][n / 2][n % 2 * 2 + half]);
      }
    }
  }
}

/// All of the warp's keys of a tile, from first_key on. `masks` null: every row sees every key.
template <class T>
SMARTSPEC_DEVICE void add_tile(WarpTile<T>& tile, const std::byte* stage, int first_key,
                               const Scaling& scaling, const std::uint64_t* masks,
                               const ByteFormat& format) {
  const std::byte* lane_keys =
      stage + (T::kIsByte ? matrix_offset(T::kKeyStride) : matrix_offset_across(T::kKeyStride));
  const std::byte* lane_values = stage + T::kTileBytes + matrix_offset(T::kKeyStride);
  SMARTSPEC_KEEP_LOOP
  for (int key = first_key; key < first_key + T::kWarpKeys; key += T::kStepKeys) {
    Scores<T> scores{};
    Weights<T> weights;
    SMARTSPEC_UNROLL
    for (int n = 0; n < T::kStepKeys / 16; ++n) {
      multiply_keys<T>(scores, 2 * n, tile, lane_keys + (key + 16 * n) * T::kKeyStride, format);
    }
    scale_scores<T>(scores, scaling);
    if (masks != nullptr) mask_scores<T>(scores, masks, key);
    soften<T>(tile, scores, weights);
    SMARTSPEC_UNROLL
    for (int n = 0; n < T::kStepKeys / 16; ++n) {
      multiply_values<T>(tile, weights, n, lane_values + (key + 16 * n) * T::kKeyStride, format);
    }
  }
}

/// The four lanes of a row add their sums.
template <class T>
SMARTSPEC_DEVICE void add_lanes(WarpTile<T>& tile) {
  SMARTSPEC_UNROLL
  for (int r = 0; r < T::kRowBlocks; ++r) {
    SMARTSPEC_UNROLL
    for (int half = 0; half < 2; ++half) {
      tile.sum[r][half] += device::shuffle_xor(tile.sum[r][half], 1);
      tile.sum[r][half] += device::shuffle_xor(tile.sum[r][half], 2);
    }
  }
}

/// visit(row, dim, a, b) for every pair of neighbouring outputs that a lane holds of one half of a
/// block of rows: a is dim, b is dim + 1. In which fragments they lie, see multiply_values().
template <class T, class Visit>
SMARTSPEC_DEVICE void for_each_pair(const float (&out)[2 * T::kDimBlocks][4], int half,
                                    Visit visit) {
  const int t = device::lane_index() % 4;
  SMARTSPEC_UNROLL
  for (int d = 0; d < T::kDimBlocks; ++d) {
    SMARTSPEC_UNROLL
    for (int i = 0; i < 2; ++i) {
      if constexpr (T::kIsByte) {
        visit(16 * d + 4 * t + 2 * i, out[2 * d][2 * half + i], out[2 * d + 1][2 * half + i]);
      } else {
        visit(16 * d + 8 * i + 2 * t, out[2 * d + i][2 * half], out[2 * d + i][2 * half + 1]);
      }
    }
  }
}

/// Factors that bring two partial sums of a row to their common maximum.
struct Fold {
  float max = 0.0F;
  float left = 0.0F;
  float right = 0.0F;
};
SMARTSPEC_DEVICE Fold make_fold(float left_max, float right_max) {
  const float max = std::fmax(left_max, right_max);
  const float base = max == kMinusInfinity ? 0.0F : max;
  return {max, device::exp2_approx(left_max - base), device::exp2_approx(right_max - base)};
}
/// Spelled out, as two ways to fold pieces must round alike: a compiler would contract the products
/// in its own way in each place.
SMARTSPEC_DEVICE float apply(const Fold& fold, float left, float right) {
  return std::fma(left, fold.left, right * fold.right);
}

}  // namespace smartspec::cuda::tensor
