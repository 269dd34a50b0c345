// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Whole engine steps on a 300 M parameter Llama in bf16, random weights: the time of one token
// against the read-bandwidth floor of the same run, and of verifying M rows against one token.
//   bench_decode [--threads 0] [--rounds 25] [--context 256]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <vector>

#include "harness.hpp"
#include "random_model.hpp"
#include "smartspec/engine.hpp"

namespace {

using namespace smartspec;

ModelConfig llama_300m() {
  ModelConfig config;
  config.vocab_size = 32000;
  config.hidden_size = 1024;
  config.intermediate_size = 4096;
  config.num_hidden_layers = 16;
  config.num_attention_heads = 16;
  config.num_key_value_heads = 8;
  config.head_dim = 64;
  config.max_position_embeddings = 4096;
  return config;
}

/// Bytes of weights that one pass reads: everything but the embedding table.
double streamed_bytes(const ModelConfig& c) {
  const double qkv = double(c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim;
  const double out = double(c.num_attention_heads) * c.head_dim;
  const double layer = c.hidden_size * (qkv + out + 3.0 * c.intermediate_size);
  return 2.0 * (c.num_hidden_layers * layer + double(c.vocab_size) * c.hidden_size);
}

/// Chains of junk of a settable length: every step verifies length + 1 rows.
class JunkChain final : public Proposer {
 public:
  [[nodiscard]] std::string_view name() const override { return "junk"; }
  void propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) override {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      for (std::int32_t depth = 0; depth < length; ++depth) trees[i].add(depth, depth - 1, 0.0F);
    }
  }
  std::int32_t length = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const int threads = bench::int_option(argc, argv, "--threads", 0);
  const int rounds = bench::int_option(argc, argv, "--rounds", 25);
  const int context = bench::int_option(argc, argv, "--context", 256);
  const auto runtime = make_runtime(Device::kCpu, threads);
  const auto model = bench::random_model(runtime, llama_300m());
  auto proposer = std::make_shared<JunkChain>();
  EngineOptions options;
  options.max_num_seqs = 1;
  Engine engine(model, options, nullptr, proposer, make_fixed_policy(64));
  Request request;
  request.prompt_token_ids.assign(static_cast<std::size_t>(context), 7);
  request.sampling.temperature = 0.0F;
  request.sampling.ignore_eos = true;
  request.sampling.max_tokens = 3500;
  engine.add_request(request);
  engine.step();

  const std::vector<std::int32_t> row_counts = {1, 2, 4, 6, 8, 12, 16};
  bench::ReadBandwidth bandwidth(num_threads(*runtime));
  std::vector<std::function<void()>> cases = {[&] { bandwidth.run(); }};
  for (const std::int32_t rows : row_counts) {
    cases.emplace_back([&, rows] {
      proposer->length = rows - 1;
      engine.step();
    });
  }
  const std::vector<bench::Times> times = bench::interleave(cases, rounds);
  const double bytes = streamed_bytes(llama_300m());
  const double rate = bandwidth.bytes() / times[0].median;
  const double floor = bytes / rate;
  std::printf("isa %s, %d threads, %.1f M parameters, %.1f MB streamed a pass, context %d\n",
              std::string(isa_name(*runtime)).c_str(), num_threads(*runtime),
              static_cast<double>(model->num_parameters()) / 1e6, bytes / 1e6, context);
  std::printf("read bandwidth %.1f GB/s: floor %.2f ms a pass (medians of %d rounds)\n", rate / 1e9,
              floor * 1e3, rounds);
  std::printf("%5s %10s %12s %10s\n", "rows", "ms/step", "% of floor", "vs 1 row");
  for (std::size_t i = 0; i < row_counts.size(); ++i) {
    const double seconds = times[i + 1].median;
    std::printf("%5d %10.2f %12.1f %10.2f\n", row_counts[i], seconds * 1e3, 100 * floor / seconds,
                seconds / times[1].median);
  }
  return 0;
}
