// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "cpu/cpu_backend.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "cpu/isa.hpp"
#include "cpu/kv_layout.hpp"
#include "cpu/pack.hpp"

namespace smartspec::cpu {
namespace {

// Handing work to another thread costs about a microsecond. Costs are in rough float operations per
// lane-parallel step: elements for row verbs, bytes of weights for linears, multiply-adds for
// attention.
constexpr std::int64_t kMinRangeCost = 16384;
constexpr std::int64_t kMinLinearTaskBytes = std::int64_t{32} << 10;
constexpr std::int64_t kLinearTasksPerThread = 16;
constexpr std::int64_t kMinAttentionCost = 65536;

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument(what); }

void check_positive(const char* verb, const char* field, std::int64_t value) {
  if (value < 1) {
    fail(std::string(verb) + ": " + field + " is " + std::to_string(value) +
         "; allowed: at least 1");
  }
}

std::size_t checked_bytes(std::int64_t blocks, std::int64_t block_bytes) {
  if (blocks > std::numeric_limits<std::int64_t>::max() / block_bytes) {
    fail("allocate_kv: num_blocks " + std::to_string(blocks) + " is too large");
  }
  return static_cast<std::size_t>(blocks * block_bytes);
}

void check_slot(SlotId slot, const KvMemory& kv, const char* verb) {
  const std::int64_t slots = std::int64_t{kv.num_blocks} * kv.block_size;
  if (slot < 0 || slot >= slots) {
    fail(std::string(verb) + ": slot " + std::to_string(slot) + " is not in [0, " +
         std::to_string(slots) + ")");
  }
}

}  // namespace

CpuBackend::CpuBackend(std::int32_t num_threads, const KernelTable& kernels)
    : kernels_(kernels),
      pool_(num_threads),
      workers_(static_cast<std::size_t>(pool_.num_threads())),
      rotated_(static_cast<std::size_t>(pool_.num_threads())) {}

template <class F>
void CpuBackend::for_ranges(std::int64_t count, std::int64_t cost, const F& f) {
  const std::int64_t wanted =
      std::min<std::int64_t>(count * cost / kMinRangeCost, std::int64_t{pool_.num_threads()} * 4);
  const std::int64_t tasks = std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(count, 1));
  if (tasks == 1 || pool_.num_threads() == 1) {
    f(std::int64_t{0}, count, 0);
    return;
  }
  pool_.run(tasks, [&](std::int64_t t, std::int32_t thread) {
    f(count * t / tasks, count * (t + 1) / tasks, thread);
  });
}

Buffer CpuBackend::allocate(std::size_t bytes) { return allocate_aligned(bytes); }

void CpuBackend::upload(void* device, const void* host, std::size_t bytes) {
  if (bytes > 0) std::memcpy(device, host, bytes);
}

void CpuBackend::download(void* host, const void* device, std::size_t bytes) {
  if (bytes > 0) std::memcpy(host, device, bytes);
}

PackedLinear CpuBackend::pack_linear(std::span<const TensorView> parts, DType dtype) {
  return cpu::pack_linear(parts, dtype, pool_);
}

KvMemory CpuBackend::allocate_kv(std::int32_t num_layers, std::int32_t num_blocks,
                                 std::int32_t block_size, std::int32_t num_kv_heads,
                                 std::int32_t head_dim, DType dtype) {
  check_positive("allocate_kv", "num_layers", num_layers);
  check_positive("allocate_kv", "num_blocks", num_blocks);
  check_positive("allocate_kv", "num_kv_heads", num_kv_heads);
  if (block_size < kLanes || block_size % kLanes != 0) {
    fail("allocate_kv: block_size " + std::to_string(block_size) +
         " is not a positive multiple of 16");
  }
  if (head_dim < 2 || head_dim % 2 != 0 || head_dim > 1024) {
    fail("allocate_kv: head_dim " + std::to_string(head_dim) +
         " is not an even number in [2, 1024]");
  }
  if (dtype != DType::kFloat32 && dtype != DType::kBFloat16) {
    fail(std::string("allocate_kv: dtype ") + name_of(dtype) + "; allowed: float32, bfloat16");
  }
  if (std::int64_t{num_blocks} * block_size > std::numeric_limits<SlotId>::max()) {
    fail("allocate_kv: num_blocks " + std::to_string(num_blocks) + " times block_size " +
         std::to_string(block_size) + " does not fit 31 bits");
  }
  KvMemory kv;
  kv.dtype = dtype;
  kv.num_blocks = num_blocks;
  kv.block_size = block_size;
  kv.num_kv_heads = num_kv_heads;
  kv.head_dim = head_dim;
  const KvLayout layout(kv);
  for (std::int32_t l = 0; l < num_layers; ++l) {
    kv.buffers.push_back(allocate_aligned(checked_bytes(num_blocks, layout.k_block_bytes())));
    kv.buffers.push_back(allocate_aligned(checked_bytes(num_blocks, layout.v_block_bytes())));
    const std::size_t n = kv.buffers.size();
    kv.layers.push_back({kv.buffers[n - 2].data(), kv.buffers[n - 1].data()});
  }
  return kv;
}

