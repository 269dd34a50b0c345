// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Building a Model from weight views: what is refused, converted, kept and counted.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include "model/decoder_fixture.hpp"
#include "model/model_impl.hpp"
#include "model/numeric.hpp"
#include "smartspec/safetensors.hpp"

namespace smartspec::testing {
namespace {

ModelConfig full_config() {
  ModelConfig c = base_config();
  c.attention_bias = c.attention_output_bias = c.mlp_bias = c.qk_norm = true;
  return c;
}

class Loading : public ::testing::Test {
 protected:
  std::string error_of(const ModelConfig& config, const WeightSource& source) {
    try {
      const Model model(runtime_, config, source);
    } catch (const FormatError& error) {
      return error.what();
    }
    return "";
  }

  std::shared_ptr<Runtime> runtime_ = make_runtime(Device::kCpu, 1);
};

TEST_F(Loading, EveryWeightIsNeededAndNamed) {
  const ModelConfig config = full_config();
  const Weights sound(config, DType::kBFloat16, 1);
  EXPECT_EQ(error_of(config, sound.source()), "");
  for (const std::string& name : sound.names()) {
    const auto changed = [&](auto change) {
      return [&, change](std::string_view wanted) {
        std::optional<TensorView> view = sound.find(wanted);
        if (wanted == name) change(view);
        return view;
      };
    };
    const auto refused = [&](auto change) {
      const std::string error = error_of(config, changed(change));
      EXPECT_NE(error.find(name), std::string::npos) << name << ": " << error;
    };
    refused([](auto& view) { view.reset(); });
    refused([](auto& view) { ++view->shape[0]; });
    refused([](auto& view) { view->shape[0] = -view->shape[0]; });
    refused([](auto& view) { view->rank = 0; });
    refused([](auto& view) { view->rank = 4; });
    refused([](auto& view) { view->rank = 1 << 30; });
    refused([](auto& view) { view->rank = -1; });
    refused([](auto& view) { view->dtype = DType::kUInt8; });
    refused([](auto& view) { view->dtype = DType::kInt32; });
    refused([](auto& view) { view->data = nullptr; });
    refused([](auto& view) { view->device = Device::kCuda; });
  }
}

TEST_F(Loading, ShapesAreStated) {
  const ModelConfig config = base_config();
  const Weights sound(config, DType::kFloat32, 1);
  const std::string error = error_of(config, [&](std::string_view name) {
    std::optional<TensorView> view = sound.find(name);
    if (name == "model.layers.1.mlp.down_proj.weight") std::swap(view->shape[0], view->shape[1]);
    return view;
  });
  EXPECT_NE(error.find("[72, 48]"), std::string::npos) << error;
  EXPECT_NE(error.find("expected [48, 72]"), std::string::npos) << error;
}

TEST_F(Loading, MisuseIsRefused) {
  const ModelConfig config = base_config();
  const Weights weights(config, DType::kFloat32, 1);
  EXPECT_THROW(Model(nullptr, config, weights.source()), std::invalid_argument);
  EXPECT_THROW(Model(runtime_, config, WeightSource()), std::invalid_argument);
  EXPECT_THROW(Model(runtime_, config, weights.source(),
                     ModelOptions{.dtype = DType::kFloat16, .keep_alive = nullptr}),
               std::invalid_argument);
  EXPECT_THROW(Model(runtime_, ModelConfig(), weights.source()), FormatError);
  const WeightSource throwing = [](std::string_view) -> std::optional<TensorView> {
    throw std::runtime_error("from the source");
  };
  EXPECT_THROW(Model(runtime_, config, throwing), std::runtime_error);
  const Model after(runtime_, config, weights.source());  // the runtime's mutex is free again
  EXPECT_EQ(after.dtype(), DType::kFloat32);
}

TEST_F(Loading, CountsParametersAndKvBytes) {
  for (const NamedConfig& family : family_configs()) {
    const Weights weights(family.config, DType::kBFloat16, 1);
    std::int64_t expected = 0;
    for (const std::string& name : weights.names()) {
      expected += static_cast<std::int64_t>(weights.values(name).size());
    }
    const Model model(runtime_, family.config, weights.source());
    EXPECT_EQ(model.num_parameters(), expected) << family.name;
  }
  const Weights weights(base_config(), DType::kBFloat16, 1);
  const Model model(runtime_, base_config(), weights.source());
  EXPECT_EQ(model.bytes_per_kv_token(DType::kBFloat16), 2 * 3 * 2 * 12 * 2);
  EXPECT_EQ(model.bytes_per_kv_token(DType::kFloat32), 2 * 3 * 2 * 12 * 4);
}

TEST_F(Loading, HeadDimFollowsFromHiddenSize) {
  ModelConfig config = base_config();
  const Weights weights(config, DType::kFloat32, 1);
  config.head_dim = 0;
  EXPECT_EQ(Model(runtime_, config, weights.source()).config().head_dim, 12);
}

TEST_F(Loading, DtypesAreKeptOrConverted) {
  const ModelConfig config = base_config();
  const auto dtype_of = [&](DType stored, std::optional<DType> wanted) {
    const Weights weights(config, stored, 1);
    return Model(runtime_, config, weights.source(),
                 ModelOptions{.dtype = wanted, .keep_alive = nullptr})
        .dtype();
  };
  EXPECT_EQ(dtype_of(DType::kFloat32, {}), DType::kFloat32);
  EXPECT_EQ(dtype_of(DType::kBFloat16, {}), DType::kBFloat16);
  EXPECT_EQ(dtype_of(DType::kFloat16, {}), DType::kFloat32);
  EXPECT_EQ(dtype_of(DType::kFloat32, DType::kBFloat16), DType::kBFloat16);
  EXPECT_EQ(dtype_of(DType::kBFloat16, DType::kFloat32), DType::kFloat32);
}

TEST_F(Loading, EmbeddingStaysWhereItLiesWhenItCan) {
  const ModelConfig config = base_config();
  const Weights weights(config, DType::kBFloat16, 1);
  const void* table = weights.find("model.embed_tokens.weight")->data;
  const auto owner = std::make_shared<int>(1);
  {
    const Model model(runtime_, config, weights.source(),
                      ModelOptions{.dtype = {}, .keep_alive = owner});
    EXPECT_EQ(model.impl().embedding, table);
    EXPECT_EQ(owner.use_count(), 2);
  }
  EXPECT_EQ(owner.use_count(), 1);
  // Converted: the caller's memory is not needed any more.
  const Model model(runtime_, config, weights.source(),
                    ModelOptions{.dtype = DType::kFloat32, .keep_alive = owner});
  EXPECT_NE(model.impl().embedding, table);
  EXPECT_EQ(owner.use_count(), 1);
}

Logits some_logits(const std::shared_ptr<const Model>& model) {
  Lab lab(model, DType::kFloat32);
  Paged sequence = lab.sequence();
  return lab.chain(sequence, {1, 7, 3, 0, 52, 9});
}

TEST_F(Loading, StoredTypeDoesNotMatterWhenValuesAreEqual) {
  const ModelConfig config = full_config();
  const Weights narrow(config, DType::kBFloat16, 1);
  // The same values, widened by hand.
  std::map<std::string, std::vector<float>, std::less<>> wide;
  for (const std::string& name : narrow.names()) {
    for (const double value : narrow.values(name)) wide[name].push_back(static_cast<float>(value));
  }
  const WeightSource widened = [&](std::string_view name) {
    std::optional<TensorView> view = narrow.find(name);
    view->dtype = DType::kFloat32;
    view->data = wide.find(name)->second.data();
    return view;
  };
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const ModelOptions options{.dtype = dtype, .keep_alive = nullptr};
    EXPECT_EQ(
        some_logits(std::make_shared<const Model>(runtime_, config, narrow.source(), options)),
        some_logits(std::make_shared<const Model>(runtime_, config, widened, options)));
  }
}

TEST_F(Loading, UnalignedWeightsAreRead) {
  const ModelConfig config = full_config();
  for (const DType stored : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const Weights weights(config, stored, 1);
    std::map<std::string, std::vector<char>, std::less<>> shifted;
    for (const std::string& name : weights.names()) {
      const TensorView view = *weights.find(name);
      std::vector<char>& bytes = shifted[name];
      bytes.resize(view.num_bytes() + 1);
      std::memcpy(bytes.data() + 1, view.data, view.num_bytes());
    }
    const WeightSource source = [&](std::string_view name) {
      std::optional<TensorView> view = weights.find(name);
      view->data = shifted.find(name)->second.data() + 1;
      return view;
    };
    EXPECT_EQ(some_logits(std::make_shared<const Model>(runtime_, config, source)),
              some_logits(std::make_shared<const Model>(runtime_, config, weights.source())));
  }
}

TEST(Numeric, Float16WidensExactly) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float got = float_from_f16(static_cast<std::uint16_t>(bits));
    const auto exponent = static_cast<int>((bits >> 10) & 31);
    const auto mantissa = static_cast<double>(bits & 0x3FF);
    ASSERT_EQ(std::signbit(got), bits >= 0x8000) << bits;
    if (exponent == 31) {
      ASSERT_EQ(std::isnan(got), mantissa != 0) << bits;
      ASSERT_EQ(std::isinf(got), mantissa == 0) << bits;
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024.0 + mantissa, exponent - 25);
    ASSERT_EQ(std::abs(static_cast<double>(got)), magnitude) << bits;
  }
}

