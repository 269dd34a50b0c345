// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Linked in place of cuda/host when the build has no CUDA backend.
#include "backend/backend.hpp"
#include "smartspec/error.hpp"

namespace smartspec {

std::unique_ptr<Backend> make_cuda_backend() {
  throw DeviceError("device \"cuda\" is not available: smartspec was built without CUDA");
}

bool cuda_available() noexcept { return false; }

}  // namespace smartspec
