// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Verification of one tree per sequence from bf16 logits, and the moves that keep the accepted
// rows. Limit: the rows on the walked path are read once, at the bandwidth that a large copy
// reaches in the same run.
//   bench_cuda_verify [--rounds 30] [--sequences 64] [--nodes 64] [--vocab 128256] [--json FILE]
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "harness.hpp"
#include "smartspec/cuda_ops.hpp"

namespace smartspec::bench {
namespace {

constexpr int kBuffers = 3;   // of logits, in turn
constexpr int kAccepted = 3;  // nodes that the planted path has
constexpr int kMaxPath = 16;

struct Shape {
  int sequences;
  int nodes;
  int vocab;
};

struct Setup {
  Shape shape;
  DeviceMemory logits_offsets, node_offsets, node_tokens, parents, seeds, positions;
  DeviceMemory num_accepted, path, tokens, logprobs, status;
  std::vector<DeviceMemory> logits;
};

/// Node n's parent is (n - 1) / 2; a large logit in each row leads the walk down the first children
/// for kAccepted nodes, then to a token that no child has.
void plant(const Setup& s, const std::vector<std::int32_t>& next_token) {
  const DeviceMemory large(std::vector<std::uint16_t>{0x4180});  // 16 in bf16
  for (const DeviceMemory& logits : s.logits) {
    for (std::size_t row = 0; row < next_token.size(); ++row) {
      const std::size_t at =
          row * static_cast<std::size_t>(s.shape.vocab) + static_cast<std::size_t>(next_token[row]);
      check(
          cudaMemcpyAsync(logits.as<std::uint16_t>() + at, large.as(), 2, cudaMemcpyDeviceToDevice),
          "plant");
    }
  }
  check(cudaDeviceSynchronize(), "plant");
}

Setup make_setup(const Shape& shape) {
  std::minstd_rand random(3);
  Setup s;
  s.shape = shape;
  const auto sequences = static_cast<std::size_t>(shape.sequences);
  const auto vocab = static_cast<std::uint_fast32_t>(shape.vocab);
  std::vector<std::int32_t> offsets, logits_offsets, parents, tokens, next;
  std::vector<std::int64_t> seeds, positions;
  for (int i = 0; i < shape.sequences; ++i) {
    offsets.push_back(i * shape.nodes);
    logits_offsets.push_back(i * (shape.nodes + 1));
    seeds.push_back(1000 + i);
    positions.push_back(4096 + i);
    const std::size_t first = tokens.size();
    for (int n = 0; n < shape.nodes; ++n) {
      parents.push_back(n == 0 ? -1 : (n - 1) / 2);
      // Siblings differ: left children are even, right children odd.
      tokens.push_back(static_cast<std::int32_t>(random() % (vocab / 2 - 1) * 2) + (n + 1) % 2);
    }
    int node = 0;  // the next one of the planted path
    for (int row = 0; row <= shape.nodes; ++row) {
      const bool on_path = row == 0 || (row == node + 1 && node + 1 < (1 << kAccepted));
      if (row != 0 && on_path) node = 2 * node + 1;
      const bool goes_on = on_path && node < shape.nodes && node + 1 < (1 << kAccepted);
      next.push_back(goes_on ? tokens[first + static_cast<std::size_t>(node)] : shape.vocab - 1);
    }
  }
  offsets.push_back(shape.sequences * shape.nodes);
  s.logits_offsets = DeviceMemory(logits_offsets);
  s.node_offsets = DeviceMemory(offsets);
  s.node_tokens = DeviceMemory(tokens);
  s.parents = DeviceMemory(parents);
  s.seeds = DeviceMemory(seeds);
  s.positions = DeviceMemory(positions);
  s.num_accepted = DeviceMemory(sequences * 4);
  s.status = DeviceMemory(sequences * 4);
  s.path = DeviceMemory(sequences * kMaxPath * 4);
  s.tokens = DeviceMemory(sequences * kMaxPath * 4);
  s.logprobs = DeviceMemory(sequences * kMaxPath * 4);
  for (std::uint32_t i = 0; i < kBuffers; ++i) {
    s.logits.emplace_back(next.size() * static_cast<std::size_t>(shape.vocab) * 2);
    s.logits.back().fill_random(DType::kBFloat16, 11 + i);
  }
  plant(s, next);
  return s;
}

struct Sampling {
  const char* name;
  float temperature;
  float top_p;  // 1: off
  bool logprobs;
};

cuda::Verify arguments_of(const Setup& s, const DeviceMemory& logits) {
  cuda::Verify out;
  out.num_sequences = s.shape.sequences;
  out.vocab_size = s.shape.vocab;
  out.logits = logits.as();
  out.dtype = DType::kBFloat16;
  out.logits_stride = s.shape.vocab;
  out.logits_offsets = s.logits_offsets.as<std::int32_t>();
  out.node_offsets = s.node_offsets.as<std::int32_t>();
  out.node_tokens = s.node_tokens.as<TokenId>();
  out.parents = s.parents.as<std::int32_t>();
  out.seeds = s.seeds.as<std::uint64_t>();
  out.positions = s.positions.as<std::int64_t>();
  out.num_accepted = s.num_accepted.as<std::int32_t>();
  out.path = s.path.as<std::int32_t>();
  out.tokens = s.tokens.as<TokenId>();
  out.path_stride = kMaxPath;
  out.status = s.status.as<std::int32_t>();
  return out;
}

void time_verify(const Setup& s, const Sampling& sampling, int rounds, double bandwidth,
                 Report& report) {
  const auto count = static_cast<std::size_t>(s.shape.sequences);
  const DeviceMemory temperature(std::vector<float>(count, sampling.temperature));
  const DeviceMemory top_p(std::vector<float>(count, sampling.top_p));
  const DeviceMemory workspace(
      cuda::verify_workspace_bytes(cuda::VerifyRule::kTarget, s.shape.sequences,
                                   s.shape.sequences * s.shape.nodes, s.shape.vocab));
  workspace.fill_zero();
  const Times times = time_replays(rounds, kBuffers, [&](cudaStream_t stream) {
    for (const DeviceMemory& logits : s.logits) {
      cuda::Verify verify = arguments_of(s, logits);
      verify.temperature = temperature.as<float>();
      if (sampling.top_p < 1) verify.top_p = top_p.as<float>();
      if (sampling.logprobs) verify.logprobs = s.logprobs.as<float>();
      cuda::verify(verify, workspace.as(), workspace.bytes(), stream);
    }
  });
  double rows = 0;
  for (const std::int32_t accepted : s.num_accepted.download<std::int32_t>()) rows += accepted + 1;
  for (const std::int32_t status : s.status.download<std::int32_t>()) {
    if (status != 0) throw std::runtime_error("verify: status " + std::to_string(status));
  }
  const double bytes = rows * s.shape.vocab * 2;
  const double rate = bytes / times.median;
  std::printf("%-34s %9.2f %9.2f %9.2f %9.1f %9.0f %8.1f%%\n", sampling.name, 1e6 * times.median,
              1e6 * times.best, rows / s.shape.sequences, bytes / 1e6, rate / 1e9,
              100 * rate / bandwidth);
  report.start_case(sampling.name);
  report.add("seconds", times.median);
  report.add("best_seconds", times.best);
  report.add("rows_per_sequence", rows / s.shape.sequences);
  report.add("bytes", bytes);
  report.add("share_of_copy_bandwidth", rate / bandwidth);
}

/// `moves` rows of each sequence, all 32 layers of an 8B model with a bf16 cache.
void time_moves(int sequences, int moves, int rounds, double bandwidth, Report& report) {
  constexpr int kLayers = 32;
  constexpr int kHeads = 8;
  constexpr int kDim = 128;
  constexpr int kPage = 16;
  const int pages = 8 * sequences;
  const std::size_t bytes = static_cast<std::size_t>(pages * kPage * kHeads * kDim) * 2;
  std::vector<DeviceMemory> memory;
  std::vector<cuda::PagedKv> layers;
  for (int l = 0; l < 2 * kLayers; ++l) {
    memory.emplace_back(bytes);
    memory.back().fill_random(DType::kBFloat16, static_cast<std::uint32_t>(l));
  }
  for (std::size_t l = 0; l < kLayers; ++l) {
    layers.push_back({.k = memory[2 * l].as(),
                      .v = memory[2 * l + 1].as(),
                      .dtype = DType::kBFloat16,
                      .page_size = kPage,
                      .num_kv_heads = kHeads,
                      .head_dim = kDim,
                      .page_stride = kPage * kHeads * kDim,
                      .token_stride = kHeads * kDim,
                      .head_stride = kDim});
  }
  // Lists that touch different pages, in turn: one of them would stay in the cache.
  constexpr int kLists = 4;
  std::vector<DeviceMemory> sources, destinations;
  std::vector<std::int32_t> groups;
  for (int s = 0; s <= sequences; ++s) groups.push_back(s * moves);
  for (int list = 0; list < kLists; ++list) {
    std::vector<SlotId> from, to;
    for (int s = 0; s < sequences; ++s) {
      for (int m = 0; m < moves; ++m) {
        const int start = (8 * s + 2 * list) * kPage;
        to.push_back(start + m);
        from.push_back(start + 5 * (m + 1));
      }
    }
    sources.emplace_back(from);
    destinations.emplace_back(to);
  }
  const DeviceMemory offsets(groups);
  const Times times = time_replays(rounds, kLists, [&](cudaStream_t stream) {
    for (std::size_t list = 0; list < kLists; ++list) {
      cuda::move_kv({.layers = layers.data(),
                     .num_layers = kLayers,
                     .sources = sources[list].as<SlotId>(),
                     .destinations = destinations[list].as<SlotId>(),
                     .group_offsets = offsets.as<std::int32_t>(),
                     .num_moves = sequences * moves,
                     .num_groups = sequences},
                    stream);
    }
  });
  const double moved = 2.0 * 2.0 * kLayers * sequences * moves * kHeads * kDim * 2;
  const std::string name = "move " + std::to_string(moves) + " rows, 32 layers";
  std::printf("%-34s %9.2f %9.2f %9s %9.1f %9.0f %8.1f%%\n", name.c_str(), 1e6 * times.median,
              1e6 * times.best, "", moved / 1e6, moved / times.median / 1e9,
              100 * moved / times.median / bandwidth);
  report.start_case(name);
  report.add("seconds", times.median);
  report.add("best_seconds", times.best);
  report.add("bytes", moved);
  report.add("share_of_copy_bandwidth", moved / times.median / bandwidth);
}

void run(int argc, char** argv) {
  const int rounds = std::stoi(option(argc, argv, "--rounds", "30"));
  const Shape shape = {.sequences = std::stoi(option(argc, argv, "--sequences", "64")),
                       .nodes = std::stoi(option(argc, argv, "--nodes", "64")),
                       .vocab = std::stoi(option(argc, argv, "--vocab", "128256"))};
  Report report("bench_cuda_verify");
  const double bandwidth = copy_bandwidth(rounds);
  report.set("copy_bandwidth", bandwidth);
  report.set("sequences", shape.sequences);
  report.set("nodes", shape.nodes);
  report.set("vocab_size", shape.vocab);
  std::printf("copy bandwidth %.0f GB/s; %d trees of %d nodes, vocabulary %d, bf16 logits\n",
              bandwidth / 1e9, shape.sequences, shape.nodes, shape.vocab);
  std::printf("%-34s %9s %9s %9s %9s %9s %9s\n", "case", "us", "(best)", "rows/seq", "MB", "GB/s",
              "of copy");
  const std::vector<Sampling> cases = {{"greedy", 0.0F, 1.0F, false},
                                       {"greedy, logprobs", 0.0F, 1.0F, true},
                                       {"temperature 1", 1.0F, 1.0F, false},
                                       {"temperature 0.8, top-p 0.95", 0.8F, 0.95F, false}};
  {
    const Setup s = make_setup(shape);
    for (const Sampling& sampling : cases) time_verify(s, sampling, rounds, bandwidth, report);
  }
  time_moves(shape.sequences, 4, rounds, bandwidth, report);
  report.write(option(argc, argv, "--json", ""));
}

}  // namespace
}  // namespace smartspec::bench

int main(int argc, char** argv) {
  return smartspec::bench::guarded_main([&] { smartspec::bench::run(argc, argv); });
}
