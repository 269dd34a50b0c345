// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The CUDA operations on their own, for engines that keep everything else of theirs: tree attention
// over a paged KV cache, KV append, move, copy and swap, and verification of token trees.
//
// Every pointer is device memory unless it says host; nothing is owned or kept after a call. Every
// call only launches work on the caller's stream and may be captured into a CUDA graph; lengths are
// read on the device, so a graph stays right when they change. Shapes come from the structs, so two
// calls with equal host fields launch the same grids. Thread-safe across streams with workspaces of
// their own.
// Errors: std::invalid_argument naming the field, its value and what is allowed, before anything is
// launched; DeviceError when the runtime refuses or the build or machine has no CUDA. What lies in
// device memory (lengths, tables, parents) is not checked: it must be right.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "smartspec/export.hpp"
#include "smartspec/types.hpp"

struct CUstream_st;  // cudaStream_t points to it

namespace smartspec::cuda {

using Stream = CUstream_st*;  // null: the default stream

inline constexpr std::int32_t kMaxTreeNodes = 256;  // of one sequence
inline constexpr std::int32_t kAncestorWords = kMaxTreeNodes / 32;

/// Whether the operations can run, and why not.
[[nodiscard]] SMARTSPEC_API bool is_usable() noexcept;
[[nodiscard]] SMARTSPEC_API std::string unusable_reason();

/// What the build holds, whatever this machine has.
struct BuildInfo {
  bool has_cuda = false;      // false: built without; the rest is then empty
  std::string architectures;  // as CMake names them: "80-real 90a-real 100"
  std::string toolkit;        // "13.0.88"
  bool has_cublaslt = false;  // linear layers by cuBLASLt where the library is found at run time
};
[[nodiscard]] SMARTSPEC_API BuildInfo build_info();

/// A paged cache of one layer. Element (page, token, head, dim) of K and of V lies at
/// page * page_stride + token * token_stride + head * head_stride + dim: vLLM's and FlashInfer's
/// NHD and HND layouts both fit.
struct PagedKv {
  void* k = nullptr;
  void* v = nullptr;
  DType dtype = DType::kBFloat16;  // kFloat32, kBFloat16, kFloat16, kFloat8E4M3, kFloat8E5M2, kInt8
  std::int32_t page_size = 16;     // [1, 256] tokens
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int64_t page_stride = 0;   // elements; multiples of 16 bytes for tensor-core attention
  std::int64_t token_stride = 0;  // elements
  std::int64_t head_stride = 0;   // elements
  // value = stored * scale, for 8-bit types; null: 1.
  const float* k_scale = nullptr;  // [num_kv_heads]
  const float* v_scale = nullptr;  // [num_kv_heads]
};

/// The rows of one pass, ragged. The rows of sequence s are row_offsets[s] up to row_offsets[s+1]:
/// first num_causal[s] tokens that continue its context, then tree nodes. Its nodes are
/// node_offsets[s] up to node_offsets[s+1] of `parents`; when there are more nodes than tree rows,
/// the first ones were written by earlier passes (drafting level by level). Key i of a sequence
/// lies in page block_table[s][i / page_size]; keys are the context, then the causal rows, then the
/// nodes.
///   causal row c sees keys [0, context + c]
///   node n sees keys [0, context + num_causal), its ancestors and itself
/// The position of a key is its index, of a node context + num_causal + depth.
struct Forest {
  std::int32_t num_sequences = 0;
  std::int32_t num_rows = 0;   // row_offsets[num_sequences]; at least that when captured
  std::int32_t num_nodes = 0;  // node_offsets[num_sequences]; at least that when captured
  const std::int32_t* row_offsets = nullptr;   // [num_sequences + 1]
  const std::int32_t* context_lens = nullptr;  // [num_sequences] keys before its first row
  const std::int32_t* num_causal = nullptr;    // [num_sequences]; null: 0, all rows are nodes
  const std::int32_t* node_offsets = nullptr;  // [num_sequences + 1]
  const std::int32_t* parents = nullptr;       // [num_nodes] within the sequence, before the node;
                                               // -1: child of the last causal or context token
  const BlockId* block_table = nullptr;        // [num_sequences, block_table_stride]
  std::int64_t block_table_stride = 0;         // pages
};

/// What prepare_forest works out once per pass, for all layers: lies in the caller's workspace.
struct ForestState {
  std::uint32_t* ancestors = nullptr;  // [num_nodes, kAncestorWords] bits, the node's own included
  std::int32_t* depths = nullptr;      // [num_nodes] 0: no parent
  std::int64_t* tile_offsets = nullptr;  // [num_sequences + 1] work before each sequence
};

/// Split of the work over the device.
struct AttentionPlanOptions {
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  DType kv_dtype = DType::kBFloat16;
  /// A row's result does not depend on what else is in the batch: keys are cut at multiples of
  /// `invariant_chunk` and merged in order. Costs balance on few long sequences.
  bool batch_invariant = false;
  std::int32_t invariant_chunk = 1024;  // keys; a multiple of 64
  /// Keys of one sequence at most, all rows and nodes included; bounds the workspace of the
  /// batch-invariant mode.
  std::int64_t max_context_len = 1 << 17;
  /// Leaves keys out of the plan that no row sees through this window. 0: keeps all keys, right for
  /// layers with any window; else tree_attention must be given the same window.
  std::int32_t sliding_window = 0;
};

/// Bytes of workspace for forests up to these sizes, 256-byte aligned parts; for prepare_forest and
/// tree_attention together.
[[nodiscard]] SMARTSPEC_API std::size_t attention_workspace_bytes(
    const AttentionPlanOptions& options, std::int32_t max_sequences, std::int32_t max_rows,
    std::int32_t max_nodes);

/// Ancestor bitsets, depths and the plan of work, in one launch. `workspace` is [bytes] device
/// memory, zeroed by the caller once when it is allocated (counters return to zero by themselves).
SMARTSPEC_API ForestState prepare_forest(const Forest& forest, const AttentionPlanOptions& options,
                                         void* workspace, std::size_t workspace_bytes,
                                         Stream stream);

struct TreeAttention {
  const void* q = nullptr;         // [num_rows, num_heads, head_dim], stride q_stride per row
  void* out = nullptr;             // the same shape and dtype as q
  DType dtype = DType::kBFloat16;  // of q and out: kFloat32, kBFloat16, kFloat16
  std::int64_t q_stride = 0;       // elements
  std::int64_t out_stride = 0;     // elements
  float* lse = nullptr;            // [num_rows, num_heads] natural logarithm, or null
  PagedKv kv{};
  float scale = 0.0F;               // 0: 1 / sqrt(head_dim)
  float soft_cap = 0.0F;            // 0: none, else scores become cap * tanh(score / cap)
  std::int32_t sliding_window = 0;  // 0: none, else a row at position p sees positions > p - window
};

/// Attention of all rows of `forest`, which prepare_forest saw with the same options and workspace.
/// One launch. Tensor cores for 16- and 8-bit caches with head_dim 64, 80, 96, 128, 256; a simple
/// kernel for everything else up to 256. Sources: FlashAttention-2 (Dao 2023) for the online
/// softmax; Stream-K (Osama et al. 2023) for the split.
SMARTSPEC_API void tree_attention(const TreeAttention& attention, const Forest& forest,
                                  const AttentionPlanOptions& options, const ForestState& state,
                                  void* workspace, std::size_t workspace_bytes, Stream stream);

/// Writes K and V of rows to their slots, with rotary embedding of q (in place) and k when cos is
/// set. NeoX halves: element i pairs with i + head_dim / 2. Everything is computed in f32 and
/// rounded once, to nearest even; 8-bit types store value / scale and saturate.
struct AppendKv {
  void* q = nullptr;               // [num_rows, num_heads, head_dim] or null
  const void* k = nullptr;         // [num_rows, num_kv_heads, head_dim]
  const void* v = nullptr;         // [num_rows, num_kv_heads, head_dim]
  DType dtype = DType::kBFloat16;  // of q, k, v: kFloat32, kBFloat16, kFloat16
  std::int64_t q_stride = 0;       // elements per row
  std::int64_t k_stride = 0;
  std::int64_t v_stride = 0;
  const float* cos = nullptr;               // [max_position, head_dim / 2] or null: no rotation
  const float* sin = nullptr;               // [max_position, head_dim / 2]
  const std::int32_t* positions = nullptr;  // [num_rows]; null without rotation
  const SlotId* slots = nullptr;            // [num_rows] page * page_size + offset; < 0: padding,
                                            // nothing of the row is read or written, nor is its q
  PagedKv kv{};
  std::int32_t num_rows = 0;
  std::int32_t num_heads = 0;  // of q
};
SMARTSPEC_API void append_kv(const AppendKv& append, Stream stream);

/// Copies one token's K and V, all heads, per move, in all layers, in one launch. Moves that belong
/// to one group are done in order (sources may be destinations of later moves); no group writes a
/// slot that another one uses. A move from or to a negative slot is skipped.
struct MoveKv {
  const PagedKv* layers = nullptr;  // host [num_layers], at most 128, same shape
  std::int32_t num_layers = 0;
  const SlotId* sources = nullptr;              // [num_moves]
  const SlotId* destinations = nullptr;         // [num_moves]
  const std::int32_t* group_offsets = nullptr;  // [num_groups + 1]; null: all moves are one group
  std::int32_t num_moves = 0;                   // with group_offsets: at least their last entry
  std::int32_t num_groups = 1;
};
SMARTSPEC_API void move_kv(const MoveKv& moves, Stream stream);

/// Copies whole pages within a cache, all layers; sources and destinations are disjoint. A copy
/// from or to a negative page is skipped.
struct CopyPages {
  const PagedKv* layers = nullptr;  // host [num_layers], at most 128, same shape
  std::int32_t num_layers = 0;
  const BlockId* sources = nullptr;       // [num_pages]
  const BlockId* destinations = nullptr;  // [num_pages]
  std::int32_t num_pages = 0;
};
SMARTSPEC_API void copy_pages(const CopyPages& copy, Stream stream);

/// Pages to or from page-locked host memory, in the order given: host page i of layer l holds K
/// then V at ((l * num_pages + i) * 2) * page_bytes, page_bytes being that of a dense page. Within
/// a host page the order is the cache's: of tokens and heads, those of the larger stride outside. A
/// negative page is skipped, its place in host memory left alone.
struct SwapPages {
  const PagedKv* layers = nullptr;  // host [num_layers], at most 128, same shape
  std::int32_t num_layers = 0;
  const BlockId* pages = nullptr;  // [num_pages] device memory
  std::int32_t num_pages = 0;
  void* host = nullptr;  // page-locked, mapped (cudaHostAlloc, torch pin_memory)
  bool to_host = true;
};
SMARTSPEC_API void swap_pages(const SwapPages& swap, Stream stream);

/// How a path through a tree is accepted. kTarget draws the target's own token at every node with
/// noise of (seed, position, token) and steps to the child that carries it: bitwise what
/// smartspec::verify_tree does on the CPU. The others need draft probabilities; they keep the
/// distribution, not the seed.
enum class VerifyRule : std::uint8_t {
  kTarget,
  kToken,      // chains: Leviathan et al. 2023
  kBlock,      // chains: block verification, Sun et al. 2024
  kTraversal,  // trees: traversal verification with siblings drawn without replacement
};

/// One tree per sequence, all in one launch. Logits of sequence s: row logits_offsets[s] is that of
/// its last verified token, row logits_offsets[s] + 1 + n that of node n. kTarget reads the rows of
/// the walked path only, kToken those and kBlock the chain of first children, kTraversal what can
/// still be accepted. Their uniform numbers belong to (seed, position, node).
struct Verify {
  VerifyRule rule = VerifyRule::kTarget;
  std::int32_t num_sequences = 0;
  std::int32_t vocab_size = 0;
  const void* logits = nullptr;   // [num_logits, vocab_size], stride per row
  DType dtype = DType::kFloat32;  // kFloat32, kBFloat16, kFloat16
  std::int64_t logits_stride = 0;
  const std::int32_t* logits_offsets = nullptr;  // [num_sequences]
  const std::int32_t* node_offsets = nullptr;    // [num_sequences + 1]
  const TokenId* node_tokens = nullptr;          // [num_nodes]; null without nodes
  const std::int32_t* parents = nullptr;         // [num_nodes] within the sequence; -1: root
  // Per sequence, [num_sequences]. Null takes the default in brackets.
  const float* temperature = nullptr;       // [1] 0: greedy
  const std::int32_t* top_k = nullptr;      // [0: all]
  const float* top_p = nullptr;             // [1]
  const float* min_p = nullptr;             // [0]
  const std::uint64_t* seeds = nullptr;     // must be set
  const std::int64_t* positions = nullptr;  // prompt and output tokens before the first draw
  // Penalties; null: none. Entries count_offsets[s] up to count_offsets[s+1] are the distinct
  // tokens so far, and those with a bias; tokens of the walked path are counted by the kernel. The
  // offsets must be set when a penalty is.
  const float* repetition_penalty = nullptr;
  const float* frequency_penalty = nullptr;
  const float* presence_penalty = nullptr;
  const std::int32_t* count_offsets = nullptr;  // [num_sequences + 1]
  const TokenId* count_tokens = nullptr;        // distinct within a sequence
  const std::int32_t* output_counts = nullptr;  // times in the output so far; 0: prompt only,
                                                // -1: neither; null: all -1
  const float* count_bias = nullptr;            // added before the penalties; null: none
  // Grammar and other masks; null: all tokens allowed. Bit v % 32 of word v / 32.
  const std::uint32_t* masks = nullptr;     // [num_masks, mask_stride]
  std::int64_t mask_stride = 0;             // words
  const std::int32_t* mask_rows = nullptr;  // [num_logits] row of masks, or -1: all allowed
  // Draft probabilities after the draft's own truncation, of the rules that need them. The children
  // of a node were drawn from row draft_rows[logits row], in index order and without replacement;
  // a row of -1: they are point masses. Null: all are.
  const float* draft_probs = nullptr;        // [*, vocab_size], dense, each row sums to 1
  const std::int32_t* draft_rows = nullptr;  // [num_logits]
  // Results.
  std::int32_t* num_accepted = nullptr;  // [num_sequences]
  std::int32_t* path = nullptr;          // [num_sequences, path_stride] nodes, root side first
  TokenId* tokens = nullptr;             // [num_sequences, path_stride] num_accepted + 1 each
  float* logprobs = nullptr;             // [num_sequences, path_stride] of raw logits, or null
  std::int64_t path_stride = 0;          // at least the longest path + 1
  std::int32_t* status = nullptr;        // [num_sequences] 0: fine, 1: a logit was NaN or +inf,
                                         // 2: no token was left to draw; the walk ends there and
                                         // its last token is missing
};
/// Scratch of verify, zeroed by the caller once; 0 bytes: none is needed, null will do.
[[nodiscard]] SMARTSPEC_API std::size_t verify_workspace_bytes(VerifyRule rule,
                                                               std::int32_t max_sequences,
                                                               std::int32_t max_nodes,
                                                               std::int32_t vocab_size);
SMARTSPEC_API void verify(const Verify& verify, void* workspace, std::size_t workspace_bytes,
                          Stream stream);

}  // namespace smartspec::cuda
