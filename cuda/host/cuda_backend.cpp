// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The CUDA side of the backend seam. There are no kernels yet, so it says so instead of promising a
// device it cannot drive.
#include <memory>

#include "backend/backend.hpp"
#include "smartspec/error.hpp"

namespace smartspec {

std::unique_ptr<Backend> make_cuda_backend() {
  throw DeviceError("device cuda: the CUDA backend has no kernels yet; allowed: cpu");
}

bool cuda_available() noexcept { return false; }

}  // namespace smartspec
