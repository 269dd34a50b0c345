// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "cpu/attention.hpp"

#include <algorithm>
#include <cstring>

namespace smartspec::cpu {
namespace {

// Node indices of a tree may start in the middle of a group and end in the middle of another.
constexpr std::int32_t kTreeScores = kMaxTreeNodes + 2 * kLanes;

constexpr std::int32_t round_down(std::int32_t x, std::int32_t to) { return x / to * to; }

}  // namespace

void AttentionWorker::reserve(const AttentionLayer& layer) {
  const auto queries = static_cast<std::size_t>(kTaskRows * layer.group_size);
  const auto dim = static_cast<std::size_t>(layer.layout.padded_dim());
  queries_.resize(std::max(queries_.size(), queries));
  spans_.resize(std::max(spans_.size(), queries));
  groups_.resize(kTreeScores / kLanes);
  values_.resize(kMaxTreeNodes);
  static_assert(kMaxTreeNodes >= kChunk);
  packed_.reserve(queries * dim * sizeof(float));
  scores_.reserve(queries * kChunk * sizeof(float));
  tree_scores_.reserve(queries * kTreeScores * sizeof(float));
  acc_.reserve(queries * dim * sizeof(float));
  total_acc_.reserve(queries * dim * sizeof(float));
}

const char* AttentionWorker::key_group(std::int32_t token) const {
  const std::int32_t size = layer_->plan->block_size();
  const KvLayer& kv = layer_->params->kv->layers[static_cast<std::size_t>(layer_->params->layer)];
  return static_cast<const char*>(kv.k) +
         layer_->layout.key_group(blocks_[token / size], kv_head_, token % size);
}

const void* AttentionWorker::value_row(std::int32_t token) const {
  const std::int32_t size = layer_->plan->block_size();
  const KvLayer& kv = layer_->params->kv->layers[static_cast<std::size_t>(layer_->params->layer)];
  return static_cast<const char*>(kv.v) +
         layer_->layout.value_row(blocks_[token / size], kv_head_, token % size);
}

void AttentionWorker::run(const AttentionLayer& layer, const PlannedTask& task,
                          std::int32_t kv_head) {
  layer_ = &layer;
  sequence_ = &layer.plan->sequence(task.sequence);
  blocks_ = layer.plan->block_table(*sequence_);
  kv_head_ = kv_head;
  dim_ = layer.layout.padded_dim();
  num_queries_ = task.num_rows * layer.group_size;
  set_up_queries(task);
  pack_queries(task);
  if (queries_[0].node >= 0) score_tree(task);
  std::int32_t first = queries_[0].first;
  std::int32_t end = queries_[0].end;
  for (std::int32_t i = 1; i < num_queries_; ++i) {
    first = std::min(first, queries_[static_cast<std::size_t>(i)].first);
    end = std::max(end, queries_[static_cast<std::size_t>(i)].end);
  }
  for (std::int32_t c = round_down(first, kChunk); c < end; c += kChunk) run_chunk(c);
  write_output(task);
}

void AttentionWorker::set_up_queries(const PlannedTask& task) {
  const std::int32_t window = layer_->params->sliding_window;
  auto query = queries_.begin();
  for (std::int32_t r = 0; r < task.num_rows; ++r) {
    const std::int32_t row = task.first_row + r;
    Query q;
    if (row < sequence_->num_causal) {
      q.end = sequence_->context_len + row + 1;
      q.dense_end = q.end;
    } else {
      q.node = sequence_->tree_start + row - sequence_->num_causal;
      q.dense_end = tree_base();
      q.end = q.dense_end + layer_->plan->node(*sequence_, q.node).depth + 1;
    }
    q.first = window > 0 ? std::max(0, q.end - window) : 0;
    for (std::int32_t g = 0; g < layer_->group_size; ++g) *query++ = q;
  }
}

void AttentionWorker::pack_queries(const PlannedTask& task) {
  const TreeAttentionParams& p = *layer_->params;
  const bool bf16 = layer_->layout.bf16();
  const std::int32_t head_dim = p.kv->head_dim;
  const std::int64_t row_bytes = packed_row_bytes(head_dim, bf16, layer_->kernels->bf16_pairs);
  char* out = packed_.reserve(0);
  const float* rows[kMaxTileRows];
  for (std::int32_t i = 0; i < num_queries_;) {
    const int n = next_tile_rows(num_queries_ - i, layer_->kernels->max_tile_rows);
    for (int m = 0; m < n; ++m) {
      const std::int32_t row = sequence_->first_row + task.first_row + (i + m) / layer_->group_size;
      const std::int32_t head = kv_head_ * layer_->group_size + (i + m) % layer_->group_size;
      rows[m] = p.q + row * p.q_stride + std::int64_t{head} * head_dim;
    }
    layer_->kernels->pack_tile(rows, n, head_dim, bf16, out + i * row_bytes);
    i += n;
  }
}

/// Scores of every query with the keys of `num_groups` groups from `first_token` on (a multiple of
/// 16). Groups may hold slots that nobody may see; their scores are never used.
void AttentionWorker::score_panels(std::int32_t first_token, std::int32_t num_groups, float* out,
                                   std::int64_t stride) {
  for (std::int32_t g = 0; g < num_groups; ++g) {
    groups_[static_cast<std::size_t>(g)] = key_group(first_token + g * kLanes);
  }
  const bool bf16 = layer_->layout.bf16();
  const std::int64_t row_bytes =
      packed_row_bytes(layer_->params->kv->head_dim, bf16, layer_->kernels->bf16_pairs);
  KeyScoresJob job;
  job.groups = groups_.data();
  job.num_groups = num_groups;
  job.steps = layer_->layout.steps();
  job.out_stride = stride;
  job.bf16 = bf16;
  for (std::int32_t i = 0; i < num_queries_; i += job.num_rows) {
    job.num_rows = next_tile_rows(num_queries_ - i, layer_->kernels->max_tile_rows);
    job.packed = packed_.reserve(0) + i * row_bytes;
    job.out = out + i * stride;
    layer_->kernels->key_scores(job);
  }
}

/// A few hundred keys at most: scoring all of them densely and picking each row's ancestors is
/// cheaper than gathering keys.
void AttentionWorker::score_tree(const PlannedTask& task) {
  const std::int32_t nodes =
      sequence_->tree_start + task.first_row + task.num_rows - sequence_->num_causal;
  tree_first_ = round_down(tree_base(), kLanes);
  const std::int32_t groups = (tree_base() + nodes - tree_first_ + kLanes - 1) / kLanes;
  score_panels(tree_first_, groups, tree_scores_.reserve_array<float>(0), kTreeScores);
}

/// Fills spans_; false when no query sees anything in this chunk.
bool AttentionWorker::spans_of_chunk(std::int32_t chunk_start) {
  bool any = false;
  for (std::size_t i = 0; i < static_cast<std::size_t>(num_queries_); ++i) {
    const auto relative = [chunk_start](std::int32_t position) {
      return std::clamp(position - chunk_start, 0, kChunk);
    };
    Span& span = spans_[i];
    span.begin = relative(queries_[i].first);
    span.end = relative(queries_[i].end);
    span.dense_end = std::max(span.begin, relative(queries_[i].dense_end));
    any = any || span.begin < span.end;
  }
  return any;
}

void AttentionWorker::run_chunk(std::int32_t chunk_start) {
  if (!spans_of_chunk(chunk_start)) return;
  std::int32_t dense_begin = kChunk;
  std::int32_t dense_end = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(num_queries_); ++i) {
    if (spans_[i].begin >= spans_[i].dense_end) continue;
    dense_begin = std::min(dense_begin, spans_[i].begin);
    dense_end = std::max(dense_end, spans_[i].dense_end);
  }
  float* scores = scores_.reserve_array<float>(0);
  if (dense_begin < dense_end) {
    const std::int32_t first = round_down(dense_begin, kLanes);
    const std::int32_t groups = (dense_end - first + kLanes - 1) / kLanes;
    score_panels(chunk_start + first, groups, scores + first, kChunk);
  }
  if (queries_[0].node >= 0) gather_tree_scores(chunk_start);
  const float scale = layer_->params->scale;
  for (std::int32_t i = 0; i < num_queries_; ++i) {
    const Span& span = spans_[static_cast<std::size_t>(i)];
    if (span.begin >= span.end) continue;
    queries_[static_cast<std::size_t>(i)].part = layer_->kernels->softmax_chunk(
        scores + std::ptrdiff_t{i} * kChunk, span.begin, span.end, scale);
  }
  sum_values(chunk_start);
  float* acc = acc_.reserve_array<float>(0);
  float* total = total_acc_.reserve_array<float>(0);
  for (std::int32_t i = 0; i < num_queries_; ++i) {
    const Span& span = spans_[static_cast<std::size_t>(i)];
    if (span.begin >= span.end) continue;
    Query& q = queries_[static_cast<std::size_t>(i)];
    const std::ptrdiff_t at = std::ptrdiff_t{i} * dim_;
    if (q.started) {
      layer_->kernels->merge(q.total, total + at, q.part, acc + at, dim_);
    } else {
      q.total = q.part;
      std::memcpy(total + at, acc + at, static_cast<std::size_t>(dim_) * sizeof(float));
      q.started = true;
    }
  }
}

