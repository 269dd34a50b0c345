// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "simulate/simulator.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "simulate/sim_oracle.hpp"
#include "smartspec/error.hpp"

namespace smartspec::sim {
namespace {

SchedulerOptions with_proposers(const SimulationOptions& options) {
  SchedulerOptions result = options.scheduler;
  result.proposers.clear();
  result.pays_per_depth.clear();
  for (const SimulatedProposer& proposer : options.proposers) {
    result.proposers.push_back(proposer.name);
    result.pays_per_depth.push_back(proposer.pays_per_depth);
  }
  return result;
}

}  // namespace

Simulation::Simulation(const SimulationOptions& options, std::shared_ptr<LengthPolicy> policy)
    : options_(options),
      luck_(options.seed),
      pool_(options, luck_),
      world_(options, luck_),
      kv_(options, pool_) {
  for (std::int32_t q = 0; q < world_.num_proposers(); ++q) {
    (world_.proposer(q).pays_per_depth ? paying_ : free_).push_back(q);
  }
  if (policy == nullptr) policy = make_oracle(world_, pool_, options.overhead);
  scheduler_.emplace(with_proposers(options), std::move(policy), kv_);
}

SimulationResult Simulation::run() {
  if (options_.batch > 0) set_batch(options_.batch);
  while (options_.max_steps == 0 || step_ < options_.max_steps) {
    apply_shifts();
    add_arrivals();
    if (!scheduler_->has_unfinished()) {
      if (next_arrival_ == options_.requests.size()) break;
      now_ = std::max(now_, options_.requests[next_arrival_].arrival);
      continue;
    }
    step();
  }
  return finish();
}

void Simulation::apply_shifts() {
  const auto& shifts = options_.shifts;
  for (; next_shift_ < shifts.size() && shifts[next_shift_].step <= step_; ++next_shift_) {
    world_.apply(shifts[next_shift_], pool_.all());
    if (shifts[next_shift_].batch > 0) set_batch(shifts[next_shift_].batch);
  }
}

void Simulation::set_batch(std::int32_t batch) {
  auto& requests = pool_.all();
  const std::size_t before = requests.size();
  const auto size = static_cast<std::size_t>(batch);
  for (std::size_t slot = size; slot < before; ++slot) {
    requests[slot].ended = true;
    scheduler_->remove(requests[slot].id);
  }
  pool_.resize(batch);
  for (std::size_t slot = before; slot < size; ++slot) {
    scheduler_->add(pool_.scheduled(requests[slot]), now_);
  }
}

void Simulation::add_arrivals() {
  const auto& given = options_.requests;
  for (; next_arrival_ < given.size() && given[next_arrival_].arrival <= now_; ++next_arrival_) {
    const SimRequest& request = pool_.start(static_cast<std::int32_t>(next_arrival_));
    scheduler_->add(pool_.scheduled(request), given[next_arrival_].arrival);
  }
}

void Simulation::step() {
  SimulatedStep record{.start = now_};
  const auto slots = scheduler_->begin_step(now_);
  const auto candidates = propose(slots);
  const auto choices = scheduler_->plan(candidates, backlog_);
  draft(slots, choices);
  for (const DraftWork& work : works_) {
    record.draft_passes += work.load.num_passes;
    record.seconds += work.seconds;
  }
  for (const TokenTree* tree : trees_) record.num_drafted += tree != nullptr ? tree->size() : 0;

  const auto rows = scheduler_->schedule(trees_, works_);
  if (rows.empty() && ++idle_steps_ > 1000) {
    throw Error("simulate: the scheduler has unfinished requests and runs none of them");
  }
  if (!rows.empty()) idle_steps_ = 0;
  record.expected_emitted = verify(rows, choices, record);
  record.num_tokens = scheduler_->load().num_tokens;
  double seconds = 0;
  if (!rows.empty()) {
    const bool drafted = record.draft_passes > 0 || record.num_verified > 0;
    seconds = world_.target_cost().predict(scheduler_->load()) *
              (drafted ? 1 + options_.overhead : 1) * world_.slowdown() *
              std::exp(world_.time_noise(step_, -1));
  }
  record.seconds += seconds;
  now_ += record.seconds;
  settle(slots, choices);
  scheduler_->finish_step(outcomes_, works_, seconds, now_);
  take_outputs();
  count(record);
  ++step_;
}

/// Notes when tokens came, and replaces or ends the requests that have all of theirs.
void Simulation::take_outputs() {
  done_.clear();
  for (const RequestOutcome& outcome : outcomes_) {
    SimRequest& request = pool_.of(outcome.id);
    SimulatedRequestResult& result = request.result;
    if (result.num_output_tokens == 0) {
      result.first_token = now_;
    } else if (options_.batch == 0) {
      result_.output_gaps.push_back(now_ - request.last_output);
    }
    request.last_output = now_;
    result.num_output_tokens = request.emitted;
    if (request.emitted < request.num_output) continue;
    result.finish = now_;
    done_.push_back(outcome.id);
  }
  for (const RequestId id : done_) {
    pool_.of(id).ended = true;
    scheduler_->remove(id);
    if (options_.batch > 0) {
      scheduler_->add(pool_.scheduled(pool_.replace(id)), now_);
    } else {
      pool_.end(pool_.of(id));
    }
  }
}

std::span<const Candidate> Simulation::propose(std::span<const DecodeSlot> slots) {
  backlog_.assign(slots.size(), 0);
  candidates_.clear();
  candidate_trees_.resize(std::max(candidate_trees_.size(), slots.size() * free_.size()));
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i].max_depth == 0) continue;
    SimRequest& request = pool_.of(slots[i].id);
    if (!paying_.empty()) backlog_[i] = missing_tokens(request, paying_.front()) - 1;
    for (std::size_t f = 0; f < free_.size(); ++f) {
      TokenTree& tree = candidate_trees_[i * free_.size() + f];
      world_.draft(request, free_[f], slots[i].max_depth, 0, {}, tree);
      candidates_.push_back(
          {.request = static_cast<std::int32_t>(i), .proposer = free_[f], .tree = &tree});
    }
  }
  return candidates_;
}

