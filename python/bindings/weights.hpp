// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A tensor view together with what keeps its memory alive.
#pragma once

#include <memory>

#include "smartspec/tensor_view.hpp"
#include "views.hpp"

namespace smartspec::python {

struct BoundTensor {
  TensorView view;
  std::shared_ptr<void> owner;
};

/// Owns a reference to a Python object and gives it back under the GIL.
std::shared_ptr<void> hold(py::object object);

BoundTensor borrow_array(const py::array& array, const std::optional<std::string>& dtype);

}  // namespace smartspec::python
