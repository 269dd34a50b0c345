// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "host/cuda_backend.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "host/attention_plan.hpp"
#include "kernels/rows/rows.h"
#include "smartspec/error.hpp"

namespace smartspec::cuda {
namespace {

constexpr std::size_t kStagingBytes = std::size_t{4} << 20;
constexpr std::size_t kMaxLayersPerMove = 128;  // of cuda::move_kv

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument(what); }

void check_range(const char* field, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value >= low && value <= high) return;
  fail(std::string("allocate_kv: ") + field + " is " + std::to_string(value) + "; allowed: [" +
       std::to_string(low) + ", " + std::to_string(high) + "]");
}

std::string first_isa_name() {
  if (!unavailable_reason().empty()) {
    throw DeviceError("device \"cuda\" is not available: " + unavailable_reason());
  }
  const DeviceInfo& info = device_info();
  return "sm_" + std::to_string(info.major) + std::to_string(info.minor);
}

PagedKv paged(const KvMemory& kv, const KvLayer& layer) {
  PagedKv out;
  out.k = layer.k;
  out.v = layer.v;
  out.dtype = kv.dtype;
  out.page_size = kv.block_size;
  out.num_kv_heads = kv.num_kv_heads;
  out.head_dim = kv.head_dim;
  out.head_stride = kv.head_dim;
  out.token_stride = std::int64_t{kv.num_kv_heads} * kv.head_dim;
  out.page_stride = kv.block_size * out.token_stride;
  return out;
}

PagedKv layer_of(const KvMemory& kv, std::int32_t layer) {
  return paged(kv, kv.layers.at(static_cast<std::size_t>(layer)));
}

void check_slots(std::span<const SlotId> slots, const KvMemory& kv) {
  const std::int64_t end = std::int64_t{kv.num_blocks} * kv.block_size;
  for (const SlotId slot : slots) {
    if (slot < 0 || slot >= end) {
      fail("move_kv: slot " + std::to_string(slot) + " is not in [0, " + std::to_string(end) + ")");
    }
  }
}

}  // namespace

CudaBackend::CudaBackend(const CudaBackendOptions& options)
    : options_{
          .batch_invariant = options.batch_invariant,
          .graphs = options.graphs && !options.batch_invariant && CapturedGraph::is_supported()},
      isa_name_(first_isa_name()),
      staging_(kStagingBytes),
      linear_(options.batch_invariant) {}

Buffer CudaBackend::allocate(std::size_t bytes) {
  Buffer buffer = allocate_buffer(bytes);
  fill_zero(buffer.data(), bytes, stream_.get());
  return buffer;
}

Buffer CudaBackend::allocate_host(std::size_t bytes) {
  return {allocate_pinned(bytes), bytes, free_pinned};
}

void CudaBackend::upload(void* device, const void* host, std::size_t bytes) {
  staging_.upload(device, host, bytes, stream_.get());
}

void CudaBackend::download(void* host, const void* device, std::size_t bytes) {
  copy(host, device, bytes, stream_.get());
  synchronize(stream_.get());
}

PackedLinear CudaBackend::pack_linear(std::span<const TensorView> parts, DType dtype) {
  return cuda::pack_linear(parts, dtype, staging_, stream_.get());
}

KvMemory CudaBackend::allocate_kv(std::int32_t num_layers, std::int32_t num_blocks,
                                  std::int32_t block_size, std::int32_t num_kv_heads,
                                  std::int32_t head_dim, DType dtype) {
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  check_range("num_layers", num_layers, 1, kMost);
  check_range("block_size", block_size, 1, 256);
  check_range("num_blocks", num_blocks, 1, kMost / block_size);
  check_range("num_kv_heads", num_kv_heads, 1, 1 << 16);
  check_range("head_dim", head_dim, 2, 256);
  if (head_dim % 2 != 0) fail("allocate_kv: head_dim " + std::to_string(head_dim) + " is odd");
  if (dtype != DType::kFloat32 && dtype != DType::kBFloat16) {
    fail(std::string("allocate_kv: dtype ") + name_of(dtype) + "; allowed: float32, bfloat16");
  }
  KvMemory kv;
  kv.dtype = dtype;
  kv.num_blocks = num_blocks;
  kv.block_size = block_size;
  kv.num_kv_heads = num_kv_heads;
  kv.head_dim = head_dim;
  // One piece, so that running out names the bytes of the whole cache.
  const std::size_t bytes =
      static_cast<std::size_t>(num_blocks) * static_cast<std::size_t>(block_size) *
      static_cast<std::size_t>(num_kv_heads) * static_cast<std::size_t>(head_dim) * size_of(dtype);
  constexpr std::size_t kAlignment = 256;
  const std::size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const std::size_t pieces = 2 * static_cast<std::size_t>(num_layers);
  if (padded > std::numeric_limits<std::size_t>::max() / pieces) {
    fail("allocate_kv: num_blocks " + std::to_string(num_blocks) + " is too large");
  }
  kv.buffers.push_back(allocate(padded * pieces));
  auto* at = kv.buffers.back().as<std::byte>();
  for (std::int32_t l = 0; l < num_layers; ++l, at += 2 * padded) {
    kv.layers.push_back({at, at + padded});
  }
  return kv;
}

void CudaBackend::embed(const EmbedParams& p) {
  if (p.table_dtype != DType::kFloat32 && p.table_dtype != DType::kBFloat16) {
    fail(std::string("embed: table dtype ") + name_of(p.table_dtype) +
         "; allowed: float32, bfloat16");
  }
  kernels::embed(p, stream_.get());
}

