// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Several proposers in one engine: who is asked, who is told, what a request may choose.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "engine/test_models.hpp"
#include "smartspec/draft_model.hpp"
#include "smartspec/engine.hpp"
#include "smartspec/goodput_policy.hpp"

namespace smartspec {
namespace {

constexpr std::int32_t kVocab = 61;

std::shared_ptr<const Model> model() {
  static const auto shared =
      testing::tiny_model(make_runtime(Device::kCpu, 1), DType::kFloat32, 11);
  return shared;
}

Request make_request(std::int32_t max_tokens, std::optional<std::string> proposer = {}) {
  Request request;
  request.prompt_token_ids = {3, 4, 5};
  request.sampling.temperature = 0.0F;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  request.proposer = std::move(proposer);
  return request;
}

/// Drafts chains of a token of its own; writes down what it is asked and told.
class Scripted final : public Proposer {
 public:
  Scripted(std::string name, bool pays) : name_(std::move(name)), pays_(pays) {}
  [[nodiscard]] std::string_view name() const override { return name_; }
  [[nodiscard]] bool pays_per_depth() const override { return pays_; }
  void propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) override {
    if (fails) throw std::runtime_error(name_ + " failed");
    for (std::size_t i = 0; i < requests.size(); ++i) {
      ++num_asked[requests[i].id];
      deepest = std::max(deepest, requests[i].max_depth);
      for (std::int32_t depth = 0; depth < std::min(requests[i].max_depth, length); ++depth) {
        trees[i].add(token, depth - 1);
      }
    }
  }
  void observe(std::span<const Outcome> outcomes) override {
    for (const Outcome& outcome : outcomes) {
      num_told[outcome.id] += std::ssize(outcome.emitted);
      if (outcome.tree == nullptr || outcome.tree->empty()) continue;
      ++num_own[outcome.id];
      for (const TokenId drafted : outcome.tree->tokens) EXPECT_EQ(drafted, token);
    }
  }
  void finish(RequestId id) override { finished.push_back(id); }

  TokenId token = 7;
  std::int32_t length = 3;
  bool fails = false;
  std::map<RequestId, std::int64_t> num_asked, num_told, num_own;  // own: trees that were verified
  std::int32_t deepest = 0;
  std::vector<RequestId> finished;

 private:
  std::string name_;
  bool pays_;
};

/// The choice of a function of the request.
class ChoosingPolicy final : public LengthPolicy {
 public:
  using Choose = std::function<DraftChoice(const LengthRequest&)>;
  explicit ChoosingPolicy(Choose choose) : choose_(std::move(choose)) {}
  [[nodiscard]] std::string_view name() const override { return "choosing"; }
  [[nodiscard]] std::int32_t max_depth() const override { return 8; }
  void plan(const StepView&, std::span<const LengthRequest> requests, std::span<const Candidate>,
            std::span<DraftChoice> choices) override {
    for (std::size_t i = 0; i < requests.size(); ++i) choices[i] = choose_(requests[i]);
    shown.assign(requests.begin(), requests.end());
  }
  void allocate(const StepView&, std::span<const LengthRequest>, std::span<const DraftChoice>,
                std::span<const DraftWork> drafts, std::span<TokenTree* const>) override {
    works.assign(drafts.begin(), drafts.end());
  }
  void observe(const StepOutcome& outcome) override { seconds = outcome.seconds; }

  std::vector<LengthRequest> shown;
  std::vector<DraftWork> works;
  double seconds = 0;

