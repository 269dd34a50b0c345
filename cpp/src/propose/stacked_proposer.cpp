// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "propose/depth_acceptance.hpp"
#include "smartspec/suffix_proposer.hpp"

namespace smartspec {
namespace {

struct StackedRequest {
  bool is_paid = false;  // whose tree the last propose() returned
  RequestAcceptance acceptance;
};

double sum_of_survivals(const TokenTree& tree) {
  return std::accumulate(tree.survival.begin(), tree.survival.end(), 0.0);
}

const TokenTree kNoTree;

}  // namespace

struct StackedProposer::Impl {
  std::shared_ptr<Proposer> free;
  std::shared_ptr<Proposer> paid;
  double margin = 0;
  std::int32_t paid_max_depth = 0;
  std::string name;
  DepthAcceptance acceptance;
  std::unordered_map<RequestId, StackedRequest> requests;
  bool paid_ran = false;       // in the last propose()
  std::exception_ptr pending;  // of one half, while the other's drafts were returned

  // Scratch of one call; capacity is kept.
  std::vector<ProposeRequest> paid_requests;
  std::vector<std::size_t> paid_rows;  // [paid_requests] in the call's requests
  std::vector<TokenTree> paid_trees;   // at least as many
  std::vector<Outcome> free_outcomes, paid_outcomes;

  void propose_free(std::span<const ProposeRequest> shown, std::span<TokenTree> trees);
  void choose(std::span<const ProposeRequest> shown, std::span<const TokenTree> trees);
  void propose_paid(std::span<TokenTree> trees);
  void rethrow_pending();
};

void StackedProposer::Impl::propose_free(std::span<const ProposeRequest> shown,
                                         std::span<TokenTree> trees) {
  try {
    free->propose(shown, trees);
  } catch (...) {
    pending = std::current_exception();
    for (TokenTree& tree : trees) tree.clear();
  }
}

/// Lists the requests `paid` is to draft for.
void StackedProposer::Impl::choose(std::span<const ProposeRequest> shown,
                                   std::span<const TokenTree> trees) {
  paid_requests.clear();
  paid_rows.clear();
  for (std::size_t i = 0; i < shown.size(); ++i) {
    StackedRequest& request = requests[shown[i].id];
    request.is_paid = false;
    const std::int32_t depth = std::min(shown[i].max_depth, paid_max_depth);
    const double wanted = margin * acceptance.expect(depth, request.acceptance);
    // Written so that a survival that is no number asks `paid`.
    if (!trees[i].empty() && sum_of_survivals(trees[i]) >= wanted) continue;
    paid_rows.push_back(i);
    paid_requests.push_back(shown[i]);
    paid_requests.back().max_depth = depth;
  }
}

void StackedProposer::Impl::propose_paid(std::span<TokenTree> trees) {
  paid_ran = !paid_requests.empty();
  if (!paid_ran) return;
  paid_trees.resize(std::max(paid_trees.size(), paid_requests.size()));
  const auto paid_span = std::span(paid_trees).first(paid_requests.size());
  for (TokenTree& tree : paid_span) tree.clear();
  try {
    paid->propose(paid_requests, paid_span);
  } catch (...) {
    if (pending != nullptr) throw;  // both failed: there is nothing to return
    pending = std::current_exception();
    return;
  }
  for (std::size_t i = 0; i < paid_span.size(); ++i) {
    if (paid_span[i].empty()) continue;  // what `free` has, however little, is better than nothing
    std::swap(trees[paid_rows[i]], paid_span[i]);
    requests[paid_requests[i].id].is_paid = true;
  }
}

void StackedProposer::Impl::rethrow_pending() {
  if (pending == nullptr) return;
  const std::exception_ptr error = std::exchange(pending, nullptr);
  std::rethrow_exception(error);
}

StackedProposer::StackedProposer(std::shared_ptr<Proposer> free, std::shared_ptr<Proposer> paid,
                                 double margin, std::int32_t paid_max_depth)
    : impl_(std::make_unique<Impl>()) {
  if (free == nullptr || paid == nullptr) {
    throw std::invalid_argument("stacked proposers must not be null");
  }
  if (!(margin > 0) || !std::isfinite(margin)) {
    throw std::invalid_argument("margin must be finite and above 0, got " + std::to_string(margin));
  }
  if (paid_max_depth < 1) {
    throw std::invalid_argument("paid_max_depth must be at least 1, got " +
                                std::to_string(paid_max_depth));
  }
  impl_->free = std::move(free);
  impl_->paid = std::move(paid);
  impl_->margin = margin;
  impl_->paid_max_depth = paid_max_depth;
  impl_->name = std::string(impl_->free->name()) + "+" + std::string(impl_->paid->name());
}

StackedProposer::~StackedProposer() = default;

std::string_view StackedProposer::name() const { return impl_->name; }

void StackedProposer::propose(std::span<const ProposeRequest> requests,
                              std::span<TokenTree> trees) {
  impl_->propose_free(requests, trees);
  impl_->choose(requests, trees);
  try {
    impl_->propose_paid(trees);
  } catch (...) {
    impl_->pending = nullptr;
    throw;
  }
}

void StackedProposer::observe(std::span<const Outcome> outcomes) {
  Impl& impl = *impl_;
  impl.free_outcomes.assign(outcomes.begin(), outcomes.end());
  impl.paid_outcomes.assign(outcomes.begin(), outcomes.end());
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    const auto entry = impl.requests.find(outcomes[i].id);
    const bool is_paid = entry != impl.requests.end() && entry->second.is_paid;
    if (is_paid) impl.acceptance.learn(outcomes[i], entry->second.acceptance);
    // To each half, a draft of the other is a step at which it drafted nothing.
    Outcome& other = is_paid ? impl.free_outcomes[i] : impl.paid_outcomes[i];
    other.tree = &kNoTree;
    other.accepted_path = {};
  }
  std::exception_ptr error;
  try {
    impl.free->observe(impl.free_outcomes);
  } catch (...) {
    error = std::current_exception();
  }
  try {
    impl.paid->observe(impl.paid_outcomes);
  } catch (...) {
    if (error == nullptr) error = std::current_exception();
  }
  impl.rethrow_pending();
  if (error != nullptr) std::rethrow_exception(error);
}

void StackedProposer::finish(RequestId id) {
  impl_->requests.erase(id);
  std::exception_ptr error;
  try {
    impl_->free->finish(id);
  } catch (...) {
    error = std::current_exception();
  }
  impl_->paid->finish(id);
  if (error != nullptr) std::rethrow_exception(error);
}

bool StackedProposer::pays_per_depth() const { return impl_->paid->pays_per_depth(); }

std::int32_t StackedProposer::backlog(RequestId id, std::span<const TokenId> tokens) const {
  return impl_->paid->backlog(id, tokens);
}

ProposeWork StackedProposer::last_work() const {
  return impl_->paid_ran ? impl_->paid->last_work() : ProposeWork{.num_passes = 0};
}

}  // namespace smartspec