void CpuBackend::embed(const EmbedParams& p) {
  const bool bf16 = p.table_dtype == DType::kBFloat16;
  if (!bf16 && p.table_dtype != DType::kFloat32) {
    fail(std::string("embed: table dtype ") + name_of(p.table_dtype) +
         "; allowed: float32, bfloat16");
  }
  for_ranges(p.num_rows, p.hidden, [&](std::int64_t first, std::int64_t last, std::int32_t) {
    for (std::int64_t r = first; r < last; ++r) {
      const std::int64_t at = std::int64_t{p.tokens[r]} * p.hidden;
      float* out = p.out + r * p.hidden;
      if (bf16) {
        kernels_.widen_bf16(static_cast<const std::uint16_t*>(p.table) + at, out, p.hidden);
      } else {
        std::memcpy(out, static_cast<const float*>(p.table) + at,
                    static_cast<std::size_t>(p.hidden) * sizeof(float));
      }
    }
  });
}

void CpuBackend::rms_norm(const RmsNormParams& p) {
  for_ranges(p.num_rows, std::int64_t{2} * p.dim,
             [&](std::int64_t first, std::int64_t last, std::int32_t) {
               for (std::int64_t r = first; r < last; ++r) {
                 kernels_.rms_norm(p.in + r * p.in_stride, p.weight, p.out + r * p.out_stride,
                                   p.dim, p.eps);
               }
             });
}

const char* CpuBackend::pack_activations(const LinearParams& p, bool bf16, std::int64_t row_bytes) {
  const std::int32_t k = p.weight->in_features;
  char* packed = activations_.reserve(static_cast<std::size_t>(p.num_rows * row_bytes));
  // Tiles are cut as the kernels cut them; all but the last two are of the largest size.
  const int max_rows = kernels_.max_tile_rows;
  const std::int64_t tiles = (p.num_rows + max_rows - 1) / max_rows;
  for_ranges(tiles, std::int64_t{4} * max_rows * k,
             [&](std::int64_t first, std::int64_t last, std::int32_t) {
               const float* rows[kMaxTileRows];
               std::int32_t row = 0;
               for (std::int64_t t = 0; t < last; ++t) {
                 const int n = next_tile_rows(p.num_rows - row, max_rows);
                 if (t >= first) {
                   for (int m = 0; m < n; ++m) rows[m] = p.in + (row + m) * p.in_stride;
                   kernels_.pack_tile(rows, n, k, bf16, packed + row * row_bytes);
                 }
                 row += n;
               }
             });
  return packed;
}

void CpuBackend::linear(const LinearParams& p) {
  if (p.num_rows <= 0) return;
  const PackedLinear& w = *p.weight;
  LinearJob job;
  job.bf16 = w.dtype == DType::kBFloat16;
  job.steps = panel_steps(w.in_features, job.bf16);
  job.group_bytes = job.steps * kLineBytes;
  job.weights = w.data.as<char>();
  job.packed_row_bytes = packed_row_bytes(w.in_features, job.bf16, kernels_.bf16_pairs);
  job.packed = pack_activations(p, job.bf16, job.packed_row_bytes);
  job.bias = p.bias;
  job.out = p.out;
  job.out_stride = p.out_stride;
  job.num_rows = p.num_rows;
  job.out_features = w.out_features;
  job.accumulate = p.accumulate;
  const std::int64_t groups = (std::int64_t{w.out_features} + kLanes - 1) / kLanes;
  const std::int64_t wanted =
      std::min(groups * job.group_bytes * ((p.num_rows + 7) / 8) / kMinLinearTaskBytes,
               std::int64_t{pool_.num_threads()} * kLinearTasksPerThread);
  if (wanted <= 1 || pool_.num_threads() == 1) {
    kernels_.linear(job, 0, static_cast<int>(groups));
    return;
  }
  const std::int64_t multiple = kernels_.group_multiple;
  const std::int64_t per_task =
      ((groups + wanted - 1) / wanted + multiple - 1) / multiple * multiple;
  pool_.run((groups + per_task - 1) / per_task, [&](std::int64_t t, std::int32_t) {
    kernels_.linear(job, static_cast<int>(t * per_task),
                    static_cast<int>(std::min(groups, (t + 1) * per_task)));
  });
}

