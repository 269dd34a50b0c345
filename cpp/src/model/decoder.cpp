// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The Llama family's forward pass (Touvron et al. 2023; Qwen2/3 and Mistral differ by options).
#include "model/decoder.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "model/model_impl.hpp"
#include "model/rope.hpp"

namespace smartspec {
namespace {

[[noreturn]] void fail(const std::string& what, std::int64_t value, const std::string& allowed) {
  throw std::invalid_argument(what + " = " + std::to_string(value) + "; allowed: " + allowed);
}

void check_range(const char* what, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high) {
    fail(what, value, "[" + std::to_string(low) + ", " + std::to_string(high) + "]");
  }
}

void check_all(const char* what, std::span<const std::int32_t> values, std::int64_t end) {
  for (const std::int32_t value : values) check_range(what, value, 0, end - 1);
}

/// Grows by half at least, so that slowly rising batches do not allocate at every step.
template <class T>
T* grow(Buffer& buffer, std::int64_t count, Backend& backend) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
  if (buffer.size() < bytes) {
    const std::size_t wanted = std::max(bytes, buffer.size() + buffer.size() / 2);
    buffer = Buffer();  // free first: the contents are not needed
    buffer = backend.allocate(wanted);
  }
  return buffer.as<T>();
}

}  // namespace

void ForwardBatch::clear() {
  tokens.clear();
  positions.clear();
  slots.clear();
  sequences.clear();
  logits_rows.clear();
}

struct Decoder::Impl {
  Impl(std::shared_ptr<const Model> owner, std::int32_t num_blocks, std::int32_t block_size,
       DType kv_dtype, std::int32_t max_positions);

  void forward(const ForwardBatch& batch);
  std::span<const float> host_rows(std::int32_t first, std::int32_t count);
  void check(const ForwardBatch& batch) const;
  void check(const AttentionSequence& s, std::int32_t num_rows) const;

  const std::int32_t* stage(Buffer& buffer, const std::vector<std::int32_t>& values,
                            std::int32_t size, std::int32_t padding);
  void reserve(std::int32_t rows, std::int32_t wanted);
  void note_pointers();
  void run();
  void norm(const Buffer& weight, const float* in, float* out, std::int32_t rows);
  void norm_heads(const Buffer& weight, float* heads, std::int32_t num_heads, std::int32_t rows);
  void linear(const PackedLinear& weight, const Buffer& bias, const float* in, float* out,
              std::int32_t rows, bool accumulate);
  void project_qkv(std::int32_t layer, std::int32_t rows);
  void attend(std::int32_t layer);
  void finish_layer(const LayerWeights& layer, const float* attention, std::int32_t rows);
  void gather(const float* in, float* out, std::int32_t wanted, std::int32_t dim);
  const float* keep_wanted_rows(std::int32_t wanted);

  std::shared_ptr<const Model> model;
  const Model::Impl& m;
  const ModelConfig& config;
  Backend& backend;
  std::int32_t max_positions;
  KvMemory kv;
  RopeTable rope;
  std::unique_ptr<AttentionPlan> plan;

  // Of the pass that runs: its shape, with padding, and device copies of the batch's arrays.
  PassKey key;
  const std::int32_t* tokens = nullptr;
  const std::int32_t* positions = nullptr;
  const SlotId* slots = nullptr;
  const std::int32_t* logits_rows = nullptr;
  Buffer tokens_buffer, positions_buffer, slots_buffer, logits_rows_buffer;  // unused on the CPU
  std::vector<std::int32_t> padded;                                          // unused on the CPU
  std::array<const void*, 13> pointers{};  // that verbs get, of the last pass

