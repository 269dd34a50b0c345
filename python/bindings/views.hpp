// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Checked, zero-copy views of NumPy arrays and the few conversions that all binding files share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "smartspec/types.hpp"

namespace smartspec::python {

namespace py = pybind11;

/// An argument of token ids: a one-dimensional int32 array, or any sequence of Python integers.
struct TokenIds {
  std::vector<TokenId> ids;
};

inline std::string describe(const py::array& array) {
  return "dtype " + py::str(array.dtype()).cast<std::string>() + ", shape " +
         py::str(array.attr("shape")).cast<std::string>() +
         ((array.flags() & py::array::c_style) != 0 ? "" : ", not C-contiguous");
}

/// The elements of a C-contiguous array of exactly this dtype and shape (-1: any extent); borrowed,
/// never converted or copied. Throws std::invalid_argument naming the argument otherwise.
template <class T>
std::span<const T> view(const py::array& array, const char* name,
                        std::initializer_list<py::ssize_t> shape) {
  bool fits = py::isinstance<py::array_t<T>>(array) && (array.flags() & py::array::c_style) != 0 &&
              array.ndim() == static_cast<py::ssize_t>(shape.size()) &&
              reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) == 0;
  std::string wanted;
  py::ssize_t axis = 0;
  for (const py::ssize_t extent : shape) {
    fits = fits && (extent < 0 || array.shape(axis) == extent);
    wanted += (axis++ == 0 ? "" : ", ") + (extent < 0 ? "*" : std::to_string(extent));
  }
  if (!fits) {
    throw std::invalid_argument(std::string(name) + ": expected an aligned C-contiguous array of " +
                                py::str(py::dtype::of<T>()).cast<std::string>() + " [" + wanted +
                                "], got " + describe(array));
  }
  return {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())};
}

/// One integer of `list[index]`, or std::invalid_argument.
inline TokenId token_id(PyObject* item, py::ssize_t index) {
  int overflow = 0;
  const py::object number = py::reinterpret_steal<py::object>(PyNumber_Index(item));
  if (!number) PyErr_Clear();
  const long long value =
      number ? PyLong_AsLongLongAndOverflow(number.ptr(), &overflow) : std::int64_t{0};
  if (!number || overflow != 0 || value < std::numeric_limits<TokenId>::min() ||
      value > std::numeric_limits<TokenId>::max()) {
    throw std::invalid_argument("token id " + std::to_string(index) + " is " +
                                py::repr(item).cast<std::string>().substr(0, 80) +
                                ", must be an integer in [0, vocab_size)");
  }
  return static_cast<TokenId>(value);
}

inline std::vector<TokenId> token_ids(py::handle source) {
  if (py::isinstance<py::array>(source)) {
    const auto ids = view<TokenId>(py::reinterpret_borrow<py::array>(source), "token ids", {-1});
    return {ids.begin(), ids.end()};
  }
  const auto list =
      py::reinterpret_steal<py::object>(PySequence_Fast(source.ptr(), "token ids: not a sequence"));
  if (!list) throw py::error_already_set();
  std::vector<TokenId> ids(static_cast<std::size_t>(PySequence_Fast_GET_SIZE(list.ptr())));
  // The size is read again each time: __index__ of a hostile element may shrink the list.
  for (py::ssize_t i = 0;
       i < PySequence_Fast_GET_SIZE(list.ptr()) && i < static_cast<py::ssize_t>(ids.size()); ++i) {
    const auto item = py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(list.ptr(), i));
    ids[static_cast<std::size_t>(i)] = token_id(item.ptr(), i);
  }
  return ids;
}

void init_errors(py::module_& m);
void init_tree(py::module_& m);
void init_sampling(py::module_& m);
void init_verify(py::module_& m);
void init_weights(py::module_& m);
void init_model(py::module_& m);
void init_cost(py::module_& m);
void init_kv(py::module_& m);
void init_proposer(py::module_& m);
void init_suffix(py::module_& m);
void init_native_proposers(py::module_& m);
void init_policies(py::module_& m);
void init_simulate(py::module_& m);
void init_engine_types(py::module_& m);
void init_engine(py::module_& m);
void init_cuda(py::module_& m);

}  // namespace smartspec::python

namespace pybind11::detail {

template <>
struct type_caster<smartspec::python::TokenIds> {
  PYBIND11_TYPE_CASTER(
      smartspec::python::TokenIds,
      const_name("collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32]"));
  bool load(handle source, bool /*convert*/) {
    if (!isinstance<array>(source) &&
        (PySequence_Check(source.ptr()) == 0 || PyUnicode_Check(source.ptr()) != 0 ||
         PyBytes_Check(source.ptr()) != 0)) {
      return false;
    }
    value.ids = smartspec::python::token_ids(source);
    return true;
  }
  static handle cast(const smartspec::python::TokenIds& source, return_value_policy policy,
                     handle parent) {
    return make_caster<std::vector<smartspec::TokenId>>::cast(source.ids, policy, parent);
  }
};

}  // namespace pybind11::detail
