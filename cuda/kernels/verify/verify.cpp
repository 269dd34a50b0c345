// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Entry point of verification: every host-visible field is checked, then one launch.
#include "kernels/verify/verify.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "host/runtime.hpp"
#include "kernels/kv/check_kv.hpp"

namespace smartspec::cuda {
namespace {

using kernels::check_range;
using kernels::check_set;
using kernels::refuse;

constexpr const char* kVerb = "verify";

void check_together(const char* field, const void* pointer, const char* other, const void* with) {
  if (with == nullptr || pointer != nullptr) return;
  refuse(kVerb, field, "null", std::string("device memory, as ") + other + " is set");
}

void check_logits(const Verify& v) {
  constexpr std::int64_t kAny = std::numeric_limits<std::int32_t>::max();
  check_range(kVerb, "num_sequences", v.num_sequences, 0, kAny);
  check_range(kVerb, "vocab_size", v.vocab_size, 1, kAny - 63);
  check_set(kVerb, "logits", v.logits);
  if (v.dtype != DType::kFloat32 && v.dtype != DType::kBFloat16 && v.dtype != DType::kFloat16) {
    refuse(kVerb, "dtype", name_of(v.dtype), "float32, bfloat16, float16");
  }
  if (v.logits_stride < v.vocab_size) {
    refuse(kVerb, "logits_stride", std::to_string(v.logits_stride),
           "at least vocab_size " + std::to_string(v.vocab_size));
  }
  check_set(kVerb, "logits_offsets", v.logits_offsets);
  check_set(kVerb, "node_offsets", v.node_offsets);
  check_set(kVerb, "seeds", v.seeds);
  check_set(kVerb, "positions", v.positions);
}

void check_edits(const Verify& v) {
  check_together("count_offsets", v.count_offsets, "repetition_penalty", v.repetition_penalty);
  check_together("count_offsets", v.count_offsets, "frequency_penalty", v.frequency_penalty);
  check_together("count_offsets", v.count_offsets, "presence_penalty", v.presence_penalty);
  check_together("count_offsets", v.count_offsets, "count_bias", v.count_bias);
  check_together("mask_rows", v.mask_rows, "masks", v.masks);
  check_together("masks", v.masks, "mask_rows", v.mask_rows);
  const std::int64_t words = (std::int64_t{v.vocab_size} + 31) / 32;
  if (v.masks != nullptr && v.mask_stride < words) {
    refuse(kVerb, "mask_stride", std::to_string(v.mask_stride),
           "at least " + std::to_string(words) + " words for vocab_size " +
               std::to_string(v.vocab_size));
  }
}

void check_results(const Verify& v) {
  check_set(kVerb, "num_accepted", v.num_accepted);
  check_set(kVerb, "path", v.path);
  check_set(kVerb, "tokens", v.tokens);
  check_set(kVerb, "status", v.status);
  if (v.path_stride < 1) {
    refuse(kVerb, "path_stride", std::to_string(v.path_stride),
           "at least 1 more than the longest path");
  }
  const std::size_t needed = verification::shared_bytes(v);
  const std::size_t most = device_info().max_shared_bytes;
  if (needed > most) {
    refuse(kVerb, "vocab_size", std::to_string(v.vocab_size),
           "with penalties or biases, what leaves " + std::to_string(needed) +
               " bytes of shared memory within " + std::to_string(most));
  }
}

bool quads_aligned(const Verify& v) {
  const std::size_t size = size_of(v.dtype);
  const auto address = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(v.logits));
  return (address | static_cast<std::uint64_t>(v.logits_stride) * size) % (4 * size) == 0;
}

/// How many blocks share a row: enough for the device, each with enough to do. Depends on host
/// fields only, so that a captured graph stays right.
void split(verification::TargetJob& job) {
  constexpr std::int64_t kLevels = 8;         // deeper paths are rare
  constexpr std::int64_t kPartTokens = 8192;  // at least
  constexpr std::int64_t kBlocksPerMultiprocessor = 4;
  const Verify& v = job.verify;
  const std::int64_t blocks =
      kBlocksPerMultiprocessor * device_info().num_multiprocessors / v.num_sequences;
  const std::int64_t most = (v.vocab_size + kPartTokens - 1) / kPartTokens;
  const std::int64_t wanted = std::clamp<std::int64_t>(blocks, 1, std::min<std::int64_t>(most, 32));
  const std::int64_t tokens = ((v.vocab_size + wanted - 1) / wanted + 63) / 64 * 64;
  job.part_tokens = static_cast<std::int32_t>(tokens);
  job.num_parts = static_cast<std::int32_t>((v.vocab_size + tokens - 1) / tokens);
  job.levels = job.num_parts > 1 ? kLevels : 0;
}

}  // namespace

std::size_t verify_workspace_bytes(VerifyRule rule, std::int32_t max_sequences,
                                   std::int32_t max_nodes, std::int32_t vocab_size) {
  constexpr std::int64_t kAny = std::numeric_limits<std::int32_t>::max();
  check_range("verify_workspace_bytes", "max_sequences", max_sequences, 0, kAny);
  check_range("verify_workspace_bytes", "max_nodes", max_nodes, 0, kAny);
  check_range("verify_workspace_bytes", "vocab_size", vocab_size, 1, kAny - 63);
  // The other rules keep everything in shared memory.
  return rule == VerifyRule::kTarget ? verification::target_workspace_bytes(max_sequences) : 0;
}

void verify(const Verify& verify, void* workspace, std::size_t workspace_bytes, Stream stream) {
  check_logits(verify);
  check_edits(verify);
  check_results(verify);
  const std::size_t needed = verify_workspace_bytes(verify.rule, verify.num_sequences, 0, 1);
  if (workspace_bytes < needed || (needed > 0 && workspace == nullptr)) {
    refuse(kVerb, "workspace_bytes", workspace == nullptr ? "0" : std::to_string(workspace_bytes),
           "at least " + std::to_string(needed));
  }
  if (reinterpret_cast<std::uintptr_t>(workspace) % 16 != 0) {
    refuse(kVerb, "workspace", "misaligned", "device memory aligned to 16 bytes");
  }
  if (verify.num_sequences == 0) return;
  const bool aligned = quads_aligned(verify);
  if (verify.rule == VerifyRule::kTarget) {
    verification::TargetJob job{verify, workspace, aligned};
    split(job);
    verification::launch_target(job, stream);
  } else {
    check_together("draft_rows", verify.draft_rows, "draft_probs", verify.draft_probs);
    verification::launch_rules(verify, aligned, stream);
  }
}

}  // namespace smartspec::cuda
