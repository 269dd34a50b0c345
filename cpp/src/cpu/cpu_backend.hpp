// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The CPU backend: verbs of backend.hpp over one kernel table and one thread pool.
//
// Every verb cuts its work into tasks; small work stays on the calling thread, which changes the
// time and never the result.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "backend/backend.hpp"
#include "cpu/aligned.hpp"
#include "cpu/attention.hpp"
#include "cpu/kernels.hpp"
#include "cpu/thread_pool.hpp"

namespace smartspec::cpu {

class CpuBackend final : public Backend {
 public:
  CpuBackend(std::int32_t num_threads, const KernelTable& kernels);

  [[nodiscard]] Device device() const noexcept override { return Device::kCpu; }
  [[nodiscard]] std::string_view isa_name() const noexcept override { return kernels_.name; }
  [[nodiscard]] std::int32_t num_threads() const noexcept override { return pool_.num_threads(); }
  [[nodiscard]] bool is_host_visible() const noexcept override { return true; }

  Buffer allocate(std::size_t bytes) override;
  void upload(void* device, const void* host, std::size_t bytes) override;
  void download(void* host, const void* device, std::size_t bytes) override;
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

 private:
  /// Runs f(first, last, thread) over [0, count), on one thread when count * cost is small.
  template <class F>
  void for_ranges(std::int64_t count, std::int64_t cost, const F& f);
  const char* pack_activations(const LinearParams& p, bool bf16, std::int64_t row_bytes);

  const KernelTable& kernels_;
  ThreadPool pool_;
  Scratch activations_;
  std::vector<AttentionWorker> workers_;  // one per thread
  std::vector<Scratch> rotated_;          // one per thread
};

}  // namespace smartspec::cpu