void Simulation::draft(std::span<const DecodeSlot> slots, std::span<const DraftChoice> choices) {
  trees_.assign(slots.size(), nullptr);
  levels_.assign(slots.size(), 0);
  accepted_.assign(slots.size(), 0);
  tokens_before_.resize(slots.size());
  paid_trees_.resize(std::max(paid_trees_.size(), slots.size()));
  works_.clear();
  for (std::size_t i = 0; i < slots.size(); ++i) {
    tokens_before_[i] = pool_.of(slots[i].id).num_tokens();
    if (choices[i].depth <= 0 || choices[i].proposer < 0) continue;
    const auto place = std::ranges::find(free_, choices[i].proposer);
    if (place == free_.end()) continue;
    const auto f = static_cast<std::size_t>(place - free_.begin());
    TokenTree& tree = candidate_trees_[i * free_.size() + f];
    tree.truncate(std::min(tree.size(), choices[i].depth));  // a chain: one node per level
    trees_[i] = &tree;
  }
  for (const std::int32_t proposer : paying_) draft_paid(proposer, slots, choices);
}

void Simulation::draft_paid(std::int32_t proposer, std::span<const DecodeSlot> slots,
                            std::span<const DraftChoice> choices) {
  passes_.clear();
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (choices[i].depth <= 0 || choices[i].proposer != proposer) continue;
    SimRequest& request = pool_.of(slots[i].id);
    const std::int32_t depth = std::min(choices[i].depth, slots[i].max_depth);
    world_.draft(request, proposer, depth, choices[i].min_survival, choices[i].claims,
                 paid_trees_[i]);
    trees_[i] = &paid_trees_[i];
    levels_[i] = paid_trees_[i].size();
    if (levels_[i] == 0) continue;
    passes_.add(request.num_tokens(), missing_tokens(request, proposer), levels_[i]);
  }
  if (passes_.size() == 0) return;
  const double noise = std::exp(world_.time_noise(step_, proposer));
  works_.push_back(
      {.proposer = proposer,
       .load = passes_.total(),
       .seconds = passes_.seconds(world_.pass_cost(proposer)) * noise * world_.slowdown()});
}

