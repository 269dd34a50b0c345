// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The rules with draft probabilities, as one traversal.
//
// Traversal verification (Weng et al. 2025), children first. A node v comes with an acceptance a
// (root: 1), the target's distribution P and the draft's Q after it. For each child x in order:
//   the child's acceptance is min(1, a P(x) / Q(x)); its own subtree is looked at first
//   if it was not accepted: R = [a P - Q]+, S = sum R, a <- S / (S + 1 - a), P <- R / S,
//   Q(x) <- 0 and Q renormalised, as siblings are drawn without replacement
// then v is accepted with probability a, and the next token is drawn from P; else back to v's
// parent. With first children only this is block verification (Sun et al. 2024). The token rule
// (Leviathan et al. 2023) goes the other way: x is accepted with min(1, P(x) / Q(x)), then R.
//
// P after some rejections is computed from the logits and a few numbers per rejected child whenever
// it is needed: nothing of vocabulary size is stored.
#pragma once

#include <cstdint>

#include "common/device.cuh"
#include "core/noise.hpp"
#include "core/portable_math.hpp"
#include "kernels/verify/block.cuh"
#include "kernels/verify/select.cuh"
#include "kernels/verify/sequence.cuh"
#include "smartspec/cuda_ops.hpp"

namespace smartspec::cuda::verification {

/// A rejected child, as its parent's distribution remembers it.
struct Rejection {
  TokenId token;
  float acceptance;    // a before it
  float draft_scale;   // 1 / mass of Q that earlier siblings left
  float target_scale;  // 1 / S
};

/// Lies in shared memory: node -1 has index 0.
struct RuleState {
  float acceptance[kMaxTreeNodes + 1];
  float draft_mass[kMaxTreeNodes + 1];  // of Q that the children so far left
  float max[kMaxTreeNodes + 1];
  float norm[kMaxTreeNodes + 1];  // 1 / sum of exp; < 0: row not looked at yet
  core::Cut cut[kMaxTreeNodes + 1];
  TokenId first[kMaxTreeNodes + 1];
  std::int32_t status[kMaxTreeNodes + 1];
  double log_sum[kMaxTreeNodes + 1];
  Rejection rejections[kMaxTreeNodes + 1];  // of the child with this index
  std::int32_t rejected[kMaxTreeNodes + 1];
  Rejection frames[kMaxTreeNodes];  // those of one node, in order
  double sums[device::kWarp];
};

/// Uniform numbers of (seed, position of the step, node): a step reads each once, and no two steps
/// share a position.
struct SeededUniforms {
  template <class AnySequence>
  [[nodiscard]] SMARTSPEC_DEVICE double accept(const AnySequence& s, std::int32_t node) const {
    return core::uniform_at(s.seed, s.position, static_cast<std::uint32_t>(node),
                            core::Purpose::kAccept);
  }
  template <class AnySequence>
  [[nodiscard]] SMARTSPEC_DEVICE double residual(const AnySequence& s) const {
    return core::uniform_at(s.seed, s.position, 0, core::Purpose::kResidual);
  }
};

/// The distribution after one node, less what its rejected children took. Equal in all threads.
template <DType kType>
struct Residual {
  Row<kType> row{};
  float max = 0.0F;
  float scale = 1.0F;  // log2(e) / T
  float norm = 1.0F;
  core::Cut cut{};
  TokenId only = -1;             // greedy: the token that has all mass
  const float* draft = nullptr;  // [vocab]; null: children are point masses
  const Rejection* frames = nullptr;
  std::int32_t num_frames = 0;

