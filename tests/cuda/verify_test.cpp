// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The target walk on the device: the CPU's token at every seed, position and parameter.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>

#include "common/launch.cuh"
#include "kernels/verify/target.cuh"
#include "schedule.hpp"
#include "verify_oracle.hpp"

namespace smartspec::test {
namespace {

using cuda::VerifyRule;
using cuda::verification::shared_shape;
using cuda::verification::TargetJob;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// The kernels with few threads: the same code, many more rows per second of the emulation.
template <int kThreads>
void run_job(const TargetJob& job) {
  using cuda::verification::launch_walk;
  const DType dtype = job.verify.dtype;
  if (dtype == DType::kFloat32) return launch_walk<DType::kFloat32, kThreads>(job, nullptr);
  if (dtype == DType::kBFloat16) return launch_walk<DType::kBFloat16, kThreads>(job, nullptr);
  launch_walk<DType::kFloat16, kThreads>(job, nullptr);
}

/// One block per sequence.
template <int kThreads>
void run_small(const cuda::Verify& v, bool aligned) {
  run_job<kThreads>({v, nullptr, aligned, 0, 1, 0});
}

/// The first levels by several blocks per sequence. Leaves the counters of `workspace` at zero.
template <int kThreads>
void run_split(Random& random, const cuda::Verify& v, bool aligned,
               std::vector<std::uint64_t>& workspace) {
  TargetJob job{v, workspace.data(), aligned, 1 + random.below(4), 0, 64};
  while (v.vocab_size > 32 * job.part_tokens) job.part_tokens += 64;
  job.part_tokens += 64 * random.below(4);
  job.num_parts = (v.vocab_size + job.part_tokens - 1) / job.part_tokens;
  run_job<kThreads>(job);
}

DType any_dtype(Random& random) {
  const DType types[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  return types[random.below(3)];
}

/// Parameters that both sides know: no stops, bad words or allowed ids.
SamplingParams device_params(Random& random, int vocab) {
  SamplingParams p = verify_test::random_params(random, vocab);
  p.bad_words.clear();
  p.allowed_token_ids.reset();
  p.stop.clear();
  p.stop_token_ids.clear();
  p.min_tokens = 0;
  p.max_tokens = 1000;
  p.ignore_eos = true;
  p.logprobs.reset();
  if (random.chance(0.1)) p.temperature = 1e-30F;
  if (random.chance(0.1)) p.temperature = 1e4F;
  if (random.chance(0.1)) p.top_p = 1e-9F;
  if (random.chance(0.1)) p.top_p = 0x1.fffffep-1F;
  return p;
}

/// A row in which `token` is likely to be drawn.
std::vector<float> row_for(Random& random, int vocab, TokenId token) {
  const auto shape = static_cast<Shape>(random.below(static_cast<int>(Shape::kCount)));
  std::vector<float> row = verify_test::random_row(random, vocab, shape);
  if (random.chance(0.7)) row[static_cast<std::size_t>(token)] += 12.0F;
  return row;
}

/// `poison`: masked logits may be anything.
void add_masks(Random& random, Pass& pass, bool poison) {
  const auto words = static_cast<std::size_t>((pass.vocab + 31) / 32 + random.below(2));
  for (int m = 0; m < 3; ++m) {
    std::vector<std::uint32_t> mask(words);
    for (std::uint32_t& word : mask) {
      word = static_cast<std::uint32_t>(random.next() | random.next());
    }
    pass.masks.push_back(mask);
  }
  for (std::size_t i = 0; i < pass.rows.values.size(); ++i) {
    pass.mask_rows.push_back(random.below(5) - 2);
    if (pass.mask_rows.back() < 0) continue;
    const auto v = static_cast<TokenId>(random.below(pass.vocab));
    if (poison && !pass.allows(i, v)) pass.rows.set(i, v, random.chance(0.5) ? kInf : -kNan);
  }
}

void add_request(Random& random, Pass& pass, int max_nodes) {
  Request r;
  const int vocab = pass.vocab;
  r.params = device_params(random, vocab);
  r.seed = random.next();
  r.prompt = random.tokens(1 + random.below(6), vocab);
  r.output = random.tokens(random.below(6), vocab);
  const int nodes = random.below(max_nodes + 1);
  for (int n = 0; n < nodes; ++n) {
    const int parent = random.chance(0.6) ? n - 1 : random.below(n + 1) - 1;
    r.tree.add(random.token(vocab), parent);
  }
  r.first_row = static_cast<std::int32_t>(pass.rows.values.size());
  for (int n = -1; n < nodes; ++n) {
    TokenId likely = random.token(vocab);
    for (int c = n + 1; c < nodes; ++c) {
      const auto i = static_cast<std::size_t>(c);
      if (r.tree.parents[i] == n && random.chance(0.8)) likely = r.tree.tokens[i];
    }
    pass.rows.add(row_for(random, vocab, likely), random.chance(0.5) ? kInf : kNan);
  }
  pass.requests.push_back(r);
}

Pass random_pass(Random& random, int vocab, int num_requests, int max_nodes, bool logprobs) {
  Pass pass;
  pass.vocab = vocab;
  pass.rows.dtype = any_dtype(random);
  pass.rows.vocab = vocab;
  pass.rows.stride = random.chance(0.5) ? vocab + random.below(5) : (vocab + 7) / 8 * 8;
  pass.rows.offset = static_cast<std::size_t>(random.chance(0.7) ? 0 : random.below(4));
  for (int i = 0; i < num_requests; ++i) add_request(random, pass, max_nodes);
  if (random.chance(0.3)) add_masks(random, pass, !logprobs);
  return pass;
}

bool is_aligned(const Pass& pass) {
  const std::size_t quad = 4 * size_of(pass.rows.dtype);
  const auto address = reinterpret_cast<std::uintptr_t>(pass.rows.data());
  return address % quad == 0 && pass.rows.stride % 4 == 0;
}

/// One pass by the kernel with kThreads, against the CPU.
template <int kThreads>
void check_random(Random& random, int vocab, int num_requests, int max_nodes) {
  const bool logprobs = random.chance(0.5);
  Pass pass = random_pass(random, vocab, num_requests, max_nodes, logprobs);
  const cuda::Verify v = pass.params(logprobs);
  run_small<kThreads>(v, is_aligned(pass));
  pass.check_against_cpu();
  if (::testing::Test::HasFatalFailure()) return;
  SCOPED_TRACE("split");
  pass.clear_results();
  pass.workspace.resize(cuda::verification::target_workspace_bytes(num_requests) / 8);
  for (int repeat = 0; repeat < 2; ++repeat) {
    run_split<kThreads>(random, v, is_aligned(pass), pass.workspace);
    pass.check_against_cpu();
  }
}

TEST(CudaVerify, SmallVocabularies) {
  Random random(1);
  const int vocabs[] = {1, 2, 3, 8, 31, 32, 33, 63, 64, 65, 130, 257};
  for (int i = 0; i < 2500 / verify_test::kShrink; ++i) {
    SCOPED_TRACE("pass " + std::to_string(i));
    check_random<32>(random, vocabs[random.below(12)], 4, 6);
    if (HasFatalFailure()) return;
  }
}

TEST(CudaVerify, LargeVocabularies) {
  Random random(2);
  for (int i = 0; i < 300 / verify_test::kShrink; ++i) {
    SCOPED_TRACE("pass " + std::to_string(i));
    check_random<64>(random, 500 + random.below(6000), 2, 5);
    if (HasFatalFailure()) return;
  }
}

TEST(CudaVerify, TheLaunchedKernel) {
  Random random(3);
  for (int i = 0; i < 12; ++i) {
    SCOPED_TRACE("pass " + std::to_string(i));
    const bool logprobs = random.chance(0.5);
    Pass pass = random_pass(random, 40 + random.below(30000), 2, 4, logprobs);
    const cuda::Verify v = pass.params(logprobs);
    pass.run(v);
    pass.check_against_cpu();
    if (HasFatalFailure()) return;
  }
}

/// Rows whose crossing bin holds more tokens than are ranked at once: equal logits, two levels, and
/// a dense cluster far below an outlier.
TEST(CudaVerify, CrowdedBins) {
  Random random(4);
  constexpr int kVocab = 4000;
  for (int i = 0; i < 48 / std::min(verify_test::kShrink, 4); ++i) {
    SCOPED_TRACE("pass " + std::to_string(i));
    Pass pass;
    pass.vocab = kVocab;
    pass.rows = {any_dtype(random), kVocab, kVocab, 0, {}, {}};
    std::vector<float> row(kVocab);
    for (float& l : row) {
      const auto x = static_cast<float>(random.unit());
      l = i % 3 == 0   ? -0.5F
          : i % 3 == 1 ? 0.25F * static_cast<float>(random.below(2))
                       : x / 512.0F;
    }
    if (i % 3 == 2) row[17] = 60.0F;
    pass.rows.add(row, 0.0F);
    Request r;
    r.params.temperature = i % 2 == 0 ? 1.0F : 80.0F;
    r.params.top_k = random.chance(0.5) ? 1 + random.below(kVocab) : 0;
    r.params.top_p = random.chance(0.6) ? static_cast<float>(0.05 + 0.9 * random.unit()) : 1.0F;
    r.params.max_tokens = 1000;
    r.seed = random.next();
    r.prompt = {1, 2};
    pass.requests.push_back(r);
    run_small<32>(pass.params(true), is_aligned(pass));
    pass.check_against_cpu();
    if (HasFatalFailure()) return;
  }
}

/// So cold that rounding makes keys of different noise equal: ties go to the lowest token.
TEST(CudaVerify, NoiseRoundedAway) {
  Random random(9);
  for (int i = 0; i < 300 / verify_test::kShrink; ++i) {
    SCOPED_TRACE("pass " + std::to_string(i));
    Pass pass = random_pass(random, 300, 3, 3, false);
    for (Request& r : pass.requests) {
      r.params.temperature = static_cast<float>(std::pow(10.0, -12.0 - 5.0 * random.unit()));
      r.params.top_p = 1.0F;
    }
    for (std::size_t row = 0; row < pass.rows.values.size(); ++row) {
      for (int t = 0; t < 150; ++t) pass.rows.set(row, random.token(300), 13.0F);
    }
    const cuda::Verify v = pass.params(false);
    run_small<32>(v, is_aligned(pass));
    pass.check_against_cpu();
    pass.clear_results();
    pass.workspace.resize(cuda::verification::target_workspace_bytes(3) / 8);
    run_split<32>(random, v, is_aligned(pass), pass.workspace);
    pass.check_against_cpu();
    if (HasFatalFailure()) return;
  }
}

/// The cut of the first row of each sequence.
template <DType kType, int kBlockThreads>
struct CutKernel {
  static constexpr int kThreads = kBlockThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr const char* kName = "cut";
  cuda::Verify verify;
  cuda::verification::SharedShape shape;
  core::Cut* cuts;
  SMARTSPEC_DEVICE void operator()() const {
    const int s = device::block_x();
    cuda::verification::Sequence<kType, kThreads> sequence(verify, s, shape, true, 0,
                                                           verify.vocab_size);
    const auto row = sequence.row(-1);
    const core::Cut cut = filter(sequence, row, sequence.summarize(row));
    if (device::thread_index() == 0) cuts[s] = cut;
  }
};

/// min-p, top-k, top-p by sorting the row.
core::Cut naive_cut(const std::vector<float>& row, const SamplingParams& p) {
  std::vector<std::uint64_t> keys;
  for (std::size_t v = 0; v < row.size(); ++v) {
    if (row[v] > -kInf) keys.push_back(core::order_key(row[v], static_cast<TokenId>(v)));
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());
  const double inv_t = 1.0 / static_cast<double>(p.temperature);
  const double max = static_cast<double>(core::logit_of(keys.front()));
  const auto x = [&](std::uint64_t key) {
    return (static_cast<double>(core::logit_of(key)) - max) * inv_t;
  };
  if (p.min_p > 0.0F) {
    const double least = core::portable_log(static_cast<double>(p.min_p));
    while (x(keys.back()) < least) keys.pop_back();
  }
  if (p.top_k > 0) keys.resize(std::min(keys.size(), static_cast<std::size_t>(p.top_k)));
  if (p.top_p < 1.0F) {
    std::uint64_t total = 0;
    for (const std::uint64_t key : keys) total += core::to_fixed(core::portable_exp(x(key)));
    const std::uint64_t target = core::top_p_target(static_cast<double>(p.top_p), total);
    std::size_t kept = 0;
    for (std::uint64_t mass = 0; mass < target; ++kept) {
      mass += core::to_fixed(core::portable_exp(x(keys[kept])));
    }
    keys.resize(kept);
  }
  return {core::logit_of(keys.back()), core::token_of(keys.back())};
}

/// A top-p next to the share of some prefix of the row: as close to deciding otherwise as can be.
float borderline_top_p(Random& random, const std::vector<float>& row, float temperature) {
  std::vector<float> logits = row;
  std::sort(logits.begin(), logits.end(), std::greater<>());
  std::vector<double> sums = {0.0};
  for (const float l : logits) {
    const double x = (static_cast<double>(l) - static_cast<double>(logits[0])) / temperature;
    sums.push_back(sums.back() + std::exp(x));
  }
  const auto prefix = static_cast<std::size_t>(1 + random.below(static_cast<int>(row.size())));
  auto p = static_cast<float>(sums[prefix] / sums.back());
  const int steps = random.below(5) - 2;
  for (int i = 0; i < std::abs(steps); ++i) p = std::nextafter(p, steps < 0 ? 0.0F : 1.0F);
  return std::min(p, 0x1.fffffep-1F);
}

/// Draws hardly ever see the far end of a cut, so cuts are compared themselves.
TEST(CudaVerify, CutsAreExact) {
  Random random(10);
  for (int i = 0; i < 1500 / verify_test::kShrink; ++i) {
    SCOPED_TRACE("row " + std::to_string(i));
    Pass pass;
    pass.vocab = 1 + random.below(random.chance(0.2) ? 3000 : 300);
    pass.rows = {DType::kFloat32, pass.vocab, (pass.vocab + 3) / 4 * 4, 0, {}, {}};
    Request r;
    r.prompt = {0};
    r.params.temperature = random.chance(0.3) ? 1e4F : static_cast<float>(0.1 + random.unit());
    r.params.top_k = random.chance(0.4) ? 1 + random.below(pass.vocab) : 0;
    r.params.min_p = random.chance(0.3) ? static_cast<float>(random.unit()) : 0.0F;
    r.params.top_p = random.chance(0.3)   ? 0x1.fffffep-1F
                     : random.chance(0.7) ? static_cast<float>(0.01 + 0.98 * random.unit())
                                          : 1.0F;
    std::vector<float> row = row_for(random, pass.vocab, 0);
    if (random.chance(0.3)) {  // masses down to the unit of the sum
      for (float& l : row) l = -static_cast<float>(30.0 * random.unit()) * r.params.temperature;
    }
    if (random.chance(0.4)) {
      r.params.top_k = 0;
      r.params.min_p = 0.0F;
      r.params.top_p = borderline_top_p(random, row, r.params.temperature);
    }
    pass.rows.add(row, 0.0F);
    pass.requests.push_back(r);
    const cuda::Verify v = pass.params(false);
    core::Cut cut{0.0F, -7};
    const CutKernel<DType::kFloat32, 64> kernel{v, shared_shape(v, 0), &cut};
    cuda::launch({1, 1, kernel.shape.bytes}, nullptr, kernel);
    const core::Cut expected = naive_cut(pass.rows.values[0], r.params);
    for (int t = 0; t < pass.vocab; ++t) {
      const float l = pass.rows.values[0][static_cast<std::size_t>(t)];
      if (l > -kInf) {
        ASSERT_EQ(cut.keeps(l, t), expected.keeps(l, t)) << t;
      }
    }
  }
}

TEST(CudaVerify, SameInAnyOrder) {
  Random random(5);
  for (int i = 0; i < 6; ++i) {
    Pass pass = random_pass(random, 700, 3, 6, true);
    const cuda::Verify v = pass.params(true);
    emulation::for_each_schedule(3, [&] {
      run_small<128>(v, is_aligned(pass));
      pass.check_against_cpu();
    });
    if (HasFatalFailure()) return;
  }
}

/// Status 1 and 2 end a walk in the middle; what came before stays.
TEST(CudaVerify, FaultyRows) {
  Random random(6);
  for (int i = 0; i < 200 / verify_test::kShrink; ++i) {
    SCOPED_TRACE("pass " + std::to_string(i));
    const int vocab = 5 + random.below(90);
    Pass pass = random_pass(random, vocab, 3, 6, false);
    for (std::size_t row = 0; row < pass.rows.values.size(); ++row) {
      if (random.chance(0.6)) continue;
      const int fault = random.below(3);
      if (fault == 2) {
        for (int t = 0; t < vocab; ++t) pass.rows.set(row, t, -kInf);
      } else {
        pass.rows.set(row, random.token(vocab), fault == 0 ? kInf : kNan);
      }
    }
    const cuda::Verify v = pass.params(false);
    run_small<32>(v, is_aligned(pass));
    pass.check_against_cpu();
    if (HasFatalFailure()) return;
    pass.clear_results();
    pass.workspace.resize(cuda::verification::target_workspace_bytes(3) / 8);
    run_split<32>(random, v, is_aligned(pass), pass.workspace);
    pass.check_against_cpu();
    if (HasFatalFailure()) return;
  }
}

TEST(CudaVerify, DefaultsAreThoseOfTheHeader) {
  Random random(7);
  for (int i = 0; i < 40; ++i) {
    Pass pass;
    pass.vocab = 50;
    pass.rows = {DType::kFloat32, 50, 50, 0, {}, {}};
    add_request(random, pass, 5);
    const std::vector<TokenId> prompt = pass.requests[0].prompt;
    pass.requests[0].params = {};
    pass.requests[0].params.max_tokens = 1000;
    cuda::Verify v = pass.params(false);
    v.temperature = v.top_p = v.min_p = nullptr;
    v.repetition_penalty = v.frequency_penalty = v.presence_penalty = v.count_bias = nullptr;
    v.top_k = v.count_offsets = v.count_tokens = v.output_counts = nullptr;
    pass.run(v);
    pass.check_against_cpu();
    if (HasFatalFailure()) return;
  }
}

TEST(CudaVerify, PathStrideIsNotExceeded) {
  Pass pass;
  pass.vocab = 40;
  pass.rows = {DType::kFloat32, 40, 40, 0, {}, {}};
  Request r;
  r.params.temperature = 0.0F;
  const std::vector<TokenId> chain = {3, 4, 5, 6};
  r.tree = TokenTree::chain(chain);
  for (const TokenId t : {3, 4, 5, 6, 7}) {
    std::vector<float> row(40, 0.0F);
    row[static_cast<std::size_t>(t)] = 1.0F;
    pass.rows.add(row, 0.0F);
  }
  pass.requests = {r};
  cuda::Verify v = pass.params(false);
  v.path_stride = 3;
  pass.run(v);
  EXPECT_EQ(pass.num_accepted[0], 2);
  EXPECT_EQ(pass.tokens, (std::vector<TokenId>{3, 4, 5, -7, -7}));
}

/// The message names the field, its value and what is allowed.
void expect_refused(const cuda::Verify& v, const std::string& words) {
  std::vector<std::uint64_t> workspace(10000);
  try {
    cuda::verify(v, workspace.data(), workspace.size() * 8, nullptr);
    ADD_FAILURE() << "not refused: " << words;
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
}

TEST(CudaVerify, RefusesWhatCannotBe) {
  Random random(8);
  Pass pass = random_pass(random, 64, 2, 4, false);
  const cuda::Verify good = pass.params(false);
  const auto refused = [&](const std::string& words, auto change) {
    cuda::Verify v = good;
    change(v);
    expect_refused(v, words);
  };
  refused("num_sequences is -1", [](auto& v) { v.num_sequences = -1; });
  refused("vocab_size is 0", [](auto& v) { v.vocab_size = 0; });
  refused("logits is null", [](auto& v) { v.logits = nullptr; });
  refused("dtype is int32", [](auto& v) { v.dtype = DType::kInt32; });
  refused("logits_stride is 63", [](auto& v) { v.logits_stride = 63; });
  refused("logits_offsets is null", [](auto& v) { v.logits_offsets = nullptr; });
  refused("node_offsets is null", [](auto& v) { v.node_offsets = nullptr; });
  refused("seeds is null", [](auto& v) { v.seeds = nullptr; });
  refused("positions is null", [](auto& v) { v.positions = nullptr; });
  refused("count_offsets is null", [](auto& v) { v.count_offsets = nullptr; });
  refused("mask_rows is null", [](auto& v) {
    v.masks = reinterpret_cast<const std::uint32_t*>(v.seeds);
    v.mask_rows = nullptr;
  });
  refused("mask_stride is 1", [](auto& v) {
    v.masks = reinterpret_cast<const std::uint32_t*>(v.seeds);
    v.mask_rows = v.parents;
    v.mask_stride = 1;
  });
  refused("status is null", [](auto& v) { v.status = nullptr; });
  refused("tokens is null", [](auto& v) { v.tokens = nullptr; });
  refused("path is null", [](auto& v) { v.path = nullptr; });
  refused("num_accepted is null", [](auto& v) { v.num_accepted = nullptr; });
  refused("path_stride is 0", [](auto& v) { v.path_stride = 0; });
  refused("vocab_size is 4000000", [](auto& v) {
    v.vocab_size = 4000000;
    v.logits_stride = 4000000;
    v.masks = nullptr;
    v.mask_rows = nullptr;
  });
  std::vector<std::uint64_t> workspace(10000);
  const std::size_t bytes = cuda::verify_workspace_bytes(VerifyRule::kTarget, 2, 4, 64);
  EXPECT_THROW(cuda::verify(good, workspace.data(), bytes - 1, nullptr), std::invalid_argument);
  EXPECT_THROW(cuda::verify(good, nullptr, bytes, nullptr), std::invalid_argument);
  EXPECT_THROW(cuda::verify(good, workspace.data() + 1, bytes + 8, nullptr), std::invalid_argument);
  cuda::Verify none = good;
  none.num_sequences = 0;
  EXPECT_NO_THROW(cuda::verify(none, nullptr, 0, nullptr));
}

}  // namespace
}  // namespace smartspec::test
