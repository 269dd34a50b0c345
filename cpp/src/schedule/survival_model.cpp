// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/survival_model.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "schedule/survival_table.hpp"

namespace smartspec {
namespace {

using survival::Acceptance;
using survival::Difference;
using survival::kNoClaim;
using survival::kNumPoints;
using survival::Points;
using survival::RequestState;
using survival::Shadow;
using survival::Trial;

constexpr std::int32_t kMaxProposers = 1024;
constexpr std::int32_t kLastDepth = SurvivalModel::kMaxDepth - 1;

[[noreturn]] void refuse(const std::string& field, const std::string& value, const char* allowed) {
  throw std::invalid_argument(field + " is " + value + ", allowed: " + allowed);
}

void check(const SurvivalModelOptions& options) {
  if (options.num_proposers < 1 || options.num_proposers > kMaxProposers) {
    refuse("SurvivalModelOptions::num_proposers", std::to_string(options.num_proposers),
           "1 to 1024");
  }
  if (!(options.first_rate > 0 && options.first_rate < 1)) {
    refuse("SurvivalModelOptions::first_rate", std::to_string(options.first_rate),
           "between 0 and 1, both excluded");
  }
  if (!(options.memory_tokens >= 16 && options.memory_tokens <= 1e9)) {
    refuse("SurvivalModelOptions::memory_tokens", std::to_string(options.memory_tokens),
           "16 to 1e9");
  }
  if (!(options.request_shrinkage > 0 && options.request_shrinkage <= 1e9)) {
    refuse("SurvivalModelOptions::request_shrinkage", std::to_string(options.request_shrinkage),
           "above 0, at most 1e9");
  }
}

/// Nodes that all of the tree's arrays have; proposers are written by users.
std::size_t num_nodes(const TokenTree& tree) noexcept {
  return std::min({tree.tokens.size(), tree.parents.size(), tree.survival.size()});
}

/// A parent that is no earlier node is taken for the root.
std::int32_t parent_of(const TokenTree& tree, std::size_t node) noexcept {
  const std::int32_t parent = tree.parents[node];
  return parent >= 0 && static_cast<std::size_t>(parent) < node ? parent : -1;
}

float odds_of(const TokenTree& tree, std::size_t node, std::int32_t parent) noexcept {
  const float above = parent < 0 ? 1.0F : tree.survival[static_cast<std::size_t>(parent)];
  return survival::claim_odds(tree.survival[node], above);
}

constexpr std::int32_t shared_depth(std::size_t depth) noexcept {
  return static_cast<std::int32_t>(std::min<std::size_t>(depth, SurvivalModel::kMaxDepth - 1));
}
std::int32_t shared_rank(std::int32_t rank) noexcept {
  return std::min(rank, survival::kNumRanks - 1);
}

float weighted(const Points& points) noexcept {
  float sum = 0;
  for (std::size_t k = 0; k < kNumPoints; ++k) sum += survival::kPointWeights[k] * points[k];
  return sum;
}

/// One more token accepted at these odds, at each quadrature point.
void extend(Points& survival, const Points& request, float odds) noexcept {
  for (std::size_t k = 0; k < kNumPoints; ++k) {
    const float at = odds * request[k];
    survival[k] *= at / (1 + at);
  }
}

}  // namespace

struct SurvivalModel::Impl {
  struct Proposer {
    explicit Proposer(const SurvivalModelOptions& options) : chain(options), node(options) {}
    Acceptance chain;  // of the best chain, by depth alone; not drafted counts as not accepted
    Acceptance node;   // of drafted nodes, by depth and claim
    std::array<DepthRecord, SurvivalModel::kMaxDepth> records{};
  };
  struct Visit {
    Points survival{};
    std::size_t depth = 0;      // of its children
    std::int32_t children = 0;  // seen so far
  };
  /// One call of learn().
  struct Call {
    Proposer& proposer;
    RequestState& state;
    std::int32_t group;
    std::int32_t asked;
    std::span<const TokenId> emitted;
  };

  explicit Impl(const SurvivalModelOptions& given)
      : options(given),
        keep(1 - 1 / given.memory_tokens),
        requests(static_cast<std::size_t>(given.num_proposers)) {
    proposers.assign(static_cast<std::size_t>(options.num_proposers), Proposer(options));
  }

