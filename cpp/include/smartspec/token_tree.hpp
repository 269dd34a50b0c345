// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The token tree: what proposers emit, the scheduler prunes, attention masks by and verification
// walks. A chain is a tree.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "smartspec/export.hpp"
#include "smartspec/types.hpp"

namespace smartspec {

inline constexpr std::int32_t kMaxTreeNodes = 256;

/// How a proposer's claims read: with claim c of a token, its path being accepted,
/// logit P(accepted) = offset + scale * logit(c). The default takes them as they are.
struct SMARTSPEC_API ClaimReading {
  float offset = 0;
  float scale = 1;

  /// In (0, 1); 1 for a claim of 1 or more, which is no claim. Beyond logits of -5 and 6 claims say
  /// no more.
  [[nodiscard]] float accepted(float claim) const noexcept;
  bool operator==(const ClaimReading&) const = default;
};

/// Structure of arrays in topological order (parent before child). Owns its arrays; a value type.
/// Not thread-safe for writing.
struct SMARTSPEC_API TokenTree {
  std::vector<TokenId> tokens;        // [n]
  std::vector<std::int32_t> parents;  // [n], parents[i] < i; -1: child of the last verified token
  std::vector<std::int32_t> depths;   // [n], 0 for children of the last verified token
  std::vector<float> survival;        // [n], estimated P(whole path to this node is accepted)

  [[nodiscard]] std::int32_t size() const noexcept {
    return static_cast<std::int32_t>(tokens.size());
  }
  [[nodiscard]] bool empty() const noexcept { return tokens.empty(); }

  void clear() noexcept;
  void reserve(std::int32_t num_nodes);

  /// Appends a node and returns its index. Derives the depth. Throws std::invalid_argument when
  /// `parent` is neither -1 nor an earlier node.
  std::int32_t add(TokenId token, std::int32_t parent, float survival = 1.0F);

  /// A chain of `tokens`; survival is 1 at every node when not given.
  static TokenTree chain(std::span<const TokenId> tokens, std::span<const float> survival = {});

  /// Index of the first child of `parent` carrying `token`, or -1. O(n).
  [[nodiscard]] std::int32_t find_child(std::int32_t parent, TokenId token) const noexcept;

  /// Keeps the first `num_nodes` nodes: closed under ancestors by topological order.
  void truncate(std::int32_t num_nodes);

  /// Empty when sound, else the first fault in words, naming the node, the value and what is
  /// allowed: equal lengths, size <= max_nodes, 0 <= token < vocab_size, parents topological,
  /// depths consistent and < max_depth, survival finite, in [0, 1] and not above the parent's.
  [[nodiscard]] std::string validate(std::int32_t vocab_size, std::int32_t max_nodes,
                                     std::int32_t max_depth) const;
};

}  // namespace smartspec
