// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>

#include "smartspec/error.hpp"
#include "smartspec/model.hpp"

namespace smartspec {
namespace {

// Caps far above any known model; with them every product of two fields that the model computes
// stays inside 64 bits, and every row of activations inside 32 bits.
constexpr std::int32_t kMaxVocab = 1 << 24;
constexpr std::int32_t kMaxWidth = 1 << 20;
constexpr std::int32_t kMaxLayers = 1024;
constexpr std::int32_t kMaxHeads = 4096;
constexpr std::int32_t kMaxHeadDim = 256;
constexpr std::int32_t kMaxPositions = 1 << 26;
constexpr std::int32_t kMaxInt = std::numeric_limits<std::int32_t>::max();

template <class T>
[[noreturn]] void fail(std::string_view field, T value, std::string_view allowed) {
  std::ostringstream out;
  out << "config: " << field << " = " << value << "; allowed: " << allowed;
  throw FormatError(out.str());
}

void check_range(std::string_view field, std::int32_t value, std::int32_t low, std::int32_t high) {
  if (value < low || value > high) {
    fail(field, value, "[" + std::to_string(low) + ", " + std::to_string(high) + "]");
  }
}

/// Also refuses NaN.
void check_range(std::string_view field, double value, double low, double high,
                 std::string_view allowed) {
  if (!(value >= low && value <= high)) fail(field, value, allowed);
}

void check_heads(const ModelConfig& c) {
  check_range("num_attention_heads", c.num_attention_heads, 1, kMaxHeads);
  check_range("num_key_value_heads", c.num_key_value_heads, 1, c.num_attention_heads);
  if (c.num_attention_heads % c.num_key_value_heads != 0) {
    fail("num_key_value_heads", c.num_key_value_heads,
         "a divisor of num_attention_heads = " + std::to_string(c.num_attention_heads));
  }
  std::int32_t head_dim = c.head_dim;
  if (head_dim == 0) {
    if (c.hidden_size % c.num_attention_heads != 0) {
      fail("head_dim", 0,
           "an explicit value, as hidden_size = " + std::to_string(c.hidden_size) +
               " is no multiple of num_attention_heads = " + std::to_string(c.num_attention_heads));
    }
    head_dim = c.hidden_size / c.num_attention_heads;
  }
  if (head_dim < 2 || head_dim > kMaxHeadDim || head_dim % 2 != 0) {
    fail("head_dim", head_dim, "even, in [2, 256]");
  }
  const std::int32_t width = (c.num_attention_heads + 2 * c.num_key_value_heads) * head_dim;
  if (width > 3 * kMaxWidth) {
    fail("(num_attention_heads + 2 * num_key_value_heads) * head_dim", width,
         "at most " + std::to_string(3 * kMaxWidth));
  }
}

void check_rope(const ModelConfig& c) {
  check_range("rope_theta", c.rope_theta, 1.0, 1e15, "[1, 1e15]");
  const RopeScaling& s = c.rope_scaling;
  switch (s.type) {
    case RopeScaling::Type::kNone:
      return;
    case RopeScaling::Type::kLinear:
      check_range("rope_scaling.factor", s.factor, 1.0, 1e6, "[1, 1e6]");
      return;
    case RopeScaling::Type::kLlama3:
      check_range("rope_scaling.factor", s.factor, 1.0, 1e6, "[1, 1e6]");
      check_range("rope_scaling.low_freq_factor", s.low_freq_factor, 1e-6, 1e6, "[1e-6, 1e6]");
      check_range("rope_scaling.high_freq_factor", s.high_freq_factor, 1e-6, 1e6, "[1e-6, 1e6]");
      if (s.high_freq_factor <= s.low_freq_factor) {
        fail("rope_scaling.high_freq_factor", s.high_freq_factor,
             "above low_freq_factor = " + std::to_string(s.low_freq_factor));
      }
      check_range("rope_scaling.original_max_position_embeddings",
                  s.original_max_position_embeddings, 1, kMaxPositions);
      return;
  }
  fail("rope_scaling.type", static_cast<int>(s.type), "none, linear, llama3");
}

}  // namespace

void ModelConfig::validate() const {
  check_range("vocab_size", vocab_size, 1, kMaxVocab);
  check_range("hidden_size", hidden_size, 1, kMaxWidth);
  check_range("intermediate_size", intermediate_size, 1, kMaxWidth);
  check_range("num_hidden_layers", num_hidden_layers, 1, kMaxLayers);
  check_heads(*this);
  check_range("max_position_embeddings", max_position_embeddings, 1, kMaxPositions);
  if (!(rms_norm_eps > 0.0 && rms_norm_eps < 1.0)) {
    fail("rms_norm_eps", rms_norm_eps, "above 0 and below 1");
  }
  check_rope(*this);
  check_range("sliding_window", sliding_window, 0, kMaxInt);
  check_range("max_window_layers", max_window_layers, 0, kMaxInt);
}

}  // namespace smartspec