  // Activations, all f32; the pointers follow the buffers below.
  float* residual = nullptr;    // [rows, hidden]
  float* normed = nullptr;      // [rows, hidden]
  float* qkv = nullptr;         // [rows, q + k + v]
  float* attention = nullptr;   // [rows, heads * head_dim]
  float* gate_up = nullptr;     // [rows, 2 * intermediate]
  float* activated = nullptr;   // [rows, intermediate]
  float* logits = nullptr;      // [wanted, vocab]
  std::int32_t num_logits = 0;  // wanted rows of the last pass
  Buffer residual_buffer, normed_buffer, qkv_buffer, attention_buffer, gate_up_buffer,
      activated_buffer, logits_buffer;
  Buffer host_logits;  // unused on the CPU
};

Decoder::Impl::Impl(std::shared_ptr<const Model> owner, std::int32_t num_blocks,
                    std::int32_t block_size, DType kv_dtype, std::int32_t max_positions_)
    : model(std::move(owner)),
      m(model->impl()),
      config(m.config),
      backend(m.runtime->backend()),
      max_positions(max_positions_),
      rope(config, max_positions_) {
  static std::atomic<std::uint64_t> next_owner{1};
  key.owner = next_owner.fetch_add(1, std::memory_order_relaxed);
  check_range("max_positions", max_positions, 1, std::numeric_limits<std::int32_t>::max());
  check_range("block_size", block_size, 16, 1 << 20);
  if (block_size % 16 != 0) fail("block_size", block_size, "a multiple of 16");
  check_range("num_blocks", num_blocks, 1, std::numeric_limits<SlotId>::max() / block_size);
  if (kv_dtype != DType::kFloat32 && kv_dtype != DType::kBFloat16) {
    throw std::invalid_argument(std::string("kv_dtype = ") + name_of(kv_dtype) +
                                "; allowed: float32, bfloat16");
  }
  const std::lock_guard lock(m.runtime->mutex());
  kv = backend.allocate_kv(config.num_hidden_layers, num_blocks, block_size,
                           config.num_key_value_heads, config.head_dim, kv_dtype);
}

void Decoder::Impl::check(const AttentionSequence& s, std::int32_t num_rows) const {
  check_range("first_row", s.first_row, 0, num_rows);
  check_range("context_len", s.context_len, 0, max_positions);
  check_range("num_causal", s.num_causal, 0, num_rows);
  check_range("num_tree", s.num_tree, 0, num_rows);
  check_range("tree_start", s.tree_start, 0, std::numeric_limits<std::int32_t>::max() / 4);
  check_range("rows of a sequence", std::int64_t{s.num_causal} + s.num_tree, 0,
              num_rows - s.first_row);
  const std::int64_t nodes = std::int64_t{s.tree_start} + s.num_tree;
  if (static_cast<std::int64_t>(s.tree_parents.size()) != nodes) {
    fail("tree_parents.size()", static_cast<std::int64_t>(s.tree_parents.size()),
         std::to_string(nodes));
  }
  for (std::int64_t node = 0; node < nodes; ++node) {
    check_range("tree_parents", s.tree_parents[static_cast<std::size_t>(node)], -1, node - 1);
  }
  const auto capacity = static_cast<std::int64_t>(s.block_table.size()) * kv.block_size;
  check_range("length of a sequence", std::int64_t{s.context_len} + s.num_causal + nodes, 0,
              capacity);
  check_all("block", s.block_table, kv.num_blocks);
}

void Decoder::Impl::check(const ForwardBatch& batch) const {
  const std::size_t rows = batch.tokens.size();
  check_range("num_rows", static_cast<std::int64_t>(rows), 0, 1 << 24);
  if (batch.positions.size() != rows || batch.slots.size() != rows) {
    throw std::invalid_argument("tokens, positions and slots differ in length");
  }
  check_all("token", batch.tokens, config.vocab_size);
  check_all("position", batch.positions, max_positions);
  check_all("slot", batch.slots, std::int64_t{kv.num_blocks} * kv.block_size);
  check_all("logits_rows", batch.logits_rows, static_cast<std::int64_t>(rows));
  for (const AttentionSequence& s : batch.sequences) check(s, batch.num_rows());
}

