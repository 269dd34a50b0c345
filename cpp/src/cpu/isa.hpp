// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Which kernels this CPU can run, and which are used.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "backend/backend.hpp"
#include "cpu/kernels.hpp"

namespace smartspec::cpu {

/// Names this CPU supports, best first; the last is always "generic".
std::vector<std::string_view> supported_isas();

/// The kernels of `name`; empty: of SMARTSPEC_ISA if that is set, else the best. Throws DeviceError
/// naming the allowed values.
const KernelTable& select_kernels(std::string_view name);

/// As smartspec::make_cpu_backend, with the kernels named; several may live in one process.
std::unique_ptr<Backend> make_cpu_backend(std::int32_t num_threads, std::string_view isa);

}  // namespace smartspec::cpu
