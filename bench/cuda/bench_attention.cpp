// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Tree attention of one layer and the preparation of a forest. Limit: K and V are read once, at the
// bandwidth that a large copy reaches in the same run.
//   bench_cuda_attention [--rounds 30] [--layout NHD|HND] [--json FILE]
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "harness.hpp"
#include "smartspec/cuda_ops.hpp"

namespace smartspec::bench {
namespace {

constexpr int kPageSize = 16;

struct Case {
  const char* name;
  int sequences;
  int context;
  int nodes;  // of each tree, its root included
  int heads;
  int kv_heads;
  int head_dim;
  DType kv_dtype;
};

struct Setup {
  Case c;
  int pages_per_sequence = 0;
  DeviceMemory row_offsets, context_lens, node_offsets, parents, block_table, q, out, workspace;
  std::vector<DeviceMemory> memory;  // K and V of each layer
  std::vector<cuda::PagedKv> layers;
  cuda::Forest forest;
  cuda::AttentionPlanOptions options;
};

std::vector<std::int32_t> evenly(int count, int step) {
  std::vector<std::int32_t> out(static_cast<std::size_t>(count) + 1);
  for (int i = 0; i <= count; ++i) out[static_cast<std::size_t>(i)] = i * step;
  return out;
}

/// A random tree with a root; children of any earlier node.
std::vector<std::int32_t> random_forest(int sequences, int nodes, std::minstd_rand& random) {
  std::vector<std::int32_t> out;
  for (int s = 0; s < sequences; ++s) {
    for (int n = 0; n < nodes; ++n) {
      const auto earlier = static_cast<std::uint_fast32_t>(std::max(n, 1));
      out.push_back(n == 0 ? -1 : static_cast<std::int32_t>(random() % earlier));
    }
  }
  return out;
}

void make_forest(Setup& s, std::minstd_rand& random) {
  const Case& c = s.c;
  s.pages_per_sequence = (c.context + c.nodes + kPageSize - 1) / kPageSize;
  std::vector<BlockId> pages(static_cast<std::size_t>(c.sequences * s.pages_per_sequence));
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), random);
  s.row_offsets = DeviceMemory(evenly(c.sequences, c.nodes));
  s.node_offsets = DeviceMemory(evenly(c.sequences, c.nodes));
  s.context_lens =
      DeviceMemory(std::vector<std::int32_t>(static_cast<std::size_t>(c.sequences), c.context));
  s.parents = DeviceMemory(random_forest(c.sequences, c.nodes, random));
  s.block_table = DeviceMemory(pages);
  s.forest = {.num_sequences = c.sequences,
              .num_rows = c.sequences * c.nodes,
              .num_nodes = c.sequences * c.nodes,
              .row_offsets = s.row_offsets.as<std::int32_t>(),
              .context_lens = s.context_lens.as<std::int32_t>(),
              .num_causal = nullptr,
              .node_offsets = s.node_offsets.as<std::int32_t>(),
              .parents = s.parents.as<std::int32_t>(),
              .block_table = s.block_table.as<BlockId>(),
              .block_table_stride = s.pages_per_sequence};
}

/// Enough layers that one replay does not find in the cache what the last one left there.
void make_layers(Setup& s, bool head_major) {
  const Case& c = s.c;
  const std::size_t pages = static_cast<std::size_t>(c.sequences * s.pages_per_sequence);
  const std::size_t page =
      static_cast<std::size_t>(kPageSize * c.kv_heads * c.head_dim) * size_of(c.kv_dtype);
  const std::size_t count = std::clamp<std::size_t>(4 * l2_bytes() / (2 * pages * page) + 1, 2, 64);
  for (std::size_t l = 0; l < count; ++l) {
    const DeviceMemory& k = s.memory.emplace_back(pages * page);
    k.fill_random(c.kv_dtype, static_cast<std::uint32_t>(2 * l + 1));
    void* const k_data = k.as();
    const DeviceMemory& v = s.memory.emplace_back(pages * page);
    v.fill_random(c.kv_dtype, static_cast<std::uint32_t>(2 * l + 2));
    s.layers.push_back({.k = k_data,
                        .v = v.as(),
                        .dtype = c.kv_dtype,
                        .page_size = kPageSize,
                        .num_kv_heads = c.kv_heads,
                        .head_dim = c.head_dim,
                        .page_stride = kPageSize * c.kv_heads * c.head_dim,
                        .token_stride = head_major ? c.head_dim : c.kv_heads * c.head_dim,
                        .head_stride = head_major ? kPageSize * c.head_dim : c.head_dim});
  }
}

Setup make_setup(const Case& c, bool head_major) {
  std::minstd_rand random(7);
  Setup s;
  s.c = c;
  make_forest(s, random);
  make_layers(s, head_major);
  const std::size_t rows = static_cast<std::size_t>(s.forest.num_rows * c.heads * c.head_dim);
  s.q = DeviceMemory(rows * 2);
  s.q.fill_random(DType::kBFloat16, 5);
  s.out = DeviceMemory(rows * 2);
  s.options = {.num_heads = c.heads,
               .num_kv_heads = c.kv_heads,
               .head_dim = c.head_dim,
               .kv_dtype = c.kv_dtype};
  s.workspace = DeviceMemory(cuda::attention_workspace_bytes(
      s.options, c.sequences, s.forest.num_rows, s.forest.num_nodes));
  s.workspace.fill_zero();
  return s;
}

