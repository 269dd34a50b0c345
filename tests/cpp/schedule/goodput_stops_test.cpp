// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Drafts that stop where the draft model does not believe in them itself.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "schedule/draft_stops.hpp"
#include "smartspec/goodput_policy.hpp"

namespace smartspec {
namespace {

constexpr double kEasy = 0.97;
constexpr double kHard = 0.3;
constexpr double kShareOfEasy = 0.6;
constexpr std::int32_t kMost = 8;

struct Costs {
  CostCoefficients target;
  CostCoefficients draft;
};
/// Every row takes its time, or hardly any.
const Costs kDear{.target = {.tokens = {1, 1024}, .seconds = {1e-3, 31.7e-3}},
                  .draft = {.tokens = {1, 1024}, .seconds = {0.15e-3, 1.2e-3}}};
const Costs kCheap{.target = {.tokens = {1, 1024}, .seconds = {1e-3, 3e-3}},
                   .draft = {.tokens = {1, 1024}, .seconds = {0.15e-3, 0.2e-3}}};

enum class Claims { kNone, kTrue, kShifted };

/// Requests whose tokens are easy or hard, by chance, and a draft model that may know which.
class World {
 public:
  World(const Costs& costs, std::size_t batch, Claims claims)
      : claims_(claims),
        policy_({.target = costs.target, .draft = costs.draft}),
        target_truth_(costs.target, {.learn = false}),
        draft_truth_(costs.draft, {.learn = false}),
        requests_(batch),
        trees_(batch),
        emitted_(batch) {
    for (std::size_t i = 0; i < batch; ++i) {
      requests_[i] = {.id = static_cast<RequestId>(i), .num_tokens = 100, .max_depth = 64};
    }
  }

  /// Tokens per second.
  double run(std::int32_t steps) {
    double tokens = 0;
    double seconds = 0;
    for (std::int32_t s = 0; s < steps; ++s) step(tokens, seconds);
    return tokens / seconds;
  }

  std::vector<LengthRequest>& requests() { return requests_; }
  std::vector<DraftChoice> choices;
  std::int32_t deepest = 0;   // levels drafted at the last step
  std::int64_t num_cut = 0;   // drafts that stopped
  std::int64_t num_made = 0;  // drafts of two levels or more

 private:
  void step(double& tokens, double& seconds) {
    const auto batch = static_cast<std::int32_t>(requests_.size());
    const StepView view{.now = seconds,
                        .base = {.num_tokens = batch,
                                 .num_sequences = batch,
                                 .num_logits = batch,
                                 .kv_tokens = 100 * batch},
                        .num_decodes = batch,
                        .token_budget = 1024,
                        .proposers = proposers_};
    choices.assign(requests_.size(), {});
    policy_.plan(view, requests_, {}, choices);
    std::vector<TokenTree*> pointers;
    deepest = 0;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      draft(choices[i], trees_[i]);
      deepest = std::max(deepest, trees_[i].size());
      pointers.push_back(&trees_[i]);
    }
    DraftWork work{.proposer = 0, .load = {.num_passes = deepest}};
    for (std::int32_t level = 1; level <= deepest; ++level) {
      StepLoad pass;
      for (const TokenTree& tree : trees_) pass.num_tokens += tree.size() >= level ? 1 : 0;
      pass.num_sequences = pass.num_logits = pass.num_tokens;
      work.seconds += draft_truth_.predict(pass);
      work.load.num_tokens += pass.num_tokens;
    }
    work.load.num_sequences = work.load.num_logits = work.load.num_tokens;
    std::vector<DraftWork> works;
    if (deepest > 0) works.push_back(work);
    policy_.allocate(view, requests_, choices, works, pointers);
    StepOutcome outcome{.now = seconds, .load = view.base, .drafts = works};
    std::vector<RequestOutcome> outcomes;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      std::int32_t accepted = 0;
      while (accepted < trees_[i].size() &&
             trees_[i].tokens[static_cast<std::size_t>(accepted)] == 1) {
        ++accepted;
      }
      emitted_[i].assign(static_cast<std::size_t>(accepted) + 1, 1);
      outcomes.push_back({.id = requests_[i].id,
                          .num_verified = trees_[i].size(),
                          .num_accepted = accepted,
                          .emitted = emitted_[i]});
      outcome.load.num_tokens += trees_[i].size();
      tokens += accepted + 1;
    }
    outcome.load.num_logits = outcome.load.num_tokens;
    outcome.requests = outcomes;
    outcome.seconds = target_truth_.predict(outcome.load);
    seconds += outcome.seconds + work.seconds;
    policy_.observe(outcome);
  }

