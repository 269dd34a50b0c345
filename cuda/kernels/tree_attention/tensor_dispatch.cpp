// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels/tree_attention/tensor.h"
#include "tree_attention/tensor_head_dims.h"

namespace smartspec::cuda {
namespace tensor {
namespace {

constexpr std::size_t kMaxStages = 4;
constexpr std::size_t kMinStages = 2;
/// The runtime takes this much of a multiprocessor's shared memory for each block, and a block may
/// ask for all but one such part.
constexpr std::size_t kReservedBytes = 1024;

bool is_kind(DType dtype) {
  return dtype == DType::kBFloat16 || dtype == DType::kFloat16 || dtype == DType::kFloat8E4M3 ||
         dtype == DType::kFloat8E5M2 || dtype == DType::kInt8;
}

template <int kHeadDim>
bool launch_kind(const Call& call) {
  switch (call.attention.kv.dtype) {
    case DType::kBFloat16:
      return launch_instance<kHeadDim, Kind::kBFloat16>(call);
    case DType::kFloat16:
      return launch_instance<kHeadDim, Kind::kFloat16>(call);
    case DType::kFloat8E4M3:
      return launch_instance<kHeadDim, Kind::kE4M3>(call);
    default:
      return launch_instance<kHeadDim, Kind::kBytes>(call);
  }
}

}  // namespace

Occupancy fit_stages(std::size_t max_shared_bytes, std::size_t fixed_bytes,
                     std::size_t stage_bytes) noexcept {
  for (const std::size_t blocks : {2U, 1U}) {
    const std::size_t room = (max_shared_bytes + kReservedBytes) / blocks - kReservedBytes;
    const std::size_t stages = room < fixed_bytes ? 0 : (room - fixed_bytes) / stage_bytes;
    if (stages >= kMinStages) {
      return {static_cast<int>(std::min(stages, kMaxStages)), static_cast<int>(blocks)};
    }
  }
  return {};
}

}  // namespace tensor

bool has_tensor_kernel(DType kv, std::int32_t head_dim) noexcept {
#define SMARTSPEC_IS_DIM(dim) || head_dim == (dim)
  return tensor::is_kind(kv) && (false SMARTSPEC_FOR_EACH_HEAD_DIM(SMARTSPEC_IS_DIM));
#undef SMARTSPEC_IS_DIM
}

void launch_tensor_attention(const TreeAttention& attention, const Forest& forest,
                             AttentionPlan plan, const ForestState& state, Stream stream) {
  const tensor::Call call{attention, forest, plan, state, stream};
  bool fits = false;
  switch (plan.head_dim) {
#define SMARTSPEC_LAUNCH_DIM(dim)          \
  case dim:                                \
    fits = tensor::launch_kind<dim>(call); \
    break;
    SMARTSPEC_FOR_EACH_HEAD_DIM(SMARTSPEC_LAUNCH_DIM)
#undef SMARTSPEC_LAUNCH_DIM
    default:
      break;
  }
  // 256 dims of 16 bits on a device with less than 140 KB of shared memory.
  if (!fits) launch_simple_attention(attention, forest, plan, state, stream);
}

}  // namespace smartspec::cuda
