// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "model/rope.hpp"
#include "smartspec/error.hpp"
#include "smartspec/model.hpp"

namespace smartspec::testing {
namespace {

ModelConfig sound() {
  ModelConfig c;
  c.vocab_size = 100;
  c.hidden_size = 64;
  c.intermediate_size = 96;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  return c;
}

std::string error_after(const std::function<void(ModelConfig&)>& change) {
  ModelConfig c = sound();
  change(c);
  try {
    c.validate();
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

TEST(ModelConfig, EveryFieldIsCheckedAndNamed) {
  constexpr std::int32_t kMax = std::numeric_limits<std::int32_t>::max();
  const double nan = std::nan("");
  const double infinity = std::numeric_limits<double>::infinity();
  const auto refused = [](const char* field, const std::function<void(ModelConfig&)>& change) {
    const std::string error = error_after(change);
    EXPECT_NE(error.find(field), std::string::npos) << field << ": " << error;
    EXPECT_NE(error.find("allowed"), std::string::npos) << error;
  };
  for (const std::int32_t bad : {0, -1, kMax, -kMax}) {
    refused("vocab_size", [&](ModelConfig& c) { c.vocab_size = bad; });
    refused("hidden_size", [&](ModelConfig& c) { c.hidden_size = bad; });
    refused("intermediate_size", [&](ModelConfig& c) { c.intermediate_size = bad; });
    refused("num_hidden_layers", [&](ModelConfig& c) { c.num_hidden_layers = bad; });
    refused("num_attention_heads", [&](ModelConfig& c) { c.num_attention_heads = bad; });
    refused("num_key_value_heads", [&](ModelConfig& c) { c.num_key_value_heads = bad; });
    refused("max_position_embeddings", [&](ModelConfig& c) { c.max_position_embeddings = bad; });
  }
  refused("num_key_value_heads", [](ModelConfig& c) { c.num_key_value_heads = 3; });
  refused("num_key_value_heads", [](ModelConfig& c) { c.num_key_value_heads = 8; });
  for (const std::int32_t bad : {-2, 1, 15, 258, kMax}) {
    refused("head_dim", [&](ModelConfig& c) { c.head_dim = bad; });
  }
  refused("head_dim", [](ModelConfig& c) { c.hidden_size = 66; });  // no multiple of the heads
  refused("head_dim", [](ModelConfig& c) { c.hidden_size = 12; });  // odd
  for (const double bad : {0.0, -1.0, 1.0, 2.0, nan, infinity}) {
    refused("rms_norm_eps", [&](ModelConfig& c) { c.rms_norm_eps = bad; });
  }
  for (const double bad : {0.0, -1.0, nan, infinity, 1e300}) {
    refused("rope_theta", [&](ModelConfig& c) { c.rope_theta = bad; });
    refused("rope_scaling.factor", [&](ModelConfig& c) {
      c.rope_scaling = {RopeScaling::Type::kLinear, bad, 1.0, 4.0, 8192};
    });
    refused("rope_scaling.factor", [&](ModelConfig& c) {
      c.rope_scaling = {RopeScaling::Type::kLlama3, bad, 1.0, 4.0, 8192};
    });
    refused("low_freq_factor", [&](ModelConfig& c) {
      c.rope_scaling = {RopeScaling::Type::kLlama3, 8.0, bad, 4.0, 8192};
    });
    refused("high_freq_factor", [&](ModelConfig& c) {
      c.rope_scaling = {RopeScaling::Type::kLlama3, 8.0, 1.0, bad, 8192};
    });
  }
  refused("high_freq_factor", [](ModelConfig& c) {
    c.rope_scaling = {RopeScaling::Type::kLlama3, 8.0, 4.0, 4.0, 8192};
  });
  refused("original_max_position_embeddings",
          [](ModelConfig& c) { c.rope_scaling = {RopeScaling::Type::kLlama3, 8.0, 1.0, 4.0, 0}; });
  refused("rope_scaling.type",
          [](ModelConfig& c) { c.rope_scaling.type = static_cast<RopeScaling::Type>(9); });
  refused("sliding_window", [](ModelConfig& c) { c.sliding_window = -1; });
  refused("max_window_layers", [](ModelConfig& c) { c.max_window_layers = -1; });
}

TEST(ModelConfig, SoundOnesPass) {
  EXPECT_EQ(error_after([](ModelConfig&) {}), "");
  EXPECT_EQ(error_after([](ModelConfig& c) { c.head_dim = 256; }), "");
  EXPECT_EQ(error_after([](ModelConfig& c) {
              c.vocab_size = 151936;
              c.hidden_size = 8192;
              c.intermediate_size = 29568;
              c.num_hidden_layers = 80;
              c.num_attention_heads = 64;
              c.num_key_value_heads = 8;
              c.max_position_embeddings = 131072;
              c.rope_theta = 1e6;
              c.sliding_window = 131072;
              c.max_window_layers = 80;
            }),
            "");
}

// head_dim 64, theta 500000, factor 8, low 1, high 4, original 8192: Llama 3.1's own parameters.
// Values printed by transformers 5.23 (float32), entries 0, 8, 15, 16, 17, 20, 31.
TEST(Rope, Llama3FrequenciesAreThoseOfTransformers) {
  ModelConfig c = sound();
  c.head_dim = 64;
  c.rope_theta = 500000.0;
  c.rope_scaling = {RopeScaling::Type::kLlama3, 8.0, 1.0, 4.0, 8192};
  const std::vector<double> frequencies = rope_frequencies(c);
  ASSERT_EQ(frequencies.size(), 32U);
  const std::vector<std::pair<std::size_t, double>> expected = {{0, 1},
                                                                {8, 0.0376060307},
                                                                {15, 0.00137189368},
                                                                {16, 0.000524846022},
                                                                {17, 0.000178507791},
                                                                {20, 3.42810235e-05},
                                                                {31, 3.7673226e-07}};
  for (const auto& [i, value] : expected) EXPECT_NEAR(frequencies[i] / value, 1.0, 1e-5) << i;
}

TEST(Rope, LinearScalingDividesEveryFrequency) {
  ModelConfig c = sound();
  c.head_dim = 16;
  const std::vector<double> plain = rope_frequencies(c);
  c.rope_scaling.type = RopeScaling::Type::kLinear;
  c.rope_scaling.factor = 4.0;
  const std::vector<double> scaled = rope_frequencies(c);
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_DOUBLE_EQ(scaled[i] * 4.0, plain[i]);
  EXPECT_DOUBLE_EQ(plain[0], 1.0);
  EXPECT_NEAR(plain[4], 0.01, 1e-15);
}

TEST(Rope, TableGrowsWithoutChangingRows) {
  ModelConfig c = sound();
  c.head_dim = 8;
  const auto runtime = make_runtime(Device::kCpu, 1);
  Backend& backend = runtime->backend();
  RopeTable table(c, 10'000);
  table.reach(3, backend);
  const std::vector<float> before(table.cos(), table.cos() + 4096 * 4);
  table.reach(9'999, backend);
  EXPECT_EQ(before, std::vector<float>(table.cos(), table.cos() + 4096 * 4));
  EXPECT_FLOAT_EQ(table.cos()[9'999 * 4], static_cast<float>(std::cos(9'999.0)));
  EXPECT_FLOAT_EQ(table.sin()[9'999 * 4 + 3], static_cast<float>(std::sin(9.999)));
}

}  // namespace
}  // namespace smartspec::testing