  [[nodiscard]] SMARTSPEC_DEVICE float target(float l, TokenId v) const {
    if (only >= 0) return v == only ? 1.0F : 0.0F;
    return cut.keeps(l, v) ? device::exp2_approx((l - max) * scale) * norm : 0.0F;
  }
  [[nodiscard]] SMARTSPEC_DEVICE float probability(float l, TokenId v) const {
    float p = target(l, v);
    for (std::int32_t t = 0; t < num_frames && p > 0.0F; ++t) {
      // Q of tokens rejected before is not needed as 0: nothing is left of their P.
      const Rejection& f = frames[t];
      const float q = draft != nullptr ? draft[v] * f.draft_scale : v == f.token ? 1.0F : 0.0F;
      const float rest = f.acceptance * p - q;
      p = rest > 0.0F ? rest * f.target_scale : 0.0F;
    }
    return p;
  }
  /// Of a child drawn next.
  [[nodiscard]] SMARTSPEC_DEVICE float draft_probability(TokenId v, float mass) const {
    if (draft == nullptr) return 1.0F;
    for (std::int32_t t = 0; t < num_frames; ++t) {
      if (frames[t].token == v) return 0.0F;
    }
    return draft[v] / mass;
  }
};

template <DType kType, int kThreads>
class RuleWalk {
 public:
  SMARTSPEC_DEVICE RuleWalk(Sequence<kType, kThreads>& sequence, RuleState& state)
      : sequence_(sequence), state_(state) {
    if (sequence.num_nodes > kMaxTreeNodes) sequence.num_nodes = kMaxTreeNodes;
    const double inv_t = sequence.greedy() ? 1.0 : 1.0 / static_cast<double>(sequence.temperature);
    scale_ = log2_scale(inv_t);
    for (std::int32_t i = device::thread_index(); i <= kMaxTreeNodes; i += kThreads) {
      state_.norm[i] = -1.0F;
      state_.rejected[i] = 0;
    }
    device::sync_block();
  }

  /// Leaves the last accepted node in `node`; gives the next token, or -1 and a status. The large
  /// steps stand in one place each, because all of this is inlined.
  template <class Uniforms>
  SMARTSPEC_DEVICE TokenId run(const Uniforms& uniforms) {
    const bool is_token_rule = sequence_.verify.rule == VerifyRule::kToken;
    enter(-1, 1.0F);
    std::int32_t after = -1;     // last child of `node` that was looked at
    std::int32_t rejected = -1;  // child of `node` that is to be taken out
    bool ends = false;           // at `node`
    while (true) {
      const std::int32_t child = ends || rejected >= 0 ? -1 : next_child(node, after);
      if (rejected < 0 && !ends && child < 0) {
        if (is_token_rule || node < 0 || accepts(uniforms, node, state_.acceptance[node + 1])) {
          ends = true;
        } else {
          rejected = after = node;
          node = sequence_.parent(node);
          sequence_.edits.pop();
        }
      }
      status = look_at(node);
      if (ends) break;
      if (status != 0) {  // its children cannot be judged
        after = sequence_.num_nodes;
        continue;
      }
      Residual<kType> r = residual(node);
      if (rejected >= 0) {
        reject(node, rejected, r);
        rejected = -1;
        ends = is_token_rule;
        continue;
      }
      after = child;
      const TokenId token = sequence_.token(child);
      const float q = r.draft_probability(token, state_.draft_mass[node + 1]);
      if (q <= 0.0F) continue;  // not drawn from Q: as if it were not there
      float share = state_.acceptance[node + 1] * probability_of(r, token) / q;
      share = share < 1.0F ? share : 1.0F;
      if (is_token_rule ? accepts(uniforms, child, share) : share > 0.0F) {
        enter(child, is_token_rule ? 1.0F : share);
        after = -1;
      } else {
        rejected = child;
      }
    }
    return status != 0 ? -1 : draw(residual(node), uniforms.residual(sequence_));
  }

  std::int32_t node = -1;
  std::int32_t status = 0;

 private:
  /// First child of `parent` with an index above `after`, or -1; for chains only the first one.
  [[nodiscard]] SMARTSPEC_DEVICE std::int32_t next_child(std::int32_t parent,
                                                         std::int32_t after) const {
    constexpr std::int32_t kNone = kMaxTreeNodes;
    const std::int32_t from = parent > after ? parent : after;
    std::int32_t found = kNone;
    for (std::int32_t n = from + 1 + device::thread_index(); n < sequence_.num_nodes;
         n += kThreads) {
      if (found == kNone && sequence_.parent(n) == parent) found = n;
    }
    found = reduce<kThreads>(found, kNone, Min{}, sequence_.shared->scratch);
    const bool chain = sequence_.verify.rule != VerifyRule::kTraversal;
    return found == kNone || (chain && after >= 0) ? -1 : found;
  }

  SMARTSPEC_DEVICE void enter(std::int32_t child, float acceptance) {
    if (device::thread_index() == 0) {
      state_.acceptance[child + 1] = acceptance;
      state_.draft_mass[child + 1] = 1.0F;
    }
    if (child >= 0) sequence_.edits.push(sequence_.token(child));
    device::sync_block();
    node = child;
  }