void CpuBackend::rope_and_append_kv(const RopeKvParams& p) {
  KvMemory& kv = *p.kv;
  const KvLayout layout(kv);
  const std::int32_t dim = kv.head_dim;
  for (std::int32_t r = 0; r < p.num_rows; ++r) check_slot(p.slots[r], kv, "rope_and_append_kv");
  const KvLayer& target = kv.layers.at(static_cast<std::size_t>(p.layer));
  for (Scratch& s : rotated_) s.reserve(static_cast<std::size_t>(dim) * 8);
  const auto append = [&](std::int64_t r, std::int32_t thread) {
    const std::int64_t at = std::int64_t{p.positions[r]} * (dim / 2);
    RotateJob job{nullptr, nullptr, p.cos + at, p.sin + at, dim};
    for (std::int32_t h = 0; h < p.num_heads; ++h) {
      job.out = p.q + r * p.row_stride + std::int64_t{h} * dim;
      job.in = job.out;
      kernels_.rotate(job);
    }
    float* rotated = rotated_[static_cast<std::size_t>(thread)].reserve_array<float>(0);
    auto* narrow = reinterpret_cast<std::uint16_t*>(rotated + dim);
    const std::int32_t block = p.slots[r] / kv.block_size;
    const std::int32_t offset = p.slots[r] % kv.block_size;
    for (std::int32_t h = 0; h < kv.num_kv_heads; ++h) {
      const std::int64_t head = r * p.row_stride + std::int64_t{h} * dim;
      job.in = p.k + head;
      job.out = rotated;
      kernels_.rotate(job);
      if (layout.bf16()) kernels_.narrow_bf16(rotated, narrow, dim);
      layout.write_key(static_cast<char*>(target.k) + layout.key_group(block, h, offset),
                       offset % kLanes, rotated, narrow);
      char* value = static_cast<char*>(target.v) + layout.value_row(block, h, offset);
      if (layout.bf16()) {
        kernels_.narrow_bf16(p.v + head, reinterpret_cast<std::uint16_t*>(value), dim);
      } else {
        std::memcpy(value, p.v + head, static_cast<std::size_t>(dim) * sizeof(float));
      }
    }
  };
  for_ranges(p.num_rows, std::int64_t{2} * dim * (p.num_heads + 3 * kv.num_kv_heads),
             [&](std::int64_t first, std::int64_t last, std::int32_t thread) {
               for (std::int64_t r = first; r < last; ++r) append(r, thread);
             });
}

std::unique_ptr<AttentionPlan> CpuBackend::plan_attention(
    std::span<const AttentionSequence> sequences, std::int32_t block_size,
    std::unique_ptr<AttentionPlan> scratch) {
  if (dynamic_cast<CpuAttentionPlan*>(scratch.get()) == nullptr) {
    scratch = std::make_unique<CpuAttentionPlan>();
  }
  static_cast<CpuAttentionPlan&>(*scratch).build(sequences, block_size);
  return scratch;
}

