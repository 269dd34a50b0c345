// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/scheduler.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>

#include "schedule/scheduler_model.hpp"

// Sanitizers bring their own operator new.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SMARTSPEC_COUNT_ALLOCATIONS
#include "allocation_counter.hpp"
#endif

namespace smartspec {
namespace {

using test::chain_of;
using test::Driver;
using test::FakeHost;
using test::kOptions;
using test::StubPolicy;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

void take_paid(std::span<DraftChoice> choices) {
  for (DraftChoice& choice : choices) choice = {.proposer = 1, .depth = 16, .min_survival = 0};
}

struct Bench {
  explicit Bench(std::int32_t num_blocks = 0, std::int32_t block_size = 0,
                 const SchedulerOptions& options = kOptions)
      : host(num_blocks, block_size), scheduler(options, policy, host), driver{scheduler, host} {}

  std::shared_ptr<StubPolicy> policy = std::make_shared<StubPolicy>();
  FakeHost host;
  Scheduler scheduler;
  Driver driver;
};

TEST(SchedulerTest, DraftsGiveWayBeforeRequests) {
  Bench bench(12, 4);  // 48 tokens
  bench.policy->on_plan = take_paid;
  bench.driver.draft_length = 4;
  for (RequestId id = 0; id < 3; ++id) {
    bench.driver.add({.id = id, .num_prompt_tokens = 8, .max_tokens = 30}, 0);
  }
  bool dropped = false;
  std::int64_t num_preemptions = 0;
  for (int step = 0; step < 100 && bench.scheduler.has_unfinished(); ++step) {
    const std::vector<RequestId> before = bench.scheduler.running();
    const std::vector<RequestId> ended = bench.driver.step(step);
    const std::vector<RequestId> after = bench.scheduler.running();
    for (const RequestId id : after) {
      dropped |= bench.scheduler.reason(id) == NoSpeculationReason::kKvExhausted;
    }
    if (bench.scheduler.stats().num_preemptions == num_preemptions) continue;
    num_preemptions = bench.scheduler.stats().num_preemptions;
    EXPECT_TRUE(ended.empty() && after.size() < before.size() &&
                std::equal(after.begin(), after.end(), before.begin()))
        << "not the last in order went";
  }
  EXPECT_FALSE(bench.scheduler.has_unfinished());
  EXPECT_TRUE(dropped);
  EXPECT_GT(num_preemptions, 0);
  EXPECT_LT(bench.host.most_reserved_at_release, 1 + 4) << "a request went while drafts stayed";
  EXPECT_EQ(bench.host.fault, "");
}

TEST(SchedulerTest, DraftsDoNotKeepAWaitingRequestOut) {
  Bench bench(16, 4);
  bench.policy->on_plan = take_paid;
  bench.driver.draft_length = 12;
  bench.driver.add({.id = 0, .num_prompt_tokens = 8, .max_tokens = 1000}, 0);
  bench.driver.step(0);
  bench.driver.plan(1);
  bench.driver.trees[0] = chain_of(12);
  // 9 tokens of request 0 and its draft take 6 blocks of 16; the newcomer needs 13.
  bench.driver.add({.id = 1, .num_prompt_tokens = 50, .max_tokens = 2}, 1);
  bench.driver.finish(1, false);
  EXPECT_TRUE(bench.scheduler.is_running(1));
  EXPECT_EQ(bench.scheduler.reason(0), NoSpeculationReason::kKvExhausted);
  EXPECT_EQ(bench.host.fault, "");
}

TEST(SchedulerTest, AgingEndsStarvation) {
  for (const double aging : {2.0, 0.0}) {
    SchedulerOptions options = kOptions;
    options.aging_seconds = aging;
    options.max_num_seqs = 2;
    Bench bench(0, 0, options);
    bench.driver.add({.id = 0, .priority = 10, .num_prompt_tokens = 4, .max_tokens = 5}, 0);
    RequestId next = 1;
    double ended = -1;
    // Two requests of the first class arrive for every one that can be served.
    for (int step = 0; step < 1000 && ended < 0; ++step) {
      const double now = step * 0.1;
      for (int i = 0; i < 2; ++i) {
        bench.driver.add({.id = next++, .num_prompt_tokens = 4, .max_tokens = 2}, now);
      }
      for (const RequestId id : bench.driver.step(now)) ended = id == 0 ? now : ended;
    }
    if (aging == 0.0) {
      EXPECT_EQ(ended, -1) << "without aging it should starve, else this test shows nothing";
    } else {
      // Priority 10 is made up after 20 s; those that came before that moment are served first.
      EXPECT_GT(ended, 20);
      EXPECT_LT(ended, 60);
    }
  }
}

TEST(SchedulerTest, OneThatRoseIsNotPreemptedForALaterOneOfItsOldClass) {
  SchedulerOptions options = kOptions;
  options.aging_seconds = 1;
  Bench bench(12, 4, options);
  bench.driver.add({.id = 0, .priority = 5, .num_prompt_tokens = 12, .max_tokens = 30}, 0);
  bench.driver.step(100);
  bench.driver.add({.id = 1, .priority = 4, .num_prompt_tokens = 12, .max_tokens = 30}, 100);
  for (int step = 0; step < 60 && bench.driver.left[0] > 0; ++step) bench.driver.step(100);
  EXPECT_EQ(bench.driver.left[0], 0);
  EXPECT_GT(bench.driver.left[1], 0);
  EXPECT_GT(bench.scheduler.stats().num_preemptions, 0);
}

TEST(SchedulerTest, ShowsTheStepToThePolicy) {
  Bench bench(100, 4);
  bench.driver.add({.id = 0, .num_prompt_tokens = 10, .max_tokens = 20, .group = 1}, 0);
  bench.driver.step(1);  // prompt; first token at time 1
  bench.driver.step(2);
  bench.driver.add({.id = 1, .num_prompt_tokens = 100, .max_tokens = 20}, 2.5);
  bench.policy->on_prefill = [](std::int32_t wanted) { return wanted / 3; };
  bench.driver.plan(4);

  EXPECT_EQ(bench.policy->num_decodes_shown, 1U);
  EXPECT_EQ(bench.policy->decodes_only.num_tokens, 1);
  EXPECT_EQ(bench.policy->wanted, 63);
  const StepView& view = bench.policy->view;
  EXPECT_EQ(view.now, 4);
  EXPECT_EQ(view.num_decodes, 1);
  EXPECT_EQ(view.token_budget, 31);  // half of the 63 rows left
  EXPECT_EQ(view.block_size, 4);
  EXPECT_EQ(view.free_blocks, 100 - 3 - 6);  // 11 computed tokens and a row; a chunk of 21
  EXPECT_EQ(view.base.num_tokens, 1 + 21);
  EXPECT_EQ(view.base.num_sequences, 2);
  EXPECT_EQ(view.base.num_logits, 1);
  EXPECT_EQ(view.base.kv_tokens, 12 + 21);
  EXPECT_EQ(view.base.attention_pairs, 12 + 21 * 22 / 2);
  ASSERT_EQ(bench.policy->shown.size(), 1U);
  const LengthRequest& shown = bench.policy->shown[0];
  EXPECT_EQ(shown.num_tokens, 12);
  EXPECT_EQ(shown.max_depth, 16);
  EXPECT_EQ(shown.group, 1);
  EXPECT_EQ(shown.num_output_tokens, 2);
  EXPECT_EQ(shown.num_remaining, 18);
  EXPECT_DOUBLE_EQ(shown.decode_seconds, 3);
  EXPECT_EQ(shown.block_room, 0);

  bench.driver.trees[0] = {};
  bench.driver.finish(5);
  ASSERT_EQ(bench.driver.rows.size(), 2U);
  EXPECT_EQ(bench.driver.rows[1].num_causal, 21);
  EXPECT_EQ(bench.policy->seen.load.num_tokens, 22);
  EXPECT_EQ(bench.policy->seen.load.attention_pairs, view.base.attention_pairs);
  EXPECT_EQ(bench.policy->seen.load.kv_tokens, view.base.kv_tokens);
  EXPECT_EQ(bench.policy->seen.requests.size(), 1U);
}

TEST(SchedulerTest, KeepsToTheControlOfARequest) {
  Bench bench;
  std::vector<SpeculationControl> controls(6);
  controls[0].enabled = false;
  controls[1].max_tokens = 0;
  controls[2].max_tokens = 3;
  controls[3].proposer = 1;
  controls[4].proposer = 0;
  controls[5].min_tokens = 4;
  for (std::size_t i = 0; i < controls.size(); ++i) {
    bench.driver.add({.id = static_cast<RequestId>(i), .max_tokens = 100, .control = controls[i]},
                     0);
  }
  bench.driver.step(0);
  const auto slots = bench.scheduler.begin_step(1);
  ASSERT_EQ(slots.size(), 6U);
  EXPECT_EQ(slots[0].reason, NoSpeculationReason::kRequest);
  EXPECT_EQ(slots[1].reason, NoSpeculationReason::kRequest);
  EXPECT_EQ(slots[2].max_depth, 3);

  const TokenTree offer = chain_of(8);
  std::vector<Candidate> candidates;
  for (std::int32_t i = 0; i < 6; ++i) candidates.push_back({i, 0, &offer});
  // The policy takes the free proposer for all but the last, for which it chooses none.
  bench.policy->on_plan = [](std::span<DraftChoice> choices) {
    for (DraftChoice& choice : choices) choice = {0, 99, 0};
    choices.back() = {};
  };
  const auto choices = bench.scheduler.plan(candidates);
  ASSERT_EQ(bench.policy->shown.size(), 4U);
  for (const Candidate& candidate : bench.policy->offered) {
    EXPECT_NE(bench.policy->shown[static_cast<std::size_t>(candidate.request)].id, 3);
  }
  EXPECT_EQ(bench.policy->offered.size(), 3U);
  EXPECT_EQ(choices[0].depth, 0);
  EXPECT_EQ(choices[2].depth, 3);
  EXPECT_EQ(choices[3].proposer, -1) << "the request allows only the other proposer";
  EXPECT_EQ(choices[4].depth, 16);
  EXPECT_EQ(choices[5].proposer, 0);
  EXPECT_EQ(choices[5].depth, 4) << "the request's minimum";

  std::vector<TokenTree> trees(6, chain_of(8));
  std::vector<TokenTree*> pointers;
  for (TokenTree& tree : trees) pointers.push_back(&tree);
  bench.policy->on_allocate = [](std::span<TokenTree* const> all) { all.back()->clear(); };
  (void)bench.scheduler.schedule(pointers, {});
  const std::vector<std::int32_t> sizes{0, 0, 3, 0, 8, 4};
  for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(trees[i].size(), sizes[i]) << i;
  EXPECT_EQ(bench.scheduler.reason(3), NoSpeculationReason::kPolicy);
}

TEST(SchedulerTest, AWildPolicyChangesNothingButLengths) {
  Bench bench(64, 4);
  std::mt19937 random(5);
  bench.policy->depth = 1 << 30;
  bench.policy->on_prefill = [](std::int32_t) { return std::numeric_limits<std::int32_t>::min(); };
  bench.policy->on_plan = [&](std::span<DraftChoice> choices) {
    for (DraftChoice& choice : choices) {
      choice = {static_cast<std::int32_t>(random()), static_cast<std::int32_t>(random()),
                static_cast<float>(kNan)};
      if (random() % 2 == 0) choice = {1, static_cast<std::int32_t>(random() % 9), -7};
    }
  };
  bench.policy->on_allocate = [&](std::span<TokenTree* const> trees) {
    for (TokenTree* tree : trees) {
      switch (random() % 6) {
        case 0:
          tree->tokens.push_back(3);
          break;
        case 1:
          *tree = chain_of(300);
          break;
        case 2:
          if (!tree->empty()) tree->parents.back() = 99;
          break;
        case 3:
          if (!tree->empty()) tree->survival.back() = static_cast<float>(kNan);
          break;
        case 4:
          if (!tree->empty()) tree->tokens.front() = -4;
          break;
        default:
          break;
      }
    }
  };
  bench.driver.draft_length = 20;
  RequestId next = 0;
  for (int step = 0; step < 3000; ++step) {
    if (random() % 3 == 0) {
      bench.driver.add({.id = next++,
                        .num_prompt_tokens = static_cast<std::int32_t>(1 + random() % 60),
                        .max_tokens = static_cast<std::int32_t>(1 + random() % 30)},
                       step);
    }
    bench.driver.step(step);
    for (std::size_t i = 0; i < bench.driver.pointers.size(); ++i) {
      ASSERT_EQ(bench.driver.trees[i].validate(1 << 30, kMaxTreeNodes, 16 + 5), "");
    }
    ASSERT_EQ(bench.scheduler.check_integrity(), "");
    ASSERT_EQ(bench.host.fault, "");
  }
  for (int step = 0; step < 20000 && bench.scheduler.has_unfinished(); ++step)
    bench.driver.step(1e6);
  EXPECT_FALSE(bench.scheduler.has_unfinished()) << "prompts starved";
}

TEST(SchedulerTest, CutsToTheRowBudgetInEvenShares) {
  Bench bench;
  bench.policy->on_plan = take_paid;
  bench.driver.draft_length = 16;
  for (RequestId id = 0; id < 8; ++id) bench.driver.add({.id = id, .max_tokens = 100}, 0);
  bench.driver.step(0);
  bench.driver.step(0);
  for (const ScheduledRows& row : bench.driver.rows) EXPECT_EQ(row.num_nodes, 7);  // (64 - 8) / 8
  EXPECT_EQ(bench.scheduler.load().num_tokens, 64);
}

TEST(SchedulerTest, HostileTimesCountAsNoProgress) {
  Bench bench;
  const double infinity = std::numeric_limits<double>::infinity();
  bench.driver.add({.id = 0, .max_tokens = 1000}, kNan);
  bench.driver.add({.id = 1, .max_tokens = 1000}, -5);
  double last = -5;
  for (const double now : {kNan, 3.0, 1.0, -infinity, infinity, -1e308, 4.0, kNan, 2.0}) {
    bench.driver.step(now);
    EXPECT_GE(bench.policy->view.now, last);
    last = bench.policy->view.now;
    for (const LengthRequest& shown : bench.policy->shown) {
      EXPECT_GE(shown.decode_seconds, 0);
      EXPECT_TRUE(std::isfinite(shown.decode_seconds));
    }
  }
  EXPECT_EQ(last, 4);
  EXPECT_EQ(bench.scheduler.check_integrity(), "");
  for (const double seconds : {kNan, -1.0, infinity}) {
    (void)bench.scheduler.begin_step(5);
    (void)bench.scheduler.schedule({}, {});
    bench.scheduler.finish_step({}, {}, seconds, 5);
    EXPECT_EQ(bench.policy->seen.seconds, 0);
  }
}

TEST(SchedulerTest, AMillionRequestsWait) {
  Bench bench;
  constexpr RequestId kMany = 1000000;
  for (RequestId id = 0; id < kMany; ++id) {
    bench.scheduler.add({.id = id, .priority = static_cast<std::int32_t>(id * 7919 % 1000)},
                        static_cast<double>(id) * 1e-3);
  }
  for (int step = 0; step < 1000; ++step) {
    const auto slots = bench.scheduler.begin_step(2000);
    const std::vector<DecodeSlot> decodes(slots.begin(), slots.end());
    (void)bench.scheduler.schedule({}, {});
    bench.scheduler.finish_step({}, {}, 0.01, 2000);
    for (const DecodeSlot& slot : decodes) bench.scheduler.remove(slot.id);
    for (const RequestId id : bench.scheduler.running()) bench.scheduler.remove(id);
  }
  for (RequestId id = 0; id < kMany; id += 2) bench.scheduler.remove(id);
  EXPECT_LT(bench.scheduler.num_waiting(), kMany / 2);
  EXPECT_EQ(bench.scheduler.check_integrity(), "");
}

TEST(SchedulerTest, MisuseIsRefusedAndChangesNothing) {
  Bench bench;
  const auto refused = [](const char* word, const std::function<void()>& call) {
    try {
      call();
      ADD_FAILURE() << "accepted: " << word;
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  const auto make = [&](const std::function<void(SchedulerOptions&)>& change) {
    SchedulerOptions options = kOptions;
    change(options);
    Scheduler scheduler(options, nullptr, bench.host);
  };
  refused("max_num_seqs", [&] { make([](auto& o) { o.max_num_seqs = 0; }); });
  refused("max_num_batched_tokens", [&] { make([](auto& o) { o.max_num_batched_tokens = 7; }); });
  refused("aging_seconds", [&] { make([](auto& o) { o.aging_seconds = kNan; }); });
  refused("aging_seconds", [&] { make([](auto& o) { o.aging_seconds = -1; }); });
  refused("pays_per_depth", [&] { make([](auto& o) { o.pays_per_depth = {true}; }); });
  refused("num_prompt_tokens", [&] { bench.scheduler.add({.id = 1, .num_prompt_tokens = 0}, 0); });
  refused("max_tokens", [&] { bench.scheduler.add({.id = 1, .max_tokens = 0}, 0); });
  refused("group", [&] { bench.scheduler.add({.id = 1, .group = 9}, 0); });
  refused("proposer", [&] { bench.scheduler.add({.id = 1, .control = {.proposer = 2}}, 0); });
  EXPECT_FALSE(bench.scheduler.has_unfinished());
  bench.scheduler.add({.id = 1}, 0);
  refused("id 1", [&] { bench.scheduler.add({.id = 1}, 0); });
  refused("begin_step", [&] { (void)bench.scheduler.plan({}); });
  refused("begin_step", [&] { (void)bench.scheduler.schedule({}, {}); });
  refused("schedule", [&] { bench.scheduler.finish_step({}, {}, 1, 0); });

  bench.driver.left[1] = 16;
  bench.driver.step(0);
  (void)bench.scheduler.begin_step(0);
  const TokenTree tree = chain_of(2);
  const std::vector<std::int32_t> backlog(3);
  const std::vector<Candidate> twice{{0, 0, &tree}, {0, 0, &tree}};
  const std::vector<Candidate> null{{0, 0, nullptr}}, nobody{{1, 0, &tree}}, unknown{{0, 2, &tree}};
  for (const auto& candidates : {twice, null, nobody, unknown}) {
    refused("candidate", [&] { (void)bench.scheduler.plan(candidates); });
  }
  refused("backlog", [&] { (void)bench.scheduler.plan({}, backlog); });
  std::vector<TokenTree*> trees(4);
  refused("trees", [&] { (void)bench.scheduler.schedule(trees, {}); });
  (void)bench.scheduler.schedule({}, {});
  const std::vector<TokenId> emitted{5};
  const RequestOutcome outcome{.id = 1, .emitted = emitted};
  const std::vector<RequestOutcome> stranger{{.id = 9, .emitted = emitted}}, both{outcome, outcome};
  refused("request 9", [&] { bench.scheduler.finish_step(stranger, {}, 1, 0); });
  refused("request 1", [&] { bench.scheduler.finish_step(both, {}, 1, 0); });
  bench.host.commit(1, 1);
  bench.scheduler.finish_step({&outcome, 1}, {}, 1, 0);
  EXPECT_EQ(bench.scheduler.check_integrity(), "");
  EXPECT_TRUE(bench.scheduler.remove(1));
  EXPECT_FALSE(bench.scheduler.remove(1));
  EXPECT_FALSE(bench.scheduler.preempt(1));
  EXPECT_EQ(bench.policy->finished, std::vector<RequestId>{1});
}

TEST(SchedulerTest, AnAbandonedStepIsRolledBack) {
  Bench bench(100, 4);
  for (RequestId id = 0; id < 3; ++id) bench.driver.add({.id = id, .max_tokens = 9}, 0);
  bench.driver.step(0);
  (void)bench.scheduler.begin_step(1);
  (void)bench.scheduler.schedule({}, {});  // then an exception, say
  bench.scheduler.remove(1);
  for (const auto& [id, sequence] : bench.host.sequences) EXPECT_EQ(sequence.reserved, 0);
  bench.driver.step(2);
  EXPECT_EQ(bench.host.fault, "");
  EXPECT_EQ(bench.driver.rows.size(), 2U);
}

#ifdef SMARTSPEC_COUNT_ALLOCATIONS
TEST(SchedulerTest, SteadyStepsAllocateNothing) {
  FakeHost host(0, 0);
  auto policy = make_fixed_policy(4);
  Scheduler scheduler(kOptions, policy, host);
  constexpr std::int32_t kBatch = 8;
  for (RequestId id = 0; id < kBatch; ++id) scheduler.add({.id = id, .max_tokens = 100000}, 0);
  const TokenTree draft = chain_of(4);
  std::vector<TokenTree> trees(kBatch);
  std::vector<TokenTree*> pointers;
  for (TokenTree& tree : trees) pointers.push_back(&tree);
  std::vector<Candidate> candidates;
  std::vector<RequestOutcome> outcomes;
  const std::vector<TokenId> emitted(3, 1);
  std::int64_t before = 0;
  for (int step = 0; step < 100; ++step) {
    if (step == 20) before = testing::allocations.load();
    const auto slots = scheduler.begin_step(step);
    candidates.clear();
    for (std::size_t i = 0; i < slots.size(); ++i) {
      trees[i] = draft;
      candidates.push_back({static_cast<std::int32_t>(i), 0, &draft});
    }
    (void)scheduler.plan(candidates);
    outcomes.clear();
    for (const ScheduledRows& row :
         scheduler.schedule(std::span(pointers).first(slots.size()), {})) {
      const std::int32_t accepted = std::min(row.num_nodes, 2);
      host.commit(row.id, row.num_causal + accepted);
      const auto num_emitted = static_cast<std::size_t>(accepted + 1);
      outcomes.push_back({.id = row.id,
                          .num_accepted = accepted,
                          .emitted = std::span(emitted).first(num_emitted)});
    }
    scheduler.finish_step(outcomes, {}, 0.01, step);
  }
  EXPECT_EQ(testing::allocations.load(), before);
  EXPECT_EQ(scheduler.load().num_tokens, kBatch * 5);
}
#endif

}  // namespace
}  // namespace smartspec