void AttentionWorker::gather_tree_scores(std::int32_t chunk_start) {
  const float* tree = tree_scores_.reserve_array<float>(0);
  float* scores = scores_.reserve_array<float>(0);
  for (std::int32_t i = 0; i < num_queries_; ++i) {
    const Query& q = queries_[static_cast<std::size_t>(i)];
    std::int32_t position = tree_base();
    for_each_node(layer_->plan->node(*sequence_, q.node).path, [&](std::int32_t node) {
      const std::int32_t at = position++ - chunk_start;
      if (at < 0 || at >= kChunk) return;
      scores[std::ptrdiff_t{i} * kChunk + at] =
          tree[std::ptrdiff_t{i} * kTreeScores + tree_base() + node - tree_first_];
    });
  }
}

/// values_[j] for positions [begin, end) of the chunk. Tokens of a group of 16 share a block.
void AttentionWorker::list_values(std::int32_t chunk_start, std::int32_t begin, std::int32_t end) {
  const std::int64_t bytes = layer_->layout.value_bytes();
  for (std::int32_t group = round_down(begin, kLanes); group < end; group += kLanes) {
    const char* row = static_cast<const char*>(value_row(chunk_start + group));
    const std::int32_t last = std::min(group + kLanes, end);
    for (std::int32_t j = group; j < last; ++j, row += bytes) {
      values_[static_cast<std::size_t>(j)] = row;
    }
  }
}

