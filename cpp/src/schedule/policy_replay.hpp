// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Replays a policy trace that is in memory.
#pragma once

#include <cstddef>
#include <span>

#include "smartspec/policy_trace.hpp"

namespace smartspec {

/// As replay() does with a file.
ReplayResult replay_bytes(std::span<const std::byte> trace, LengthPolicy& policy);

}  // namespace smartspec
