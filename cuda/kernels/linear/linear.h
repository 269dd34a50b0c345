// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The linear layer without a library: for builds without cuBLASLt.
#pragma once

#include "backend/backend.hpp"

struct CUstream_st;

namespace smartspec::cuda::kernels {

/// p.weight->data is [out_features, in_features], row-major, f32 or bf16, dense. Every output is
/// one chain of fused multiply-adds over ascending k, whatever the number of rows, strides and
/// alignment; then bias, then what `out` held. `in` and `out` do not overlap. Checks nothing;
/// launches nothing for an empty shape.
void linear(const LinearParams& p, CUstream_st* stream);

}  // namespace smartspec::cuda::kernels
