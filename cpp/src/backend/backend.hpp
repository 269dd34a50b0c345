// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The one seam between the model and a device: about a dozen verbs over plain parameter structs.
//
// Contract of every verb: an output element is reduced in an order that depends on its own shape
// only, never on how many rows ride along, how they are grouped, or how many threads run
// (design: batch-invariant numerics). The CUDA backend keeps this only when the environment says
// SMARTSPEC_BATCH_INVARIANT=1: cuBLASLt chooses its sums by shape, and attention cuts long contexts
// where the load asks for it, so that the last bits of a logit, and with them the choice between
// near-equal tokens, can differ with the batch.
//
// All work is ordered on the backend's own stream; on the CPU every verb has finished when it
// returns. What the host hands to a verb may be reused when the verb returns. One thread at a time
// may use a backend; the runtime that owns it holds a mutex for callers that share it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "smartspec/sampling_params.hpp"
#include "smartspec/tensor_view.hpp"
#include "smartspec/types.hpp"

namespace smartspec {

/// Device memory; frees itself. On the CPU it is 64-byte aligned, on huge pages where it is large.
class Buffer {
 public:
  using Deleter = std::function<void(void*)>;
  Buffer() = default;
  Buffer(void* data, std::size_t size, Deleter deleter)
      : data_(data, std::move(deleter)), size_(size) {}
  [[nodiscard]] void* data() const noexcept { return data_.get(); }
  template <class T>
  [[nodiscard]] T* as() const noexcept {
    return static_cast<T*>(data_.get());
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  std::unique_ptr<void, Deleter> data_{nullptr, [](void*) {}};
  std::size_t size_ = 0;
};

/// A linear layer's weights in the device's own layout; made by pack_linear.
struct PackedLinear {
  Buffer data;
  DType dtype = DType::kFloat32;  // of the weights: kFloat32 or kBFloat16
  std::int32_t in_features = 0;
  std::int32_t out_features = 0;
};

struct EmbedParams {
  const std::int32_t* tokens = nullptr;  // [num_rows]
  const void* table = nullptr;           // [vocab, hidden]
  DType table_dtype = DType::kFloat32;
  float* out = nullptr;  // [num_rows, hidden]
  std::int32_t num_rows = 0;
  std::int32_t hidden = 0;
};

struct RmsNormParams {
  const float* in = nullptr;      // [num_rows, dim], row stride in_stride
  const float* weight = nullptr;  // [dim]
  float* out = nullptr;           // [num_rows, dim], row stride out_stride; may alias in
  std::int32_t num_rows = 0;
  std::int32_t dim = 0;
  std::int64_t in_stride = 0;
  std::int64_t out_stride = 0;
  float eps = 1e-5F;
};

/// out[r, o] = (accumulate ? out[r, o] : 0) + bias[o] + sum_k in[r, k] * w[o, k], k ascending.
/// bf16 weights: activations are rounded to bf16 (nearest even), products accumulate in f32.
struct LinearParams {
  const float* in = nullptr;  // [num_rows, in_features], row stride in_stride
  const PackedLinear* weight = nullptr;
  const float* bias = nullptr;  // [out_features] or null
  float* out = nullptr;         // [num_rows, out_features], row stride out_stride
  std::int32_t num_rows = 0;
  std::int64_t in_stride = 0;
  std::int64_t out_stride = 0;
  bool accumulate = false;  // residual connections
};

/// One layer's part of the paged cache. Layouts are the backend's own: the CPU keeps K of 16 tokens
/// as [head_dim / pair][16 tokens][pair] and V token-major (its KvLayout), CUDA keeps both as
/// [num_blocks, block_size, num_kv_heads, head_dim].
struct KvLayer {
  void* k = nullptr;
  void* v = nullptr;
};

/// The whole cache memory of one model; made by allocate_kv.
struct KvMemory {
  std::vector<Buffer> buffers;
  std::vector<KvLayer> layers;
  DType dtype = DType::kFloat32;  // kFloat32 or kBFloat16
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 0;  // a multiple of 16
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
};

/// Rotates q in place and writes rotated k, and v, to the cache slots. NeoX halves: element i pairs
/// with i + head_dim / 2.
struct RopeKvParams {
  float* q = nullptr;                       // [num_rows, num_heads, head_dim], row stride
  const float* k = nullptr;                 // [num_rows, num_kv_heads, head_dim], row stride
  const float* v = nullptr;                 // [num_rows, num_kv_heads, head_dim], row stride
  std::int64_t row_stride = 0;              // of q, k and v (one fused qkv buffer)
  const float* cos = nullptr;               // [max_position, head_dim / 2]
  const float* sin = nullptr;               // [max_position, head_dim / 2]
  const std::int32_t* positions = nullptr;  // [num_rows]
  const SlotId* slots = nullptr;            // [num_rows]; of padding rows -1
  KvMemory* kv = nullptr;
  std::int32_t layer = 0;
  std::int32_t num_rows = 0;
  std::int32_t num_heads = 0;
};

/// One sequence's rows in a ragged batch. Rows come in this order: causal rows that continue the
/// context, then tree nodes. Logical index i of the sequence lives in slot
/// block_table[i / block_size] * block_size + i % block_size.
///   causal row c sees logical indices [0, context_len + c];
///   tree node t (index tree_start + its row) sees [0, context_len + num_causal), its ancestors at
///   context_len + num_causal + ancestor, and itself.
/// Keys are visited in order of position: prefix, then ancestors by depth.
struct AttentionSequence {
  std::int32_t first_row = 0;
  std::int32_t context_len = 0;  // tokens already in the cache before these rows
  std::int32_t num_causal = 0;
  std::int32_t num_tree = 0;    // tree rows of this pass
  std::int32_t tree_start = 0;  // tree nodes written by earlier passes (drafting level by level)
  std::span<const std::int32_t>
      tree_parents{};  // [tree_start + num_tree], -1: no parent in the tree
  std::span<const BlockId> block_table{};
};

/// What plan_attention works out once per forward pass; opaque to the model.
class AttentionPlan {
 public:
  virtual ~AttentionPlan() = default;
};

struct TreeAttentionParams {
  const AttentionPlan* plan = nullptr;
  const float* q = nullptr;  // [num_rows, num_heads, head_dim], row stride q_stride
  float* out = nullptr;      // [num_rows, num_heads, head_dim], row stride out_stride
  std::int64_t q_stride = 0;
  std::int64_t out_stride = 0;
  const KvMemory* kv = nullptr;
  std::int32_t layer = 0;
  std::int32_t num_heads = 0;
  float scale = 1.0F;
  std::int32_t sliding_window = 0;  // 0: none; else a row at position p sees positions > p - window
};

/// out = silu(gate) * up with gate_up = [gate | up] per row.
struct SwigluParams {
  const float* gate_up = nullptr;  // [num_rows, 2 * dim]
  float* out = nullptr;            // [num_rows, dim]
  std::int32_t num_rows = 0;
  std::int32_t dim = 0;
};

struct GatherRowsParams {
  const float* in = nullptr;           // [*, dim]
  const std::int32_t* rows = nullptr;  // [num_rows]
  float* out = nullptr;                // [num_rows, dim]
  std::int32_t num_rows = 0;
  std::int32_t dim = 0;
};

/// Copies one token's K and V, all layers and heads, per move; in order.
struct KvMoveList {
  std::span<const SlotId> sources;
  std::span<const SlotId> destinations;
};

/// One tree for walk_trees. Borrows everything.
struct WalkSequence {
  std::int32_t first_logits = 0;          // row of its last verified token; node n has 1 + n more
  std::span<const TokenId> tokens;        // [nodes]
  std::span<const std::int32_t> parents;  // [nodes]
  const DrawState* draws = nullptr;
};

/// The target's own tokens along the accepted path of each tree (smartspec/sampler.hpp).
struct WalkParams {
  const float* logits = nullptr;  // [*, vocab_size] device memory
  std::int32_t vocab_size = 0;
  std::span<const WalkSequence> sequences;
  // [sequences] host memory, overwritten: tokens of the path and the one after it. Empty where a
  // draw failed: the logits are not finite, or nothing is left to draw.
  std::span<std::vector<TokenId>> drawn;
};

/// What the verbs of a forward pass are given, besides the plan: passes with equal keys call the
/// same verbs with the same parameters and pointers.
struct PassKey {
  std::uint64_t owner = 0;       // who calls; never reused
  std::uint64_t generation = 0;  // of the owner's pointers
  std::int32_t num_rows = 0;
  std::int32_t num_logits = 0;
  bool gathers = false;  // the rows with logits are some of all
};

class Backend {
 public:
  virtual ~Backend() = default;