/// acc_ = sum of p * v over the chunk, keys ascending. Keys that all rows of a tile see are read
/// once for the tile; the rest is done row by row, before and after.
void AttentionWorker::sum_values(std::int32_t chunk_start) {
  float* acc = acc_.reserve_array<float>(0);
  std::fill_n(acc, static_cast<std::ptrdiff_t>(num_queries_) * dim_, 0.0F);
  std::int32_t dense_end = 0;
  std::int32_t dense_begin = kChunk;
  std::int32_t shared_begin = 0;
  std::int32_t shared_end = kChunk;
  for (std::size_t i = 0; i < static_cast<std::size_t>(num_queries_); ++i) {
    dense_begin = std::min(dense_begin, spans_[i].begin);
    dense_end = std::max(dense_end, spans_[i].dense_end);
    shared_begin = std::max(shared_begin, spans_[i].begin);
    shared_end = std::min(shared_end, spans_[i].dense_end);
  }
  list_values(chunk_start, dense_begin, dense_end);
  const bool shared = shared_begin < shared_end;
  for (std::int32_t i = 0; i < num_queries_; ++i) {
    const Span& span = spans_[static_cast<std::size_t>(i)];
    sum_ragged(i, span.begin, shared ? shared_begin : span.dense_end);
  }
  if (shared) {
    ValueSumJob job;
    job.values = values_.data() + shared_begin;
    job.num_keys = shared_end - shared_begin;
    job.weights = scores_.reserve_array<float>(0) + shared_begin;
    job.weights_stride = kChunk;
    job.acc = acc;
    job.acc_stride = dim_;
    job.num_rows = num_queries_;
    job.dim = dim_;
    job.bf16 = layer_->layout.bf16();
    layer_->kernels->value_sum(job);
    for (std::int32_t i = 0; i < num_queries_; ++i) {
      sum_ragged(i, shared_end, spans_[static_cast<std::size_t>(i)].dense_end);
    }
  }
  if (queries_[0].node < 0) return;
  for (std::int32_t i = 0; i < num_queries_; ++i) sum_ancestors(i, chunk_start);
}

