// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Promise P1: whatever the proposers, policy, tree, batch, chunking, cache, preemption or thread
// count, every request emits the tokens, and the logits behind them, of plain decoding of that
// request alone, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "engine/test_models.hpp"
#include "smartspec/draft_model.hpp"
#include "smartspec/engine.hpp"
#include "smartspec/goodput_policy.hpp"
#include "smartspec/prompt_lookup.hpp"
#include "smartspec/suffix_proposer.hpp"

namespace smartspec {
namespace {

using testing::JunkProposer;
using testing::tiny_config;
using testing::tiny_model;
using testing::WildPolicy;

constexpr std::int32_t kVocab = 61;
constexpr std::size_t kPoolSize = 48;

struct Result {
  std::vector<TokenId> tokens;
  std::vector<std::uint64_t> hashes;
  std::vector<PositionLogprobs> logprobs;
  FinishReason reason = FinishReason::kNone;
};

bool same_logprobs(const std::vector<PositionLogprobs>& a, const std::vector<PositionLogprobs>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const PositionLogprobs& x, const PositionLogprobs& y) {
                      return std::equal(x.begin(), x.end(), y.begin(), y.end(),
                                        [](const TokenLogprob& p, const TokenLogprob& q) {
                                          return p.token == q.token && p.logprob == q.logprob &&
                                                 p.rank == q.rank;
                                        });
                    });
}

/// Prompts of 1..70 tokens, a third sharing prefixes; every sampling parameter appears somewhere.
Request make_request(std::size_t number) {
  std::mt19937_64 rng(1000 + number);
  const auto below = [&](std::uint64_t n) { return static_cast<std::int32_t>(rng() % n); };
  Request request;
  request.cache_salt = number % 4 == 3 ? 77 : 0;
  std::mt19937_64 shared(number % 3 == 0 ? 7 : 1000 + number);
  const std::int32_t length = 1 + below(70);
  for (std::int32_t i = 0; i < length; ++i) {
    request.prompt_token_ids.push_back(static_cast<TokenId>(shared() % kVocab));
  }
  if (number % 4 == 1) {  // repetitive text, so that lookup has something to find
    for (std::size_t i = 6; i < request.prompt_token_ids.size(); ++i) {
      request.prompt_token_ids[i] = request.prompt_token_ids[i % 6];
    }
  }
  SamplingParams& params = request.sampling;
  params.seed = static_cast<std::int64_t>(number * 17);
  params.max_tokens = 24 + below(40);
  params.temperature = number % 2 == 0 ? 0.0F : 1.0F;
  if (number % 5 == 1) params.temperature = 0.5F;
  if (number % 6 == 1) params.top_p = 0.9F;
  if (number % 6 == 2) params.top_k = 10;
  if (number % 6 == 3) params.min_p = 0.05F;
  if (number % 7 == 1) params.repetition_penalty = 1.3F;
  if (number % 7 == 2) params.presence_penalty = 0.7F;
  if (number % 7 == 3) params.frequency_penalty = 0.4F;
  if (number % 8 == 1) params.stop_token_ids = {3, 5};
  if (number % 8 == 3) params.min_tokens = 10;
  if (number % 8 == 5) params.ignore_eos = true;
  if (number % 9 == 1) params.logit_bias = {{4, 3.0F}, {9, -5.0F}};
  if (number % 9 == 2) params.bad_words = {{7}, {8, 9}};
  if (number % 9 == 3) params.stop = {"ab", "q r"};
  if (number % 10 == 1) params.logprobs = 3;
  if (number % 11 == 1) params.allowed_token_ids = {{1, 2, 3, 10, 11, 12, 40, 41, 42}};
  return request;
}

std::shared_ptr<const StopVocabulary> make_stops() {
  auto stops = std::make_shared<StopVocabulary>();
  stops->eos_token_ids = {0, 60};
  for (std::int32_t i = 0; i < kVocab; ++i) {
    stops->token_bytes.push_back(std::string(1, static_cast<char>('a' + i % 26)) +
                                 (i % 5 == 0 ? " " : ""));
  }
  return stops;
}