  /// Summary, cut and normaliser of the row after `n`, once; its status.
  SMARTSPEC_DEVICE std::int32_t look_at(std::int32_t n) {
    const std::int32_t i = n + 1;
    if (state_.norm[i] >= 0.0F) return state_.status[i];
    const Row<kType> row = sequence_.row(n);
    const Summary summary = sequence_.summarize(row);
    Residual<kType> whole;
    whole.max = summary.max;
    whole.scale = scale_;
    if (summary.status == 0 && !sequence_.greedy()) whole.cut = filter(sequence_, row, summary);
    float norm = 1.0F;
    if (summary.status == 0 && !sequence_.greedy()) {
      whole.row = row;
      norm = static_cast<float>(1.0 /
                                sum(whole, [&](float l, TokenId v) { return whole.target(l, v); }));
    }
    device::sync_block();
    if (device::thread_index() == 0) {
      state_.max[i] = summary.max;
      state_.norm[i] = norm;
      state_.cut[i] = whole.cut;
      state_.first[i] = summary.first;
      state_.status[i] = summary.status;
      state_.log_sum[i] =
          summary.status == 0 && sequence_.verify.logprobs != nullptr ? summary.log_sum() : 0.0;
    }
    device::sync_block();
    return summary.status;
  }

  /// What look_at() and the rejected children of `n` say.
  [[nodiscard]] SMARTSPEC_DEVICE Residual<kType> residual(std::int32_t n) {
    Residual<kType> r;
    r.row = sequence_.row(n);
    r.max = state_.max[n + 1];
    r.scale = scale_;
    r.norm = state_.norm[n + 1];
    r.cut = state_.cut[n + 1];
    if (sequence_.greedy()) r.only = state_.first[n + 1];
    const Verify& v = sequence_.verify;
    const std::int32_t draft =
        v.draft_probs == nullptr ? -1 : v.draft_rows[sequence_.first_row + 1 + n];
    if (draft >= 0) r.draft = v.draft_probs + std::int64_t{draft} * v.vocab_size;
    device::sync_block();
    for (std::int32_t c = n + 1; c < sequence_.num_nodes; ++c) {
      if (state_.rejected[c] == 0 || sequence_.parent(c) != n) continue;
      if (device::thread_index() == 0) state_.frames[r.num_frames] = state_.rejections[c];
      ++r.num_frames;
    }
    device::sync_block();
    r.frames = state_.frames;
    return r;
  }

  /// Sum of f(logit, token) over the row. The same order each time.
  template <class F>
  [[nodiscard]] SMARTSPEC_DEVICE double sum(const Residual<kType>& r, F f) const {
    float own = 0.0F;
    for_each_quad<kThreads>(r.row, [&](std::int32_t v, float (&x)[4]) {
      r.row.hide(v, x);
      SMARTSPEC_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (x[i] > kMinusInf) own += f(x[i], v + i);
      }
    });
    for_each_edit<kThreads>(r.row, sequence_.edits, [&](TokenId v, float l) {
      if (l > kMinusInf) own += f(l, v);
    });
    return reduce<kThreads>(static_cast<double>(own), 0.0, Sum{}, sequence_.shared->scratch);
  }

  [[nodiscard]] SMARTSPEC_DEVICE float probability_of(const Residual<kType>& r, TokenId v) const {
    const Edits& edits = sequence_.edits;
    float p = 0.0F;
    if (edits.bitmap == nullptr || !bit_of(edits.bitmap, v)) {
      const float l = r.row.visible(v);
      return l > kMinusInf ? r.probability(l, v) : 0.0F;
    }
    for_each_edit<kThreads>(r.row, edits, [&](TokenId other, float l) {
      if (other == v && l > kMinusInf) p = r.probability(l, v);
    });
    return reduce<kThreads>(p, 0.0F, Max{}, sequence_.shared->scratch);
  }

