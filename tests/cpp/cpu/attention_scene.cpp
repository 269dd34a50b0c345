// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "cpu/attention_scene.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

namespace smartspec::test {
namespace {

constexpr int kMaxPosition = 512;

/// cos and sin of every position, computed once per head_dim: tests make thousands of stages.
struct RopeTable {
  std::vector<float> cos;
  std::vector<float> sin;
};

const RopeTable& rope_table(int head_dim) {
  static std::map<int, RopeTable> tables;
  RopeTable& table = tables[head_dim];
  if (!table.cos.empty()) return table;
  for (int p = 0; p < kMaxPosition; ++p) {
    for (int i = 0; i < head_dim / 2; ++i) {
      const auto angle = static_cast<float>(p * std::pow(10000.0, -2.0 * i / head_dim));
      table.cos.push_back(std::cos(angle));
      table.sin.push_back(std::sin(angle));
    }
  }
  return table;
}

/// The head's elements after rotation, in the precision in which the cache or the query holds it.
std::vector<float> rotated(const float* x, int position, int head_dim, bool bf16) {
  std::vector<float> y(static_cast<std::size_t>(head_dim));
  const int half = head_dim / 2;
  const RopeTable& table = rope_table(head_dim);
  const float* cos = table.cos.data() + std::ptrdiff_t{position} * half;
  const float* sin = table.sin.data() + std::ptrdiff_t{position} * half;
  for (int i = 0; i < half; ++i) {
    y[static_cast<std::size_t>(i)] = x[i] * cos[i] - x[i + half] * sin[i];
    y[static_cast<std::size_t>(i + half)] = x[i + half] * cos[i] + x[i] * sin[i];
  }
  if (bf16) std::transform(y.begin(), y.end(), y.begin(), round_bf16);
  return y;
}

}  // namespace

std::vector<int> Story::path(int node) const {
  std::vector<int> nodes;
  for (int n = node; n >= 0; n = parents[static_cast<std::size_t>(n)]) nodes.push_back(n);
  std::reverse(nodes.begin(), nodes.end());
  return nodes;
}

int Story::position(int index) const {
  if (index < prefix()) return index;
  return prefix() + static_cast<int>(path(index - prefix()).size()) - 1;
}

const Token& Story::token(int index) const {
  const auto i = static_cast<std::size_t>(index);
  if (i < context.size()) return context[i];
  if (i < context.size() + causal.size()) return causal[i - context.size()];
  return tree[i - context.size() - causal.size()];
}

Story random_story(Random& random, const Shape& shape, int context, int causal, int tree,
                   bool wide_tree, int tree_start) {
  Story story;
  const auto tokens = [&](int n) {
    std::vector<Token> list;
    for (int i = 0; i < n; ++i) list.push_back(random.normals(shape.row()));
    return list;
  };
  story.context = tokens(context);
  story.causal = tokens(causal);
  story.tree = tokens(tree);
  story.tree_start = tree_start;
  for (int i = 0; i < tree; ++i) {
    story.parents.push_back(wide_tree ? random.integer(-1, i - 1)
                                      : random.integer(std::max(-1, i - 3), i - 1));
  }
  return story;
}

Stage::Stage(Backend& backend, const Shape& shape, int num_blocks, std::uint8_t fill)
    : backend_(backend), shape_(shape) {
  kv_ = backend.allocate_kv(1, num_blocks, shape.block_size, shape.num_kv_heads, shape.head_dim,
                            shape.dtype);
  for (Buffer& buffer : kv_.buffers) std::memset(buffer.data(), fill, buffer.size());
  for (int b = 0; b < num_blocks; ++b) free_.push_back(b);
}

std::vector<BlockId> Stage::take_blocks(int tokens, Random* random) {
  if (random != nullptr) std::shuffle(free_.begin(), free_.end(), random->engine());
  const int n = (tokens + shape_.block_size - 1) / shape_.block_size;
  std::vector<BlockId> blocks(free_.begin(), free_.begin() + n);
  free_.erase(free_.begin(), free_.begin() + n);
  return blocks;
}

std::vector<float> Stage::pass(std::span<const Rows> batch) {
  std::vector<float> qkv;
  std::vector<std::int32_t> positions;
  std::vector<SlotId> slots;
  std::vector<AttentionSequence> sequences;
  for (const Rows& rows : batch) {
    const Story& story = *rows.story;
    AttentionSequence s;
    s.first_row = static_cast<std::int32_t>(positions.size());
    s.num_causal = rows.causal_end - rows.causal_begin;
    s.num_tree = rows.tree_end - rows.tree_begin;
    s.context_len = s.num_causal > 0 ? rows.causal_begin : story.prefix();
    s.tree_start = rows.tree_begin;
    s.tree_parents = std::span(story.parents).first(static_cast<std::size_t>(rows.tree_end));
    s.block_table = rows.blocks;
    sequences.push_back(s);
    const auto add = [&](int index) {
      const Token& token = story.token(index);
      qkv.insert(qkv.end(), token.begin(), token.end());
      positions.push_back(story.position(index));
      slots.push_back(rows.blocks[static_cast<std::size_t>(index / shape_.block_size)] *
                          shape_.block_size +
                      index % shape_.block_size);
    };
    for (int i = rows.causal_begin; i < rows.causal_end; ++i) add(i);
    for (int i = rows.tree_begin; i < rows.tree_end; ++i) add(story.prefix() + i);
  }
  const auto n = static_cast<std::int32_t>(positions.size());
  const auto stride = static_cast<std::int64_t>(shape_.row());
  const float* k = qkv.data() + shape_.out();
  const float* v = k + static_cast<std::ptrdiff_t>(shape_.num_kv_heads) * shape_.head_dim;
  const RopeTable& rope = rope_table(shape_.head_dim);
  backend_.rope_and_append_kv({qkv.data(), k, v, stride, rope.cos.data(), rope.sin.data(),
                               positions.data(), slots.data(), &kv_, 0, n, shape_.num_heads});
  plan_ = backend_.plan_attention(sequences, shape_.block_size, std::move(plan_));
  std::vector<float> out(static_cast<std::size_t>(n) * shape_.out());
  TreeAttentionParams p;
  p.plan = plan_.get();
  p.q = qkv.data();
  p.out = out.data();
  p.q_stride = stride;
  p.out_stride = static_cast<std::int64_t>(shape_.out());
  p.kv = &kv_;
  p.num_heads = shape_.num_heads;
  p.scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim));
  p.sliding_window = shape_.window;
  backend_.tree_attention(p);
  return out;
}

