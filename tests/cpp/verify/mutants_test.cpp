// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Planted faults: each must be caught by the checks that the product passes (checks.hpp), and by
// the one that is meant to see it. Faults in the rule:
//    1 noise shared by all positions                    pairs
//    2 noise shared by neighboring seeds                seeds
//    3 noise shared by neighboring tokens               first
//    4 position off by one: the first two coincide      pairs
//    5 uniform that can be 0                            bounds
//    6 uniform that can be 1                            bounds
//    7 uniform of 4 bits                                first
//    8 noise of the wrong sign (Gumbel minimum)         first
//    9 temperature applied to the noise                 first
//   10 temperature not applied                          first
//   11 ties to the last token: >= for >                 oracle
//   12 top-k off by one                                 first
//   13 top-p off by one: > for >=                       first
//   14 top-p of unnormalised masses                     first
//   15 repetition penalty always divides                first
//   16 child found by depth, not by parent              plain
//   17 search bound too tight by 10 %                   oracle
// Faults in the walk:
//   18 penalties of the root at every node              middle
//   19 rejected token drawn again                       first
//   20 bonus drawn from the parent's row                bonus
//   21 does not stop inside an accepted run             plain
//   22 nodes draw from a stream of their own            plain (the law is right, the seed is not)
#include <gtest/gtest.h>

#include <functional>

#include "verify/checks.hpp"

namespace smartspec::verify_test {
namespace {

struct Exhaustive : verify::StandardRule {  // computes every key: faults may break the bound
  static constexpr bool kPrune = false;
};
struct SharedPositions : Exhaustive {
  static constexpr std::int64_t position(std::int64_t, std::int64_t) { return 0; }
};
struct SharedSeeds : Exhaustive {
  static constexpr std::array<std::uint32_t, 2> key(std::uint64_t seed) {
    return StandardRule::key(seed / 2);
  }
};
struct SharedTokens : Exhaustive {
  static constexpr std::uint32_t noise_index(TokenId v) {
    return static_cast<std::uint32_t>(v / 2);
  }
};
struct PositionOffByOne : Exhaustive {
  static constexpr std::int64_t position(std::int64_t prompt, std::int64_t output) {
    return prompt + (output > 0 ? output - 1 : 0);
  }
};
struct UniformZero : Exhaustive {
  static constexpr double uniform(std::uint32_t high, std::uint32_t low) {
    return StandardRule::uniform(high, low) - 0x1p-53;
  }
};
struct UniformOne : Exhaustive {
  static constexpr double uniform(std::uint32_t high, std::uint32_t low) {
    return StandardRule::uniform(high, low) + 0x1p-53;
  }
};
struct CoarseUniform : Exhaustive {
  static constexpr double uniform(std::uint32_t high, std::uint32_t) {
    return (static_cast<double>(high >> 28) + 0.5) / 16.0;
  }
};
struct WrongSign : Exhaustive {
  static double gumbel(double u) { return -StandardRule::gumbel(u); }
};
struct TemperedNoise : Exhaustive {
  static constexpr double perturbed(double x, double g, double t) { return x + g / t; }
};
struct Untempered : Exhaustive {
  static constexpr double perturbed(double x, double g, double t) { return x * t + g; }
};
struct LastTie : Exhaustive {
  static constexpr bool better(double key_a, TokenId a, double key_b, TokenId b) {
    return key_a > key_b || (key_a == key_b && a > b);
  }
};
struct TopKOffByOne : Exhaustive {
  static constexpr std::int32_t top_k(std::int32_t k) { return k + 1; }
};
struct TopPOffByOne : Exhaustive {
  static constexpr bool reached(std::uint64_t mass, std::uint64_t target) { return mass > target; }
};
struct TopPUnnormalised : Exhaustive {
  static std::uint64_t top_p_target(double top_p, std::uint64_t total) {
    const auto target = static_cast<std::uint64_t>(top_p * 0x1p+40);
    return target < total ? target : total;
  }
};
struct AlwaysDivides : Exhaustive {
  static constexpr float repeated(float logit, float penalty) { return logit / penalty; }
};
struct ChildByDepth : Exhaustive {
  static std::int32_t find_child(const TokenTree& tree, std::int32_t node, TokenId token) {
    const std::int32_t depth = node < 0 ? 0 : tree.depths[static_cast<std::size_t>(node)] + 1;
    for (std::int32_t i = 0; i < tree.size(); ++i) {
      const auto n = static_cast<std::size_t>(i);
      if (tree.depths[n] == depth && tree.tokens[n] == token) return i;
    }
    return -1;
  }
};
struct TightBound : verify::StandardRule {
  static constexpr double kBoundSlack = -0.1;
};

/// A walk with one fault; the sampler is sound.
template <class Fault>
class FaultyWalk final : public System {
 public:
  FaultyWalk(const SamplingParams& params, std::uint64_t seed, std::span<const TokenId> prompt,
             int vocab)
      : sampler_(params, seed, prompt, vocab, nullptr),
        other_(params, ~seed, prompt, vocab, nullptr) {}

