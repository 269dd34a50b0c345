// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "simulate/sim_oracle.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "smartspec/allocation.hpp"

namespace smartspec::sim {
namespace {

/// Catching up pays over the steps to come. Charged to one step alone, it would keep out for good
/// whoever fell behind.
std::int32_t charged_backlog(const SimRequest& request, std::int32_t proposer) {
  constexpr std::int32_t kSteps = 32;
  return (missing_tokens(request, proposer) - 1) / kSteps;
}

/// A way to speculate, and what it is worth.
struct Plan {
  std::vector<DraftChoice> choices;  // [requests]
  double tokens = 0;
  double seconds = 1;

  [[nodiscard]] double goodput() const noexcept { return tokens / seconds; }
};

class Oracle final : public LengthPolicy {
 public:
  Oracle(World& world, RequestPool& pool, double overhead)
      : world_(world), pool_(pool), overhead_(overhead) {
    for (std::int32_t q = 0; q < world.num_proposers(); ++q) {
      const SimulatedProposer& proposer = world.proposer(q);
      depth_ = std::max(depth_, proposer.max_depth);
      (proposer.pays_per_depth ? paying_ : free_).push_back(q);
    }
    paths_.resize(static_cast<std::size_t>(world.num_proposers()));
  }

  [[nodiscard]] std::string_view name() const override { return "oracle"; }
  [[nodiscard]] std::int32_t max_depth() const override { return depth_; }

  void plan(const StepView& step, std::span<const LengthRequest> requests,
            std::span<const Candidate> /*candidates*/, std::span<DraftChoice> choices) override {
    look(requests);
    start_step(step, requests);
    // What is worth riding depends on the best goodput, so a second round may find better.
    const int rounds = rides_differ(requests) ? 3 : 1;
    for (int round = 0; round < rounds; ++round) {
      const double before = best_.goodput();
      if (!free_.empty()) attempt(step, requests, -1, 0);
      for (const std::int32_t q : paying_) {
        for (std::int32_t d = 1; d <= world_.proposer(q).max_depth; ++d) {
          attempt(step, requests, q, d);
        }
      }
      if (best_.goodput() <= before) break;
    }
    std::ranges::copy(best_.choices, choices.begin());
  }

 private:
  /// P(path accepted) for every request and proposer, as deep as each may go.
  void look(std::span<const LengthRequest> requests) {
    lengths_.assign(paths_.size() * requests.size(), 0);
    const auto stride = static_cast<std::size_t>(depth_);
    for (std::size_t q = 0; q < paths_.size(); ++q) {
      paths_[q].resize(requests.size() * stride);
      const auto proposer = static_cast<std::int32_t>(q);
      for (std::size_t i = 0; i < requests.size(); ++i) {
        const LengthRequest& request = requests[i];
        SimRequest& truth = pool_.of(request.id);
        const SpeculationControl& control = request.control;
        const bool allowed = control.enabled &&
                             (control.proposer < 0 || control.proposer == proposer) &&
                             world_.covers(truth, proposer);
        const std::int32_t most =
            std::min({request.max_depth, control.max_tokens, world_.proposer(proposer).max_depth});
        if (!allowed || most <= 0) continue;
        lengths_[q * requests.size() + i] = most;
        const auto values =
            std::span(paths_[q]).subspan(i * stride, static_cast<std::size_t>(most));
        world_.survival(truth, proposer, truth.emitted, values);
      }
    }
  }

  void start_step(const StepView& step, std::span<const LengthRequest> requests) {
    const auto count = static_cast<double>(std::max<std::size_t>(requests.size(), 1));
    double context = 0;
    for (const LengthRequest& request : requests) context += request.num_tokens;
    mean_context_ = context / count;
    best_.choices.assign(requests.size(), {});
    best_.tokens = std::max(step.num_decodes, 1);
    const double whole = world_.target_cost().predict(step.base);
    prompt_seconds_ = std::max(whole - world_.target_cost().predict(decodes_alone(step)), 0.0);
    best_.seconds = whole - prompt_seconds_;
    const auto most = static_cast<std::int32_t>(requests.size()) * depth_;
    world_.target_cost().segments(step.base, mean_context_,
                                  step.base.num_tokens + std::min(most, step.token_budget),
                                  segments_);
    for (CostSegment& segment : segments_) {
      segment.seconds = segment.seconds * (1 + overhead_) - prompt_seconds_;
      segment.seconds_per_token *= 1 + overhead_;
    }
    StepLoad full = step.base;
    full.num_tokens += most;
    full.num_logits += most;
    full.attention_pairs += static_cast<std::int64_t>(most * mean_context_);
    const double extra = world_.target_cost().predict(full) - whole;
    node_seconds_ = most > 0 ? std::max(extra, 0.0) / most : 0;
  }

