// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A Llama-family decoder built from a configuration and named weight views, on one device.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "smartspec/export.hpp"
#include "smartspec/tensor_view.hpp"
#include "smartspec/types.hpp"

namespace smartspec {

/// Long-context scaling of rotary embeddings; names as in Hugging Face's rope_scaling.
struct RopeScaling {
  enum class Type : std::uint8_t { kNone, kLinear, kLlama3 };
  Type type = Type::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;                          // kLlama3
  double high_freq_factor = 4.0;                         // kLlama3
  std::int32_t original_max_position_embeddings = 8192;  // kLlama3
};

/// Llama 2/3, Mistral, Qwen2/2.5 and Qwen3 differ only in these fields. Field names as in
/// config.json.
struct SMARTSPEC_API ModelConfig {
  std::int32_t vocab_size = 0;
  std::int32_t hidden_size = 0;
  std::int32_t intermediate_size = 0;
  std::int32_t num_hidden_layers = 0;
  std::int32_t num_attention_heads = 0;
  std::int32_t num_key_value_heads = 0;
  std::int32_t head_dim = 0;  // 0: hidden_size / num_attention_heads
  std::int32_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  std::int32_t sliding_window = 0;     // 0: full attention, else keys with position > p - window
  std::int32_t max_window_layers = 0;  // layers [0, this) stay full when sliding (Qwen2); else 0
  bool attention_bias = false;         // q, k, v biases (Qwen2)
  bool attention_output_bias = false;  // o_proj bias (Llama's attention_bias: true)
  bool mlp_bias = false;
  bool qk_norm = false;  // RMS norm of q and k per head (Qwen3)
  bool tie_word_embeddings = false;

  /// Throws FormatError naming the field, its value and what is allowed.
  void validate() const;
};

/// Finds a weight by its Hugging Face name ("model.layers.0.self_attn.q_proj.weight", ...); empty
/// when there is none. Called during Model construction only.
using WeightSource = std::function<std::optional<TensorView>(std::string_view name)>;

class Runtime;

/// One device with its threads; models that share it (a target and its draft) share the threads.
/// CPU: num_threads 0 takes the cores this process may run on. Throws DeviceError when the device
/// is absent, std::invalid_argument on a bad thread count.
SMARTSPEC_API std::shared_ptr<Runtime> make_runtime(Device device, std::int32_t num_threads = 0);
SMARTSPEC_API bool is_available(Device device) noexcept;
/// Name of the kernel set chosen at start: "avx512_bf16", "avx512", "avx2", "generic".
/// SMARTSPEC_ISA=<name> in the environment forces a lesser one.
SMARTSPEC_API std::string_view isa_name(const Runtime& runtime) noexcept;
SMARTSPEC_API std::int32_t num_threads(const Runtime& runtime) noexcept;

struct ModelOptions {
  std::optional<DType> dtype{};  // kFloat32 or kBFloat16; empty: as stored, kFloat32 for float16
  std::shared_ptr<void> keep_alive{};  // whatever owns the memory behind the weight views
};

/// Weights, packed for the device; immutable after construction, shareable between engines.
class SMARTSPEC_API Model {
 public:
  /// Takes every weight it needs from `weights`. Embeddings and norms of the wanted dtype are used
  /// where they lie (keep_alive holds them); linear layers are repacked once. Throws FormatError on
  /// a missing weight, a wrong shape or dtype.
  Model(std::shared_ptr<Runtime> runtime, const ModelConfig& config, const WeightSource& weights,
        const ModelOptions& options = {});
  ~Model();
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;

  [[nodiscard]] const ModelConfig& config() const noexcept;  // with head_dim filled in
  [[nodiscard]] DType dtype() const noexcept;
  [[nodiscard]] const std::shared_ptr<Runtime>& runtime() const noexcept;
  [[nodiscard]] std::int64_t num_parameters() const noexcept;
  [[nodiscard]] std::int64_t bytes_per_kv_token(DType kv_dtype) const noexcept;

  struct Impl;  // internal: cpp/src/model
  [[nodiscard]] const Impl& impl() const noexcept;

 private:
  std::unique_ptr<Impl> impl_;
};

/// Logits [num_tokens, vocab_size] of a whole sequence in one pass, for tests and evaluation.
/// Throws std::invalid_argument on ids out of range or more tokens than max_position_embeddings.
SMARTSPEC_API std::vector<float> forward_logits(const std::shared_ptr<const Model>& model,
                                                std::span<const TokenId> tokens);

}  // namespace smartspec
