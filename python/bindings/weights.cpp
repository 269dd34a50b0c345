// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "weights.hpp"

#include "smartspec/safetensors.hpp"

namespace smartspec::python {

namespace {

DType dtype_of(const py::array& array, const std::optional<std::string>& dtype) {
  if (dtype && *dtype == "bfloat16" && py::isinstance<py::array_t<std::uint16_t>>(array)) {
    return DType::kBFloat16;
  }
  const std::string name = py::str(array.dtype()).cast<std::string>();
  if (!dtype || *dtype == name) {
    for (const DType known : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      if (name == name_of(known)) return known;
    }
  }
  throw std::invalid_argument(
      "Tensor: array dtype must be float32, float16 or bfloat16, or uint16 with dtype='bfloat16'; "
      "got " +
      name + (dtype ? " with dtype='" + *dtype + "'" : ""));
}

}  // namespace

BoundTensor borrow_array(const py::array& array, const std::optional<std::string>& dtype) {
  TensorView tensor;
  tensor.dtype = dtype_of(array, dtype);
  if (array.ndim() < 1 || array.ndim() > 4 || (array.flags() & py::array::c_style) == 0) {
    throw std::invalid_argument("Tensor: expected a C-contiguous array of rank 1 to 4, got " +
                                describe(array));
  }
  tensor.data = array.data();
  tensor.rank = static_cast<std::int32_t>(array.ndim());
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    tensor.shape[static_cast<std::size_t>(i)] = array.shape(i);
  }
  return {tensor, hold(array)};
}

std::shared_ptr<void> hold(py::object object) {
  // The last owner may be a C++ thread without the GIL.
  return {object.release().ptr(), [](void* pointer) {
            const py::gil_scoped_acquire gil;
            Py_DECREF(static_cast<PyObject*>(pointer));
          }};
}

void init_weights(py::module_& m) {
  py::class_<BoundTensor>(m, "Tensor", "A weight in memory, borrowed from a file or an array.")
      .def(py::init(&borrow_array), py::arg("array"), py::arg("dtype") = py::none(),
           "Borrows a NumPy array; bfloat16 comes as uint16 with dtype='bfloat16'.")
      .def_property_readonly("dtype", [](const BoundTensor& t) { return name_of(t.view.dtype); })
      .def_property_readonly("shape",
                             [](const BoundTensor& t) {
                               return std::vector<std::int64_t>(t.view.shape.begin(),
                                                                t.view.shape.begin() + t.view.rank);
                             })
      .def(
          "numpy",
          [](const BoundTensor& t) {
            // NumPy has no bfloat16, so its bits are shown as uint16.
            const bool is_bfloat16 = t.view.dtype == DType::kBFloat16;
            const py::dtype dtype(is_bfloat16 ? "uint16" : name_of(t.view.dtype));
            const std::vector<py::ssize_t> shape(t.view.shape.begin(),
                                                 t.view.shape.begin() + t.view.rank);
            auto* owner = new std::shared_ptr<void>(t.owner);
            const py::capsule base(
                owner, [](void* pointer) { delete static_cast<std::shared_ptr<void>*>(pointer); });
            py::array array(dtype, shape, t.view.data, base);
            array.attr("flags").attr("writeable") = false;  // the file is mapped read-only
            return array;
          },
          "A read-only view; bfloat16 as uint16 bits.");

  py::class_<SafetensorsFile, std::shared_ptr<SafetensorsFile>>(
      m, "SafetensorsFile", "A safetensors file, mapped and checked. Raises FormatError.")
      .def(py::init<const std::string&>(), py::arg("path"),
           py::call_guard<py::gil_scoped_release>())
      .def("names", &SafetensorsFile::names)
      .def(
          "find",
          [](const SafetensorsFile& file, const std::string& name) -> std::optional<BoundTensor> {
            const auto tensor = file.find(name);
            if (!tensor) return std::nullopt;
            return BoundTensor{*tensor, file.mapping()};
          },
          py::arg("name"), "The tensor, or None.");
}

}  // namespace smartspec::python
