// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A stage for attention tests: tokens that carry their own q, k and v, sequences of them on a paged
// cache, and an oracle in double precision that knows nothing of chunks, panels or tasks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/cpu_test_util.hpp"

namespace smartspec::test {

struct Shape {
  int num_heads = 2;
  int num_kv_heads = 1;
  int head_dim = 16;
  int block_size = 16;
  int window = 0;
  DType dtype = DType::kFloat32;

  [[nodiscard]] std::size_t row() const {  // fused q | k | v
    return static_cast<std::size_t>((num_heads + 2 * num_kv_heads) * head_dim);
  }
  [[nodiscard]] std::size_t out() const { return static_cast<std::size_t>(num_heads * head_dim); }
};

using Token = std::vector<float>;  // one fused qkv row

/// What a sequence is made of. Logical index: context, causal, tree.
struct Story {
  std::vector<Token> context;
  std::vector<Token> causal;
  std::vector<Token> tree;
  std::vector<std::int32_t> parents;  // of tree
  int tree_start = 0;                 // nodes that an earlier pass writes; then causal is empty

  [[nodiscard]] int prefix() const { return static_cast<int>(context.size() + causal.size()); }
  [[nodiscard]] int total() const { return prefix() + static_cast<int>(tree.size()); }
  /// Tree nodes from the root to `node`, itself included.
  [[nodiscard]] std::vector<int> path(int node) const;
  [[nodiscard]] int position(int index) const;  // of a logical index
  [[nodiscard]] const Token& token(int index) const;
};

Story random_story(Random& random, const Shape& shape, int context, int causal, int tree,
                   bool wide_tree, int tree_start = 0);

/// One cache and the passes over it.
class Stage {
 public:
  /// `fill`: every byte of the cache before the first pass; 0xFF makes all elements NaN.
  Stage(Backend& backend, const Shape& shape, int num_blocks, std::uint8_t fill = 0);

  /// Takes the blocks for `tokens` tokens from the pool, in random order if `random` is given.
  std::vector<BlockId> take_blocks(int tokens, Random* random = nullptr);

  struct Rows {  // rows [first, first + count) of a story, by logical index
    const Story* story = nullptr;
    std::span<const BlockId> blocks;
    int causal_begin = 0;  // logical indices of the causal rows of this pass
    int causal_end = 0;
    int tree_begin = 0;  // nodes of this pass
    int tree_end = 0;
  };
  /// One forward pass of one layer: append K and V of all rows, then attend. Returns
  /// [rows, num_heads, head_dim].
  std::vector<float> pass(std::span<const Rows> batch);

  [[nodiscard]] KvMemory& kv() { return kv_; }

 private:
  Backend& backend_;
  Shape shape_;
  KvMemory kv_;
  std::vector<BlockId> free_;
  std::unique_ptr<AttentionPlan> plan_;
};

/// Writes the context (and the tree's earlier levels), then returns the rows of causal and tree.
std::vector<float> run_story(Backend& backend, const Shape& shape, const Story& story,
                             std::uint8_t fill = 0, Random* shuffle = nullptr);

/// One-token decoding of a list of tokens from an empty cache: a row of output per token.
std::vector<float> decode_plainly(Backend& backend, const Shape& shape,
                                  const std::vector<Token>& tokens);

/// The oracle's output of logical index `index` and a bound for the error of each element.
struct OracleRow {
  std::vector<double> out;
  double bound = 0.0;
};
OracleRow attend_exactly(const Shape& shape, const Story& story, int index);

}  // namespace smartspec::test