 private:
  Choose choose_;
};

struct Trio {
  std::shared_ptr<Scripted> a = std::make_shared<Scripted>("a", false);
  std::shared_ptr<Scripted> b = std::make_shared<Scripted>("b", false);
  std::shared_ptr<Scripted> paid = std::make_shared<Scripted>("paid", true);
  Trio() {
    b->token = 8;
    paid->token = 9;
  }
  [[nodiscard]] std::vector<std::shared_ptr<Proposer>> all() const { return {a, b, paid}; }
};

void run(Engine& engine) {
  while (engine.has_unfinished()) engine.step();
  EXPECT_EQ(engine.check_integrity(), "");
}

TEST(EngineProposersTest, FreeOnesAreAskedAlwaysPaidOnesWhereChosenAndEachHearsOfItsOwn) {
  Trio trio;
  const auto policy = std::make_shared<ChoosingPolicy>([](const LengthRequest& request) {
    return DraftChoice{.proposer = static_cast<std::int32_t>(request.id % 4) - 1, .depth = 2};
  });
  Engine engine(model(), EngineOptions{}, nullptr, trio.all(), policy);
  for (int i = 0; i < 4; ++i) engine.add_request(make_request(20));
  run(engine);
  for (RequestId id = 0; id < 4; ++id) {
    EXPECT_GT(trio.a->num_asked[id], 0);
    EXPECT_GT(trio.b->num_asked[id], 0);
    EXPECT_EQ(trio.paid->num_asked[id] > 0, id == 3);
    EXPECT_EQ(trio.a->num_own[id] > 0, id == 1);
    EXPECT_EQ(trio.b->num_own[id] > 0, id == 2);
    EXPECT_EQ(trio.paid->num_own[id] > 0, id == 3);
    for (const auto& proposer : {trio.a, trio.b, trio.paid}) {
      EXPECT_EQ(proposer->num_told[id], 20);
    }
  }
  EXPECT_EQ(trio.a->deepest, 8) << "what the policy might ever want";
  EXPECT_EQ(trio.paid->deepest, 2) << "what it chose";
  for (const auto& proposer : {trio.a, trio.b, trio.paid}) {
    EXPECT_EQ(proposer->finished.size(), 4U);
  }
  const EngineStats stats = engine.stats();
  ASSERT_EQ(stats.proposers.size(), 3U);
  std::int64_t num_drafted = 0;
  for (const ProposerStats& each : stats.proposers) {
    EXPECT_GT(each.num_drafted, 0) << each.name;
    EXPECT_GT(each.num_calls, 0);
    EXPECT_GE(each.num_proposed, each.num_drafted);
    num_drafted += each.num_drafted;
  }
  EXPECT_EQ(num_drafted, stats.num_drafted);
  EXPECT_TRUE(stats.proposers[2].pays_per_depth);
  EXPECT_GT(stats.paid_seconds, 0);
  EXPECT_LT(stats.paid_seconds, stats.propose_seconds);
  EXPECT_GT(stats.decision_seconds, 0);
  EXPECT_EQ(stats.scheduler.num_steps, stats.num_steps);
}

TEST(EngineProposersTest, ARequestMayChooseItsProposerAndItsLengths) {
  Trio trio;
  // The policy wants the first proposer for everyone, nothing for the last.
  const auto policy = std::make_shared<ChoosingPolicy>([](const LengthRequest& request) {
    return request.id == 4 ? DraftChoice{} : DraftChoice{.proposer = 0, .depth = 8};
  });
  Engine engine(model(), EngineOptions{}, nullptr, trio.all(), policy);
  engine.add_request(make_request(20));
  engine.add_request(make_request(20, "b"));
  engine.add_request(make_request(20, "paid"));
  Request most = make_request(20);
  most.max_draft_tokens = 1;
  engine.add_request(most);
  Request least = make_request(20, "paid");
  least.min_draft_tokens = 2;
  engine.add_request(least);
  std::map<RequestId, RequestStats> last;
  while (engine.has_unfinished()) {
    for (const RequestOutput& output : engine.step()) last[output.id] = output.stats;
  }
  EXPECT_EQ(last[0].proposer, 0);
  EXPECT_GT(last[0].length_histogram[3], 0);
  EXPECT_EQ(trio.a->num_asked[1], 0);
  EXPECT_EQ(last[1].num_drafted, 0) << "no draft by the one that it excludes";
  EXPECT_EQ(last[1].proposer, -1);
  EXPECT_EQ(last[2].num_drafted, 0);
  EXPECT_EQ(last[3].length_histogram[1], last[3].num_drafted);
  EXPECT_GT(last[3].num_drafted, 0);
  EXPECT_EQ(last[4].proposer, 2);
  EXPECT_GT(last[4].length_histogram[2], 0);
  for (const auto& [id, stats] : last) {
    const auto decodes = std::accumulate(stats.length_histogram.begin(),
                                         stats.length_histogram.end(), std::int64_t{0});
    EXPECT_EQ(decodes, stats.num_steps - 1) << "the first token comes from the prompt";
  }
}

TEST(EngineProposersTest, BadChoicesAreRefusedByName) {
  Trio trio;
  Engine engine(model(), EngineOptions{}, nullptr, trio.all(), make_fixed_policy(2));
  const auto refused = [&](const char* field, const std::function<void(Request&)>& spoil) {
    Request request = make_request(4);
    spoil(request);
    try {
      engine.add_request(request);
      ADD_FAILURE() << "accepted " << field;
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(field), std::string::npos) << error.what();
    }
  };
  refused("(a, b, paid)", [](Request& r) { r.proposer = "c"; });
  refused("proposer", [](Request& r) { r.proposer = ""; });
  refused("min_draft_tokens", [](Request& r) { r.min_draft_tokens = -1; });
  refused("min_draft_tokens", [](Request& r) { r.min_draft_tokens = 257; });
  refused("min_draft_tokens", [](Request& r) {
    r.min_draft_tokens = 3;
    r.max_draft_tokens = 2;
  });
  refused("tpot_target", [](Request& r) { r.tpot_target = -1; });
  refused("tpot_target", [](Request& r) { r.tpot_target = std::nan(""); });
  EXPECT_FALSE(engine.has_unfinished());

  EngineOptions options;
  options.aging_seconds = -1;
  EXPECT_THROW(Engine(model(), options, nullptr), std::invalid_argument);
  const std::vector<std::shared_ptr<Proposer>> null{trio.a, nullptr};
  EXPECT_THROW(Engine(model(), EngineOptions{}, nullptr, null), std::invalid_argument);
}

