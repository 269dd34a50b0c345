// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A rule that chooses how much to verify may look at the drafted tokens. Under rejection sampling
// that bends the output (the counterexample of DSpark, arXiv 2607.05147, appendix A); under the
// target walk no rule can. Seeds run from 0 upwards: nothing here is left to chance.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iostream>
#include <string>
#include <vector>

#include "smartspec/sampler.hpp"
#include "verify/stats.hpp"
#include "verify/support.hpp"

namespace smartspec::verify_test {
namespace {

constexpr int kSamples = 1'000'000 / kShrink;
constexpr int kVocab = 2;
constexpr int kLength = 3;  // tokens of a request

using Law = std::array<double, kVocab>;
constexpr Law kTarget = {0.7, 0.3};  // of the first token
constexpr Law kDraft = {0.5, 0.5};
constexpr Law kBent = {0.85, 0.15};
// Of a later token, given the one before.
constexpr std::array<Law, kVocab> kNext = {Law{0.9, 0.1}, Law{0.4, 0.6}};
// Confidence in the first drafted token, the overlap of target and draft; and in the second one,
// which depends on what the first one is.
constexpr double kFirstConfidence = 0.8;
constexpr std::array<double, kVocab> kSecondConfidence = {1, 0};
constexpr std::array<double, 3> kStepsPerSecond = {1, 0.5, 0.45};  // by tokens verified

/// The length of the highest goodput, as a global argmax finds it: looks at the drawn token.
int best_length(TokenId drafted) {
  const double first = kFirstConfidence;
  const double second = first * kSecondConfidence[static_cast<std::size_t>(drafted)];
  const std::array<double, 3> goodput = {kStepsPerSecond[0], (1 + first) * kStepsPerSecond[1],
                                         (1 + first + second) * kStepsPerSecond[2]};
  return static_cast<int>(std::max_element(goodput.begin(), goodput.end()) - goodput.begin());
}

TokenId draw(const Law& law, Random& random) { return random.chance(law[0]) ? 0 : 1; }

/// The first token by rejection sampling (Leviathan et al. 2022), of `length` drafted tokens.
TokenId rejection_sample(TokenId drafted, int length, Random& random) {
  if (length == 0) return draw(kTarget, random);
  const auto at = static_cast<std::size_t>(drafted);
  if (random.unit() < std::min(1.0, kTarget[at] / kDraft[at])) return drafted;
  Law rest{};
  for (std::size_t v = 0; v < rest.size(); ++v) rest[v] = std::max(0.0, kTarget[v] - kDraft[v]);
  const double sum = rest[0] + rest[1];
  return draw({rest[0] / sum, rest[1] / sum}, random);
}

using Counts = std::array<std::int64_t, kVocab>;

double p_value(const Law& law, const Counts& counts) {
  ChiSquare test;
  test.add(law, counts);
  return test.p_value();
}

TEST(ControllerLossless, RejectionSamplingIsBentByALookAtTheDraft) {
  ASSERT_EQ(best_length(0), 2);
  ASSERT_EQ(best_length(1), 0);
  Random random(1);
  Counts fixed{};
  Counts controlled{};
  for (int i = 0; i < kSamples; ++i) {
    const TokenId drafted = draw(kDraft, random);
    ++fixed[static_cast<std::size_t>(rejection_sample(drafted, 2, random))];
    const TokenId token = rejection_sample(drafted, best_length(drafted), random);
    ++controlled[static_cast<std::size_t>(token)];
  }
  // Fair as long as the length does not depend on the draft.
  EXPECT_GT(p_value(kTarget, fixed), 0.01);
  EXPECT_NEAR(static_cast<double>(fixed[0]) / kSamples, 0.7, 3 / std::sqrt(kSamples));
  EXPECT_GT(p_value(kBent, controlled), 0.01);
  EXPECT_NEAR(static_cast<double>(controlled[0]) / kSamples, 0.85, 3 / std::sqrt(kSamples));
  EXPECT_LT(p_value(kTarget, controlled), 1e-12);
}

/// What a rule may look at: everything, also what no rule could know.
struct Sight {
  TokenTree tree;    // a chain of two
  TokenId own = 0;   // what the target is going to draw at the first node
  int position = 0;  // in the output
};
/// Keeps `count` nodes at most; may change the tree altogether.
using Rule = void (*)(Sight& sight);

void keep(Sight& sight, bool all) { sight.tree.truncate(all ? sight.tree.size() : 0); }

struct NamedRule {
  const char* name;
  int samples;  // fewer still show a bend of .003
  Rule rule;
};
constexpr std::array<NamedRule, 8> kRules = {{
    {"everything", kSamples / 4, [](Sight&) {}},
    {"goodput", kSamples, [](Sight& s) { s.tree.truncate(best_length(s.tree.tokens[0])); }},
    {"one token", kSamples / 4, [](Sight& s) { keep(s, s.tree.tokens[0] == 1); }},
    {"high claims", kSamples / 4, [](Sight& s) { keep(s, s.tree.survival[0] > 0.6F); }},
    {"right drafts only", kSamples, [](Sight& s) { keep(s, s.tree.tokens[0] == s.own); }},
    {"wrong drafts only", kSamples / 4, [](Sight& s) { keep(s, s.tree.tokens[0] != s.own); }},
    {"one outcome only", kSamples / 4, [](Sight& s) { keep(s, s.own == 0); }},
    {"against the target", kSamples,
     [](Sight& s) {
       // What it is not going to draw, and at even positions also what it is, at a low claim.
       s.tree.clear();
       s.tree.add(1 - s.own, -1, 0.9F);
       if (s.position % 2 == 0) s.tree.add(s.own, -1, 0.1F);
     }},
}};

class TwoTokenTarget {
 public:
  TwoTokenTarget() {
    first_ = logits(kTarget);
    for (std::size_t v = 0; v < next_.size(); ++v) next_[v] = logits(kNext[v]);
  }
  [[nodiscard]] std::span<const float> after(TokenId last) const {
    return last < 0 ? first_ : next_[static_cast<std::size_t>(last)];
  }