void AttentionWorker::sum_ragged(std::int32_t query, std::int32_t begin, std::int32_t end) {
  if (begin >= end) return;
  ValueSumJob job;
  job.values = values_.data() + begin;
  job.num_keys = end - begin;
  job.weights = scores_.reserve_array<float>(0) + std::ptrdiff_t{query} * kChunk + begin;
  job.weights_stride = kChunk;
  job.acc = acc_.reserve_array<float>(0) + std::ptrdiff_t{query} * dim_;
  job.acc_stride = dim_;
  job.num_rows = 1;
  job.dim = dim_;
  job.bf16 = layer_->layout.bf16();
  layer_->kernels->value_sum(job);
}

void AttentionWorker::sum_ancestors(std::int32_t query, std::int32_t chunk_start) {
  const Query& q = queries_[static_cast<std::size_t>(query)];
  const Span& span = spans_[static_cast<std::size_t>(query)];
  if (span.dense_end >= span.end) return;
  std::int32_t position = tree_base() - chunk_start;
  std::int32_t n = 0;
  for_each_node(layer_->plan->node(*sequence_, q.node).path, [&](std::int32_t node) {
    const std::int32_t at = position++;
    if (at < span.dense_end || at >= span.end) return;
    values_[static_cast<std::size_t>(n++)] = value_row(tree_base() + node);
  });
  ValueSumJob job;
  job.values = values_.data();
  job.num_keys = n;
  job.weights = scores_.reserve_array<float>(0) + std::ptrdiff_t{query} * kChunk + span.dense_end;
  job.weights_stride = kChunk;
  job.acc = acc_.reserve_array<float>(0) + std::ptrdiff_t{query} * dim_;
  job.acc_stride = dim_;
  job.num_rows = 1;
  job.dim = dim_;
  job.bf16 = layer_->layout.bf16();
  layer_->kernels->value_sum(job);
}

void AttentionWorker::write_output(const PlannedTask& task) {
  const TreeAttentionParams& p = *layer_->params;
  const float* total = total_acc_.reserve_array<float>(0);
  for (std::int32_t i = 0; i < num_queries_; ++i) {
    const std::int32_t row = sequence_->first_row + task.first_row + i / layer_->group_size;
    const std::int32_t head = kv_head_ * layer_->group_size + i % layer_->group_size;
    layer_->kernels->normalize(
        total + std::ptrdiff_t{i} * dim_, queries_[static_cast<std::size_t>(i)].total.sum,
        p.out + row * p.out_stride + std::int64_t{head} * p.kv->head_dim, p.kv->head_dim);
  }
}

}  // namespace smartspec::cpu