/// An index that holds other text already, in two namespaces, and whose generations are sealed,
/// frozen and, when it is `full` of them, evicted while requests run.
std::shared_ptr<SuffixIndex> make_used_index(std::uint64_t seed, bool freeze, double full) {
  SuffixIndexOptions options;
  options.vocab_size = kVocab;
  options.max_bytes = std::size_t{1} << 20;
  options.generation_bytes = std::size_t{1} << (12 + seed % 6);
  options.freeze = freeze;
  options.background = seed / 8 % 2 == 0;
  auto index = std::make_shared<SuffixIndex>(options);
  std::mt19937_64 rng(seed);
  std::vector<TokenId> tokens(2000);
  const std::vector<std::int64_t> offsets = {0, 500, 1000, 1500, 2000};
  std::string_view name_space = "77";
  for (auto stats = index->stats();
       stats.evicted_tokens == 0 &&
       static_cast<double>(stats.num_bytes) < full * static_cast<double>(options.max_bytes);
       stats = index->stats()) {
    for (TokenId& token : tokens) token = static_cast<TokenId>(rng() % kVocab);
    index->preload(offsets, tokens, name_space);
    index->wait();
    name_space = {};
  }
  return index;
}

struct Setting {
  std::string proposer = "none";
  std::int32_t length = 4;
  std::int32_t width = 1;
  std::int32_t batch = 8;
  std::int32_t chunk = 512;
  std::int32_t blocks = 0;  // 0: plenty; else tight, so that requests are preempted
  bool prefix_cache = false;
  bool force_preempt = false;
  bool aborts = false;
  std::int32_t threads = 1;
  std::uint64_t seed = 0;
  std::string policy = "fixed";
  std::shared_ptr<SuffixIndex> index{};  // of suffix proposers; null: one of their own

  [[nodiscard]] std::string text() const {
    return proposer + " " + policy + " k=" + std::to_string(length) +
           " w=" + std::to_string(width) + " batch=" + std::to_string(batch) +
           " chunk=" + std::to_string(chunk) + " blocks=" + std::to_string(blocks) +
           " cache=" + std::to_string(prefix_cache) + " preempt=" + std::to_string(force_preempt) +
           " aborts=" + std::to_string(aborts) + " threads=" + std::to_string(threads) +
           " seed=" + std::to_string(seed);
  }
};

class ExactnessTest : public ::testing::TestWithParam<DType> {
 protected:
  static const std::shared_ptr<Runtime>& runtime(std::int32_t threads) {
    static std::map<std::int32_t, std::shared_ptr<Runtime>> runtimes;
    auto& entry = runtimes[threads];
    if (entry == nullptr) entry = make_runtime(Device::kCpu, threads);
    return entry;
  }

  static std::shared_ptr<const Model> model(std::int32_t threads, DType dtype, float noise) {
    static std::map<std::tuple<std::int32_t, DType, float>, std::shared_ptr<const Model>> models;
    auto& entry = models[{threads, dtype, noise}];
    if (entry == nullptr) entry = tiny_model(runtime(threads), dtype, 11, noise);
    return entry;
  }

  std::shared_ptr<Proposer> make_proposer(const Setting& setting) const {
    if (setting.proposer == "none") return nullptr;
    if (setting.proposer == "junk") {
      return std::make_shared<JunkProposer>(kVocab, setting.width, setting.seed);
    }
    if (setting.proposer == "lookup") {
      return std::make_shared<PromptLookupProposer>(PromptLookupOptions{
          .prompt_lookup_max = 3, .prompt_lookup_min = 1, .tree_width = setting.width});
    }
    if (setting.proposer == "suffix") {
      const bool freeze = setting.seed % 4 < 2;
      return std::make_shared<SuffixProposer>(
          setting.index != nullptr ? setting.index
                                   : make_used_index(setting.seed, freeze, freeze ? 0.2 : 0.95),
          SuffixProposerOptions{.min_survival = setting.seed % 2 == 0 ? 0.02F : 0.15F,
                                .tree_width = setting.width});
    }
    if (setting.proposer == "suffix+draft") {
      Setting free = setting, paid = setting;
      free.proposer = "suffix";
      paid.proposer = "draft";
      return std::make_shared<StackedProposer>(make_proposer(free), make_proposer(paid), 0.8,
                                               1 + setting.length / 2);
    }
    // "twin" drafts with the target itself, "draft" with a noisy copy of it.
    const float noise = setting.proposer == "twin" ? 0.0F : 0.15F;
    return std::make_shared<DraftModelProposer>(
        model(setting.threads, GetParam(), noise),
        DraftModelOptions{.tree_width = setting.width,
                          .num_kv_blocks = setting.blocks > 0 ? setting.blocks : 400,
                          .max_num_batched_tokens = std::max(64, setting.chunk)},
        kVocab);
  }

