// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The CUDA side of the backend seam. Work is ordered on one stream of its own; download() waits
// for it. Errors of kernels show at the next call that waits.
//
// KV cache: K and V of a layer are [num_blocks, block_size, num_kv_heads, head_dim] each.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.hpp"
#include "host/linear.hpp"
#include "host/pass_graphs.hpp"
#include "host/runtime.hpp"
#include "host/staging.hpp"
#include "host/tree_walker.hpp"
#include "smartspec/cuda_ops.hpp"

namespace smartspec::cuda {

struct CudaBackendOptions {
  /// A row's results do not depend on what else is in the batch. Costs speed: see LinearRunner and
  /// AttentionPlanOptions.
  bool batch_invariant = false;
  /// Passes of up to kMaxGraphRows rows become CUDA graphs; not with batch_invariant.
  bool graphs = true;
};

class CudaBackend final : public Backend {
 public:
  /// Throws DeviceError saying why no device can be used.
  explicit CudaBackend(const CudaBackendOptions& options);

  [[nodiscard]] Device device() const noexcept override { return Device::kCuda; }
  [[nodiscard]] std::string_view isa_name() const noexcept override { return isa_name_; }
  [[nodiscard]] std::int32_t num_threads() const noexcept override { return 1; }

  Buffer allocate(std::size_t bytes) override;
  Buffer allocate_host(std::size_t bytes) override;  // page-locked
  void upload(void* device, const void* host, std::size_t bytes) override;
  void download(void* host, const void* device, std::size_t bytes) override;
  [[nodiscard]] bool is_host_visible() const noexcept override { return false; }

  PackedLinear pack_linear(std::span<const TensorView> parts, DType dtype) override;
  KvMemory allocate_kv(std::int32_t num_layers, std::int32_t num_blocks, std::int32_t block_size,
                       std::int32_t num_kv_heads, std::int32_t head_dim, DType dtype) override;

  void embed(const EmbedParams& p) override;
  void rms_norm(const RmsNormParams& p) override;
  void linear(const LinearParams& p) override;
  void rope_and_append_kv(const RopeKvParams& p) override;
  std::unique_ptr<AttentionPlan> plan_attention(std::span<const AttentionSequence> sequences,
                                                std::int32_t block_size,
                                                std::unique_ptr<AttentionPlan> scratch) override;
  void tree_attention(const TreeAttentionParams& p) override;
  void swiglu(const SwigluParams& p) override;
  void gather_rows(const GatherRowsParams& p) override;
  void move_kv(KvMemory& kv, const KvMoveList& moves) override;

  [[nodiscard]] bool walks_trees() const noexcept override { return true; }
  void walk_trees(const WalkParams& p) override { walker_.run(p, staging_, stream_.get()); }

  [[nodiscard]] std::int32_t padded_rows(std::int32_t num_rows) const noexcept override;
  void run_pass(const PassKey& key, const AttentionPlan& plan,
                const std::function<void()>& pass) override;
  [[nodiscard]] std::int64_t num_replays() const noexcept { return graphs_.num_replays(); }
  [[nodiscard]] std::int64_t num_walked() const noexcept { return walker_.num_walked(); }

 private:
  CudaBackendOptions options_;
  std::string isa_name_;
  OwnedStream stream_;
  Staging staging_;
  LinearRunner linear_;
  Buffer moves_;  // [2, num_moves] SlotId
  PassGraphs graphs_;
  TreeWalker walker_;
};

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options);

}  // namespace smartspec::cuda