TEST(Numeric, Bfloat16RoundsToNearestEven) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto narrow = static_cast<std::uint16_t>(bits);
    const float value = float_from_bf16(narrow);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(float_from_bf16(bf16_from_float(value))));
      continue;
    }
    ASSERT_EQ(bf16_from_float(value), narrow);  // exact values stay
    if (std::isinf(value)) continue;
    const auto between = [&](std::uint32_t low) { return std::bit_cast<float>(bits << 16 | low); };
    const auto above = static_cast<std::uint16_t>(bits + 1);
    ASSERT_EQ(bf16_from_float(between(0x7FFF)), narrow);
    ASSERT_EQ(bf16_from_float(between(0x8000)), bits % 2 == 0 ? narrow : above);
    ASSERT_EQ(bf16_from_float(between(0x8001)), above);
  }
  // A NaN whose payload lies in the dropped bits must not become infinity.
  EXPECT_TRUE(std::isnan(float_from_bf16(bf16_from_float(std::bit_cast<float>(0x7F800001U)))));
}

TEST_F(Loading, ShippedDraftModelRuns) {
  const auto path = std::filesystem::path(SMARTSPEC_MODELS_DIR) / "draft" / "model.safetensors";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no shipped model";
  const SafetensorsFile file(path.string());
  const TensorView table = file.find("model.embed_tokens.weight").value();
  const TensorView gate = file.find("model.layers.0.mlp.gate_proj.weight").value();
  const TensorView q = file.find("model.layers.0.self_attn.q_proj.weight").value();
  const TensorView k = file.find("model.layers.0.self_attn.k_proj.weight").value();
  ModelConfig config;
  config.vocab_size = static_cast<std::int32_t>(table.shape[0]);
  config.hidden_size = static_cast<std::int32_t>(table.shape[1]);
  config.intermediate_size = static_cast<std::int32_t>(gate.shape[0]);
  config.head_dim = 64;
  config.num_attention_heads = static_cast<std::int32_t>(q.shape[0]) / config.head_dim;
  config.num_key_value_heads = static_cast<std::int32_t>(k.shape[0]) / config.head_dim;
  config.tie_word_embeddings = true;
  while (file.find("model.layers." + std::to_string(config.num_hidden_layers) +
                   ".input_layernorm.weight")) {
    ++config.num_hidden_layers;
  }
  std::int64_t expected = 0;
  for (const std::string& name : file.names()) expected += file.find(name)->num_elements();
  const auto model = std::make_shared<const Model>(
      runtime_, config, [&](std::string_view name) { return file.find(name); },
      ModelOptions{.dtype = {}, .keep_alive = file.mapping()});
  EXPECT_EQ(model->num_parameters(), expected);
  for (const auto& row : some_logits(model)) {
    for (const float value : row) ASSERT_TRUE(std::isfinite(value));
  }
}

}  // namespace
}  // namespace smartspec::testing
