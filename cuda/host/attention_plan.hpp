// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A pass's sequences as the Forest that the kernels read, and what prepare_forest made of it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.hpp"
#include "host/staging.hpp"
#include "smartspec/cuda_ops.hpp"

namespace smartspec::cuda {

class CudaAttentionPlan final : public smartspec::AttentionPlan {
 public:
  /// One upload. Throws std::invalid_argument when the sequences' rows do not lie one behind the
  /// other, a tree has more than kMaxTreeNodes nodes, or a block table is too short. `pads`: sizes
  /// are rounded up (PassGraphs), with sequences that have no rows.
  void build(std::span<const AttentionSequence> sequences, std::int32_t block_size, bool pads,
             Staging& staging, CUstream_st* stream);

  struct Prepared {
    AttentionPlanOptions options{};
    ForestState state{};
    Buffer workspace;
    bool is_current = false;  // of the pass that was built last
  };
  /// Launches prepare_forest for the first layer that asks; later layers with equal options share
  /// it. The plan is const for the model, which knows nothing of this.
  const Prepared& prepare(AttentionPlanOptions options, CUstream_st* stream) const;

  /// Forgets what prepare() has launched for the pass.
  void forget() const noexcept;
  /// Adds the sizes and addresses that launches with this plan depend on.
  void append_signature(std::vector<std::uint64_t>& signature) const;

  [[nodiscard]] const Forest& forest() const noexcept { return forest_; }
  [[nodiscard]] std::int32_t block_size() const noexcept { return block_size_; }
  [[nodiscard]] std::int32_t highest_block() const noexcept { return highest_block_; }

 private:
  void check(const AttentionSequence& sequence, std::size_t index, std::int32_t next_row) const;
  void append_block_tables(std::span<const AttentionSequence> sequences, bool pads);

  Forest forest_{};
  std::int32_t block_size_ = 0;
  std::int32_t highest_block_ = -1;
  std::int64_t longest_ = 0;        // keys of a sequence
  std::vector<std::int32_t> host_;  // the arrays of forest_, one behind the other
  Buffer device_;                   // the same
  mutable std::vector<Prepared> prepared_;
};

}  // namespace smartspec::cuda
