// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the binding files of smartspec_core.cuda share.
#pragma once

#include <vector>

#include "dlpack.hpp"
#include "smartspec/cuda_ops.hpp"

namespace smartspec::python {

/// The library's struct and the memory that it points to.
struct BoundPagedKv {
  cuda::PagedKv kv;
  Tensor k;
  Tensor v;
  Tensor k_scale;
  Tensor v_scale;
};

inline cuda::Stream stream_of(std::uintptr_t handle) {
  return reinterpret_cast<cuda::Stream>(handle);
}

inline Tensor take_workspace(TensorArguments& arguments, py::handle source) {
  return arguments.take(source,
                        {.name = "workspace", .dtypes = {"uint8"}, .shape = {-1}, .written = true});
}

void init_cuda_attention(py::module_& m);
void init_cuda_kv(py::module_& m);
void init_cuda_verify(py::module_& m);

}  // namespace smartspec::python