const std::int32_t* Decoder::Impl::stage(Buffer& buffer, const std::vector<std::int32_t>& values,
                                         std::int32_t size, std::int32_t padding) {
  if (backend.is_host_visible()) return values.data();
  auto* device = grow<std::int32_t>(buffer, size, backend);
  padded.assign(values.begin(), values.end());
  padded.resize(static_cast<std::size_t>(size), padding);
  backend.upload(device, padded.data(), padded.size() * sizeof(std::int32_t));
  return device;
}

/// A new generation when a buffer has moved.
void Decoder::Impl::note_pointers() {
  const std::array<const void*, 13> now = {residual,    normed,     qkv,       attention, gate_up,
                                           activated,   logits,     tokens,    positions, slots,
                                           logits_rows, rope.cos(), rope.sin()};
  if (now != pointers) ++key.generation;
  pointers = now;
}

void Decoder::Impl::reserve(std::int32_t rows, std::int32_t wanted) {
  const std::int64_t n = rows;
  const std::int64_t inner = config.intermediate_size;
  residual = grow<float>(residual_buffer, n * config.hidden_size, backend);
  normed = grow<float>(normed_buffer, n * config.hidden_size, backend);
  qkv = grow<float>(qkv_buffer, n * m.qkv_size(), backend);
  attention = grow<float>(attention_buffer, n * m.q_size(), backend);
  gate_up = grow<float>(gate_up_buffer, n * 2 * inner, backend);
  activated = grow<float>(activated_buffer, n * inner, backend);
  logits = grow<float>(logits_buffer, std::int64_t{wanted} * config.vocab_size, backend);
}

void Decoder::Impl::norm(const Buffer& weight, const float* in, float* out, std::int32_t rows) {
  backend.rms_norm({.in = in,
                    .weight = weight.as<float>(),
                    .out = out,
                    .num_rows = rows,
                    .dim = config.hidden_size,
                    .in_stride = config.hidden_size,
                    .out_stride = config.hidden_size,
                    .eps = static_cast<float>(config.rms_norm_eps)});
}

/// In place, each head of each row by itself. A verb call walks one stride, so go along the longer
/// of rows and heads; the result is the same.
void Decoder::Impl::norm_heads(const Buffer& weight, float* heads, std::int32_t num_heads,
                               std::int32_t rows) {
  const bool by_head = rows >= num_heads;
  const std::int64_t across = by_head ? m.qkv_size() : config.head_dim;
  const std::int64_t along = by_head ? config.head_dim : m.qkv_size();
  const std::int32_t calls = by_head ? num_heads : rows;
  for (std::int32_t i = 0; i < calls; ++i) {
    float* first = heads + i * along;
    backend.rms_norm({.in = first,
                      .weight = weight.as<float>(),
                      .out = first,
                      .num_rows = by_head ? rows : num_heads,
                      .dim = config.head_dim,
                      .in_stride = across,
                      .out_stride = across,
                      .eps = static_cast<float>(config.rms_norm_eps)});
  }
}

void Decoder::Impl::linear(const PackedLinear& weight, const Buffer& bias, const float* in,
                           float* out, std::int32_t rows, bool accumulate) {
  backend.linear({.in = in,
                  .weight = &weight,
                  .bias = bias.as<float>(),
                  .out = out,
                  .num_rows = rows,
                  .in_stride = weight.in_features,
                  .out_stride = weight.out_features,
                  .accumulate = accumulate});
}

