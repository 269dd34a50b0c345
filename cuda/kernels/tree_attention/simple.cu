// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Tree attention without tensor cores: any dtype and head_dim, and plain enough to be read as the
// definition. One warp per row and query head. It takes keys 32 at a time at fixed indices: each
// lane scores one key, then all lanes together add up the values. A row's sums depend on its own
// sequence only.
#include <cmath>

#include "common/launch.cuh"
#include "kernels/tree_attention/plan.cuh"

namespace smartspec::cuda {
namespace {

constexpr int kMaxHeadDim = 256;
constexpr int kDimsPerLane = kMaxHeadDim / device::kWarp;
constexpr float kLog2E = 1.4426950408889634F;
constexpr float kLn2 = 0.6931471805599453F;

template <DType kType>
SMARTSPEC_DEVICE float load(const void* data, std::int64_t index) {
  if constexpr (kType == DType::kFloat32) {
    return static_cast<const float*>(data)[index];
  } else if constexpr (kType == DType::kBFloat16) {
    return device::from_bf16(static_cast<const std::uint16_t*>(data)[index]);
  } else if constexpr (kType == DType::kFloat16) {
    return device::from_f16(static_cast<const std::uint16_t*>(data)[index]);
  } else if constexpr (kType == DType::kFloat8E4M3) {
    const std::uint16_t bits = static_cast<const std::uint8_t*>(data)[index];
    return device::from_f16(static_cast<std::uint16_t>(device::e4m3x2_to_f16x2(bits) & 0xFFFFU));
  } else if constexpr (kType == DType::kFloat8E5M2) {
    const std::uint16_t bits = static_cast<const std::uint8_t*>(data)[index];
    return device::from_f16(static_cast<std::uint16_t>(device::e5m2x2_to_f16x2(bits) & 0xFFFFU));
  } else {
    static_assert(kType == DType::kInt8);
    return static_cast<float>(static_cast<const std::int8_t*>(data)[index]);
  }
}

/// q and out have few types and are touched once: no instances of their own.
SMARTSPEC_DEVICE float load_any(DType type, const void* data, std::int64_t index) {
  if (type == DType::kFloat32) return load<DType::kFloat32>(data, index);
  if (type == DType::kBFloat16) return load<DType::kBFloat16>(data, index);
  return load<DType::kFloat16>(data, index);
}
SMARTSPEC_DEVICE void store_any(DType type, void* data, std::int64_t index, float value) {
  if (type == DType::kFloat32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<std::uint16_t*>(data)[index] =
        type == DType::kBFloat16 ? device::to_bf16(value) : device::to_f16(value);
  }
}

template <DType kKvType>
struct SimpleAttention {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * device::kWarp;
  static constexpr int kMinBlocks = 1;
  static constexpr const char* kName = "simple_tree_attention";

  /// One warp's part of shared memory.
  struct Scratch {
    float q[kMaxHeadDim];
    float weight[device::kWarp];         // of the present keys; 0: not visible
    std::int64_t offset[device::kWarp];  // of the present keys in K and V
  };
  static constexpr std::size_t kSharedBytes = kWarps * sizeof(Scratch);

  /// Online softmax over the keys so far, in units of log2 (FlashAttention-2, Dao 2023).
  struct Running {
    float max = -INFINITY;
    float sum = 0.0F;
    float out[kDimsPerLane] = {};  // dims lane, lane + 32, ...
  };

  TreeAttention attention;
  Forest forest;
  ForestState state;
  std::int32_t num_heads = 0;
  std::int32_t group = 0;

  SMARTSPEC_DEVICE void operator()() const {
    const std::int64_t index = std::int64_t{device::block_x()} * kWarps + device::warp_index();
    const auto row = static_cast<std::int32_t>(index / num_heads);
    const auto head = static_cast<std::int32_t>(index % num_heads);
    if (forest.num_sequences == 0 || row >= forest.row_offsets[forest.num_sequences]) return;
    Scratch& scratch = reinterpret_cast<Scratch*>(device::shared_memory())[device::warp_index()];
    attend(scratch, row, head);
  }

