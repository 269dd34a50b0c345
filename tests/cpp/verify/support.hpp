// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Random numbers, random parameters and a tiny "model" whose logits are a hash of its prefix.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "smartspec/sampling_params.hpp"
#include "smartspec/token_tree.hpp"

namespace smartspec::verify_test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int kShrink = 10;  // sanitizer builds run a tenth of the random cases
#else
inline constexpr int kShrink = 1;
#endif

/// SplitMix64: same numbers on every platform.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }
  int below(int n) { return static_cast<int>(next() % static_cast<std::uint64_t>(n)); }
  bool chance(double p) { return unit() < p; }
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  /// Roughly normal, finite support.
  double normal() {
    double sum = 0;
    for (int i = 0; i < 4; ++i) sum += unit();
    return (sum - 2.0) * 1.7320508;
  }
  TokenId token(int vocab) { return below(vocab); }
  std::vector<TokenId> tokens(int n, int vocab) {
    std::vector<TokenId> result;
    for (int i = 0; i < n; ++i) result.push_back(token(vocab));
    return result;
  }

 private:
  std::uint64_t state_;
};

enum class Shape { kSmooth, kTies, kHoles, kPeaked, kFlat, kCount };

inline std::vector<float> random_row(Random& random, int vocab, Shape shape) {
  std::vector<float> row(static_cast<std::size_t>(vocab));
  for (float& l : row) {
    const double x = random.normal();
    switch (shape) {
      case Shape::kTies:
        l = 0.5F * static_cast<float>(static_cast<int>(3.0 * x));  // -0 and +0 among them
        break;
      case Shape::kHoles:
        l = random.chance(0.3) ? -std::numeric_limits<float>::infinity() : static_cast<float>(x);
        break;
      case Shape::kPeaked:
        l = static_cast<float>(12.0 * x);
        break;
      case Shape::kFlat:
        l = 1.0F;
        break;
      default:
        l = static_cast<float>(2.0 * x);
    }
  }
  row[static_cast<std::size_t>(random.below(vocab))] = 1.0F;
  return row;
}

/// Logits as a pure function of the whole prefix.
struct TinyModel {
  int vocab = 8;
  std::uint64_t seed = 0;
  Shape shape = Shape::kSmooth;

  [[nodiscard]] std::vector<float> logits(std::span<const TokenId> prefix) const {
    std::uint64_t hash = seed * 0x9E3779B97F4A7C15ULL + prefix.size();
    for (const TokenId t : prefix) {
      hash = (hash ^ (static_cast<std::uint64_t>(t) + 1)) * 0x100000001B3ULL;
      hash ^= hash >> 29;
    }
    Random random(hash);
    return random_row(random, vocab, shape);
  }
};

/// The tokens from the root to `node`, appended to `prefix`.
inline std::vector<TokenId> path_prefix(const TokenTree& tree, std::int32_t node,
                                        std::vector<TokenId> prefix) {
  std::vector<TokenId> path;
  for (; node >= 0; node = tree.parents[static_cast<std::size_t>(node)]) {
    path.push_back(tree.tokens[static_cast<std::size_t>(node)]);
  }
  prefix.insert(prefix.end(), path.rbegin(), path.rend());
  return prefix;
}

inline SamplingParams random_params(Random& random, int vocab) {
  SamplingParams p;
  p.temperature = random.chance(0.3) ? 0.0F : static_cast<float>(0.1 + 1.9 * random.unit());
  if (random.chance(0.3)) p.top_p = static_cast<float>(0.05 + 0.94 * random.unit());
  if (random.chance(0.3)) p.top_k = 1 + random.below(vocab + 2);
  if (random.chance(0.3)) p.min_p = static_cast<float>(0.5 * random.unit());
  if (random.chance(0.3)) p.presence_penalty = static_cast<float>(random.normal());
  if (random.chance(0.3)) p.frequency_penalty = static_cast<float>(random.normal());
  if (random.chance(0.3)) p.repetition_penalty = static_cast<float>(0.5 + random.unit());
  for (float* penalty : {&p.presence_penalty, &p.frequency_penalty}) {
    *penalty = *penalty > 2.0F ? 2.0F : *penalty < -2.0F ? -2.0F : *penalty;
  }
  p.max_tokens = 1 + random.below(24);
  if (random.chance(0.3)) p.min_tokens = random.below(p.max_tokens + 1);
  if (random.chance(0.3)) p.stop_token_ids = random.tokens(1, vocab);
  p.ignore_eos = random.chance(0.3);
  if (random.chance(0.4)) p.logprobs = random.below(vocab + 2);
  if (random.chance(0.2)) {
    const int first = random.below(vocab);
    for (int i = 0; i < 1 + vocab / 4; ++i) {
      p.logit_bias.emplace_back((first + i) % vocab, static_cast<float>(2.0 * random.normal()));
    }
  }
  if (random.chance(0.2)) p.allowed_token_ids = random.tokens(1 + random.below(vocab), vocab);
  if (random.chance(0.3)) {
    const int count = 1 + random.below(4);
    for (int i = 0; i < count; ++i) {
      p.bad_words.push_back(random.tokens(1 + random.below(3), vocab));
    }
  }
  if (random.chance(0.3)) {
    const int count = 1 + random.below(3);
    for (int i = 0; i < count; ++i) {
      std::string text;
      const int length = 1 + random.below(4);
      for (int j = 0; j < length; ++j) text += static_cast<char>('a' + random.below(3));
      p.stop.push_back(text);
    }
  }
  return p;
}

}  // namespace smartspec::verify_test
