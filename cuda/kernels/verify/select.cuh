// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The cuts of min-p, top-k and top-p on the device: the same (logit, id) pair as on the CPU.
//
// top-k and top-p are one problem: the shortest prefix of the order whose weights (1, or masses as
// integers) add up to a target. A histogram over equal steps of the logit finds the bin in which
// the target is reached, and the few tokens of that bin are ranked in shared memory. When they are
// too many, the bin is cut further by the bits of the order key, 11 at a time. Integers add up to
// the same in any order, so no race decides anything.
//
// Most tokens are far below the greatest and their exact masses (40 double operations each) would
// take most of the time. So first only the head counts exactly; the rest is summed in single
// precision, which bounds the target from both sides. Rarely the bounds do not name the same token:
// then everything is counted.
#pragma once

#include <cstdint>

#include "common/device.cuh"
#include "core/portable_math.hpp"
#include "core/token_order.hpp"
#include "kernels/verify/block.cuh"
#include "kernels/verify/row.cuh"
#include "kernels/verify/sequence.cuh"

namespace smartspec::cuda::verification {

/// The bins of one level: level 0 by logit, level n by 11 bits of the key, among the tokens of the
/// crossing bins of the levels before. Bins are in the order of the tokens.
struct Bins {
  static constexpr int kBits = 11;
  static_assert(1 << kBits == kBins);
  float max;
  float scale;
  std::int32_t level = 0;
  std::int32_t bucket = 0;   // crossing bin of level 0
  std::uint64_t prefix = 0;  // bits of the crossing bins of later levels

  [[nodiscard]] SMARTSPEC_DEVICE std::int32_t bucket_of(float logit) const {
    const float b = (max - logit) * scale;
    return b < static_cast<float>(kBins - 1) ? static_cast<std::int32_t>(b) : kBins - 1;
  }
  [[nodiscard]] SMARTSPEC_DEVICE int shift() const {
    const int low = 64 - kBits * level;
    return low > 0 ? low : 0;
  }
  /// Whether the token is in the crossing bins so far.
  [[nodiscard]] SMARTSPEC_DEVICE bool holds(float logit, std::uint64_t key) const {
    if (level == 0) return true;
    if (bucket_of(logit) != bucket) return false;
    return level == 1 || key >> (shift() + kBits) == prefix >> (shift() + kBits);
  }
  [[nodiscard]] SMARTSPEC_DEVICE std::int32_t bin_of(float logit, std::uint64_t key) const {
    if (level == 0) return bucket_of(logit);
    return kBins - 1 - static_cast<std::int32_t>(key >> shift() & (kBins - 1));
  }
  SMARTSPEC_DEVICE void descend(std::int32_t bin) {
    if (level == 0) {
      bucket = bin;
    } else {
      const std::uint64_t digit = static_cast<std::uint64_t>(kBins - 1 - bin) << shift();
      prefix = (prefix & ~(static_cast<std::uint64_t>(kBins - 1) << shift())) | digit;
    }
    ++level;
  }
};

/// Last token of the shortest kept prefix that reaches the target. kMasses: top-p, else top-k.
template <bool kMasses, DType kType, int kThreads>
class Selector {
 public:
  SMARTSPEC_DEVICE Selector(const Sequence<kType, kThreads>& sequence, const Row<kType>& row,
                            const Summary& summary, const core::Cut& cut)
      : sequence_(sequence),
        row_(row),
        max_(summary.max),
        lowest_(summary.lowest),
        cut_(cut),
        s_(*sequence.selection) {
    inv_t_ = 1.0 / static_cast<double>(sequence.temperature);
    scale_ = log2_scale(inv_t_);
  }

  [[nodiscard]] SMARTSPEC_DEVICE core::Cut run() {
    const float head = kMasses ? 8.0F * sequence_.temperature : 12.0F;  // holds the target mostly
    const float all = kMasses ? 28.5F * sequence_.temperature : 64.0F;  // beyond: one bin
    for (bool only_head = true;; only_head = false) {  // one place to inline the search
      floor_ = only_head ? max_ - head : kMinusInf;
      if (only_head && floor_ <= lowest_) continue;
      const float reach = only_head ? head : all;
      if (search(max_ - lowest_ < reach ? max_ - lowest_ : reach)) return found_;
    }
  }

