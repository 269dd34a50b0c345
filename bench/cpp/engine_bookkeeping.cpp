// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What a step costs outside the model: scheduling, drafting, KV bookkeeping, verification, events.
// Bar: at most 0.2 ms per step at batch 64. The model is tiny; its time is subtracted, measured by
// the engine's own stage timers, and printed beside the rest.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "random_model.hpp"
#include "smartspec/engine.hpp"
#include "smartspec/prompt_lookup.hpp"

namespace {

using namespace smartspec;

ModelConfig small_config(std::int32_t vocab_size) {
  ModelConfig config;
  config.vocab_size = vocab_size;
  config.hidden_size = 64;
  config.intermediate_size = 64;
  config.num_hidden_layers = 1;
  config.num_attention_heads = 1;
  config.num_key_value_heads = 1;
  config.head_dim = 64;
  config.max_position_embeddings = 2048;
  return config;
}

/// Chains of a fixed length that cost nothing to make: the engine is what is measured.
class ConstantProposer final : public Proposer {
 public:
  [[nodiscard]] std::string_view name() const override { return "constant"; }
  void propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) override {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      for (std::int32_t depth = 0; depth < requests[i].max_depth; ++depth) {
        trees[i].add(static_cast<TokenId>(depth + 1), depth - 1, 0.5F);
      }
    }
  }
};

struct Row {
  double step = 0, model = 0, propose = 0, decide = 0, verify = 0;
  [[nodiscard]] double outside() const { return step - model; }
  [[nodiscard]] double rest() const { return step - model - propose - decide - verify; }
};

Row measure(std::int32_t batch, std::int32_t vocab_size, float temperature, std::int32_t draft,
            std::int32_t num_steps) {
  const auto model = bench::random_model(make_runtime(Device::kCpu, 1), small_config(vocab_size));
  EngineOptions options;
  options.max_num_seqs = batch;
  options.max_num_batched_tokens = 2048;
  Engine engine(model, options, nullptr, std::make_shared<ConstantProposer>(),
                draft > 0 ? make_fixed_policy(draft) : nullptr);
  for (std::int32_t i = 0; i < batch; ++i) {
    Request request;
    request.prompt_token_ids.assign(64, i % 50);
    request.sampling.temperature = temperature;
    request.sampling.seed = i;
    request.sampling.max_tokens = 1900;
    request.sampling.ignore_eos = true;
    engine.add_request(request);
  }
  for (int i = 0; i < 20; ++i) engine.step();
  std::vector<Row> rows;
  for (std::int32_t i = 0; i < num_steps; ++i) {
    const EngineStats before = engine.stats();
    engine.step();
    const EngineStats after = engine.stats();
    rows.push_back({after.step_seconds - before.step_seconds,
                    after.forward_seconds - before.forward_seconds,
                    after.propose_seconds - before.propose_seconds,
                    after.decision_seconds - before.decision_seconds,
                    after.verify_seconds - before.verify_seconds});
  }
  const auto middle = rows.begin() + static_cast<std::ptrdiff_t>(rows.size() / 2);
  std::nth_element(rows.begin(), middle, rows.end(),
                   [](const Row& a, const Row& b) { return a.outside() < b.outside(); });
  return *middle;
}

}  // namespace

int main(int argc, char** argv) {
  const int num_steps = argc > 1 ? std::atoi(argv[1]) : 400;
  std::printf("medians over %d steps, ms; outside = everything but the model\n", num_steps);
  std::printf("%5s %7s %5s %5s | %8s %8s %8s %8s %8s %8s\n", "batch", "vocab", "temp", "draft",
              "outside", "rest", "propose", "decide", "verify", "model");
  for (const std::int32_t batch : {1, 8, 64}) {
    for (const float temperature : {0.0F, 1.0F}) {
      for (const std::int32_t draft : {0, 4}) {
        const Row row = measure(batch, 4096, temperature, draft, num_steps);
        std::printf("%5d %7d %5.1f %5d | %8.4f %8.4f %8.4f %8.4f %8.4f %8.4f\n", batch, 4096,
                    static_cast<double>(temperature), draft, row.outside() * 1e3, row.rest() * 1e3,
                    row.propose * 1e3, row.decide * 1e3, row.verify * 1e3, row.model * 1e3);
      }
    }
  }
  return 0;
}
