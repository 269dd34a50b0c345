// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/engine.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <map>
#include <stdexcept>
#include <thread>
#include <vector>

#include "engine/test_models.hpp"
#include "smartspec/draft_model.hpp"
#include "smartspec/error.hpp"
#include "smartspec/prompt_lookup.hpp"
#include "smartspec/suffix_proposer.hpp"

namespace smartspec {
namespace {

using testing::tiny_config;
using testing::tiny_model;

constexpr std::int32_t kVocab = 61;

std::shared_ptr<const Model> model() {
  static const auto shared = tiny_model(make_runtime(Device::kCpu, 1), DType::kFloat32, 11);
  return shared;
}

Request greedy_request(std::vector<TokenId> prompt, std::int32_t max_tokens) {
  Request request;
  request.prompt_token_ids = std::move(prompt);
  request.sampling.temperature = 0.0F;
  request.sampling.max_tokens = max_tokens;
  return request;
}

struct Collected {
  std::map<std::pair<RequestId, std::int32_t>, std::vector<TokenId>> tokens;
  std::map<std::pair<RequestId, std::int32_t>, RequestOutput> last;
  std::vector<RequestId> order_of_end;
};

Collected run_all(Engine& engine) {
  Collected result;
  while (engine.has_unfinished()) {
    for (const RequestOutput& output : engine.step()) {
      const std::pair key{output.id, output.index};
      auto& stream = result.tokens[key];
      stream.insert(stream.end(), output.new_token_ids.begin(), output.new_token_ids.end());
      result.last[key] = output;
      if (output.finish_reason != FinishReason::kNone) result.order_of_end.push_back(output.id);
    }
  }
  EXPECT_EQ(engine.check_integrity(), "");
  return result;
}

std::string refusal(Engine& engine, const Request& request) {
  try {
    engine.add_request(request);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(EngineTest, OptionsOutOfRangeAreRefusedByName) {
  const auto refused = [](auto&& spoil) -> std::string {
    EngineOptions options;
    spoil(options);
    try {
      Engine engine(model(), options, nullptr);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(refused([](EngineOptions&) {}), "");
  const auto names = [&](auto&& spoil, const char* field) {
    EXPECT_NE(refused(spoil).find(field), std::string::npos) << field;
  };
  names([](EngineOptions& o) { o.max_num_seqs = 0; }, "max_num_seqs");
  names([](EngineOptions& o) { o.max_num_batched_tokens = 3; }, "max_num_batched_tokens");
  names([](EngineOptions& o) { o.block_size = 20; }, "block_size");
  names([](EngineOptions& o) { o.block_size = -16; }, "block_size");
  names([](EngineOptions& o) { o.num_kv_blocks = -1; }, "num_kv_blocks");
  names([](EngineOptions& o) { o.max_model_len = 100000; }, "max_model_len");
  names([](EngineOptions& o) { o.kv_dtype = DType::kInt32; }, "kv_dtype");
  names(
      [](EngineOptions& o) {
        o.max_model_len = 200;
        o.num_kv_blocks = 2;
      },
      "max_model_len");
  EXPECT_THROW(Engine(nullptr, EngineOptions{}, nullptr), std::invalid_argument);
}

TEST(EngineTest, BadRequestsAreRefusedByNameAndChangeNothing) {
  Engine engine(model(), EngineOptions{}, nullptr);
  const auto names = [&](auto&& spoil, const char* field) {
    Request request = greedy_request({1, 2, 3}, 4);
    spoil(request);
    EXPECT_NE(refusal(engine, request).find(field), std::string::npos) << field;
  };
  names([](Request& r) { r.prompt_token_ids.clear(); }, "prompt_token_ids");
  names([](Request& r) { r.prompt_token_ids.assign(256, 1); }, "prompt_token_ids");
  names([](Request& r) { r.prompt_token_ids[1] = -1; }, "prompt_token_ids[1]");
  names([](Request& r) { r.prompt_token_ids[2] = kVocab; }, "prompt_token_ids[2]");
  names([](Request& r) { r.prompt_token_ids[2] = std::numeric_limits<TokenId>::max(); },
        "prompt_token_ids[2]");
  names([](Request& r) { r.sampling.n = 1000000000; }, "n ");
  names([](Request& r) { r.sampling.temperature = std::numeric_limits<float>::infinity(); },
        "temperature");
  names([](Request& r) { r.sampling.top_p = 0.0F; }, "top_p");
  names([](Request& r) { r.sampling.stop = {"x"}; }, "stop");
  names([](Request& r) { r.max_draft_tokens = 257; }, "max_draft_tokens");
  names([](Request& r) { r.prediction = {1, kVocab}; }, "prediction[1]");
  names([](Request& r) { r.prediction.assign(257, 1); }, "prediction");
  EXPECT_FALSE(engine.has_unfinished());
  EXPECT_TRUE(engine.step().empty());
}

TEST(EngineTest, MaxModelLenEndsARequestWithLength) {
  EngineOptions options;
  options.max_model_len = 20;
  Engine engine(model(), options, nullptr, std::make_shared<PromptLookupProposer>(),
                make_fixed_policy(8));
  engine.add_request(greedy_request(std::vector<TokenId>(17, 4), 1000));
  const Collected result = run_all(engine);
  EXPECT_EQ(result.tokens.begin()->second.size(), 3U);
  EXPECT_EQ(result.last.begin()->second.finish_reason, FinishReason::kLength);
}

TEST(EngineTest, CompletionsSharePromptBlocksAndDifferBySeed) {
  EngineOptions options;
  options.enable_prefix_caching = false;
  Engine engine(model(), options, nullptr);
  Request request = greedy_request({}, 12);
  for (TokenId i = 0; i < 40; ++i) request.prompt_token_ids.push_back(i % 13);
  request.sampling.temperature = 1.0F;
  request.sampling.seed = 5;
  request.sampling.n = 4;
  const RequestId id = engine.add_request(request);
  engine.step();
  engine.step();
  // 40 prompt tokens are 2 full blocks and a partial one: shared, then one block of its own each.
  EXPECT_LE(engine.stats().kv.num_blocks - engine.stats().kv.num_free, 2 + 4);
  const Collected result = run_all(engine);
  EXPECT_EQ(result.tokens.size(), 4U);
  EXPECT_NE(result.tokens.at({id, 1}), result.tokens.at({id, 2}));

  // Completion 0 keeps the seed of the request.
  Engine alone(model(), options, nullptr);
  request.sampling.n = 1;
  const RequestId single = alone.add_request(request);
  Collected expected = run_all(alone);
  (void)single;
  Engine again(model(), options, nullptr);
  request.sampling.n = 4;
  again.add_request(request);
  EXPECT_EQ(run_all(again).tokens.at({0, 0}), expected.tokens.at({0, 0}));
}

TEST(EngineTest, LowerPriorityValueRunsFirst) {
  EngineOptions options;
  options.max_num_seqs = 1;
  Engine engine(model(), options, nullptr);
  Request late = greedy_request({1, 2}, 3);
  late.priority = 5;
  Request early = greedy_request({3, 4}, 3);
  early.priority = -1;
  const RequestId first = engine.add_request(late);
  const RequestId second = engine.add_request(early);
  EXPECT_EQ(run_all(engine).order_of_end, (std::vector<RequestId>{second, first}));
}

TEST(EngineTest, PrefixCacheIsPerSalt) {
  Engine engine(model(), EngineOptions{}, nullptr);
  Request request = greedy_request({}, 2);
  for (TokenId i = 0; i < 50; ++i) request.prompt_token_ids.push_back(i % 7);
  const auto cached = [&](std::uint64_t salt) {
    request.cache_salt = salt;
    engine.add_request(request);
    return run_all(engine).last.begin()->second.stats.num_cached_tokens;
  };
  EXPECT_EQ(cached(1), 0);
  EXPECT_EQ(cached(1), 48);
  EXPECT_EQ(cached(2), 0);
  engine.clear_prefix_cache();
  EXPECT_EQ(cached(1), 0);
}

TEST(EngineTest, StatisticsSayWhyARequestDoesNotSpeculate) {
  Engine engine(model(), EngineOptions{}, nullptr, std::make_shared<PromptLookupProposer>(),
                make_fixed_policy(4));
  Request request = greedy_request({1, 2, 3}, 6);
  request.speculate = false;
  engine.add_request(request);
  engine.step();
  const auto outputs = engine.step();
  ASSERT_EQ(outputs.size(), 1U);
  EXPECT_EQ(outputs[0].stats.no_speculation_reason, NoSpeculationReason::kRequest);
  EXPECT_EQ(outputs[0].stats.num_drafted, 0);
  run_all(engine);

  Engine off(model(), EngineOptions{}, nullptr);
  off.add_request(greedy_request({1, 2, 3}, 6));
  off.step();
  EXPECT_EQ(off.step()[0].stats.no_speculation_reason, NoSpeculationReason::kOff);
}

TEST(EngineTest, DraftingWithTheTargetItselfAcceptsEverything) {
  Engine engine(model(), EngineOptions{}, nullptr,
                std::make_shared<DraftModelProposer>(model(), DraftModelOptions{}, kVocab),
                make_fixed_policy(4));
  for (int temperature = 0; temperature < 2; ++temperature) {
    Request request = greedy_request({9, 8, 7}, 21);
    request.sampling.temperature = static_cast<float>(temperature);
    engine.add_request(request);
  }
  for (const auto& [key, output] : run_all(engine).last) {
    EXPECT_EQ(output.stats.num_accepted, output.stats.num_drafted);
    EXPECT_EQ(output.stats.num_steps, 5);  // one token from the prompt, then 4 x 5
    EXPECT_EQ(output.stats.num_drafted, 16);
  }
}

/// Drafts for every other call; writes down what it is told.
class Listener final : public Proposer {
 public:
  std::map<RequestId, std::vector<TokenId>> emitted;
  std::map<RequestId, std::vector<TokenId>> texts;
  std::vector<RequestId> finished;

  [[nodiscard]] std::string_view name() const override { return "listener"; }
  void propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) override {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(requests[i].cache_salt, 5U);
      EXPECT_EQ(std::vector<TokenId>(requests[i].prediction.begin(), requests[i].prediction.end()),
                (std::vector<TokenId>{7, 8}));
      if (calls_++ % 2 == 0) trees[i] = TokenTree::chain(std::vector<TokenId>{1, 2});
    }
  }
  void observe(std::span<const Outcome> outcomes) override {
    for (const Outcome& outcome : outcomes) {
      EXPECT_EQ(std::count(finished.begin(), finished.end(), outcome.id), 0);
      EXPECT_FALSE(outcome.emitted.empty());
      ASSERT_NE(outcome.request, nullptr);
      EXPECT_EQ(outcome.request->id, outcome.id);
      auto& text = texts[outcome.id];
      text.assign(outcome.request->tokens.begin(), outcome.request->tokens.end());
      auto& stream = emitted[outcome.id];
      stream.insert(stream.end(), outcome.emitted.begin(), outcome.emitted.end());
      const auto num_prompt = static_cast<std::size_t>(outcome.request->num_prompt_tokens);
      ASSERT_EQ(text.size(), num_prompt + stream.size());
      EXPECT_TRUE(std::equal(stream.begin(), stream.end(), text.end() - std::ssize(stream)));
    }
  }
  void finish(RequestId id) override { finished.push_back(id); }

 private:
  int calls_ = 0;
};

TEST(EngineTest, AProposerHearsOfEveryTokenBeforeTheEnd) {
  for (const std::int32_t length : {0, 4}) {
    const auto listener = std::make_shared<Listener>();
    Engine engine(model(), EngineOptions{.max_num_batched_tokens = 64}, nullptr, listener,
                  length > 0 ? make_fixed_policy(length) : make_off_policy());
    for (const std::int32_t max_tokens : {1, 2, 30}) {
      Request request = greedy_request({3, 4, 5}, max_tokens);
      request.cache_salt = 5;
      request.prediction = {7, 8};
      request.sampling.n = 2;
      request.sampling.temperature = 1.0F;
      engine.add_request(std::move(request));
    }
    Request silent = greedy_request({3, 4, 5}, 9);
    silent.speculate = false;
    const RequestId silent_id = engine.add_request(std::move(silent));
    engine.step();
    engine.step();
    EXPECT_TRUE(engine.preempt(4));
    const Collected result = run_all(engine);
    EXPECT_EQ(listener->finished.size(), 7U);
    EXPECT_EQ(listener->emitted.size(), 6U);
    EXPECT_FALSE(listener->emitted.contains(silent_id)) << "it asked for no speculation";
    EXPECT_EQ(listener->emitted[0].size(), 1U);
    EXPECT_EQ(listener->emitted[3].size(), 2U);
    EXPECT_EQ(listener->emitted[5].size(), 30U);
    EXPECT_EQ(engine.stats().num_proposer_errors, 0);
  }
}

class Failing final : public Proposer {
 public:
  [[nodiscard]] std::string_view name() const override { return "failing"; }
  void propose(std::span<const ProposeRequest>, std::span<TokenTree>) override {
    ++calls;
    throw std::runtime_error("no idea");
  }
  std::int64_t calls = 0;
};

TEST(EngineTest, AStackedProposerDraftsOnAndCountsWhenOneHalfFails) {
  const auto draft = std::make_shared<DraftModelProposer>(model(), DraftModelOptions{}, kVocab);
  for (const bool free_fails : {true, false}) {
    const auto failing = std::make_shared<Failing>();
    const auto stacked = free_fails ? std::make_shared<StackedProposer>(failing, draft)
                                    : std::make_shared<StackedProposer>(draft, failing, 100.0);
    Engine engine(model(), EngineOptions{}, nullptr, stacked, make_fixed_policy(4));
    engine.add_request(greedy_request({3, 4, 5}, 40));
    run_all(engine);
    const EngineStats stats = engine.stats();
    EXPECT_GT(failing->calls, 5);
    EXPECT_EQ(stats.num_proposer_errors, failing->calls);
    EXPECT_EQ(stats.last_proposer_error, "no idea");
    EXPECT_EQ(stats.num_accepted, stats.num_drafted) << "the target drafts for itself";
    EXPECT_GT(stats.num_accepted, 25);
  }
}

TEST(EngineTest, WhatOneEngineEmitsTheNextDrafts) {
  SuffixIndexOptions options;
  options.vocab_size = kVocab;
  const auto index = std::make_shared<SuffixIndex>(options);
  std::vector<std::int64_t> num_steps;
  for (int round = 0; round < 3; ++round) {
    Engine engine(model(), EngineOptions{}, nullptr,
                  std::make_shared<SuffixProposer>(index, SuffixProposerOptions{}),
                  make_fixed_policy(16));
    Request request = greedy_request({3, 4, 5, 6}, 60);
    request.cache_salt = round == 2 ? 9 : 0;
    request.sampling.temperature = 1.0F;  // greedy text of a random model repeats itself
    request.sampling.seed = 4;
    engine.add_request(std::move(request));
    const Collected result = run_all(engine);
    num_steps.push_back(result.last.begin()->second.stats.num_steps);
    EXPECT_EQ(index->stats().num_tokens, 60 * (round + 1)) << "to the last token";
  }
  EXPECT_LT(2 * num_steps[1], num_steps[0]);
  EXPECT_EQ(num_steps[2], num_steps[0]) << "nothing crosses tenants";
}

TEST(EngineTest, PromptLogprobsAreTheModelsAndComeOnce) {
  EngineOptions options;
  options.max_num_batched_tokens = 64;
  Request request = greedy_request({}, 3);
  for (TokenId i = 0; i < 150; ++i) request.prompt_token_ids.push_back((i * i) % kVocab);
  request.sampling.prompt_logprobs = 2;
  Engine engine(model(), options, nullptr);
  std::size_t times = 0;
  for (int round = 0; round < 2; ++round) {  // the second must not skip rows through the cache
    engine.add_request(request);
    while (engine.has_unfinished()) {
      for (const RequestOutput& output : engine.step()) {
        if (output.prompt_logprobs.empty()) continue;
        ++times;
        ASSERT_EQ(output.prompt_logprobs.size(), 149U);
        const std::vector<float> logits = forward_logits(model(), request.prompt_token_ids);
        for (std::size_t i = 0; i < 149; ++i) {
          const auto row = std::span(logits).subspan(i * kVocab, kVocab);
          const PositionLogprobs wanted = compute_logprobs(row, request.prompt_token_ids[i + 1], 2);
          EXPECT_EQ(output.prompt_logprobs[i][0].token, wanted[0].token);
          EXPECT_EQ(output.prompt_logprobs[i][0].logprob, wanted[0].logprob);
        }
      }
    }
  }
  EXPECT_EQ(times, 2U);
}

TEST(EngineTest, AbortAndAddFromOtherThreadsTakeEffectAtStepBoundaries) {
  Engine engine(model(), EngineOptions{}, nullptr, std::make_shared<PromptLookupProposer>(),
                make_fixed_policy(3));
  std::atomic<bool> done{false};
  std::thread client([&] {
    for (int i = 0; i < 200; ++i) {
      const RequestId id = engine.add_request(greedy_request({1, 2, TokenId(i % kVocab)}, 8));
      if (i % 3 == 0) engine.abort(id);
    }
    done = true;
  });
  while (!done || engine.has_unfinished()) engine.step();
  client.join();
  while (engine.has_unfinished()) engine.step();
  EXPECT_EQ(engine.stats().kv.num_free, engine.stats().kv.num_blocks);
  EXPECT_FALSE(engine.abort(0));
}

/// Fills its weights with NaN for one token: requests that meet it must end with an error alone.
TEST(EngineTest, UnusableLogitsEndOneRequestOnly) {
  const ModelConfig config = tiny_config();
  auto weights = std::make_shared<testing::RandomWeights>(config, 11);
  const TensorView table = *weights->find("model.embed_tokens.weight");
  auto* row = static_cast<float*>(const_cast<void*>(table.data)) + 50 * config.hidden_size;
  std::fill(row, row + config.hidden_size, std::numeric_limits<float>::quiet_NaN());
  ModelOptions model_options;
  model_options.keep_alive = weights;
  const auto broken = std::make_shared<const Model>(
      model()->runtime(), config, [&](std::string_view name) { return weights->find(name); },
      model_options);
  Engine healthy(model(), EngineOptions{}, nullptr);
  healthy.add_request(greedy_request({1, 2, 3}, 12));
  const auto expected = run_all(healthy).tokens.at({0, 0});

  Engine engine(broken, EngineOptions{}, nullptr, std::make_shared<PromptLookupProposer>(),
                make_fixed_policy(4));
  const RequestId bad = engine.add_request(greedy_request({50, 2, 3}, 12));
  const RequestId good = engine.add_request(greedy_request({1, 2, 3}, 12));
  const Collected result = run_all(engine);
  EXPECT_EQ(result.last.at({bad, 0}).finish_reason, FinishReason::kError);
  EXPECT_FALSE(result.last.at({bad, 0}).error.empty());
  EXPECT_EQ(result.tokens.at({good, 0}), expected);
  EXPECT_EQ(engine.stats().kv.num_free, engine.stats().kv.num_blocks);
}

}  // namespace
}  // namespace smartspec
