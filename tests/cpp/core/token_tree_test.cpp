// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "smartspec/token_tree.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>

namespace smartspec {
namespace {

constexpr std::int32_t kVocab = 100;

TokenTree sample_tree() {
  TokenTree tree;
  tree.add(5, -1, 0.9F);
  tree.add(6, 0, 0.5F);
  tree.add(7, 0, 0.4F);
  tree.add(8, -1, 0.1F);
  return tree;
}

TEST(TokenTreeTest, AddDerivesDepthAndRefusesLaterParents) {
  TokenTree tree = sample_tree();
  EXPECT_EQ(tree.depths, (std::vector<std::int32_t>{0, 1, 1, 0}));
  EXPECT_THROW(tree.add(1, 4), std::invalid_argument);
  EXPECT_THROW(tree.add(1, -2), std::invalid_argument);
  EXPECT_EQ(tree.size(), 4);
}

TEST(TokenTreeTest, FindChildLooksAtOneParentOnly) {
  const TokenTree tree = sample_tree();
  EXPECT_EQ(tree.find_child(0, 7), 2);
  EXPECT_EQ(tree.find_child(-1, 8), 3);
  EXPECT_EQ(tree.find_child(-1, 7), -1);
  EXPECT_EQ(tree.find_child(3, 6), -1);
}

TEST(TokenTreeTest, ChainIsATree) {
  const std::vector<TokenId> tokens = {1, 2, 3};
  const std::vector<float> chances = {0.5F, 0.25F, 0.1F};
  const TokenTree tree = TokenTree::chain(tokens, chances);
  EXPECT_EQ(tree.parents, (std::vector<std::int32_t>{-1, 0, 1}));
  EXPECT_EQ(tree.validate(kVocab, 3, 3), "");
  EXPECT_THROW(TokenTree::chain(tokens, std::span(chances).first(2)), std::invalid_argument);
}

TEST(TokenTreeTest, TruncateKeepsAncestors) {
  TokenTree tree = sample_tree();
  tree.truncate(2);
  EXPECT_EQ(tree.size(), 2);
  EXPECT_EQ(tree.validate(kVocab, 2, 2), "");
  tree.truncate(-1);
  EXPECT_TRUE(tree.empty());
}

TEST(TokenTreeTest, ValidateNamesTheFault) {
  const auto fault = [](auto&& spoil, std::int32_t max_nodes = 8, std::int32_t max_depth = 8) {
    TokenTree tree = sample_tree();
    spoil(tree);
    return tree.validate(kVocab, max_nodes, max_depth);
  };
  EXPECT_EQ(fault([](TokenTree&) {}), "");
  EXPECT_NE(fault([](TokenTree& t) { t.tokens[1] = 100; }).find("node 1: token 100"),
            std::string::npos);
  EXPECT_NE(fault([](TokenTree& t) { t.tokens[0] = -1; }).find("[0, 100)"), std::string::npos);
  EXPECT_NE(fault([](TokenTree& t) { t.parents[1] = 1; }).find("parent"), std::string::npos);
  EXPECT_NE(fault([](TokenTree& t) { t.parents[1] = 3; }).find("parent"), std::string::npos);
  EXPECT_NE(fault([](TokenTree& t) { t.depths[2] = 2; }).find("depth"), std::string::npos);
  EXPECT_NE(fault([](TokenTree& t) { t.survival[0] = std::nanf(""); }).find("survival"),
            std::string::npos);
  EXPECT_NE(fault([](TokenTree& t) { t.survival[1] = 0.95F; }).find("survival"), std::string::npos);
  EXPECT_NE(fault([](TokenTree& t) { t.survival[3] = -0.1F; }).find("survival"), std::string::npos);
  EXPECT_NE(fault([](TokenTree& t) { t.depths.pop_back(); }).find("length"), std::string::npos);
  EXPECT_NE(fault([](TokenTree&) {}, 3).find("at most 3"), std::string::npos);
  EXPECT_NE(fault([](TokenTree&) {}, 8, 1).find("below 1"), std::string::npos);
}

TEST(TokenTreeTest, RandomRubbishNeverPassesAsATree) {
  std::mt19937 rng(5);
  for (int round = 0; round < 20000; ++round) {
    TokenTree tree;
    const std::size_t n = rng() % 6;
    for (std::size_t i = 0; i < n; ++i) {
      tree.tokens.push_back(static_cast<TokenId>(rng() % 104) - 2);
      tree.parents.push_back(static_cast<std::int32_t>(rng() % 8) - 2);
      tree.depths.push_back(static_cast<std::int32_t>(rng() % 4));
      tree.survival.push_back(static_cast<float>(rng() % 12) / 10.0F);
    }
    bool sound = true;
    for (std::size_t i = 0; i < n; ++i) {
      const std::int32_t parent = tree.parents[i];
      sound = sound && tree.tokens[i] >= 0 && tree.tokens[i] < kVocab && parent >= -1 &&
              parent < static_cast<std::int32_t>(i);
      if (!sound) break;
      const auto p = static_cast<std::size_t>(parent);
      sound = tree.depths[i] == (parent < 0 ? 0 : tree.depths[p] + 1) &&
              tree.survival[i] <= (parent < 0 ? 1.0F : tree.survival[p]);
    }
    EXPECT_EQ(tree.validate(kVocab, 8, 8).empty(), sound);
  }
}

TEST(ClaimReadingTest, ReadsLogitsOnALineAndLeavesNoClaimAlone) {
  const ClaimReading as_it_is;
  for (const float claim : {0.0F, 0.25F, 0.999F}) EXPECT_EQ(as_it_is.accepted(claim), claim);
  EXPECT_EQ(as_it_is.accepted(-1), 0);
  const ClaimReading halved{.offset = 1, .scale = 0.5F};
  EXPECT_NEAR(halved.accepted(0.5F), 1 / (1 + std::exp(-1.0)), 1e-6);
  EXPECT_NEAR(halved.accepted(0.9F), 1 / (1 + std::exp(-1 - 0.5 * std::log(9.0))), 1e-6);
  EXPECT_GT(halved.accepted(0), 0) << "claims may be wrong";
  EXPECT_LT(halved.accepted(0.9999999F), 1);
  for (const ClaimReading& reading : {as_it_is, halved}) {
    EXPECT_EQ(reading.accepted(1), 1);
    EXPECT_EQ(reading.accepted(2), 1);
    EXPECT_EQ(reading.accepted(std::nanf("")), 1);
  }
}

}  // namespace
}  // namespace smartspec
