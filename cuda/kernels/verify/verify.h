// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Launchers of verification; the fields were checked (verify.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "smartspec/cuda_ops.hpp"

namespace smartspec::cuda::verification {

struct TargetJob {
  Verify verify{};
  void* workspace = nullptr;  // target_workspace_bytes()
  bool aligned = false;       // four logits may be loaded at once from every fourth one of a row
  // The first levels are walked by num_parts blocks per sequence with part_tokens tokens each (a
  // multiple of 64; the last one has the rest), one launch per level.
  std::int32_t levels = 0;
  std::int32_t num_parts = 1;  // at most 32
  std::int32_t part_tokens = 0;
};
void launch_target(const TargetJob& job, Stream stream);
std::size_t target_workspace_bytes(std::int32_t max_sequences);

/// The rules with draft probabilities.
void launch_rules(const Verify& verify, bool aligned, Stream stream);

/// Of a block's shared memory, for the rule.
std::size_t shared_bytes(const Verify& verify);

}  // namespace smartspec::cuda::verification
