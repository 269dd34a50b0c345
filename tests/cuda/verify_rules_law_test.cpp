// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// That the naive rules, which verify_rules_test.cpp compares the kernel with, are what their papers
// say: expected numbers of accepted tokens, and the law of the output, by enumeration.
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <map>
#include <string>

#include "verify/stats.hpp"
#include "verify_rules_oracle.hpp"

namespace smartspec::test {
namespace {

using cuda::VerifyRule;

double expected_accepted(VerifyRule rule, const Levels& levels, const Law& p, const Law& q) {
  double sum = 0.0;
  DraftEnumeration(
      levels, [&](const auto&) { return std::pair(p, q); },
      [&](double probability, const DraftedTree& drafted) {
        enumerate(naive_endings(drafted, rule), [&](double mass, std::int32_t node, TokenId) {
          const auto i = static_cast<std::size_t>(node);
          sum += probability * mass * (node < 0 ? 0 : drafted.tree.depths[i] + 1);
        });
      });
  return sum;
}

// Sun et al. 2024, section 2, and exact values computed beforehand for a second pair of laws.
TEST(CudaVerifyRules, OracleGivesGoldenValues) {
  const Law p2 = {1.0 / 3, 2.0 / 3};
  const Law q2 = {2.0 / 3, 1.0 / 3};
  const Law p3 = {0.5, 0.3, 0.2};
  const Law q3 = {0.2, 0.3, 0.5};
  struct Golden {
    VerifyRule rule;
    Levels levels;
    double two, three;  // < 0: unknown
  };
  const Golden golden[] = {{VerifyRule::kToken, {1}, 2.0 / 3, 0.7},
                           {VerifyRule::kToken, {1, 1}, 10.0 / 9, 1.19},
                           {VerifyRule::kToken, {1, 1, 1}, 38.0 / 27, 1.533},
                           {VerifyRule::kBlock, {1}, 2.0 / 3, 0.7},
                           {VerifyRule::kBlock, {1, 1}, 11.0 / 9, 1.25},
                           {VerifyRule::kBlock, {1, 1, 1}, 5.0 / 3, 1.695},
                           {VerifyRule::kTraversal, {1, 1}, 11.0 / 9, 1.25},
                           {VerifyRule::kTraversal, {2}, 1.0, 0.82},
                           {VerifyRule::kTraversal, {2, 1}, 16.0 / 9, 1.454},
                           {VerifyRule::kTraversal, {2, 2}, 2.0, 1.5284},
                           {VerifyRule::kTraversal, {3}, -1.0, 1.0}};
  for (const Golden& g : golden) {
    if (g.two > 0) {
      EXPECT_NEAR(expected_accepted(g.rule, g.levels, p2, q2), g.two, 1e-12);
    }
    EXPECT_NEAR(expected_accepted(g.rule, g.levels, p3, q3), g.three, 1e-12);
  }
}

// The emitted tokens, continued with the target's own, are distributed as the target's: exactly.
TEST(CudaVerifyRules, OracleIsLossless) {
  constexpr int kVocab = 3;
  const Levels shapes[] = {{1, 1, 1}, {2, 1}, {3, 2}, {2, 2}};
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    for (const VerifyRule rule : kRules) {
      const Levels& levels = shapes[rule == VerifyRule::kTraversal ? seed % 4 : 0];
      const RowsOf rows = random_rows(seed, kVocab, false);
      std::map<std::vector<TokenId>, double> emitted;
      DraftEnumeration(levels, rows, [&](double probability, const DraftedTree& drafted) {
        enumerate(naive_endings(drafted, rule), [&](double mass, std::int32_t node, TokenId y) {
          std::vector<TokenId> tokens = verify_test::path_prefix(drafted.tree, node, {});
          tokens.push_back(y);
          emitted[tokens] += probability * mass;
        });
      });
      // P(the output starts with s) = sum over emitted prefixes e of s of P(e) p(s | e).
      const auto longest = levels.size() + 1;
      const std::function<void(std::vector<TokenId>&, double, double)> check =
          [&](std::vector<TokenId>& s, double law, double mass) {
            if (s.size() == longest) {
              EXPECT_NEAR(mass, law, 1e-12);
              return;
            }
            const Law p = rows(s).first;
            for (TokenId v = 0; v < kVocab; ++v) {
              const double next = p[static_cast<std::size_t>(v)];
              s.push_back(v);
              const auto found = emitted.find(s);
              check(s, law * next, mass * next + (found == emitted.end() ? 0.0 : found->second));
              s.pop_back();
            }
          };
      std::vector<TokenId> s;
      check(s, 1.0, 0.0);
    }
  }
}

/// A tree drafted after `output`, with `levels` children per level.
DraftedTree drafted_after(Random& random, const Levels& levels, const RowsOf& rows,
                          const std::vector<TokenId>& output) {
  DraftedTree result;
  for (std::int32_t n = -1; n < result.tree.size(); ++n) {
    auto [p, q] = rows(verify_test::path_prefix(result.tree, n, output));
    result.target.push_back(p);
    result.draft.push_back(q);
    const int depth = n < 0 ? 0 : result.tree.depths[static_cast<std::size_t>(n)] + 1;
    const auto level = static_cast<std::size_t>(depth);
    for (int c = 0; level < levels.size() && c < levels[level]; ++c) {
      double mass = 0.0;
      for (const double x : q) mass += x;
      if (mass <= 0.0) break;
      const TokenId token = sample(random, normalised(q, mass));
      q[static_cast<std::size_t>(token)] = 0.0;
      result.tree.add(token, n);
    }
  }
  return result;
}

// Three tokens over several steps, each drafted afresh, have the target's joint law: the numbers
// of one step tell nothing about those of the next.
TEST(CudaVerifyRules, SeededStepsHaveTheLawOfTheTarget) {
  const std::pair<Law, Law> same = {{1.0 / 3, 2.0 / 3}, {2.0 / 3, 1.0 / 3}};
  const RowsOf rows = [&](const auto&) { return same; };
  const std::vector<TokenId> all = {0, 1};
  for (const VerifyRule rule : kRules) {
    SCOPED_TRACE("rule " + std::to_string(static_cast<int>(rule)));
    const Levels levels = rule == VerifyRule::kTraversal ? Levels{2, 1, 1} : Levels{1, 1, 1};
    Random random(3 + static_cast<std::uint64_t>(rule));
    std::vector<std::int64_t> counts(8);
    for (std::uint64_t seed = 0; seed < 60000U / verify_test::kShrink; ++seed) {
      std::vector<TokenId> output;
      while (output.size() < 3) {
        const DraftedTree drafted = drafted_after(random, levels, rows, output);
        const auto position = static_cast<std::int64_t>(output.size()) + 1;
        const Decision d = decide(
            naive_endings(drafted, rule), rule,
            [&](std::int32_t n) { return seeded_accept(seed, position, n); },
            seeded_residual(seed, position), [&](std::int32_t) { return all; });
        output = verify_test::path_prefix(drafted.tree, d.node, output);
        output.push_back(d.token);
      }
      ++counts[static_cast<std::size_t>(4 * output[0] + 2 * output[1] + output[2])];
    }
    std::vector<double> law;
    for (unsigned i = 0; i < 8; ++i) law.push_back((1U << std::popcount(i)) / 27.0);
    verify_test::ChiSquare chi_square;
    chi_square.add(law, counts);
    EXPECT_GT(chi_square.p_value(), 1e-4);
  }
}

}  // namespace
}  // namespace smartspec::test