  /// Takes the child's share out of its parent's distribution.
  SMARTSPEC_DEVICE void reject(std::int32_t parent, std::int32_t child, Residual<kType>& r) {
    const float a = state_.acceptance[parent + 1];
    const float mass = state_.draft_mass[parent + 1];
    const TokenId token = sequence_.token(child);
    Rejection rejection{token, a, 1.0F / mass, 1.0F};
    device::sync_block();
    if (device::thread_index() == 0) state_.frames[r.num_frames] = rejection;
    ++r.num_frames;
    device::sync_block();
    const double rest = sum(r, [&](float l, TokenId v) { return r.probability(l, v); });
    const float left = r.draft == nullptr ? 1.0F : draft_left(r, mass - r.draft[token]);
    device::sync_block();
    if (device::thread_index() == 0) {
      const double denominator = rest + 1.0 - static_cast<double>(a);
      rejection.target_scale = rest > 0.0 ? static_cast<float>(1.0 / rest) : 0.0F;
      state_.rejections[child] = rejection;
      state_.rejected[child] = 1;
      state_.acceptance[parent + 1] = rest > 0.0 ? static_cast<float>(rest / denominator) : 0.0F;
      state_.draft_mass[parent + 1] = left;
    }
    device::sync_block();
  }

  /// Mass of Q on the tokens not tried; `guess` is good unless most of it is gone.
  [[nodiscard]] SMARTSPEC_DEVICE float draft_left(const Residual<kType>& r, float guess) const {
    if (guess > 0.05F) return guess;
    float own = 0.0F;
    for (TokenId v = device::thread_index(); v < r.row.end; v += kThreads) {
      own += r.draft_probability(v, 1.0F);
    }
    return static_cast<float>(
        reduce<kThreads>(static_cast<double>(own), 0.0, Sum{}, sequence_.shared->scratch));
  }

  template <class Uniforms>
  [[nodiscard]] SMARTSPEC_DEVICE bool accepts(const Uniforms& uniforms, std::int32_t n,
                                              float probability) const {
    return uniforms.accept(sequence_, n) < static_cast<double>(probability);
  }

  /// Token i of the order in which a draw adds up: the row, then the edited tokens.
  [[nodiscard]] SMARTSPEC_DEVICE double weight(const Residual<kType>& r, std::int64_t i,
                                               TokenId& v) const {
    const std::int32_t vocab = r.row.end;
    const auto j = static_cast<std::int32_t>(i - vocab);
    v = i < vocab ? static_cast<TokenId>(i) : sequence_.edits.token(j);
    const float l = i < vocab ? r.row.visible(v) : sequence_.edits.logit(r.row, j);
    return l > kMinusInf ? static_cast<double>(r.probability(l, v)) : 0.0;
  }

  /// Token at which the sum of weights passes u times their total.
  SMARTSPEC_DEVICE TokenId draw(Residual<kType> r, double u);
  SMARTSPEC_DEVICE TokenId scan(const Residual<kType>& r, std::int64_t begin, std::int64_t end,
                                double target) const;
  SMARTSPEC_DEVICE double narrow(const Residual<kType>& r, std::int64_t& begin, std::int64_t& end,
                                 double target, bool is_share);

  Sequence<kType, kThreads>& sequence_;
  RuleState& state_;
  float scale_ = 1.0F;
};

/// Keeps that part of [begin, end), of one per warp, in which the sum passes `target` (with
/// is_share: times the total); gives the target within it. Less than 0: there is no mass.
template <DType kType, int kThreads>
SMARTSPEC_DEVICE double RuleWalk<kType, kThreads>::narrow(const Residual<kType>& r,
                                                          std::int64_t& begin, std::int64_t& end,
                                                          double target, bool is_share) {
  constexpr int kWarps = kThreads / device::kWarp;
  const std::int64_t part = (end - begin + kWarps - 1) / kWarps;
  const auto clamp = [&](std::int64_t i) { return i < end ? i : end; };
  const std::int64_t first = clamp(begin + part * device::warp_index());
  const std::int64_t last = clamp(first + part);
  double own = 0.0;
  for (std::int64_t i = first + device::lane_index(); i < last; i += device::kWarp) {
    TokenId v = 0;
    own += weight(r, i, v);
  }
  for (int mask = device::kWarp / 2; mask > 0; mask /= 2) own += device::shuffle_xor(own, mask);
  device::sync_block();
  if (device::lane_index() == 0) state_.sums[device::warp_index()] = own;
  device::sync_block();
  double total = 0.0;
  int last_with_mass = -1;
  for (int w = 0; w < kWarps; ++w) {
    total += state_.sums[w];
    if (state_.sums[w] > 0.0) last_with_mass = w;
  }
  if (last_with_mass < 0) return -1.0;
  if (is_share) target *= total;
  int w = 0;
  while (w < last_with_mass && target >= state_.sums[w]) target -= state_.sums[w++];
  begin = clamp(begin + part * w);
  end = clamp(begin + part);
  return target;
}