struct Timed {
  Times prepare;
  Times attention;
};

Timed time_setup(const Setup& s, int rounds) {
  cuda::ForestState state;
  constexpr int kPrepares = 20;
  Timed out;
  out.prepare = time_replays(rounds, kPrepares, [&](cudaStream_t stream) {
    for (int i = 0; i < kPrepares; ++i) {
      state =
          cuda::prepare_forest(s.forest, s.options, s.workspace.as(), s.workspace.bytes(), stream);
    }
  });
  const std::int64_t stride = s.c.heads * s.c.head_dim;
  out.attention = time_replays(rounds, static_cast<int>(s.layers.size()), [&](cudaStream_t stream) {
    for (const cuda::PagedKv& layer : s.layers) {
      const cuda::TreeAttention attention = {.q = s.q.as(),
                                             .out = s.out.as(),
                                             .dtype = DType::kBFloat16,
                                             .q_stride = stride,
                                             .out_stride = stride,
                                             .lse = nullptr,
                                             .kv = layer};
      cuda::tree_attention(attention, s.forest, s.options, state, s.workspace.as(),
                           s.workspace.bytes(), stream);
    }
  });
  return out;
}

void run(int argc, char** argv) {
  const int rounds = std::stoi(option(argc, argv, "--rounds", "30"));
  const bool head_major = option(argc, argv, "--layout", "NHD") == "HND";
  constexpr DType kBf16 = DType::kBFloat16;
  const std::vector<Case> cases = {
      {"8B B=1 L=8k T=16", 1, 8192, 16, 32, 8, 128, kBf16},
      {"8B B=1 L=8k T=32", 1, 8192, 32, 32, 8, 128, kBf16},
      {"8B B=1 L=8k T=64", 1, 8192, 64, 32, 8, 128, kBf16},
      {"8B B=16 L=8k T=1", 16, 8192, 1, 32, 8, 128, kBf16},
      {"8B B=16 L=8k T=16", 16, 8192, 16, 32, 8, 128, kBf16},
      {"8B B=16 L=8k T=32", 16, 8192, 32, 32, 8, 128, kBf16},
      {"8B B=16 L=8k T=64", 16, 8192, 64, 32, 8, 128, kBf16},
      {"8B B=64 L=4k T=16", 64, 4096, 16, 32, 8, 128, kBf16},
      {"8B B=64 L=4k T=32", 64, 4096, 32, 32, 8, 128, kBf16},
      {"8B B=64 L=4k T=64", 64, 4096, 64, 32, 8, 128, kBf16},
      {"8B fp8 B=16 L=8k T=16", 16, 8192, 16, 32, 8, 128, DType::kFloat8E4M3},
      {"8B fp8 B=16 L=8k T=32", 16, 8192, 32, 32, 8, 128, DType::kFloat8E4M3},
      {"8B fp8 B=16 L=8k T=64", 16, 8192, 64, 32, 8, 128, DType::kFloat8E4M3},
      {"1 KV head g=8 B=64 L=8k T=16", 64, 8192, 16, 8, 1, 128, kBf16},
      {"1 KV head g=8 B=64 L=8k T=32", 64, 8192, 32, 8, 1, 128, kBf16},
  };
  Report report("bench_cuda_attention");
  const double bandwidth = copy_bandwidth(rounds);
  report.set("copy_bandwidth", bandwidth);
  std::printf("copy bandwidth %.0f GB/s (read and written), %s, pages of %d\n", bandwidth / 1e9,
              head_major ? "HND" : "NHD", kPageSize);
  std::printf("%-30s %9s %9s %9s %9s %10s\n", "case", "us/layer", "(best)", "GB/s", "of copy",
              "prepare us");
  for (const Case& c : cases) {
    const Setup s = make_setup(c, head_major);
    const Timed times = time_setup(s, rounds);
    const double bytes = 2.0 * c.sequences * (c.context + c.nodes) * c.kv_heads * c.head_dim *
                             static_cast<double>(size_of(c.kv_dtype)) +
                         2.0 * static_cast<double>(s.q.bytes());
    const double rate = bytes / times.attention.median;
    std::printf("%-30s %9.2f %9.2f %9.0f %8.1f%% %10.2f\n", c.name, 1e6 * times.attention.median,
                1e6 * times.attention.best, rate / 1e9, 100 * rate / bandwidth,
                1e6 * times.prepare.median);
    std::fflush(stdout);
    report.start_case(c.name);
    report.add("seconds", times.attention.median);
    report.add("best_seconds", times.attention.best);
    report.add("bytes", bytes);
    report.add("share_of_copy_bandwidth", rate / bandwidth);
    report.add("prepare_seconds", times.prepare.median);
    report.write(option(argc, argv, "--json", ""));
  }
}

}  // namespace
}  // namespace smartspec::bench

int main(int argc, char** argv) {
  return smartspec::bench::guarded_main([&] { smartspec::bench::run(argc, argv); });
}
