// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Backend::walk_trees: one upload, one launch, one download.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.hpp"
#include "host/staging.hpp"
#include "smartspec/cuda_ops.hpp"

namespace smartspec::cuda {

/// Runs cuda::verify on trees that lie on the host. Keeps its memory from call to call.
class TreeWalker {
 public:
  void run(const WalkParams& params, Staging& staging, CUstream_st* stream);
  [[nodiscard]] std::int64_t num_walked() const noexcept { return num_walked_; }  // trees

 private:
  void upload_inputs(std::span<const WalkSequence> sequences, Verify& verify, Staging& staging,
                     CUstream_st* stream);
  void take_results(const WalkParams& params, const Verify& verify, CUstream_st* stream);

  std::vector<std::byte> host_;  // the arrays that a Verify points to, one behind the other
  Buffer device_;                // the same
  Buffer results_;               // num_accepted, status [sequences]; tokens, path [., path_stride]
  Buffer host_results_;          // all but the path, page-locked
  Buffer workspace_;
  std::int64_t num_walked_ = 0;
};

}  // namespace smartspec::cuda