  /// Prompts take the same time whatever is drafted. Counted in, it would make drafts look cheap
  /// at the steps that compute prompts, and slow the prompts down.
  [[nodiscard]] StepLoad decodes_alone(const StepView& step) const {
    const std::int32_t rows = std::min(step.num_decodes, step.base.num_tokens);
    if (rows == step.base.num_tokens || rows == 0) return step.base;
    const auto context = static_cast<std::int64_t>(rows * mean_context_);
    return {.num_tokens = rows,
            .num_sequences = rows,
            .num_logits = rows,
            .kv_tokens = context,
            .attention_pairs = context};
  }

  [[nodiscard]] bool rides_differ(std::span<const LengthRequest> requests) const {
    if (world_.num_proposers() > 1) return true;
    return std::ranges::any_of(requests, [](const LengthRequest& r) { return r.backlog > 64; });
  }

  [[nodiscard]] std::span<const double> path(std::size_t proposer, std::size_t request,
                                             std::size_t num_requests) const {
    const auto length = static_cast<std::size_t>(lengths_[proposer * num_requests + request]);
    return std::span(paths_[proposer]).subspan(request * static_cast<std::size_t>(depth_), length);
  }

  /// A pass of one request, what another request adds, and what a row more of one adds.
  struct PassPrice {
    double one = 0;
    double ride = 0;
    double row = 0;
  };
  [[nodiscard]] PassPrice pass_price(std::int32_t proposer, std::size_t num_requests) const {
    const CostModel& cost = world_.pass_cost(proposer);
    const auto context = static_cast<std::int64_t>(mean_context_);
    StepLoad load{.num_tokens = 1,
                  .num_sequences = 1,
                  .num_logits = 1,
                  .kv_tokens = context,
                  .attention_pairs = context};
    PassPrice price{.one = cost.predict(load), .ride = 0, .row = 0};
    const auto rows = static_cast<std::int32_t>(num_requests);
    if (rows < 2) return price;
    load.num_tokens = load.num_sequences = load.num_logits = rows;
    load.kv_tokens = load.attention_pairs = rows * context;
    const double all = cost.predict(load);
    price.ride = std::max(0.0, (all - price.one) / (rows - 1));
    load.num_tokens += rows;
    load.attention_pairs += rows * context;
    price.row = std::max(0.0, (cost.predict(load) - all) / rows);
    return price;
  }

  /// Who uses which proposer when `paying` (or none) drafts `depth` levels: options_[i].
  void assign(std::span<const LengthRequest> requests, std::int32_t paying, std::int32_t depth,
              const PassPrice& price) {
    const double goodput = best_.goodput();
    const double node_price = goodput * node_seconds_;
    options_.assign(requests.size(), {});
    for (std::size_t i = 0; i < requests.size(); ++i) {
      double best_value = -1;
      const auto consider = [&](std::int32_t q, std::int32_t most, double each, double first) {
        const auto all = path(static_cast<std::size_t>(q), i, requests.size());
        const auto levels = all.first(std::min(all.size(), static_cast<std::size_t>(most)));
        if (levels.empty()) return;
        double value = -first;
        for (const double survival : levels) value += std::max(0.0, survival - each);
        if (value < 0 && first > 0) return;
        if (value > best_value) {
          best_value = value;
          options_[i] = {.proposer = q, .depth = static_cast<std::int32_t>(levels.size())};
        }
      };
      for (const std::int32_t q : free_) consider(q, depth_, node_price, 0);
      if (paying < 0) continue;
      const std::int32_t backlog = charged_backlog(pool_.of(requests[i].id), paying);
      consider(paying, depth, node_price + goodput * price.ride, goodput * price.row * backlog);
    }
  }