  /// "a,b": two proposers, among which the policy chooses.
  std::vector<std::shared_ptr<Proposer>> make_proposers(const Setting& setting) const {
    std::vector<std::shared_ptr<Proposer>> proposers;
    std::istringstream names(setting.proposer);
    for (Setting one = setting; std::getline(names, one.proposer, ',');) {
      if (auto proposer = make_proposer(one)) proposers.push_back(std::move(proposer));
    }
    return proposers;
  }

  static std::shared_ptr<LengthPolicy> make_policy(const Setting& setting) {
    if (setting.proposer == "none") return nullptr;
    if (setting.policy == "wild") {
      return std::make_shared<WildPolicy>(setting.length, setting.seed);
    }
    if (setting.policy == "goodput") {
      GoodputOptions options{.max_depth = setting.length, .max_paid_depth = setting.length};
      options.probe_budget = 0.05;
      if (setting.seed % 2 == 0) {  // next to a target this tiny no draft model pays: pretend
        options.draft.seconds = {1e-7};
        options.cost.learn = false;
      }
      return make_goodput_policy(options);
    }
    return make_fixed_policy(setting.length);
  }

  /// Each request alone, no speculation, the whole prompt in one pass.
  const Result& reference(std::size_t number) {
    static std::map<std::pair<DType, std::size_t>, Result> results;
    auto& result = results[{GetParam(), number}];
    if (result.reason != FinishReason::kNone) return result;
    EngineOptions options;
    options.max_num_seqs = 1;
    options.enable_prefix_caching = false;
    options.record_logits_hash = true;
    Engine engine(model(1, GetParam(), 0.0F), options, make_stops());
    engine.add_request(make_request(number));
    while (engine.has_unfinished()) {
      for (const RequestOutput& output : engine.step()) append(output, result);
    }
    return result;
  }

  static void append(const RequestOutput& output, Result& result) {
    result.tokens.insert(result.tokens.end(), output.new_token_ids.begin(),
                         output.new_token_ids.end());
    result.hashes.insert(result.hashes.end(), output.logits_hashes.begin(),
                         output.logits_hashes.end());
    result.logprobs.insert(result.logprobs.end(), output.logprobs.begin(), output.logprobs.end());
    result.reason = output.finish_reason;
  }

  /// Serves the whole pool under `setting`; returns the number of tokens compared.
  std::int64_t run(const Setting& setting) {
    EngineOptions options;
    options.max_num_seqs = setting.batch;
    options.max_num_batched_tokens = std::max(setting.chunk, setting.batch);
    options.num_kv_blocks = setting.blocks;
    options.max_model_len = 140;
    options.enable_prefix_caching = setting.prefix_cache;
    options.record_logits_hash = true;
    Engine engine(model(setting.threads, GetParam(), 0.0F), options, make_stops(),
                  make_proposers(setting), make_policy(setting));
    std::mt19937_64 rng(setting.seed);
    std::map<RequestId, std::size_t> numbers;
    std::map<RequestId, Result> results;
    std::size_t next = 0;
    std::vector<RequestId> live;
    while (next < kPoolSize || engine.has_unfinished()) {
      for (std::uint64_t burst = rng() % 4; burst > 0 && next < kPoolSize; --burst, ++next) {
        Request request = make_request(next);
        request.priority = static_cast<std::int32_t>(rng() % 2);
        if (next % 3 == 1) request.prediction = make_prediction(next);
        if (next % 7 == 3) request.min_draft_tokens = 3;
        if (next % 7 == 4) request.max_draft_tokens = 2;
        if (next % 5 == 2) request.tpot_target = 1e-3;
        const RequestId id = engine.add_request(std::move(request));
        numbers[id] = next;
        live.push_back(id);
      }
      if (setting.force_preempt && !live.empty() && rng() % 3 == 0) {
        engine.preempt(live[rng() % live.size()]);
      }
      if (setting.aborts && !live.empty() && rng() % 16 == 0) {
        const RequestId id = live[rng() % live.size()];
        engine.abort(id);
        std::erase(live, id);
        numbers.erase(id);
        results.erase(id);
      }
      for (const RequestOutput& output : engine.step()) {
        append(output, results[output.id]);
        EXPECT_TRUE(numbers.contains(output.id)) << "output after abort";
        if (output.finish_reason != FinishReason::kNone) std::erase(live, output.id);
      }
    }
    EXPECT_EQ(engine.check_integrity(), "");
    EXPECT_EQ(engine.stats().kv.num_free, engine.stats().kv.num_blocks);
    EXPECT_EQ(engine.stats().last_proposer_error, "");
    accepted_ += engine.stats().num_accepted;
    std::int64_t compared = 0;
    for (const auto& [id, number] : numbers) compared += compare(results[id], number);
    return compared;
  }

