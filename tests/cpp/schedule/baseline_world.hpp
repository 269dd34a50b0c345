// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Steps, requests and drafts for tests of one decision of a baseline policy.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "schedule/policy_world.hpp"
#include "smartspec/baseline_policies.hpp"

namespace smartspec::testing {

inline constexpr double kSlope = 1.84383603e-5;  // TurboSpec's 8B target on an H100, seconds
inline const CostCoefficients kTarget{.tokens = {1, 2}, .seconds = {6.9387e-3, 6.9387e-3 + kSlope}};
inline const CostCoefficients kDraftPass{.tokens = {1}, .seconds = {4.5e-4}};

inline const std::vector<ProposerView> kLookup{{.name = "lookup"}};
inline const std::vector<ProposerView> kDraft{{.name = "draft", .pays_per_depth = true}};
inline const std::vector<ProposerView> kAll{
    {.name = "lookup"}, {.name = "draft", .pays_per_depth = true}, {.name = "suffix"}};

inline StepView step_of(std::int32_t num_decodes, std::span<const ProposerView> proposers) {
  StepView step;
  step.num_decodes = num_decodes;
  step.base = {.num_tokens = num_decodes, .num_sequences = num_decodes, .num_logits = num_decodes};
  step.token_budget = 1 << 20;
  step.proposers = proposers;
  return step;
}

inline std::vector<LengthRequest> requests_of(std::int32_t count, std::int32_t max_depth = 16) {
  std::vector<LengthRequest> requests(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].id = static_cast<RequestId>(i);
    requests[i].max_depth = max_depth;
  }
  return requests;
}

inline TokenTree chain(const std::vector<float>& survival) {
  std::vector<TokenId> tokens(survival.size());
  std::iota(tokens.begin(), tokens.end(), 0);
  return TokenTree::chain(tokens, survival);
}

inline std::vector<DraftChoice> plan(LengthPolicy& policy, const StepView& step,
                                     std::span<const LengthRequest> requests,
                                     std::span<const Candidate> candidates = {}) {
  std::vector<DraftChoice> choices(requests.size());
  policy.plan(step, requests, candidates, choices);
  return choices;
}

/// One step with these drafts by proposer 0; what is kept of them.
inline std::vector<TokenTree> pruned(LengthPolicy& policy, const StepView& step,
                                     std::vector<TokenTree> given,
                                     std::span<const DraftWork> drafts = {}) {
  Trees trees{std::move(given)};
  const auto requests = requests_of(static_cast<std::int32_t>(trees.trees.size()), 64);
  std::vector<Candidate> candidates;
  for (std::size_t i = 0; i < trees.trees.size(); ++i) {
    candidates.push_back(
        {.request = static_cast<std::int32_t>(i), .proposer = 0, .tree = &trees.trees[i]});
  }
  const auto choices = plan(policy, step, requests, candidates);
  policy.allocate(step, requests, choices, drafts, trees.pointers());
  return trees.trees;
}

inline std::vector<TokenTree> pruned(LengthPolicy& policy, std::vector<TokenTree> given) {
  const StepView step = step_of(static_cast<std::int32_t>(given.size()), kLookup);
  return pruned(policy, step, std::move(given));
}

/// The tokens on the way to each node: what a node is, whatever its index.
inline std::set<std::vector<TokenId>> paths(const TokenTree& tree) {
  std::vector<std::vector<TokenId>> all;
  for (std::size_t i = 0; i < tree.tokens.size(); ++i) {
    const std::int32_t parent = tree.parents[i];
    all.push_back(parent < 0 ? std::vector<TokenId>{} : all[static_cast<std::size_t>(parent)]);
    all.back().push_back(tree.tokens[i]);
  }
  return {all.begin(), all.end()};
}

inline void expect_part_of(const TokenTree& part, const TokenTree& whole) {
  EXPECT_EQ(part.validate(1 << 20, kMaxTreeNodes, kMaxTreeNodes), "");
  const auto all = paths(whole);
  for (const auto& path : paths(part)) EXPECT_TRUE(all.contains(path));
  EXPECT_EQ(paths(part).size(), part.tokens.size());
}

}  // namespace smartspec::testing
