// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/model.hpp"

#include <array>
#include <stdexcept>
#include <string>
#include <utility>

#include "model/model_impl.hpp"
#include "model/weights.hpp"
#include "smartspec/error.hpp"

namespace smartspec {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";

using Part = std::pair<std::string, std::int32_t>;

DType wanted_dtype(const ModelConfig& config, const WeightSource& weights,
                   const ModelOptions& options, Backend& backend) {
  if (options.dtype) {
    if (*options.dtype == DType::kFloat32 || *options.dtype == DType::kBFloat16) {
      return *options.dtype;
    }
    throw std::invalid_argument(std::string("dtype = ") + name_of(*options.dtype) +
                                "; allowed: float32, bfloat16");
  }
  const std::array<std::int64_t, 2> shape{config.vocab_size, config.hidden_size};
  const DType stored =
      WeightLoader(weights, backend, DType::kFloat32).find(kEmbedding, shape).dtype;
  // float16 widens: float32 holds it exactly, bfloat16 would drop three bits.
  return stored == DType::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
}

/// Embedding table and, when tied, the language-model head.
void load_embedding(Model::Impl& m, WeightLoader& loader, const std::shared_ptr<void>& keep_alive) {
  Backend& backend = m.runtime->backend();
  const std::array<std::int64_t, 2> shape{m.config.vocab_size, m.config.hidden_size};
  const LoadedWeight table = loader.load(kEmbedding, shape);
  if (m.config.tie_word_embeddings) {
    m.lm_head = backend.pack_linear(std::array{table.view}, m.dtype);
  }
  if (table.storage.empty() && backend.is_host_visible()) {
    m.embedding = table.view.data;
    m.keep_alive = keep_alive;
    return;
  }
  m.embedding_storage = backend.allocate(table.view.num_bytes());
  backend.upload(m.embedding_storage.data(), table.view.data, table.view.num_bytes());
  m.embedding = m.embedding_storage.data();
}

LayerWeights load_layer(const Model::Impl& m, WeightLoader& loader, std::int32_t index) {
  const ModelConfig& c = m.config;
  const std::string prefix = "model.layers." + std::to_string(index) + ".";
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  LayerWeights layer;
  layer.input_norm =
      loader.vectors(std::array{Part(prefix + "input_layernorm.weight", c.hidden_size)});
  layer.qkv = loader.linear(std::array{Part(attention + "q_proj.weight", m.q_size()),
                                       Part(attention + "k_proj.weight", m.kv_size()),
                                       Part(attention + "v_proj.weight", m.kv_size())},
                            c.hidden_size);
  if (c.attention_bias) {
    layer.qkv_bias = loader.vectors(std::array{Part(attention + "q_proj.bias", m.q_size()),
                                               Part(attention + "k_proj.bias", m.kv_size()),
                                               Part(attention + "v_proj.bias", m.kv_size())});
  }
  if (c.qk_norm) {
    layer.q_norm = loader.vectors(std::array{Part(attention + "q_norm.weight", c.head_dim)});
    layer.k_norm = loader.vectors(std::array{Part(attention + "k_norm.weight", c.head_dim)});
  }
  layer.output =
      loader.linear(std::array{Part(attention + "o_proj.weight", c.hidden_size)}, m.q_size());
  if (c.attention_output_bias) {
    layer.output_bias = loader.vectors(std::array{Part(attention + "o_proj.bias", c.hidden_size)});
  }
  layer.post_attention_norm =
      loader.vectors(std::array{Part(prefix + "post_attention_layernorm.weight", c.hidden_size)});
  layer.gate_up = loader.linear(std::array{Part(mlp + "gate_proj.weight", c.intermediate_size),
                                           Part(mlp + "up_proj.weight", c.intermediate_size)},
                                c.hidden_size);
  layer.down =
      loader.linear(std::array{Part(mlp + "down_proj.weight", c.hidden_size)}, c.intermediate_size);
  if (c.mlp_bias) {
    layer.gate_up_bias =
        loader.vectors(std::array{Part(mlp + "gate_proj.bias", c.intermediate_size),
                                  Part(mlp + "up_proj.bias", c.intermediate_size)});
    layer.down_bias = loader.vectors(std::array{Part(mlp + "down_proj.bias", c.hidden_size)});
  }
  if (c.sliding_window > 0 && index >= c.max_window_layers) layer.sliding_window = c.sliding_window;
  return layer;
}

}  // namespace

Model::Model(std::shared_ptr<Runtime> runtime, const ModelConfig& config,
             const WeightSource& weights, const ModelOptions& options)
    : impl_(std::make_unique<Impl>()) {
  if (runtime == nullptr) throw std::invalid_argument("runtime is null");
  if (!weights) throw std::invalid_argument("weights: the weight source is empty");
  config.validate();
  Impl& m = *impl_;
  m.runtime = std::move(runtime);
  m.config = config;
  if (m.config.head_dim == 0) m.config.head_dim = config.hidden_size / config.num_attention_heads;

  const std::lock_guard lock(m.runtime->mutex());
  Backend& backend = m.runtime->backend();
  m.dtype = wanted_dtype(m.config, weights, options, backend);
  WeightLoader loader(weights, backend, m.dtype);
  load_embedding(m, loader, options.keep_alive);
  for (std::int32_t i = 0; i < m.config.num_hidden_layers; ++i) {
    m.layers.push_back(load_layer(m, loader, i));
  }
  m.final_norm = loader.vectors(std::array{Part("model.norm.weight", m.config.hidden_size)});
  if (!m.config.tie_word_embeddings) {
    m.lm_head = loader.linear(std::array{Part("lm_head.weight", m.config.vocab_size)},
                              m.config.hidden_size);
  }
  m.num_parameters = loader.num_parameters();
}

Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

const ModelConfig& Model::config() const noexcept { return impl_->config; }
DType Model::dtype() const noexcept { return impl_->dtype; }
const std::shared_ptr<Runtime>& Model::runtime() const noexcept { return impl_->runtime; }
std::int64_t Model::num_parameters() const noexcept { return impl_->num_parameters; }
const Model::Impl& Model::impl() const noexcept { return *impl_; }

std::int64_t Model::bytes_per_kv_token(DType kv_dtype) const noexcept {
  return std::int64_t{2} * impl_->config.num_hidden_layers * impl_->kv_size() *
         static_cast<std::int64_t>(size_of(kv_dtype));
}

}  // namespace smartspec
