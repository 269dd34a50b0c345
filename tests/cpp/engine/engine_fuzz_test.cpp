// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Random operations on the engine API against what each request must emit: add (good and bad),
// step, abort, preempt, clear the prefix cache, with proposers that help, lie, throw or return
// rubbish, policies of every kind, and clocks that jump.
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <stdexcept>
#include <vector>

#include "engine/test_models.hpp"
#include "smartspec/draft_model.hpp"
#include "smartspec/engine.hpp"
#include "smartspec/goodput_policy.hpp"
#include "smartspec/prompt_lookup.hpp"
#include "smartspec/suffix_proposer.hpp"

namespace smartspec {
namespace {

constexpr std::size_t kPool = 40;

ModelConfig micro_config() {
  ModelConfig config = testing::tiny_config();
  config.vocab_size = 24;
  config.hidden_size = 16;
  config.intermediate_size = 16;
  config.num_hidden_layers = 1;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.head_dim = 8;
  config.max_position_embeddings = 64;
  return config;
}

/// Delegates, throws, or returns trees no engine may trust.
class HostileProposer final : public Proposer {
 public:
  HostileProposer(std::shared_ptr<Proposer> inner, std::uint64_t seed)
      : inner_(std::move(inner)), rng_(seed) {}
  [[nodiscard]] std::string_view name() const override { return "hostile"; }
  void propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) override {
    if (rng_() % 16 == 0) throw std::runtime_error("proposer failed");
    inner_->propose(requests, trees);
    for (TokenTree& tree : trees) {
      // Once is enough: what an inner one left ragged cannot be indexed.
      if (rng_() % 4 == 0 && tree.parents.size() == tree.tokens.size()) spoil(tree);
    }
  }
  void observe(std::span<const Outcome> outcomes) override {
    if (rng_() % 4 != 0) inner_->observe(outcomes);
    if (rng_() % 32 == 0) throw std::runtime_error("observe failed");
  }
  void finish(RequestId id) override {
    inner_->finish(id);
    if (rng_() % 32 == 0) throw std::runtime_error("finish failed");
  }

 private:
  void spoil(TokenTree& tree) {
    tree.add(static_cast<TokenId>(rng_() % 24), -1, 0.0F);
    const std::size_t last = tree.tokens.size() - 1;
    switch (rng_() % 8) {
      case 0:
        tree.tokens[last] = 24 + static_cast<TokenId>(rng_() % 1000);
        break;
      case 1:
        tree.tokens[last] = -1;
        break;
      case 2:
        tree.parents[last] = static_cast<std::int32_t>(last);
        break;
      case 3:
        tree.parents[last] = std::numeric_limits<std::int32_t>::min();
        break;
      case 4:
        tree.survival[last] = std::numeric_limits<float>::quiet_NaN();
        break;
      case 5:
        tree.depths[last] = std::numeric_limits<std::int32_t>::max();
        break;
      case 6:
        tree.parents.pop_back();
        break;
      default:
        for (int i = 0; i < 400; ++i) tree.add(1, tree.size() - 1, 0.0F);
    }
  }

