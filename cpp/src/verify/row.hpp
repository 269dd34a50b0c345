// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Scans over one row of processed logits: the maximum, the order of tokens, and the cuts that
// min-p, top-k and top-p make. Every cut keeps a prefix of the order (logit descending, id
// ascending), so one (logit, id) pair describes it. Pure functions over borrowed memory; scratch is
// the caller's, and no result depends on what it held.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "core/token_order.hpp"
#include "smartspec/types.hpp"
#include "verify/math.hpp"

namespace smartspec::verify {

inline constexpr std::size_t kBlock = 64;  // logits looked at together
inline constexpr float kLowest = std::numeric_limits<float>::lowest();
inline constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

using core::Cut;
using core::min_p_floor;
using core::order_key;
using core::token_of;

struct RowMax {
  float max = kMinusInf;  // -inf: nothing is left
  bool finite = true;     // false: a NaN or +inf is somewhere in the row
};

inline RowMax find_max(std::span<const float> row) noexcept {
  constexpr std::size_t kLanes = 16;  // independent lanes, so the compiler may use vectors
  std::array<float, kLanes> best;
  std::array<std::int32_t, kLanes> bad{};
  best.fill(kMinusInf);
  const auto take = [&](std::size_t lane, float l) {
    best[lane] = l > best[lane] ? l : best[lane];
    bad[lane] |= l <= std::numeric_limits<float>::max() ? 0 : 1;
  };
  std::size_t i = 0;
  for (; i + kLanes <= row.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) take(lane, row[i + lane]);
  }
  for (; i < row.size(); ++i) take(0, row[i]);
  RowMax result;
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    result.max = std::max(result.max, best[lane]);
    result.finite = result.finite && bad[lane] == 0;
  }
  return result;
}

/// First token whose logit equals `value`, which the row holds.
inline TokenId first_equal(std::span<const float> row, float value) noexcept {
  std::size_t i = 0;
  for (; i + kBlock <= row.size(); i += kBlock) {
    std::int32_t found = 0;
    for (std::size_t j = 0; j < kBlock; ++j) found |= row[i + j] == value ? 1 : 0;
    if (found != 0) break;
  }
  while (row[i] != value) ++i;
  return static_cast<TokenId>(i);
}

/// The `count` best kept tokens as order keys, unsorted; fewer when fewer are kept.
inline void select_top(std::span<const float> row, std::size_t count, const Cut& cut,
                       std::vector<std::uint64_t>& keys) {
  keys.clear();
  const std::size_t capacity = 2 * std::min(count, row.size()) + 64;
  std::uint64_t threshold = 0;
  float floor = cut.logit;
  const auto shrink = [&] {
    const auto nth = keys.begin() + static_cast<std::ptrdiff_t>(count - 1);
    std::nth_element(keys.begin(), nth, keys.end(), std::greater<>());
    keys.resize(count);
    threshold = keys.back();
    floor = row[static_cast<std::size_t>(token_of(threshold))];
  };
  for (std::size_t first = 0; first < row.size(); first += kBlock) {
    const std::size_t last = std::min(first + kBlock, row.size());
    std::int32_t any = 0;
    for (std::size_t i = first; i < last; ++i) any |= row[i] >= floor ? 1 : 0;
    if (any == 0) continue;
    for (std::size_t i = first; i < last; ++i) {
      const auto token = static_cast<TokenId>(i);
      if (!cut.keeps(row[i], token)) continue;
      const std::uint64_t key = order_key(row[i], token);
      if (key <= threshold) continue;
      keys.push_back(key);
      if (keys.size() == capacity) shrink();
    }
  }
  if (keys.size() > count) shrink();
}

/// exp((logit - max) / T) of up to kBlock logits.
inline void exp_block(std::span<const float> logits, float max, double inv_t,
                      std::array<double, kBlock>& out) noexcept {
  const std::size_t n = logits.size();
  for (std::size_t j = 0; j < n; ++j) {
    out[j] = clamp_exponent((static_cast<double>(logits[j]) - static_cast<double>(max)) * inv_t);
  }
  for (std::size_t j = 0; j < n; ++j) out[j] = exp_of_clamped(out[j]);
}

/// Buckets of equal width in the logit, the first from the maximum: monotone in the logit.
struct Buckets {
  static constexpr std::int32_t kCount = 1024;
  float max;
  float scale;
  [[nodiscard]] std::int32_t of(float logit) const noexcept {
    const float b = (max - logit) * scale;
    return b < static_cast<float>(kCount - 1) ? static_cast<std::int32_t>(b) : kCount - 1;
  }
};