void CpuBackend::tree_attention(const TreeAttentionParams& p) {
  const auto* plan = dynamic_cast<const CpuAttentionPlan*>(p.plan);
  if (plan == nullptr) fail("tree_attention: the plan is not this backend's");
  const KvMemory& kv = *p.kv;
  if (plan->block_size() != kv.block_size || plan->highest_block() >= kv.num_blocks) {
    fail("tree_attention: the plan (block_size " + std::to_string(plan->block_size()) +
         ", highest block " + std::to_string(plan->highest_block()) + ") does not fit the cache (" +
         std::to_string(kv.block_size) + ", " + std::to_string(kv.num_blocks) + " blocks)");
  }
  if (p.num_heads < 1 || p.num_heads % kv.num_kv_heads != 0) {
    fail("tree_attention: num_heads " + std::to_string(p.num_heads) +
         " is not a positive multiple of num_kv_heads " + std::to_string(kv.num_kv_heads));
  }
  AttentionLayer layer{&kernels_, plan, &p, KvLayout(kv), p.num_heads / kv.num_kv_heads};
  for (AttentionWorker& worker : workers_) worker.reserve(layer);
  const std::span<const PlannedTask> tasks = plan->tasks();
  const std::int64_t heads = kv.num_kv_heads;
  const auto run = [&](std::int64_t i, std::int32_t thread) {
    const PlannedTask& any = tasks[static_cast<std::size_t>(i / heads)];  // of the same sequence
    const std::int64_t within = i - any.group_first * heads;
    const std::int64_t task = any.group_first + within % any.group_size;
    workers_[static_cast<std::size_t>(thread)].run(
        layer, tasks[static_cast<std::size_t>(task)],
        static_cast<std::int32_t>(within / any.group_size));
  };
  const std::int64_t count = static_cast<std::int64_t>(tasks.size()) * heads;
  if (plan->total_cost() * p.num_heads * kv.head_dim < kMinAttentionCost) {
    for (std::int64_t i = 0; i < count; ++i) run(i, 0);
  } else {
    pool_.run(count, run);
  }
}

void CpuBackend::swiglu(const SwigluParams& p) {
  for_ranges(p.num_rows, std::int64_t{4} * p.dim,
             [&](std::int64_t first, std::int64_t last, std::int32_t) {
               for (std::int64_t r = first; r < last; ++r) {
                 const float* gate = p.gate_up + r * 2 * p.dim;
                 kernels_.swiglu(gate, gate + p.dim, p.out + r * p.dim, p.dim);
               }
             });
}

void CpuBackend::gather_rows(const GatherRowsParams& p) {
  const auto bytes = static_cast<std::size_t>(p.dim) * sizeof(float);
  for (std::int64_t r = 0; r < p.num_rows; ++r) {
    std::memmove(p.out + r * p.dim, p.in + std::int64_t{p.rows[r]} * p.dim, bytes);
  }
}

void CpuBackend::move_kv(KvMemory& kv, const KvMoveList& moves) {
  if (moves.sources.size() != moves.destinations.size()) {
    fail("move_kv: " + std::to_string(moves.sources.size()) + " sources but " +
         std::to_string(moves.destinations.size()) + " destinations");
  }
  for (const SlotId slot : moves.sources) check_slot(slot, kv, "move_kv");
  for (const SlotId slot : moves.destinations) check_slot(slot, kv, "move_kv");
  const KvLayout layout(kv);
  const auto move = [&](const KvLayer& layer, SlotId from, SlotId to) {
    for (std::int32_t h = 0; h < kv.num_kv_heads; ++h) {
      const std::int32_t f = from % kv.block_size;
      const std::int32_t t = to % kv.block_size;
      auto* k = static_cast<char*>(layer.k);
      auto* v = static_cast<char*>(layer.v);
      layout.copy_key(k + layout.key_group(from / kv.block_size, h, f), f % kLanes,
                      k + layout.key_group(to / kv.block_size, h, t), t % kLanes);
      std::memmove(v + layout.value_row(to / kv.block_size, h, t),
                   v + layout.value_row(from / kv.block_size, h, f),
                   static_cast<std::size_t>(layout.value_bytes()));
    }
  };
  const auto n = static_cast<std::int64_t>(moves.sources.size());
  for_ranges(static_cast<std::int64_t>(kv.layers.size()), n * kv.num_kv_heads * kv.head_dim * 2,
             [&](std::int64_t first, std::int64_t last, std::int32_t) {
               for (std::int64_t l = first; l < last; ++l) {
                 for (std::size_t i = 0; i < moves.sources.size(); ++i) {
                   move(kv.layers[static_cast<std::size_t>(l)], moves.sources[i],
                        moves.destinations[i]);
                 }
               }
             });
}

std::unique_ptr<Backend> make_cpu_backend(std::int32_t num_threads, std::string_view isa) {
  return std::make_unique<CpuBackend>(num_threads, select_kernels(isa));
}

}  // namespace smartspec::cpu

namespace smartspec {

std::unique_ptr<Backend> make_cpu_backend(std::int32_t num_threads) {
  return cpu::make_cpu_backend(num_threads, {});
}

}  // namespace smartspec
