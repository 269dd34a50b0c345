// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Tree attention of one task: a few rows of one sequence for one KV head.
//
// Bit equality of every path rests on three facts. A score is one chain over head_dim, whatever
// lane or slot its key sits in. Keys fall into chunks of kChunk by absolute position, and lanes by
// position mod 16, so a row's partial results do not depend on where its keys lie or which rows
// share them. Chunks are merged in ascending order (online softmax, Milakov & Gimelshein 2018).
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.hpp"
#include "cpu/aligned.hpp"
#include "cpu/attention_plan.hpp"
#include "cpu/kernels.hpp"
#include "cpu/kv_layout.hpp"

namespace smartspec::cpu {

/// What all tasks of one layer share.
struct AttentionLayer {
  const KernelTable* kernels = nullptr;
  const CpuAttentionPlan* plan = nullptr;
  const TreeAttentionParams* params = nullptr;
  KvLayout layout;
  std::int32_t group_size = 1;  // query heads per KV head
};

/// Memory of one thread; grows to the largest task seen.
class AttentionWorker {
 public:
  /// Call before tasks run, so that tasks do not allocate.
  void reserve(const AttentionLayer& layer);
  void run(const AttentionLayer& layer, const PlannedTask& task, std::int32_t kv_head);

 private:
  /// A query row: one head of one row, with the keys it sees.
  struct Query {
    std::int32_t first = 0;      // lowest visible position
    std::int32_t dense_end = 0;  // positions [first, dense_end) lie in order in the block table
    std::int32_t end = 0;        // own position + 1; [dense_end, end) are ancestors and itself
    std::int32_t node = -1;      // tree node, -1 for causal rows
    bool started = false;
    SoftmaxPart part;
    SoftmaxPart total;
  };
  /// Visible positions of a query in the current chunk, relative to its start.
  struct Span {
    std::int32_t begin = 0;
    std::int32_t dense_end = 0;
    std::int32_t end = 0;
  };

  void set_up_queries(const PlannedTask& task);
  void pack_queries(const PlannedTask& task);
  void score_tree(const PlannedTask& task);
  void score_panels(std::int32_t first_token, std::int32_t num_groups, float* out,
                    std::int64_t stride);
  void run_chunk(std::int32_t chunk_start);
  bool spans_of_chunk(std::int32_t chunk_start);
  void gather_tree_scores(std::int32_t chunk_start);
  void list_values(std::int32_t chunk_start, std::int32_t begin, std::int32_t end);
  void sum_values(std::int32_t chunk_start);
  void sum_ragged(std::int32_t query, std::int32_t begin, std::int32_t end);
  void sum_ancestors(std::int32_t query, std::int32_t chunk_start);
  void write_output(const PlannedTask& task);
  [[nodiscard]] const char* key_group(std::int32_t token) const;
  [[nodiscard]] const void* value_row(std::int32_t token) const;
  [[nodiscard]] std::int32_t tree_base() const {
    return sequence_->context_len + sequence_->num_causal;
  }

  const AttentionLayer* layer_ = nullptr;
  const PlannedSequence* sequence_ = nullptr;
  const BlockId* blocks_ = nullptr;
  std::int32_t kv_head_ = 0;
  std::int32_t num_queries_ = 0;
  std::int32_t dim_ = 0;         // padded head_dim
  std::int32_t tree_first_ = 0;  // first token of the tree score buffer, a multiple of 16
  std::vector<Query> queries_;
  std::vector<Span> spans_;
  std::vector<const char*> groups_;
  std::vector<const void*> values_;
  Scratch packed_;
  Scratch scores_;
  Scratch tree_scores_;
  Scratch acc_;
  Scratch total_acc_;
};

}  // namespace smartspec::cpu
