// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Checks of a paged cache that the entry points share. They throw std::invalid_argument
// "verb: field is value; allowed: ...".
#pragma once

#include <cstdint>
#include <string>

#include "smartspec/cuda_ops.hpp"

namespace smartspec::cuda::kernels {

[[noreturn]] void refuse(const std::string& verb, const std::string& field,
                         const std::string& value, const std::string& allowed);
void check_range(const std::string& verb, const std::string& field, std::int64_t value,
                 std::int64_t low, std::int64_t high);
void check_set(const std::string& verb, const std::string& field, const void* pointer);

/// Pointers, dtype, shape, and that no two elements share an address. `field`: "kv", "layers[3]".
void check_paged_kv(const std::string& verb, const std::string& field, const PagedKv& kv);

}  // namespace smartspec::cuda::kernels
