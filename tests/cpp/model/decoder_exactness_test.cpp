// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A row's logits are the same bits however it is batched: prefill, chunks, single tokens, trees
// in one pass or level by level, beside other sequences, with one thread or two.
#include <gtest/gtest.h>

#include <cstring>
#include <stdexcept>

#include "model/decoder_fixture.hpp"

namespace smartspec::testing {
namespace {

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void expect_same(const Logits& got, const Logits& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(same_bits(got[i], want[i])) << what << ", row " << i;
  }
}

struct Setting {
  const char* isa;
  DType dtype;
  std::int32_t num_threads;
};

const Setting kSettings[] = {
    {"generic", DType::kFloat32, 1},     {"generic", DType::kBFloat16, 2},
    {"avx2", DType::kFloat32, 2},        {"avx2", DType::kBFloat16, 1},
    {"avx512", DType::kFloat32, 2},      {"avx512", DType::kBFloat16, 1},
    {"avx512_bf16", DType::kFloat32, 1}, {"avx512_bf16", DType::kBFloat16, 2}};

class DecoderExactness : public ::testing::TestWithParam<NamedConfig> {
 protected:
  /// Runs `body(lab, rng)` for every setting this CPU has.
  template <class Body>
  void for_each_setting(const Body& body) {
    const ModelConfig& config = GetParam().config;
    for (const Setting& setting : kSettings) {
      const auto runtime = runtime_with(setting.isa, setting.num_threads);
      if (runtime == nullptr) continue;
      SCOPED_TRACE(std::string(setting.isa) + " " + name_of(setting.dtype));
      const Weights weights(config, setting.dtype, 3);
      Lab lab(make_model(runtime, config, weights, setting.dtype), setting.dtype);
      std::mt19937_64 rng(17);
      body(lab, rng);
      if (HasFatalFailure()) return;
    }
  }
  [[nodiscard]] std::vector<TokenId> tokens(std::size_t count, std::mt19937_64& rng) const {
    return random_tokens(count, GetParam().config.vocab_size, rng);
  }
};

TEST_P(DecoderExactness, PrefillChunksAndSingleTokensAgree) {
  for_each_setting([&](Lab& lab, std::mt19937_64& rng) {
    const std::vector<TokenId> prompt = tokens(70, rng);
    Paged whole = lab.sequence();
    const Logits want = lab.chain(whole, prompt);
    Paged single = lab.sequence();
    expect_same(lab.one_by_one(single, prompt), want, "token by token");
    for (int trial = 0; trial < 4; ++trial) {
      Paged chunked = lab.sequence();
      Logits got;
      for (std::size_t done = 0; done < prompt.size();) {
        const std::size_t size = std::min<std::size_t>(1 + rng() % 25, prompt.size() - done);
        const auto first = prompt.begin() + static_cast<std::ptrdiff_t>(done);
        const Logits part = lab.chain(chunked, {first, first + static_cast<std::ptrdiff_t>(size)});
        got.insert(got.end(), part.begin(), part.end());
        done += size;
      }
      expect_same(got, want, "chunks");
    }
  });
}

TEST_P(DecoderExactness, AskingForFewerLogitsChangesNone) {
  for_each_setting([&](Lab& lab, std::mt19937_64& rng) {
    const std::vector<TokenId> prompt = tokens(40, rng);
    Paged whole = lab.sequence();
    const Logits want = lab.chain(whole, prompt);
    for (const std::vector<std::int32_t>& wanted :
         {std::vector<std::int32_t>{39}, {0}, {3, 4, 20, 38}, {}}) {
      Paged again = lab.sequence();
      ForwardBatch batch;
      again.add_rows(batch, prompt, {}, {}, 0, wanted);
      Logits expected;
      for (const std::int32_t row : wanted) expected.push_back(want[static_cast<std::size_t>(row)]);
      expect_same(lab.run(batch), expected, "some rows");
      // What the pass left in the cache must not depend on the rows asked for either.
      Paged full = lab.sequence();
      (void)lab.chain(full, prompt);
      expect_same(lab.chain(again, {1, 2}), lab.chain(full, {1, 2}), "after some rows");
    }
  });
}

TEST_P(DecoderExactness, RaggedBatchEqualsEachSequenceAlone) {
  for_each_setting([&](Lab& lab, std::mt19937_64& rng) {
    const std::vector<std::size_t> prefix_sizes = {33, 0, 7};
    const std::vector<std::vector<TokenId>> chains = {tokens(1, rng), tokens(21, rng),
                                                      tokens(3, rng)};
    const Tree tree = random_tree(9, GetParam().config.vocab_size, rng);
    std::vector<Paged> together;
    std::vector<std::vector<TokenId>> prefixes;
    Logits want;
    for (std::size_t i = 0; i < 3; ++i) {
      prefixes.push_back(tokens(prefix_sizes[i], rng));
      Paged sequence = lab.sequence();
      if (!prefixes[i].empty()) (void)lab.chain(sequence, prefixes[i]);
      ForwardBatch batch;
      const Tree& nodes = i == 2 ? tree : Tree{};
      std::vector<std::int32_t> wanted(chains[i].size() + nodes.tokens.size());
      std::iota(wanted.begin(), wanted.end(), 0);
      sequence.add_rows(batch, chains[i], nodes.tokens, nodes.parents, 0, wanted);
      const Logits part = lab.run(batch);
      want.insert(want.end(), part.begin(), part.end());
    }
    ForwardBatch batch;
    const Tree none;
    for (std::size_t i = 0; i < 3; ++i) {
      together.push_back(lab.sequence());
      if (!prefixes[i].empty()) (void)lab.chain(together[i], prefixes[i]);
    }
    for (std::size_t i = 0; i < 3; ++i) {
      const Tree& nodes = i == 2 ? tree : none;
      std::vector<std::int32_t> wanted(chains[i].size() + nodes.tokens.size());
      std::iota(wanted.begin(), wanted.end(), 0);
      together[i].add_rows(batch, chains[i], nodes.tokens, nodes.parents, 0, wanted);
    }
    expect_same(lab.run(batch), want, "ragged batch");
  });
}

TEST_P(DecoderExactness, TreeRowsEqualChains) {
  for_each_setting([&](Lab& lab, std::mt19937_64& rng) {
    const std::vector<TokenId> prompt = tokens(14 + rng() % 20, rng);
    const std::int32_t size = 10;
    const Tree tree = random_tree(size, GetParam().config.vocab_size, rng);
    Paged verified = lab.sequence();
    (void)lab.chain(verified, prompt);
    ForwardBatch batch;
    std::vector<std::int32_t> wanted(static_cast<std::size_t>(size) + 1);
    std::iota(wanted.begin(), wanted.end(), 0);
    const TokenId bonus = 5;
    verified.add_rows(batch, {bonus}, tree.tokens, tree.parents, 0, wanted);
    const Logits got = lab.run(batch);

    Paged levels = lab.sequence();
    (void)lab.chain(levels, prompt);
    Logits by_level = lab.chain(levels, {bonus});
    for (std::int32_t start = 0; start < size;) {
      const std::int32_t end =
          std::min<std::int32_t>(size, start + 1 + static_cast<std::int32_t>(rng() % 3));
      const Tree part{{tree.tokens.begin(), tree.tokens.begin() + end},
                      {tree.parents.begin(), tree.parents.begin() + end}};
      ForwardBatch level;
      std::vector<std::int32_t> rows(static_cast<std::size_t>(end - start));
      std::iota(rows.begin(), rows.end(), 0);
      levels.add_rows(level, {}, part.tokens, part.parents, start, rows);
      const Logits logits = lab.run(level);
      by_level.insert(by_level.end(), logits.begin(), logits.end());
      start = end;
    }
    expect_same(by_level, got, "levels");

    for (std::int32_t node = 0; node < size; ++node) {
      Paged plain = lab.sequence();
      (void)lab.chain(plain, prompt);
      (void)lab.chain(plain, {bonus});
      const Logits chain = lab.one_by_one(plain, tree.tokens_to(node));
      ASSERT_TRUE(same_bits(got[static_cast<std::size_t>(node) + 1], chain.back())) << node;
    }
  });
}

TEST_P(DecoderExactness, MovedKvContinuesLikeTheChain) {
  for_each_setting([&](Lab& lab, std::mt19937_64& rng) {
    const std::vector<TokenId> prompt = tokens(29, rng);
    const Tree tree = random_tree(12, GetParam().config.vocab_size, rng);
    Paged sequence = lab.sequence();
    (void)lab.chain(sequence, prompt);
    ForwardBatch batch;
    sequence.add_rows(batch, {}, tree.tokens, tree.parents, 0, {});
    (void)lab.run(batch);
    const std::vector<std::int32_t> path = tree.path(11);
    std::vector<SlotId> from;
    std::vector<SlotId> to;
    for (std::size_t i = 0; i < path.size(); ++i) {
      if (path[i] == static_cast<std::int32_t>(i)) continue;
      from.push_back(sequence.slot(sequence.length() + path[i]));
      to.push_back(sequence.slot(sequence.length() + static_cast<std::int32_t>(i)));
    }
    lab.decoder.move_kv(from, to);
    sequence.set_length(sequence.length() + static_cast<std::int32_t>(path.size()));

    Paged plain = lab.sequence();
    (void)lab.chain(plain, prompt);
    (void)lab.one_by_one(plain, tree.tokens_to(11));
    const std::vector<TokenId> next = tokens(5, rng);
    expect_same(lab.one_by_one(sequence, next), lab.one_by_one(plain, next), "after the move");
  });
}

INSTANTIATE_TEST_SUITE_P(Families, DecoderExactness, ::testing::ValuesIn(family_configs()),
                         [](const auto& family) { return family.param.name; });

TEST(DecoderThreads, OneAndTwoThreadsAgree) {
  // Wide enough that work is split.
  ModelConfig config = base_config();
  config.hidden_size = 256;
  config.intermediate_size = 512;
  config.vocab_size = 1000;
  config.num_attention_heads = 8;
  config.head_dim = 32;
  config.num_hidden_layers = 1;
  const Weights weights(config, DType::kBFloat16, 3);
  Logits first;
  for (const std::int32_t threads : {1, 2, 3}) {
    Lab lab(make_model(make_runtime(Device::kCpu, threads), config, weights, DType::kBFloat16),
            DType::kBFloat16);
    std::mt19937_64 rng(1);
    Paged sequence = lab.sequence();
    Logits got = lab.chain(sequence, random_tokens(90, config.vocab_size, rng));
    const Logits more = lab.one_by_one(sequence, random_tokens(5, config.vocab_size, rng));
    got.insert(got.end(), more.begin(), more.end());
    if (first.empty()) first = got;
    expect_same(got, first, std::to_string(threads) + " threads");
  }
}

class DecoderMisuse : public ::testing::Test {
 protected:
  DecoderMisuse()
      : weights_(base_config(), DType::kFloat32, 1),
        model_(make_model(make_runtime(Device::kCpu, 1), base_config(), weights_, DType::kFloat32)),
        lab_(model_, DType::kFloat32),
        sequence_(lab_.sequence()) {
    sequence_.add_rows(batch_, {1, 2, 3}, tree_.tokens, tree_.parents, 0, {0, 4});
  }