void CudaBackend::rms_norm(const RmsNormParams& p) { kernels::rms_norm(p, stream_.get()); }
void CudaBackend::linear(const LinearParams& p) { linear_.run(p, stream_.get()); }

void CudaBackend::rope_and_append_kv(const RopeKvParams& p) {
  append_kv({.q = p.q,
             .k = p.k,
             .v = p.v,
             .dtype = DType::kFloat32,
             .q_stride = p.row_stride,
             .k_stride = p.row_stride,
             .v_stride = p.row_stride,
             .cos = p.cos,
             .sin = p.sin,
             .positions = p.positions,
             .slots = p.slots,
             .kv = layer_of(*p.kv, p.layer),
             .num_rows = p.num_rows,
             .num_heads = p.num_heads},
            stream_.get());
}

std::unique_ptr<smartspec::AttentionPlan> CudaBackend::plan_attention(
    std::span<const AttentionSequence> sequences, std::int32_t block_size,
    std::unique_ptr<smartspec::AttentionPlan> scratch) {
  if (dynamic_cast<CudaAttentionPlan*>(scratch.get()) == nullptr) {
    scratch = std::make_unique<CudaAttentionPlan>();
  }
  static_cast<CudaAttentionPlan&>(*scratch).build(sequences, block_size, options_.graphs, staging_,
                                                  stream_.get());
  return scratch;
}

void CudaBackend::tree_attention(const TreeAttentionParams& p) {
  const auto* plan = dynamic_cast<const CudaAttentionPlan*>(p.plan);
  if (plan == nullptr) fail("tree_attention: the plan is not this backend's");
  const KvMemory& kv = *p.kv;
  if (plan->block_size() != kv.block_size || plan->highest_block() >= kv.num_blocks) {
    fail("tree_attention: the plan (block_size " + std::to_string(plan->block_size()) +
         ", highest block " + std::to_string(plan->highest_block()) + ") does not fit the cache (" +
         std::to_string(kv.block_size) + ", " + std::to_string(kv.num_blocks) + " blocks)");
  }
  if (plan->forest().num_rows == 0) return;
  const AttentionPlanOptions options{.num_heads = p.num_heads,
                                     .num_kv_heads = kv.num_kv_heads,
                                     .head_dim = kv.head_dim,
                                     .kv_dtype = kv.dtype,
                                     .batch_invariant = options_.batch_invariant,
                                     .sliding_window = p.sliding_window};
  const CudaAttentionPlan::Prepared& prepared = plan->prepare(options, stream_.get());
  cuda::tree_attention({.q = p.q,
                        .out = p.out,
                        .dtype = DType::kFloat32,
                        .q_stride = p.q_stride,
                        .out_stride = p.out_stride,
                        .kv = layer_of(kv, p.layer),
                        .scale = p.scale,
                        .sliding_window = p.sliding_window},
                       plan->forest(), prepared.options, prepared.state, prepared.workspace.data(),
                       prepared.workspace.size(), stream_.get());
}

void CudaBackend::swiglu(const SwigluParams& p) { kernels::swiglu(p, stream_.get()); }
void CudaBackend::gather_rows(const GatherRowsParams& p) { kernels::gather_rows(p, stream_.get()); }

void CudaBackend::move_kv(KvMemory& kv, const KvMoveList& moves) {
  if (moves.sources.size() != moves.destinations.size()) {
    fail("move_kv: " + std::to_string(moves.sources.size()) + " sources but " +
         std::to_string(moves.destinations.size()) + " destinations");
  }
  if (moves.sources.empty()) return;
  check_slots(moves.sources, kv);
  check_slots(moves.destinations, kv);
  const std::size_t count = moves.sources.size();
  reserve_buffer(moves_, 2 * count * sizeof(SlotId), stream_.get());
  auto* device = moves_.as<SlotId>();
  staging_.upload(device, moves.sources.data(), count * sizeof(SlotId), stream_.get());
  staging_.upload(device + count, moves.destinations.data(), count * sizeof(SlotId), stream_.get());
  std::vector<PagedKv> layers;
  for (const KvLayer& layer : kv.layers) layers.push_back(paged(kv, layer));
  for (std::size_t first = 0; first < layers.size(); first += kMaxLayersPerMove) {
    const std::size_t some = std::min(kMaxLayersPerMove, layers.size() - first);
    cuda::move_kv({.layers = layers.data() + first,
                   .num_layers = static_cast<std::int32_t>(some),
                   .sources = device,
                   .destinations = device + count,
                   .num_moves = static_cast<std::int32_t>(count)},
                  stream_.get());
  }
}

std::int32_t CudaBackend::padded_rows(std::int32_t num_rows) const noexcept {
  return options_.graphs ? tier_of(num_rows) : num_rows;
}

void CudaBackend::run_pass(const PassKey& key, const smartspec::AttentionPlan& plan,
                           const std::function<void()>& pass) {
  const auto* mine = dynamic_cast<const CudaAttentionPlan*>(&plan);
  if (!options_.graphs || key.num_rows > kMaxGraphRows || mine == nullptr) {
    pass();
    return;
  }
  PassGraphs::Signature signature = {key.owner,
                                     key.generation,
                                     static_cast<std::uint64_t>(key.num_rows),
                                     static_cast<std::uint64_t>(key.num_logits),
                                     static_cast<std::uint64_t>(key.gathers),
                                     reinterpret_cast<std::uintptr_t>(linear_.scratch())};
  mine->append_signature(signature);
  graphs_.run(signature, stream_.get(), pass, [&] { mine->forget(); });
}

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options) {
  return std::make_unique<CudaBackend>(options);
}

}  // namespace smartspec::cuda
