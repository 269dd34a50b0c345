// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A lambda as a kernel, for tests of device functions.
#pragma once

#include "common/launch.cuh"

namespace smartspec::emulation {

template <int kNumThreads, class Body>
struct LambdaKernel {
  static constexpr int kThreads = kNumThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr const char* kName = "lambda";
  Body body;
  SMARTSPEC_DEVICE void operator()() const { body(); }
};

template <int kNumThreads, class Body>
void run_lambda(const cuda::LaunchShape& shape, const Body& body) {
  cuda::launch(shape, nullptr, LambdaKernel<kNumThreads, Body>{body});
}

}  // namespace smartspec::emulation
