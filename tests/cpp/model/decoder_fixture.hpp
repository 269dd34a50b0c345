// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Small models of every family feature, and sequences over a Decoder's cache in scattered blocks.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "model/decoder.hpp"
#include "model/reference_decoder.hpp"
#include "smartspec/error.hpp"

namespace smartspec::testing {

struct NamedConfig {
  std::string name;
  ModelConfig config;
};

inline ModelConfig base_config() {
  ModelConfig c;
  c.vocab_size = 53;
  c.hidden_size = 48;
  c.intermediate_size = 72;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  c.head_dim = 12;
  c.max_position_embeddings = 512;
  return c;
}

/// One per feature that the families differ in.
inline std::vector<NamedConfig> family_configs() {
  std::vector<NamedConfig> out;
  const auto add = [&](const char* name, auto change) {
    out.push_back({name, base_config()});
    change(out.back().config);
  };
  add("Llama", [](ModelConfig&) {});
  add("OneLayerTied", [](ModelConfig& c) {
    c.num_hidden_layers = 1;
    c.tie_word_embeddings = true;
  });
  add("LlamaMultiHead", [](ModelConfig& c) { c.num_key_value_heads = 4; });
  add("LlamaMultiQuery", [](ModelConfig& c) { c.num_key_value_heads = 1; });
  add("LlamaLinearRope", [](ModelConfig& c) {
    c.rope_scaling.type = RopeScaling::Type::kLinear;
    c.rope_scaling.factor = 4.0;
  });
  add("Llama3Rope", [](ModelConfig& c) {
    c.rope_theta = 500.0;
    c.rope_scaling = {RopeScaling::Type::kLlama3, 8.0, 1.0, 4.0, 64};
  });
  add("LlamaAllBiases",
      [](ModelConfig& c) { c.attention_bias = c.attention_output_bias = c.mlp_bias = true; });
  add("MistralWindow", [](ModelConfig& c) { c.sliding_window = 7; });
  add("MistralOddSizes", [](ModelConfig& c) {
    c.sliding_window = 20;
    c.hidden_size = 37;
    c.intermediate_size = 51;
    c.num_attention_heads = 6;
    c.num_key_value_heads = 3;
    c.head_dim = 10;
    c.rms_norm_eps = 1e-3;
  });
  add("Qwen2", [](ModelConfig& c) {
    c.attention_bias = true;
    c.tie_word_embeddings = true;
    c.rope_theta = 1e6;
  });
  add("Qwen2Window", [](ModelConfig& c) {
    c.attention_bias = true;
    c.sliding_window = 9;
    c.max_window_layers = 2;
  });
  add("Qwen3", [](ModelConfig& c) {
    c.qk_norm = true;
    c.head_dim = 32;
    c.tie_word_embeddings = true;
  });
  return out;
}

inline std::vector<TokenId> random_tokens(std::size_t count, std::int32_t vocab,
                                          std::mt19937_64& rng) {
  std::vector<TokenId> out(count);
  for (TokenId& token : out) {
    token = static_cast<TokenId>(rng() % static_cast<std::uint64_t>(vocab));
  }
  return out;
}

/// A runtime with the named kernels, or null when this CPU lacks them.
inline std::shared_ptr<Runtime> runtime_with(const char* isa, std::int32_t num_threads) {
  const char* before = std::getenv("SMARTSPEC_ISA");
  const std::string saved = before == nullptr ? "" : before;
  ::setenv("SMARTSPEC_ISA", isa, 1);
  std::shared_ptr<Runtime> runtime;
  try {
    runtime = make_runtime(Device::kCpu, num_threads);
  } catch (const DeviceError&) {
    runtime = nullptr;
  }
  if (before == nullptr) {
    ::unsetenv("SMARTSPEC_ISA");
  } else {
    ::setenv("SMARTSPEC_ISA", saved.c_str(), 1);
  }
  return runtime;
}

inline std::shared_ptr<const Model> make_model(const std::shared_ptr<Runtime>& runtime,
                                               const ModelConfig& config, const Weights& weights,
                                               DType dtype) {
  return std::make_shared<const Model>(runtime, config, weights.source(),
                                       ModelOptions{.dtype = dtype, .keep_alive = nullptr});
}

using Logits = std::vector<std::vector<float>>;

/// A sequence with its own share of a decoder's blocks, in random order.
class Paged {
 public:
  explicit Paged(std::vector<BlockId> blocks, std::int32_t block_size)
      : blocks_(std::move(blocks)), block_size_(block_size) {}

  [[nodiscard]] SlotId slot(std::int32_t index) const {
    return blocks_[static_cast<std::size_t>(index / block_size_)] * block_size_ +
           index % block_size_;
  }
  [[nodiscard]] std::int32_t length() const { return length_; }
  void set_length(std::int32_t length) { length_ = length; }

