// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/survival_model.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <limits>
#include <map>
#include <new>
#include <random>
#include <utility>

#include "schedule/survival_world.hpp"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SMARTSPEC_COUNT_MEMORY
#include <malloc.h>
namespace {
std::int64_t live_bytes = 0;
std::int64_t allocations = 0;
}  // namespace
// Not inlined: g++ would pair the inlined malloc with the delete expression and warn.
[[gnu::noinline]] void* operator new(std::size_t size) {
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  ++allocations;
  live_bytes += static_cast<std::int64_t>(malloc_usable_size(memory));
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  if (memory != nullptr) live_bytes -= static_cast<std::int64_t>(malloc_usable_size(memory));
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  operator delete(memory);
}
#endif

namespace smartspec::survival_test {
namespace {

TokenTree chain_of(std::initializer_list<TokenId> tokens) {
  return TokenTree::chain(std::vector<TokenId>(tokens));
}

// --- what every model promises -----------------------------------------------------------------

TEST(SurvivalModel, StartsAtTheFirstRate) {
  for (const double rate : {0.2, 0.7, 0.95}) {
    const SurvivalModel model({.first_rate = rate});
    const std::vector<float> survival = expect(model, 1, 4);
    EXPECT_NEAR(survival[0], rate, 0.03);
    for (std::size_t d = 1; d < 4; ++d) EXPECT_LT(survival[d], survival[d - 1]);
    EXPECT_EQ(model.evidence(0), 0);
    EXPECT_EQ(model.evidence(0, 1), 0);
  }
}

TEST(SurvivalModel, RefusesWhatIsOutOfRange) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const SurvivalModelOptions& bad : {SurvivalModelOptions{.num_proposers = 0},
                                          {.num_proposers = 100000},
                                          {.first_rate = 0},
                                          {.first_rate = 1},
                                          {.first_rate = nan},
                                          {.memory_tokens = 0},
                                          {.memory_tokens = nan},
                                          {.request_shrinkage = 0},
                                          {.request_shrinkage = nan}}) {
    EXPECT_THROW(SurvivalModel{bad}, std::invalid_argument);
  }
  SurvivalModel model;
  std::array<float, 2> out{};
  EXPECT_THROW(model.expect(1, 1, 0, out), std::invalid_argument);
  EXPECT_THROW(model.expect(-1, 1, 0, out), std::invalid_argument);
  EXPECT_THROW(model.expect(0, 1, SurvivalModel::kMaxGroups, out), std::invalid_argument);
  EXPECT_THROW(model.calibrate(0, 1, -1, {}, out), std::invalid_argument);
  EXPECT_THROW(model.learn(1, 1, 0, 1, {}, {}), std::invalid_argument);
  EXPECT_THROW((void)model.record(0, -1), std::invalid_argument);
  EXPECT_THROW((void)model.evidence(1), std::invalid_argument);
}

TEST(SurvivalModel, SurvivesHostileTrees) {
  Random random(11);
  SurvivalModel model({.num_proposers = 2});
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (int round = 0; round < 20000 / kShrink; ++round) {
    TokenTree tree;
    const int size = random.chance(0.02) ? 600 : random.below(12);
    for (int i = 0; i < size; ++i) {
      const float odd = std::array{
          nan, infinity, -infinity, -1.0F, 2.0F, 0.0F}[static_cast<std::size_t>(random.below(6))];
      tree.tokens.push_back(random.below(3) - 1);
      tree.parents.push_back(random.chance(0.1)   ? random.below(1000) - 500
                             : random.chance(0.7) ? i - 1
                                                  : random.below(i + 1) - 1);
      tree.depths.push_back(random.below(100) - 50);
      tree.survival.push_back(random.chance(0.3) ? odd : static_cast<float>(random.unit()));
    }
    if (random.chance(0.05) && size > 0) tree.survival.pop_back();
    if (random.chance(0.05) && size > 0) tree.parents.clear();
    std::vector<TokenId> emitted(
        static_cast<std::size_t>(random.below(random.chance(0.1) ? 50 : 4)));
    for (TokenId& token : emitted) token = random.below(2);
    const int asked = random.chance(0.1) ? std::numeric_limits<int>::max() : random.below(70) - 10;
    const RequestId id = random.chance(0.1) ? -random.below(9) : random.below(9);
    const int proposer = random.below(2);
    model.learn(proposer, id, random.below(4), asked, tree, emitted);
    std::vector<float> survival(static_cast<std::size_t>(size), -1.0F);
    model.calibrate(proposer, id, 1, tree, survival);
    const std::size_t done = std::min(tree.parents.size(), tree.survival.size());
    for (std::size_t i = 0; i < done; ++i) {
      const std::int32_t parent = tree.parents[i];
      const float above = parent < 0 || parent >= static_cast<std::int32_t>(i)
                              ? 1
                              : survival[static_cast<std::size_t>(parent)];
      ASSERT_GE(survival[i], 0);
      ASSERT_LE(survival[i], above);
    }
    std::array<float, 40> expected{};
    model.expect(proposer, id, 2, expected);
    for (std::size_t d = 0; d < expected.size(); ++d) {
      ASSERT_GE(expected[d], 0);
      ASSERT_LE(expected[d], d == 0 ? 1 : expected[d - 1]);
    }
    if (random.chance(0.05)) model.finish(random.below(9));
  }
  model.finish(kNobody);
}

