// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The native module: lists the binding files and maps the errors.
#include "smartspec/error.hpp"
#include "views.hpp"

namespace smartspec::python {

void init_errors(py::module_& m) {
  // Translators run last registered first, so the base comes before what derives from it.
  // std::invalid_argument is ValueError in pybind11 already.
  const auto& base = py::register_exception<Error>(m, "Error", PyExc_RuntimeError);
  py::register_exception<FormatError>(m, "FormatError", base);
  py::register_exception<DeviceError>(m, "DeviceError", base);
}

}  // namespace smartspec::python

PYBIND11_MODULE(_core, m) {
  using namespace smartspec::python;
  m.doc() = "SmartSpec's engine core. Array arguments are never converted or copied silently.";
  m.attr("__version__") = SMARTSPEC_VERSION;
  init_errors(m);
  init_tree(m);
  init_sampling(m);
  init_verify(m);
  init_weights(m);
  init_model(m);
  init_cost(m);
  init_kv(m);
  init_proposer(m);
  init_suffix(m);
  init_native_proposers(m);
  init_policies(m);
  init_simulate(m);
  init_engine_types(m);
  init_engine(m);
  init_cuda(m);
}
