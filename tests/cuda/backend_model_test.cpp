// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Whole models and the engine on the CUDA backend, on the emulated device, against the CPU.
#include <algorithm>
#include <limits>
#include <map>
#include <ostream>
#include <string>

#include "backend_scene.hpp"
#include "emulation/memory.hpp"
#include "engine/test_models.hpp"
#include "model/decoder_fixture.hpp"
#include "smartspec/cuda_ops.hpp"
#include "smartspec/draft_model.hpp"
#include "smartspec/engine.hpp"
#include "smartspec/error.hpp"
#include "smartspec/prompt_lookup.hpp"

namespace smartspec {
namespace {

using testing::close;
using testing::cuda_runtime;
using testing::Lab;
using testing::Logits;
using testing::Paged;
using testing::Random;
using testing::Tree;

const std::shared_ptr<Runtime>& cpu_runtime() {
  static const auto runtime = make_runtime(Device::kCpu, 1);
  return runtime;
}

struct ModelCase {
  std::string name;
  ModelConfig config;
  DType dtype = DType::kFloat32;
  double tolerance = 0;       // of each logit
  double norm_tolerance = 0;  // of all of them, relative
};

void PrintTo(const ModelCase& model, std::ostream* out) { *out << model.name; }

std::vector<ModelCase> model_cases() {
  std::vector<ModelCase> out;
  for (const testing::NamedConfig& named : testing::family_configs()) {
    out.push_back({named.name, named.config, DType::kFloat32, 2e-4, 1e-5});
  }
  ModelConfig wide = testing::base_config();
  wide.num_hidden_layers = 2;
  wide.hidden_size = 64;
  wide.head_dim = 64;
  out.push_back({"BFloat16HeadDim64", wide, DType::kBFloat16, 8e-2, 1e-2});
  wide.sliding_window = 6;
  wide.num_key_value_heads = 1;
  out.push_back({"BFloat16Window", wide, DType::kBFloat16, 8e-2, 1e-2});
  return out;
}

class BackendModelTest : public ::testing::TestWithParam<ModelCase> {
 protected:
  std::shared_ptr<const Model> model(const std::shared_ptr<Runtime>& runtime) const {
    return testing::make_model(runtime, GetParam().config, weights_, GetParam().dtype);
  }