template <DType kType, int kThreads>
SMARTSPEC_DEVICE TokenId RuleWalk<kType, kThreads>::scan(const Residual<kType>& r,
                                                         std::int64_t begin, std::int64_t end,
                                                         double target) const {
  TokenId last = -1;
  for (std::int64_t i = begin; i < end; i += device::kWarp) {
    const std::int64_t own = i + device::lane_index();
    TokenId v = 0;
    const double w = own < end ? weight(r, own, v) : 0.0;
    double sum = w;
    for (int delta = 1; delta < device::kWarp; delta *= 2) {
      const double below = device::shuffle_up(sum, delta);
      if (device::lane_index() >= delta) sum += below;
    }
    const std::uint32_t passed = device::ballot(w > 0.0 && sum > target);
    if (passed != 0) return device::shuffle(v, device::lowest_bit(passed));
    const std::uint32_t positive = device::ballot(w > 0.0);
    // Rounding may keep the sum below the target: the last token with mass then.
    int highest = 0;
    for (std::uint32_t bits = positive; bits > 1; bits >>= 1) ++highest;
    if (positive != 0) last = device::shuffle(v, highest);
    target -= device::shuffle(sum, device::kWarp - 1);
  }
  return last;
}

template <DType kType, int kThreads>
SMARTSPEC_DEVICE TokenId RuleWalk<kType, kThreads>::draw(Residual<kType> r, double u) {
  std::int64_t begin = 0;
  std::int64_t end = r.row.end + std::int64_t{sequence_.edits.size()};
  double target = narrow(r, begin, end, u, true);
  if (target < 0.0) {  // P was Q up to rounding, and yet its draw was rejected
    r.num_frames = 0;
    target = narrow(r, begin, end, u, true);
  }
  for (int level = 0; level < 2 && end - begin > device::kWarp && kThreads > device::kWarp;
       ++level) {
    const double inner = narrow(r, begin, end, target, false);
    target = inner < 0.0 ? target : inner;
  }
  return scan(r, begin, end, target);
}

template <DType kType, int kBlockThreads, class Uniforms>
struct RuleKernel {
  static constexpr int kThreads = kBlockThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr const char* kName = "verify (draft probabilities)";
  Verify verify;
  SharedShape shape;
  bool aligned;
  Uniforms uniforms;

  SMARTSPEC_DEVICE void operator()() const {
    const std::int32_t s = device::block_x();
    Sequence<kType, kThreads> sequence(verify, s, shape, aligned, 0, verify.vocab_size);
    auto& state = *reinterpret_cast<RuleState*>(device::shared_memory() + shape.rest);
    RuleWalk<kType, kThreads> walk(sequence, state);
    const TokenId token = walk.run(uniforms);
    if (device::thread_index() == 0) write(sequence, state, walk.node, walk.status, token);
  }

  /// From the last node up to the root. A path longer than path_stride loses its end.
  SMARTSPEC_DEVICE void write(const Sequence<kType, kThreads>& sequence, const RuleState& state,
                              std::int32_t node, std::int32_t status, TokenId token) const {
    std::int32_t length = 0;
    for (std::int32_t n = node; n >= 0; n = sequence.parent(n)) ++length;
    const std::int64_t out = sequence.index * verify.path_stride;
    const auto emit = [&](std::int32_t i, std::int32_t from, TokenId t) {
      if (i >= verify.path_stride) return;
      verify.tokens[out + i] = t;
      if (verify.logprobs == nullptr) return;
      const double log_sum = state.log_sum[from + 1];
      verify.logprobs[out + i] =
          static_cast<float>(static_cast<double>(sequence.row(from).raw(t)) - log_sum);
    };
    if (status == 0) emit(length, node, token);
    std::int32_t i = length;
    for (std::int32_t n = node; n >= 0; n = sequence.parent(n)) {
      emit(--i, sequence.parent(n), sequence.token(n));
      if (i < verify.path_stride) verify.path[out + i] = n;
    }
    const auto most = static_cast<std::int32_t>(verify.path_stride - 1);
    verify.num_accepted[sequence.index] = length < most ? length : most;
    verify.status[sequence.index] = status;
  }
};

}  // namespace smartspec::cuda::verification
