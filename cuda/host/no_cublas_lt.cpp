// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Linked in place of cublas_lt.cpp when the build has no cublasLt.h.
#include "host/cublas_lt.hpp"

namespace smartspec::cuda {

std::unique_ptr<CublasLt> load_cublas_lt() { return nullptr; }
bool has_cublas_lt() noexcept { return false; }

}  // namespace smartspec::cuda
