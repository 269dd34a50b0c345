// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Launchers of the backend's row verbs: embeddings, norms, activations. They check nothing and
// launch nothing for an empty shape. A row's result depends on the row alone: neither the number of
// rows nor the alignment of the pointers changes a bit of it.
#pragma once

#include <cstdint>

#include "backend/backend.hpp"

struct CUstream_st;

namespace smartspec::cuda::kernels {

void embed(const EmbedParams& p, CUstream_st* stream);
void rms_norm(const RmsNormParams& p, CUstream_st* stream);
void swiglu(const SwigluParams& p, CUstream_st* stream);
void gather_rows(const GatherRowsParams& p, CUstream_st* stream);

/// out = in, rounded to bf16 (nearest even).
struct ConvertRowsParams {
  const float* in = nullptr;     // [num_rows, dim], row stride in_stride
  std::uint16_t* out = nullptr;  // [num_rows, dim], row stride out_stride
  std::int32_t num_rows = 0;
  std::int32_t dim = 0;
  std::int64_t in_stride = 0;
  std::int64_t out_stride = 0;
};
void convert_rows(const ConvertRowsParams& p, CUstream_st* stream);

/// out[r, i] += bias[i].
struct AddBiasParams {
  const float* bias = nullptr;  // [dim]
  float* out = nullptr;         // [num_rows, dim], row stride out_stride
  std::int32_t num_rows = 0;
  std::int32_t dim = 0;
  std::int64_t out_stride = 0;
};
void add_bias(const AddBiasParams& p, CUstream_st* stream);

}  // namespace smartspec::cuda::kernels
