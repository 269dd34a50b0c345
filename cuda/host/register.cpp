// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What cpp/src/backend/no_cuda.cpp and no_cuda_ops.cpp say for builds without CUDA.
#include <cstdlib>
#include <string_view>

#include "host/cuda_backend.hpp"

// The build says what it compiles for; the tests run on the CPU.
#ifndef SMARTSPEC_CUDA_ARCHITECTURES
#define SMARTSPEC_CUDA_ARCHITECTURES "emulated"
#define SMARTSPEC_CUDA_TOOLKIT "none"
#endif

namespace smartspec {

/// The environment may set CudaBackendOptions: SMARTSPEC_BATCH_INVARIANT=1,
/// SMARTSPEC_CUDA_GRAPHS=0.
std::unique_ptr<Backend> make_cuda_backend() {
  const auto is = [](const char* name, std::string_view value) {
    const char* set = std::getenv(name);
    return set != nullptr && set == value;
  };
  return cuda::make_cuda_backend({.batch_invariant = is("SMARTSPEC_BATCH_INVARIANT", "1"),
                                  .graphs = !is("SMARTSPEC_CUDA_GRAPHS", "0")});
}

bool cuda_available() noexcept { return cuda::is_usable(); }

namespace cuda {

bool is_usable() noexcept { return unavailable_reason().empty(); }
std::string unusable_reason() { return unavailable_reason(); }

BuildInfo build_info() {
  return {.has_cuda = true,
          .architectures = SMARTSPEC_CUDA_ARCHITECTURES,
          .toolkit = SMARTSPEC_CUDA_TOOLKIT,
          .has_cublaslt = has_cublas_lt()};
}

}  // namespace cuda
}  // namespace smartspec
