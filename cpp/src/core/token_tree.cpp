// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/token_tree.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace smartspec {

float ClaimReading::accepted(float claim) const noexcept {
  if (!(claim < 1)) return 1;
  if (*this == ClaimReading{}) return std::max(claim, 0.0F);
  constexpr float kLeast = -5;
  constexpr float kMost = 6;
  const float logit = claim > 0 ? std::log(claim / (1 - claim)) : kLeast;
  return 1 / (1 + std::exp(-(offset + scale * std::clamp(logit, kLeast, kMost))));
}

void TokenTree::clear() noexcept {
  tokens.clear();
  parents.clear();
  depths.clear();
  survival.clear();
}

void TokenTree::reserve(std::int32_t num_nodes) {
  const auto n = static_cast<std::size_t>(std::max(num_nodes, 0));
  tokens.reserve(n);
  parents.reserve(n);
  depths.reserve(n);
  survival.reserve(n);
}

std::int32_t TokenTree::add(TokenId token, std::int32_t parent, float node_survival) {
  const std::int32_t node = size();
  if (parent < -1 || parent >= node) {
    throw std::invalid_argument("TokenTree.add: parent must be -1 or an earlier node (below " +
                                std::to_string(node) + "), got " + std::to_string(parent));
  }
  tokens.push_back(token);
  parents.push_back(parent);
  depths.push_back(parent < 0 ? 0 : depths[static_cast<std::size_t>(parent)] + 1);
  survival.push_back(node_survival);
  return node;
}

TokenTree TokenTree::chain(std::span<const TokenId> chain_tokens, std::span<const float> chances) {
  if (!chances.empty() && chances.size() != chain_tokens.size()) {
    throw std::invalid_argument("TokenTree.chain: survival must have one entry per token (" +
                                std::to_string(chain_tokens.size()) + "), got " +
                                std::to_string(chances.size()));
  }
  TokenTree tree;
  tree.reserve(static_cast<std::int32_t>(chain_tokens.size()));
  for (std::size_t i = 0; i < chain_tokens.size(); ++i) {
    tree.add(chain_tokens[i], static_cast<std::int32_t>(i) - 1,
             chances.empty() ? 1.0F : chances[i]);
  }
  return tree;
}

std::int32_t TokenTree::find_child(std::int32_t parent, TokenId token) const noexcept {
  for (std::int32_t node = parent + 1; node < size(); ++node) {
    const auto i = static_cast<std::size_t>(node);
    if (parents[i] == parent && tokens[i] == token) return node;
  }
  return -1;
}

void TokenTree::truncate(std::int32_t num_nodes) {
  const auto n = static_cast<std::size_t>(std::clamp(num_nodes, 0, size()));
  tokens.resize(n);
  parents.resize(n);
  depths.resize(n);
  survival.resize(n);
}

namespace {

std::string fault(std::size_t node, const char* field, const std::string& value,
                  const std::string& allowed) {
  return "node " + std::to_string(node) + ": " + field + " " + value + " is not allowed, must be " +
         allowed;
}

std::string node_fault(const TokenTree& tree, std::size_t i, std::int32_t vocab_size,
                       std::int32_t max_depth) {
  if (tree.tokens[i] < 0 || tree.tokens[i] >= vocab_size) {
    return fault(i, "token", std::to_string(tree.tokens[i]),
                 "in [0, " + std::to_string(vocab_size) + ")");
  }
  const std::int32_t parent = tree.parents[i];
  if (parent < -1 || parent >= static_cast<std::int32_t>(i)) {
    return fault(i, "parent", std::to_string(parent), "-1 or an earlier node");
  }
  const auto p = static_cast<std::size_t>(std::max(parent, 0));
  const std::int32_t depth = parent < 0 ? 0 : tree.depths[p] + 1;
  if (tree.depths[i] != depth) {
    return fault(i, "depth", std::to_string(tree.depths[i]), std::to_string(depth));
  }
  if (depth >= max_depth) {
    return fault(i, "depth", std::to_string(depth), "below " + std::to_string(max_depth));
  }
  const float bound = parent < 0 ? 1.0F : tree.survival[p];
  // Written so that NaN fails.
  if (!(tree.survival[i] >= 0.0F && tree.survival[i] <= bound)) {
    return fault(i, "survival", std::to_string(tree.survival[i]),
                 "in [0, " + std::to_string(bound) + "] (the parent's)");
  }
  return {};
}

}  // namespace

std::string TokenTree::validate(std::int32_t vocab_size, std::int32_t max_nodes,
                                std::int32_t max_depth) const {
  const std::size_t n = tokens.size();
  if (parents.size() != n || depths.size() != n || survival.size() != n) {
    return "arrays differ in length: tokens " + std::to_string(n) + ", parents " +
           std::to_string(parents.size()) + ", depths " + std::to_string(depths.size()) +
           ", survival " + std::to_string(survival.size());
  }
  if (n > static_cast<std::size_t>(std::max(max_nodes, 0))) {
    return "tree has " + std::to_string(n) + " nodes, at most " + std::to_string(max_nodes) +
           " are allowed";
  }
  for (std::size_t i = 0; i < n; ++i) {
    if (std::string text = node_fault(*this, i, vocab_size, max_depth); !text.empty()) return text;
  }
  return {};
}

}  // namespace smartspec
