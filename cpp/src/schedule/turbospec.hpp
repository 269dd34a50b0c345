// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Expected tokens of a speculated chain, as SmartSpec (arXiv 2406.14066, section 4.1) has it.
#pragma once

#include <cmath>
#include <cstdint>

namespace smartspec {

/// Tokens a request emits when each of `length` draft tokens is accepted with probability
/// `acceptance` (below 1) independently, the bonus token included.
inline double geometric_length(double acceptance, std::int32_t length) {
  return (1 - std::pow(acceptance, length + 1)) / (1 - acceptance);
}

}  // namespace smartspec
