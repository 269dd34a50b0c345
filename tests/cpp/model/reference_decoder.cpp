// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "model/reference_decoder.hpp"

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>

namespace smartspec::testing {
namespace {

using Vector = std::vector<double>;

std::uint16_t f16_bits(double value) {
  // Values of these tests are normal numbers of f16; rounding by truncation is as good as any.
  const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(value));
  const auto exponent = static_cast<int>((bits >> 23) & 0xFF) - 112;
  if (exponent <= 0) return static_cast<std::uint16_t>((bits >> 16) & 0x8000);
  return static_cast<std::uint16_t>(((bits >> 16) & 0x8000U) |
                                    (static_cast<std::uint32_t>(exponent) << 10) |
                                    ((bits >> 13) & 0x3FFU));
}

double f16_value(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  if (exponent == 0) return 0.0;
  const double magnitude = std::ldexp(1024 + (bits & 0x3FF), exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

void append(std::vector<unsigned char>& out, const void* data, std::size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  out.insert(out.end(), bytes, bytes + size);
}

/// Stores `value` and returns what the stored bits mean.
double store(std::vector<unsigned char>& out, DType dtype, double value) {
  if (dtype == DType::kFloat32) {
    const auto stored = static_cast<float>(value);
    append(out, &stored, sizeof(stored));
    return stored;
  }
  if (dtype == DType::kFloat16) {
    const std::uint16_t bits = f16_bits(value);
    append(out, &bits, sizeof(bits));
    return f16_value(bits);
  }
  const std::uint32_t wide = std::bit_cast<std::uint32_t>(static_cast<float>(value)) & 0xFFFF0000U;
  const auto bits = static_cast<std::uint16_t>(wide >> 16);
  append(out, &bits, sizeof(bits));
  return std::bit_cast<float>(wide);
}

/// To the nearest multiple of the value's 8-bit unit in the last place, ties to even.
double to_bf16(double value) {
  if (value == 0.0) return value;
  int exponent = 0;
  (void)std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(value, 8 - exponent)), exponent - 8);
}

Vector rms_norm(const Vector& x, const Vector& weight, double eps) {
  double sum = 0.0;
  for (const double v : x) sum += v * v;
  const double scale = 1.0 / std::sqrt(sum / static_cast<double>(x.size()) + eps);
  Vector out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) out[i] = x[i] * scale * weight[i];
  return out;
}

class Reference {
 public:
  Reference(const ModelConfig& config, const Weights& weights, Rounding rounding)
      : c_(config), w_(weights), rounding_(rounding) {}