  void verify(const TokenTree& tree, const LogitsRow& rows, Verification& out) override {
    out.clear();
    std::int32_t node = -1;
    while (true) {
      std::int32_t source = node;
      if constexpr (Fault::kParentRow) {
        const bool leaf = node >= 0 && std::find(tree.parents.begin(), tree.parents.end(), node) ==
                                           tree.parents.end();
        if (leaf) source = tree.parents[static_cast<std::size_t>(node)];
      }
      const auto row = rows(source);
      TokenId token = sampler_.sample(row);
      if (Fault::kOwnStream && node >= 0) token = other_.sample(row);
      std::int32_t child = tree.find_child(node, token);
      if constexpr (Fault::kRedraws) {
        if (child < 0) token = other_.sample(row);
        child = tree.find_child(node, token) < 0 ? -1 : child;
      }
      out.tokens.push_back(token);
      const auto reason = sampler_.accept(token);
      other_.accept(token);
      if (!Fault::kRunsOn || child < 0) out.finish_reason = reason;
      if (child >= 0) out.path.push_back(child);
      if (child < 0 || out.finish_reason != FinishReason::kNone) return;
      node = child;
    }
  }
  TokenId sample(std::span<const float> row) override { return sampler_.sample(row); }

 private:
  verify::BasicSampler<verify::StandardRule> sampler_;
  verify::BasicSampler<verify::StandardRule> other_;  // independent noise
};
struct NoFault {
  static constexpr bool kParentRow = false, kRedraws = false, kRunsOn = false, kOwnStream = false;
};
struct ParentRow : NoFault {
  static constexpr bool kParentRow = true;
};
struct Redraws : NoFault {
  static constexpr bool kRedraws = true;
};
struct RunsOn : NoFault {
  static constexpr bool kRunsOn = true;
};
struct OwnStream : NoFault {
  static constexpr bool kOwnStream = true;
};

/// One penalty vector per request, taken at the root, for all nodes of its tree.
class FrozenPenalties final : public System {
 public:
  FrozenPenalties(const SamplingParams& params, std::uint64_t seed, std::span<const TokenId> prompt,
                  int vocab)
      : oracle_{params, seed, {prompt.begin(), prompt.end()}, nullptr, {}},
        sampler_(without_penalties(params), seed, prompt, vocab, nullptr) {}

  void verify(const TokenTree& tree, const LogitsRow& rows, Verification& out) override {
    std::vector<float> row;
    verify::walk<verify::StandardRule>(
        tree,
        [&](std::int32_t node) {
          row = oracle_.process(rows(node));
          return std::span<const float>(row);
        },
        sampler_, out);
    for (const TokenId v : out.tokens) oracle_.accept(v);
  }
  TokenId sample(std::span<const float> row) override {
    return sampler_.sample(oracle_.process(row));
  }

 private:
  static SamplingParams without_penalties(SamplingParams p) {
    p.repetition_penalty = 1.0F;
    p.frequency_penalty = 0.0F;
    p.presence_penalty = 0.0F;
    p.logit_bias.clear();
    p.bad_words.clear();
    return p;
  }
  Oracle oracle_;
  verify::BasicSampler<verify::StandardRule> sampler_;
};

constexpr Scale kScale{4000, 400};

// The scaffolds without a fault pass: what is caught below is the fault, not the scaffold.
TEST(Mutants, ScaffoldsPass) {
  for (const auto& f : run_checks(subject<RuleSystem<Exhaustive>>(), kScale))
    ADD_FAILURE() << f.check;
  for (const auto& f : run_checks(subject<RuleSystem<verify::StandardRule>>(), kScale)) {
    ADD_FAILURE() << f.check;
  }
  for (const auto& f : run_checks(subject<FaultyWalk<NoFault>>(), kScale)) ADD_FAILURE() << f.check;
}

struct Mutant {
  const char* name;
  const char* seen_by;
  Subject faulty;
};

class Planted : public ::testing::TestWithParam<Mutant> {};

TEST_P(Planted, IsCaught) {
  std::string seen;
  bool caught = false;
  for (const auto& f : run_checks(GetParam().faulty, kScale)) {
    seen += f.check + " (" + f.detail + "); ";
    caught = caught || f.check == GetParam().seen_by;
  }
  EXPECT_TRUE(caught) << "expected " << GetParam().seen_by << ", seen by: " << seen;
}

template <class Rule>
constexpr Mutant rule(const char* name, const char* seen_by) {
  return {name, seen_by, subject<RuleSystem<Rule>, Rule>()};
}
template <class AnySystem>
constexpr Mutant system(const char* name, const char* seen_by) {
  return {name, seen_by, subject<AnySystem>()};
}

INSTANTIATE_TEST_SUITE_P(
    Mutants, Planted,
    ::testing::Values(
        rule<SharedPositions>("SharedPositions", "pairs"),
        rule<SharedSeeds>("SharedSeeds", "seeds"), rule<SharedTokens>("SharedTokens", "first"),
        rule<PositionOffByOne>("PositionOffByOne", "pairs"),
        rule<UniformZero>("UniformZero", "bounds"), rule<UniformOne>("UniformOne", "bounds"),
        rule<CoarseUniform>("CoarseUniform", "first"), rule<WrongSign>("WrongSign", "first"),
        rule<TemperedNoise>("TemperedNoise", "first"), rule<Untempered>("Untempered", "first"),
        rule<LastTie>("LastTie", "oracle"), rule<TopKOffByOne>("TopKOffByOne", "first"),
        rule<TopPOffByOne>("TopPOffByOne", "first"),
        rule<TopPUnnormalised>("TopPUnnormalised", "first"),
        rule<AlwaysDivides>("AlwaysDivides", "first"), rule<ChildByDepth>("ChildByDepth", "plain"),
        rule<TightBound>("TightBound", "oracle"),
        system<FrozenPenalties>("FrozenPenalties", "middle"),
        system<FaultyWalk<Redraws>>("Redraws", "first"),
        system<FaultyWalk<ParentRow>>("ParentRow", "bonus"),
        system<FaultyWalk<RunsOn>>("RunsOn", "plain"),
        system<FaultyWalk<OwnStream>>("OwnStream", "plain")),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace smartspec::verify_test
