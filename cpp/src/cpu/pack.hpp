// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// One-time layout change of linear weights into panels.
#pragma once

#include <span>

#include "backend/backend.hpp"
#include "cpu/thread_pool.hpp"

namespace smartspec::cpu {

/// Concatenates `parts` [out_i, in] (f32, bf16 or f16) along the outputs. Throws
/// std::invalid_argument on unequal inputs, other dtypes or empty shapes.
PackedLinear pack_linear(std::span<const TensorView> parts, DType dtype, ThreadPool& pool);

}  // namespace smartspec::cpu