TEST(SurvivalModel, IsDeterministicAndMovable) {
  std::vector<float> first;
  for (int run = 0; run < 2; ++run) {
    SurvivalModel model;
    World world({.rates = {0.9, 0.4}, .wander = 0.5, .claims = true, .width = 2}, 16, 3);
    for (int t = 0; t < 100; ++t) world.step(model, 3);
    SurvivalModel moved = std::move(model);
    std::vector<float> all = expect(moved, world.requests()[0].id, 32);
    all.push_back(static_cast<float>(moved.evidence(0)));
    if (run == 0) first = all;
    EXPECT_EQ(all, first);
  }
}

// --- which tokens are trials: a naive model ----------------------------------------------------

/// Scores by looking at every node's whole path; keeps drafts that are right so far in full.
class NaiveTrials {
 public:
  struct Count {
    int trials = 0;
    int accepted = 0;
    friend bool operator==(const Count&, const Count&) = default;
  };

  void learn(RequestId id, int asked, const TokenTree& tree, const std::vector<TokenId>& emitted) {
    std::vector<TokenId>& shadow = shadows_[id].tokens;
    std::size_t& next = shadows_[id].next;
    std::size_t& end = shadows_[id].end;
    for (const TokenId token : emitted) {
      if (next >= end) break;
      if (next < shadow.size()) count(next, shadow[next] == token);
      next = next < shadow.size() && shadow[next] == token ? next + 1 : end;
    }
    for (std::int32_t i = 0; i < tree.size(); ++i) {
      const std::vector<TokenId> path = path_to(tree, i);
      if (path.size() > emitted.size()) continue;
      if (!std::equal(path.begin(), path.end() - 1, emitted.begin())) continue;
      count(path.size() - 1, path.back() == emitted[path.size() - 1]);
    }
    std::vector<TokenId> best;
    for (std::int32_t node = best_child(tree, -1); node >= 0; node = best_child(tree, node)) {
      best.push_back(tree.tokens[static_cast<std::size_t>(node)]);
    }
    const auto length = std::max(best.size(), static_cast<std::size_t>(std::max(asked, 0)));
    if (next < end || length <= emitted.size() || best.size() < emitted.size()) return;
    if (!std::equal(emitted.begin(), emitted.end(), best.begin())) return;
    shadow = best;
    next = emitted.size();
    end = length;
  }
  void finish(RequestId id) { shadows_.erase(id); }
  [[nodiscard]] Count at(std::size_t depth) const { return counts_[depth]; }

 private:
  struct Rest {
    std::vector<TokenId> tokens;
    std::size_t next = 0;
    std::size_t end = 0;
  };
  void count(std::size_t depth, bool accepted) {
    counts_[depth].trials += 1;
    counts_[depth].accepted += accepted ? 1 : 0;
  }
  static std::vector<TokenId> path_to(const TokenTree& tree, std::int32_t node) {
    std::vector<TokenId> path;
    for (; node >= 0; node = tree.parents[static_cast<std::size_t>(node)]) {
      path.insert(path.begin(), tree.tokens[static_cast<std::size_t>(node)]);
    }
    return path;
  }
  static std::int32_t best_child(const TokenTree& tree, std::int32_t parent) {
    std::int32_t best = -1;
    for (std::int32_t i = tree.size() - 1; i >= 0; --i) {
      const auto at = static_cast<std::size_t>(i);
      if (tree.parents[at] != parent) continue;
      if (best < 0 || tree.survival[at] >= tree.survival[static_cast<std::size_t>(best)]) best = i;
    }
    return best;
  }

  std::map<RequestId, Rest> shadows_;
  std::array<Count, 16> counts_{};
};

