// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Embedding the engine in C++: builds the shipped target model from its safetensors file and
// generates tokens with prompt lookup.
//
//   load_safetensors models/target/model.safetensors [prompt token ids]
#include <charconv>
#include <cstring>
#include <exception>
#include <iostream>
#include <memory>
#include <vector>

#include "smartspec/engine.hpp"
#include "smartspec/prompt_lookup.hpp"
#include "smartspec/safetensors.hpp"

namespace {

// What models/target/config.json says. Any loader may fill this in.
smartspec::ModelConfig shipped_target() {
  smartspec::ModelConfig config;
  config.vocab_size = 4096;
  config.hidden_size = 384;
  config.intermediate_size = 1024;
  config.num_hidden_layers = 8;
  config.num_attention_heads = 6;
  config.num_key_value_heads = 3;
  config.head_dim = 64;
  config.max_position_embeddings = 2048;
  config.tie_word_embeddings = true;
  return config;
}

int run(const char* path, const std::vector<smartspec::TokenId>& prompt) {
  const auto runtime = smartspec::make_runtime(smartspec::Device::kCpu);
  const smartspec::SafetensorsFile file(path);
  const auto model = std::make_shared<const smartspec::Model>(
      runtime, shipped_target(), [&](std::string_view name) { return file.find(name); },
      smartspec::ModelOptions{.dtype = {}, .keep_alive = file.mapping()});
  std::cerr << model->num_parameters() << " parameters, " << smartspec::isa_name(*runtime)
            << " kernels\n";

  const auto stops = std::make_shared<smartspec::StopVocabulary>();
  stops->eos_token_ids = {0};
  smartspec::Engine engine(model, {}, stops, std::make_shared<smartspec::PromptLookupProposer>(),
                           smartspec::make_fixed_policy(5));
  smartspec::Request request;
  request.prompt_token_ids = prompt;
  request.sampling.temperature = 0.0F;
  request.sampling.max_tokens = 64;
  engine.add_request(request);
  while (engine.has_unfinished()) {
    for (const smartspec::RequestOutput& output : engine.step()) {
      for (const smartspec::TokenId token : output.new_token_ids) std::cout << token << ' ';
    }
  }
  std::cout << '\n';
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<smartspec::TokenId> prompt;
  for (int i = 2; i < argc; ++i) {
    const char* end = argv[i] + std::strlen(argv[i]);
    if (std::from_chars(argv[i], end, prompt.emplace_back()).ptr != end) argc = 0;
  }
  if (prompt.empty()) prompt = {0};
  if (argc < 2) {
    std::cerr << "usage: load_safetensors <model.safetensors> [prompt token ids]\n";
    return 2;
  }
  try {
    return run(argv[1], prompt);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
