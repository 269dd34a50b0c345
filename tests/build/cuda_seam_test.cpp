// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What a user meets who asks for CUDA while there are no kernels: a clear error, and a CPU that
// still works.
#include <gtest/gtest.h>

#include <string>

#include "backend/backend.hpp"
#include "smartspec/error.hpp"
#include "smartspec/model.hpp"

namespace smartspec {
namespace {

TEST(CudaSeam, SaysThatThereAreNoKernels) {
  EXPECT_FALSE(cuda_available());
  EXPECT_FALSE(is_available(Device::kCuda));
  try {
    make_runtime(Device::kCuda);
    FAIL() << "make_runtime(cuda) did not throw";
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("no kernels yet"), std::string::npos) << error.what();
  }
}

TEST(CudaSeam, LeavesTheCpuAlone) {
  EXPECT_TRUE(is_available(Device::kCpu));
  EXPECT_EQ(num_threads(*make_runtime(Device::kCpu, 1)), 1);
}

}  // namespace
}  // namespace smartspec