TEST(SurvivalModel, TriesWhatANaiveModelTries) {
  Random random(5);
  // Nothing fades, no jump: request-free, so that record() holds plain counts.
  SurvivalModel model({.memory_tokens = 1e9});
  NaiveTrials naive;
  for (int round = 0; round < 30000 / kShrink; ++round) {
    TokenTree tree;
    const int size = random.below(10);
    for (int i = 0; i < size; ++i) {
      const std::int32_t parent = random.chance(0.6) ? i - 1 : random.below(i + 1) - 1;
      TokenId token =
          random.chance(0.6) ? 0 : random.below(4);  // siblings are distinct, as they should be
      while (tree.find_child(parent, token) >= 0) ++token;
      const float above = parent < 0 ? 1 : tree.survival[static_cast<std::size_t>(parent)];
      tree.add(token, parent, above * static_cast<float>(random.below(4)) / 4);
    }
    std::vector<TokenId> emitted(static_cast<std::size_t>(random.below(4)));
    for (TokenId& token : emitted) token = random.chance(0.8) ? 0 : random.below(4);
    const RequestId id = random.below(6);
    const int asked = random.below(3) == 0 ? 0 : size;
    model.learn(0, id, 0, asked, tree, emitted);
    if (!emitted.empty()) naive.learn(id, asked, tree, emitted);
    if (random.chance(0.02)) {
      model.finish(id);
      naive.finish(id);
    }
    for (int depth = 0; depth < 10; ++depth) {
      const SurvivalModel::DepthRecord record = model.record(0, depth);
      const NaiveTrials::Count count = naive.at(static_cast<std::size_t>(depth));
      ASSERT_NEAR(record.trials, count.trials, 0.01 + 1e-4 * count.trials) << depth << " " << round;
      ASSERT_NEAR(record.accepted, count.accepted, 0.01 + 1e-4 * count.accepted) << depth;
    }
  }
  EXPECT_GT(model.record(0, 5).accepted, 10 / kShrink);
}

// --- censoring, shadows, coverage --------------------------------------------------------------

// Accepted over drafted would be .538 here, and .538 + .538^2 + ... promise 1.1 tokens of 2.7.
TEST(SurvivalModel, TokensBehindARejectionCountNeitherWay) {
  SurvivalModel model({.memory_tokens = 20000, .request_shrinkage = 1e6});
  World world({.rates = {0.8}}, 32, 1);
  std::array<double, 5> mean{};
  int samples = 0;
  for (int t = 0; t < 2000; ++t) {
    world.step(model, 5);
    if (t < 500 || t % 10 != 0) continue;
    const std::vector<float> survival = expect(model, kNobody, 5);
    for (std::size_t d = 0; d < 5; ++d) {
      mean[d] +=
          static_cast<double>(survival[d]) / (d == 0 ? 1.0 : static_cast<double>(survival[d - 1]));
    }
    ++samples;
  }
  for (std::size_t d = 0; d < 5; ++d) EXPECT_NEAR(mean[d] / samples, 0.8, 0.01) << d;
  const SurvivalModel::DepthRecord last = model.record(0, 4);
  EXPECT_NEAR(last.accepted / last.trials, 0.8, 0.02);
  EXPECT_NEAR(last.expected, last.accepted, 0.03 * last.trials);
}

TEST(SurvivalModel, NothingVerifiedStillTeachesEveryDepth) {
  SurvivalModel model;
  World world({.rates = {0.85}, .decay = 0.3}, 32, 2);
  Calibration calibration;
  for (int t = 0; t < 600; ++t) {
    world.step(model, 0, [&](const World::Request& request, const World::Draft& draft) {
      if (t < 300) return;
      const std::vector<float> survival = expect(model, request.id, World::kDepth);
      for (std::size_t d = 0; d < survival.size(); ++d) {
        calibration.add(d, survival[d], draft.chain[d]);
      }
    });
  }
  for (std::size_t d = 0; d < World::kDepth; ++d) EXPECT_LE(calibration.error(d), 0.03) << d;
  EXPECT_GT(model.record(0, World::kDepth - 1).trials, 50);
}

TEST(SurvivalModel, ShadowDiesWithItsFirstWrongToken) {
  SurvivalModel model;
  const std::vector<TokenId> one = {1};
  const std::vector<TokenId> two = {2, 1, 1};
  model.learn(0, 7, 0, 4, chain_of({1, 2, 3, 4}), one);
  EXPECT_EQ(model.record(0, 1).trials, 0);
  model.learn(0, 7, 0, 0, {}, two);  // 2 right, 1 in place of 3 wrong
  EXPECT_NEAR(model.record(0, 1).accepted, 1, 1e-6);
  EXPECT_NEAR(model.record(0, 2).trials, 1, 1e-6);
  EXPECT_EQ(model.record(0, 2).accepted, 0);
  EXPECT_EQ(model.record(0, 3).trials, 0);
  model.learn(0, 7, 0, 0, {}, one);
  EXPECT_EQ(model.record(0, 3).trials, 0);
  model.learn(0, 8, 0, 2, chain_of({1, 1}), one);
  model.finish(8);
  model.learn(0, 8, 0, 0, {}, one);  // the same id, another request
  EXPECT_NEAR(model.record(0, 1).trials, 1, 1e-6);
}

