// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A batch of requests with known acceptance, to hold a SurvivalModel against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "smartspec/survival_model.hpp"

namespace smartspec::survival_test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int kShrink = 10;  // sanitizer builds run a tenth of the steps
#else
inline constexpr int kShrink = 1;
#endif

inline double logit(double p) { return std::log(p / (1 - p)); }
inline double logistic(double x) { return 1 / (1 + std::exp(-x)); }

inline constexpr RequestId kNobody = 1'000'000'000;  // an id no test uses

inline std::vector<float> expect(const SurvivalModel& model, RequestId id, std::size_t depth,
                                 int group = 0) {
  std::vector<float> survival(depth);
  model.expect(0, id, group, survival);
  return survival;
}

/// SplitMix64: same numbers on every platform.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27U)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31U);
  }
  int below(int n) { return static_cast<int>(next() % static_cast<std::uint64_t>(n)); }
  double unit() { return static_cast<double>(next() >> 11U) * 0x1p-53; }
  bool chance(double p) { return unit() < p; }
  double normal() {
    return std::sqrt(-2 * std::log(1 - unit())) * std::cos(6.283185307179586 * unit());
  }

 private:
  std::uint64_t state_;
};

struct Workload {
  const char* name = "";
  std::vector<double> rates;  // of requests, drawn evenly
  double wander = 0;    // sd in logits of what comes and goes, correlation .8 from step to step
  double decay = 0;     // logits lost per depth
  bool claims = false;  // else 1 everywhere
  double claim_bias = 0;
  double claim_noise = 0.5;
  double coverage = 1;      // of steps the proposer has something
  int width = 1;            // children per level; the first one goes on
  double second_group = 0;  // logits by which every other request differs, in group 1
};

/// Drafted tokens are 1 where the target agrees; so the tokens emitted are all 1. One model learns.
class World {
 public:
  static constexpr int kDepth = 6;

  struct Request {
    RequestId id = 0;
    double base = 0;
    double x = 0;
    int group = 0;
  };
  struct Draft {
    TokenTree tree;
    std::vector<double> truth;  // survival of each node
    std::vector<double> chain;  // [kDepth] of the chain, coverage included
    int matched = 0;            // levels of the tree the target agrees with
  };

  World(Workload workload, int num_requests, std::uint64_t seed)
      : workload_(std::move(workload)), random_(seed) {
    requests_.resize(static_cast<std::size_t>(num_requests));
    for (std::size_t i = 0; i < requests_.size(); ++i) renew(i);
  }

  /// All requests take one step; `see(request, draft)` before the outcome is learnt.
  template <typename See>
  void step(SurvivalModel& model, int verified, const See& see) {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (random_.chance(churn)) {
        model.finish(requests_[i].id);
        renew(i);
      }
      Request& request = requests_[i];
      request.x = 0.8 * request.x + 0.6 * workload_.wander * random_.normal();
      draft(request);
      see(request, draft_);
      emitted_.assign(static_cast<std::size_t>(std::min(draft_.matched, verified)) + 1, 1);
      model.learn(0, request.id, request.group, kDepth, draft_.tree, emitted_);
    }
  }
  void step(SurvivalModel& model, int verified) {
    step(model, verified, [](const Request&, const Draft&) {});
  }

  void set_rates(const std::vector<double>& rates) {
    workload_.rates = rates;
    for (Request& request : requests_) request.base = draw_base();
  }
  std::span<const Request> requests() const { return requests_; }

  double churn = 1.0 / 150;  // requests end with this probability per step

 private:
  double draw_base() {
    const auto n = static_cast<int>(workload_.rates.size());
    return logit(workload_.rates[static_cast<std::size_t>(random_.below(n))]);
  }
  void renew(std::size_t i) {
    Request& request = requests_[i];
    request.id = next_id_++;
    request.x = workload_.wander * random_.normal();
    request.group = workload_.second_group != 0 ? static_cast<int>(i % 2) : 0;
    request.base = draw_base() + request.group * workload_.second_group;
  }
  float claim(double rate) {
    if (!workload_.claims) return 1;
    const double x = logit(std::clamp(rate, 1e-9, 1 - 1e-9));
    return static_cast<float>(
        logistic(x + workload_.claim_bias + workload_.claim_noise * random_.normal()));
  }

  void draft(const Request& request) {
    draft_.tree.clear();
    draft_.truth.clear();
    draft_.chain.clear();
    draft_.matched = 0;
    const bool covered = random_.chance(workload_.coverage);
    double survival = 1;
    bool alive = true;
    std::int32_t parent = -1;
    for (int depth = 0; depth < kDepth; ++depth) {
      const double rate = logistic(request.base + request.x - workload_.decay * depth);
      if (covered) {
        const double u = random_.unit();
        double below = 0;
        const std::int32_t above = parent;
        for (int w = 0; w < workload_.width; ++w) {
          const double share = std::min(rate * (w == 0 ? 1 : w == 1 ? 0.4 : 0.2), 1 - below);
          const bool right = u >= below && u < below + share;
          below += share;
          const float claimed =
              above < 0 ? 1 : draft_.tree.survival[static_cast<std::size_t>(above)];
          const std::int32_t node =
              draft_.tree.add(right ? 1 : 2 + w, above, claimed * claim(share));
          draft_.truth.push_back(survival * share);
          if (w == 0) parent = node;
          if (alive && right) ++draft_.matched;
        }
        if (u >= rate) alive = false;  // no child behind the others
      }
      survival *= rate;
      draft_.chain.push_back(survival * workload_.coverage);
    }
  }

  Workload workload_;
  Random random_;
  std::vector<Request> requests_;
  RequestId next_id_ = 1;
  Draft draft_;
  std::vector<TokenId> emitted_;
};

/// Expected calibration error per depth, against true probabilities: no noise of drawn outcomes.
class Calibration {
 public:
  static constexpr int kBins = 20;
  void add(std::size_t depth, double predicted, double truth) {
    if (cells_.size() < (depth + 1) * kBins) cells_.resize((depth + 1) * kBins);
    const int bin = std::clamp(static_cast<int>(predicted * kBins), 0, kBins - 1);
    Cell& cell = cells_[depth * kBins + static_cast<std::size_t>(bin)];
    cell.count += 1;
    cell.excess += predicted - truth;
  }
  [[nodiscard]] double error(std::size_t depth) const {
    double sum = 0;
    double count = 0;
    for (std::size_t i = depth * kBins; i < (depth + 1) * kBins && i < cells_.size(); ++i) {
      sum += std::abs(cells_[i].excess);
      count += cells_[i].count;
    }
    return count > 0 ? sum / count : 1;
  }

 private:
  struct Cell {
    double count = 0;
    double excess = 0;
  };
  std::vector<Cell> cells_;
};

}  // namespace smartspec::survival_test
