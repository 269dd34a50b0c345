// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A step of the engine allocates only what grows with new tokens. A binary of its own, because it
// replaces the global operator new.
#include <gtest/gtest.h>

#include "allocation_counter.hpp"
#include "engine/test_models.hpp"
#include "smartspec/draft_model.hpp"
#include "smartspec/engine.hpp"
#include "smartspec/goodput_policy.hpp"
#include "smartspec/prompt_lookup.hpp"
#include "smartspec/suffix_proposer.hpp"

namespace smartspec {
namespace {

using smartspec::testing::allocations;

constexpr std::int32_t kBatch = 8;
constexpr std::int32_t kWarmUp = 40;
constexpr std::int32_t kSteps = 60;
constexpr std::int32_t kMaxDraft = 16;
// However deep a policy drafts, and be all of it accepted, no request ends: an end allocates.
constexpr std::int32_t kMaxTokens = (kWarmUp + kSteps) * (kMaxDraft + 1);

/// Allocations of kSteps steps in which kBatch requests decode and draft.
std::int64_t count_allocations(const std::shared_ptr<const Model>& model,
                               std::vector<std::shared_ptr<Proposer>> proposers,
                               std::shared_ptr<LengthPolicy> policy) {
  EngineOptions options;
  options.max_num_seqs = kBatch;
  options.max_num_batched_tokens = 256;
  options.clock = [time = 0.0]() mutable { return time += 1e-4; };
  Engine engine(model, options, nullptr, std::move(proposers), std::move(policy));
  for (std::int32_t i = 0; i < kBatch; ++i) {
    Request request;
    request.prompt_token_ids.assign(10, 3 + i);
    request.sampling.temperature = i % 2 == 0 ? 0.0F : 1.0F;
    request.sampling.seed = i;
    request.sampling.max_tokens = kMaxTokens;
    request.sampling.ignore_eos = true;
    request.max_draft_tokens = kMaxDraft;
    if (i == 5) request.sampling.frequency_penalty = 0.1F;
    engine.add_request(std::move(request));
  }
  for (std::int32_t i = 0; i < kWarmUp; ++i) engine.step();
  const std::int64_t before = allocations;
  for (std::int32_t i = 0; i < kSteps; ++i) {
    EXPECT_EQ(engine.step().size(), static_cast<std::size_t>(kBatch));
  }
  return allocations - before;
}

/// Buffers that hold a request's tokens double now and then, and a full block enters the prefix
/// cache: a few allocations per request and block, none per step.
TEST(EngineAllocations, OnlyWhatGrowsWithNewTokens) {
  ModelConfig config = testing::tiny_config();
  config.max_position_embeddings = kMaxTokens + 16;
  const auto model =
      testing::tiny_model(make_runtime(Device::kCpu, 1), DType::kFloat32, 11, 0.0F, config);
  EXPECT_LE(count_allocations(model, {}, nullptr), kSteps);

  // 60 steps x 8 requests x up to 17 tokens = 8160 tokens, 510 blocks of 16.
  const auto draft = std::make_shared<DraftModelProposer>(model, DraftModelOptions{}, 61);
  EXPECT_LE(count_allocations(model, {draft}, make_fixed_policy(4)), 3 * kSteps);
  EXPECT_LE(count_allocations(model, {draft}, make_fixed_policy(kMaxDraft)), 3 * kSteps);

  SuffixIndexOptions options;
  options.vocab_size = 61;
  options.background = false;  // its own thread would be counted
  const auto suffix = std::make_shared<SuffixProposer>(
      std::make_shared<SuffixIndex>(options),
      SuffixProposerOptions{.min_survival = 0.05F, .tree_width = 2});
  EXPECT_LE(count_allocations(model, {suffix}, make_fixed_policy(4)), 3 * kSteps);
  const auto stacked = std::make_shared<StackedProposer>(suffix, draft);
  EXPECT_LE(count_allocations(model, {stacked}, make_fixed_policy(4)), 3 * kSteps);
  EXPECT_LE(count_allocations(model, {suffix, draft}, make_goodput_policy()), 3 * kSteps);
}

}  // namespace
}  // namespace smartspec