  std::shared_ptr<Proposer> inner_;
  std::mt19937_64 rng_;
};

Request make_request(std::size_t number) {
  std::mt19937_64 rng(number + 99);
  Request request;
  const std::size_t length = 1 + rng() % 30;
  for (std::size_t i = 0; i < length; ++i) {
    request.prompt_token_ids.push_back(
        static_cast<TokenId>((number % 2 == 0 ? i * 5 : rng()) % 24));
  }
  request.sampling.max_tokens = static_cast<std::int32_t>(1 + rng() % 20);
  request.sampling.temperature = number % 2 == 0 ? 0.0F : 1.0F;
  request.sampling.seed = static_cast<std::int64_t>(number);
  request.sampling.n = number % 5 == 0 ? 3 : 1;
  request.cache_salt = number % 3;
  if (number % 7 == 2) request.prediction.assign(length, static_cast<TokenId>(rng() % 24));
  if (number % 4 == 1) request.max_draft_tokens = static_cast<std::int32_t>(number % 3);
  if (number % 8 == 3) request.min_draft_tokens = 2;
  if (number % 9 == 4) request.proposer = "hostile";
  if (number % 6 == 5) request.tpot_target = 1e-4;
  return request;
}

Request make_bad_request(std::uint64_t kind) {
  Request request = make_request(1);
  switch (kind % 13) {
    case 8:
      request.prediction = {24};
      break;
    case 9:
      request.prediction.assign(65, 1);
      break;
    case 10:
      request.proposer = "nobody";
      break;
    case 11:
      request.min_draft_tokens = 300;
      break;
    case 12:
      request.tpot_target = std::numeric_limits<double>::quiet_NaN();
      break;
    case 0:
      request.prompt_token_ids.clear();
      break;
    case 1:
      request.prompt_token_ids[0] = -7;
      break;
    case 2:
      request.prompt_token_ids[0] = 24;
      break;
    case 3:
      request.prompt_token_ids.assign(64, 1);
      break;
    case 4:
      request.sampling.n = 1000000000;
      break;
    case 5:
      request.sampling.temperature = std::numeric_limits<float>::quiet_NaN();
      break;
    case 6:
      request.max_draft_tokens = -1;
      break;
    default:
      request.sampling.stop = {"needs token bytes"};
  }
  return request;
}

using Streams = std::map<std::int32_t, std::vector<TokenId>>;  // by completion index

std::int64_t operations() {
  const char* text = std::getenv("SMARTSPEC_TEST_OPERATIONS");
  return text != nullptr ? std::atoll(text) : 100000;
}

class EngineFuzz {
 public:
  explicit EngineFuzz(std::uint64_t seed) : rng_(seed) {
    runtime_ = make_runtime(Device::kCpu, 1);
    model_ = testing::tiny_model(runtime_, DType::kFloat32, 3, 0.0F, micro_config());
  }

  void run(std::int64_t count) {
    restart();
    for (std::int64_t i = 0; i < count && !::testing::Test::HasFailure(); ++i) {
      one_operation();
      if (i % 64 == 0) {
        ASSERT_EQ(engine_->check_integrity(), "");
      }
      if (i % 5000 == 4999) {
        drain();
        restart();
      }
    }
    drain();
  }

 private:
  struct Live {
    std::size_t number = 0;
    Streams streams;
    std::int32_t unfinished = 0;
  };

  const Streams& expected(std::size_t number) {
    auto& streams = expected_[number];
    if (!streams.empty()) return streams;
    EngineOptions options;
    options.enable_prefix_caching = false;
    Engine engine(model_, options, nullptr);
    Request request = make_request(number);
    request.proposer.reset();  // this engine has none
    engine.add_request(std::move(request));
    while (engine.has_unfinished()) {
      for (const RequestOutput& output : engine.step()) {
        auto& stream = streams[output.index];
        stream.insert(stream.end(), output.new_token_ids.begin(), output.new_token_ids.end());
      }
    }
    return streams;
  }

  std::shared_ptr<Proposer> make_proposer(std::uint64_t kind) {
    if (kind == 0) {
      return std::make_shared<PromptLookupProposer>(
          PromptLookupOptions{.prompt_lookup_max = 2, .prompt_lookup_min = 1, .tree_width = 2});
    }
    if (kind == 1) {
      SuffixIndexOptions options;
      options.vocab_size = 24;
      options.max_bytes = std::size_t{1} << 20;
      options.generation_bytes = std::size_t{1} << (12 + rng_() % 6);
      options.freeze = rng_() % 2 == 0;
      return std::make_shared<SuffixProposer>(
          std::make_shared<SuffixIndex>(options),
          SuffixProposerOptions{.min_survival = 0.05F,
                                .tree_width = static_cast<std::int32_t>(1 + rng_() % 4)});
    }
    if (kind == 2) {
      // Each half hostile by itself: one failing must not take the other along.
      return std::make_shared<StackedProposer>(
          std::make_shared<HostileProposer>(make_proposer(rng_() % 2), rng_()),
          std::make_shared<HostileProposer>(make_proposer(3), rng_()));
    }
    return std::make_shared<DraftModelProposer>(
        testing::tiny_model(runtime_, DType::kFloat32, 3, 0.2F, micro_config()),
        DraftModelOptions{.tree_width = static_cast<std::int32_t>(1 + rng_() % 3),
                          .num_kv_blocks = static_cast<std::int32_t>(4 + rng_() % 8)},
        24);
  }

  std::shared_ptr<LengthPolicy> make_policy(std::int32_t length) {
    switch (rng_() % 3) {
      case 0:
        return make_fixed_policy(length);
      case 1:
        return make_goodput_policy({.max_depth = length, .max_paid_depth = length});
      default:
        return std::make_shared<testing::WildPolicy>(length, rng_());
    }
  }