 private:
  [[nodiscard]] SMARTSPEC_DEVICE bool is_head() const { return floor_ > kMinusInf; }

  /// False: the head alone does not tell.
  SMARTSPEC_DEVICE bool search(float reach) {
    const float scale = static_cast<float>(kBins) / reach;
    bins_ = {max_, scale < 1e30F ? scale : 1e30F};
    std::uint64_t above = 0;
    while (true) {
      if (!find_crossing(above)) return false;
      above = s_.above;
      collect();
      if (s_.count <= kListed) return rank(above);
      bins_.descend(s_.bin);
    }
  }

  [[nodiscard]] SMARTSPEC_DEVICE std::uint64_t weight_of(float logit) const {
    if constexpr (!kMasses) return 1;
    const double x = (static_cast<double>(logit) - static_cast<double>(max_)) * inv_t_;
    return x < -29.0 ? 0 : core::to_fixed(core::portable_exp(x));  // below 2^-41: rounds to 0
  }

  /// Calls visit(logit, key) for the kept tokens of the crossing bins so far, and rest(logit) for
  /// the kept ones below the head.
  template <class Visit, class Rest>
  SMARTSPEC_DEVICE void for_each(Visit visit, Rest rest) const {
    const auto take = [&](float l, TokenId v) {
      if (l < floor_) {
        if (cut_.keeps(l, v)) rest(l);
        return;
      }
      if (!cut_.keeps(l, v)) return;
      const std::uint64_t key = core::order_key(l, v);
      if (bins_.holds(l, key)) visit(l, key);
    };
    for_each_quad<kThreads>(row_, [&](std::int32_t v, float (&x)[4]) {
      row_.hide(v, x);
      for (int i = 0; i < 4; ++i) take(x[i], v + i);
    });
    for_each_edit<kThreads>(row_, sequence_.edits, [&](TokenId v, float l) { take(l, v); });
  }

  /// Sets s_.bin and s_.above, the mass of the bins before it.
  SMARTSPEC_DEVICE bool find_crossing(std::uint64_t above) {
    constexpr int kPerThread = (kBins + kThreads - 1) / kThreads;
    const int thread = device::thread_index();
    device::sync_block();
    for (int i = thread; i < kBins; i += kThreads) s_.masses[i] = 0;
    device::sync_block();
    double rest = 0.0;
    for_each(
        [&](float l, std::uint64_t key) {
          const std::uint64_t w = weight_of(l);
          if (w != 0) device::atomic_add(&s_.masses[bins_.bin_of(l, key)], w);
        },
        [&](float l) {
          if constexpr (kMasses) {
            if (bins_.level == 0) {
              rest += static_cast<double>(device::exp2_approx((l - max_) * scale_));
            }
          }
        });
    device::sync_block();
    std::uint64_t own = 0;
    for (int i = 0; i < kPerThread; ++i) {
      const int bin = thread * kPerThread + i;
      if (bin < kBins) own += s_.masses[bin];
    }
    std::uint64_t total = 0;
    std::uint64_t before = above + exclusive_sum<kThreads>(own, total, sequence_.shared->scratch);
    if (bins_.level == 0 && !set_target(total, rest)) return false;
    if (before < target_ && before + own >= target_) {
      int bin = thread * kPerThread;
      while (before + s_.masses[bin] < target_) before += s_.masses[bin++];
      s_.bin = bin;
      s_.above = before;
    }
    device::sync_block();
    return true;
  }

