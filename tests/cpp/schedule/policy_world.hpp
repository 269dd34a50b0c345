// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Drafts and a caller for tests of policies.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "smartspec/length_policy.hpp"

namespace smartspec::testing {

inline constexpr std::int32_t kVocabulary = 12;

/// A random tree of up to `max_nodes` nodes whose survival never rises; a chain when `width` is 1.
/// Siblings carry different tokens.
inline TokenTree random_tree(std::mt19937& random, std::int32_t max_nodes, std::int32_t width) {
  TokenTree tree;
  const auto nodes = static_cast<std::int32_t>(random() % static_cast<unsigned>(max_nodes + 1));
  for (std::int32_t i = 0; i < nodes; ++i) {
    std::int32_t parent = i - 1;
    if (width > 1) parent = static_cast<std::int32_t>(random() % static_cast<unsigned>(i + 1)) - 1;
    auto token = static_cast<TokenId>(random() % kVocabulary);
    while (tree.find_child(parent, token) >= 0) ++token;
    const float before = parent < 0 ? 1.0F : tree.survival[static_cast<std::size_t>(parent)];
    // Few levels of survival, so that ties are common.
    tree.add(token, parent, before * static_cast<float>(random() % 9U + 1) / 9.0F);
  }
  return tree;
}

/// Trees of a batch, and pointers to them as policies take them.
struct Trees {
  std::vector<TokenTree> trees;
  [[nodiscard]] std::vector<TokenTree*> pointers() {
    std::vector<TokenTree*> out;
    for (TokenTree& tree : trees) out.push_back(&tree);
    return out;
  }
};

/// Drives a policy as a server would, with random requests, drafts and luck: the same calls for the
/// same seed as long as the policy decides the same.
class PolicyDriver {
 public:
  PolicyDriver(LengthPolicy& policy, std::uint32_t seed) : policy_(policy), random_(seed) {}

  void run(std::int32_t num_steps) {
    for (std::int32_t i = 0; i < num_steps; ++i) step();
    for (const LengthRequest& request : requests_) policy_.finish(request.id);
  }

 private:
  [[nodiscard]] bool chance(unsigned percent) { return random_() % 100U < percent; }
  [[nodiscard]] std::int32_t below(std::int32_t bound) {
    return static_cast<std::int32_t>(random_() % static_cast<unsigned>(bound));
  }
  [[nodiscard]] double uniform() { return std::uniform_real_distribution<double>()(random_); }

  void step() {
    while (requests_.size() < 2 || (requests_.size() < 9 && chance(30))) arrive();
    StepView view;
    view.now = now_;
    view.num_decodes = static_cast<std::int32_t>(requests_.size());
    view.base = {.num_tokens = view.num_decodes,
                 .num_sequences = view.num_decodes,
                 .num_logits = view.num_decodes,
                 .kv_tokens = 100 * view.num_decodes,
                 .attention_pairs = 100 * view.num_decodes};
    view.block_size = 16;
    view.free_blocks = below(20);
    view.proposers = kProposers;
    if (chance(20)) {
      const std::int32_t chunk = policy_.max_prefill_tokens(view, requests_, 1 + below(64));
      view.base.num_tokens += chunk;
      view.base.num_sequences += chunk > 0 ? 1 : 0;
    }
    view.token_budget = 4 + below(60);
    decide(view);
  }

  void decide(const StepView& view) {
    std::vector<TokenTree> offered;
    std::vector<Candidate> candidates;
    offered.reserve(2 * requests_.size());
    for (std::int32_t r = 0; r < view.num_decodes; ++r) {
      for (std::int32_t p = 0; p < 2; ++p) {
        if (chance(20)) continue;
        offered.push_back(random_tree(random_, 6, p == 0 ? 1 : 3));
        candidates.push_back({.request = r, .proposer = p, .tree = &offered.back()});
      }
    }
    std::vector<DraftChoice> choices(requests_.size());
    policy_.plan(view, requests_, candidates, choices);
    Trees drafted;
    std::vector<DraftWork> drafts;
    draft(candidates, choices, drafted, drafts);
    policy_.allocate(view, requests_, choices, drafts, drafted.pointers());
    outcome(view, drafted, drafts);
  }

