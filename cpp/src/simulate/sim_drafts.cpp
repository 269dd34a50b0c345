// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "simulate/sim_drafts.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace smartspec::sim {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();
constexpr std::int32_t kTokenBits = 30;
constexpr std::int32_t kNoProposer = 255;

double sigmoid(double logit) noexcept { return 1.0 / (1.0 + std::exp(-logit)); }

CostModel exact(const CostCoefficients& coefficients) {
  return CostModel(coefficients, {.learn = false});
}

}  // namespace

World::World(const SimulationOptions& options, const Luck& luck)
    : options_(options), luck_(luck), target_(exact(options.target)) {
  for (const SimulatedProposer& proposer : options.proposers) {
    proposers_.push_back(
        {.options = proposer,
         .logits = logits_of(proposer.acceptance),
         .pass = exact(proposer.pays_per_depth ? proposer.pass : CostCoefficients{})});
  }
}

std::vector<double> World::logits_of(const AcceptanceModel& model) {
  std::vector<double> logits;
  for (const double rate : model.rates) {
    logits.push_back(rate > 0 ? std::log(rate / (1 - rate)) : kNever);
  }
  return logits;
}

void World::apply(const SimulatedShift& shift, std::vector<SimRequest>& requests) {
  slowdown_ = shift.slowdown;
  if (shift.proposer < 0) return;
  Proposer& proposer = proposers_[static_cast<std::size_t>(shift.proposer)];
  const double before = proposer.options.acceptance.persistence;
  proposer.options.acceptance = shift.acceptance;
  proposer.logits = logits_of(shift.acceptance);
  if (before == shift.acceptance.persistence) return;
  for (SimRequest& request : requests) {
    if (request.tracks.empty()) continue;
    request.tracks[static_cast<std::size_t>(shift.proposer)].wander.clear();
  }
}

TokenId World::truth(RequestId id, std::int32_t position) const noexcept {
  const Luck::Bits bits = luck_.bits(Luck::Use::kToken, id, position / 4);
  return static_cast<TokenId>(bits[static_cast<std::size_t>(position % 4)] >> (32 - kTokenBits));
}

void World::extend_wander(Track& track, RequestId id, std::int32_t proposer, double persistence,
                          std::size_t size) const {
  const double fresh = std::sqrt(1 - persistence * persistence);
  while (track.wander.size() < size) {
    const auto place = static_cast<std::int64_t>(track.wander.size());
    const Luck::Bits bits = luck_.bits(Luck::Use::kWander, id, place, proposer);
    double last = place > 0 ? track.wander.back() : Luck::normal(bits[2], bits[3]);
    last = persistence * last + fresh * Luck::normal(bits[0], bits[1]);
    track.wander.push_back(static_cast<float>(last));
  }
}

double World::logit(SimRequest& request, std::int32_t index, std::int32_t position) const {
  const Proposer& proposer = proposers_[static_cast<std::size_t>(index)];
  Track& track = request.tracks[static_cast<std::size_t>(index)];
  const AcceptanceModel& model = proposer.options.acceptance;
  if (!model.recorded.empty()) {
    const auto& recording = model.recorded[static_cast<std::size_t>(
        track.rate * static_cast<double>(model.recorded.size()))];
    const double rate = recording[static_cast<std::size_t>(position) % recording.size()];
    return std::log(rate / (1 - rate));
  }
  const auto kinds = static_cast<double>(proposer.logits.size());
  const double logit = proposer.logits[static_cast<std::size_t>(track.rate * kinds)];
  if (model.spread == 0) return logit;
  const auto place = static_cast<std::size_t>(position);
  if (track.wander.size() <= place) {
    extend_wander(track, request.id, index, model.persistence, place + 1);
  }
  return logit + model.spread * track.wander[place];
}

void World::survival(SimRequest& request, std::int32_t proposer, std::int32_t start,
                     std::span<double> survival) const {
  const double decay = this->proposer(proposer).acceptance.decay;
  double path = 1;
  for (std::size_t depth = 0; depth < survival.size(); ++depth) {
    const auto position = start + static_cast<std::int32_t>(depth);
    path *= sigmoid(logit(request, proposer, position) - decay * static_cast<double>(depth));
    survival[depth] = path;
  }
}

