// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/allocation.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "allocation_counter.hpp"
#include "schedule/allocation_oracle.hpp"

namespace smartspec::schedule_test {
namespace {

std::vector<CostSegment> random_cost(Random& random, std::int32_t first, std::int32_t last) {
  std::vector<CostSegment> cost;
  const double start = random.chance(0.1) ? 1e-9 : random.real(1e-4, 1e-2);
  const double slope = random.chance(0.1) ? 0.0 : start * std::pow(10, random.real(-4, 0.5));
  const std::int32_t shape = random.integer(0, 4);
  if (shape == 0) return {{random.integer(0, 2 * first), start, slope}};
  const std::int32_t step = random.integer(1, std::max(2, (last - first) / 3));
  double seconds = start;
  double now = shape == 3 ? slope : 0;  // 1: tiles, 2: convex, 3: concave, 4: anything that rises
  for (std::int32_t at = random.integer(0, first); at <= last;) {
    cost.push_back({at, seconds, now});
    const std::int32_t length = shape == 1 ? step : random.integer(1, step);
    seconds += length * (shape == 1 ? slope : now);
    at += length;
    if (shape == 2) now += slope * random.real(0, 1);
    if (shape == 3) now *= random.real(0, 1);
    if (shape == 4) now = random.chance(0.5) ? 0 : slope * random.real(0, 2);
    if (shape == 4 && random.chance(0.5)) seconds += start * random.real(0, 0.5);
  }
  return cost;
}

float random_survival(Random& random, int shape, float path, double accept) {
  constexpr float kLevels[] = {1.0F, 0.5F, 0.25F, 0.0F};
  switch (shape) {
    case 0:
      return path * static_cast<float>(random.real(0, 1));
    case 1:
      return path * static_cast<float>(accept);
    case 2:
      return path * kLevels[random.integer(0, 3)];
    case 3:
      return 0.4F;
    case 4:
      return random.chance(0.3) ? 0.0F : path * static_cast<float>(random.real(0.9, 1));
    case 5:
      return path * static_cast<float>(std::pow(10, random.real(-9, 0)));
    case 6:  // crowded: many different survivals in one bucket
      return 0.4F + static_cast<float>(random.real(0, 1e-3));
    default:
      return static_cast<float>(random.real(-0.5, 1.5));  // to be clamped
  }
}

Instance random_instance(Random& random, std::int32_t requests, std::int32_t most_nodes) {
  Instance in;
  const bool trees = random.chance(0.6);
  const int shape = random.integer(0, 7);
  for (std::int32_t r = 0; r < requests; ++r) {
    const double accept = random.real(0, 1);
    const std::int32_t nodes = random.integer(requests == 1 ? 1 : 0, most_nodes);
    const std::int32_t reach = random.integer(1, most_nodes);  // 1: like a chain
    for (std::int32_t i = 0; i < nodes; ++i) {
      const std::int32_t parent = trees ? random.integer(std::max(-1, i - reach), i - 1) : i - 1;
      if (trees) in.parents.push_back(parent);
      const float path = parent < 0 ? 1.0F : in.survival[in.offsets.back() + parent];
      in.survival.push_back(random_survival(random, shape, path, accept));
    }
    in.offsets.push_back(in.nodes());
  }
  if (in.nodes() == 0) in.parents.clear();
  in.numbers.base_tokens = random.integer(0, 2 * requests);
  in.numbers.base_value = random.chance(0.1) ? 0 : requests * random.real(0, 2);
  in.numbers.fixed_seconds = random.chance(0.5) ? 0 : random.real(0, 1e-3);
  in.cost = random_cost(random, in.numbers.base_tokens, in.numbers.base_tokens + in.nodes());
  return in;
}

void add_limits(Random& random, Instance& in, bool with_min = true) {
  if (random.chance(0.4)) in.numbers.token_budget = random.integer(-1, in.nodes() + 1);
  for (std::int32_t r = 0; r < in.requests(); ++r) {
    in.max_nodes.push_back(random.integer(-1, in.size_of(r) + 1));
    in.min_nodes.push_back(random.chance(0.7) ? 0 : random.integer(-1, in.size_of(r) + 1));
  }
  if (random.chance(0.4)) in.max_nodes.clear();
  if (!with_min || random.chance(0.4)) in.min_nodes.clear();
}

struct Solved {
  Allocation allocation;
  std::vector<std::uint8_t> selected;
  double goodput = 0;  // recomputed from what is selected
};

// Everything that must hold whatever the optimum is.
Solved solve(Allocator& allocator, const Instance& in) {
  Solved solved;
  solved.selected.assign(static_cast<std::size_t>(in.nodes()), 7);
  solved.allocation = allocator.solve(in.problem(), solved.selected);
  const std::vector<double> values = in.clamped();
  const std::vector<Ints> ranks = ranking(in, values);
  const Ints forced = forced_nodes(in);
  const Ints most = most_nodes(in);
  double value = in.numbers.base_value;
  std::int32_t size = 0;
  std::int32_t blocks = 0;
  for (std::int32_t r = 0; r < in.requests(); ++r) {
    std::int32_t count = 0;
    for (std::int32_t i = in.offsets[r]; i < in.offsets[r + 1]; ++i) {
      EXPECT_LE(solved.selected[i], 1);
      if (solved.selected[i] == 0) continue;
      const std::int32_t parent = in.parent_of(r, i);
      EXPECT_TRUE(parent < 0 || solved.selected[parent] == 1) << "node without its parent";
      value += values[i];
      ++count;
    }
    for (std::int32_t i = 0; i < in.size_of(r); ++i) {
      EXPECT_EQ(solved.selected[ranks[r][i]], i < count ? 1 : 0) << "not the most likely ones";
    }
    EXPECT_GE(count, forced[r]);
    EXPECT_LE(count, most[r]);
    size += count;
    blocks += in.blocks(r, count);
  }
  EXPECT_EQ(size, solved.allocation.num_nodes);
  EXPECT_LE(size, std::max(in.numbers.token_budget, 0));
  EXPECT_TRUE(in.numbers.block_size == 0 || blocks <= std::max(in.numbers.free_blocks, 0));
  EXPECT_NEAR(solved.allocation.expected_tokens, value, 1e-12 * value);
  EXPECT_NEAR(solved.allocation.seconds, in.seconds(size), 1e-12 * in.seconds(size));
  solved.goodput = value / in.seconds(size);
  return solved;
}

void expect_optimal(const Solved& solved, const Best& best) {
  ASSERT_GE(solved.goodput, best.goodput * (1 - 1e-9));
  ASSERT_LE(solved.goodput, best.goodput * (1 + 1e-9));  // or the oracle is wrong
}

TEST(Allocation, SmallBatchesEqualExhaustiveSearch) {
  Random random(1);
  Allocator allocator;
  for (int trial = 0; trial < 4000; ++trial) {
    SCOPED_TRACE(trial);
    const std::int32_t requests = random.integer(1, 4);
    Instance in = random_instance(random, requests, requests == 1 ? 12 : 12 / requests);
    if (trial % 2 == 1) add_limits(random, in);
    const Best best = exhaustive(in);
    expect_optimal(solve(allocator, in), best);
    ASSERT_NEAR(sort_and_scan(in).goodput, best.goodput, 1e-12 * best.goodput);
    if (HasFailure()) return;
  }
}

TEST(Allocation, TreesEqualTreeKnapsack) {
  Random random(2);
  Allocator allocator;
  for (int trial = 0; trial < 3000; ++trial) {
    SCOPED_TRACE(trial);
    const std::int32_t requests = random.integer(1, 12);
    Instance in = random_instance(random, requests, random.integer(1, 10));
    if (trial % 2 == 1) add_limits(random, in, false);
    const Best best = tree_knapsack(in);
    expect_optimal(solve(allocator, in), best);
    ASSERT_NEAR(sort_and_scan(in).goodput, best.goodput, 1e-12 * best.goodput);
    if (HasFailure()) return;
  }
}

TEST(Allocation, LargeBatchesEqualSortAndScan) {
  Random random(3);
  Allocator allocator;
  for (int trial = 0; trial < 4000; ++trial) {
    SCOPED_TRACE(trial);
    const bool large = trial % 20 == 0;
    Instance in = random_instance(random, random.integer(1, large ? 600 : 60),
                                  random.integer(1, large ? 40 : 16));
    if (trial % 2 == 1) add_limits(random, in);
    expect_optimal(solve(allocator, in), sort_and_scan(in));
    if (HasFailure()) return;
  }
}

// A bucket with thousands of different survivals, and jumps of the cost inside it.
TEST(Allocation, CrowdedBuckets) {
  Random random(4);
  Allocator allocator;
  for (int trial = 0; trial < 200; ++trial) {
    SCOPED_TRACE(trial);
    Instance in = random_instance(random, 0, 1);
    const std::int32_t requests = random.integer(100, 3000);
    for (std::int32_t r = 0; r < requests; ++r) {
      in.survival.push_back(static_cast<float>(0.4 + random.real(0, trial % 2 == 0 ? 4e-3 : 4e-7)));
      in.offsets.push_back(in.nodes());
    }
    in.numbers.base_value = random.real(0, 3000);
    in.cost = random_cost(random, in.numbers.base_tokens, in.numbers.base_tokens + in.nodes());
    expect_optimal(solve(allocator, in), sort_and_scan(in));
    if (HasFailure()) return;
  }
}

// Everything is representable, so equal goodputs are equal: one token per second whatever is
// chosen.
TEST(Allocation, TiesGoToTheSmallerSetThenToEarlierRequests) {
  Allocator allocator;
  Instance in;
  in.survival.assign(6, 0.5F);
  in.offsets = {0, 2, 4, 6};
  in.numbers.base_value = 2;
  in.cost = {{0, 2, 0.5}};
  EXPECT_EQ(solve(allocator, in).allocation.num_nodes, 0);

  in.cost = {{0, 2, 0}, {4, 100, 0}};  // three nodes are free
  EXPECT_EQ(solve(allocator, in).selected, (std::vector<std::uint8_t>{1, 1, 1, 0, 0, 0}));

  in.survival = {0.5F, 0.25F, 0.75F, 0.5F, 0.5F, 0.5F};
  EXPECT_EQ(solve(allocator, in).selected, (std::vector<std::uint8_t>{1, 0, 1, 1, 0, 0}));

  in.survival.assign(6, 0.0F);  // gains nothing, costs nothing
  EXPECT_EQ(solve(allocator, in).allocation.num_nodes, 0);
}

TEST(Allocation, FillsTiersAndSkipsJumps) {
  Allocator allocator;
  Instance in;
  for (int r = 0; r < 8; ++r) {
    for (const float survival : {0.8F, 0.4F, 0.01F}) in.survival.push_back(survival);
    in.offsets.push_back(in.nodes());
  }
  in.numbers.base_value = 8;
  in.numbers.base_tokens = 8;
  in.cost = {{0, 1, 0}, {17, 1.2, 0}, {25, 10, 0}};
  EXPECT_EQ(solve(allocator, in).allocation.num_nodes,
            16);  // up to the last row of the second tier
  in.cost[1].seconds = 1.25;
  EXPECT_EQ(solve(allocator, in).allocation.num_nodes, 8);
}

TEST(Allocation, ShortBudgetIsSharedRoundByRound) {
  Allocator allocator;
  Instance in;
  in.survival = {0.9F, 0.8F, 0.7F, 0.1F, 0.1F, 0.1F, 0.9F, 0.1F, 0.1F};
  in.offsets = {0, 3, 6, 9};
  in.min_nodes = {3, 2, 1};
  in.cost = {{0, 1, 1000}};  // nothing pays
  in.numbers.token_budget = 4;
  const Solved solved = solve(allocator, in);
  EXPECT_EQ(solved.selected, (std::vector<std::uint8_t>{1, 1, 0, 1, 0, 0, 1, 0, 0}));
  EXPECT_TRUE(solved.allocation.limited_by_budget);
  in.numbers.token_budget = 6;
  EXPECT_EQ(solve(allocator, in).allocation.num_nodes, 6);
  EXPECT_FALSE(solve(allocator, in).allocation.limited_by_budget);
}

TEST(Allocation, TellsWhenTheBudgetCosts) {
  Random random(5);
  Allocator allocator;
  int limited = 0;
  for (int trial = 0; trial < 1000; ++trial) {
    Instance in = random_instance(random, random.integer(1, 20), 8);
    const Allocation free = solve(allocator, in).allocation;
    in.numbers.token_budget = random.integer(0, in.nodes());
    const Allocation bound = solve(allocator, in).allocation;
    if (free.num_nodes <= in.numbers.token_budget) {
      ASSERT_EQ(bound.num_nodes, free.num_nodes);
      ASSERT_FALSE(bound.limited_by_budget);
    }
    limited += bound.limited_by_budget ? 1 : 0;
  }
  EXPECT_GT(limited, 100);

  Instance in;
  in.survival = {0.9F, 0.8F, 0.7F};
  in.offsets = {0, 3};
  in.numbers.base_value = 1;
  in.cost = {{0, 1, 0.01}};
  in.numbers.token_budget = 2;
  EXPECT_TRUE(solve(allocator, in).allocation.limited_by_budget);
}

TEST(Allocation, ScarceBlocksStayNearTheKnapsack) {
  Random random(6);
  Allocator allocator;
  double sum = 0;
  double worst = 1;
  int limited = 0;
  for (int trial = 0; limited < 5000; ++trial) {
    SCOPED_TRACE(trial);
    Instance in = random_instance(random, random.integer(1, 24), random.integer(1, 12));
    if (trial % 4 == 1) add_limits(random, in);
    in.numbers.block_size = random.integer(1, 10);
    in.numbers.free_blocks = random.integer(-1, in.requests());
    for (std::int32_t r = 0; r < in.requests(); ++r) {
      in.block_room.push_back(random.integer(-1, in.numbers.block_size - 1));
    }
    const Solved solved = solve(allocator, in);
    const Best best = block_knapsack(in);
    if (HasFailure()) return;
    if (best.goodput <= 0) continue;
    const double share = solved.goodput / best.goodput;
    ASSERT_LE(share, 1 + 1e-9);
    if (!solved.allocation.limited_by_blocks) {
      ASSERT_GE(share, 1 - 1e-9);
      continue;
    }
    sum += share;
    worst = std::min(worst, share);
    ++limited;
  }
  RecordProperty("worst_share_of_the_optimum", std::to_string(worst));
  RecordProperty("mean_share_of_the_optimum", std::to_string(sum / limited));
  EXPECT_GE(sum / limited, 0.9999);
  EXPECT_GE(worst, 0.9);
}

TEST(Allocation, BlockKnapsackAgreesWithExhaustiveSearch) {
  Random random(7);
  for (int trial = 0; trial < 300; ++trial) {
    Instance in = random_instance(random, random.integer(1, 3), 4);
    add_limits(random, in);
    in.numbers.block_size = random.integer(1, 4);
    in.numbers.free_blocks = random.integer(0, 4);
    const double best = exhaustive(in).goodput;
    ASSERT_NEAR(block_knapsack(in).goodput, best, 1e-12 * best);
  }
}

TEST(Allocation, HostileSurvivalsAreClamped) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  Allocator allocator;
  Instance in;
  in.survival = {kInf, kNan, 0.5F, 0.5F, -1.0F, 1.0F, 2.0F, 0.5F, 0.9F, 1e-42F, 1.0F, -kInf};
  in.offsets = {0, 3, 6, 9, 11, 12};
  in.numbers.base_value = 1;
  in.cost = {{0, 1, 1e-3}};
  const Solved solved = solve(allocator, in);
  EXPECT_EQ(solved.selected, (std::vector<std::uint8_t>{1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0}));
  EXPECT_DOUBLE_EQ(solved.allocation.expected_tokens, 1 + 1 + 0.5 + 1 + 0.5 + 0.5);

