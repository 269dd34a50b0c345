// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Drawing and walking allocate nothing once warm. Sanitizers bring their own operator new, so this
// file is left out there.
#include <gtest/gtest.h>

#include "allocation_counter.hpp"
#include "smartspec/sampler.hpp"
#include "verify/support.hpp"

namespace smartspec::verify_test {
namespace {

using smartspec::testing::allocations;

TEST(Allocation, NoneInSteadyState) {
  constexpr int kVocab = 500;
  Random random(61);
  SamplingParams params;
  params.max_tokens = 100000;
  params.top_k = 200;
  params.top_p = 0.9F;
  params.repetition_penalty = 1.1F;
  params.frequency_penalty = 0.1F;
  params.bad_words = {{1, 2}};
  Sampler sampler(params, 3, {}, kVocab, nullptr);
  const auto row = random_row(random, kVocab, Shape::kSmooth);
  const auto chain = random.tokens(4, kVocab);
  const auto tree = TokenTree::chain(chain);
  const LogitsRow rows = [&](std::int32_t) { return std::span<const float>(row); };
  Verification out;
  std::vector<TokenId> top;
  const auto work = [&](int steps) {
    for (int i = 0; i < steps; ++i) {
      verify_tree(tree, rows, sampler, out);
      top.clear();
      sampler.sample_top(row, 4, top, nullptr);
      const auto mark = sampler.mark();
      sampler.accept(top.front());
      sampler.rewind(mark);
    }
  };
  work(2000);
  const auto before = allocations.load();
  work(40);
  EXPECT_LE(allocations.load() - before, 1);  // the list of emitted tokens may grow once
}

}  // namespace
}  // namespace smartspec::verify_test