TEST(SurvivalModel, WhatWasNotAskedForIsNotMissing) {
  SurvivalModel asked;
  SurvivalModel idle;
  const std::vector<TokenId> one = {1};
  for (int i = 0; i < 200; ++i) {
    asked.learn(0, i % 8, 0, 4, {}, one);
    idle.learn(0, i % 8, 0, 0, {}, one);
  }
  EXPECT_LT(expect(asked, kNobody, 1)[0], 0.05);
  EXPECT_NEAR(expect(idle, kNobody, 1)[0], 0.7, 0.03);
  // A drafted token is judged apart from whether there is one.
  std::array<float, 1> survival{};
  asked.calibrate(0, kNobody, 0, chain_of({1}), survival);
  EXPECT_NEAR(survival[0], 0.7, 0.03);
}

TEST(SurvivalModel, EvidenceFadesWhileNothingIsSeen) {
  SurvivalModel model;
  World world({.rates = {0.8}}, 8, 4);
  for (int t = 0; t < 200; ++t) world.step(model, 3);
  const double before = model.evidence(0);
  EXPECT_GT(before, 500);
  const std::vector<TokenId> one = {1};
  for (int i = 0; i < 50000; ++i) model.learn(0, kNobody + i, 0, 0, {}, one);
  EXPECT_LT(model.evidence(0), before / 8);
}

TEST(SurvivalModel, HigherClaimsNeverGetLess) {
  SurvivalModel model;
  World world({.rates = {0.95, 0.8, 0.6, 0.3}, .claims = true, .claim_noise = 4}, 32, 9);
  for (int t = 0; t < 300; ++t) {
    world.step(model, 3);
    float last = 0;
    for (int i = 1; i < 200; ++i) {
      TokenTree tree = chain_of({1});
      tree.survival[0] = static_cast<float>(i) / 200;
      std::array<float, 1> survival{};
      model.calibrate(0, kNobody, 0, tree, survival);
      ASSERT_GE(survival[0], last);
      last = survival[0];
    }
  }
}

TEST(SurvivalModel, AFewHighClaimsDoNotMakeHighClaimsOrdinary) {
  SurvivalModel model;
  TokenTree tree = chain_of({1});
  tree.survival[0] = 0.95F;
  const std::vector<TokenId> emitted{1};
  for (int t = 0; t < 10; ++t) model.learn(0, 1, 0, 1, tree, emitted);
  std::array<float, 1> survival{};
  model.calibrate(0, kNobody, 0, tree, survival);
  EXPECT_GT(survival[0], 0.9F);
  EXPECT_GT(model.claims(0, kNobody, 0).accepted(0.95F), 0.9F);
}

TEST(SurvivalModel, ClaimsAreReadAsTheyCameOut) {
  // Claims twice as sure, in logits, as they should be, and half a logit too low.
  constexpr float kOffset = 0.5F;
  constexpr float kScale = 0.5F;
  SurvivalModel model;
  std::mt19937 random(5);
  std::normal_distribution<float> claimed(2, 2);
  const auto sigmoid = [](float x) { return 1 / (1 + std::exp(-x)); };
  for (int t = 0; t < 20000; ++t) {
    const float logits = claimed(random);
    const bool right = std::bernoulli_distribution(
        static_cast<double>(sigmoid(kOffset + kScale * logits)))(random);
    TokenTree tree = chain_of({1});
    tree.survival[0] = sigmoid(logits);
    const std::vector<TokenId> emitted{right ? 1 : 2};
    model.learn(0, 1, 0, 1, tree, emitted);
  }
  const ClaimReading reading = model.claims(0, kNobody, 0);
  EXPECT_NEAR(reading.scale, kScale, 0.1F);
  for (const float logits : {0.0F, 2.0F, 4.0F}) {
    EXPECT_NEAR(reading.accepted(sigmoid(logits)), sigmoid(kOffset + kScale * logits), 0.04F);
  }
  EXPECT_EQ(reading.accepted(1), 1) << "no claim";
}

// --- requests ----------------------------------------------------------------------------------