  /// Adds causal rows, then tree rows [tree_start, tree.size()) whose tokens are `tree`. Logits are
  /// asked for from the rows in `wanted` (relative to this sequence), ascending.
  void add_rows(ForwardBatch& batch, const std::vector<TokenId>& chain,
                const std::vector<TokenId>& tree, const std::vector<std::int32_t>& parents,
                std::int32_t tree_start, const std::vector<std::int32_t>& wanted) {
    const std::int32_t first = batch.num_rows();
    const auto push = [&](TokenId token, std::int32_t position, std::int32_t index) {
      batch.tokens.push_back(token);
      batch.positions.push_back(position);
      batch.slots.push_back(slot(index));
    };
    for (const TokenId token : chain) {
      push(token, length_, length_);
      ++length_;
    }
    std::vector<std::int32_t> depths(tree.size());
    for (std::size_t node = 0; node < tree.size(); ++node) {
      const std::int32_t parent = parents[node];
      depths[node] = parent < 0 ? 0 : depths[static_cast<std::size_t>(parent)] + 1;
      const auto index = static_cast<std::int32_t>(node);
      if (index >= tree_start) push(tree[node], length_ + depths[node], length_ + index);
    }
    AttentionSequence s;
    s.first_row = first;
    s.num_causal = static_cast<std::int32_t>(chain.size());
    s.context_len = length_ - s.num_causal;
    s.num_tree = static_cast<std::int32_t>(tree.size()) - tree_start;
    s.tree_start = tree_start;
    s.tree_parents = parents;
    s.block_table = blocks_;
    batch.sequences.push_back(s);
    for (const std::int32_t row : wanted) batch.logits_rows.push_back(first + row);
  }

 private:
  std::vector<BlockId> blocks_;
  std::int32_t block_size_;
  std::int32_t length_ = 0;
};

/// A decoder with room for a few sequences.
class Lab {
 public:
  static constexpr std::int32_t kBlockSize = 16;
  static constexpr std::int32_t kBlocksEach = 12;

  Lab(std::shared_ptr<const Model> model, DType kv_dtype, std::int32_t num_sequences = 4)
      : decoder(model, kBlocksEach * num_sequences, kBlockSize, kv_dtype, 512),
        vocab(static_cast<std::size_t>(model->config().vocab_size)) {
    std::vector<BlockId> blocks(static_cast<std::size_t>(kBlocksEach * num_sequences));
    std::iota(blocks.begin(), blocks.end(), 0);
    std::mt19937_64 rng(7);
    std::shuffle(blocks.begin(), blocks.end(), rng);
    for (auto it = blocks.begin(); it != blocks.end(); it += kBlocksEach) {
      free_.emplace_back(it, it + kBlocksEach);
    }
  }

  /// Sequences reuse blocks that hold stale K and V of the earlier ones, as in serving.
  Paged sequence() {
    std::rotate(free_.begin(), free_.begin() + 1, free_.end());
    return Paged(free_.back(), kBlockSize);
  }

  Logits run(const ForwardBatch& batch) {
    const std::span<const float> flat = decoder.forward(batch);
    Logits out;
    for (std::size_t i = 0; i < flat.size(); i += vocab) {
      out.emplace_back(flat.begin() + static_cast<std::ptrdiff_t>(i),
                       flat.begin() + static_cast<std::ptrdiff_t>(i + vocab));
    }
    return out;
  }

  /// One pass over one sequence, logits of all rows.
  Logits chain(Paged& sequence, const std::vector<TokenId>& tokens) {
    ForwardBatch batch;
    std::vector<std::int32_t> wanted(tokens.size());
    std::iota(wanted.begin(), wanted.end(), 0);
    sequence.add_rows(batch, tokens, {}, {}, 0, wanted);
    return run(batch);
  }

  Logits one_by_one(Paged& sequence, const std::vector<TokenId>& tokens) {
    Logits out;
    for (const TokenId token : tokens) out.push_back(chain(sequence, {token}).front());
    return out;
  }

  Decoder decoder;
  std::size_t vocab;

 private:
  std::vector<std::vector<BlockId>> free_;
};

/// Empty parents would be a dangling view once the batch is built: keep trees in one place.
struct Tree {
  std::vector<TokenId> tokens;
  std::vector<std::int32_t> parents;

  [[nodiscard]] std::vector<std::int32_t> path(std::int32_t node) const {
    std::vector<std::int32_t> out;
    for (; node >= 0; node = parents[static_cast<std::size_t>(node)]) out.push_back(node);
    std::reverse(out.begin(), out.end());
    return out;
  }
  [[nodiscard]] std::vector<TokenId> tokens_to(std::int32_t node) const {
    std::vector<TokenId> out;
    for (const std::int32_t i : path(node)) out.push_back(tokens[static_cast<std::size_t>(i)]);
    return out;
  }
};

inline Tree random_tree(std::int32_t size, std::int32_t vocab, std::mt19937_64& rng) {
  Tree tree;
  tree.tokens = random_tokens(static_cast<std::size_t>(size), vocab, rng);
  for (std::int32_t i = 0; i < size; ++i) {
    // Mostly near the newest node: paths grow deep, with some branches.
    const auto back = static_cast<std::int32_t>(rng() % 4);
    tree.parents.push_back(std::max(-1, i - 1 - back));
  }
  return tree;
}

}  // namespace smartspec::testing
