// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// exp, log and fixed-point masses that are the same on every machine, under this part's name.
#pragma once

#include "core/portable_math.hpp"

namespace smartspec::verify {

using core::approximate_exp;
using core::clamp_exponent;
using core::exp_of_clamped;
using core::portable_exp;
using core::portable_log;
using core::to_fixed;

}  // namespace smartspec::verify
