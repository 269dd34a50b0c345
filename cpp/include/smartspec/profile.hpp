// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What a model's passes cost on this machine: measured, or estimated from its shape.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "smartspec/cost_model.hpp"
#include "smartspec/export.hpp"
#include "smartspec/model.hpp"

namespace smartspec {

struct ProfileOptions {
  std::int32_t max_num_seqs = 32;                        // requests of a pass
  std::int32_t max_num_tokens = 512;                     // rows of a pass
  std::int32_t max_drafts = 8;                           // draft nodes per request
  std::int32_t max_context = 2048;                       // tokens; at most what the model allows
  std::int32_t block_size = 16;                          // of the KV cache, as in EngineOptions
  std::int64_t kv_memory_bytes = std::int64_t{1} << 30;  // fewer or shorter requests beyond it
  double seconds = 8;                                    // to spend; at least one pass is measured
  std::function<void(double share)> progress{};          // of the seconds, after each pass
};

/// Passes of an engine with random tokens: decoding at several batch sizes, draft lengths and
/// contexts, with and without a chunk of a prompt, and chunks alone. Repeated in rounds while the
/// time lasts; the lower quartile of each load's rounds is returned; a load not reached is left
/// out. For fit_cost(). Throws std::invalid_argument naming the option; what `progress` throws
/// comes through.
SMARTSPEC_API std::vector<CostSample> profile_model(const std::shared_ptr<const Model>& model,
                                                    const ProfileOptions& options = {});

/// From the model's shape and what cores with its kernels usually reach: off by a factor of two or
/// so, which is enough for a CostModel to start from. num_threads 0: those of the model's runtime.
SMARTSPEC_API Roofline roofline_of(const Model& model, std::int32_t num_threads = 0);

}  // namespace smartspec