  /// Each change alone makes the batch unsound.
  template <class Change>
  void refused(const Change& change) {
    ForwardBatch bad = batch_;
    change(bad);
    EXPECT_THROW((void)lab_.decoder.forward(bad), std::invalid_argument);
  }

  Weights weights_;
  std::shared_ptr<const Model> model_;
  Lab lab_;
  Paged sequence_;
  Tree tree_{{4, 5}, {-1, 0}};
  ForwardBatch batch_;
};

TEST_F(DecoderMisuse, UnsoundBatchesAreRefused) {
  EXPECT_EQ(lab_.run(batch_).size(), 2U);
  EXPECT_TRUE(lab_.decoder.forward(ForwardBatch()).empty());
  refused([](ForwardBatch& b) { b.tokens[0] = -1; });
  refused([](ForwardBatch& b) { b.tokens[4] = base_config().vocab_size; });
  refused([](ForwardBatch& b) { b.positions[1] = -1; });
  refused([](ForwardBatch& b) { b.positions[1] = 512; });
  refused([](ForwardBatch& b) { b.slots[1] = -1; });
  refused([](ForwardBatch& b) { b.slots[1] = Lab::kBlockSize * Lab::kBlocksEach * 4; });
  refused([](ForwardBatch& b) { b.slots.pop_back(); });
  refused([](ForwardBatch& b) { b.positions.push_back(0); });
  refused([](ForwardBatch& b) { b.logits_rows[0] = -1; });
  refused([](ForwardBatch& b) { b.logits_rows[1] = 5; });
  refused([](ForwardBatch& b) { b.sequences[0].first_row = 1; });
  refused([](ForwardBatch& b) { b.sequences[0].first_row = -1; });
  refused([](ForwardBatch& b) { b.sequences[0].context_len = -1; });
  refused([](ForwardBatch& b) { b.sequences[0].context_len = 189; });  // beyond the block table
  refused([](ForwardBatch& b) { b.sequences[0].num_causal = 4; });
  refused([](ForwardBatch& b) { b.sequences[0].num_tree = 1; });
  refused([](ForwardBatch& b) { b.sequences[0].tree_start = 1; });
  const std::vector<std::int32_t> cyclic = {-1, 1};
  refused([&](ForwardBatch& b) { b.sequences[0].tree_parents = cyclic; });
  const std::vector<BlockId> blocks = {0, 1000};
  refused([&](ForwardBatch& b) { b.sequences[0].block_table = blocks; });
}

TEST_F(DecoderMisuse, LogitsThatAreNotThere) {
  const auto vocab = static_cast<std::size_t>(base_config().vocab_size);
  EXPECT_TRUE(lab_.decoder.logits(0, 0).empty());
  EXPECT_THROW((void)lab_.decoder.logits(0, 1), std::invalid_argument);
  lab_.decoder.run(batch_);
  EXPECT_EQ(lab_.decoder.logits(1, 1).size(), vocab);
  EXPECT_EQ(lab_.decoder.logits(1, 1).data(), lab_.decoder.logits(0, 2).data() + vocab);
  EXPECT_THROW((void)lab_.decoder.logits(-1, 1), std::invalid_argument);
  EXPECT_THROW((void)lab_.decoder.logits(1, 2), std::invalid_argument);

  EXPECT_FALSE(lab_.decoder.can_walk());  // the CPU reads logits where they are
  const DrawState draws;
  WalkSequence walk;
  walk.first_logits = 1;
  walk.draws = &draws;
  std::vector<std::vector<TokenId>> drawn(1);
  EXPECT_THROW(lab_.decoder.walk({&walk, 1}, drawn), std::logic_error);
  const std::vector<TokenId> token = {4};
  walk.tokens = token;  // its row would be behind the last
  EXPECT_THROW(lab_.decoder.walk({&walk, 1}, drawn), std::invalid_argument);
}

TEST_F(DecoderMisuse, MovesAndOptions) {
  const std::vector<SlotId> one = {0};
  const std::vector<SlotId> two = {0, 1};
  const std::vector<SlotId> far = {1 << 20};
  EXPECT_THROW(lab_.decoder.move_kv(one, two), std::invalid_argument);
  EXPECT_THROW(lab_.decoder.move_kv(far, one), std::invalid_argument);
  EXPECT_THROW(lab_.decoder.move_kv(one, far), std::invalid_argument);
  const auto make = [&](std::int32_t blocks, std::int32_t size, DType dtype,
                        std::int32_t positions) {
    EXPECT_THROW(Decoder(model_, blocks, size, dtype, positions), std::invalid_argument);
  };
  make(0, 16, DType::kFloat32, 64);
  make(1 << 30, 16, DType::kFloat32, 64);
  make(4, 8, DType::kFloat32, 64);
  make(4, 24, DType::kFloat32, 64);
  make(4, 16, DType::kFloat16, 64);
  make(4, 16, DType::kFloat32, 0);
  EXPECT_THROW(Decoder(nullptr, 4, 16, DType::kFloat32, 64), std::invalid_argument);
}

}  // namespace
}  // namespace smartspec::testing