  /// Bounds of the target, `rest` being this thread's share of what is below the head. False: it is
  /// not reached in the head. All threads.
  SMARTSPEC_DEVICE bool set_target(std::uint64_t total, double rest) {
    if constexpr (!kMasses) {
      const auto k = static_cast<std::uint64_t>(sequence_.top_k);
      target_ = k < total ? k : total;
      target_high_ = target_;
      return !is_head() || total >= k;
    }
    const auto p = static_cast<double>(sequence_.top_p);
    target_ = target_high_ = core::top_p_target(p, total);
    if (!is_head()) return true;
    // Relative error of the sum below 2^-16 (exponents down to -41 in single precision: 2^-17), and
    // half a unit of rounding for each of at most `vocab_size` exact masses.
    rest = 0x1p+40 * reduce<kThreads>(rest, 0.0, Sum{}, sequence_.shared->scratch);
    const double rounding = static_cast<double>(row_.end);
    const double low = rest * (1.0 - 0x1p-16) - rounding;
    const double high = rest * (1.0 + 0x1p-16) + rounding;
    if (low > 0.0) target_ = core::top_p_target(p, total + static_cast<std::uint64_t>(low));
    target_high_ = core::top_p_target(p, total + static_cast<std::uint64_t>(high) + 1);
    return total >= target_high_;
  }

  /// Lists the tokens of the crossing bin, as many as fit, and counts them.
  SMARTSPEC_DEVICE void collect() {
    device::sync_block();
    if (device::thread_index() == 0) s_.count = 0;
    device::sync_block();
    for_each(
        [&](float l, std::uint64_t key) {
          if (bins_.bin_of(l, key) != s_.bin) return;
          const std::uint64_t w = weight_of(l);
          if (w == 0) return;
          const int at = device::atomic_add(&s_.count, 1);
          if (at >= kListed) return;
          s_.keys[at] = key;
          s_.weights[at] = w;
        },
        [](float) {});
    device::sync_block();
  }

  [[nodiscard]] SMARTSPEC_DEVICE std::uint64_t mass_down_to(std::uint64_t key,
                                                            std::uint64_t above) const {
    for (int j = 0; j < s_.count; ++j) above += s_.keys[j] >= key ? s_.weights[j] : 0;
    return above;
  }

  /// Sets found_. False: with the target's upper bound it would be another token.
  SMARTSPEC_DEVICE bool rank(std::uint64_t above) {
    std::uint64_t best = 0;
    for (int i = device::thread_index(); i < s_.count; i += kThreads) {
      const std::uint64_t key = s_.keys[i];
      if (key > best && mass_down_to(key, above) >= target_) best = key;
    }
    best = reduce<kThreads>(best, std::uint64_t{0}, Max{}, sequence_.shared->scratch);
    found_ = {core::logit_of(best), core::token_of(best)};
    return target_high_ == target_ || mass_down_to(best, above) >= target_high_;
  }

  const Sequence<kType, kThreads>& sequence_;
  const Row<kType>& row_;
  float max_;
  float lowest_;
  core::Cut cut_;
  Selection& s_;
  double inv_t_ = 1.0;
  float scale_ = 1.0F;       // log2(e) / T
  float floor_ = kMinusInf;  // of the head; -inf: all tokens are
  std::uint64_t target_ = 0;
  std::uint64_t target_high_ = 0;
  core::Cut found_{};
  Bins bins_{};
};

/// What the sampling parameters keep of a sound row. Not for greedy draws. All threads.
template <DType kType, int kThreads>
SMARTSPEC_DEVICE core::Cut filter(const Sequence<kType, kThreads>& sequence, const Row<kType>& row,
                                  const Summary& summary) {
  core::Cut cut;
  if (sequence.min_p > 0.0F) {
    cut.logit = core::min_p_floor(summary.max, 1.0 / static_cast<double>(sequence.temperature),
                                  core::portable_log(static_cast<double>(sequence.min_p)));
  }
  if (sequence.limits_count()) {
    cut = Selector<false, kType, kThreads>(sequence, row, summary, cut).run();
  }
  if (sequence.top_p < 1.0F) {
    cut = Selector<true, kType, kThreads>(sequence, row, summary, cut).run();
  }
  return cut;
}

}  // namespace smartspec::cuda::verification
