// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Launches the tensor-core kernel of one head_dim and kind of cache.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/launch.cuh"
#include "host/runtime.hpp"
#include "kernels/tree_attention/tensor.cuh"

namespace smartspec::cuda::tensor {

template <class T>
bool launch_tile(const Call& call) {
  const DeviceInfo& device = device_info();
  const Occupancy fit = fit_stages(device.max_shared_bytes, kControlBytes, T::kStageBytes);
  if (fit.num_stages == 0) return false;
  TensorAttention<T> kernel{
      .attention = call.attention,
      .forest = call.forest,
      .plan = call.plan,
      .state = call.state,
      .format = call.attention.kv.dtype == DType::kInt8 ? kInt8Format : kE5M2Format,
      .num_stages = fit.num_stages};
  // As many blocks as are resident together; more would only split the keys finer.
  const std::int32_t resident = device.num_multiprocessors * fit.num_blocks;
  kernel.plan.num_blocks = resident < call.plan.max_blocks ? resident : call.plan.max_blocks;
  const auto stages = static_cast<std::size_t>(fit.num_stages);
  launch(
      {.blocks_x = kernel.plan.num_blocks, .shared_bytes = kControlBytes + stages * T::kStageBytes},
      call.stream, kernel);
  return true;
}

template <int kHeadDim, Kind kKind>
bool launch_instance(const Call& call) {
  constexpr bool kIsByte = kKind == Kind::kE4M3 || kKind == Kind::kBytes;
  if constexpr (kHeadDim <= 128 && !kIsByte) {
    if (call.plan.tile_rows == 128) return launch_tile<Traits<kHeadDim, kKind, 128>>(call);
  }
  if (call.plan.tile_rows == 16) return launch_tile<Traits<kHeadDim, kKind, 16>>(call);
  return launch_tile<Traits<kHeadDim, kKind, 64>>(call);
}

}  // namespace smartspec::cuda::tensor
