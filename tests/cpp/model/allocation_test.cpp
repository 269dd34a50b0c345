// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The decoder allocates nothing once it has seen its largest batch. A binary of its own, because it
// replaces the global operator new.
#include <gtest/gtest.h>

#include "allocation_counter.hpp"
#include "model/decoder_fixture.hpp"

namespace smartspec::testing {
namespace {

TEST(DecoderAllocations, NoneInSteadyState) {
  ModelConfig config = base_config();
  config.qk_norm = true;
  config.sliding_window = 20;
  const Weights weights(config, DType::kBFloat16, 1);
  for (const std::int32_t threads : {1, 2}) {
    Lab lab(make_model(make_runtime(Device::kCpu, threads), config, weights, DType::kBFloat16),
            DType::kBFloat16);
    std::mt19937_64 rng(1);
    const Tree tree = random_tree(8, config.vocab_size, rng);
    Paged sequence = lab.sequence();
    (void)lab.chain(sequence, random_tokens(60, config.vocab_size, rng));
    for (int step = 0; step < 20; ++step) {
      ForwardBatch batch;
      sequence.add_rows(batch, {1}, tree.tokens, tree.parents, 0, {0, 3, 8});
      const std::vector<SlotId> from = {sequence.slot(sequence.length() + 3)};
      const std::vector<SlotId> to = {sequence.slot(sequence.length())};
      const std::int64_t before = allocations;
      (void)lab.decoder.forward(batch);
      lab.decoder.move_kv(from, to);
      const std::int64_t after = allocations;
      if (step == 0) continue;  // the first tree
      EXPECT_EQ(after, before) << threads << " threads, step " << step;
    }
  }
}

}  // namespace
}  // namespace smartspec::testing
