// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The seeded draw: the kept token with the greatest logit / T + Gumbel noise, ties to the lowest id
// (Gumbel-max: Maddison et al. 2014), bit for bit as on the CPU.
//
// Exact keys are doubles with two logarithms each; few are computed. A token can win only if
// 1 - u <= 2^y with y = log2(e) (tempered - B), B the best key so far; the draw starts from the key
// of the greatest logit. 23 bits of u say so in single precision, with a margin; four tokens share
// one Philox call for them. Which thread computes which keys depends on timing, their maximum not.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "common/device.cuh"
#include "core/noise.hpp"
#include "core/token_order.hpp"
#include "kernels/verify/block.cuh"
#include "kernels/verify/row.cuh"
#include "kernels/verify/sequence.cuh"
#include "smartspec/philox.hpp"

namespace smartspec::cuda::verification {

struct Drawn {
  std::uint64_t key = 0;  // ordered_bits()
  TokenId token = -1;
};

template <DType kType, int kThreads>
class Search {
 public:
  SMARTSPEC_DEVICE Search(const Sequence<kType, kThreads>& sequence, const Row<kType>& row,
                          const Summary& summary, const core::Cut& cut, std::int64_t position)
      : sequence_(sequence), row_(row), max_(summary.max), cut_(cut), position_(position) {
    inv_t_ = 1.0 / static_cast<double>(sequence.temperature);
    scale_ = log2_scale(inv_t_);
    best_token_ = summary.first;
    best_key_ = key_of(summary.max, summary.first);
  }

  /// All threads.
  [[nodiscard]] SMARTSPEC_DEVICE Drawn run() {
    device::sync_block();
    if (device::thread_index() == 0) {
      sequence_.shared->bound = ordered_int(std::bit_cast<int>(bound_below(best_key_)));
    }
    device::sync_block();
    scan();
    for_each_edit<kThreads>(row_, sequence_.edits, [&](TokenId v, float l) {
      if (!cut_.keeps(l, v)) return;
      const std::uint32_t high =
          core::noise_bits(sequence_.seed, position_, v, core::Purpose::kHighBits);
      if (may_win(exponent(l, load_bound()), high)) take(l, v);
    });
    const std::uint64_t key = ordered_bits(best_key_);
    const std::uint64_t top =
        reduce<kThreads>(key, std::uint64_t{0}, Max{}, sequence_.shared->scratch);
    constexpr TokenId kNone = std::numeric_limits<TokenId>::max();
    const TokenId token =
        reduce<kThreads>(key == top ? best_token_ : kNone, kNone, Min{}, sequence_.shared->scratch);
    return {top, token};
  }

 private:
  static constexpr float kLeastExponent = -54.0F;  // 1 - u is never below 2^-53

  /// log2(e) times a number below `key`, relative to that of the greatest logit without noise: by
  /// more than may_win() loses in single precision (2^-21 of |exponent| + |bound|, where it
  /// matters) and keys in double (an ulp).
  [[nodiscard]] SMARTSPEC_DEVICE float bound_below(double key) const {
    const double top = static_cast<double>(max_) * inv_t_;
    const double relative = key - top;
    const double slack =
        1e-4 + 1e-6 * (relative < 0 ? -relative : relative) + 0x1p-50 * (top < 0 ? -top : top);
    return static_cast<float>((relative - slack) * 1.4426950408889634);
  }
  [[nodiscard]] SMARTSPEC_DEVICE float load_bound() const {
    const volatile std::int32_t* bound = &sequence_.shared->bound;  // others raise it meanwhile
    return std::bit_cast<float>(ordered_int(*bound));
  }
  [[nodiscard]] SMARTSPEC_DEVICE float exponent(float logit, float bound) const {
    return (logit - max_) * scale_ - bound;
  }
  /// False only if the token's key is below the bound. u has the bits `high` on top, so
  /// 1 - u > 2 - 2^-23 - f with f as here, and f + e is rounded up to the bound if it reaches it.
  [[nodiscard]] SMARTSPEC_DEVICE static bool may_win(float exponent, std::uint32_t high) {
    const float f = std::bit_cast<float>(high >> 9 | 0x3F800000U);
    return f + device::exp2_approx(exponent < 2.0F ? exponent : 2.0F) >= 0x1.fffffep+0F;
  }