TEST(EngineProposersTest, OneThatFailsCostsOnlyItsOwnDrafts) {
  Trio trio;
  trio.a->fails = trio.paid->fails = true;
  const auto policy = std::make_shared<ChoosingPolicy>([](const LengthRequest& request) {
    return DraftChoice{.proposer = static_cast<std::int32_t>(request.id), .depth = 2};
  });
  Engine engine(model(), EngineOptions{}, nullptr, trio.all(), policy);
  for (int i = 0; i < 3; ++i) engine.add_request(make_request(20));
  std::map<RequestId, RequestStats> last;
  for (int i = 0; i < 4; ++i) {
    for (const RequestOutput& output : engine.step()) last[output.id] = output.stats;
  }
  EXPECT_GT(last[1].num_drafted, 0);
  EXPECT_EQ(last[2].num_drafted, 0);
  EXPECT_EQ(last[2].no_speculation_reason, NoSpeculationReason::kProposerError);
  EXPECT_EQ(engine.stats().num_proposer_errors, 6);
  EXPECT_EQ(engine.stats().last_proposer_error, "paid failed");
  run(engine);
}

/// G12: what a draft model missed while it was not asked is caught up in one pass.
TEST(EngineProposersTest, ADraftModelThatSatOutCatchesUpInOnePass) {
  const auto draft = std::make_shared<DraftModelProposer>(model(), DraftModelOptions{}, kVocab);
  bool wanted = false;
  const auto policy = std::make_shared<ChoosingPolicy>([&](const LengthRequest&) {
    return wanted ? DraftChoice{.proposer = 0, .depth = 4} : DraftChoice{};
  });
  Engine engine(model(), EngineOptions{}, nullptr, draft, policy);
  engine.add_request(make_request(80));
  for (int i = 0; i < 30; ++i) engine.step();
  EXPECT_EQ(policy->works.size(), 0U) << "an idle draft model costs nothing";
  EXPECT_EQ(policy->shown.at(0).backlog, 3 + 29);
  wanted = true;
  for (int i = 0; i < 3; ++i) {
    const auto outputs = engine.step();
    ASSERT_EQ(outputs[0].new_token_ids.size(), 5U) << "the target drafts for itself";
    ASSERT_EQ(policy->works.size(), 1U);
    const StepLoad& load = policy->works[0].load;
    EXPECT_EQ(load.num_passes, 4);
    EXPECT_EQ(load.num_sequences, 4);
    EXPECT_EQ(load.num_logits, 4);
    EXPECT_EQ(load.num_tokens, i == 0 ? 33 + 3 : 2 + 3);
    EXPECT_GT(policy->works[0].seconds, 0);
    EXPECT_GT(policy->seconds, 0);
    const std::int64_t end = policy->shown[0].num_tokens;
    EXPECT_EQ(load.kv_tokens, 4 * end + 1 + 2 + 3);
    EXPECT_EQ(load.attention_pairs,
              i == 0 ? end * (end + 1) / 2 + 3 * end + 6 : (end - 1) + 4 * end + 6);
  }
  EXPECT_EQ(draft->check_integrity(), "");
}

TEST(EngineProposersTest, ADraftModelStopsWhereASurvivalFallsBelow) {
  DraftModelProposer draft(model(), DraftModelOptions{}, kVocab);
  const std::vector<TokenId> tokens{3, 4, 5};
  ProposeRequest request{.id = 1,
                         .tokens = tokens,
                         .num_prompt_tokens = 3,
                         .max_depth = 8,
                         .max_nodes = kMaxTreeNodes,
                         .min_survival = 0.0F};
  TokenTree full;
  draft.propose({&request, 1}, {&full, 1});
  ASSERT_EQ(full.size(), 8);
  EXPECT_EQ(draft.last_work().num_passes, 8);
  for (std::size_t i = 0; i + 1 < 8; ++i) {
    if (full.survival[i] == full.survival[i + 1]) continue;
    request.id = static_cast<RequestId>(10 + i);
    request.min_survival = std::nextafter(full.survival[i], 2.0F);
    const auto first_below = std::find_if(full.survival.begin(), full.survival.end(),
                                          [&](float s) { return s < request.min_survival; });
    TokenTree tree;
    draft.propose({&request, 1}, {&tree, 1});
    EXPECT_EQ(tree.size(), first_below - full.survival.begin() + 1);
    EXPECT_EQ(draft.last_work().num_passes, tree.size());
    EXPECT_TRUE(std::equal(tree.tokens.begin(), tree.tokens.end(), full.tokens.begin()));
  }
  // The same, when its claims read otherwise than they are.
  const auto drafted = [&](ClaimReading claims) {
    ++request.id;
    request.min_survival = 0.5F;
    request.claims = claims;
    TokenTree tree;
    draft.propose({&request, 1}, {&tree, 1});
    return tree.size();
  };
  EXPECT_EQ(drafted({.offset = 20, .scale = 0}), 8) << "all of them are sure";
  EXPECT_EQ(drafted({.offset = -20, .scale = 0}), 1);
  EXPECT_EQ(drafted({.offset = 1, .scale = 0}), 3) << "0.73 each, and 0.39 three of them";
  EXPECT_EQ(draft.backlog(1, tokens), 0);
  EXPECT_EQ(draft.backlog(99, tokens), 3);
}

}  // namespace
}  // namespace smartspec