  void draft(const std::vector<Candidate>& candidates, std::vector<DraftChoice>& choices,
             Trees& drafted, std::vector<DraftWork>& drafts) {
    DraftWork paid{.proposer = 2, .load = {.num_passes = 0}, .seconds = 0};
    for (std::size_t r = 0; r < requests_.size(); ++r) {
      DraftChoice& choice = choices[r];
      choice.depth = std::min(choice.depth, requests_[r].max_depth);
      TokenTree tree;
      if (choice.proposer == 2 && choice.depth > 0) {
        tree = random_tree(random_, choice.depth, 1);
        paid.load.num_passes = std::max(paid.load.num_passes, tree.size());
        paid.load.num_tokens += tree.size();
      }
      for (const Candidate& candidate : candidates) {
        if (candidate.request != static_cast<std::int32_t>(r)) continue;
        if (candidate.proposer == choice.proposer) tree = *candidate.tree;
      }
      while (!tree.empty() && tree.depths.back() >= choice.depth) tree.truncate(tree.size() - 1);
      drafted.trees.push_back(std::move(tree));
    }
    paid.seconds = 1e-4 * paid.load.num_passes;
    if (paid.load.num_passes > 0) drafts.push_back(paid);
  }

  void outcome(const StepView& view, Trees& drafted, const std::vector<DraftWork>& drafts) {
    std::vector<std::vector<TokenId>> emitted(requests_.size());
    std::vector<RequestOutcome> outcomes;
    StepOutcome done{.now = now_, .load = view.base, .seconds = 1e-3 * (1 + uniform())};
    for (std::size_t r = 0; r < requests_.size(); ++r) {
      const TokenTree& tree = drafted.trees[r];
      LengthRequest& request = requests_[r];
      std::int32_t node = -1;
      while (true) {
        auto token = static_cast<TokenId>(random_() % kVocabulary);
        for (std::int32_t i = node + 1; i < tree.size(); ++i) {
          if (tree.parents[static_cast<std::size_t>(i)] == node && chance(70)) {
            token = tree.tokens[static_cast<std::size_t>(i)];
            break;
          }
        }
        emitted[r].push_back(token);
        node = tree.find_child(node, token);
        if (node < 0) break;
      }
      const auto accepted = static_cast<std::int32_t>(emitted[r].size()) - 1;
      outcomes.push_back({.id = request.id,
                          .num_verified = tree.size(),
                          .num_accepted = accepted,
                          .emitted = emitted[r]});
      done.load.num_tokens += tree.size();
      request.num_tokens += accepted + 1;
      request.num_drafted += tree.size();
      request.num_accepted += accepted;
      request.num_output_tokens += accepted + 1;
      request.decode_seconds += done.seconds;
    }
    done.drafts = drafts;
    done.requests = outcomes;
    now_ += done.seconds;
    policy_.observe(done);
    leave();
  }

  void arrive() {
    LengthRequest request;
    request.id = next_id_++;
    request.num_tokens = 10 + below(100);
    request.max_depth = 1 + below(10);
    request.group = below(2);
    request.block_room = below(16);
    request.backlog = below(3);
    request.num_remaining = request.max_depth + below(100);
    if (chance(20)) request.control.proposer = below(3);
    if (chance(10)) request.control.tpot_target = 1e-3;
    if (chance(10)) request.control.enabled = false;
    if (chance(10)) request.control.min_tokens = below(3);
    if (chance(10)) request.control.max_tokens = 3 + below(5);
    requests_.push_back(request);
  }

  void leave() {
    for (std::size_t r = requests_.size(); r-- > 0;) {
      if (!chance(5)) continue;
      policy_.finish(requests_[r].id);
      requests_.erase(requests_.begin() + static_cast<std::ptrdiff_t>(r));
    }
  }

  inline static const std::vector<ProposerView> kProposers{
      {.name = "lookup"}, {.name = "suffix"}, {.name = "draft", .pays_per_depth = true}};
  LengthPolicy& policy_;
  std::mt19937 random_;
  std::vector<LengthRequest> requests_;
  RequestId next_id_ = 7;
  double now_ = 0;
};

}  // namespace smartspec::testing
