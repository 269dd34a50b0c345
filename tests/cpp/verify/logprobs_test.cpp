// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>

#include "smartspec/error.hpp"
#include "smartspec/sampler.hpp"
#include "verify/oracle.hpp"
#include "verify/support.hpp"

namespace smartspec::verify_test {
namespace {

TEST(Logprobs, MatchASortedSoftmax) {
  Random random(31);
  for (int i = 0; i < 2000 / kShrink; ++i) {
    const int vocab = 1 + random.below(150);
    const auto shape = static_cast<Shape>(i % static_cast<int>(Shape::kCount));
    const auto row = random_row(random, vocab, shape);
    const TokenId chosen = random.token(vocab);
    const int num_top = random.below(vocab + 3);
    const auto got = compute_logprobs(row, chosen, num_top);

    long double sum = 0;
    for (const float l : row) sum += std::exp(static_cast<long double>(l));
    std::vector<TokenId> ids(static_cast<std::size_t>(vocab));
    for (int v = 0; v < vocab; ++v) ids[static_cast<std::size_t>(v)] = v;
    const auto logit = [&](TokenId v) { return row[static_cast<std::size_t>(v)]; };
    std::stable_sort(ids.begin(), ids.end(),
                     [&](TokenId a, TokenId b) { return logit(a) > logit(b); });
    ids.resize(static_cast<std::size_t>(std::min(num_top, vocab)));
    ids.insert(ids.begin(), chosen);
    ASSERT_EQ(got.size(), ids.size());
    for (std::size_t k = 0; k < ids.size(); ++k) {
      ASSERT_EQ(got[k].token, ids[k]);
      const auto above =
          std::count_if(row.begin(), row.end(), [&](float l) { return l > logit(ids[k]); });
      ASSERT_EQ(got[k].rank, above + 1);
      const auto expected =
          static_cast<double>(static_cast<long double>(logit(ids[k])) - std::log(sum));
      if (std::isinf(expected)) {
        ASSERT_EQ(got[k].logprob, -kInf);
      } else {
        ASSERT_NEAR(static_cast<double>(got[k].logprob), expected,
                    2e-7 * std::abs(expected) + 1e-7);
      }
    }
  }
}

TEST(Logprobs, LargeLogitsDoNotOverflow) {
  const auto got = compute_logprobs(std::vector<float>{3e38F, 3e38F, -3e38F}, 1, 2);
  EXPECT_NEAR(static_cast<double>(got[0].logprob), 0.0, 1.0);  // float spacing there hides log 2
  EXPECT_EQ(got[0].rank, 1);
  EXPECT_EQ(got[1].token, 0);
}

TEST(Logprobs, RefusesMisuse) {
  const std::vector<float> row{0.0F, 1.0F};
  EXPECT_THROW(compute_logprobs(row, 2, 0), std::invalid_argument);
  EXPECT_THROW(compute_logprobs(row, -1, 0), std::invalid_argument);
  EXPECT_THROW(compute_logprobs(row, 0, -1), std::invalid_argument);
  EXPECT_THROW(compute_logprobs({}, 0, 0), std::invalid_argument);
  EXPECT_THROW(compute_logprobs(std::vector<float>{NAN, 0.0F}, 0, 0), Error);
  EXPECT_THROW(compute_logprobs(std::vector<float>{-kInf, -kInf}, 0, 0), Error);
}

}  // namespace
}  // namespace smartspec::verify_test