/// top-p among the tokens `cut` keeps: the shortest prefix whose mass reaches the rule's target.
/// With `listed` the kept tokens are those in `keys`; else they are found in two passes: masses by
/// bucket, then the tokens of the bucket in which the target is reached.
template <class Rule>
Cut top_p_cut(std::span<const float> row, float max, double inv_t, double top_p, const Cut& cut,
              bool listed, std::vector<std::uint64_t>& keys) {
  const auto weight_of = [&](TokenId v) {
    const double d = static_cast<double>(row[static_cast<std::size_t>(v)]);
    return to_fixed(portable_exp((d - static_cast<double>(max)) * inv_t));
  };
  std::uint64_t total = 0;
  std::uint64_t mass = 0;
  std::uint64_t target = 0;
  if (listed) {
    for (const std::uint64_t key : keys) total += weight_of(token_of(key));
    target = Rule::top_p_target(top_p, total);
  } else {
    float lowest = max;
    for (const float l : row) lowest = l >= cut.logit && l < lowest ? l : lowest;
    // exp(-28) is below the unit of mass: no need to resolve anything beneath.
    const float reach = std::min(max - lowest, static_cast<float>(28.0 / inv_t));
    const float scale = static_cast<float>(Buckets::kCount) / reach;
    const Buckets buckets{max, scale < 1e30F ? scale : 1e30F};  // reach 0: one bucket
    std::array<std::uint64_t, Buckets::kCount> masses{};
    std::array<double, kBlock> weights;
    for (std::size_t first = 0; first < row.size(); first += kBlock) {
      const std::size_t n = std::min(kBlock, row.size() - first);
      exp_block(row.subspan(first, n), max, inv_t, weights);
      for (std::size_t j = 0; j < n; ++j) {
        const float l = row[first + j];
        if (!cut.keeps(l, static_cast<TokenId>(first + j))) continue;
        masses[static_cast<std::size_t>(buckets.of(l))] += to_fixed(weights[j]);
        total += to_fixed(weights[j]);
      }
    }
    target = Rule::top_p_target(top_p, total);
    std::int32_t crossing = 0;
    while (crossing + 1 < Buckets::kCount &&
           !Rule::reached(mass + masses[static_cast<std::size_t>(crossing)], target)) {
      mass += masses[static_cast<std::size_t>(crossing++)];
    }
    keys.clear();
    for (std::size_t i = 0; i < row.size(); ++i) {
      const auto v = static_cast<TokenId>(i);
      if (cut.keeps(row[i], v) && buckets.of(row[i]) == crossing) {
        keys.push_back(order_key(row[i], v));
      }
    }
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());
  for (const std::uint64_t key : keys) {
    const TokenId v = token_of(key);
    mass += weight_of(v);
    if (Rule::reached(mass, target)) return {row[static_cast<std::size_t>(v)], v};
  }
  return cut;
}

/// Sum of exp((logit - max) / T) over the kept tokens: in ascending id, so always the same double.
inline double kept_mass(std::span<const float> row, float max, double inv_t,
                        const Cut& cut) noexcept {
  std::array<double, kBlock> weights;
  double sum = 0.0;
  for (std::size_t first = 0; first < row.size(); first += kBlock) {
    const std::size_t n = std::min(kBlock, row.size() - first);
    exp_block(row.subspan(first, n), max, inv_t, weights);
    for (std::size_t j = 0; j < n; ++j) {
      if (cut.keeps(row[first + j], static_cast<TokenId>(first + j))) sum += weights[j];
    }
  }
  return sum;
}

/// The same sum over all tokens in single precision, several times faster: good to about 1e-6, for
/// survival estimates that no output depends on.
inline float approximate_mass(std::span<const float> row, float max, float inv_t) noexcept {
  constexpr std::size_t kLanes = 16;  // fixed lanes let the compiler vectorize the sum
  std::array<float, kLanes> sums{};
  std::size_t first = 0;
  for (; first + kLanes <= row.size(); first += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      sums[j] += approximate_exp((row[first + j] - max) * inv_t);
    }
  }
  float sum = 0.0F;
  for (; first < row.size(); ++first) sum += approximate_exp((row[first] - max) * inv_t);
  for (const float lane : sums) sum += lane;
  return sum;
}

}  // namespace smartspec::verify
