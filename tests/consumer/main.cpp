// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// An application that knows SmartSpec only as an installed package. Touches every public class, so
// that a shared library which hides one does not link.
#include <cstdio>
#include <map>
#include <memory>
#include <smartspec/draft_model.hpp>
#include <smartspec/engine.hpp>
#include <smartspec/error.hpp>
#include <smartspec/prompt_lookup.hpp>
#include <smartspec/safetensors.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace {

using smartspec::TokenId;

smartspec::ModelConfig tiny_config() {
  smartspec::ModelConfig config;
  config.vocab_size = 96;
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 16;
  config.max_position_embeddings = 128;
  config.tie_word_embeddings = true;
  return config;
}

/// Pseudo-random weights under Hugging Face's names, made on demand.
class Weights {
 public:
  explicit Weights(const smartspec::ModelConfig& config) : config_(config) {}

  std::optional<smartspec::TensorView> find(std::string_view name) {
    const bool norm = name.find("norm") != std::string_view::npos;
    const auto [rows, columns] = shape_of(name);
    if (columns == 0) return std::nullopt;
    std::vector<float>& values = store_[std::string(name)];
    values.resize(static_cast<std::size_t>(rows * columns));
    for (float& value : values) {
      state_ = state_ * 6364136223846793005U + 1442695040888963407U;
      const float unit = static_cast<float>(state_ >> 40) / 16777216.0F - 0.5F;
      value = norm ? 1.0F + 0.1F * unit : 0.3F * unit;
    }
    smartspec::TensorView view{.data = values.data(), .rank = norm ? 1 : 2};
    view.shape = norm ? decltype(view.shape){columns} : decltype(view.shape){rows, columns};
    return view;
  }

 private:
  std::pair<std::int64_t, std::int64_t> shape_of(std::string_view name) const {
    const auto has = [&](std::string_view part) { return name.find(part) != name.npos; };
    const std::int64_t hidden = config_.hidden_size;
    if (!name.ends_with(".weight")) return {0, 0};
    if (has("norm")) return {1, hidden};
    if (has("embed_tokens")) return {config_.vocab_size, hidden};
    if (has("q_proj")) return {config_.num_attention_heads * config_.head_dim, hidden};
    if (has("k_proj") || has("v_proj")) {
      return {config_.num_key_value_heads * config_.head_dim, hidden};
    }
    if (has("o_proj")) return {hidden, config_.num_attention_heads * config_.head_dim};
    if (has("gate_proj") || has("up_proj")) return {config_.intermediate_size, hidden};
    if (has("down_proj")) return {hidden, config_.intermediate_size};
    return {0, 0};
  }

  smartspec::ModelConfig config_;
  std::map<std::string, std::vector<float>> store_;
  std::uint64_t state_ = 1;
};

std::vector<TokenId> generate(const std::shared_ptr<const smartspec::Model>& model,
                              std::shared_ptr<smartspec::Proposer> proposer) {
  const auto stops = std::make_shared<const smartspec::StopVocabulary>();
  smartspec::Engine engine(
      model, {.max_num_seqs = 2}, stops, proposer,
      proposer ? smartspec::make_fixed_policy(3) : smartspec::make_off_policy());
  engine.add_request({.prompt_token_ids = {5, 6, 7, 8, 5, 6, 7, 8, 5, 6},
                      .sampling = {.seed = 7, .max_tokens = 24}});
  std::vector<TokenId> tokens;
  while (engine.has_unfinished()) {
    for (const smartspec::RequestOutput& output : engine.step()) {
      tokens.insert(tokens.end(), output.new_token_ids.begin(), output.new_token_ids.end());
    }
  }
  return engine.check_integrity().empty() ? tokens : std::vector<TokenId>{};
}

bool parts_alone() {
  smartspec::KvCache cache({.num_blocks = 4});
  const smartspec::SequenceId sequence = cache.add_sequence();
  std::vector<smartspec::KvMove> moves;
  if (!cache.reserve(sequence, 3, moves)) return false;
  cache.rollback(sequence);
  const std::vector<TokenId> drafted = {3, 4};
  const smartspec::TokenTree tree = smartspec::TokenTree::chain(drafted);
  smartspec::Sampler sampler({.temperature = 0.0F}, 1, drafted, 8,
                             std::make_shared<const smartspec::StopVocabulary>());
  smartspec::Verification verified;
  const std::vector<float> logits = {0, 0, 0, 1, 0, 0, 0, 0};  // always token 3
  const auto row = [&](std::int32_t) { return std::span<const float>(logits); };
  smartspec::verify_tree(tree, row, sampler, verified);
  return cache.check_integrity().empty() && verified.tokens == std::vector<TokenId>{3, 3};
}

bool errors_cross_the_border() {
  try {
    smartspec::SafetensorsFile file("no such file");
  } catch (const smartspec::Error&) {
    return true;
  } catch (const std::exception&) {
    return false;
  }
  return false;
}

}  // namespace

int main() {
  const smartspec::ModelConfig config = tiny_config();
  Weights weights(config);
  const auto runtime = smartspec::make_runtime(smartspec::Device::kCpu, 1);
  const auto model = std::make_shared<const smartspec::Model>(
      runtime, config, [&](std::string_view name) { return weights.find(name); });
  const auto lookup = std::make_shared<smartspec::PromptLookupProposer>();
  const auto draft = std::make_shared<smartspec::DraftModelProposer>(
      model, smartspec::DraftModelOptions{.max_num_seqs = 2}, config.vocab_size);

  const std::vector<TokenId> plain = generate(model, nullptr);
  const bool same = generate(model, lookup) == plain && generate(model, draft) == plain;
  std::printf("%zu tokens, the same with speculation: %s\n", plain.size(), same ? "yes" : "no");
  return plain.size() == 24 && same && parts_alone() && errors_cross_the_border() ? 0 : 1;
}
