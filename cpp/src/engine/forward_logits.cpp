// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/decoder.hpp"
#include "smartspec/model.hpp"

namespace smartspec {

std::vector<float> forward_logits(const std::shared_ptr<const Model>& model,
                                  std::span<const TokenId> tokens) {
  const ModelConfig& config = model->config();
  const auto num_tokens = static_cast<std::int32_t>(tokens.size());
  if (tokens.empty() || tokens.size() > static_cast<std::size_t>(config.max_position_embeddings)) {
    throw std::invalid_argument("tokens must have between 1 and " +
                                std::to_string(config.max_position_embeddings) + " entries, got " +
                                std::to_string(tokens.size()));
  }
  for (const TokenId token : tokens) {
    if (token < 0 || token >= config.vocab_size) {
      throw std::invalid_argument("tokens must be in [0, " + std::to_string(config.vocab_size) +
                                  "), got " + std::to_string(token));
    }
  }
  constexpr std::int32_t kBlockSize = 16;
  const std::int32_t num_blocks = (num_tokens + kBlockSize - 1) / kBlockSize;
  Decoder decoder(model, num_blocks, kBlockSize, model->dtype(), num_tokens);
  std::vector<BlockId> table(static_cast<std::size_t>(num_blocks));
  std::iota(table.begin(), table.end(), 0);
  ForwardBatch batch;
  batch.tokens.assign(tokens.begin(), tokens.end());
  batch.positions.resize(tokens.size());
  std::iota(batch.positions.begin(), batch.positions.end(), 0);
  batch.slots = batch.positions;
  batch.logits_rows = batch.positions;
  batch.sequences.push_back({.first_row = 0,
                             .context_len = 0,
                             .num_causal = num_tokens,
                             .num_tree = 0,
                             .tree_start = 0,
                             .tree_parents = {},
                             .block_table = table});
  const std::span<const float> logits = decoder.forward(batch);
  return {logits.begin(), logits.end()};
}

}  // namespace smartspec