/// Leaves rotated q in qkv, and K and V in the cache.
void Decoder::Impl::project_qkv(std::int32_t layer, std::int32_t rows) {
  const LayerWeights& w = m.layers[static_cast<std::size_t>(layer)];
  norm(w.input_norm, residual, normed, rows);
  linear(w.qkv, w.qkv_bias, normed, qkv, rows, false);
  if (config.qk_norm) {
    norm_heads(w.q_norm, qkv, config.num_attention_heads, rows);
    norm_heads(w.k_norm, qkv + m.q_size(), config.num_key_value_heads, rows);
  }
  backend.rope_and_append_kv({.q = qkv,
                              .k = qkv + m.q_size(),
                              .v = qkv + m.q_size() + m.kv_size(),
                              .row_stride = m.qkv_size(),
                              .cos = rope.cos(),
                              .sin = rope.sin(),
                              .positions = positions,
                              .slots = slots,
                              .kv = &kv,
                              .layer = layer,
                              .num_rows = rows,
                              .num_heads = config.num_attention_heads});
}

void Decoder::Impl::attend(std::int32_t layer) {
  backend.tree_attention(
      {.plan = plan.get(),
       .q = qkv,
       .out = attention,
       .q_stride = m.qkv_size(),
       .out_stride = m.q_size(),
       .kv = &kv,
       .layer = layer,
       .num_heads = config.num_attention_heads,
       .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim))),
       .sliding_window = m.layers[static_cast<std::size_t>(layer)].sliding_window});
}

/// Output projection and MLP, both added to the residual stream.
void Decoder::Impl::finish_layer(const LayerWeights& layer, const float* attended,
                                 std::int32_t rows) {
  linear(layer.output, layer.output_bias, attended, residual, rows, true);
  norm(layer.post_attention_norm, residual, normed, rows);
  linear(layer.gate_up, layer.gate_up_bias, normed, gate_up, rows, false);
  backend.swiglu(
      {.gate_up = gate_up, .out = activated, .num_rows = rows, .dim = config.intermediate_size});
  linear(layer.down, layer.down_bias, activated, residual, rows, true);
}

void Decoder::Impl::gather(const float* in, float* out, std::int32_t wanted, std::int32_t dim) {
  backend.gather_rows({.in = in, .rows = logits_rows, .out = out, .num_rows = wanted, .dim = dim});
}

/// After the last attention only rows with logits matter. Moves them to the front of the residual
/// stream and returns their attention outputs. qkv and normed are free here and become the targets.
const float* Decoder::Impl::keep_wanted_rows(std::int32_t wanted) {
  if (!key.gathers) return attention;
  gather(attention, qkv, wanted, m.q_size());
  gather(residual, normed, wanted, config.hidden_size);
  std::swap(residual, normed);
  return qkv;
}

/// The verbs of a pass. Reads nothing of the batch but what was staged: a backend may repeat what
/// they launched (Backend::run_pass).
void Decoder::Impl::run() {
  const std::int32_t rows = key.num_rows;
  const std::int32_t wanted = key.num_logits;
  backend.embed({.tokens = tokens,
                 .table = m.embedding,
                 .table_dtype = m.dtype,
                 .out = residual,
                 .num_rows = rows,
                 .hidden = config.hidden_size});

  const std::int32_t last = config.num_hidden_layers - 1;
  for (std::int32_t i = 0; i < last; ++i) {
    project_qkv(i, rows);
    attend(i);
    finish_layer(m.layers[static_cast<std::size_t>(i)], attention, rows);
  }
  project_qkv(last, rows);
  if (wanted == 0) return;
  attend(last);
  finish_layer(m.layers.back(), keep_wanted_rows(wanted), wanted);
  norm(m.final_norm, residual, normed, wanted);
  linear(m.lm_head, Buffer(), normed, logits, wanted, false);
}

