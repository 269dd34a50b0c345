// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A proposer that runs a small model with its own paged KV cache and draws with the target's noise.
#pragma once

#include <cstdint>
#include <memory>

#include "smartspec/export.hpp"
#include "smartspec/model.hpp"
#include "smartspec/proposer.hpp"
#include "smartspec/sampler.hpp"

namespace smartspec {

struct DraftModelOptions {
  std::int32_t tree_width = 1;  // 1: chain; w: the w best perturbed tokens at every depth, the best
                                // of which is continued
  std::int32_t block_size = 16;
  std::int32_t num_kv_blocks = 0;  // 0: enough for max_num_seqs requests of max_model_len
  std::int32_t max_num_seqs = 64;
  std::int32_t max_model_len = 0;  // 0: the draft's max_position_embeddings
  std::int32_t max_num_batched_tokens = 512;
  std::int64_t kv_memory_bytes = std::int64_t{1} << 29;  // cap of the automatic choice
};

/// Drafts argmax(log q + g) with the same Gumbel noise g that the target will draw with, so draft
/// and target agree more often than independent draws would (Gumbel coupling; siblings as in
/// Recursive Speculative Decoding's Gumbel-top-k). Requests the cache has no room for get no draft.
/// One that sat out steps catches up in the first pass of its next draft. Not thread-safe.
class SMARTSPEC_API DraftModelProposer final : public Proposer {
 public:
  /// Throws std::invalid_argument when the vocabularies differ.
  DraftModelProposer(std::shared_ptr<const Model> model, const DraftModelOptions& options,
                     std::int32_t target_vocab_size);
  ~DraftModelProposer() override;

  [[nodiscard]] std::string_view name() const override;
  void propose(std::span<const ProposeRequest> requests, std::span<TokenTree> trees) override;
  void finish(RequestId id) override;
  [[nodiscard]] bool pays_per_depth() const override;
  [[nodiscard]] std::int32_t backlog(RequestId id, std::span<const TokenId> tokens) const override;
  [[nodiscard]] ProposeWork last_work() const override;
  [[nodiscard]] std::string check_integrity() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smartspec
