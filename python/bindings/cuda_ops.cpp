// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// smartspec_core.cuda: lists the binding files, says what was built and how tensors are seen.
#include "cuda_ops.hpp"

#include <pybind11/typing.h>

namespace smartspec::python {

namespace {

using Facts = py::typing::Dict<py::str, py::object>;

Facts build_info() {
  const cuda::BuildInfo info = cuda::build_info();
  Facts out;
  out["has_cuda"] = info.has_cuda;
  out["architectures"] = info.architectures;
  out["toolkit"] = info.toolkit;
  out["has_cublaslt"] = info.has_cublaslt;
  return out;
}

Facts describe_tensor(const py::object& tensor, std::uintptr_t stream) {
  const Tensor seen(tensor, "tensor", stream);
  Facts out;
  out["data"] = reinterpret_cast<std::uintptr_t>(seen.data());
  out["dtype"] = seen.dtype();
  out["device"] = seen.device();
  out["shape"] = seen.shape();
  out["strides"] = seen.strides();
  out["read_only"] = seen.is_read_only();
  return out;
}

}  // namespace

void init_cuda(py::module_& m) {
  using py::arg;
  py::module_ cuda_module = m.def_submodule(
      "cuda",
      "The CUDA operations on their own, over tensors of any framework that speaks DLPack. Nothing "
      "is allocated, converted or copied; every call launches on `stream` (a handle; 0: the "
      "default stream) and returns. The current device must be that of the tensors.");
  cuda_module.def("is_usable", &cuda::is_usable, "Whether the operations can run here.");
  cuda_module.def("unusable_reason", &cuda::unusable_reason, "Why not; empty when they can.");
  cuda_module.def("build_info", &build_info,
                  "What was compiled in, whether or not it can be used here.");
  cuda_module.def("describe", &describe_tensor, py::kw_only(), arg("tensor"), arg("stream") = 0,
                  "How the operations see a tensor: data, dtype, device, shape, strides in "
                  "elements, read_only.");
  init_cuda_kv(cuda_module);
  init_cuda_attention(cuda_module);
  init_cuda_verify(cuda_module);
}

}  // namespace smartspec::python