 private:
  testing::Weights weights_{GetParam().config, GetParam().dtype, 5};
};

/// Prefill of two sequences in one pass, a verification pass of two trees with a decode row beside
/// them, an accepted path that moves, and a decode step over what was moved.
std::vector<float> serve(const std::shared_ptr<const Model>& model, DType kv_dtype) {
  const std::int32_t vocab = model->config().vocab_size;
  std::mt19937_64 rng(17);
  Lab lab(model, kv_dtype, 3);
  Paged a = lab.sequence(), b = lab.sequence(), c = lab.sequence();
  const Tree tree{testing::random_tokens(6, vocab, rng), {-1, 0, 0, 2, -1, 3}};
  const Tree other = testing::random_tree(5, vocab, rng);
  std::vector<float> all;
  const auto keep = [&](const Logits& logits) {
    for (const auto& row : logits) all.insert(all.end(), row.begin(), row.end());
  };

  ForwardBatch batch;
  a.add_rows(batch, testing::random_tokens(21, vocab, rng), {}, {}, 0, {20});
  b.add_rows(batch, testing::random_tokens(9, vocab, rng), {}, {}, 0, {0, 8});
  c.add_rows(batch, testing::random_tokens(3, vocab, rng), {}, {}, 0, {});
  keep(lab.run(batch));

  batch.clear();
  a.add_rows(batch, {7}, tree.tokens, tree.parents, 0, {0, 1, 2, 3, 4, 5, 6});
  b.add_rows(batch, {}, other.tokens, other.parents, 0, {0, 4});
  c.add_rows(batch, {11}, {}, {}, 0, {0});
  keep(lab.run(batch));

  // Nodes 0, 2, 3, 5 are accepted.
  std::vector<SlotId> sources, destinations;
  for (const auto& [from, to] : {std::pair{2, 1}, std::pair{3, 2}, std::pair{5, 3}}) {
    sources.push_back(a.slot(a.length() + from));
    destinations.push_back(a.slot(a.length() + to));
  }
  lab.decoder.move_kv(sources, destinations);
  a.set_length(a.length() + 4);
  batch.clear();
  a.add_rows(batch, {13}, {}, {}, 0, {0});
  keep(lab.run(batch));

  // A tree in two passes, as a draft model grows it.
  batch.clear();
  const std::vector<TokenId> first(tree.tokens.begin(), tree.tokens.begin() + 3);
  const std::vector<std::int32_t> first_parents(tree.parents.begin(), tree.parents.begin() + 3);
  a.add_rows(batch, {}, first, first_parents, 0, {0, 1, 2});
  keep(lab.run(batch));
  batch.clear();
  a.add_rows(batch, {}, tree.tokens, tree.parents, 3, {0, 1, 2});
  keep(lab.run(batch));
  return all;
}

TEST_P(BackendModelTest, ServesLikeTheCpu) {
  const std::vector<float> right = serve(model(cpu_runtime()), GetParam().dtype);
  const std::size_t before = emulation::device_bytes_in_use();
  {
    const std::vector<float> out = serve(model(cuda_runtime()), GetParam().dtype);
    EXPECT_TRUE(close(out, right, GetParam().tolerance));
    EXPECT_LE(testing::relative_error(out, right), GetParam().norm_tolerance);
  }
  EXPECT_EQ(emulation::device_bytes_in_use(), before) << "device memory was not freed";
}

INSTANTIATE_TEST_SUITE_P(Families, BackendModelTest, ::testing::ValuesIn(model_cases()),
                         [](const auto& test) { return test.param.name; });

/// Decode steps and verification of trees in turn, with a long prefill in between that moves the
/// decoder's buffers, and a second decoder on the same backend.
std::vector<float> decode(const std::shared_ptr<const Model>& model, DType dtype) {
  const std::int32_t vocab = model->config().vocab_size;
  std::mt19937_64 rng(23);
  Lab lab(model, dtype, 5);
  Lab other(model, dtype, 1);
  std::vector<Paged> sequences;
  for (int i = 0; i < 3; ++i) sequences.push_back(lab.sequence());
  Paged elsewhere = other.sequence();
  const Tree none;
  std::vector<float> all;
  const auto run = [&](Lab& in, const ForwardBatch& batch) {
    for (const auto& row : in.run(batch)) all.insert(all.end(), row.begin(), row.end());
  };
  ForwardBatch batch;
  // Contexts of zeros. Sequence 0 outgrows block tables of 8 entries at step 7, when graphs are
  // recorded; `longer` has made room for that.
  Paged longer = lab.sequence();
  longer.set_length(150);
  longer.add_rows(batch, testing::random_tokens(1, vocab, rng), {}, {}, 0, {});
  for (std::size_t i = 0; i < 3; ++i) {
    sequences[i].set_length(i == 0 ? 118 : 2);
    sequences[i].add_rows(batch, testing::random_tokens(1, vocab, rng), {}, {}, 0, {});
  }
  run(lab, batch);
  for (int step = 0; step < 18; ++step) {
    const std::size_t live = step < 15 ? 3 : 2;
    const Tree tree = testing::random_tree(3 + step % 2, vocab, rng);
    batch.clear();
    for (std::size_t i = 0; i < live; ++i) {
      // As many rows with logits as rows when both are padded, but not the same ones.
      if (i == 0 && step % 3 == 1) {
        sequences[0].add_rows(batch, testing::random_tokens(2, vocab, rng), {}, {}, 0, {1});
        continue;
      }
      const bool drafts = step % 3 == 2 && i != 1;
      const Tree& drafted = drafts ? tree : none;  // the batch keeps a view of it
      sequences[i].add_rows(batch, testing::random_tokens(1, vocab, rng), drafted.tokens,
                            drafted.parents, 0, {0});
    }
    run(lab, batch);
    batch.clear();
    elsewhere.add_rows(batch, testing::random_tokens(3, vocab, rng), {}, {}, 0, {1, 2});
    run(other, batch);
    if (step == 12) {  // moves the decoder's buffers
      Paged fresh = lab.sequence();
      batch.clear();
      fresh.add_rows(batch, testing::random_tokens(150, vocab, rng), {}, {}, 0, {149});
      run(lab, batch);
    }
  }
  return all;
}

TEST(BackendGraphs, RepeatWhatWasRecorded) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    SCOPED_TRACE(name_of(dtype));
    ModelConfig config = testing::base_config();
    config.num_hidden_layers = 2;
    config.head_dim = 64;
    config.sliding_window = 9;
    config.max_window_layers = 1;
    // The second model comes to lie where the first one lay.
    const auto decoded = [&](const std::shared_ptr<Runtime>& runtime) {
      std::vector<float> all;
      for (const std::uint64_t seed : {5U, 6U}) {
        const testing::Weights weights(config, dtype, seed);
        const auto one = decode(testing::make_model(runtime, config, weights, dtype), dtype);
        all.insert(all.end(), one.begin(), one.end());
      }
      return all;
    };
    const std::vector<float> right = decoded(cpu_runtime());
    for (const bool graphs : {false, true}) {
      const auto runtime = std::make_shared<Runtime>(cuda::make_cuda_backend({.graphs = graphs}));
      const bool narrow = dtype == DType::kBFloat16;
      EXPECT_TRUE(close(decoded(runtime), right, narrow ? 8e-2 : 2e-4));
      const auto& backend = dynamic_cast<const cuda::CudaBackend&>(runtime->backend());
      EXPECT_EQ(backend.num_replays() >= 8, graphs) << backend.num_replays();
    }
  }
}

