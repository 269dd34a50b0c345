// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Random operations against the naive model: 10^5 per configuration and seed, 2 seeds (1 under
// AddressSanitizer).
#include <gtest/gtest.h>

#include <cstdint>
#include <ostream>
#include <random>
#include <string>

#include "kv/kv_ledger.hpp"
#include "kv/kv_model.hpp"
#include "smartspec/kv_cache.hpp"

namespace smartspec {
namespace {

constexpr int kOperations = 100'000;
#ifdef __SANITIZE_ADDRESS__
constexpr std::uint64_t kSeeds = 1;  // about 8 times slower
#else
constexpr std::uint64_t kSeeds = 2;
#endif

struct RandomSource {
  std::mt19937_64* generator;
  std::uint32_t operator()(std::uint32_t bound) const {
    return static_cast<std::uint32_t>((*generator)() % bound);
  }
};

struct Case {
  std::string name;
  KvCacheOptions kv;
  kv_test::DriverOptions driver;
  std::uint64_t hash_mask = ~std::uint64_t{0};
};

void PrintTo(const Case& test, std::ostream* out) { *out << test.name; }

template <class Cache>
void run(Cache& cache, const Case& test, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  kv_test::KvDriver driver(cache, RandomSource{&generator}, test.driver);
  for (int i = 0; i < kOperations; ++i) {
    try {
      driver.operation();
    } catch (const kv_test::ModelFailure& failure) {
      FAIL() << test.name << " seed " << seed << " operation " << i << ": " << failure.what();
    }
  }
  ASSERT_NO_THROW(driver.finish());
  const auto& seen = driver.coverage();
  EXPECT_GT(seen.commits, kOperations / 20);
  EXPECT_GT(seen.moves, kOperations / 20);
  EXPECT_GT(seen.copies, kOperations / 20);
  EXPECT_GT(seen.rollbacks, kOperations / 50);
  EXPECT_GT(seen.forks, kOperations / 50);
  if (test.kv.enable_prefix_caching) {
    EXPECT_GT(seen.hits, kOperations / 500);
  }
  if (test.driver.exact_prefixes) {
    EXPECT_EQ(seen.refused, 0);
  } else {
    EXPECT_GT(seen.refused, kOperations / 200);
    if (test.kv.enable_prefix_caching) {
      EXPECT_GT(cache.stats().evictions, kOperations / 100);
    }
  }
}

class KvRandom : public testing::TestWithParam<Case> {};

TEST_P(KvRandom, MatchesTheNaiveModel) {
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
    if (GetParam().hash_mask == ~std::uint64_t{0}) {
      KvCache cache(GetParam().kv);
      run(cache, GetParam(), seed);
    } else {
      kv::KvLedger cache(GetParam().kv, GetParam().hash_mask);
      run(cache, GetParam(), seed);
    }
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Pools, KvRandom,
    testing::Values(
        Case{"tiny",
             {.num_blocks = 5},
             {.max_sequences = 5, .max_length = 60, .integrity_interval = 4}},
        Case{"small", {.num_blocks = 24, .hash_seed = 7}, {.integrity_interval = 16}},
        Case{"wide_blocks", {.num_blocks = 12, .block_size = 48}, {.integrity_interval = 16}},
        Case{"no_prefix_cache",
             {.num_blocks = 24, .enable_prefix_caching = false},
             {.integrity_interval = 16}},
        Case{"colliding_hash", {.num_blocks = 24}, {.integrity_interval = 16}, 0},
        Case{"weak_hash", {.num_blocks = 40}, {.integrity_interval = 16}, 3}),
    [](const auto& parameter) { return parameter.param.name; });

// Nothing is evicted from this pool, so hits can be predicted exactly.
TEST(KvRandomExact, FindsExactlyWhatWasPublished) {
  Case test{"exact",
            {.num_blocks = 20'000},
            {.max_sequences = 12, .exact_prefixes = true, .integrity_interval = 2'000}};
  for (std::uint64_t mask : {~std::uint64_t{0}, std::uint64_t{1023}}) {
    kv::KvLedger cache(test.kv, mask);
    run(cache, test, 11);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace smartspec
