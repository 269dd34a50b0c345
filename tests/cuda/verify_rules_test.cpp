// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The rules with draft probabilities: the naive implementation is exact (golden values, output
// law), the kernel decides like it for given uniform numbers, and its own numbers give the law.
#include <gtest/gtest.h>

#include <string>

#include "common/launch.cuh"
#include "kernels/verify/rules.cuh"
#include "schedule.hpp"
#include "verify_oracle.hpp"
#include "verify_rules_oracle.hpp"

namespace smartspec::test {
namespace {

using cuda::VerifyRule;
using cuda::verification::RuleKernel;
using cuda::verification::RuleState;
using cuda::verification::SeededUniforms;
using cuda::verification::shared_shape;

/// Uniform numbers by the hundred, known to both sides.
struct GivenUniforms {
  const double* values;  // [num_sequences, kMaxTreeNodes + 1]
  static constexpr std::int64_t kStride = cuda::kMaxTreeNodes + 1;
  template <class AnySequence>
  [[nodiscard]] double accept(const AnySequence& s, std::int32_t node) const {
    return values[s.index * kStride + node + 1];
  }
  template <class AnySequence>
  [[nodiscard]] double residual(const AnySequence& s) const {
    return values[s.index * kStride];
  }
};

template <int kThreads, class Uniforms>
void run_small(const cuda::Verify& v, const Uniforms& uniforms) {
  const auto run = [&]<DType kType>() {
    const auto shape = shared_shape(v, sizeof(RuleState));
    const RuleKernel<kType, kThreads, Uniforms> kernel{v, shape, false, uniforms};
    cuda::launch({v.num_sequences, 1, shape.bytes}, nullptr, kernel);
  };
  if (v.dtype == DType::kFloat32) return run.template operator()<DType::kFloat32>();
  run.template operator()<DType::kBFloat16>();
}

/// Draft laws of a Pass as the kernel reads them.
struct Drafts {
  std::vector<float> probs;
  std::vector<std::int32_t> rows;  // [rows of logits]
  void add(const Law& law) {
    rows.push_back(law.empty() ? -1 : static_cast<std::int32_t>(count_));
    if (law.empty()) return;
    ++count_;
    for (const double x : law) probs.push_back(static_cast<float>(x));
  }
  void attach(cuda::Verify& v) const {
    v.draft_probs = probs.data();
    v.draft_rows = rows.data();
  }