TEST(BackendGraphs, TiersAreFewAndNear) {
  std::int32_t before = 0;
  int tiers = 0;
  for (std::int32_t n = 0; n <= cuda::kMaxGraphRows; ++n) {
    const std::int32_t tier = cuda::tier_of(n);
    EXPECT_GE(tier, n);
    EXPECT_GE(tier, before);
    EXPECT_EQ(cuda::tier_of(tier), tier);
    EXPECT_TRUE(tier <= n + 3 || tier * 2 <= n * 3) << n << " is padded to " << tier;
    tiers += tier != before ? 1 : 0;
    before = tier;
  }
  EXPECT_EQ(tiers, 16);
  EXPECT_EQ(cuda::tier_of(cuda::kMaxGraphRows + 1), cuda::kMaxGraphRows + 1);
}

/// The option's promise: what else is in the batch does not change a bit of a row.
TEST(BackendBatchInvariance, ARowDoesNotDependOnItsBatch) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    ModelConfig config = testing::base_config();
    config.num_hidden_layers = 2;
    config.head_dim = 64;
    const testing::Weights weights(config, dtype, 5);
    const auto model = testing::make_model(cuda_runtime(true), config, weights, dtype);
    std::mt19937_64 rng(1);
    const auto prompt = testing::random_tokens(40, config.vocab_size, rng);
    const Tree tree = testing::random_tree(7, config.vocab_size, rng);
    Logits alone, together;
    for (Logits* out : {&alone, &together}) {
      Lab lab(model, dtype, 3);
      Paged one = lab.sequence(), other = lab.sequence();
      ForwardBatch batch;
      if (out == &together) {
        other.add_rows(batch, testing::random_tokens(70, config.vocab_size, rng), {}, {}, 0, {});
      }
      one.add_rows(batch, prompt, {}, {}, 0, {39});
      *out = lab.run(batch);
      batch.clear();
      if (out == &together) {
        other.add_rows(batch, testing::random_tokens(3, config.vocab_size, rng), {}, {}, 0, {});
      }
      one.add_rows(batch, {3}, tree.tokens, tree.parents, 0, {0, 1, 2, 3, 4, 5, 6, 7});
      const Logits nodes = lab.run(batch);
      out->insert(out->end(), nodes.begin(), nodes.end());
    }
    EXPECT_EQ(alone, together) << name_of(dtype);
  }
}

