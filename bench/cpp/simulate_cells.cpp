// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Goodput of policies as a share of the oracle's on a grid of simulated cells: a quick look while
// tuning. `smartspec simulate grid` is the full one, with more cells, JSON and plots.
//
//   simulate_cells [--steps 1500] [--cells SUBSTRING] [--policies off,uniform,auto] [--jumps 1]
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "smartspec/baseline_policies.hpp"
#include "smartspec/goodput_policy.hpp"
#include "smartspec/simulator.hpp"

namespace {

using namespace smartspec;
using PolicyPtr = std::shared_ptr<LengthPolicy>;

constexpr std::int32_t kMaxDepth = 8;

struct Cost {
  std::string name;
  CostCoefficients target;
  CostCoefficients pass;
  double overhead = 0;
};

CostCoefficients linear(double constant_ms, double token_ms, double kv_ms, double sequence_ms = 0) {
  CostCoefficients cost;
  cost.tokens = {1, 1001};
  cost.seconds = {1e-3 * (constant_ms + token_ms), 1e-3 * (constant_ms + 1001 * token_ms)};
  cost.per_kv_token = 1e-3 * kv_ms;
  cost.per_sequence = 1e-3 * sequence_ms;
  return cost;
}

// TurboSpec's coefficients for H100s, base tokens counted once. Its draft time is
// constant + slope * k; one pass here takes what fits that best for k = 1..7.
Cost dense_8b() {
  return {"8b", linear(6.9387, 1.8438e-2, 4.859e-5), linear(0.5416, 4.387e-5, 5.8e-7, 1.1e-3), .05};
}
Cost dense_70b() {
  return {"70b", linear(18.3454, 6.4022e-2, 6.2437e-5), linear(0.9, 1.5e-4, 7.5e-7, 1.1e-3), .05};
}
Cost staircase() {
  Cost cost = dense_8b();
  cost.name = "stairs";
  cost.overhead = 0;
  for (const std::int32_t tier : {1, 2, 4}) cost.target.tiers.push_back(tier);
  for (std::int32_t tier = 8; tier <= 512; tier += 8) cost.target.tiers.push_back(tier);
  for (std::int32_t tier = 544; tier <= 8192; tier += 32) cost.target.tiers.push_back(tier);
  // Tiles of the matrix products at 256 rows, and no CUDA graphs beyond 512.
  const auto at = [](int n) { return 1e-3 * (6.9387 + 1.8438e-2 * n); };
  cost.target.tokens = {1, 256, 257, 512, 513, 1513};
  cost.target.seconds = {at(1),          at(256),        at(257) + 6e-4,
                         at(512) + 6e-4, at(513) + 2e-3, at(1513) + 2e-3};
  return cost;
}
Cost moe() {
  Cost cost{"moe", linear(2.0, 6e-3, 2e-5), linear(0.35, 4e-5, 5e-7, 1e-3), 0};
  cost.target.num_experts = 64;
  cost.target.experts_per_token = 6;
  cost.target.per_expert = 0.145e-3;
  return cost;
}

struct Shape {
  std::string name;
  AcceptanceModel model;
  double claim_noise = 0.5;
};

std::vector<Shape> shapes() {
  return {
      {"same .7", {.rates = {.7}}},
      {"same .35", {.rates = {.35}}},
      {"same .9", {.rates = {.9}}},
      {"mix", {.rates = {.92, .45}, .spread = .5, .decay = .05}},
      {"wide", {.rates = {.95, .8, .6, .3}, .spread = .8, .decay = .1}},
      {"block", {.rates = {.8}, .spread = .5, .decay = .35}},
      {"wrong", {.rates = {0}}, -1},
  };
}

SimulationOptions cell(const Cost& cost, const Shape& shape, std::int32_t batch,
                       std::int32_t context, std::int64_t steps) {
  // Small batches see few requests in a step, so they take more of them.
  if (batch < 16) steps *= 16 / batch;
  SimulationOptions options;
  options.batch = batch;
  options.context = context;
  options.max_steps = steps;
  options.warmup_steps = steps / 5;
  options.proposers = {{.acceptance = shape.model,
                        .claim_noise = shape.claim_noise,
                        .max_depth = kMaxDepth,
                        .pass = cost.pass}};
  options.target = cost.target;
  options.overhead = cost.overhead;
  return options;
}

struct Cell {
  std::string name;
  Cost cost;
  SimulationOptions options;
};

std::vector<Cell> grid(std::int64_t steps) {
  std::vector<Cell> cells;
  const auto add = [&](const Cost& cost, const Shape& shape, std::int32_t batch,
                       std::int32_t context) {
    char name[96];
    std::snprintf(name, sizeof name, "%s/%s/b%d/c%d", cost.name.c_str(), shape.name.c_str(), batch,
                  context);
    cells.push_back({name, cost, cell(cost, shape, batch, context, steps)});
  };
  for (const Shape& shape : shapes()) {
    for (const int batch : {1, 16, 64, 256, 512}) add(dense_8b(), shape, batch, 1024);
    for (const int batch : {4, 64}) add(staircase(), shape, batch, 4096);
    for (const int batch : {1, 16, 256}) add(moe(), shape, batch, 1024);
    add(dense_70b(), shape, 64, 4096);
    add(dense_70b(), shape, 16, 65536);
  }
  return cells;
}

PolicyPtr make_policy(const std::string& name, const Cell& cell) {
  const CostCoefficients& target = cell.options.target;
  const CostCoefficients& pass = cell.cost.pass;
  if (name == "off") return make_off_policy();
  if (name.starts_with("fixed")) return make_fixed_policy(std::stoi(name.substr(5)));
  if (name == "turbospec") return make_turbospec_policy({.target = target, .draft = pass});
  if (name == "table") return make_table_policy({{1, 64, 3}, {65, 128, 1}, {129, 512, 0}});
  if (name == "full") return make_full_draft_policy(kMaxDepth, target);
  if (name == "auto") {
    return make_goodput_policy({.target = target, .draft = pass, .cost = {.start_error = 0.1}});
  }
  std::fprintf(stderr, "no policy %s\n", name.c_str());
  std::exit(2);
}

double goodput_of(const Cell& cell, const std::string& policy) {
  if (policy == "oracle") return simulate(cell.options, nullptr).goodput;
  if (policy != "uniform") return simulate(cell.options, make_policy(policy, cell)).goodput;
  double best = simulate(cell.options, make_off_policy()).goodput;
  for (std::int32_t k = 1; k <= kMaxDepth; ++k) {
    best = std::max(best, simulate(cell.options, make_fixed_policy(k)).goodput);
  }
  return best;
}

/// Runs jobs [0, count) on two threads.
void in_parallel(std::size_t count, const std::function<void(std::size_t)>& job) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < count; i = next++) job(i);
  };
  std::thread other(work);
  work();
  other.join();
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::size_t start = 0;
  while (start <= text.size()) {
    const std::size_t end = std::min(text.find(',', start), text.size());
    if (end > start) parts.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

void run_grid(const std::vector<Cell>& cells, const std::vector<std::string>& policies) {
  std::vector<std::vector<double>> shares(cells.size());
  std::vector<double> oracle(cells.size());
  in_parallel(cells.size(), [&](std::size_t i) {
    oracle[i] = goodput_of(cells[i], "oracle");
    for (const auto& policy : policies) {
      shares[i].push_back(goodput_of(cells[i], policy) / oracle[i]);
    }
  });
  std::printf("%-26s %10s", "cell", "oracle");
  for (const auto& policy : policies) std::printf(" %9s", policy.c_str());
  for (std::size_t i = 0; i < cells.size(); ++i) {
    std::printf("\n%-26s %10.1f", cells[i].name.c_str(), oracle[i]);
    for (const double share : shares[i]) std::printf(" %9.4f", share);
  }
  for (const bool worst : {false, true}) {
    std::printf("\n%-26s %10s", worst ? "worst" : "mean", "");
    for (std::size_t p = 0; p < policies.size(); ++p) {
      double sum = 0;
      double least = 1e9;
      for (const auto& row : shares) {
        sum += row[p];
        least = std::min(least, row[p]);
      }
      std::printf(" %9.4f", worst ? least : sum / static_cast<double>(cells.size()));
    }
  }
  std::printf("\n");
}

/// Goodput in windows after a jump as a share of the oracle's, over several seeds.
void run_jump(const char* name, const Cell& cell, const std::vector<std::string>& policies) {
  constexpr int kSeeds = 32;
  const std::vector<std::pair<int, int>> windows{{-100, 0}, {0, 20}, {20, 100}, {100, 400}};
  std::map<std::string, std::vector<double>> tokens, seconds;
  std::vector<std::string> all = policies;
  all.push_back("oracle");
  std::mutex lock;
  in_parallel(all.size() * kSeeds, [&](std::size_t job) {
    const std::string& policy = all[job / kSeeds];
    Cell one = cell;
    one.options.seed = 100 + job % kSeeds;
    one.options.record_steps = true;
    const SimulationResult result =
        simulate(one.options, policy == "oracle" ? nullptr : make_policy(policy, one));
    const std::lock_guard hold(lock);
    auto& t = tokens[policy];
    auto& s = seconds[policy];
    t.resize(windows.size() * one.options.shifts.size());
    s.resize(t.size());
    std::size_t place = 0;
    for (const SimulatedShift& shift : one.options.shifts) {
      for (const auto& [first, last] : windows) {
        for (auto i = shift.step + first; i < shift.step + last; ++i) {
          const SimulatedStep& step = result.steps.at(static_cast<std::size_t>(i));
          t[place] += step.expected_emitted;
          s[place] += step.seconds;
        }
        ++place;
      }
    }
  });
  std::printf("%s: share of the oracle, steps", name);
  for (const auto& [first, last] : windows) std::printf(" %d..%d", first, last);
  std::printf(", for each jump\n");
  for (const auto& policy : policies) {
    std::printf("  %-10s", policy.c_str());
    for (std::size_t w = 0; w < tokens[policy].size(); ++w) {
      if (w % windows.size() == 0) std::printf(" |");
      std::printf(" %6.3f", tokens[policy][w] / seconds[policy][w] * seconds["oracle"][w] /
                                tokens["oracle"][w]);
    }
    std::printf("\n");
  }
}

void run_jumps(const std::vector<std::string>& policies) {
  const AcceptanceModel high{.rates = {.9}, .spread = .3, .decay = .05};
  const AcceptanceModel low{.rates = {.35}, .spread = .3, .decay = .05};
  for (const Cost& cost : {dense_8b(), moe()}) {
    for (const int batch : {8, 64, 256}) {
      Cell jump{"", cost, cell(cost, {"high", high}, batch, 1024, 1600)};
      jump.options.shifts = {{.step = 600, .proposer = 0, .acceptance = low},
                             {.step = 1100, .proposer = 0, .acceptance = high}};
      const std::string name = cost.name + " acceptance .9 .35 .9, b" + std::to_string(batch);
      run_jump(name.c_str(), jump, policies);
    }
    for (const Shape& shape : {shapes()[0], shapes()[3]}) {
      Cell jump{"", cost, cell(cost, shape, 8, 1024, 1600)};
      jump.options.shifts = {{.step = 600, .batch = 256}, {.step = 1100, .batch = 8}};
      run_jump((cost.name + " batch 8 256 8, " + shape.name).c_str(), jump, policies);
    }
  }
}

std::string option(int argc, char** argv, const std::string& name, const std::string& fallback) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (argv[i] == name) return argv[i + 1];
  }
  return fallback;
}

}  // namespace

int main(int argc, char** argv) {
  const auto steps = std::stoi(option(argc, argv, "--steps", "1500"));
  const std::string wanted = option(argc, argv, "--cells", "");
  const auto policies =
      split(option(argc, argv, "--policies", "off,uniform,turbospec,table,full,auto"));
  if (option(argc, argv, "--jumps", "0") != "0") {
    run_jumps(policies);
    return 0;
  }
  std::vector<Cell> cells;
  for (Cell& each : grid(steps)) {
    if (each.name.find(wanted) != std::string::npos) cells.push_back(std::move(each));
  }
  const auto start = std::chrono::steady_clock::now();
  run_grid(cells, policies);
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
  std::printf("%zu cells, %d steps, %.1f s\n", cells.size(), steps, wall.count());
  return 0;
}
