// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Arguments that are integers in one dimension: a C-contiguous array of the right dtype is read in
// place, other integers are converted with every value checked, anything else is refused.
#pragma once

#include <utility>

#include "views.hpp"

namespace smartspec::python {

/// As given; read by integers(), which knows the argument's name.
template <class T>
struct IntegerSequence {
  py::object source;
};

/// A view of the caller's memory or of an own copy. Holds a reference to what it views, so it must
/// be destroyed with the GIL; the values may be read without it.
template <class T>
struct Integers {
  Integers() = default;
  Integers(Integers&&) = default;  // a copy would view the original's memory
  Integers& operator=(Integers&&) = default;

  std::span<const T> values;
  std::vector<T> copy;
  py::object source;
};

[[noreturn]] inline void refuse_integers(const char* name, const std::string& wanted,
                                         const std::string& got) {
  throw std::invalid_argument(std::string(name) + ": must be " + wanted + ", got " + got);
}

template <class T>
constexpr const char* width_of() {
  return sizeof(T) == 4 ? "int32" : "int64";
}

template <class T>
T checked_integer(const char* name, py::ssize_t index, PyObject* item) {
  int overflow = 0;
  const py::object number = py::reinterpret_steal<py::object>(PyNumber_Index(item));
  if (!number) PyErr_Clear();
  const std::int64_t value = number ? PyLong_AsLongLongAndOverflow(number.ptr(), &overflow) : 0;
  if (!number || overflow != 0 || !std::in_range<T>(value)) {
    refuse_integers((std::string(name) + "[" + std::to_string(index) + "]").c_str(),
                    std::string("an integer that fits ") + width_of<T>(),
                    py::repr(item).cast<std::string>().substr(0, 80));
  }
  return static_cast<T>(value);
}

/// NumPy widens to 64 bits, whatever the strides and byte order; then each value is checked.
template <class T, class Wide>
std::vector<T> narrowed(const py::array& array, const char* name) {
  const auto wide = py::array_t<Wide, py::array::c_style | py::array::forcecast>::ensure(array);
  if (!wide) throw py::error_already_set();
  std::vector<T> out(static_cast<std::size_t>(wide.size()));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const Wide value = wide.data()[i];
    if (!std::in_range<T>(value)) {
      refuse_integers((std::string(name) + "[" + std::to_string(i) + "]").c_str(),
                      std::string("an integer that fits ") + width_of<T>(), std::to_string(value));
    }
    out[i] = static_cast<T>(value);
  }
  return out;
}

template <class T>
Integers<T> from_array(const py::array& array, const char* name) {
  const char kind = array.dtype().kind();
  if (array.ndim() != 1 || (kind != 'i' && kind != 'u')) {
    refuse_integers(name, "one-dimensional integers", describe(array));
  }
  Integers<T> out;
  if (py::isinstance<py::array_t<T>>(array) && (array.flags() & py::array::c_style) != 0 &&
      reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) == 0) {
    out.values = {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())};
    out.source = array;
    return out;
  }
  out.copy = kind == 'i' ? narrowed<T, std::int64_t>(array, name)
                         : narrowed<T, std::uint64_t>(array, name);
  out.values = out.copy;
  return out;
}

template <class T>
Integers<T> integers(py::handle source, const char* name) {
  if (py::isinstance<py::array>(source)) {
    return from_array<T>(py::reinterpret_borrow<py::array>(source), name);
  }
  const auto list =
      py::reinterpret_steal<py::object>(PySequence_Fast(source.ptr(), "not a sequence"));
  if (!list) {
    PyErr_Clear();
    refuse_integers(name, "a sequence of integers",
                    py::repr(source).cast<std::string>().substr(0, 80));
  }
  Integers<T> out;
  const py::ssize_t size = PySequence_Fast_GET_SIZE(list.ptr());
  out.copy.reserve(static_cast<std::size_t>(size));
  // The size is read again each time: __index__ of a hostile element may shrink the list.
  for (py::ssize_t i = 0; i < size && i < PySequence_Fast_GET_SIZE(list.ptr()); ++i) {
    const auto item = py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(list.ptr(), i));
    out.copy.push_back(checked_integer<T>(name, i, item.ptr()));
  }
  out.values = out.copy;
  return out;
}

template <class T>
Integers<T> integers(const IntegerSequence<T>& sequence, const char* name) {
  return integers<T>(sequence.source, name);
}

}  // namespace smartspec::python

namespace pybind11::detail {

template <class T>
struct type_caster<smartspec::python::IntegerSequence<T>> {
  PYBIND11_TYPE_CASTER(smartspec::python::IntegerSequence<T>,
                       const_name<sizeof(T) == 4>(
                           "collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32]",
                           "collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int64]"));
  bool load(handle source, bool /*convert*/) {
    if (!isinstance<array>(source) &&
        (PySequence_Check(source.ptr()) == 0 || PyUnicode_Check(source.ptr()) != 0 ||
         PyBytes_Check(source.ptr()) != 0 || PyByteArray_Check(source.ptr()) != 0)) {
      return false;
    }
    value.source = reinterpret_borrow<object>(source);
    return true;
  }
  static handle cast(const smartspec::python::IntegerSequence<T>& sequence,
                     return_value_policy /*policy*/, handle /*parent*/) {
    return object(sequence.source).release();
  }
};

}  // namespace pybind11::detail