  Random random(8);
  const float values[] = {kNan, -kNan, kInf, -kInf, -0.0F, 1e-45F, 1.0F, 0.5F, 3e38F};
  for (int trial = 0; trial < 500; ++trial) {
    Instance wild = random_instance(random, 5, 8);
    for (float& survival : wild.survival) survival = values[random.integer(0, 8)];
    expect_optimal(solve(allocator, wild), sort_and_scan(wild));
  }
}

TEST(Allocation, NothingToChooseFrom) {
  Allocator allocator;
  AllocationProblem problem;
  const std::vector<CostSegment> cost{{0, 2, 0}};
  problem.cost = cost;
  problem.base_value = 3;
  Allocation none = allocator.solve(problem, {});
  EXPECT_EQ(none.num_nodes, 0);
  EXPECT_EQ(none.expected_tokens, 3);
  EXPECT_EQ(none.seconds, 2);
  const Ints offsets{0, 0, 0};
  problem.offsets = offsets;
  problem.block_size = 16;
  EXPECT_EQ(allocator.solve(problem, {}).num_nodes, 0);
}

TEST(Allocation, HugeNumbersTerminate) {
  Allocator allocator;
  Random random(9);
  Instance in;
  for (int r = 0; r < 1000000; ++r) {
    in.survival.push_back(0.5F);
    in.survival.push_back(static_cast<float>(random.real(0, 0.5)));
    in.offsets.push_back(in.nodes());
  }
  in.min_nodes.assign(1000000, std::numeric_limits<std::int32_t>::max());
  in.numbers.token_budget = 1500000;
  in.numbers.base_tokens = std::numeric_limits<std::int32_t>::max();
  in.numbers.base_value = 1e290;
  in.cost = {{0, 1e290, 1e290}};
  EXPECT_EQ(solve(allocator, in).allocation.num_nodes, 1500000);
  in.min_nodes.clear();
  in.numbers.base_tokens = 1000000;
  in.numbers.base_value = 1e6;
  in.cost = {{0, 10, 1e-6}};
  expect_optimal(solve(allocator, in), sort_and_scan(in));
  in.numbers.block_size = std::numeric_limits<std::int32_t>::max();
  in.numbers.free_blocks = 1000;
  EXPECT_TRUE(solve(allocator, in).allocation.limited_by_blocks);
}

struct Rejected {
  const char* field;
  std::function<void(Instance&)> spoil;
};

TEST(Allocation, RejectsWhatIsNotAProblem) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInf = std::numeric_limits<double>::infinity();
  Instance good;
  good.survival = {0.5F, 0.25F, 0.5F};
  good.parents = {-1, 0, -1};
  good.offsets = {0, 2, 3};
  good.numbers.base_value = 2;
  good.cost = {{0, 1, 0.1}, {4, 2, 0.1}};
  const std::vector<Rejected> cases{
      {"cost", [](Instance& in) { in.cost.clear(); }},
      {"cost", [](Instance& in) { in.cost = {{0, 0, 0}}; }},
      {"cost[0].seconds", [&](Instance& in) { in.cost[0].seconds = kNan; }},
      {"cost[0].seconds", [](Instance& in) { in.cost[0].seconds = -1; }},
      {"cost[1].seconds", [](Instance& in) { in.cost[1].seconds = 0.5; }},
      {"cost[1].seconds_per_token", [&](Instance& in) { in.cost[1].seconds_per_token = kInf; }},
      {"cost[0].seconds_per_token", [](Instance& in) { in.cost[0].seconds_per_token = -1e-9; }},
      {"cost[1].first_tokens", [](Instance& in) { in.cost[1].first_tokens = -1; }},
      {"offsets[0]", [](Instance& in) { in.offsets[0] = 1; }},
      {"offsets", [](Instance& in) { in.offsets = {0, 5, 3}; }},
      {"offsets", [](Instance& in) { in.offsets.back() = 2; }},
      {"offsets", [](Instance& in) { in.offsets.clear(); }},
      {"parents[1]", [](Instance& in) { in.parents[1] = 1; }},
      {"parents[0]", [](Instance& in) { in.parents[0] = -2; }},
      {"parents[2]",
       [](Instance& in) { in.parents[2] = std::numeric_limits<std::int32_t>::max(); }},
      {"parents[2]",
       [](Instance& in) { in.parents[2] = std::numeric_limits<std::int32_t>::min(); }},
      {"parents", [](Instance& in) { in.parents.pop_back(); }},
      {"min_nodes", [](Instance& in) { in.min_nodes = {1}; }},
      {"max_nodes", [](Instance& in) { in.max_nodes = {1, 2, 3}; }},
      {"block_room", [](Instance& in) { in.block_room = {1}; }},
      {"block_size", [](Instance& in) { in.numbers.block_size = -1; }},
      {"base_value", [&](Instance& in) { in.numbers.base_value = kNan; }},
      {"base_value", [](Instance& in) { in.numbers.base_value = -1; }},
      {"base_tokens", [](Instance& in) { in.numbers.base_tokens = -1; }},
      {"fixed_seconds", [&](Instance& in) { in.numbers.fixed_seconds = kInf; }},
  };
  Allocator allocator;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    Instance in = good;
    cases[i].spoil(in);
    std::vector<std::uint8_t> selected(in.survival.size());
    try {
      allocator.solve(in.problem(), selected);
      ADD_FAILURE() << "case " << i << " " << cases[i].field;
    } catch (const std::invalid_argument& error) {
      const std::string name = std::string("AllocationProblem.") + cases[i].field + ":";
      EXPECT_EQ(std::string(error.what()).substr(0, name.size()), name) << error.what();
    }
    expect_optimal(solve(allocator, good), exhaustive(good));  // nothing was left behind
  }
  std::vector<std::uint8_t> selected(2);
  EXPECT_THROW(allocator.solve(good.problem(), selected), std::invalid_argument);
}