TEST(SurvivalModel, LearnsHowARequestDiffers) {
  SurvivalModel model;
  World world({.rates = {0.92, 0.45}}, 32, 6);
  world.churn = 0;
  for (int t = 0; t < 200; ++t) world.step(model, 3);
  double worst = 0;
  for (const World::Request& request : world.requests()) {
    const double rate = logistic(request.base);
    worst = std::max(worst, std::abs(expect(model, request.id, 1)[0] - rate));
    EXPECT_GT(model.evidence(0, request.id), 50);
  }
  EXPECT_LT(worst, 0.15);
  const float average = expect(model, kNobody, 1)[0];
  EXPECT_GT(average, 0.55);
  EXPECT_LT(average, 0.85);
  EXPECT_EQ(model.evidence(0, kNobody), 0);
  const RequestId id = world.requests()[0].id;
  model.finish(id);
  EXPECT_EQ(expect(model, id, 4), expect(model, kNobody, 4));
  EXPECT_EQ(model.evidence(0, id), 0);
}

TEST(SurvivalModel, ShrinkageHoldsARequestAtTheAverage) {
  const auto difference = [](double shrinkage) {
    SurvivalModel model({.request_shrinkage = shrinkage});
    const std::vector<TokenId> one = {1};
    for (int i = 0; i < 20; ++i) {
      for (RequestId id = 0; id < 40; ++id) {
        model.learn(0, id, 0, 1, chain_of({id == 0 || i % 2 == 0 ? 1 : 2}), one);
      }
    }
    return expect(model, 0, 1)[0] - expect(model, kNobody, 1)[0];
  };
  EXPECT_LT(difference(1e6), 0.01);
  EXPECT_GT(difference(16), 0.1);
  EXPECT_GT(difference(4), difference(16));
}

// --- memory ------------------------------------------------------------------------------------

#ifdef SMARTSPEC_COUNT_MEMORY
TEST(SurvivalModel, SteadyRequestsAllocateNothing) {
  SurvivalModel model;
  World world({.rates = {0.8, 0.4}, .claims = true, .width = 3}, 64, 1);
  world.churn = 0;
  for (int t = 0; t < 20; ++t) world.step(model, 2);
  std::array<float, 64> survival{};
  std::int64_t inside = 0;
  std::vector<TokenId> emitted = {1, 1};
  for (int t = 0; t < 200; ++t) {
    world.step(model, 2, [&](const World::Request& request, const World::Draft& draft) {
      const std::int64_t before = allocations;
      model.expect(0, request.id, 0, survival);
      model.calibrate(0, request.id, 0, draft.tree, survival);
      model.learn(0, request.id, 0, 6, draft.tree, emitted);
      if (t > 0) inside += allocations - before;
    });
  }
  EXPECT_EQ(inside, 0);
}

TEST(SurvivalModel, AMillionRequestsLeaveNothingBehind) {
  constexpr RequestId kCount = 1'000'000;
  const std::vector<TokenId> emitted = {1, 1};
  const TokenTree tree = chain_of({1, 2});
  SurvivalModel model;
  model.learn(0, -1, 0, 2, tree, emitted);
  const std::int64_t before = live_bytes;
  for (RequestId id = 0; id < kCount; ++id) model.learn(0, id * 7919, 0, 2, tree, emitted);
  EXPECT_GT(model.evidence(0, 7919), 0);
  EXPECT_GT(live_bytes - before, kCount * 64);
  for (RequestId id = 0; id < kCount; ++id) model.finish(id * 7919);
  EXPECT_EQ(model.evidence(0, 7919), 0);
  EXPECT_GT(model.evidence(0, -1), 0);
  EXPECT_LT(live_bytes - before, 16384);
}
#endif

TEST(SurvivalModel, FindsRequestsAfterAnyOrderOfComingAndGoing) {
  Random random(21);
  SurvivalModel model;
  std::map<RequestId, int> naive;
  const std::vector<TokenId> one = {1};
  const TokenTree tree = chain_of({1});
  for (int i = 0; i < 100000 / kShrink; ++i) {
    const RequestId id = random.below(400) * (random.chance(0.5) ? 1 : 64);
    if (random.chance((i / 5000) % 2 == 0 ? 0.3 : 0.7)) {
      model.finish(id);
      naive.erase(id);
    } else {
      model.learn(0, id, 0, 1, tree, one);
      ++naive[id];
    }
    const RequestId other = random.below(400);
    const auto found = naive.find(other);
    const double trials = model.evidence(0, other);
    ASSERT_EQ(trials > 0, found != naive.end());
    if (found != naive.end() && found->second < 3) {
      ASSERT_NEAR(trials, found->second, 0.05);
    }
  }
}

}  // namespace
}  // namespace smartspec::survival_test
