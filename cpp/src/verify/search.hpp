// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Finds the tokens with the greatest perturbed keys (rule.hpp) without computing most keys.
//
// A token can enter the list only if tempered + g >= B, the worst key of a full list. Since
// g = -log e with e = -log u >= 1 - u, that needs 1 - u <= exp(tempered - B). The left side is
// known from 32 bits of u; the right side is bounded from above by 2^(i+f) <= 2^i (1 + f), two
// integer operations in float. Tokens that pass get their exact key in double, so the result is
// that of computing every key. For one draw about log(vocab) keys are computed.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "verify/row.hpp"
#include "verify/rule.hpp"

namespace smartspec::verify {

struct Candidate {
  double key = 0.0;
  TokenId token = 0;
};

template <class Rule>
class Search {
 public:
  /// `row` is not all -inf and `max` is its maximum; temperature > 0. `top` is the result.
  Search(std::span<const float> row, float max, const Cut& cut, float temperature,
         std::vector<Candidate>& top)
      : row_(row), cut_(cut), max_(max), temperature_(temperature), top_(top) {
    inv_t_ = 1.0 / temperature_;
    inv_t_float_ = inv_t_ < 3e38 ? static_cast<float>(inv_t_) : 3e38F;
  }

  /// The `count` >= 1 best, best first.
  void run(std::uint64_t seed, std::int64_t position, std::int32_t count) {
    seed_ = seed;
    position_ = position;
    count_ = static_cast<std::size_t>(count);
    top_.clear();
    if constexpr (Rule::kPrune) {
      scan_groups();
    } else {
      for (std::size_t i = 0; i < row_.size(); ++i) {
        const auto v = static_cast<TokenId>(i);
        if (cut_.keeps(row_[i], v)) insert(v, noise<Rule>(seed_, position_, v));
      }
    }
  }

 private:
  void scan_groups() {
    if (count_ == 1) {  // a good first bound; the scan meets this token again and skips it
      first_ = first_equal(row_, max_);
      insert(first_, noise<Rule>(seed_, position_, first_));
    }
    std::array<float, kGroup> padded;
    const std::size_t n = row_.size();
    for (std::size_t first = 0; first < n; first += kGroup) {
      const float* logits = row_.data() + first;
      if (n - first < kGroup) {
        padded.fill(kMinusInf);
        std::copy(logits, logits + (n - first), padded.begin());
        logits = padded.data();
      }
      scan_group(logits, static_cast<std::uint32_t>(first / kGroup));
    }
  }

  void scan_group(const float* logits, std::uint32_t group) {
    float best = kMinusInf;
    {
      std::array<float, 8> lanes;
      lanes.fill(kMinusInf);
      for (int i = 0; i < kGroup; i += 8) {
        for (int j = 0; j < 8; ++j) {
          const float l = logits[i + j];
          lanes[static_cast<std::size_t>(j)] =
              l > lanes[static_cast<std::size_t>(j)] ? l : lanes[static_cast<std::size_t>(j)];
        }
      }
      for (const float l : lanes) best = l > best ? l : best;
    }
    if (best < cut_.logit) return;
    // No noise exceeds 36.74, so a group this far below the bound holds no winner.
    if (bounded_ && (best - max_) * inv_t_float_ - bound_ < -37.0F) return;

    std::array<std::uint32_t, kGroup> high;
    noise_group(seed_, position_, group, high.data());
    // Loops of their own, and no float comparison but the clamps: g++ 12 makes jumps of anything
    // richer, and this is where a draw spends its time.
    std::array<float, kGroup> exponents;
    for (std::size_t i = 0; i < kGroup; ++i) exponents[i] = exponent(logits[i]);
    for (std::size_t i = 0; i < kGroup; ++i) exponents[i] = clamp_to_one(exponents[i]);
    std::int32_t sign = bounded_ ? 0 : -1;  // negative: some token may win
    for (std::size_t i = 0; i < kGroup; ++i) {
      sign |= ~(upper_bits(exponents[i]) - std::bit_cast<std::int32_t>(least_gap(high[i])));
    }
    if (sign >= 0) return;
    for (std::size_t i = 0; i < kGroup; ++i) {
      if (bounded_ && !may_win(exponent(logits[i]), high[i])) continue;
      const auto v = static_cast<TokenId>(group * kGroup + i);
      if (!cut_.keeps(logits[i], v) || v == first_) continue;
      insert(v, noise_from_high<Rule>(seed_, position_, v, high[i]));
    }
  }

  /// At least log2 of exp(tempered - B), see set_bound().
  [[nodiscard]] float exponent(float logit) const noexcept {
    const float y = ((logit - max_) * inv_t_float_ - bound_) * 1.44269504F;
    return y > -60.0F ? y : -60.0F;
  }

  static float clamp_to_one(float y) noexcept { return y < 1.0F ? y : 1.0F; }

  /// Bits of a float not below 2^y, y in [-60, 1]. Bits of floats >= 0 compare like the floats.
  static std::int32_t upper_bits(float y) noexcept {
    return static_cast<std::int32_t>((y + 127.0F) * 8388608.0F);
  }

  /// Not above 1 - u for the u that these bits begin.
  static float least_gap(std::uint32_t high) noexcept {
    return static_cast<float>(static_cast<std::int32_t>(~high >> 1)) * 0x1p-31F;
  }

  /// False only if the token's key is below every key of the full list.
  static bool may_win(float y, std::uint32_t high) noexcept {
    return least_gap(high) <= std::bit_cast<float>(upper_bits(clamp_to_one(y)));
  }

  void insert(TokenId token, double g) {
    const double tempered = static_cast<double>(row_[static_cast<std::size_t>(token)]) * inv_t_;
    const double key = Rule::perturbed(tempered, g, temperature_);
    const bool full = top_.size() == count_;
    if (full && !Rule::better(key, token, top_.back().key, top_.back().token)) return;
    if (full) top_.pop_back();
    std::size_t at = top_.size();
    top_.push_back({key, token});
    for (; at > 0 && Rule::better(key, token, top_[at - 1].key, top_[at - 1].token); --at) {
      top_[at] = top_[at - 1];
    }
    top_[at] = {key, token};
    if (top_.size() == count_) set_bound(top_.back().key);
  }

  /// The bound is kept relative to the greatest logit, where float is precise, and lowered by more
  /// than what the float arithmetic of may_win() can lose: relative errors of 2^-22 of |d| +
  /// |bound| with |d| <= 61 where it matters, and 2^-15 from the exponent trick.
  void set_bound(double worst_key) {
    const double relative = worst_key - static_cast<double>(max_) * inv_t_;
    const double slack = Rule::kBoundSlack + 1e-6 * (relative < 0 ? -relative : relative);
    bounded_ = relative > -1e6;  // else the list reaches logits where float says nothing
    bound_ = bounded_ ? static_cast<float>(relative - slack) : 0.0F;
  }

  std::span<const float> row_;
  Cut cut_;
  float max_;
  double temperature_;
  std::vector<Candidate>& top_;
  double inv_t_ = 1.0;
  float inv_t_float_ = 1.0F;
  float bound_ = 0.0F;    // B relative to max_ / T, when bounded_
  bool bounded_ = false;  // the list is full
  std::uint64_t seed_ = 0;
  std::int64_t position_ = 0;
  std::size_t count_ = 0;
  TokenId first_ = -1;
};

}  // namespace smartspec::verify