  [[nodiscard]] std::size_t checked(std::int32_t proposer, std::int32_t group) const {
    if (proposer < 0 || proposer >= options.num_proposers) {
      refuse("proposer", std::to_string(proposer), "0 to num_proposers - 1");
    }
    if (group < 0 || group >= kMaxGroups) refuse("group", std::to_string(group), "0 to 3");
    return static_cast<std::size_t>(proposer);
  }

  void count(Proposer& proposer, std::int32_t depth, bool accepted, float expected) const {
    DepthRecord& record = proposer.records[static_cast<std::size_t>(depth)];
    record.trials = record.trials * keep + 1;
    record.accepted = record.accepted * keep + (accepted ? 1 : 0);
    record.expected = record.expected * keep + static_cast<double>(expected);
  }

  void try_node(const Call& call, const Trial& trial, bool accepted, bool own) {
    const float expected = call.proposer.node.learn(trial, accepted, own, call.state.node);
    count(call.proposer, trial.depth, accepted, expected);
  }

  void find_best_chain(const TokenTree& tree, std::size_t size);
  void score_tree(const Call& call, const TokenTree& tree, std::size_t size);
  bool score_chain_token(const Call& call, const TokenTree& tree, std::size_t depth);
  std::int32_t score_children(const Call& call, const TokenTree& tree, std::size_t end,
                              std::size_t depth, std::int32_t parent);
  void score_shadow(const Call& call, bool own);
  void keep_shadow(const Call& call, const TokenTree& tree, std::size_t from);

