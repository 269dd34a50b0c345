// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Entry points of the KV operations: every host-visible field is checked, the widest access that
// all addresses allow is chosen, then one launch.
#include "kernels/kv/kv.h"

#include <algorithm>
#include <limits>
#include <string>

#include "kernels/kv/check_kv.hpp"

namespace smartspec::cuda {
namespace {

using kernels::check_paged_kv;
using kernels::check_range;
using kernels::check_set;
using kernels::refuse;

constexpr std::int64_t kAnyInt = std::numeric_limits<std::int32_t>::max();

/// Collects addresses and byte strides; unit() is the widest access that divides them all.
class Alignment {
 public:
  void add(std::int64_t bytes) { bits_ |= static_cast<std::uint64_t>(bytes); }
  void add(const void* pointer) { bits_ |= reinterpret_cast<std::uintptr_t>(pointer); }
  [[nodiscard]] bool divides(std::int64_t bytes) const {
    return bits_ % static_cast<std::uint64_t>(bytes) == 0;
  }
  [[nodiscard]] std::int32_t unit() const {
    return divides(16) ? 16 : divides(4) ? 4 : divides(2) ? 2 : 1;
  }

 private:
  std::uint64_t bits_ = 0;
};

void add_shape(Alignment& alignment, const PagedKv& kv, std::int64_t run_bytes) {
  const auto size = static_cast<std::int64_t>(size_of(kv.dtype));
  alignment.add(run_bytes);
  alignment.add(kv.page_stride * size);
  if (kv.page_size > 1) alignment.add(kv.token_stride * size);
  if (kv.num_kv_heads > 1) alignment.add(kv.head_stride * size);
}

void check_row_stride(const char* field, std::int64_t stride, std::int32_t heads,
                      const AppendKv& p) {
  const std::int64_t least = std::int64_t{heads} * p.kv.head_dim;
  if (p.num_rows > 1 && stride < least) {
    refuse("append_kv", field, std::to_string(stride), "at least " + std::to_string(least));
  }
}

void check_append(const AppendKv& p) {
  const std::string verb = "append_kv";
  check_range(verb, "num_rows", p.num_rows, 0, kAnyInt);
  check_paged_kv(verb, "kv", p.kv);
  if (p.kv.head_dim % 2 != 0 || p.kv.head_dim > 256) {
    refuse(verb, "kv.head_dim", std::to_string(p.kv.head_dim), "an even number up to 256");
  }
  if (p.dtype != DType::kFloat32 && p.dtype != DType::kBFloat16 && p.dtype != DType::kFloat16) {
    refuse(verb, "dtype", name_of(p.dtype), "float32, bfloat16, float16");
  }
  check_set(verb, "k", p.k);
  check_set(verb, "v", p.v);
  check_set(verb, "slots", p.slots);
  check_row_stride("k_stride", p.k_stride, p.kv.num_kv_heads, p);
  check_row_stride("v_stride", p.v_stride, p.kv.num_kv_heads, p);
  if (p.q != nullptr) {
    check_range(verb, "num_heads", p.num_heads, 1, 65536);
    check_row_stride("q_stride", p.q_stride, p.num_heads, p);
  }
  if (p.cos != nullptr) {
    check_set(verb, "sin", p.sin);
    check_set(verb, "positions", p.positions);
  } else if (p.sin != nullptr) {
    refuse(verb, "cos", "null", "device memory, as sin is set");
  }
}

/// 16 bytes of a row per access when the rows, the tables and the cache are aligned for it.
std::int32_t append_run(const AppendKv& p, bool rotate_q) {
  const auto size = static_cast<std::int64_t>(size_of(p.dtype));
  const auto run = static_cast<std::int32_t>(16 / size);
  if (p.kv.head_dim / 2 % run != 0) return 1;
  Alignment rows;
  rows.add(p.k);
  rows.add(p.v);
  rows.add(p.k_stride * size);
  rows.add(p.v_stride * size);
  if (rotate_q) {
    rows.add(p.q);
    rows.add(p.q_stride * size);
  }
  rows.add(p.cos);  // their rows are head_dim / 2 floats: multiples of 16 bytes
  rows.add(p.sin);
  const std::int64_t stored = run * static_cast<std::int64_t>(size_of(p.kv.dtype));
  Alignment cache;
  add_shape(cache, p.kv, stored);
  cache.add(p.kv.k);
  cache.add(p.kv.v);
  return rows.divides(16) && cache.divides(std::min<std::int64_t>(stored, 16)) ? run : 1;
}

bool same_shape(const PagedKv& a, const PagedKv& b) {
  return a.dtype == b.dtype && a.page_size == b.page_size && a.num_kv_heads == b.num_kv_heads &&
         a.head_dim == b.head_dim && a.page_stride == b.page_stride &&
         a.token_stride == b.token_stride && a.head_stride == b.head_stride;
}

std::string shape_text(const PagedKv& kv) {
  const auto text = [](std::int64_t value) { return std::to_string(value); };
  return std::string(name_of(kv.dtype)) + ", page_size " + text(kv.page_size) + ", num_kv_heads " +
         text(kv.num_kv_heads) + ", head_dim " + text(kv.head_dim) + ", strides " +
         text(kv.page_stride) + " " + text(kv.token_stride) + " " + text(kv.head_stride);
}

/// Checks the layers and gathers their addresses.
kernels::KvBases layer_bases(const char* verb, const PagedKv* layers, std::int32_t num_layers,
                             Alignment& alignment) {
  check_range(verb, "num_layers", num_layers, 1, kernels::kMaxKvLayers);
  if (layers == nullptr) refuse(verb, "layers", "null", "host memory");
  kernels::KvBases kv;
  for (std::int32_t l = 0; l < num_layers; ++l) {
    const PagedKv& layer = layers[l];
    const std::string field = "layers[" + std::to_string(l) + "]";
    check_paged_kv(verb, field, layer);
    if (!same_shape(layer, layers[0])) {
      refuse(verb, field, shape_text(layer), "that of layers[0]: " + shape_text(layers[0]));
    }
    kv.bases[kv.count++] = static_cast<std::byte*>(layer.k);
    kv.bases[kv.count++] = static_cast<std::byte*>(layer.v);
    alignment.add(layer.k);
    alignment.add(layer.v);
  }
  return kv;
}

/// Fills in what copies and swaps share. Dimensions that lie together are joined, so that a dense
/// page, token-major or head-major, becomes one run.
kernels::PageJob page_job(const char* verb, const PagedKv* layers, std::int32_t num_layers,
                          std::int32_t num_pages, const void* host, std::int32_t& unit) {
  check_range(verb, "num_pages", num_pages, 0, kAnyInt);
  Alignment alignment;
  kernels::PageJob job;
  job.kv = layer_bases(verb, layers, num_layers, alignment);
  const PagedKv& kv = layers[0];
  const auto size = static_cast<std::int64_t>(size_of(kv.dtype));
  std::int64_t inner = kv.num_kv_heads;
  std::int64_t inner_stride = kv.head_stride;
  std::int64_t outer = kv.page_size;
  std::int64_t outer_stride = kv.token_stride;
  if (inner > 1 && outer > 1 && inner_stride > outer_stride) {
    std::swap(inner, outer);
    std::swap(inner_stride, outer_stride);
  }
  std::int64_t run = kv.head_dim;
  if (inner == 1 || inner_stride == run) {
    run *= inner;
    inner = 1;
    if (outer == 1 || outer_stride == run) run *= outer;
  }
  const std::int64_t page = std::int64_t{kv.page_size} * kv.num_kv_heads * kv.head_dim;
  add_shape(alignment, kv, run * size);
  alignment.add(host);
  unit = alignment.unit();
  job.page_stride = kv.page_stride * size;
  job.outer_stride = outer_stride * size;
  job.inner_stride = inner_stride * size;
  job.inner = static_cast<std::int32_t>(inner);
  job.run = static_cast<std::int32_t>(run * size / unit);
  job.page_units = static_cast<std::int32_t>(page * size / unit);
  job.num_pages = num_pages;
  return job;
}

}  // namespace

void append_kv(const AppendKv& append, Stream stream) {
  if (append.num_rows == 0) return;
  check_append(append);
  kernels::AppendJob job;
  job.append = append;
  job.q_heads = append.cos != nullptr && append.q != nullptr ? append.num_heads : 0;
  job.run = append_run(append, job.q_heads > 0);
  kernels::launch_append(job, stream);
}

void move_kv(const MoveKv& moves, Stream stream) {
  constexpr const char* kVerb = "move_kv";
  check_range(kVerb, "num_moves", moves.num_moves, 0, kAnyInt);
  check_range(kVerb, "num_groups", moves.num_groups, moves.group_offsets == nullptr ? 1 : 0,
              moves.group_offsets == nullptr ? 1 : kAnyInt);
  Alignment alignment;
  kernels::MoveJob job;
  job.kv = layer_bases(kVerb, moves.layers, moves.num_layers, alignment);
  if (moves.num_moves == 0 || moves.num_groups == 0) return;
  check_set(kVerb, "sources", moves.sources);
  check_set(kVerb, "destinations", moves.destinations);
  const PagedKv& kv = moves.layers[0];
  const auto size = static_cast<std::int64_t>(size_of(kv.dtype));
  add_shape(alignment, kv, kv.head_dim * size);
  const std::int32_t unit = alignment.unit();
  job.page_stride = kv.page_stride * size;
  job.token_stride = kv.token_stride * size;
  job.head_stride = kv.head_stride * size;
  job.page_size = kv.page_size;
  job.head_columns = static_cast<std::int32_t>(kv.head_dim * size / unit);
  job.num_columns = kv.num_kv_heads * job.head_columns;
  job.sources = moves.sources;
  job.destinations = moves.destinations;
  job.group_offsets = moves.group_offsets;
  job.num_moves = moves.num_moves;
  job.num_groups = moves.num_groups;
  kernels::launch_move(job, unit, stream);
}

void copy_pages(const CopyPages& copy, Stream stream) {
  std::int32_t unit = 1;
  kernels::PageJob job =
      page_job("copy_pages", copy.layers, copy.num_layers, copy.num_pages, nullptr, unit);
  if (copy.num_pages == 0) return;
  check_set("copy_pages", "sources", copy.sources);
  check_set("copy_pages", "destinations", copy.destinations);
  job.sources = copy.sources;
  job.destinations = copy.destinations;
  kernels::launch_pages(job, unit, stream);
}

void swap_pages(const SwapPages& swap, Stream stream) {
  std::int32_t unit = 1;
  kernels::PageJob job =
      page_job("swap_pages", swap.layers, swap.num_layers, swap.num_pages, swap.host, unit);
  if (swap.num_pages == 0) return;
  check_set("swap_pages", "pages", swap.pages);
  if (swap.host == nullptr) refuse("swap_pages", "host", "null", "page-locked host memory");
  job.host = static_cast<std::byte*>(swap.host);
  (swap.to_host ? job.sources : job.destinations) = swap.pages;
  kernels::launch_pages(job, unit, stream);
}

}  // namespace smartspec::cuda