 private:
  std::size_t count_ = 0;
};

/// A tree whose siblings are drawn without replacement from a random law per node.
void draft_tree(Random& random, Pass& pass, Drafts& drafts, Request& r, int max_nodes, bool chain) {
  const int vocab = pass.vocab;
  std::vector<Law> left;
  const int nodes = random.below(max_nodes + 1);
  const auto add_law = [&] {
    Law law = random.chance(0.15) ? Law{} : random_law(random, vocab, 0.3);
    for (double& x : law) x = static_cast<float>(x);
    drafts.add(law);
    left.push_back(law.empty() ? normalised(Law(static_cast<std::size_t>(vocab), 1.0), vocab)
                               : law);
  };
  r.first_row = static_cast<std::int32_t>(pass.rows.values.size());
  add_law();
  for (int n = 0; n < nodes; ++n) {
    const int parent = chain || random.chance(0.4) ? n - 1 : random.below(n + 1) - 1;
    Law& law = left[static_cast<std::size_t>(parent + 1)];
    double mass = 0.0;
    for (const double x : law) mass += x;
    if (mass <= 1e-12) break;
    const TokenId token = sample(random, normalised(law, mass));
    law[static_cast<std::size_t>(token)] = 0.0;
    r.tree.add(token, parent);
    add_law();
  }
}

SamplingParams rule_params(Random& random, int vocab) {
  SamplingParams p = verify_test::random_params(random, vocab);
  SamplingParams result;
  result.temperature = random.chance(0.2) ? 0.0F : p.temperature == 0.0F ? 1.0F : p.temperature;
  result.top_p = p.top_p;
  result.top_k = p.top_k;
  result.min_p = p.min_p;
  result.presence_penalty = p.presence_penalty;
  result.frequency_penalty = p.frequency_penalty;
  result.repetition_penalty = p.repetition_penalty;
  result.logit_bias = p.logit_bias;
  result.max_tokens = 1000;
  return result;
}

Pass random_pass(Random& random, Drafts& drafts, int vocab, int num_requests, int max_nodes,
                 bool chain) {
  Pass pass;
  pass.vocab = vocab;
  const DType dtype = random.chance(0.5) ? DType::kFloat32 : DType::kBFloat16;
  pass.rows = {dtype, vocab, vocab + random.below(4), 0, {}, {}};
  for (int i = 0; i < num_requests; ++i) {
    Request r;
    r.params = rule_params(random, vocab);
    r.seed = random.next();
    r.prompt = random.tokens(1 + random.below(3), vocab);
    r.output = random.tokens(random.below(3), vocab);
    draft_tree(random, pass, drafts, r, max_nodes, chain);
    for (std::size_t row = static_cast<std::size_t>(r.first_row); row < drafts.rows.size(); ++row) {
      // Near the draft's law, so that paths are accepted.
      std::vector<float> logits = verify_test::random_row(random, vocab, Shape::kSmooth);
      if (drafts.rows[row] >= 0) {
        const auto at = static_cast<std::size_t>(drafts.rows[row]) * logits.size();
        for (std::size_t v = 0; v < logits.size(); ++v) {
          const float q = drafts.probs[at + v];
          logits[v] = 0.3F * logits[v] + (q > 0.0F ? std::log(q) : -9.0F);
        }
      }
      pass.rows.add(logits, 0.0F);
    }
    pass.requests.push_back(r);
  }
  return pass;
}

/// The laws after every node of a request: the CPU sampler's processed distribution.
DraftedTree laws_of(const Pass& pass, const Drafts& drafts, const Request& r) {
  DraftedTree result{r.tree, {}, {}};
  Sampler sampler(r.params, r.seed, r.prompt, pass.vocab, nullptr);
  for (const TokenId t : r.output) sampler.accept(t);
  for (std::int32_t n = -1; n < r.tree.size(); ++n) {
    const std::int32_t mark = sampler.mark();
    for (const TokenId t : verify_test::path_prefix(r.tree, n, {})) sampler.accept(t);
    const auto row = static_cast<std::size_t>(r.first_row + 1 + n);
    Law law(static_cast<std::size_t>(pass.vocab), 0.0);
    if (sampler.is_greedy()) {
      law[static_cast<std::size_t>(sampler.sample(pass.rows.values[row]))] = 1.0;
    } else {
      std::vector<TokenId> tokens;
      std::vector<float> scores;
      sampler.sample_top(pass.rows.values[row], pass.vocab, tokens, &scores);
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        law[static_cast<std::size_t>(tokens[i])] = static_cast<double>(scores[i]);
      }
    }
    result.target.push_back(law);
    Law draft;
    if (drafts.rows[row] >= 0) {
      const auto at = static_cast<std::ptrdiff_t>(drafts.rows[row]) * pass.vocab;
      draft.assign(drafts.probs.begin() + at, drafts.probs.begin() + at + pass.vocab);
    }
    result.draft.push_back(draft);
    sampler.rewind(mark);
  }
  return result;
}

/// The row without edited tokens, then those with entries, then the rest of the path.
std::vector<TokenId> draw_order(const Pass& pass, const Request& r, std::size_t s,
                                std::int32_t node) {
  std::vector<TokenId> edited(pass.count_tokens.begin() + pass.count_offsets[s],
                              pass.count_tokens.begin() + pass.count_offsets[s + 1]);
  const auto is_edited = [&](TokenId v) {
    return std::find(edited.begin(), edited.end(), v) != edited.end();
  };
  const SamplingParams& p = r.params;
  if (p.repetition_penalty != 1.0F || p.frequency_penalty != 0.0F || p.presence_penalty != 0.0F) {
    for (const TokenId t : verify_test::path_prefix(r.tree, node, {})) {
      if (!is_edited(t)) edited.push_back(t);
    }
  }
  std::vector<TokenId> order;
  for (TokenId v = 0; v < pass.vocab; ++v) {
    if (!is_edited(v)) order.push_back(v);
  }
  order.insert(order.end(), edited.begin(), edited.end());
  return order;
}

struct Tally {
  int compared = 0;
  int close = 0;
  int accepted = 0;
};

void check_decisions(const Pass& pass, const Drafts& drafts, VerifyRule rule,
                     const std::vector<double>& uniforms, Tally& tally) {
  for (std::size_t s = 0; s < pass.requests.size(); ++s) {
    const Request& r = pass.requests[s];
    SCOPED_TRACE("sequence " + std::to_string(s));
    const DraftedTree drafted = laws_of(pass, drafts, r);
    const double* own = uniforms.data() + s * static_cast<std::size_t>(GivenUniforms::kStride);
    const Decision expected = decide(
        naive_endings(drafted, rule), rule, [&](std::int32_t n) { return own[n + 1]; }, own[0],
        [&](std::int32_t node) { return draw_order(pass, r, s, node); });
    if (expected.margin < 2e-5) {
      ++tally.close;
      continue;
    }
    ++tally.compared;
    const std::vector<TokenId> tokens = verify_test::path_prefix(r.tree, expected.node, {});
    const auto accepted = static_cast<std::int32_t>(tokens.size());
    tally.accepted += accepted;
    ASSERT_EQ(pass.status[s], 0);
    ASSERT_EQ(pass.num_accepted[s], accepted);
    const std::size_t at = s * static_cast<std::size_t>(pass.path_stride);
    if (accepted > 0) {
      ASSERT_EQ(pass.path[at + tokens.size() - 1], expected.node);
    }
    for (std::size_t i = 0; i < tokens.size(); ++i) ASSERT_EQ(pass.tokens[at + i], tokens[i]);
    ASSERT_EQ(pass.tokens[at + tokens.size()], expected.token);
    std::int32_t node = expected.node;
    for (std::size_t i = tokens.size() + 1; i-- > 0;) {
      const TokenId token = pass.tokens[at + i];
      const auto& raw = pass.rows.values[static_cast<std::size_t>(r.first_row + 1 + node)];
      const float exact = compute_logprobs(raw, token, 0).front().logprob;
      ASSERT_NEAR(pass.logprobs[at + i], exact, 2e-5) << i;
      if (node >= 0) node = r.tree.parents[static_cast<std::size_t>(node)];
    }
  }
}

/// Random passes by kThreads with given numbers, some of them 0 or next to 1.
template <int kThreads>
void check_random(int passes, int max_vocab, int max_nodes, std::uint64_t seed, int rare) {
  Random random(seed);
  Tally tally;
  for (int i = 0; i < passes; ++i) {
    SCOPED_TRACE("pass " + std::to_string(i));
    const VerifyRule rule = kRules[i % 3];
    Drafts drafts;
    const int vocab = 1 + random.below(max_vocab);
    Pass pass = random_pass(random, drafts, vocab, 3, max_nodes, rule != VerifyRule::kTraversal);
    cuda::Verify v = pass.params(true);
    v.rule = rule;
    drafts.attach(v);
    std::vector<double> uniforms(3 * static_cast<std::size_t>(GivenUniforms::kStride));
    for (double& u : uniforms) {
      u = random.chance(0.02) ? 0.0 : random.chance(0.02) ? 1.0 - 0x1p-53 : random.unit();
    }
    run_small<kThreads>(v, GivenUniforms{uniforms.data()});
    check_decisions(pass, drafts, rule, uniforms, tally);
    if (::testing::Test::HasFatalFailure()) return;
  }
  EXPECT_LT(tally.close * rare, tally.compared);
  EXPECT_GT(tally.accepted, tally.compared / 4);
}

TEST(CudaVerifyRules, DecidesLikeTheOracle) {
  check_random<32>(1500 / verify_test::kShrink, 30, 8, 1, 100);
}
TEST(CudaVerifyRules, DecidesLikeTheOracleOnLargerRows) {
  check_random<128>(60 / std::min(verify_test::kShrink, 6), 3000, 6, 2, 20);  // more edges
}

// What an almost certain first sibling leaves of Q is far below the rounding of 1 - Q.
TEST(CudaVerifyRules, SiblingsOfAnAlmostCertainDraft) {
  Random random(7);
  Tally tally;
  for (int i = 0; i < 20; ++i) {
    Pass pass;
    Drafts drafts;
    pass.vocab = 4;
    pass.rows = {DType::kFloat32, 4, 4, 0, {}, {}};
    std::vector<double> uniforms;
    for (int s = 0; s < 20; ++s) {
      Request r;
      r.params.max_tokens = 1000;
      r.prompt = {0};
      r.first_row = static_cast<std::int32_t>(pass.rows.values.size());
      for (const TokenId t : {0, 1, 2}) r.tree.add(t, -1);
      for (int row = 0; row < 4; ++row) {
        pass.rows.add(verify_test::random_row(random, 4, Shape::kSmooth), 0.0F);
        drafts.add(Law{1.0 - 9e-8, 6e-8, 2e-8, 1e-8});
      }
      pass.requests.push_back(r);
    }
    cuda::Verify v = pass.params(true);
    v.rule = VerifyRule::kTraversal;
    drafts.attach(v);
    for (int j = 0; j < 20 * GivenUniforms::kStride; ++j) uniforms.push_back(random.unit());
    run_small<32>(v, GivenUniforms{uniforms.data()});
    check_decisions(pass, drafts, v.rule, uniforms, tally);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(tally.compared, 390);
}

TEST(CudaVerifyRules, TheKernelsNumbersAreThoseOfTheSeed) {
  Random random(6);
  for (int i = 0; i < 90 / std::min(verify_test::kShrink, 3); ++i) {
    const VerifyRule rule = kRules[i % 3];
    Drafts drafts;
    Pass pass = random_pass(random, drafts, 50, 3, 8, rule != VerifyRule::kTraversal);
    cuda::Verify v = pass.params(true);
    v.rule = rule;
    drafts.attach(v);
    std::vector<double> uniforms;
    for (std::size_t s = 0; s < 3; ++s) {
      uniforms.push_back(seeded_residual(pass.seeds[s], pass.positions[s]));
      for (std::int32_t n = 0; n < cuda::kMaxTreeNodes; ++n) {
        uniforms.push_back(seeded_accept(pass.seeds[s], pass.positions[s], n));
      }
    }
    run_small<32>(v, GivenUniforms{uniforms.data()});
    const std::vector<TokenId> tokens = pass.tokens;
    const std::vector<std::int32_t> path = pass.path;
    run_small<32>(v, SeededUniforms{});
    EXPECT_EQ(pass.tokens, tokens);
    EXPECT_EQ(pass.path, path);
  }
}

TEST(CudaVerifyRules, TheLaunchedKernelInAnyOrder) {
  Random random(5);
  for (const VerifyRule rule : kRules) {
    Drafts drafts;
    Pass pass = random_pass(random, drafts, 900, 2, 6, rule != VerifyRule::kTraversal);
    cuda::Verify v = pass.params(true);
    v.rule = rule;
    drafts.attach(v);
    std::vector<TokenId> tokens;
    emulation::for_each_schedule(1, [&] {
      pass.run(v);
      if (tokens.empty()) tokens = pass.tokens;
      EXPECT_EQ(pass.tokens, tokens);
    });
    run_small<512>(v, SeededUniforms{});
    EXPECT_EQ(pass.tokens, tokens);
  }
}

// A row that cannot be drawn from ends the path there; without draft laws all drafts are points.
TEST(CudaVerifyRules, FaultyRowsEndThePath) {
  for (const VerifyRule rule : kRules) {
    Pass pass;
    pass.vocab = 40;
    pass.rows = {DType::kFloat32, 40, 40, 0, {}, {}};
    Request r;
    const std::vector<TokenId> chain = {3, 4, 5};
    r.tree = TokenTree::chain(chain);
    for (const TokenId t : {3, 4, 5, 6}) {
      std::vector<float> row(40, -90.0F);
      row[static_cast<std::size_t>(t)] = 10.0F;
      if (t == 5) row.assign(40, -std::numeric_limits<float>::infinity());
      pass.rows.add(row, 0.0F);
    }
    pass.requests = {r};
    cuda::Verify v = pass.params(true);
    v.rule = rule;
    pass.run(v);
    EXPECT_EQ(pass.status[0], 2);
    EXPECT_EQ(pass.num_accepted[0], 2);
    EXPECT_EQ(pass.tokens[0], 3);
    EXPECT_EQ(pass.tokens[1], 4);
    EXPECT_EQ(pass.tokens[2], -7);
  }
}

}  // namespace
}  // namespace smartspec::test
