// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Launches the rules with draft probabilities.
#include "common/launch.cuh"
#include "kernels/verify/rules.cuh"
#include "kernels/verify/verify.h"

namespace smartspec::cuda::verification {
namespace {

template <DType kType>
void launch_for(const Verify& verify, bool aligned, Stream stream) {
  constexpr int kThreads = 384;  // more would leave too few registers
  const RuleKernel<kType, kThreads, SeededUniforms> kernel{
      verify, shared_shape(verify, sizeof(RuleState)), aligned, {}};
  launch({verify.num_sequences, 1, kernel.shape.bytes}, stream, kernel);
}

}  // namespace

void launch_rules(const Verify& verify, bool aligned, Stream stream) {
  switch (verify.dtype) {
    case DType::kFloat32:
      return launch_for<DType::kFloat32>(verify, aligned, stream);
    case DType::kBFloat16:
      return launch_for<DType::kBFloat16>(verify, aligned, stream);
    default:
      return launch_for<DType::kFloat16>(verify, aligned, stream);
  }
}

std::size_t shared_bytes(const Verify& verify) {
  const bool is_target = verify.rule == VerifyRule::kTarget;
  return shared_shape(verify, is_target ? 0 : sizeof(RuleState)).bytes;
}

}  // namespace smartspec::cuda::verification
