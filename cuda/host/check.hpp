// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Turns the CUDA runtime's error codes into exceptions. The only way host code calls the runtime.
#pragma once

#include <cuda_runtime_api.h>

namespace smartspec::cuda {

/// Throws DeviceError "what: cudaErrorName (text)" unless `code` is cudaSuccess, or the reason why
/// no device can be used when that is it. Clears the runtime's last error, so that a later check
/// does not report this one.
void check(cudaError_t code, const char* what);

}  // namespace smartspec::cuda