  std::vector<Vector> run(const std::vector<ReferenceRow>& rows) const {
    std::vector<Vector> x;
    const Vector& table = w_.values("model.embed_tokens.weight");
    const auto hidden = static_cast<std::size_t>(c_.hidden_size);
    for (const ReferenceRow& row : rows) {
      const auto start = table.begin() + static_cast<std::ptrdiff_t>(row.token) * c_.hidden_size;
      x.emplace_back(start, start + static_cast<std::ptrdiff_t>(hidden));
    }
    for (std::int32_t layer = 0; layer < c_.num_hidden_layers; ++layer) run_layer(layer, rows, x);
    std::vector<Vector> logits;
    const Vector& head =
        w_.values(c_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
    for (const Vector& row : x) {
      logits.push_back(
          product(head, rms_norm(row, w_.values("model.norm.weight"), c_.rms_norm_eps)));
    }
    return logits;
  }

 private:
  Vector product(const Vector& matrix, Vector x) const {
    if (rounding_.linear_inputs) {
      for (double& value : x) value = to_bf16(value);
    }
    Vector out(matrix.size() / x.size());
    for (std::size_t o = 0; o < out.size(); ++o) {
      for (std::size_t k = 0; k < x.size(); ++k) out[o] += matrix[o * x.size() + k] * x[k];
    }
    return out;
  }

  Vector linear(const std::string& name, bool bias, const Vector& x) const {
    Vector out = product(w_.values(name + ".weight"), x);
    if (bias) {
      const Vector& b = w_.values(name + ".bias");
      for (std::size_t o = 0; o < out.size(); ++o) out[o] += b[o];
    }
    return out;
  }

  double frequency(std::size_t i) const {
    const double plain = 1.0 / std::pow(c_.rope_theta, 2.0 * static_cast<double>(i) / c_.head_dim);
    const RopeScaling& s = c_.rope_scaling;
    if (s.type == RopeScaling::Type::kNone) return plain;
    if (s.type == RopeScaling::Type::kLinear) return plain / s.factor;
    const double turns = s.original_max_position_embeddings * plain / (2.0 * std::acos(-1.0));
    if (turns > s.high_freq_factor) return plain;
    if (turns < s.low_freq_factor) return plain / s.factor;
    const double keep = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
    return keep * plain + (1.0 - keep) * plain / s.factor;
  }

  Vector rotated(const Vector& head, std::int32_t position) const {
    const std::size_t half = head.size() / 2;
    Vector out(head.size());
    for (std::size_t i = 0; i < half; ++i) {
      const double angle = position * frequency(i);
      out[i] = head[i] * std::cos(angle) - head[i + half] * std::sin(angle);
      out[i + half] = head[i + half] * std::cos(angle) + head[i] * std::sin(angle);
    }
    return out;
  }

  Vector cached(Vector head) const {
    if (rounding_.kv) {
      for (double& value : head) value = to_bf16(value);
    }
    return head;
  }

  std::vector<Vector> heads(const Vector& x, const std::string& norm) const {
    std::vector<Vector> out;
    for (auto it = x.begin(); it != x.end(); it += c_.head_dim) {
      out.emplace_back(it, it + c_.head_dim);
      if (!norm.empty()) out.back() = rms_norm(out.back(), w_.values(norm), c_.rms_norm_eps);
    }
    return out;
  }

  void run_layer(std::int32_t layer, const std::vector<ReferenceRow>& rows,
                 std::vector<Vector>& x) const {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const std::string attention = prefix + "self_attn.";
    std::vector<std::vector<Vector>> q;
    std::vector<std::vector<Vector>> k;
    std::vector<std::vector<Vector>> v;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const Vector in =
          rms_norm(x[r], w_.values(prefix + "input_layernorm.weight"), c_.rms_norm_eps);
      q.push_back(heads(linear(attention + "q_proj", c_.attention_bias, in),
                        c_.qk_norm ? attention + "q_norm.weight" : ""));
      k.push_back(heads(linear(attention + "k_proj", c_.attention_bias, in),
                        c_.qk_norm ? attention + "k_norm.weight" : ""));
      v.push_back(heads(linear(attention + "v_proj", c_.attention_bias, in), ""));
      for (Vector& head : q.back()) head = rotated(head, rows[r].position);
      for (Vector& head : k.back()) head = cached(rotated(head, rows[r].position));
      for (Vector& head : v.back()) head = cached(head);
    }
    for (std::size_t r = 0; r < rows.size(); ++r) {
      Vector attended;
      for (std::size_t h = 0; h < q[r].size(); ++h) {
        const std::size_t group = h * k[r].size() / q[r].size();
        const Vector head = attend(layer, rows, r, q[r][h], group, k, v);
        attended.insert(attended.end(), head.begin(), head.end());
      }
      add(x[r], linear(attention + "o_proj", c_.attention_output_bias, attended));
      const Vector in =
          rms_norm(x[r], w_.values(prefix + "post_attention_layernorm.weight"), c_.rms_norm_eps);
      Vector gate = linear(prefix + "mlp.gate_proj", c_.mlp_bias, in);
      const Vector up = linear(prefix + "mlp.up_proj", c_.mlp_bias, in);
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
      add(x[r], linear(prefix + "mlp.down_proj", c_.mlp_bias, gate));
    }
  }

  Vector attend(std::int32_t layer, const std::vector<ReferenceRow>& rows, std::size_t r,
                const Vector& q, std::size_t group, const std::vector<std::vector<Vector>>& k,
                const std::vector<std::vector<Vector>>& v) const {
    const bool slides = c_.sliding_window > 0 && layer >= c_.max_window_layers;
    double total = 0.0;
    Vector out(q.size());
    for (const std::int32_t seen : rows[r].visible) {
      const auto s = static_cast<std::size_t>(seen);
      if (slides && rows[s].position <= rows[r].position - c_.sliding_window) continue;
      double score = 0.0;
      for (std::size_t i = 0; i < q.size(); ++i) score += q[i] * k[s][group][i];
      const double weight = std::exp(score / std::sqrt(static_cast<double>(c_.head_dim)));
      total += weight;
      for (std::size_t i = 0; i < q.size(); ++i) out[i] += weight * v[s][group][i];
    }
    for (double& value : out) value /= total;
    return out;
  }

