// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Tree attention of one layer: decode, verify and prefill shapes; bytes of K and V per second as a
// share of the read bandwidth measured in the same run, and multiply-adds per second.
//   bench_attention [--threads 0] [--isa ""] [--dtype bf16|f32] [--rounds 15] [--layers 16]
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>

#include "backend/backend.hpp"
#include "cpu/isa.hpp"
#include "harness.hpp"

namespace smartspec {
namespace {

constexpr int kHeads = 16;
constexpr int kKvHeads = 8;
constexpr int kHeadDim = 64;
constexpr int kBlock = 16;

struct Case {
  const char* name;
  int sequences;
  int context;
  int causal;
  int tree;
};

struct Work {
  Case c;
  std::vector<std::vector<BlockId>> tables;
  std::vector<std::int32_t> parents;
  std::vector<AttentionSequence> sequences;
  std::unique_ptr<AttentionPlan> plan;
  double bytes = 0.0;
  double macs = 0.0;
};

Work make_work(Backend& backend, const Case& c, int num_blocks, DType dtype) {
  Work work;
  work.c = c;
  for (int i = 0; i < c.tree; ++i) work.parents.push_back(i / 2 - (i < 2 ? 1 : 0));
  work.parents.resize(static_cast<std::size_t>(c.tree));
  const int keys = c.context + c.causal + c.tree;
  BlockId next = 0;
  for (int s = 0; s < c.sequences; ++s) {
    std::vector<BlockId>& table = work.tables.emplace_back();
    for (int t = 0; t < keys; t += kBlock) table.push_back(next++ % num_blocks);
  }
  for (int s = 0; s < c.sequences; ++s) {
    AttentionSequence q;
    q.first_row = s * (c.causal + c.tree);
    q.context_len = c.context;
    q.num_causal = c.causal;
    q.num_tree = c.tree;
    q.tree_parents = work.parents;
    q.block_table = work.tables[static_cast<std::size_t>(s)];
    work.sequences.push_back(q);
  }
  work.plan = backend.plan_attention(work.sequences, kBlock, nullptr);
  work.bytes = 2.0 * keys * kKvHeads * kHeadDim * static_cast<double>(size_of(dtype)) * c.sequences;
  work.macs = 2.0 *
              (c.causal * (c.context + (c.causal + 1) / 2.0) +
               c.tree * (c.context + c.causal + std::log2(c.tree + 1.0))) *
              kHeads * kHeadDim * c.sequences;
  return work;
}

int run(int argc, char** argv) {
  const auto backend = cpu::make_cpu_backend(bench::int_option(argc, argv, "--threads", 0),
                                             bench::option(argc, argv, "--isa", ""));
  const bool bf16 = bench::option(argc, argv, "--dtype", "bf16") == "bf16";
  const DType dtype = bf16 ? DType::kBFloat16 : DType::kFloat32;
  const int layers = bench::int_option(argc, argv, "--layers", 16);
  const int num_blocks = 2048;
  KvMemory kv = backend->allocate_kv(layers, num_blocks, kBlock, kKvHeads, kHeadDim, dtype);
  const std::vector<Case> shapes = {
      {"decode, context 256", 1, 256, 1, 0},     {"decode, context 2048", 1, 2048, 1, 0},
      {"decode x 8, context 256", 8, 256, 1, 0}, {"decode x 32, context 512", 32, 512, 1, 0},
      {"verify 8 (chain), 2048", 1, 2040, 8, 0}, {"verify tree 16, 2048", 1, 2031, 1, 16},
      {"verify tree 64, 2048", 1, 1983, 1, 64},  {"prefill 256 at 0", 1, 0, 256, 0},
      {"prefill 256 at 1792", 1, 1792, 256, 0},
  };
  std::vector<Work> work;
  for (const Case& c : shapes) work.push_back(make_work(*backend, c, num_blocks, dtype));
  const std::size_t width = static_cast<std::size_t>(kHeads) * kHeadDim;
  std::vector<float> q(512 * width);
  std::minstd_rand random(1);
  for (float& x : q) x = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
  std::vector<float> out(q.size());
  bench::ReadBandwidth bandwidth(backend->num_threads());
  std::vector<std::function<void()>> cases = {[&] { bandwidth.run(); }};
  for (const Work& w : work) {
    cases.emplace_back([&, &w = w] {
      for (int l = 0; l < layers; ++l) {
        TreeAttentionParams p;
        p.plan = w.plan.get();
        p.q = q.data();
        p.out = out.data();
        p.q_stride = p.out_stride = static_cast<std::int64_t>(width);
        p.kv = &kv;
        p.layer = l;
        p.num_heads = kHeads;
        p.scale = 0.125F;
        backend->tree_attention(p);
      }
    });
  }
  const auto times = bench::interleave(cases, bench::int_option(argc, argv, "--rounds", 15));
  const double floor = bandwidth.bytes() / times[0].median;
  std::printf("%s, %d threads, KV %s, %d/%d heads of %d, %d layers; read bandwidth %.1f GB/s\n",
              std::string(backend->isa_name()).c_str(), backend->num_threads(),
              bf16 ? "bf16" : "f32", kHeads, kKvHeads, kHeadDim, layers, floor / 1e9);
  std::printf("%-26s %10s %12s %8s %8s %9s %8s\n", "case", "ms/pass", "us per layer", "(best)",
              "GB/s", "of floor", "GMAC/s");
  for (std::size_t i = 0; i < work.size(); ++i) {
    const double per_layer = times[i + 1].median / layers;
    std::printf("%-26s %10.3f %12.1f %8.1f %8.1f %8.1f%% %8.1f\n", work[i].c.name,
                times[i + 1].median * 1e3, per_layer * 1e6, times[i + 1].best / layers * 1e6,
                work[i].bytes / per_layer / 1e9, 100.0 * work[i].bytes / per_layer / floor,
                work[i].macs / per_layer / 1e9);
  }
  return 0;
}

}  // namespace
}  // namespace smartspec

int main(int argc, char** argv) { return smartspec::run(argc, argv); }