bool World::covers(const SimRequest& request, std::int32_t proposer) const noexcept {
  const double coverage = this->proposer(proposer).coverage;
  if (coverage >= 1) return true;
  const auto bits = luck_.bits(Luck::Use::kCoverage, request.id, request.emitted, proposer)[0];
  return Luck::uniform(bits) < coverage;
}

void World::draft(SimRequest& request, std::int32_t index, std::int32_t depth, float min_survival,
                  const ClaimReading& reading, TokenTree& tree) const {
  tree.clear();
  if (!covers(request, index)) return;
  const SimulatedProposer& proposer = this->proposer(index);
  const double decay = proposer.acceptance.decay;
  const bool claims = proposer.claim_noise >= 0;
  bool right = true;
  double path = 1;
  double read = 1;
  for (std::int32_t d = 0; d < std::min(depth, proposer.max_depth); ++d) {
    const std::int32_t position = request.emitted + d;
    const Luck::Bits bits = luck_.bits(Luck::Use::kDraft, request.id, position, index, d);
    const double logit = this->logit(request, index, position) - decay * d;
    right = right && Luck::uniform(bits[0]) < sigmoid(logit);
    if (claims) {
      const double noise = proposer.claim_noise * Luck::normal(bits[1], bits[2]);
      const double claim = sigmoid(logit + noise + proposer.claim_bias);
      path *= claim;
      read *= static_cast<double>(reading.accepted(static_cast<float>(claim)));
    }
    // A wrong token is outside the range of true ones.
    const TokenId token =
        right ? truth(request.id, position)
              : static_cast<TokenId>(bits[3] >> (32 - kTokenBits)) | (TokenId{1} << kTokenBits);
    tree.tokens.push_back(token);
    tree.parents.push_back(d - 1);
    tree.depths.push_back(d);
    tree.survival.push_back(static_cast<float>(path));
    if (read < min_survival) break;
  }
}

double World::time_noise(std::int64_t step, std::int32_t proposer) const noexcept {
  const std::int32_t place = proposer < 0 ? kNoProposer : proposer;
  const Luck::Bits bits = luck_.bits(Luck::Use::kTime, step, 0, place);
  double noise = options_.time_noise * Luck::normal(bits[0], bits[1]);
  if (proposer < 0 && Luck::uniform(bits[2]) < options_.outlier_rate) noise += std::log(10.0);
  return noise;
}

void DraftPasses::add(std::int32_t num_tokens, std::int32_t missing, std::int32_t levels) {
  if (passes_.size() < static_cast<std::size_t>(levels)) {
    passes_.resize(static_cast<std::size_t>(levels), StepLoad{});
  }
  const std::int64_t rows = missing;
  for (std::int32_t level = 0; level < levels; ++level) {
    StepLoad& pass = passes_[static_cast<std::size_t>(level)];
    const std::int64_t length = std::int64_t{num_tokens} + level;
    pass.num_tokens += level == 0 ? missing : 1;
    pass.num_sequences += 1;
    pass.num_logits += 1;
    pass.kv_tokens += length;
    pass.attention_pairs += level == 0 ? rows * length - rows * (rows - 1) / 2 : length;
  }
}

StepLoad DraftPasses::total() const noexcept {
  StepLoad sum{.num_passes = size()};
  for (const StepLoad& pass : passes_) {
    sum.num_tokens += pass.num_tokens;
    sum.num_sequences += pass.num_sequences;
    sum.num_logits += pass.num_logits;
    sum.kv_tokens += pass.kv_tokens;
    sum.attention_pairs += pass.attention_pairs;
  }
  return sum;
}

double DraftPasses::seconds(const CostModel& pass) const {
  double sum = 0;
  for (const StepLoad& load : passes_) sum += pass.predict(load);
  return sum;
}

}  // namespace smartspec::sim