  static void add(Vector& x, const Vector& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  const ModelConfig& c_;
  const Weights& w_;
  Rounding rounding_;
};

}  // namespace

Weights::Weights(const ModelConfig& c, DType stored, std::uint64_t seed) : stored_(stored) {
  const std::int64_t q = std::int64_t{c.num_attention_heads} * c.head_dim;
  const std::int64_t kv = std::int64_t{c.num_key_value_heads} * c.head_dim;
  const std::int64_t hidden = c.hidden_size;
  const std::int64_t inner = c.intermediate_size;
  const auto matrix = [&](const std::string& name, std::int64_t out, std::int64_t in, bool bias) {
    add(name + ".weight", {out, in}, 0.0, 1.5 / std::sqrt(static_cast<double>(in)), ++seed);
    if (bias) add(name + ".bias", {out}, 0.0, 0.3, ++seed);
  };
  const auto norm = [&](const std::string& name, std::int64_t size) {
    add(name + ".weight", {size}, 1.0, 0.2, ++seed);
  };
  add("model.embed_tokens.weight", {c.vocab_size, hidden}, 0.0, 1.0, ++seed);
  for (std::int32_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    norm(prefix + "input_layernorm", hidden);
    matrix(prefix + "self_attn.q_proj", q, hidden, c.attention_bias);
    matrix(prefix + "self_attn.k_proj", kv, hidden, c.attention_bias);
    matrix(prefix + "self_attn.v_proj", kv, hidden, c.attention_bias);
    if (c.qk_norm) norm(prefix + "self_attn.q_norm", c.head_dim);
    if (c.qk_norm) norm(prefix + "self_attn.k_norm", c.head_dim);
    matrix(prefix + "self_attn.o_proj", hidden, q, c.attention_output_bias);
    norm(prefix + "post_attention_layernorm", hidden);
    matrix(prefix + "mlp.gate_proj", inner, hidden, c.mlp_bias);
    matrix(prefix + "mlp.up_proj", inner, hidden, c.mlp_bias);
    matrix(prefix + "mlp.down_proj", hidden, inner, c.mlp_bias);
  }
  norm("model.norm", hidden);
  if (!c.tie_word_embeddings) matrix("lm_head", c.vocab_size, hidden, false);
}

void Weights::add(const std::string& name, std::vector<std::int64_t> shape, double center,
                  double spread, std::uint64_t seed) {
  Tensor tensor;
  std::int64_t count = 1;
  tensor.view.rank = static_cast<std::int32_t>(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) {
    tensor.view.shape[i] = shape[i];
    count *= shape[i];
  }
  std::mt19937_64 rng(seed * 0x9E3779B97F4A7C15U);
  std::normal_distribution<double> normal(center, spread);
  for (std::int64_t i = 0; i < count; ++i) {
    tensor.values.push_back(store(tensor.bytes, stored_, normal(rng)));
  }
  tensor.view.dtype = stored_;
  tensor.view.data = tensor.bytes.data();
  tensors_.emplace(name, std::move(tensor));
}

std::optional<TensorView> Weights::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? std::nullopt : std::optional(it->second.view);
}

const std::vector<double>& Weights::values(const std::string& name) const {
  return tensors_.at(name).values;
}

WeightSource Weights::source() const {
  return [this](std::string_view name) { return find(name); };
}

std::vector<std::string> Weights::names() const {
  std::vector<std::string> out;
  for (const auto& item : tensors_) out.push_back(item.first);
  return out;
}

std::vector<std::vector<double>> reference_logits(const ModelConfig& config, const Weights& weights,
                                                  const std::vector<ReferenceRow>& rows,
                                                  Rounding rounding) {
  return Reference(config, weights, rounding).run(rows);
}

std::vector<ReferenceRow> reference_chain(const std::vector<std::int32_t>& tokens) {
  std::vector<ReferenceRow> rows;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    ReferenceRow row{tokens[i], static_cast<std::int32_t>(i), {}};
    for (std::size_t j = 0; j <= i; ++j) row.visible.push_back(static_cast<std::int32_t>(j));
    rows.push_back(row);
  }
  return rows;
}

}  // namespace smartspec::testing
