// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The table of CPU kernels of one instruction set. Each kernel is a pure function of its arguments,
// and every output element is reduced in an order that its own shape fixes, so callers may cut the
// work among threads and row tiles as they like without changing a bit.
//
// Panels: 16 outputs side by side, one 64-byte line per step. A step is one k of f32, or two
// consecutive k of bf16: [step][16 outputs][pair]. Weights and cached keys share this layout, so
// one dot kernel serves linear layers and attention scores.
#pragma once

#include <cstdint>

namespace smartspec::cpu {

inline constexpr int kLanes = 16;      // outputs of one panel; tokens of one key group
inline constexpr int kLineBytes = 64;  // bytes of one panel step
inline constexpr int kChunk = 128;  // keys whose softmax is one partial; cut at absolute positions
inline constexpr int kMaxTileRows = 12;  // rows of one packed activation tile, upper bound

/// Steps of a panel over k inputs.
constexpr std::int64_t panel_steps(std::int64_t k, bool bf16) noexcept {
  return bf16 ? (k + 1) / 2 : k;
}

/// Rows of the next tile when `rows` are left: as equal as possible, never above `max_rows`.
constexpr int next_tile_rows(int rows, int max_rows) noexcept {
  if (rows <= max_rows) return rows;
  return rows >= 2 * max_rows ? max_rows : (rows + 1) / 2;
}

struct LinearJob {
  const char* weights = nullptr;  // [groups][steps] lines
  std::int64_t group_bytes = 0;
  std::int64_t steps = 0;
  const char* packed = nullptr;       // activation tiles, by pack_tile, one behind the other
  std::int64_t packed_row_bytes = 0;  // of one row within a tile
  const float* bias = nullptr;
  float* out = nullptr;
  std::int64_t out_stride = 0;
  int num_rows = 0;
  int out_features = 0;
  bool bf16 = false;
  bool accumulate = false;
};

struct KeyScoresJob {
  const char* const* groups = nullptr;  // [num_groups] key panels of 16 tokens each
  int num_groups = 0;
  int num_rows = 0;              // of the tile
  const char* packed = nullptr;  // the query tile
  std::int64_t steps = 0;
  float* out = nullptr;  // [num_rows, num_groups * 16], row stride out_stride
  std::int64_t out_stride = 0;
  bool bf16 = false;
};

/// acc[r][d] = sum over j ascending of weights[r][j] * values[j][d], added to what acc holds.
struct ValueSumJob {
  const void* const* values = nullptr;  // [num_keys] rows of padded head_dim elements
  int num_keys = 0;
  const float* weights = nullptr;  // [num_rows, num_keys], row stride weights_stride
  std::int64_t weights_stride = 0;
  float* acc = nullptr;  // [num_rows, dim], row stride acc_stride
  std::int64_t acc_stride = 0;
  int num_rows = 0;
  int dim = 0;  // a multiple of 16
  bool bf16 = false;
};

struct SoftmaxPart {
  float max = 0.0F;
  float sum = 0.0F;
};

struct RotateJob {
  const float* in = nullptr;   // [head_dim]
  float* out = nullptr;        // [head_dim]; may alias in
  const float* cos = nullptr;  // [head_dim / 2]
  const float* sin = nullptr;
  int head_dim = 0;
};

struct KernelTable {
  const char* name = nullptr;
  int max_tile_rows = 1;
  int group_multiple = 1;   // panels worth handing to a thread together
  bool bf16_pairs = false;  // bf16 activations are packed as pairs; else widened to f32

  /// Packs up to max_tile_rows rows of k floats as [step][row]; bf16 rounds to nearest even.
  void (*pack_tile)(const float* const* rows, int num_rows, std::int64_t k, bool bf16, char* out);
  /// Panels [first_group, last_group) of a linear layer for all rows.
  void (*linear)(const LinearJob& job, int first_group, int last_group);
  void (*key_scores)(const KeyScoresJob& job);
  /// scores[i] = exp(scores[i] * scale - max) for i in [begin, end); zeros in the rest of the
  /// 16-lane groups touched. The sum runs by lane (i mod 16), then over a fixed tree.
  SoftmaxPart (*softmax_chunk)(float* scores, int begin, int end, float scale);
  void (*value_sum)(const ValueSumJob& job);
  /// Folds a chunk's partial result into the running one, earlier chunks first.
  void (*merge)(SoftmaxPart& total, float* total_acc, const SoftmaxPart& part, const float* acc,
                int dim);
  /// out[d] = acc[d] / sum.
  void (*normalize)(const float* acc, float sum, float* out, int dim);
  void (*rms_norm)(const float* in, const float* weight, float* out, std::int64_t dim, float eps);
  void (*rotate)(const RotateJob& job);
  void (*swiglu)(const float* gate, const float* up, float* out, std::int64_t n);
  void (*widen_bf16)(const std::uint16_t* in, float* out, std::int64_t n);
  void (*narrow_bf16)(const float* in, std::uint16_t* out, std::int64_t n);
  /// exp of each element for inputs <= 0: the function that softmax and SiLU use.
  void (*exp_nonpositive)(const float* in, float* out, std::int64_t n);
};

/// Bytes of one row of a packed activation tile.
constexpr std::int64_t packed_row_bytes(std::int64_t k, bool bf16, bool bf16_pairs) noexcept {
  const std::int64_t steps = panel_steps(k, bf16);
  return bf16 && !bf16_pairs ? steps * 8 : steps * 4;
}

/// Null where the compiler cannot build them; whether the CPU has the instructions is isa.hpp's.
const KernelTable* generic_kernels() noexcept;
const KernelTable* avx2_kernels() noexcept;
const KernelTable* avx512_kernels() noexcept;
const KernelTable* avx512_bf16_kernels() noexcept;

}  // namespace smartspec::cpu