  /// What the request will say, with a slip now and then.
  std::vector<TokenId> make_prediction(std::size_t number) {
    std::vector<TokenId> tokens = reference(number).tokens;
    for (std::size_t i = 6; i < tokens.size(); i += 7) tokens[i] = (tokens[i] + 1) % kVocab;
    return tokens;
  }

  std::int64_t accepted_ = 0;  // drafted tokens, over all runs of a test

  /// Engines that come and go over one index, the same requests each time.
  void share_index(const std::shared_ptr<SuffixIndex>& index) {
    const auto start = index->stats();
    std::vector<std::int64_t> accepted;
    for (const char* proposer : {"suffix", "suffix+draft", "suffix", "suffix"}) {
      Setting setting{.proposer = proposer, .length = 8, .seed = 6, .index = index};
      setting.width = accepted.size() == 3 ? 3 : 1;
      SCOPED_TRACE(setting.text());
      accepted_ = 0;
      EXPECT_GT(run(setting), 0);
      if (HasFailure()) return;
      accepted.push_back(accepted_);
    }
    EXPECT_GT(accepted[0], 100);
    EXPECT_GT(accepted[2], 2 * accepted[0]) << "the same requests again: all was seen before";
    index->wait();
    const auto end = index->stats();
    EXPECT_EQ(end.num_requests, 0);
    EXPECT_EQ(end.num_namespaces, 2);
    if (index->options().freeze) {
      EXPECT_GT(end.frozen_tokens, start.frozen_tokens);
    } else {
      EXPECT_GT(end.evicted_tokens, start.evicted_tokens);
    }
    EXPECT_LE(end.num_bytes, static_cast<std::int64_t>(index->options().max_bytes));
  }

  std::int64_t compare(const Result& result, std::size_t number) {
    const Result& expected = reference(number);
    EXPECT_EQ(result.tokens, expected.tokens) << "request " << number;
    EXPECT_EQ(result.hashes, expected.hashes) << "request " << number;
    EXPECT_EQ(result.reason, expected.reason) << "request " << number;
    EXPECT_TRUE(same_logprobs(result.logprobs, expected.logprobs)) << "request " << number;
    return static_cast<std::int64_t>(result.tokens.size());
  }
};

/// Tokens each dtype must have compared when the suite ends; SMARTSPEC_TEST_TOKENS shrinks it for
/// sanitizer builds.
std::int64_t token_goal() {
  const char* text = std::getenv("SMARTSPEC_TEST_TOKENS");
  return text != nullptr ? std::atoll(text) : 100000;
}

