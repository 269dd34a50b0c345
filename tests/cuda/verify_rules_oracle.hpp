// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The rules with draft probabilities in double, as their papers state them: one vector per
// distribution, every probability explicit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "core/noise.hpp"
#include "smartspec/cuda_ops.hpp"
#include "smartspec/token_tree.hpp"
#include "verify/support.hpp"

namespace smartspec::test {

using Law = std::vector<double>;  // probability by token

/// A drafted tree with the distributions after each node; index 0 is node -1.
struct DraftedTree {
  TokenTree tree;
  std::vector<Law> target;
  std::vector<Law> draft;  // empty law: the children are point masses
};

/// A place where verification may end: it does so with probability `share`, if it comes there, and
/// the next token is then drawn from `law`. `judge`: the node whose uniform number decides.
struct Ending {
  std::int32_t node = -1;
  std::int32_t judge = -1;
  double share = 1.0;
  Law law;
};

inline Law normalised(Law law, double sum) {
  for (double& x : law) x /= sum;
  return law;
}

/// [a P - Q]+ and its sum.
inline std::pair<Law, double> positive_part(double a, const Law& p, const Law& q) {
  Law rest(p.size());
  double sum = 0.0;
  for (std::size_t v = 0; v < p.size(); ++v) sum += rest[v] = std::max(a * p[v] - q[v], 0.0);
  return {rest, sum};
}

inline Law point_mass(std::size_t vocab, TokenId token) {
  Law law(vocab, 0.0);
  law[static_cast<std::size_t>(token)] = 1.0;
  return law;
}

/// Traversal verification; `chain`: first children only, which is block verification.
class NaiveTraversal {
 public:
  NaiveTraversal(const DraftedTree& drafted, bool chain) : drafted_(drafted), chain_(chain) {
    visit(-1, 1.0);
    endings.back().share = 1.0;  // the root
  }
  std::vector<Ending> endings;  // in the order in which they are looked at

 private:
  void visit(std::int32_t node, double a) {
    const auto at = static_cast<std::size_t>(node + 1);
    Law p = drafted_.target[at];
    Law q = drafted_.draft[at];
    const bool points = q.empty();
    bool is_first = true;
    for (std::int32_t c = node + 1; c < drafted_.tree.size(); ++c) {
      if (drafted_.tree.parents[static_cast<std::size_t>(c)] != node) continue;
      if (chain_ && !is_first) break;
      is_first = false;
      const TokenId token = drafted_.tree.tokens[static_cast<std::size_t>(c)];
      const auto x = static_cast<std::size_t>(token);
      if (points) q = point_mass(p.size(), token);
      if (q[x] == 0.0) continue;
      const double share = std::min(1.0, a * p[x] / q[x]);
      if (share > 0.0) visit(c, share);
      const auto [rest, sum] = positive_part(a, p, q);
      a = sum > 0.0 ? sum / (sum + 1.0 - a) : 0.0;
      if (sum > 0.0) p = normalised(rest, sum);
      if (points) continue;
      q[x] = 0.0;
      double left = 0.0;
      for (const double mass : q) left += mass;
      if (left > 0.0) q = normalised(q, left);
    }
    endings.push_back({node, node, a, p});
  }
  const DraftedTree& drafted_;
  bool chain_;
};

/// Leviathan et al. 2023, Algorithm 1, along first children.
inline std::vector<Ending> naive_token_rule(const DraftedTree& drafted) {
  std::vector<Ending> endings;
  std::int32_t node = -1;
  while (true) {
    const auto at = static_cast<std::size_t>(node + 1);
    const Law& p = drafted.target[at];
    std::int32_t child = -1;
    for (std::int32_t c = drafted.tree.size() - 1; c > node; --c) {
      if (drafted.tree.parents[static_cast<std::size_t>(c)] == node) child = c;
    }
    if (child >= 0) {
      const TokenId token = drafted.tree.tokens[static_cast<std::size_t>(child)];
      const auto x = static_cast<std::size_t>(token);
      const Law q = drafted.draft[at].empty() ? point_mass(p.size(), token) : drafted.draft[at];
      if (q[x] > 0.0) {
        const double accept = std::min(1.0, p[x] / q[x]);
        const auto [rest, sum] = positive_part(1.0, p, q);
        if (sum > 0.0) endings.push_back({node, child, 1.0 - accept, normalised(rest, sum)});
        node = child;
        continue;
      }
    }
    endings.push_back({node, -1, 1.0, p});
    return endings;
  }
}

inline std::vector<Ending> naive_endings(const DraftedTree& drafted, cuda::VerifyRule rule) {
  if (rule == cuda::VerifyRule::kToken) return naive_token_rule(drafted);
  return NaiveTraversal(drafted, rule == cuda::VerifyRule::kBlock).endings;
}

/// Calls outcome(probability, node, token) for all that can come out.
inline void enumerate(const std::vector<Ending>& endings,
                      const std::function<void(double, std::int32_t, TokenId)>& outcome) {
  double reached = 1.0;
  for (const Ending& e : endings) {
    for (std::size_t v = 0; v < e.law.size(); ++v) {
      const double mass = reached * e.share * e.law[v];
      if (mass > 0.0) outcome(mass, e.node, static_cast<TokenId>(v));
    }
    reached *= 1.0 - e.share;
  }
}

/// What given uniform numbers decide, and how close they were to deciding otherwise.
struct Decision {
  std::int32_t node = -1;
  TokenId token = -1;
  double margin = 1.0;
};

/// `order`: the tokens as the inverse of the cumulative law runs over them, by ending node.
inline Decision decide(const std::vector<Ending>& endings, cuda::VerifyRule rule,
                       const std::function<double(std::int32_t)>& accept, double residual,
                       const std::function<std::vector<TokenId>(std::int32_t)>& order) {
  Decision result;
  const bool rejects = rule == cuda::VerifyRule::kToken;  // ends where u says no
  for (const Ending& e : endings) {
    if (e.judge >= 0) {
      const double u = accept(e.judge);
      const double threshold = rejects ? 1.0 - e.share : e.share;
      if (threshold > 0.0 && threshold < 1.0) {
        result.margin = std::min(result.margin, std::abs(u - threshold));
      }
      if (rejects ? u < threshold : u >= threshold) continue;
    }
    result.node = e.node;
    double sum = 0.0;
    double below = 1.0;
    for (const TokenId v : order(e.node)) {
      const double mass = e.law[static_cast<std::size_t>(v)];
      if (mass <= 0.0) continue;
      if (sum > residual) {  // the token before was it
        result.margin = std::min({result.margin, sum - residual, below});
        return result;
      }
      if (sum > 0.0) below = residual - sum;  // to the token's lower edge
      result.token = v;
      sum += mass;
    }
    result.margin = std::min(result.margin, below);
    return result;  // the last one: there is no edge above it
  }
  return result;
}

using verify_test::Random;

inline constexpr cuda::VerifyRule kRules[] = {cuda::VerifyRule::kToken, cuda::VerifyRule::kBlock,
                                              cuda::VerifyRule::kTraversal};

inline double seeded_accept(std::uint64_t seed, std::int64_t position, std::int32_t node) {
  return core::uniform_at(seed, position, static_cast<std::uint32_t>(node), core::Purpose::kAccept);
}
inline double seeded_residual(std::uint64_t seed, std::int64_t position) {
  return core::uniform_at(seed, position, 0, core::Purpose::kResidual);
}

/// Children per level: {2, 1} is a root with two children that have one each.
using Levels = std::vector<int>;

/// Calls visit(probability, drafted) for all trees that a draft without replacement may give.
/// `rows(prefix)`: target and draft after the path.
using RowsOf = std::function<std::pair<Law, Law>(const std::vector<TokenId>&)>;

class DraftEnumeration {
 public:
  DraftEnumeration(Levels levels, RowsOf rows,
                   std::function<void(double, const DraftedTree&)> visit)
      : levels_(std::move(levels)), rows_(std::move(rows)), visit_(std::move(visit)) {
    auto [p, q] = rows_({});
    drafted_.target = {p};
    drafted_.draft = {q};
    expand(-1, 0, 1.0, q);
  }