// ---- The engine

std::shared_ptr<const StopVocabulary> make_stops(std::int32_t vocab) {
  auto stops = std::make_shared<StopVocabulary>();
  stops->token_bytes.resize(static_cast<std::size_t>(vocab), "x");
  return stops;
}

using Outputs = std::map<RequestId, std::vector<TokenId>>;

Outputs generate(const std::shared_ptr<Runtime>& runtime, const std::string& proposer) {
  const ModelConfig config = testing::tiny_config();
  const auto target = testing::tiny_model(runtime, DType::kFloat32, 11);
  EngineOptions options;
  options.max_num_seqs = 3;
  options.num_kv_blocks = 24;
  options.max_num_batched_tokens = 48;
  std::shared_ptr<Proposer> drafts;
  if (proposer == "lookup") {
    drafts = std::make_shared<PromptLookupProposer>(
        PromptLookupOptions{.prompt_lookup_max = 3, .prompt_lookup_min = 1, .tree_width = 2});
  } else if (proposer == "draft") {
    drafts = std::make_shared<DraftModelProposer>(
        testing::tiny_model(runtime, DType::kFloat32, 11, 0.15F),
        DraftModelOptions{.tree_width = 2, .num_kv_blocks = 24, .max_num_batched_tokens = 64},
        config.vocab_size);
  } else if (proposer == "junk") {
    drafts = std::make_shared<testing::JunkProposer>(config.vocab_size, 3, 9);
  }
  Engine engine(target, options, make_stops(config.vocab_size), drafts,
                drafts == nullptr ? nullptr : make_fixed_policy(4));
  for (std::uint64_t number = 0; number < 4; ++number) {
    std::mt19937_64 rng(number);
    Request request;
    request.prompt_token_ids = testing::random_tokens(5 + number * 9, config.vocab_size, rng);
    request.sampling.temperature = number == 3 ? 0.7F : 0.0F;
    request.sampling.seed = 5;
    request.sampling.max_tokens = 10;
    engine.add_request(request);
  }
  Outputs outputs;
  while (engine.has_unfinished()) {
    for (const RequestOutput& output : engine.step()) {
      EXPECT_EQ(output.error, "");
      auto& tokens = outputs[output.id];
      tokens.insert(tokens.end(), output.new_token_ids.begin(), output.new_token_ids.end());
    }
  }
  EXPECT_EQ(engine.stats().num_drafted > 0, drafts != nullptr);
  return outputs;
}

TEST(BackendEngine, GeneratesWhatTheCpuGenerates) {
  const Outputs right = generate(cpu_runtime(), "none");
  ASSERT_EQ(right.size(), 4U);
  for (const char* proposer : {"none", "lookup", "draft", "junk"}) {
    EXPECT_EQ(generate(cuda_runtime(), proposer), right) << proposer;
  }
}

