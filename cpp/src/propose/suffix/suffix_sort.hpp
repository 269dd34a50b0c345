// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Sorts the positions of a text by the context that ends at them. Internal; pure; thread-safe.
// Radix on packed tokens for the shallow ties, prefix doubling for the deep ones (Larsson and
// Sadakane, "Faster suffix sorting", 2007): n log n comparisons per round and log(longest repeat)
// rounds, so a text of one repeated token costs a small multiple of ordinary text.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "smartspec/types.hpp"

namespace smartspec::suffix {

inline constexpr TokenId kSeparator = -1;

/// The positions of all tokens of `text` (separators left out), sorted by text[p], text[p-1], ...
/// up to and including the separator on the left, which is smaller than any token. Positions whose
/// whole contexts are equal stand in the order of the text.
/// Needs text[0] == kSeparator, every other element >= kSeparator, and text.size() < 2^32.
/// Throws std::bad_alloc only. Takes up to 24 bytes per token while it runs.
[[nodiscard]] std::vector<std::uint32_t> sort_by_left_context(std::span<const TokenId> text);

}  // namespace smartspec::suffix
