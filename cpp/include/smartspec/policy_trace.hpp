// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Records everything a policy saw and decided, and replays it: the same inputs give the same
// decisions bit for bit, or are shown to another policy.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "smartspec/export.hpp"
#include "smartspec/length_policy.hpp"

namespace smartspec {

/// `policy`, with every call and its answer written to `path`. Token ids are replaced by numbers
/// that keep only which drafts agreed with which emitted tokens, so a trace holds no text. Throws
/// Error when the file cannot be written; a later write error ends the recording and is shown by
/// finish_recording().
SMARTSPEC_API std::shared_ptr<LengthPolicy> make_recording_policy(
    std::shared_ptr<LengthPolicy> policy, const std::filesystem::path& path);
/// Flushes and closes; empty, or what went wrong. `policy` must be a recording one.
SMARTSPEC_API std::string finish_recording(LengthPolicy& policy);

struct ReplayResult {
  std::string recorded_policy;
  std::int64_t num_steps = 0;
  std::int64_t num_decisions = 0;  // requests times steps
  std::int64_t num_different = 0;  // choices or kept nodes unlike the recorded ones
  std::int64_t first_different_step = -1;
  PolicyStats stats;  // of the policy that was replayed
};
/// Shows a trace to a fresh policy. Throws FormatError on a file that is no trace or is damaged.
SMARTSPEC_API ReplayResult replay(const std::filesystem::path& path, LengthPolicy& policy);

}  // namespace smartspec
