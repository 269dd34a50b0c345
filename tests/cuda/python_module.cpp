// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// smartspec_core.cuda over the emulated device, for tests/python/test_cuda_ops_run.py.
#include "../../python/bindings/views.hpp"

PYBIND11_MODULE(cuda_ops_emulated, m) { smartspec::python::init_cuda(m); }