  [[nodiscard]] virtual Device device() const noexcept = 0;
  [[nodiscard]] virtual std::string_view isa_name() const noexcept = 0;
  [[nodiscard]] virtual std::int32_t num_threads() const noexcept = 0;

  virtual Buffer allocate(std::size_t bytes) = 0;  // zero-filled
  /// Host memory that download() reaches fast; the contents are not defined.
  virtual Buffer allocate_host(std::size_t bytes) { return allocate(bytes); }
  virtual void upload(void* device, const void* host, std::size_t bytes) = 0;
  virtual void download(void* host, const void* device, std::size_t bytes) = 0;
  /// Whether the host may read device memory, and verbs may read the host's.
  [[nodiscard]] virtual bool is_host_visible() const noexcept = 0;

  /// Concatenates `parts` [out_i, in] along the output rows and changes the layout, once.
  virtual PackedLinear pack_linear(std::span<const TensorView> parts, DType dtype) = 0;
  virtual KvMemory allocate_kv(std::int32_t num_layers, std::int32_t num_blocks,
                               std::int32_t block_size, std::int32_t num_kv_heads,
                               std::int32_t head_dim, DType dtype) = 0;

  virtual void embed(const EmbedParams& p) = 0;
  virtual void rms_norm(const RmsNormParams& p) = 0;
  virtual void linear(const LinearParams& p) = 0;
  virtual void rope_and_append_kv(const RopeKvParams& p) = 0;
  /// Host side, once per pass; the plan serves all layers. `block_size` as in the cache.
  /// `scratch` may be an earlier plan whose memory is reused.
  virtual std::unique_ptr<AttentionPlan> plan_attention(
      std::span<const AttentionSequence> sequences, std::int32_t block_size,
      std::unique_ptr<AttentionPlan> scratch) = 0;
  virtual void tree_attention(const TreeAttentionParams& p) = 0;
  virtual void swiglu(const SwigluParams& p) = 0;
  virtual void gather_rows(const GatherRowsParams& p) = 0;
  virtual void move_kv(KvMemory& kv, const KvMoveList& moves) = 0;

