// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The CUDA operations of a build without CUDA. Nothing else is defined here: a program that brings
// its own definitions finds them before this object of the archive.
#include "smartspec/cuda_ops.hpp"
#include "smartspec/error.hpp"

namespace smartspec::cuda {

namespace {

constexpr const char* kReason = "smartspec was built without CUDA";

[[noreturn]] void refuse(const char* operation) {
  throw DeviceError(std::string(operation) + ": " + kReason);
}

}  // namespace

bool is_usable() noexcept { return false; }
std::string unusable_reason() { return kReason; }
BuildInfo build_info() { return {}; }

std::size_t attention_workspace_bytes(const AttentionPlanOptions& /*options*/,
                                      std::int32_t /*max_sequences*/, std::int32_t /*max_rows*/,
                                      std::int32_t /*max_nodes*/) {
  refuse("attention_workspace_bytes");
}

ForestState prepare_forest(const Forest& /*forest*/, const AttentionPlanOptions& /*options*/,
                           void* /*workspace*/, std::size_t /*workspace_bytes*/,
                           Stream /*stream*/) {
  refuse("prepare_forest");
}

void tree_attention(const TreeAttention& /*attention*/, const Forest& /*forest*/,
                    const AttentionPlanOptions& /*options*/, const ForestState& /*state*/,
                    void* /*workspace*/, std::size_t /*workspace_bytes*/, Stream /*stream*/) {
  refuse("tree_attention");
}

void append_kv(const AppendKv& /*append*/, Stream /*stream*/) { refuse("append_kv"); }
void move_kv(const MoveKv& /*moves*/, Stream /*stream*/) { refuse("move_kv"); }
void copy_pages(const CopyPages& /*copy*/, Stream /*stream*/) { refuse("copy_pages"); }
void swap_pages(const SwapPages& /*swap*/, Stream /*stream*/) { refuse("swap_pages"); }

std::size_t verify_workspace_bytes(VerifyRule /*rule*/, std::int32_t /*max_sequences*/,
                                   std::int32_t /*max_nodes*/, std::int32_t /*vocab_size*/) {
  refuse("verify_workspace_bytes");
}

void verify(const Verify& /*verify*/, void* /*workspace*/, std::size_t /*workspace_bytes*/,
            Stream /*stream*/) {
  refuse("verify");
}

}  // namespace smartspec::cuda