 private:
  static std::array<float, kVocab> logits(const Law& law) {
    return {static_cast<float>(std::log(law[0])), static_cast<float>(std::log(law[1]))};
  }
  std::array<float, kVocab> first_{};
  std::array<std::array<float, kVocab>, kVocab> next_{};
};

SamplingParams params() {
  SamplingParams params;
  params.max_tokens = kLength;
  return params;
}

using Output = std::array<TokenId, kLength>;

Output decode_plainly(const TwoTokenTarget& target, std::uint64_t seed) {
  Sampler sampler(params(), seed, {}, kVocab, nullptr);
  Output output{};
  TokenId last = -1;
  for (TokenId& token : output) {
    token = last = sampler.sample(target.after(last));
    sampler.accept(token);
  }
  return output;
}

/// By seed, computed once.
const std::vector<Output>& plain_outputs() {
  static const std::vector<Output> outputs = [] {
    const TwoTokenTarget target;
    std::vector<Output> all;
    for (int i = 0; i < kSamples; ++i) {
      all.push_back(decode_plainly(target, static_cast<std::uint64_t>(i)));
    }
    return all;
  }();
  return outputs;
}

/// Drafts come from draws of their own; so does the claim, half of which is about nothing.
Output decode_controlled(const TwoTokenTarget& target, std::uint64_t seed, Rule rule,
                         Random& random, Verification& scratch, std::int64_t* accepted) {
  Sampler sampler(params(), seed, {}, kVocab, nullptr);
  Output output{};
  std::size_t size = 0;
  TokenId last = -1;
  Sight sight;
  while (size < output.size()) {
    sight.tree.clear();
    const auto claim = static_cast<float>(random.unit());
    sight.tree.add(draw(kDraft, random), -1, claim);
    sight.tree.add(draw(kDraft, random), 0, claim * 0.5F);
    sight.own = sampler.sample(target.after(last));
    sight.position = static_cast<int>(size);
    rule(sight);
    const LogitsRow rows = [&](std::int32_t node) {
      return target.after(node < 0 ? last : sight.tree.tokens[static_cast<std::size_t>(node)]);
    };
    verify_tree(sight.tree, rows, sampler, scratch);
    for (const TokenId token : scratch.tokens) output[size++] = last = token;
    *accepted += static_cast<std::int64_t>(scratch.path.size());
  }
  return output;
}

class ControlledWalk : public ::testing::TestWithParam<std::size_t> {};

TEST_P(ControlledWalk, EmitsWhatPlainDecodingEmits) {
  const auto& [name, samples, rule] = kRules[GetParam()];
  const TwoTokenTarget target;
  Random random(GetParam() + 1);
  Verification scratch;
  Counts first{};
  std::array<Counts, kVocab> second{};
  std::array<Counts, kVocab> third{};
  std::int64_t accepted = 0;
  for (int i = 0; i < samples; ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    const Output output = decode_controlled(target, seed, rule, random, scratch, &accepted);
    ASSERT_EQ(output, plain_outputs()[static_cast<std::size_t>(i)]) << name << ", seed " << seed;
    const auto a = static_cast<std::size_t>(output[0]);
    const auto b = static_cast<std::size_t>(output[1]);
    ++first[a];
    ++second[a][b];
    ++third[b][static_cast<std::size_t>(output[2])];
  }
  EXPECT_GT(p_value(kTarget, first), 0.01) << name << " " << first[0];
  EXPECT_NEAR(static_cast<double>(first[0]) / samples, 0.7, 3 / std::sqrt(samples)) << name;
  for (std::size_t v = 0; v < kVocab; ++v) {
    EXPECT_GT(p_value(kNext[v], second[v]), 0.01) << name;
    EXPECT_GT(p_value(kNext[v], third[v]), 0.01) << name;
  }
  std::cout << name << ": " << samples << " samples, " << first[0] << " of them 0, " << accepted
            << " drafted tokens accepted\n";
  // The rules differ in what they verify, else nothing is tested.
  if (std::string(name) == "wrong drafts only") {
    EXPECT_EQ(accepted, 0);
  } else {
    EXPECT_GT(accepted, samples / 4);
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, ControlledWalk, ::testing::Range<std::size_t>(0, kRules.size()));

}  // namespace
}  // namespace smartspec::verify_test