  SurvivalModelOptions options;
  double keep;  // of records, per trial
  survival::RequestTable requests;
  std::vector<Proposer> proposers;
  std::vector<std::int32_t> best_child;  // [nodes + 1] scratch
  std::vector<std::int32_t> chain;       // nodes of the best chain, scratch
  mutable std::vector<Visit> visits;     // [nodes + 1] scratch
};

void SurvivalModel::Impl::find_best_chain(const TokenTree& tree, std::size_t size) {
  chain.clear();
  best_child.assign(size + 1, -1);
  for (std::size_t i = 0; i < size; ++i) {
    std::int32_t& best = best_child[static_cast<std::size_t>(parent_of(tree, i) + 1)];
    if (best < 0 || tree.survival[i] > tree.survival[static_cast<std::size_t>(best)]) {
      best = static_cast<std::int32_t>(i);
    }
  }
  for (std::int32_t node = best_child[0]; node >= 0;
       node = best_child[static_cast<std::size_t>(node + 1)]) {
    chain.push_back(node);
  }
}

/// Every node whose path to the parent was emitted is a trial, and so is the best chain's token.
void SurvivalModel::Impl::score_tree(const Call& call, const TokenTree& tree, std::size_t size) {
  const bool is_chain = chain.size() == size;
  std::int32_t reached = -1;
  bool on_tree = size > 0;
  bool on_chain = true;
  for (std::size_t depth = 0; on_tree || on_chain; ++depth) {
    if (depth == call.emitted.size()) {
      if (on_chain) keep_shadow(call, tree, depth);
      return;
    }
    // Alternately, so that the processor can work on both.
    if (on_chain) on_chain = score_chain_token(call, tree, depth);
    if (on_tree) {
      reached =
          score_children(call, tree, is_chain ? std::min(depth + 1, size) : size, depth, reached);
      on_tree = reached >= 0;
    }
  }
}

/// Returns whether the chain goes on.
bool SurvivalModel::Impl::score_chain_token(const Call& call, const TokenTree& tree,
                                            std::size_t depth) {
  const bool drafted = depth < chain.size();
  if (!drafted && static_cast<std::int64_t>(depth) >= call.asked) return false;
  const bool accepted =
      drafted && tree.tokens[static_cast<std::size_t>(chain[depth])] == call.emitted[depth];
  const Trial trial = {
      .group = call.group, .depth = shared_depth(depth), .rank = survival::kOnlyChild};
  call.proposer.chain.learn(trial, accepted, true, call.state.chain);
  return accepted;
}

/// The children of `parent`, nodes before `end`. Returns the one that was emitted, or -1.
std::int32_t SurvivalModel::Impl::score_children(const Call& call, const TokenTree& tree,
                                                 std::size_t end, std::size_t depth,
                                                 std::int32_t parent) {
  std::int32_t rank = 0;
  std::int32_t hit = -1;
  for (auto i = static_cast<std::size_t>(parent + 1); i < end; ++i) {
    if (parent_of(tree, i) != parent) continue;
    // Of siblings with the same token only the first is ever reached.
    const bool accepted = hit < 0 && tree.tokens[i] == call.emitted[depth];
    const Trial trial = {.group = call.group,
                         .depth = shared_depth(depth),
                         .rank = shared_rank(rank++),
                         .claim = survival::claim_logit(odds_of(tree, i, parent))};
    try_node(call, trial, accepted, true);
    if (accepted) hit = static_cast<std::int32_t>(i);
  }
  return hit;
}

/// What was drafted behind the emitted tokens, all of them right. While an earlier draft is still
/// being scored, it stays: one at a time is enough to learn every depth.
void SurvivalModel::Impl::keep_shadow(const Call& call, const TokenTree& tree, std::size_t from) {
  Shadow& shadow = call.state.shadow;
  if (shadow.alive() || from > static_cast<std::size_t>(kLastDepth)) return;
  shadow.next = static_cast<std::uint8_t>(from);
  shadow.length = static_cast<std::uint8_t>(std::min<std::size_t>(chain.size(), kMaxDepth));
  shadow.asked = static_cast<std::uint8_t>(std::clamp(call.asked, 0, kMaxDepth));
  for (std::size_t i = from; i < shadow.length; ++i) {
    const auto node = static_cast<std::size_t>(chain[i]);
    shadow.tokens[i] = tree.tokens[node];
    shadow.claims[i] = survival::pack_claim(
        survival::claim_logit(odds_of(tree, node, i == 0 ? -1 : chain[i - 1])));
  }
}

/// Scores what an earlier draft said of the tokens emitted now. `own`: no draft made now says
/// something of them too; else they already tell about the request.
void SurvivalModel::Impl::score_shadow(const Call& call, bool own) {
  Shadow& shadow = call.state.shadow;
  for (const TokenId token : call.emitted) {
    if (!shadow.alive()) return;
    Trial trial = {.group = call.group, .depth = shadow.next, .rank = survival::kOnlyChild};
    const bool drafted = shadow.next < shadow.length;
    const bool accepted = drafted && shadow.tokens[shadow.next] == token;
    call.proposer.chain.learn(trial, accepted, own, call.state.chain);
    if (drafted) {
      trial.rank = 0;
      trial.claim = survival::unpack_claim(shadow.claims[shadow.next]);
      try_node(call, trial, accepted, own);
    }
    if (!accepted) {
      shadow.length = shadow.asked = 0;
      return;
    }
    ++shadow.next;
  }
}

SurvivalModel::SurvivalModel(const SurvivalModelOptions& options) {
  check(options);
  impl_ = std::make_unique<Impl>(options);
}
SurvivalModel::~SurvivalModel() = default;
SurvivalModel::SurvivalModel(SurvivalModel&&) noexcept = default;
SurvivalModel& SurvivalModel::operator=(SurvivalModel&&) noexcept = default;

void SurvivalModel::expect(std::int32_t proposer, RequestId id, std::int32_t group,
                           std::span<float> survival) const {
  const std::size_t p = impl_->checked(proposer, group);
  const Acceptance& model = impl_->proposers[p].chain;
  const RequestState* states = impl_->requests.find(id);
  Points request = model.points(states == nullptr ? nullptr : &states[p].chain);
  const Acceptance::Table& table = model.table(group);
  Points reached;
  reached.fill(1);
  for (float& point : request) point *= table.rank_factors[0];
  for (std::size_t d = 0; d < survival.size(); ++d) {
    extend(reached, request, table.depth_odds[std::min<std::size_t>(d, kMaxDepth - 1)]);
    survival[d] = weighted(reached);
  }
}

ClaimReading SurvivalModel::claims(std::int32_t proposer, RequestId id, std::int32_t group) const {
  const std::size_t p = impl_->checked(proposer, group);
  const Acceptance& model = impl_->proposers[p].node;
  const RequestState* states = impl_->requests.find(id);
  const Points request = model.points(states == nullptr ? nullptr : &states[p].node);
  const float depth_odds = model.table(group).depth_odds[0];
  const Acceptance::ClaimTable& table = model.claim_table(group);
  const auto read = [&](float claim) {
    Points reached;
    reached.fill(1);
    extend(reached, request, table.factor(survival::fast_exp(claim)) * depth_odds);
    const float accepted = std::clamp(weighted(reached), 1e-4F, 1 - 1e-4F);
    return survival::fast_log(accepted / (1 - accepted));
  };
  const float usual = model.usual_claim();
  const float spread = std::clamp(model.claim_spread(), 0.25F, 3.0F);
  const float low = read(usual - spread);
  const float high = read(usual + spread);
  const float scale = std::max(0.0F, (high - low) / (2 * spread));
  return {.offset = (low + high) / 2 - scale * usual, .scale = scale};
}

void SurvivalModel::calibrate(std::int32_t proposer, RequestId id, std::int32_t group,
                              const TokenTree& tree, std::span<float> survival) const {
  const std::size_t p = impl_->checked(proposer, group);
  const Acceptance& model = impl_->proposers[p].node;
  const RequestState* states = impl_->requests.find(id);
  const Points request = model.points(states == nullptr ? nullptr : &states[p].node);
  const Acceptance::Table& table = model.table(group);
  const Acceptance::ClaimTable& claims = model.claim_table(group);
  const std::size_t size = std::min(num_nodes(tree), survival.size());
  auto& visits = impl_->visits;
  if (visits.size() < size + 1) visits.resize(size + 1);
  visits[0].survival.fill(1);
  visits[0].children = 0;
  visits[0].depth = 0;
  for (std::size_t i = 0; i < size; ++i) {
    const std::int32_t parent = parent_of(tree, i);
    Impl::Visit& above = visits[static_cast<std::size_t>(parent + 1)];
    Impl::Visit& here = visits[i + 1];
    const float odds = odds_of(tree, i, parent);
    const auto rank = static_cast<std::size_t>(shared_rank(above.children++));
    const float factor = odds < 0 ? table.rank_factors[rank] : claims.factor(odds);
    here.survival = above.survival;
    here.children = 0;
    here.depth = above.depth + 1;
    extend(here.survival, request,
           factor * table.depth_odds[std::min<std::size_t>(above.depth, kLastDepth)]);
    survival[i] = weighted(here.survival);
  }
}

void SurvivalModel::learn(std::int32_t proposer, RequestId id, std::int32_t group,
                          std::int32_t asked_depth, const TokenTree& tree,
                          std::span<const TokenId> emitted) {
  const std::size_t p = impl_->checked(proposer, group);
  if (emitted.empty()) return;
  Impl::Proposer& shared = impl_->proposers[p];
  const std::size_t size = num_nodes(tree);
  const bool drafted = size > 0 || asked_depth > 0;
  RequestState* states = drafted ? impl_->requests.find_or_add(id) : impl_->requests.find(id);
  const auto tokens = static_cast<std::int32_t>(std::min<std::size_t>(emitted.size(), 1U << 20U));
  if (states == nullptr) {
    shared.chain.fade(tokens);
    shared.node.fade(tokens);
    return;
  }
  RequestState& state = states[p];
  shared.chain.prepare(state.chain);
  shared.node.prepare(state.node);
  const Impl::Call call = {shared, state, group, asked_depth, emitted};
  const bool shadowed = state.shadow.alive();
  if (shadowed) impl_->score_shadow(call, !drafted);
  if (drafted) {
    impl_->find_best_chain(tree, size);
    impl_->score_tree(call, tree, size);
  } else if (!shadowed) {
    shared.chain.fade(tokens);
    shared.node.fade(tokens);
  }
  shared.chain.advance(tokens, drafted || shadowed, state.chain);
  shared.node.advance(tokens, size > 0 || (shadowed && !drafted), state.node);
}

void SurvivalModel::finish(RequestId id) { impl_->requests.erase(id); }

SurvivalModel::DepthRecord SurvivalModel::record(std::int32_t proposer, std::int32_t depth) const {
  const std::size_t p = impl_->checked(proposer, 0);
  if (depth < 0) refuse("depth", std::to_string(depth), "0 or more");
  return impl_->proposers[p].records[static_cast<std::size_t>(std::min(depth, kLastDepth))];
}

double SurvivalModel::evidence(std::int32_t proposer, RequestId id) const {
  const std::size_t p = impl_->checked(proposer, 0);
  const RequestState* states = impl_->requests.find(id);
  if (states == nullptr || !impl_->proposers[p].chain.is_current(states[p].chain)) return 0;
  return static_cast<double>(states[p].chain.trials);
}

double SurvivalModel::evidence(std::int32_t proposer) const {
  return impl_->proposers[impl_->checked(proposer, 0)].chain.evidence();
}

}  // namespace smartspec