std::vector<float> run_story(Backend& backend, const Shape& shape, const Story& story,
                             std::uint8_t fill, Random* shuffle) {
  const int needed = story.total() / shape.block_size + 3;
  Stage stage(backend, shape, needed, fill);
  const std::vector<BlockId> blocks = stage.take_blocks(story.total() + 1, shuffle);
  const auto context = static_cast<int>(story.context.size());
  const auto tree = static_cast<int>(story.tree.size());
  if (context > 0) {
    const Stage::Rows rows{&story, blocks, 0, context, 0, 0};
    stage.pass(std::span(&rows, 1));
  }
  if (story.tree_start > 0) {
    const Stage::Rows rows{&story, blocks, 0, 0, 0, story.tree_start};
    stage.pass(std::span(&rows, 1));
  }
  const Stage::Rows rows{&story, blocks, context, story.prefix(), story.tree_start, tree};
  return stage.pass(std::span(&rows, 1));
}

std::vector<float> decode_plainly(Backend& backend, const Shape& shape,
                                  const std::vector<Token>& tokens) {
  Story story;
  story.context = tokens;
  const auto n = static_cast<int>(tokens.size());
  Stage stage(backend, shape, n / shape.block_size + 1);
  const std::vector<BlockId> blocks = stage.take_blocks(n);
  std::vector<float> out;
  for (int i = 0; i < n; ++i) {
    const Stage::Rows rows{&story, blocks, i, i + 1, 0, 0};
    const std::vector<float> row = stage.pass(std::span(&rows, 1));
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

OracleRow attend_exactly(const Shape& shape, const Story& story, int index) {
  const bool bf16 = shape.dtype == DType::kBFloat16;
  const int own = story.position(index);
  std::vector<int> keys;
  const int dense = std::min(index + 1, story.prefix());
  for (int i = 0; i < dense; ++i) keys.push_back(i);
  if (index >= story.prefix()) {
    for (const int node : story.path(index - story.prefix())) keys.push_back(story.prefix() + node);
  }
  if (shape.window > 0) {
    std::erase_if(keys, [&](int i) { return story.position(i) <= own - shape.window; });
  }
  OracleRow row;
  double largest = 0.0;
  std::vector<std::vector<float>> rotated_keys;
  const int dim = shape.head_dim;
  for (int h = 0; h < shape.num_heads; ++h) {
    const int kv_head = h / (shape.num_heads / shape.num_kv_heads);
    if (h % (shape.num_heads / shape.num_kv_heads) == 0) {
      rotated_keys.clear();
      for (const int i : keys) {
        const float* k = story.token(i).data() + (shape.num_heads + kv_head) * dim;
        rotated_keys.push_back(rotated(k, story.position(i), dim, bf16));
      }
    }
    const std::vector<float> q = rotated(story.token(index).data() + h * dim, own, dim, bf16);
    std::vector<double> scores;
    for (const std::vector<float>& key : rotated_keys) {
      double dot = 0.0;
      for (std::size_t d = 0; d < q.size(); ++d) dot += double{q[d]} * key[d];
      scores.push_back(dot / std::sqrt(static_cast<double>(dim)));
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double sum = 0.0;
    for (double& s : scores) sum += s = std::exp(s - top);
    for (int d = 0; d < dim; ++d) {
      double out = 0.0;
      for (std::size_t j = 0; j < keys.size(); ++j) {
        const int at = (shape.num_heads + shape.num_kv_heads + kv_head) * dim + d;
        float v = story.token(keys[j])[static_cast<std::size_t>(at)];
        if (bf16) v = round_bf16(v);
        largest = std::max(largest, std::abs(double{v}));
        out += scores[j] / sum * v;
      }
      row.out.push_back(out);
    }
  }
  row.bound = tolerance(static_cast<double>(keys.size()) + dim, largest);
  return row;
}

}  // namespace smartspec::test