  SMARTSPEC_DEVICE std::int32_t sequence_of(std::int32_t row) const {
    std::int32_t low = 0;
    std::int32_t high = forest.num_sequences;
    while (high - low > 1) {
      const std::int32_t middle = low + (high - low) / 2;
      if (forest.row_offsets[middle] <= row) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }

  SMARTSPEC_DEVICE void attend(Scratch& scratch, std::int32_t row, std::int32_t head) const {
    const std::int32_t sequence = sequence_of(row);
    const SequenceShape shape = load_sequence(forest, sequence);
    const std::int32_t inner = row - shape.first_row;
    const RowView view = load_row(shape, state, inner, attention.sliding_window);
    const std::int64_t q_begin = row * attention.q_stride + head * std::int64_t{dim()};
    for (int d = device::lane_index(); d < dim(); d += device::kWarp) {
      scratch.q[d] = load_any(attention.dtype, attention.q, q_begin + d);
    }
    const BlockId* pages = forest.block_table + sequence * forest.block_table_stride;
    const std::int32_t end = own_key(shape, inner) + 1;
    Running running;
    for (std::int32_t first = view.begin / device::kWarp * device::kWarp; first < end;
         first += device::kWarp) {
      device::sync_warp();
      const std::int32_t key = first + device::lane_index();
      const bool visible = key < end && sees(view, key);
      float score = -INFINITY;
      if (visible) {
        const std::int64_t offset = offset_of(pages, key, head / group);
        scratch.offset[device::lane_index()] = offset;
        score = score_of(scratch, offset, head / group);
      }
      add_keys(scratch, score, running);
    }
    finish(running, row, head);
  }

  [[nodiscard]] SMARTSPEC_DEVICE std::int32_t dim() const { return attention.kv.head_dim; }

  [[nodiscard]] SMARTSPEC_DEVICE std::int64_t offset_of(const BlockId* pages, std::int32_t key,
                                                        std::int32_t kv_head) const {
    const PagedKv& kv = attention.kv;
    return pages[key / kv.page_size] * kv.page_stride + key % kv.page_size * kv.token_stride +
           kv_head * kv.head_stride;
  }

  /// In units of log2.
  [[nodiscard]] SMARTSPEC_DEVICE float score_of(const Scratch& scratch, std::int64_t offset,
                                                std::int32_t kv_head) const {
    float score = 0.0F;
    for (int d = 0; d < dim(); ++d) {
      score += scratch.q[d] * load<kKvType>(attention.kv.k, offset + d);
    }
    score *= attention.scale;
    if (attention.kv.k_scale != nullptr) score *= attention.kv.k_scale[kv_head];
    if (attention.soft_cap > 0.0F) {
      score = attention.soft_cap * device::tanh_approx(score / attention.soft_cap);
    }
    return score * kLog2E;
  }

  /// All lanes: `score` is that of the lane's key, -inf when it is not visible.
  SMARTSPEC_DEVICE void add_keys(Scratch& scratch, float score, Running& running) const {
    const float before = running.max;
    float max = score > before ? score : before;
    for (int mask = device::kWarp / 2; mask > 0; mask /= 2) {
      const float other = device::shuffle_xor(max, mask);
      max = other > max ? other : max;
    }
    if (max == -INFINITY) return;
    const float weight = device::exp2_approx(score - max);
    float sum = weight;
    for (int mask = device::kWarp / 2; mask > 0; mask /= 2) sum += device::shuffle_xor(sum, mask);
    scratch.weight[device::lane_index()] = weight;
    device::sync_warp();

    const float fade = device::exp2_approx(before - max);
    running.max = max;
    running.sum = running.sum * fade + sum;
    SMARTSPEC_UNROLL
    for (int i = 0; i < kDimsPerLane; ++i) running.out[i] *= fade;
    for (int key = 0; key < device::kWarp; ++key) {
      const float key_weight = scratch.weight[key];
      if (key_weight == 0.0F) continue;  // its offset may be anything
      const std::int64_t offset = scratch.offset[key];
      SMARTSPEC_UNROLL
      for (int i = 0; i < kDimsPerLane; ++i) {
        const int d = device::lane_index() + i * device::kWarp;
        if (d < dim()) running.out[i] += key_weight * load<kKvType>(attention.kv.v, offset + d);
      }
    }
  }

  SMARTSPEC_DEVICE void finish(const Running& running, std::int32_t row, std::int32_t head) const {
    float factor = 1.0F / running.sum;  // a row sees itself: the sum is not 0
    if (attention.kv.v_scale != nullptr) factor *= attention.kv.v_scale[head / group];
    const std::int64_t begin = row * attention.out_stride + head * std::int64_t{dim()};
    SMARTSPEC_UNROLL
    for (int i = 0; i < kDimsPerLane; ++i) {
      const int d = device::lane_index() + i * device::kWarp;
      if (d < dim()) store_any(attention.dtype, attention.out, begin + d, running.out[i] * factor);
    }
    if (attention.lse != nullptr && device::lane_index() == 0) {
      attention.lse[row * std::int64_t{num_heads} + head] =
          (running.max + device::log2_approx(running.sum)) * kLn2;
    }
  }
};

template <DType kKvType>
void launch_with(const TreeAttention& attention, const Forest& forest, const AttentionPlan& plan,
                 const ForestState& state, Stream stream) {
  using Kernel = SimpleAttention<kKvType>;
  Kernel kernel{};
  kernel.attention = attention;
  kernel.forest = forest;
  kernel.state = state;
  kernel.num_heads = plan.num_kv_heads * plan.group;
  kernel.group = plan.group;
  const std::int64_t warps = std::int64_t{forest.num_rows} * kernel.num_heads;
  const LaunchShape shape{.blocks_x = (warps + Kernel::kWarps - 1) / Kernel::kWarps,
                          .shared_bytes = Kernel::kSharedBytes};
  launch(shape, stream, kernel);
}

}  // namespace

void launch_simple_attention(const TreeAttention& attention, const Forest& forest,
                             const AttentionPlan& plan, const ForestState& state, Stream stream) {
  switch (attention.kv.dtype) {
    case DType::kFloat32:
      return launch_with<DType::kFloat32>(attention, forest, plan, state, stream);
    case DType::kBFloat16:
      return launch_with<DType::kBFloat16>(attention, forest, plan, state, stream);
    case DType::kFloat16:
      return launch_with<DType::kFloat16>(attention, forest, plan, state, stream);
    case DType::kFloat8E4M3:
      return launch_with<DType::kFloat8E4M3>(attention, forest, plan, state, stream);
    case DType::kFloat8E5M2:
      return launch_with<DType::kFloat8E5M2>(attention, forest, plan, state, stream);
    default:
      return launch_with<DType::kInt8>(attention, forest, plan, state, stream);
  }
}

}  // namespace smartspec::cuda
