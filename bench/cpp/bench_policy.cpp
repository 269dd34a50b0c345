// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the goodput policy costs a step: each of its hooks, timed within simulated steps.
//
//   bench_policy [--steps 2000]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "smartspec/goodput_policy.hpp"
#include "smartspec/simulator.hpp"

namespace {

using namespace smartspec;
using Clock = std::chrono::steady_clock;

double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

class Timed final : public LengthPolicy {
 public:
  explicit Timed(std::shared_ptr<LengthPolicy> inner) : inner_(std::move(inner)) {}
  [[nodiscard]] std::string_view name() const override { return inner_->name(); }
  [[nodiscard]] std::int32_t max_depth() const override { return inner_->max_depth(); }
  void plan(const StepView& step, std::span<const LengthRequest> requests,
            std::span<const Candidate> candidates, std::span<DraftChoice> choices) override {
    const auto start = Clock::now();
    inner_->plan(step, requests, candidates, choices);
    plans.push_back(microseconds_since(start));
  }
  void allocate(const StepView& step, std::span<const LengthRequest> requests,
                std::span<const DraftChoice> choices, std::span<const DraftWork> drafts,
                std::span<TokenTree* const> trees) override {
    std::int64_t nodes = 0;
    for (const TokenTree* tree : trees) nodes += tree == nullptr ? 0 : tree->size();
    offered += nodes;
    const auto start = Clock::now();
    inner_->allocate(step, requests, choices, drafts, trees);
    allocations.push_back(microseconds_since(start));
  }
  void observe(const StepOutcome& outcome) override {
    const auto start = Clock::now();
    inner_->observe(outcome);
    observations.push_back(microseconds_since(start));
  }
  void finish(RequestId id) override { inner_->finish(id); }

  std::vector<double> plans, allocations, observations;
  std::int64_t offered = 0;

 private:
  std::shared_ptr<LengthPolicy> inner_;
};

double median(std::vector<double> values) {
  values.erase(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 4));
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

void measure(std::int32_t batch, bool pays, std::int64_t steps) {
  SimulationOptions options;
  options.batch = batch;
  options.max_steps = steps;
  options.target = {.tokens = {1, 1001}, .seconds = {6.957e-3, 25.395e-3}, .per_kv_token = 4.9e-8};
  const CostCoefficients pass{.tokens = {1}, .seconds = {0.5e-3}};
  SimulatedProposer proposer;
  proposer.pays_per_depth = pays;
  proposer.acceptance.rates = {.9, .6};
  proposer.acceptance.spread = .5;
  proposer.max_depth = 7;
  proposer.pass = pass;
  options.proposers.push_back(proposer);
  const auto timed = std::make_shared<Timed>(make_goodput_policy(
      {.max_depth = 7, .max_paid_depth = 7, .target = options.target, .draft = pass}));
  (void)simulate(options, timed);
  const double plan = median(timed->plans);
  const double allocate = median(timed->allocations);
  const double observe = median(timed->observations);
  std::printf("%6d  %-5s %14.1f %9.1f %9.1f %9.1f %9.1f\n", batch, pays ? "paid" : "free",
              static_cast<double>(timed->offered) / static_cast<double>(timed->plans.size()), plan,
              allocate, observe, plan + allocate + observe);
}

}  // namespace

int main(int argc, char** argv) {
  std::int64_t steps = 2000;
  for (int i = 1; i + 1 < argc; ++i) {
    if (argv[i] == std::string("--steps")) steps = std::max(8, std::atoi(argv[i + 1]));
  }
  std::printf("medians in microseconds per step\n");
  std::printf(" batch  drafts offered nodes      plan  allocate   observe       sum\n");
  for (const bool pays : {false, true}) {
    for (const std::int32_t batch : {1, 16, 64, 256, 512}) measure(batch, pays, steps);
  }
  return 0;
}