  [[nodiscard]] SMARTSPEC_DEVICE double key_of(float logit, TokenId v) const {
    return static_cast<double>(logit) * inv_t_ + core::gumbel_noise(sequence_.seed, position_, v);
  }

  SMARTSPEC_DEVICE void take(float logit, TokenId v) {
    const double key = key_of(logit, v);
    if (!core::better(key, v, best_key_, best_token_)) return;
    best_key_ = key;
    best_token_ = v;
    device::atomic_max(&sequence_.shared->bound, ordered_int(std::bit_cast<int>(bound_below(key))));
  }

  /// 16 tokens per step: four blocks of the noise, whose words belong to tokens 16 apart.
  SMARTSPEC_DEVICE void scan() {
    const std::int32_t tokens = row_.end - row_.begin;
    const std::int32_t num_items = (tokens / 64 + (tokens % 64 != 0 ? 1 : 0)) * 4;
    for (std::int32_t item = device::thread_index(); item < num_items; item += kThreads) {
      const std::int32_t first = row_.begin + item / 4 * 64 + item % 4 * 4;
      float x[4][4];
      SMARTSPEC_UNROLL
      for (int w = 0; w < 4; ++w) row_.load_raw(first + 16 * w, x[w]);
      float greatest = kMinusInf;
      SMARTSPEC_UNROLL
      for (int w = 0; w < 4; ++w) {
        row_.hide(first + 16 * w, x[w]);
        SMARTSPEC_UNROLL
        for (int i = 0; i < 4; ++i) greatest = x[w][i] > greatest ? x[w][i] : greatest;
      }
      if (greatest < cut_.logit) continue;
      const float bound = load_bound();
      if (exponent(greatest, bound) < kLeastExponent) continue;
      std::uint32_t hits = candidates(x, static_cast<std::uint32_t>(first), bound);
      while (hits != 0) {
        const int hit = device::lowest_bit(hits);
        hits &= hits - 1;
        const TokenId v = first + 16 * (hit / 4) + hit % 4;
        const float l = row_.visible(v);  // again: registers cannot be indexed
        if (cut_.keeps(l, v)) take(l, v);
      }
    }
  }

  [[nodiscard]] SMARTSPEC_DEVICE std::uint32_t candidates(const float (&x)[4][4],
                                                          std::uint32_t first, float bound) const {
    std::uint32_t hits = 0;
    SMARTSPEC_UNROLL
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t block = core::noise_block(first + static_cast<std::uint32_t>(i));
      const auto words = philox4x32(core::noise_counter(block, position_, core::Purpose::kHighBits),
                                    core::noise_key(sequence_.seed));
      SMARTSPEC_UNROLL
      for (int w = 0; w < 4; ++w) {
        const bool hit = may_win(exponent(x[w][i], bound), words[static_cast<std::size_t>(w)]);
        hits |= hit ? 1U << (4 * w + i) : 0U;
      }
    }
    return hits;
  }

  const Sequence<kType, kThreads>& sequence_;
  const Row<kType>& row_;
  float max_;
  core::Cut cut_;
  std::int64_t position_;
  double inv_t_ = 1.0;
  float scale_ = 1.0F;  // log2(e) / T
  double best_key_ = 0.0;
  TokenId best_token_ = -1;
};

/// Token of the target at `row`. All threads.
template <DType kType, int kThreads>
SMARTSPEC_DEVICE TokenId draw(const Sequence<kType, kThreads>& sequence, const Row<kType>& row,
                              const Summary& summary, std::int64_t position) {
  if (sequence.greedy()) return summary.first;
  const core::Cut cut = filter(sequence, row, summary);
  return Search<kType, kThreads>(sequence, row, summary, cut, position).run().token;
}

}  // namespace smartspec::cuda::verification