/// Walks every drawn row; returns the tokens expected of them by the true acceptance.
double Simulation::verify(std::span<const ScheduledRows> rows, std::span<const DraftChoice> choices,
                          SimulatedStep& record) {
  outcomes_.clear();
  emitted_.clear();
  double expected = 0;
  for (const ScheduledRows& row : rows) {
    SimRequest& request = pool_.of(row.id);
    if (!row.samples) {
      kv_.commit(request, row.num_causal);
      continue;
    }
    const auto slot = static_cast<std::size_t>(row.decode);
    const TokenTree* tree = row.decode >= 0 ? trees_[slot] : nullptr;
    expected += 1;
    if (tree != nullptr && !tree->empty()) {
      expected += expect(request, choices[slot].proposer, *tree);
    }
    const std::int32_t accepted = emit(request, tree);
    if (row.decode >= 0) accepted_[slot] = accepted;
    kv_.commit(request, row.num_causal + accepted);
    outcomes_.push_back({.id = row.id,
                         .num_verified = tree != nullptr ? tree->size() : 0,
                         .num_accepted = accepted});
    ++record.num_decodes;
    record.num_verified += outcomes_.back().num_verified;
    record.num_emitted += accepted + 1;
  }
  std::size_t first = 0;  // the buffer does not move any more
  for (RequestOutcome& outcome : outcomes_) {
    const auto size = static_cast<std::size_t>(outcome.num_accepted) + 1;
    outcome.emitted = std::span(emitted_).subspan(first, size);
    first += size;
  }
  return expected;
}

/// Appends what the request emits; returns how many draft tokens were accepted.
std::int32_t Simulation::emit(SimRequest& request, const TokenTree* tree) {
  std::int32_t accepted = 0;
  std::int32_t current = -1;
  TokenId next = world_.truth(request.id, request.emitted);
  for (std::int32_t n = 0; tree != nullptr && n < tree->size(); ++n) {
    const auto node = static_cast<std::size_t>(n);
    if (tree->parents[node] != current || tree->tokens[node] != next) continue;
    if (request.emitted + accepted + 1 >= request.num_output) break;
    emitted_.push_back(next);
    current = n;
    ++accepted;
    next = world_.truth(request.id, request.emitted + accepted);
  }
  emitted_.push_back(next);
  request.emitted += accepted + 1;
  return accepted;
}

double Simulation::expect(SimRequest& request, std::int32_t proposer, const TokenTree& tree) {
  const std::int32_t depth = *std::ranges::max_element(tree.depths) + 1;
  survival_.resize(static_cast<std::size_t>(depth));
  world_.survival(request, proposer, request.emitted, survival_);
  double sum = 0;
  for (const std::int32_t d : tree.depths) sum += survival_[static_cast<std::size_t>(d)];
  return sum;
}

/// What drafting left in the proposers' caches: everything up to the last level's input, as far as
/// it was accepted.
void Simulation::settle(std::span<const DecodeSlot> slots, std::span<const DraftChoice> choices) {
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (levels_[i] == 0) continue;
    SimRequest& request = pool_.of(slots[i].id);
    Track& track = request.tracks[static_cast<std::size_t>(choices[i].proposer)];
    const std::int32_t right = std::min(accepted_[i], levels_[i] - 1);
    track.cached = std::min(tokens_before_[i] + right, request.num_tokens() - 1);
  }
}

void Simulation::count(const SimulatedStep& record) {
  if (options_.record_steps) result_.steps.push_back(record);
  if (step_ < options_.warmup_steps) {
    counted_from_ = now_;
    return;
  }
  ++result_.num_steps;
  result_.num_emitted += record.num_emitted;
  result_.expected_emitted += record.expected_emitted;
  result_.num_drafted += record.num_drafted;
  result_.num_verified += record.num_verified;
  result_.num_accepted += record.num_emitted - record.num_decodes;
}

SimulationResult Simulation::finish() {
  result_.seconds = now_ - counted_from_;
  result_.goodput = result_.seconds > 0 ? result_.expected_emitted / result_.seconds : 0;
  result_.scheduler = scheduler_->stats();
  if (options_.batch == 0) {
    for (const SimRequest& request : pool_.all()) result_.requests.push_back(request.result);
  }
  return std::move(result_);
}

}  // namespace smartspec::sim

namespace smartspec {

SimulationResult simulate(const SimulationOptions& options, std::shared_ptr<LengthPolicy> policy) {
  options.validate();
  const auto start = std::chrono::steady_clock::now();
  sim::Simulation simulation(options, std::move(policy));
  SimulationResult result = simulation.run();
  const auto stop = std::chrono::steady_clock::now();
  result.wall_seconds = std::chrono::duration<double>(stop - start).count();
  return result;
}

}  // namespace smartspec
