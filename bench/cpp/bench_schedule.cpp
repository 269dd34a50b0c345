// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// How long the choice of a whole batch's draft nodes takes, beside sorting all survivals and
// scanning every size, in the same run on the same problems; and the goodput it gives away.
//
//   bench_schedule [--rounds 4000]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "smartspec/allocation.hpp"

namespace {

using namespace smartspec;

enum class Cost { kLinear, kTiles, kTiers };

struct Scene {
  std::vector<std::int32_t> offsets{0};
  std::vector<std::int32_t> parents;  // empty: chains
  std::vector<float> survival;
  std::vector<CostSegment> cost;
  std::vector<double> seconds;  // [1 + nodes]

  AllocationProblem problem() const {
    AllocationProblem problem;
    const auto requests = static_cast<std::int32_t>(offsets.size()) - 1;
    problem.offsets = offsets;
    problem.parents = parents;
    problem.survival = survival;
    problem.base_value = requests;
    problem.base_tokens = requests;
    problem.fixed_seconds = 1e-3;
    problem.cost = cost;
    return problem;
  }
};

// About an 8B model on one H100: 6.9 ms and 18.4 us per token.
std::vector<CostSegment> make_cost(Cost shape, std::int32_t most) {
  constexpr double kStart = 6.9e-3;
  constexpr double kToken = 18.4e-6;
  std::vector<CostSegment> cost;
  if (shape == Cost::kLinear) return {{0, kStart, kToken}};
  std::int32_t step = shape == Cost::kTiles ? 32 : 1;
  std::int32_t first = 0;
  while (first <= most) {
    const std::int32_t last = first + step - 1;
    cost.push_back({first, kStart + kToken * last, 0});
    first = last + 1;
    if (shape == Cost::kTiers) step = std::clamp(first / 8, 1, 64);
  }
  return cost;
}

Scene make_scene(std::int32_t requests, std::int32_t nodes, bool trees, Cost shape,
                 std::mt19937& random) {
  std::uniform_real_distribution<float> accept(trees ? 0.1F : 0.3F, 0.98F);
  Scene scene;
  for (std::int32_t r = 0; r < requests; ++r) {
    const std::size_t begin = scene.survival.size();
    for (std::int32_t i = 0; i < nodes; ++i) {
      std::int32_t parent = i - 1;
      if (trees) {
        // The latest nodes are the most likely parents: depth 5 to 12 with 32 nodes.
        std::uniform_int_distribution<std::int32_t> pick(std::max(-1, i - 8), i - 1);
        scene.parents.push_back(parent = pick(random));
      }
      const float path =
          parent < 0 ? 1.0F : scene.survival[begin + static_cast<std::size_t>(parent)];
      scene.survival.push_back(path * accept(random));
    }
    scene.offsets.push_back(static_cast<std::int32_t>(scene.survival.size()));
  }
  const auto count = static_cast<std::int32_t>(scene.survival.size());
  scene.cost = make_cost(shape, requests + count);
  std::size_t segment = 0;
  for (std::int32_t n = requests; n <= requests + count; ++n) {
    while (segment + 1 < scene.cost.size() && scene.cost[segment + 1].first_tokens <= n) ++segment;
    const CostSegment& at = scene.cost[segment];
    scene.seconds.push_back(1e-3 + at.seconds + (n - at.first_tokens) * at.seconds_per_token);
  }
  return scene;
}

// What TETRIS-like selections do once per step: sort, scan, keep what reaches the threshold.
double sort_and_scan(const Scene& scene, std::vector<float>& sorted,
                     std::vector<std::uint8_t>& selected) {
  sorted.assign(scene.survival.begin(), scene.survival.end());
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  double value = static_cast<double>(scene.offsets.size()) - 1;
  double best = value / scene.seconds[0];
  float threshold = 2.0F;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    value += static_cast<double>(sorted[i]);
    const double goodput = value / scene.seconds[i + 1];
    if (goodput <= best) continue;
    best = goodput;
    threshold = sorted[i];
  }
  for (std::size_t i = 0; i < sorted.size(); ++i) selected[i] = scene.survival[i] >= threshold;
  return best;
}

double percentile(std::vector<double>& values, double p) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(p * static_cast<double>(values.size() - 1))];
}

void measure(std::int32_t requests, std::int32_t nodes, bool trees, Cost shape, int rounds) {
  using Clock = std::chrono::steady_clock;
  constexpr std::size_t kScenes = 64;  // more than a branch predictor remembers
  std::mt19937 random(1);
  std::vector<Scene> scenes;
  for (std::size_t i = 0; i < kScenes; ++i) {
    scenes.push_back(make_scene(requests, nodes, trees, shape, random));
  }
  std::vector<std::uint8_t> selected(scenes[0].survival.size());
  std::vector<float> sorted;
  Allocator allocator;
  std::vector<double> ours;
  std::vector<double> theirs;
  double loss = 0;
  double share = 0;
  for (int round = 0; round < rounds; ++round) {
    const Scene& scene = scenes[static_cast<std::size_t>(round) % kScenes];
    const auto start = Clock::now();
    const Allocation found = allocator.solve(scene.problem(), selected);
    const auto middle = Clock::now();
    const double best = sort_and_scan(scene, sorted, selected);
    const auto end = Clock::now();
    ours.push_back(std::chrono::duration<double, std::micro>(middle - start).count());
    theirs.push_back(std::chrono::duration<double, std::micro>(end - middle).count());
    loss = std::max(loss, 1 - found.expected_tokens / found.seconds / best);
    share += static_cast<double>(found.num_nodes) / static_cast<double>(selected.size()) / rounds;
  }
  const char* const names[] = {"linear", "tiles", "tiers"};
  std::printf("%5d x %-3d %-6s %-7s %5.0f %% %8.2f %8.2f %9.2f %9.2f %10.1e\n", requests, nodes,
              trees ? "trees" : "chains", names[static_cast<int>(shape)], 100 * share,
              percentile(ours, 0.5), percentile(ours, 0.99), percentile(theirs, 0.5),
              percentile(theirs, 0.99), loss);
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 4000;
  for (int i = 1; i + 1 < argc; ++i) {
    if (argv[i] == std::string("--rounds")) rounds = std::max(1, std::atoi(argv[i + 1]));
  }
  std::printf(
      "requests x nodes, cost      chosen   p50 us   p99 us  sort p50  sort p99       loss\n");
  for (const Cost shape : {Cost::kLinear, Cost::kTiles, Cost::kTiers}) {
    for (const auto& [requests, nodes] : std::vector<std::pair<std::int32_t, std::int32_t>>{
             {1, 7}, {16, 7}, {64, 7}, {256, 7}, {256, 15}, {1024, 7}}) {
      measure(requests, nodes, false, shape, rounds);
    }
    measure(256, 32, true, shape, rounds);
  }
  return 0;
}