 private:
  std::vector<TokenId> path_to(std::int32_t node) const {
    return verify_test::path_prefix(drafted_.tree, node, {});
  }
  int depth_of(std::int32_t node) const {
    return node < 0 ? 0 : drafted_.tree.depths[static_cast<std::size_t>(node)] + 1;
  }
  /// Adds child number `count` of `node`, of what is left of its draft law.
  void expand(std::int32_t node, int count, double probability, Law left) {
    if (node == drafted_.tree.size()) return visit_(probability, drafted_);
    const int depth = depth_of(node);
    double mass = 0.0;
    for (const double x : left) mass += x;
    const bool full = depth >= static_cast<int>(levels_.size()) ||
                      count == levels_[static_cast<std::size_t>(depth)] || mass <= 0.0;
    if (full) {
      const std::int32_t next = node + 1;
      if (next == drafted_.tree.size()) return visit_(probability, drafted_);
      return expand(next, 0, probability, drafted_.draft[static_cast<std::size_t>(next + 1)]);
    }
    for (std::size_t v = 0; v < left.size(); ++v) {
      if (left[v] <= 0.0) continue;
      const DraftedTree before = drafted_;
      drafted_.tree.add(static_cast<TokenId>(v), node);
      auto [p, q] = rows_(path_to(drafted_.tree.size() - 1));
      drafted_.target.push_back(p);
      drafted_.draft.push_back(q);
      Law rest = left;
      rest[v] = 0.0;
      expand(node, count + 1, probability * left[v] / mass, rest);
      drafted_ = before;
    }
  }
  Levels levels_;
  RowsOf rows_;
  std::function<void(double, const DraftedTree&)> visit_;
  DraftedTree drafted_;
};

inline Law random_law(Random& random, int vocab, double zeros) {
  Law law(static_cast<std::size_t>(vocab));
  double sum = 0.0;
  for (double& x : law) x = random.chance(zeros) ? 0.0 : std::exp(2.0 * random.normal());
  if (random.chance(0.2)) law[static_cast<std::size_t>(random.below(vocab))] *= 3e6;
  for (const double x : law) sum += x;
  if (sum == 0.0) return point_mass(law.size(), 0);
  return normalised(law, sum);
}

/// Laws as a pure function of the path.
inline RowsOf random_rows(std::uint64_t seed, int vocab, bool points) {
  return [=](const std::vector<TokenId>& path) {
    std::uint64_t hash = seed;
    for (const TokenId t : path)
      hash = (hash ^ static_cast<std::uint64_t>(t + 1)) * 0x100000001B3ULL;
    Random random(hash);
    Law p = random_law(random, vocab, 0.2);
    Law q = points ? Law{} : random_law(random, vocab, 0.2);
    return std::pair(p, q);
  };
}

inline TokenId sample(Random& random, const Law& law) {
  double u = random.unit();
  TokenId last = 0;
  for (std::size_t v = 0; v < law.size(); ++v) {
    if (law[v] <= 0.0) continue;
    last = static_cast<TokenId>(v);
    if (u < law[v]) return last;
    u -= law[v];
  }
  return last;
}

}  // namespace smartspec::test
