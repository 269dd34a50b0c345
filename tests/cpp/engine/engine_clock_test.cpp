// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The engine's clock: what counts as a step, and that decisions depend on nothing else.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <vector>

#include "engine/test_models.hpp"
#include "smartspec/draft_model.hpp"
#include "smartspec/engine.hpp"
#include "smartspec/goodput_policy.hpp"
#include "smartspec/suffix_proposer.hpp"

namespace smartspec {
namespace {

constexpr std::int32_t kVocab = 61;
constexpr double kTick = 1e-4;

std::shared_ptr<const Model> model() {
  static const auto shared =
      testing::tiny_model(make_runtime(Device::kCpu, 1), DType::kFloat32, 11);
  return shared;
}

Request make_request(std::int32_t number) {
  Request request;
  request.prompt_token_ids.assign(10, 3 + number);
  request.sampling.temperature = number % 2 == 0 ? 0.0F : 1.0F;
  request.sampling.seed = number;
  request.sampling.max_tokens = 60;
  request.sampling.ignore_eos = true;
  return request;
}

/// Drafts nothing; writes down how long steps were said to take.
class Listening final : public LengthPolicy {
 public:
  [[nodiscard]] std::string_view name() const override { return "listening"; }
  [[nodiscard]] std::int32_t max_depth() const override { return 0; }
  void plan(const StepView&, std::span<const LengthRequest>, std::span<const Candidate>,
            std::span<DraftChoice>) override {}
  void observe(const StepOutcome& outcome) override { seconds = outcome.seconds; }

  double seconds = 0;
};

TEST(EngineClockTest, APauseBetweenStepsCountsWhenItComesEveryTime) {
  double time = 0;
  EngineOptions options;
  options.clock = [&] { return time += kTick; };
  const auto policy = std::make_shared<Listening>();
  Engine engine(model(), options, nullptr, std::vector<std::shared_ptr<Proposer>>{}, policy);
  engine.add_request(make_request(0));
  const auto step = [&](double pause) {
    time += pause;
    engine.step();
    return policy->seconds;
  };
  for (int i = 0; i < 4; ++i) step(0);
  const double usual = step(0);
  EXPECT_GT(usual, 0);
  EXPECT_NEAR(step(10), usual, 1e-9) << "a lone pause";
  EXPECT_NEAR(step(0), usual, 1e-9) << "and after it";
  step(usual / 2);
  EXPECT_NEAR(step(usual / 2), 1.5 * usual, 2 * kTick) << "a caller that always takes its time";
  step(10);
  EXPECT_LT(step(10), 2 * usual) << "at most once more the step";
}

using Streams = std::map<RequestId, std::vector<TokenId>>;

struct Served {
  Streams streams;
  EngineStats stats;
};

Served serve(std::function<double()> clock) {
  SuffixIndexOptions index;
  index.vocab_size = kVocab;
  index.background = false;
  std::vector<std::shared_ptr<Proposer>> proposers = {
      std::make_shared<SuffixProposer>(std::make_shared<SuffixIndex>(index)),
      std::make_shared<DraftModelProposer>(model(), DraftModelOptions{}, kVocab)};
  EngineOptions options;
  options.max_num_seqs = 4;
  options.clock = std::move(clock);
  Engine engine(model(), options, nullptr, std::move(proposers), make_goodput_policy());
  for (std::int32_t i = 0; i < 8; ++i) engine.add_request(make_request(i));
  Served result;
  while (engine.has_unfinished()) {
    for (const RequestOutput& output : engine.step()) {
      auto& stream = result.streams[output.id];
      stream.insert(stream.end(), output.new_token_ids.begin(), output.new_token_ids.end());
    }
  }
  EXPECT_EQ(engine.check_integrity(), "");
  result.stats = engine.stats();
  for (const double seconds :
       {result.stats.step_seconds, result.stats.propose_seconds, result.stats.decision_seconds,
        result.stats.scheduler.policy.predicted_seconds}) {
    EXPECT_GE(seconds, 0);
    EXPECT_LT(seconds, 1e6);
  }
  return result;
}

std::function<double()> ticking() {
  return [time = 0.0]() mutable { return time += kTick; };
}

TEST(EngineClockTest, SameTimesSameDecisions) {
  const Served first = serve(ticking());
  const Served second = serve(ticking());
  EXPECT_GT(first.stats.num_drafted, 0);
  EXPECT_EQ(first.streams, second.streams);
  EXPECT_EQ(first.stats.num_steps, second.stats.num_steps);
  EXPECT_EQ(first.stats.num_drafted, second.stats.num_drafted);
  EXPECT_EQ(first.stats.num_tokens_computed, second.stats.num_tokens_computed);
  EXPECT_EQ(first.stats.step_seconds, second.stats.step_seconds);
  EXPECT_EQ(first.stats.scheduler.policy.length_histogram,
            second.stats.scheduler.policy.length_histogram);
  EXPECT_EQ(first.stats.scheduler.policy.predicted_seconds,
            second.stats.scheduler.policy.predicted_seconds);
}

TEST(EngineClockTest, NoClockChangesAnOutput) {
  const Streams wanted = serve(ticking()).streams;
  const auto hostile = [](std::vector<double> times) {
    return [times, next = std::size_t{0}]() mutable { return times[next++ % times.size()]; };
  };
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(serve({}).streams, wanted);
  EXPECT_EQ(serve(hostile({0})).streams, wanted) << "it stands";
  EXPECT_EQ(serve(hostile({9, 8, 7, 6, 5, 4, 3})).streams, wanted) << "it goes backwards";
  EXPECT_EQ(serve(hostile({std::nan("")})).streams, wanted);
  EXPECT_EQ(serve(hostile({1, inf, 2, -inf, std::nan(""), 1e300, -1e300})).streams, wanted);
}

}  // namespace
}  // namespace smartspec