  void attempt(const StepView& step, std::span<const LengthRequest> requests, std::int32_t paying,
               std::int32_t depth) {
    const PassPrice price = paying >= 0 ? pass_price(paying, requests.size()) : PassPrice{};
    assign(requests, paying, depth, price);
    put_problem(requests);
    costs_ = segments_;
    for (CostSegment& segment : costs_) {
      segment.seconds += (segment.first_tokens - step.base.num_tokens) * price.ride;
      segment.seconds_per_token += price.ride;
    }
    const AllocationProblem problem{
        .offsets = offsets_,
        .parents = {},
        .survival = survival_,
        .base_value = static_cast<double>(std::max(step.num_decodes, 1)),
        .base_tokens = step.base.num_tokens,
        .fixed_seconds = depth * std::max(0.0, price.one - price.ride),
        .cost = costs_,
        .token_budget = step.token_budget,
        .block_size = step.block_size,
        .free_blocks = step.free_blocks,
        .block_room = block_room_};
    selected_.resize(survival_.size());
    allocator_.solve(problem, selected_);
    evaluate(step, requests, paying);
  }

  void put_problem(std::span<const LengthRequest> requests) {
    offsets_.assign(1, 0);
    survival_.clear();
    block_room_.clear();
    for (std::size_t i = 0; i < requests.size(); ++i) {
      if (options_[i].proposer >= 0) {
        const auto levels =
            path(static_cast<std::size_t>(options_[i].proposer), i, requests.size());
        for (std::int32_t d = 0; d < options_[i].depth; ++d) {
          survival_.push_back(static_cast<float>(levels[static_cast<std::size_t>(d)]));
        }
      }
      offsets_.push_back(static_cast<std::int32_t>(survival_.size()));
      block_room_.push_back(requests[i].block_room);
    }
  }

  /// Takes what was selected for the new best if it is, by its exact cost.
  void evaluate(const StepView& step, std::span<const LengthRequest> requests,
                std::int32_t paying) {
    tried_.choices.assign(requests.size(), {});
    tried_.tokens = std::max(step.num_decodes, 1);
    StepLoad load = step.base;
    passes_.clear();
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const auto first = static_cast<std::size_t>(offsets_[i]);
      const auto last = static_cast<std::size_t>(offsets_[i + 1]);
      std::int32_t length = 0;
      for (std::size_t n = first; n < last && selected_[n] != 0; ++n) {
        tried_.tokens += static_cast<double>(survival_[n]);
        load.attention_pairs += requests[i].num_tokens + ++length;
      }
      if (length == 0) continue;
      load.num_tokens += length;
      load.num_logits += length;
      tried_.choices[i] = {.proposer = options_[i].proposer, .depth = length};
      if (options_[i].proposer != paying) continue;
      const SimRequest& request = pool_.of(requests[i].id);
      passes_.add(request.num_tokens(), 1 + charged_backlog(request, paying), length);
    }
    if (load.num_tokens == step.base.num_tokens) return;
    tried_.seconds = world_.target_cost().predict(load) * (1 + overhead_) - prompt_seconds_;
    if (paying >= 0) tried_.seconds += passes_.seconds(world_.pass_cost(paying));
    if (tried_.goodput() > best_.goodput()) std::swap(tried_, best_);
  }

  World& world_;
  RequestPool& pool_;
  double overhead_;
  std::int32_t depth_ = 0;
  std::vector<std::int32_t> free_, paying_;
  Allocator allocator_;

  std::vector<std::vector<double>> paths_;  // [proposers][requests * depth_]
  std::vector<std::int32_t> lengths_;       // [proposers * requests]
  double mean_context_ = 0;
  double prompt_seconds_ = 0;
  double node_seconds_ = 0;  // of verifying one node more, on average
  std::vector<CostSegment> segments_, costs_;
  std::vector<DraftChoice> options_;  // [requests] before the allocation
  std::vector<std::int32_t> offsets_, block_room_;
  std::vector<float> survival_;
  std::vector<std::uint8_t> selected_;
  DraftPasses passes_;
  Plan best_, tried_;
};

}  // namespace

std::shared_ptr<LengthPolicy> make_oracle(World& world, RequestPool& pool, double overhead) {
  return std::make_shared<Oracle>(world, pool, overhead);
}

}  // namespace smartspec::sim