  /// Whether it has walk_trees: worth it where logits lie far from the host.
  [[nodiscard]] virtual bool walks_trees() const noexcept { return false; }
  /// Waits for the result. Bitwise what smartspec::verify_tree draws from the same logits.
  virtual void walk_trees(const WalkParams& /*p*/) {
    throw std::logic_error("walk_trees: this backend has none");
  }

  /// Rows that a pass of `num_rows` should be padded to, so that passes have few different keys.
  /// Padding rows have token 0, position 0, slot -1 (nothing is written) and belong to no sequence.
  [[nodiscard]] virtual std::int32_t padded_rows(std::int32_t num_rows) const noexcept {
    return num_rows;
  }
  /// Runs a pass: `pass` calls verbs from embed to gather_rows and tree_attention with `plan`. A
  /// backend may record what they launch and repeat that instead when the key comes again.
  virtual void run_pass(const PassKey& /*key*/, const AttentionPlan& /*plan*/,
                        const std::function<void()>& pass) {
    pass();
  }
};

std::unique_ptr<Backend> make_cpu_backend(std::int32_t num_threads);
std::unique_ptr<Backend> make_cuda_backend();  // cuda/host, or no_cuda.cpp: throws DeviceError
bool cuda_available() noexcept;                // likewise; see also smartspec/cuda_ops.hpp
std::unique_ptr<Backend> make_backend(Device device, std::int32_t num_threads);

/// The public handle: a backend and the mutex that serialises its users.
class Runtime {
 public:
  explicit Runtime(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}
  [[nodiscard]] Backend& backend() noexcept { return *backend_; }
  [[nodiscard]] const Backend& backend() const noexcept { return *backend_; }
  [[nodiscard]] std::mutex& mutex() noexcept { return mutex_; }

 private:
  std::unique_ptr<Backend> backend_;
  std::mutex mutex_;
};

}  // namespace smartspec