TEST(Allocation, NoHeapOnceWarmAndNoMemoryOfEarlierCalls) {
  Random random(10);
  std::vector<Instance> instances;
  for (int i = 0; i < 200; ++i) {
    Instance in = random_instance(random, random.integer(1, 80), 20);
    if (i % 2 == 1) add_limits(random, in);
    in.numbers.block_size = i % 3 == 0 ? 4 : 0;
    in.numbers.free_blocks = random.integer(0, 40);
    instances.push_back(std::move(in));
  }
  Allocator allocator;
  std::vector<Solved> fresh;
  for (const Instance& in : instances) {
    Allocator other;
    fresh.push_back(solve(other, in));
    solve(allocator, in);
  }
  std::vector<std::uint8_t> selected(80 * 20);
  for (std::size_t i = 0; i < instances.size(); ++i) {
    const AllocationProblem problem = instances[i].problem();
    const std::span<std::uint8_t> mine(selected.data(), instances[i].survival.size());
    const std::int64_t before = testing::allocations;
    const Allocation again = allocator.solve(problem, mine);
    ASSERT_EQ(testing::allocations, before);
    ASSERT_EQ(again.num_nodes, fresh[i].allocation.num_nodes);
    ASSERT_EQ(again.expected_tokens, fresh[i].allocation.expected_tokens);
    ASSERT_TRUE(std::equal(mine.begin(), mine.end(), fresh[i].selected.begin()));
  }
}

}  // namespace
}  // namespace smartspec::schedule_test
