// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A forward pass of a Llama-family model over a ragged batch, written with backend verbs only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.hpp"
#include "smartspec/model.hpp"

namespace smartspec {

/// One forward pass. Rows of all sequences lie one behind the other.
struct ForwardBatch {
  std::vector<std::int32_t> tokens;     // [num_rows]
  std::vector<std::int32_t> positions;  // [num_rows]
  std::vector<SlotId> slots;            // [num_rows] where this row's K and V go
  std::vector<AttentionSequence> sequences;
  std::vector<std::int32_t> logits_rows;  // rows whose logits are wanted, ascending
  void clear();                           // keeps capacity
  [[nodiscard]] std::int32_t num_rows() const noexcept {
    return static_cast<std::int32_t>(tokens.size());
  }
};

/// A model bound to its own KV memory and activation workspace. Grows the workspace to the largest
/// batch seen, then allocates no more. Not thread-safe; takes the runtime's mutex for each call.
class Decoder {
 public:
  Decoder(std::shared_ptr<const Model> model, std::int32_t num_blocks, std::int32_t block_size,
          DType kv_dtype, std::int32_t max_positions);
  ~Decoder();
  Decoder(Decoder&&) noexcept;

  /// Writes K and V of every row and works out the logits of `logits_rows`, which stay on the
  /// device. May return before the device is done.
  void run(const ForwardBatch& batch);
  /// Logits [count, vocab_size] of the last run, f32, readable by the host until the next one.
  /// Waits for the device, and copies those rows where the host cannot see them.
  std::span<const float> logits(std::int32_t first, std::int32_t count);
  /// run(), then all of its logits.
  std::span<const float> forward(const ForwardBatch& batch);
  /// Whether walk() works here, so that logits need not come to the host.
  [[nodiscard]] bool can_walk() const noexcept;
  /// Backend::walk_trees over the logits of the last run.
  void walk(std::span<const WalkSequence> sequences, std::span<std::vector<TokenId>> drawn);
  void move_kv(std::span<const SlotId> sources, std::span<const SlotId> destinations);
  [[nodiscard]] const Model& model() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smartspec