void Decoder::Impl::forward(const ForwardBatch& batch) {
  check(batch);
  num_logits = 0;
  if (batch.num_rows() == 0) return;
  const auto wanted = static_cast<std::int32_t>(batch.logits_rows.size());

  const std::lock_guard lock(m.runtime->mutex());
  key.num_rows = backend.padded_rows(batch.num_rows());
  key.num_logits = wanted == 0 ? 0 : backend.padded_rows(wanted);
  key.gathers = wanted < batch.num_rows();
  rope.reach(*std::ranges::max_element(batch.positions), backend);
  reserve(key.num_rows, key.num_logits);
  tokens = stage(tokens_buffer, batch.tokens, key.num_rows, 0);
  positions = stage(positions_buffer, batch.positions, key.num_rows, 0);
  slots = stage(slots_buffer, batch.slots, key.num_rows, -1);
  logits_rows = stage(logits_rows_buffer, batch.logits_rows, key.num_logits, 0);
  plan = backend.plan_attention(batch.sequences, kv.block_size, std::move(plan));
  note_pointers();
  backend.run_pass(key, *plan, [this] { run(); });

  num_logits = wanted;
}

std::span<const float> Decoder::Impl::host_rows(std::int32_t first, std::int32_t count) {
  check_range("first", first, 0, num_logits);
  check_range("count", count, 0, num_logits - first);
  const auto vocab = static_cast<std::size_t>(config.vocab_size);
  const std::size_t start = static_cast<std::size_t>(first) * vocab;
  const std::size_t size = static_cast<std::size_t>(count) * vocab;
  if (backend.is_host_visible() || size == 0) return {logits + start, size};
  const std::lock_guard lock(m.runtime->mutex());
  // As large as the device's, so that rows fetched earlier stay where they are.
  if (host_logits.size() < logits_buffer.size()) {
    host_logits = Buffer();
    host_logits = backend.allocate_host(logits_buffer.size());
  }
  float* host = host_logits.as<float>() + start;
  backend.download(host, logits + start, size * sizeof(float));
  return {host, size};
}

Decoder::Decoder(std::shared_ptr<const Model> model, std::int32_t num_blocks,
                 std::int32_t block_size, DType kv_dtype, std::int32_t max_positions) {
  if (model == nullptr) throw std::invalid_argument("model is null");
  impl_ = std::make_unique<Impl>(std::move(model), num_blocks, block_size, kv_dtype, max_positions);
}

Decoder::~Decoder() = default;
Decoder::Decoder(Decoder&&) noexcept = default;

void Decoder::run(const ForwardBatch& batch) { impl_->forward(batch); }

std::span<const float> Decoder::logits(std::int32_t first, std::int32_t count) {
  return impl_->host_rows(first, count);
}

std::span<const float> Decoder::forward(const ForwardBatch& batch) {
  run(batch);
  return logits(0, impl_->num_logits);
}

bool Decoder::can_walk() const noexcept { return impl_->backend.walks_trees(); }

void Decoder::walk(std::span<const WalkSequence> sequences, std::span<std::vector<TokenId>> drawn) {
  Impl& d = *impl_;
  for (const WalkSequence& sequence : sequences) {
    const std::int64_t rows = 1 + std::ssize(sequence.tokens);
    check_range("first_logits", sequence.first_logits, 0, d.num_logits - rows);
  }
  if (sequences.empty()) return;
  const std::lock_guard lock(d.m.runtime->mutex());
  d.backend.walk_trees({.logits = d.logits,
                        .vocab_size = d.config.vocab_size,
                        .sequences = sequences,
                        .drawn = drawn});
}

void Decoder::move_kv(std::span<const SlotId> sources, std::span<const SlotId> destinations) {
  if (sources.size() != destinations.size()) {
    throw std::invalid_argument("move_kv: sources and destinations differ in length");
  }
  if (sources.empty()) return;
  Impl& d = *impl_;
  const std::int64_t num_slots = std::int64_t{d.kv.num_blocks} * d.kv.block_size;
  check_all("slot", sources, num_slots);
  check_all("slot", destinations, num_slots);
  const std::lock_guard lock(d.m.runtime->mutex());
  d.backend.move_kv(d.kv, {.sources = sources, .destinations = destinations});
}

const Model& Decoder::model() const noexcept { return *impl_->model; }

}  // namespace smartspec