TEST_P(ExactnessTest, EveryAxisAlone) {
  const std::vector<Setting> settings = {
      {.proposer = "none"},
      {.proposer = "none", .batch = 32, .chunk = 32, .prefix_cache = true},
      {.proposer = "lookup", .length = 8, .width = 3},
      {.proposer = "twin", .length = 1, .batch = 1},
      {.proposer = "twin", .length = 5, .batch = 16},
      {.proposer = "draft", .length = 16, .width = 4, .batch = 4},
      {.proposer = "draft", .length = 3, .width = 2, .batch = 32, .threads = 2},
      {.proposer = "junk", .length = 16, .width = 4, .batch = 32, .chunk = 48},
      {.proposer = "junk", .length = 6, .width = 3, .blocks = 12, .prefix_cache = true},
      {.proposer = "draft", .length = 4, .blocks = 12, .force_preempt = true},
      {.proposer = "lookup", .length = 4, .prefix_cache = true, .aborts = true},
      {.proposer = "suffix", .length = 16, .batch = 4, .seed = 2},
      {.proposer = "suffix", .length = 8, .width = 4, .batch = 32, .chunk = 48, .seed = 13},
      {.proposer = "suffix", .length = 6, .width = 2, .blocks = 12, .force_preempt = true},
      {.proposer = "suffix+draft", .length = 8, .width = 2, .prefix_cache = true, .seed = 4},
      {.proposer = "suffix+draft", .length = 5, .blocks = 12, .aborts = true, .threads = 2},
      {.proposer = "lookup", .length = 8, .width = 2, .policy = "goodput"},
      {.proposer = "suffix", .length = 16, .batch = 16, .seed = 3, .policy = "goodput"},
      {.proposer = "draft", .length = 6, .width = 2, .policy = "goodput"},
      {.proposer = "twin", .length = 8, .batch = 4, .threads = 2, .policy = "goodput"},
      {.proposer = "suffix,draft", .length = 8, .seed = 5, .policy = "goodput"},
      {.proposer = "suffix,twin", .length = 6, .blocks = 12, .seed = 5, .policy = "goodput"},
      {.proposer = "lookup,junk,draft", .length = 5, .batch = 16, .policy = "goodput"},
      {.proposer = "suffix,draft",
       .length = 8,
       .prefix_cache = true,
       .aborts = true,
       .policy = "wild"},
      {.proposer = "junk,twin,lookup",
       .length = 9,
       .width = 3,
       .chunk = 33,
       .blocks = 14,
       .force_preempt = true,
       .policy = "wild"},
      {.proposer = "suffix,draft", .length = 4},
  };
  for (const Setting& setting : settings) {
    SCOPED_TRACE(setting.text());
    accepted_ = 0;
    EXPECT_GT(run(setting), 0);
    if (setting.proposer != "none" && setting.proposer != "junk") {
      EXPECT_GT(accepted_, 0);
    }
    if (HasFailure()) return;
  }
}

TEST_P(ExactnessTest, OneSuffixIndexOverManyEngines) {
  share_index(make_used_index(0, true, 0.5));
  if (!HasFailure()) share_index(make_used_index(0, false, 0.97));
}

TEST_P(ExactnessTest, RandomCombinations) {
  std::mt19937_64 rng(2026);
  const std::vector<std::string> proposers = {"none",         "lookup",       "twin",
                                              "draft",        "junk",         "suffix",
                                              "suffix+draft", "suffix,draft", "draft,lookup,junk"};
  std::int64_t compared = 0;
  std::int64_t rounds = 0;
  for (std::uint64_t round = 0; compared < token_goal(); ++round, ++rounds) {
    Setting setting;
    setting.proposer = proposers[round % proposers.size()];
    setting.length = static_cast<std::int32_t>(1 + rng() % 16);
    setting.width = static_cast<std::int32_t>(1 + rng() % 4);
    setting.batch = static_cast<std::int32_t>(1 + rng() % 32);
    setting.chunk = std::vector<std::int32_t>{7, 16, 33, 64, 512}[rng() % 5];
    setting.blocks = rng() % 3 == 0 ? static_cast<std::int32_t>(9 + rng() % 20) : 0;
    setting.prefix_cache = rng() % 2 == 0;
    setting.force_preempt = rng() % 4 == 0;
    setting.aborts = rng() % 4 == 0;
    setting.threads = static_cast<std::int32_t>(1 + rng() % 2);
    setting.seed = rng();
    setting.policy = std::vector<std::string>{"fixed", "goodput", "goodput", "wild"}[rng() % 4];
    SCOPED_TRACE(setting.text());
    compared += run(setting);
    if (HasFailure()) return;
  }
  RecordProperty("tokens_compared", std::to_string(compared));
  std::cout << "compared " << compared << " tokens and their logits in " << rounds
            << " settings, 0 mismatches\n";
}

INSTANTIATE_TEST_SUITE_P(Weights, ExactnessTest,
                         ::testing::Values(DType::kFloat32, DType::kBFloat16),
                         [](const auto& weights) { return std::string(name_of(weights.param)); });

}  // namespace
}  // namespace smartspec
