// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The oracle is the source of the evidence: synthetic contexts whose successors are drawn with
// known probabilities.
#include "propose/suffix/calibration.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "smartspec/error.hpp"

namespace smartspec::suffix {
namespace {

Evidence says(TokenId token, Source source, std::uint32_t length, std::uint32_t count,
              std::uint32_t token_count) {
  return {token, source, count == token_count, length, count, token_count};
}

float claim(const Calibration& calibration, std::span<const Evidence> evidence) {
  std::array<Pick, 1> pick;
  Trace trace;
  const int n = calibration.choose(evidence, {}, {}, pick, trace);
  return n == 1 ? pick[0].probability : -1;
}

float claim(const Calibration& calibration, const Evidence& evidence) {
  return claim(calibration, std::span(&evidence, 1));
}

std::vector<std::byte> bytes_of(const Calibration& calibration) {
  const auto state = calibration.state();
  return {state.begin(), state.end()};
}

// A text whose next token is 1, 2 or 3, of which 1 is named by the own text, 2 by live outputs.
struct Situation {
  std::vector<Evidence> evidence;
  double own, shared;  // true probabilities of 1 and 2
};

std::vector<Situation> situations() {
  return {
      {{says(1, Source::kLocal, 1, 8, 3)}, 0.12, 0},
      {{says(1, Source::kLocal, 30, 2, 2)}, 0.97, 0},
      {{says(1, Source::kLocal, 3, 2, 1), says(2, Source::kLive, 6, 40, 30)}, 0.15, 0.6},
      {{says(1, Source::kLocal, 9, 1, 1), says(2, Source::kLive, 2, 300, 40)}, 0.7, 0.04},
      {{says(1, Source::kLocal, 5, 3, 2), says(1, Source::kLive, 8, 12, 9)}, 0.85, 0},
      {{says(2, Source::kLive, 4, 5, 4), says(2, Source::kFrozen, 7, 8, 7)}, 0, 0.65},
      {{says(1, Source::kLocal, 2, 2, 1), says(2, Source::kFrozen, 2, 6, 2)}, 0.2, 0.3},
  };
}

TokenId draw(const Situation& s, std::mt19937& random) {
  const double u = std::uniform_real_distribution<>()(random);
  return u < s.own ? 1 : u < s.own + s.shared ? 2 : 3;
}

/// Claims and outcomes, as a reliability diagram.
struct Reliability {
  std::array<double, 10> claimed{}, right{};
  double n = 0;
  void add(float p, bool hit) {
    const auto bin = std::min<std::size_t>(9, static_cast<std::size_t>(p * 10));
    claimed[bin] += static_cast<double>(p);
    right[bin] += hit ? 1 : 0;
    n += 1;
  }
  double error() const {
    double sum = 0;
    for (std::size_t i = 0; i < 10; ++i) sum += std::abs(claimed[i] - right[i]);
    return sum / n;
  }
};

TEST(Calibration, ClaimsBecomeTrue) {
  const std::vector<Situation> all = situations();
  Calibration calibration;
  RequestCalibration request;
  std::mt19937 random(7);
  Reliability late;
  int second_best = 0;
  std::vector<double> last(all.size());
  for (int step = 0; step < 40000; ++step) {
    const std::size_t k = random() % all.size();
    std::array<Pick, 1> pick;
    Trace trace;
    ASSERT_EQ(calibration.choose(all[k].evidence, {}, request, pick, trace), 1);
    const TokenId truth = draw(all[k], random);
    if (step >= 20000) late.add(pick[0].probability, pick[0].token == truth);
    calibration.learn(trace, truth, request);
    if (step >= 20000 && pick[0].token != (all[k].own > all[k].shared ? 1 : 2)) ++second_best;
    last[k] += 0.01 * (static_cast<double>(pick[0].probability) - last[k]);
  }
  EXPECT_LT(late.error(), 0.02);
  EXPECT_LT(second_best, 400);  // of 20,000: two near equals may change places for a while
  for (std::size_t k = 0; k < all.size(); ++k) {
    EXPECT_NEAR(last[k], std::max(all[k].own, all[k].shared), 0.1) << "situation " << k;
  }
}

TEST(Calibration, LaterPicksAreCalibratedToo) {
  const std::vector<Evidence> evidence = {says(5, Source::kLocal, 6, 9, 5),
                                          says(6, Source::kLive, 4, 20, 9),
                                          says(7, Source::kFrozen, 2, 8, 3)};
  Calibration calibration;
  RequestCalibration request;
  std::mt19937 random(8);
  std::array<double, 3> mean{};
  int misplaced = 0;
  for (int step = 0; step < 20000; ++step) {
    std::array<Pick, 4> picks;
    Trace trace;
    ASSERT_EQ(calibration.choose(evidence, {}, request, picks, trace), 3);
    const double u = std::uniform_real_distribution<>()(random);
    const TokenId truth = u < 0.5 ? 5 : u < 0.8 ? 6 : u < 0.88 ? 7 : 1;
    if (step >= 10000) {
      for (std::size_t i = 0; i < 3; ++i) {
        if (picks[i].token != 5 + static_cast<TokenId>(i)) ++misplaced;
        mean[i] += static_cast<double>(picks[i].probability) / 10000;
      }
    }
    calibration.learn(trace, truth, request);
  }
  EXPECT_LT(misplaced, 200);
  EXPECT_NEAR(mean[0], 0.5, 0.03);
  EXPECT_NEAR(mean[1], 0.3, 0.03);
  EXPECT_NEAR(mean[2], 0.08, 0.03);
}

TEST(Calibration, PriorIsMonotone) {
  const Calibration prior;
  const std::array<std::uint32_t, 12> lengths = {1, 2, 3, 4, 6, 9, 14, 25, 50, 90, 200, 100000};
  const std::array<std::uint32_t, 8> counts = {1, 2, 3, 5, 8, 16, 64, 1000};
  for (const Source source : {Source::kLocal, Source::kLive, Source::kFrozen}) {
    for (const std::uint32_t count : counts) {
      for (std::uint32_t part = 1; part <= count; part += std::max(1U, count / 16)) {
        float before = 0;
        for (const std::uint32_t length : lengths) {
          const float p = claim(prior, says(1, source, length, count, part));
          EXPECT_GE(p, before) << "length " << length << " share " << part << '/' << count;
          before = p;
        }
      }
      for (const std::uint32_t length : lengths) {
        float before = 0;
        for (std::uint32_t part = 1; part <= count; part += std::max(1U, count / 16)) {
          const float p = claim(prior, says(1, source, length, count, part));
          EXPECT_GE(p, before) << "length " << length << " share " << part << '/' << count;
          before = p;
        }
      }
    }
  }
}

TEST(Calibration, PriorIsSane) {
  const Calibration prior;
  for (const Source source : {Source::kLocal, Source::kLive, Source::kFrozen}) {
    EXPECT_GT(claim(prior, says(1, source, 40, 5, 5)), 0.75F);
    EXPECT_LT(claim(prior, says(1, source, 1, 50, 5)), 0.2F);
  }
  const Evidence own = says(1, Source::kLocal, 10, 2, 2);
  const Evidence agrees = says(1, Source::kLive, 12, 9, 9);
  const Evidence differs = says(2, Source::kLive, 12, 9, 9);
  EXPECT_GT(claim(prior, std::array{own, agrees}), claim(prior, own));
  EXPECT_LT(claim(prior, std::array{own, differs}), claim(prior, std::array{own, agrees}) - 0.1F);
}

TEST(Calibration, FollowsAChangeOfRegime) {
  const Evidence evidence = says(1, Source::kLocal, 6, 4, 3);
  Calibration calibration;
  RequestCalibration request;
  std::mt19937 random(9);
  const auto live = [&](double rate, int steps) {
    double mean = 0;
    for (int step = 0; step < steps; ++step) {
      std::array<Pick, 1> pick;
      Trace trace;
      calibration.choose(std::span(&evidence, 1), {}, request, pick, trace);
      const bool right = std::uniform_real_distribution<>()(random) < rate;
      calibration.learn(trace, right ? 1 : 2, request);
      mean += 0.02 * (static_cast<double>(pick[0].probability) - mean);
    }
    return mean;
  };
  EXPECT_NEAR(live(0.9, 20000), 0.9, 0.05);
  EXPECT_NEAR(live(0.15, 1500), 0.15, 0.1);
  EXPECT_NEAR(live(0.9, 1500), 0.9, 0.1);
}

// Contexts that differ only in how often they occurred; then their rates change places.
TEST(Calibration, TellsKindsApartAndForgets) {
  const std::array<std::uint32_t, 8> counts = {1, 2, 3, 4, 7, 15, 50, 200};
  std::array<double, 8> rates = {0.9, 0.2, 0.7, 0.3, 0.95, 0.1, 0.8, 0.4};
  Calibration calibration;
  RequestCalibration request;
  std::mt19937 random(17);
  for (int regime = 0; regime < 2; ++regime) {
    std::array<double, 8> mean{};
    for (int step = 0; step < (regime == 0 ? 100000 : 12000); ++step) {
      const std::size_t k = random() % counts.size();
      const Evidence evidence = says(1, Source::kLive, 4, counts[k], counts[k]);
      std::array<Pick, 1> pick;
      Trace trace;
      calibration.choose(std::span(&evidence, 1), {}, request, pick, trace);
      mean[k] += 0.02 * (static_cast<double>(pick[0].probability) - mean[k]);
      const bool right = std::uniform_real_distribution<>()(random) < rates[k];
      calibration.learn(trace, right ? 1 : 2, request);
    }
    for (std::size_t k = 0; k < counts.size(); ++k) EXPECT_NEAR(mean[k], rates[k], 0.12) << k;
    std::reverse(rates.begin(), rates.end());
  }
}

/// Anything at all, often at the limits of its type.
std::vector<Evidence> hostile(std::mt19937& random) {
  const auto number = [&]() -> std::uint32_t {
    switch (random() % 4) {
      case 0:
        return 0;
      case 1:
        return std::numeric_limits<std::uint32_t>::max() - random() % 2;
      case 2:
        return random() % 8;
      default:
        return static_cast<std::uint32_t>(random());
    }
  };
  std::vector<Evidence> evidence(random() % 14);
  for (Evidence& e : evidence) {
    e.token = random() % 2 ? static_cast<TokenId>(random() % 4) : static_cast<TokenId>(number());
    e.source = static_cast<Source>(random() % 3 ? random() % 3 : random() % 256);
    e.deterministic = random() % 2;
    e.match_length = number();
    e.count = number();
    e.token_count = number();
  }
  return evidence;
}

TEST(Calibration, AnyInputGivesProbabilities) {
  Calibration calibration;
  RequestCalibration request;
  std::mt19937 random(10);
  for (int step = 0; step < 100000; ++step) {
    const std::vector<Evidence> evidence = hostile(random);
    std::array<Pick, 6> room;
    const std::span picks = std::span(room).first(random() % 7);
    const NodeContext node = {static_cast<std::int32_t>(random()),
                              std::numeric_limits<float>::quiet_NaN()};
    if (random() % 100 == 0) request.run = static_cast<std::uint32_t>(random());
    Trace trace;
    const int n = calibration.choose(evidence, node, request, picks, trace);
    ASSERT_LE(n, std::min<int>(kMaxPicks, static_cast<int>(picks.size())));
    ASSERT_EQ(n >= 1, !evidence.empty() && !picks.empty());
    float sum = 0, before = 1;
    std::set<TokenId> tokens;
    for (const Pick& pick : picks.first(static_cast<std::size_t>(n))) {
      ASSERT_TRUE(pick.probability >= 0.001F && pick.probability <= 0.999F) << pick.probability;
      ASSERT_LE(pick.probability, before);
      before = pick.probability;
      sum += pick.probability;
      tokens.insert(pick.token);
      ASSERT_TRUE(std::any_of(evidence.begin(), evidence.end(),
                              [&](const Evidence& e) { return e.token == pick.token; }));
    }
    ASSERT_EQ(tokens.size(), static_cast<std::size_t>(n));
    ASSERT_LE(sum, 1.0F);
    // Long runs of one outcome drive everything to its limits.
    const bool right = n > 0 && step / 20000 % 2 == 0;
    calibration.learn(trace, right ? room[0].token : -5, request);
  }
  EXPECT_NO_THROW(Calibration::from_state(calibration.state()));
}

void teach(Calibration& calibration, RequestCalibration& request, unsigned seed, int steps) {
  const std::vector<Situation> all = situations();
  std::mt19937 random(seed);
  for (int step = 0; step < steps; ++step) {
    const Situation& s = all[random() % all.size()];
    std::array<Pick, 4> picks;
    Trace trace;
    calibration.choose(s.evidence, {static_cast<std::int32_t>(random() % 5), 1}, request,
                       std::span(picks).first(1 + random() % 4), trace);
    calibration.learn(trace, draw(s, random), request);
  }
}

TEST(Calibration, SameHistorySameState) {
  Calibration a, b;
  RequestCalibration ra, rb;
  teach(a, ra, 11, 5000);
  teach(b, rb, 11, 5000);
  EXPECT_EQ(bytes_of(a), bytes_of(b));
  EXPECT_EQ(ra.run, rb.run);
  teach(b, rb, 12, 1);
  EXPECT_NE(bytes_of(a), bytes_of(b));
}

TEST(Calibration, ChooseDoesNotLearn) {
  Calibration calibration;
  const std::vector<std::byte> before = bytes_of(calibration);
  for (const Situation& s : situations()) claim(calibration, s.evidence);
  EXPECT_EQ(bytes_of(calibration), before);
}

TEST(Calibration, StateSurvivesSaving) {
  Calibration a;
  RequestCalibration request;
  teach(a, request, 13, 5000);
  Calibration b = Calibration::from_state(a.state());
  EXPECT_EQ(bytes_of(a), bytes_of(b));
  for (const Situation& s : situations()) EXPECT_EQ(claim(a, s.evidence), claim(b, s.evidence));
  RequestCalibration other = request;
  teach(a, request, 14, 500);
  teach(b, other, 14, 500);
  EXPECT_EQ(bytes_of(a), bytes_of(b));
  const Calibration copy = a;
  teach(a, request, 15, 10);
  EXPECT_EQ(bytes_of(copy), bytes_of(b));
}

TEST(Calibration, ForeignStateIsRefused) {
  Calibration calibration;
  RequestCalibration request;
  teach(calibration, request, 16, 1000);
  const std::vector<std::byte> good = bytes_of(calibration);
  EXPECT_THROW(Calibration::from_state({}), FormatError);
  EXPECT_THROW(Calibration::from_state(std::span(good).first(good.size() - 1)), FormatError);
  std::vector<std::byte> longer = good;
  longer.push_back({});
  EXPECT_THROW(Calibration::from_state(longer), FormatError);
  // Magic number, version, then floats only: no place may hold what is not a number or huge.
  ASSERT_EQ(good.size() % 4, 0U);
  std::vector<std::byte> bad = good;
  for (const float wrong :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -1e9F}) {
    for (std::size_t at = 0; at < good.size(); at += at < 400 ? 4 : 4 * 37) {
      std::memcpy(&bad[at], &wrong, 4);
      EXPECT_THROW(Calibration::from_state(bad), FormatError) << at;
      std::memcpy(&bad[at], &good[at], 4);
    }
  }
  EXPECT_NO_THROW(Calibration::from_state(bad));
}

TEST(Calibration, RunCountsBestPicksInARow) {
  Calibration calibration;
  RequestCalibration request;
  const Evidence evidence = says(1, Source::kLocal, 6, 4, 3);
  std::array<Pick, 1> pick;
  Trace trace;
  for (std::uint32_t i = 1; i <= 40; ++i) {
    calibration.choose(std::span(&evidence, 1), {}, request, pick, trace);
    calibration.learn(trace, 1, request);
    EXPECT_EQ(request.run, i);
  }
  EXPECT_EQ(calibration.choose({}, {}, request, pick, trace), 0);
  calibration.learn(trace, 1, request);
  EXPECT_EQ(request.run, 0U);
}

TEST(Calibration, SurplusEvidenceIsIgnored) {
  const Calibration prior;
  std::vector<Evidence> evidence(3, says(1, Source::kLocal, 6, 4, 3));
  const float p = claim(prior, evidence);
  evidence.push_back(says(2, Source::kLocal, 60, 40, 40));
  EXPECT_EQ(claim(prior, evidence), p);
  evidence.push_back(says(2, Source::kLive, 60, 40, 40));
  EXPECT_NE(claim(prior, evidence), p);
}

}  // namespace
}  // namespace smartspec::suffix
