// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The scheduler against the same rule written naively, under random operations.
#include "schedule/scheduler_model.hpp"

#include <gtest/gtest.h>

#include <random>

namespace smartspec {
namespace {

using test::chain_of;
using test::FakeHost;
using test::kOptions;
using test::NaiveScheduler;
using test::StubPolicy;

struct RandomLoad {
  std::int32_t num_blocks;
  std::int32_t block_size;
  double aging_seconds;
  std::int32_t num_steps;
};

class SchedulerModelTest : public ::testing::TestWithParam<RandomLoad> {};

TEST_P(SchedulerModelTest, RandomOperationsMatchTheNaiveModel) {
  const RandomLoad& load = GetParam();
  std::mt19937 random(static_cast<unsigned>(load.num_blocks * 31 + load.num_steps));
  const auto draw = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  SchedulerOptions options = kOptions;
  options.aging_seconds = load.aging_seconds;
  FakeHost host(load.num_blocks, load.block_size);
  FakeHost naive_host(load.num_blocks, load.block_size);
  host.has_siblings = naive_host.has_siblings = true;
  auto policy = std::make_shared<StubPolicy>();
  policy->on_plan = [&](std::span<DraftChoice> choices) {
    for (DraftChoice& choice : choices) choice = {draw(-1, 2), draw(0, 20), 0};
  };
  policy->on_prefill = [&](std::int32_t wanted) { return draw(-3, wanted + 9); };
  std::vector<std::int32_t> kept_by_policy;
  policy->on_allocate = [&](std::span<TokenTree* const> trees) {
    kept_by_policy.clear();
    for (TokenTree* tree : trees) {
      if (draw(0, 2) == 0) tree->truncate(draw(0, 8));
      kept_by_policy.push_back(tree->size());
    }
  };
  Scheduler scheduler(options, policy, host);
  NaiveScheduler naive(options, naive_host);

  double now = 0;
  RequestId next_id = 0;
  std::int64_t num_operations = 0;
  std::vector<TokenId> text(32, 1);
  std::vector<TokenTree> trees;
  for (std::int32_t step = 0; step < load.num_steps; ++step) {
    now += draw(0, 3) * 0.1;
    while (naive.size() < 30 && draw(0, 2) > 0) {
      const SchedulerRequest request{
          .id = next_id++,
          .priority = draw(-2, 2),
          .num_prompt_tokens = draw(0, 3) == 0 ? draw(1, 90) : draw(1, 30),
          .max_tokens = draw(1, 60),
          .control = {.max_tokens = draw(0, 12)}};
      scheduler.add(request, now);
      naive.add(request, now);
      ++num_operations;
    }
    if (next_id > 0 && draw(0, 9) == 0) {
      const RequestId id = draw(0, static_cast<int>(next_id) - 1);
      ASSERT_EQ(scheduler.remove(id), naive.contains(id));
      if (naive.contains(id)) naive.remove(id);
      ++num_operations;
    }
    const std::vector<RequestId> running = scheduler.running();
    ASSERT_EQ(running, naive.in_order(true));
    if (!running.empty() && draw(0, 19) == 0) {
      const RequestId id =
          running[static_cast<std::size_t>(draw(0, static_cast<int>(running.size()) - 1))];
      ASSERT_TRUE(scheduler.preempt(id));
      naive.preempt(id);
      ++num_operations;
    }

    const auto slots = scheduler.begin_step(now);
    const std::vector<RequestId> expected_slots = naive.begin();
    ASSERT_EQ(slots.size(), expected_slots.size());
    trees.resize(std::max(trees.size(), slots.size()));
    std::vector<Candidate> candidates;
    std::vector<TokenTree> offers(slots.size());
    for (std::size_t i = 0; i < slots.size(); ++i) {
      ASSERT_EQ(slots[i].id, expected_slots[i]);
      const auto& asked = naive.at(slots[i].id);
      const std::int32_t useful = asked.asked.max_tokens - asked.output - 1;
      ASSERT_EQ(slots[i].max_depth,
                std::max(std::min({useful, 16, asked.asked.control.max_tokens}), 0));
      offers[i] = chain_of(draw(0, 6));
      candidates.push_back(
          {.request = static_cast<std::int32_t>(i), .proposer = 0, .tree = &offers[i]});
    }
    const auto choices = scheduler.plan(candidates);
    std::vector<TokenTree*> pointers;
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const DraftChoice& choice = choices[i];
      ASSERT_EQ(choice.proposer < 0, choice.depth == 0);
      ASSERT_LE(choice.depth, slots[i].max_depth);
      ASSERT_LT(choice.proposer, 2);
      trees[i] = choice.proposer == 0 ? offers[i] : chain_of(choice.proposer < 0 ? 3 : draw(0, 20));
      pointers.push_back(&trees[i]);
    }
    const auto scheduled = scheduler.schedule(pointers, {});
    std::map<RequestId, std::int32_t> drafted;
    for (std::size_t r = 0; r < policy->shown.size(); ++r) {
      drafted[policy->shown[r].id] =
          std::min(kept_by_policy[r], policy->shown[r].control.max_tokens);
    }
    naive.cut_drafts(drafted);
    std::int32_t chunk_rows = options.max_num_batched_tokens;
    if (policy->wanted > 0) {
      const std::int32_t least = slots.empty() ? policy->wanted : 2;
      const std::int32_t held = std::max(policy->allowed, std::min(least, policy->wanted));
      if (held < policy->wanted) chunk_rows = held;
    }
    policy->wanted = 0;
    const auto expected = naive.schedule(drafted, chunk_rows);
    ASSERT_EQ(scheduled.size(), expected.size());
    std::int32_t num_rows = 0;
    std::vector<RequestOutcome> outcomes;
    std::vector<RequestId> ended;
    for (std::size_t i = 0; i < scheduled.size(); ++i) {
      ASSERT_EQ(scheduled[i].id, expected[i].id);
      ASSERT_EQ(scheduled[i].num_causal, expected[i].num_causal);
      ASSERT_EQ(scheduled[i].num_nodes, expected[i].num_nodes);
      ASSERT_EQ(scheduled[i].samples, expected[i].samples);
      num_rows += scheduled[i].num_causal + scheduled[i].num_nodes;
      auto& request = naive.at(scheduled[i].id);
      if (scheduled[i].samples && draw(0, 30) == 0) {  // it failed
        naive_host.rollback(request.asked.id);
        if (draw(0, 1) == 0) ended.push_back(request.asked.id);
        continue;
      }
      const std::int32_t accepted =
          std::min(draw(0, scheduled[i].num_nodes), request.asked.max_tokens - request.output - 1);
      const std::int32_t kept = scheduled[i].num_causal + (scheduled[i].samples ? accepted : 0);
      host.commit(request.asked.id, kept);
      naive_host.commit(request.asked.id, kept);
      request.computed += kept;
      if (!scheduled[i].samples) continue;
      request.tokens += accepted + 1;
      request.output += accepted + 1;
      outcomes.push_back(
          {.id = request.asked.id,
           .num_accepted = accepted,
           .emitted = std::span(text).first(static_cast<std::size_t>(accepted + 1))});
      if (request.output >= request.asked.max_tokens) ended.push_back(request.asked.id);
    }
    ASSERT_LE(num_rows, options.max_num_batched_tokens);
    ASSERT_EQ(scheduler.load().num_tokens, num_rows);
    scheduler.finish_step(outcomes, {}, 0.01, now);
    for (const RequestId id : ended) {
      ASSERT_TRUE(scheduler.remove(id));
      naive.remove(id);
    }
    num_operations += 2 + static_cast<std::int64_t>(ended.size());
    ASSERT_EQ(scheduler.check_integrity(), "");
    ASSERT_EQ(host.fault, "");
    ASSERT_EQ(naive_host.fault, "");
    ASSERT_EQ(host.free_blocks(), naive_host.free_blocks());
  }
  EXPECT_GT(num_operations, 2 * load.num_steps);
  EXPECT_GT(next_id, load.num_steps / 10) << "nothing ended";
  EXPECT_GT(scheduler.stats().num_preemptions, 100);
}

// Over all loads more than 10^5 operations.
INSTANTIATE_TEST_SUITE_P(Loads, SchedulerModelTest,
                         ::testing::Values(RandomLoad{0, 0, 30, 13000}, RandomLoad{24, 8, 1, 13000},
                                           RandomLoad{40, 4, 0, 13000},
                                           RandomLoad{60, 16, 0.5, 13000}));

}  // namespace
}  // namespace smartspec