  /// The real one, or one that jumps to and fro and may not be a number.
  std::function<double()> make_clock() {
    if (rng_() % 2 == 0) return {};
    return [rng = std::mt19937_64(rng_()), time = 0.0]() mutable {
      switch (rng() % 64) {
        case 0:
          return std::numeric_limits<double>::quiet_NaN();
        case 1:
          return std::numeric_limits<double>::infinity();
        case 2:
          time -= 1;
          break;
        case 3:
          time += 1e3;
          break;
        default:
          time += 1e-6 * static_cast<double>(rng() % 100);
      }
      return time;
    };
  }

  void restart() {
    EngineOptions options;
    options.clock = make_clock();
    options.max_num_seqs = static_cast<std::int32_t>(1 + rng_() % 12);
    options.max_num_batched_tokens = options.max_num_seqs + static_cast<std::int32_t>(rng_() % 40);
    options.num_kv_blocks = static_cast<std::int32_t>(4 + rng_() % 20);
    options.enable_prefix_caching = rng_() % 2 == 0;
    options.aging_seconds = rng_() % 2 == 0 ? 1e-4 : 30;
    std::vector<std::shared_ptr<Proposer>> proposers;
    for (std::uint64_t count = 1 + rng_() % 3; count > 0; --count) {
      proposers.push_back(std::make_shared<HostileProposer>(make_proposer(rng_() % 4), rng_()));
    }
    engine_ = std::make_unique<Engine>(model_, options, nullptr, std::move(proposers),
                                       make_policy(static_cast<std::int32_t>(1 + rng_() % 8)));
    live_.clear();
  }

  [[nodiscard]] RequestId some_id() {
    if (live_.empty() || rng_() % 8 == 0) return static_cast<RequestId>(rng_() % 1000);
    auto entry = live_.begin();
    std::advance(entry, static_cast<std::ptrdiff_t>(rng_() % live_.size()));
    return entry->first;
  }

  void one_operation() {
    const std::uint64_t pick = rng_() % 100;
    if (pick < 20 && live_.size() < 40) {
      const std::size_t number = rng_() % kPool;
      Request request = make_request(number);
      request.priority = static_cast<std::int32_t>(rng_() % 3);
      const std::int32_t n = request.sampling.n;
      const RequestId id = engine_->add_request(std::move(request));
      live_[id] = {.number = number, .streams = {}, .unfinished = n};
    } else if (pick < 25) {
      EXPECT_THROW(engine_->add_request(make_bad_request(rng_())), std::invalid_argument);
    } else if (pick < 30) {
      const RequestId id = some_id();
      EXPECT_EQ(engine_->abort(id), live_.erase(id) == 1);
    } else if (pick < 35) {
      engine_->preempt(some_id(), static_cast<std::int32_t>(rng_() % 2));
    } else if (pick < 36) {
      engine_->clear_prefix_cache();
    } else {
      step();
    }
  }

  void step() {
    for (const RequestOutput& output : engine_->step()) {
      const auto entry = live_.find(output.id);
      ASSERT_NE(entry, live_.end()) << "output of a request that is not live";
      auto& stream = entry->second.streams[output.index];
      stream.insert(stream.end(), output.new_token_ids.begin(), output.new_token_ids.end());
      const auto& wanted = expected(entry->second.number).at(output.index);
      ASSERT_LE(stream.size(), wanted.size());
      ASSERT_TRUE(std::equal(stream.begin(), stream.end(), wanted.begin()));
      if (output.finish_reason == FinishReason::kNone) continue;
      ASSERT_EQ(stream.size(), wanted.size());
      if (--entry->second.unfinished == 0) live_.erase(entry);
    }
  }

  void drain() {
    for (int i = 0; engine_->has_unfinished() && i < 100000; ++i) step();
    EXPECT_TRUE(live_.empty());
    EXPECT_EQ(engine_->check_integrity(), "");
    EXPECT_EQ(engine_->stats().kv.num_free, engine_->stats().kv.num_blocks);
  }

  std::mt19937_64 rng_;
  std::shared_ptr<Runtime> runtime_;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<Engine> engine_;
  std::map<RequestId, Live> live_;
  std::map<std::size_t, Streams> expected_;
};

TEST(EngineFuzzTest, RandomOperationsKeepEveryStreamExactAndEveryBlockAccounted) {
  EngineFuzz(1).run(operations());
}

}  // namespace
}  // namespace smartspec