  /// Token 1 is right, 2 is wrong.
  void draft(const DraftChoice& choice, TokenTree& tree) {
    tree.clear();
    float claimed = 1;
    float read = 1;
    for (std::int32_t d = 0; d < choice.depth; ++d) {
      const bool easy = std::bernoulli_distribution(kShareOfEasy)(random_);
      const bool right = std::bernoulli_distribution(easy ? kEasy : kHard)(random_);
      float claim = 1;
      if (claims_ == Claims::kTrue) claim = static_cast<float>(easy ? kEasy : kHard);
      if (claims_ == Claims::kShifted) claim = easy ? 0.6F : 0.05F;
      claimed *= claim;
      read *= choice.claims.accepted(claim);
      tree.add(right ? 1 : 2, d - 1, claimed);
      if (read >= choice.min_survival) continue;
      if (d + 1 < choice.depth) ++num_cut;
      break;
    }
    if (choice.depth >= 2) ++num_made;
  }

  Claims claims_;
  std::mt19937 random_{3};
  GoodputPolicy policy_;
  CostModel target_truth_;
  CostModel draft_truth_;
  std::vector<ProposerView> proposers_{{.name = "draft", .pays_per_depth = true}};
  std::vector<LengthRequest> requests_;
  std::vector<TokenTree> trees_;
  std::vector<std::vector<TokenId>> emitted_;
};

double best_fixed() {
  const CostModel target{kDear.target, {.learn = false}};
  const CostModel draft{kDear.draft, {.learn = false}};
  const double rate = kShareOfEasy * kEasy + (1 - kShareOfEasy) * kHard;
  double best = 0;
  double tokens = 1;
  double survival = 1;
  for (std::int32_t k = 0; k <= kMost; ++k) {
    const double seconds = target.predict({.num_tokens = 1 + k, .kv_tokens = 100}) +
                           k * draft.predict({.num_tokens = 1});
    best = std::max(best, tokens / seconds);
    tokens += survival *= rate;
  }
  return best;
}

TEST(GoodputStops, ADraftModelThatKnowsItsHardTokensBeatsEveryFixedLength) {
  for (const Claims claims : {Claims::kTrue, Claims::kShifted}) {
    World world(kDear, 1, claims);
    world.run(1500);
    EXPECT_GT(world.run(8000), 1.04 * best_fixed()) << static_cast<int>(claims);
    EXPECT_GT(world.num_cut, world.num_made / 4);
  }
}

TEST(GoodputStops, WithoutClaimsNoDraftIsCut) {
  World world(kDear, 1, Claims::kNone);
  world.run(1500);
  EXPECT_GT(world.run(8000), 0.98 * best_fixed());
  EXPECT_GT(world.num_made, 0);
  EXPECT_EQ(world.num_cut, 0);
}

TEST(GoodputStops, OneOfManyRidesOnInAPassThatIsMadeAnyway) {
  World many(kCheap, 16, Claims::kTrue);
  many.run(1000);
  ASSERT_GE(many.choices[0].depth, 2);
  EXPECT_EQ(many.num_cut, 0);
}

TEST(GoodputStops, WhoeverMustDraftIsNotCut) {
  World minimum(kDear, 1, Claims::kTrue);
  minimum.requests()[0].control.min_tokens = 4;
  minimum.run(500);
  EXPECT_EQ(minimum.num_cut, 0);
  World target(kDear, 1, Claims::kTrue);
  target.requests()[0].control.tpot_target = 0.5e-3;
  target.run(500);
  EXPECT_GT(target.num_made, 0);
  EXPECT_EQ(target.num_cut, 0);
}

TEST(DraftStopsTest, ReachIsWhatWasSeenAndOnwardsLikeTheLastLevel) {
  DraftStops stops;
  std::vector<float> reach(6);
  stops.expect(0, reach);
  EXPECT_EQ(reach, std::vector<float>(6, 1.0F)) << "nobody stopped yet";
  for (int i = 0; i < 2000; ++i) stops.learn(1, 3, i % 2 == 0 ? 1 : 3);
  stops.expect(1, reach);
  EXPECT_FLOAT_EQ(reach[0], 1);
  EXPECT_NEAR(reach[1], 0.5F, 0.03F);
  EXPECT_NEAR(reach[2], 0.5F, 0.03F) << "who got to the second level got to the third";
  EXPECT_NEAR(reach[5], 0.5F, 0.05F) << "deeper than was asked";
  stops.expect(0, reach);
  EXPECT_EQ(reach[5], 1) << "another group's";
  stops.learn(0, 1, 1);
  stops.learn(0, 64, 64);
  stops.expect(0, reach);
  EXPECT_EQ(reach[5], 1);
}

}  // namespace
}  // namespace smartspec
