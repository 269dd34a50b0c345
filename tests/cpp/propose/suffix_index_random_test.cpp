// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Random calls on SuffixIndex against the naive model: 8,000 operations and about 96,000 lookups
// per configuration (a third of that under AddressSanitizer).
#include <gtest/gtest.h>

#include <cstdio>
#include <ostream>
#include <random>
#include <string>

#include "propose/suffix_index_driver.hpp"

namespace smartspec {
namespace {

using suffix_test::DriverOptions;
using suffix_test::IndexDriver;
using suffix_test::ModelFailure;

#ifdef __SANITIZE_ADDRESS__
constexpr int kOperations = 2'500;
#else
constexpr int kOperations = 8'000;
#endif

struct RandomSource {
  std::mt19937* generator;
  std::uint32_t operator()(std::uint32_t bound) const {
    return static_cast<std::uint32_t>((*generator)() % bound);
  }
};

struct Case {
  std::string name;
  std::size_t generation_bytes;
  bool freeze;
  bool background;
  std::int64_t min_evictions;
};

void PrintTo(const Case& test, std::ostream* out) { *out << test.name; }

class SuffixIndexRandom : public ::testing::TestWithParam<Case> {};

TEST_P(SuffixIndexRandom, EqualsTheModel) {
  const Case& test = GetParam();
  SuffixIndexOptions options;
  options.vocab_size = suffix_test::kVocabSize;
  options.max_bytes = 1 << 20;
  options.generation_bytes = test.generation_bytes;
  options.freeze = test.freeze;
  options.background = test.background;
  SuffixIndex index(options);
  std::mt19937 generator(7);
  IndexDriver driver(index, RandomSource{&generator}, DriverOptions{});
  for (int i = 0; i < kOperations; ++i) {
    try {
      driver.operation();
    } catch (const ModelFailure& failure) {
      FAIL() << test.name << " operation " << i << ": " << failure.what();
    }
  }
  ASSERT_NO_THROW(driver.finish());
  const auto& seen = driver.coverage();
  EXPECT_GT(seen.lookups, kOperations * 10);
  EXPECT_GT(seen.drafts, kOperations / 4);
  EXPECT_GT(seen.drafted_nodes, kOperations / 2);
  EXPECT_GT(seen.long_matches, kOperations / 20);
  EXPECT_GT(seen.forgotten, kOperations / 400);
  EXPECT_GT(seen.refused, kOperations / 30);
  EXPECT_GT(seen.repeats, kOperations / 40);
  EXPECT_GT(seen.clears, 0);
  EXPECT_GT(driver.model().num_seals(), kOperations / 1000);
#ifndef __SANITIZE_ADDRESS__
  EXPECT_GE(seen.evictions, test.min_evictions);
#endif
  std::printf("%s: %lld lookups, %lld drafts with %lld nodes, %lld seals, %lld evictions\n",
              test.name.c_str(), static_cast<long long>(seen.lookups),
              static_cast<long long>(seen.drafts), static_cast<long long>(seen.drafted_nodes),
              static_cast<long long>(driver.model().num_seals()),
              static_cast<long long>(seen.evictions));
}

INSTANTIATE_TEST_SUITE_P(Configurations, SuffixIndexRandom,
                         ::testing::Values(Case{"frozen", 64 << 10, true, false, 5},
                                           Case{"background", 64 << 10, true, true, 5},
                                           Case{"unfrozen", 256 << 10, false, false, 5},
                                           Case{"small", 8 << 10, true, true, 0}),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace smartspec