/// Parameters that the device's walk knows, and such as leave it to the host, in the same steps.
Outputs generate_with_all_parameters(const std::shared_ptr<Runtime>& runtime) {
  const auto target = testing::tiny_model(runtime, DType::kFloat32, 11);
  const std::int32_t vocab = target->config().vocab_size;
  EngineOptions options;
  options.max_num_seqs = 8;
  options.num_kv_blocks = 48;
  options.max_num_batched_tokens = 64;
  Engine engine(target, options, make_stops(vocab),
                std::make_shared<testing::JunkProposer>(vocab, 3, 9), make_fixed_policy(4));
  const std::vector<void (*)(SamplingParams&)> edits = {
      [](SamplingParams& p) { p.top_p = 0.8F; },
      [](SamplingParams& p) { p.top_k = 7, p.min_p = 0.05F; },
      [](SamplingParams& p) {
        p.repetition_penalty = 1.4F, p.logit_bias = {{3, 2.0F}, {5, -1.0F}};
      },
      [](SamplingParams& p) { p.presence_penalty = 0.7F, p.frequency_penalty = 0.3F; },
      [](SamplingParams& p) { p.min_tokens = 4, p.stop_token_ids = {1, 2, 3, 4, 5, 6, 7}; },
      [](SamplingParams& p) { p.bad_words = {{7}, {3, 9}}; },
      [](SamplingParams& p) { p.logprobs = 2; },
      [](SamplingParams& p) { p.prompt_logprobs = 1; },
  };
  for (const auto edit : edits) {
    std::mt19937_64 rng(engine.stats().num_waiting + 3);
    Request request;
    request.prompt_token_ids = testing::random_tokens(9, vocab, rng);
    request.sampling.temperature = 0.9F;
    request.sampling.seed = 6;
    request.sampling.max_tokens = 9;
    edit(request.sampling);
    engine.add_request(request);
  }
  Outputs outputs;
  while (engine.has_unfinished()) {
    for (const RequestOutput& output : engine.step()) {
      EXPECT_EQ(output.error, "");
      auto& tokens = outputs[output.id];
      tokens.insert(tokens.end(), output.new_token_ids.begin(), output.new_token_ids.end());
    }
  }
  return outputs;
}

TEST(BackendEngine, WalksTreesOnTheDevice) {
  const auto runtime = cuda_runtime();
  const auto& backend = dynamic_cast<const cuda::CudaBackend&>(runtime->backend());
  const std::int64_t before = backend.num_walked();
  EXPECT_EQ(generate_with_all_parameters(runtime), generate_with_all_parameters(cpu_runtime()));
  EXPECT_GT(backend.num_walked() - before, 20);
}

/// How each request ended, with a model whose logits are NaN after token 50.
std::map<RequestId, std::string> endings_with_nan(const std::shared_ptr<Runtime>& runtime) {
  const ModelConfig config = testing::tiny_config();
  auto weights = std::make_shared<testing::RandomWeights>(config, 11);
  const TensorView table = *weights->find("model.embed_tokens.weight");
  auto* row = static_cast<float*>(const_cast<void*>(table.data)) + 50 * config.hidden_size;
  std::fill(row, row + config.hidden_size, std::numeric_limits<float>::quiet_NaN());
  ModelOptions model_options;
  model_options.keep_alive = weights;
  const auto broken = std::make_shared<const Model>(
      runtime, config, [&](std::string_view name) { return weights->find(name); }, model_options);
  Engine engine(broken, EngineOptions{}, nullptr,
                std::make_shared<testing::JunkProposer>(config.vocab_size, 3, 9),
                make_fixed_policy(2));
  for (const TokenId first : {50, 1}) {
    Request request;
    request.prompt_token_ids = {first, 2, 3};
    request.sampling.temperature = 0.0F;
    engine.add_request(request);
  }
  std::map<RequestId, std::string> endings;
  while (engine.has_unfinished()) {
    for (const RequestOutput& output : engine.step()) {
      auto& ending = endings[output.id];
      for (const TokenId token : output.new_token_ids) ending += std::to_string(token) + " ";
      ending += output.error;
    }
  }
  return endings;
}

TEST(BackendEngine, UnusableLogitsEndARequestInTheHostsWords) {
  const auto right = endings_with_nan(cpu_runtime());
  EXPECT_NE(right.begin()->second.find("not finite"), std::string::npos);
  EXPECT_EQ(endings_with_nan(cuda_runtime()), right);
}

TEST(BackendEngine, OutOfMemoryLeavesTheRuntimeUsable) {
  const auto runtime = cuda_runtime();
  const auto model = testing::tiny_model(runtime, DType::kFloat32, 11);
  {
    const emulation::ScopedMemoryLimit limit(emulation::device_bytes_in_use() + 4096);
    EXPECT_THROW(Decoder(model, 64, 16, DType::kFloat32, 256), DeviceError);
  }
  EXPECT_NO_THROW(Decoder(model, 64, 16, DType::kFloat32, 256));
}

}  // namespace
}  // namespace smartspec
