// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "backend/backend.hpp"
#include "smartspec/model.hpp"

namespace smartspec {

bool is_available(Device device) noexcept { return device == Device::kCpu || cuda_available(); }

std::unique_ptr<Backend> make_backend(Device device, std::int32_t num_threads) {
  return device == Device::kCpu ? make_cpu_backend(num_threads) : make_cuda_backend();
}

std::shared_ptr<Runtime> make_runtime(Device device, std::int32_t num_threads) {
  return std::make_shared<Runtime>(make_backend(device, num_threads));
}

std::string_view isa_name(const Runtime& runtime) noexcept { return runtime.backend().isa_name(); }

std::int32_t num_threads(const Runtime& runtime) noexcept {
  return runtime.backend().num_threads();
}

}  // namespace smartspec
