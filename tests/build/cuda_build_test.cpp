// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What a user meets who asks for CUDA: a device, or a clear error and a CPU that still works. Holds
// in builds with and without CUDA, on machines with and without a GPU or a driver.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/test_models.hpp"
#include "model/decoder.hpp"
#include "smartspec/cuda_ops.hpp"
#include "smartspec/error.hpp"
#include "smartspec/model.hpp"

namespace smartspec {
namespace {

using ::testing::AssertionFailure;
using ::testing::AssertionResult;
using ::testing::AssertionSuccess;

AssertionResult decodes(const std::shared_ptr<Runtime>& runtime) {
  Decoder decoder(testing::tiny_model(runtime, DType::kFloat32, 1), 2, 16, DType::kFloat32, 32);
  const std::int32_t blocks[] = {1, 0};
  ForwardBatch batch;
  batch.tokens = {3, 1, 4};
  batch.positions = {0, 1, 2};
  batch.slots = {16, 17, 18};
  batch.logits_rows = {2};
  AttentionSequence sequence;
  sequence.num_causal = 3;
  sequence.block_table = blocks;
  batch.sequences.push_back(sequence);
  const auto logits = decoder.forward(batch);
  if (logits.size() != 61) return AssertionFailure() << logits.size() << " logits";
  for (const float value : logits) {
    if (!std::isfinite(value)) return AssertionFailure() << "a logit is " << value;
  }
  return AssertionSuccess();
}

TEST(CudaBuild, SaysHowItWasBuilt) {
  const cuda::BuildInfo info = cuda::build_info();
  EXPECT_EQ(info.has_cuda, !info.architectures.empty());
  EXPECT_EQ(info.has_cuda, !info.toolkit.empty());
#ifdef SMARTSPEC_WITH_CUDA
  EXPECT_TRUE(info.has_cuda);
  EXPECT_NE(info.architectures.find("80"), std::string::npos) << info.architectures;
#else
  EXPECT_FALSE(info.has_cuda);
#endif
}

TEST(CudaBuild, RunsOrSaysWhyNot) {
  EXPECT_EQ(cuda::is_usable(), is_available(Device::kCuda));
  EXPECT_EQ(cuda::is_usable(), cuda::unusable_reason().empty());
  if (cuda::is_usable()) {
    EXPECT_TRUE(decodes(make_runtime(Device::kCuda)));
    return;
  }
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      make_runtime(Device::kCuda);
      FAIL() << "make_runtime(cuda) did not throw";
    } catch (const DeviceError& error) {
      EXPECT_NE(std::string(error.what()).find(cuda::unusable_reason()), std::string::npos)
          << error.what();
    }
  }
}

TEST(CudaBuild, LeavesTheCpuAlone) {
  EXPECT_TRUE(is_available(Device::kCpu));
  const auto runtime = make_runtime(Device::kCpu, 1);
  EXPECT_EQ(num_threads(*runtime), 1);
  EXPECT_TRUE(decodes(runtime));
}

/// Operations that a device would do refuse with the reason and leave the process alive.
TEST(CudaBuild, OperationsRefuseWithoutADevice) {
  if (cuda::is_usable()) GTEST_SKIP() << "there is a device: nothing has to refuse";
  float row[64] = {};
  float page[64] = {};
  const SlotId slot = 0;
  cuda::AppendKv append;
  append.dtype = DType::kFloat32;
  append.k = append.v = row;
  append.k_stride = append.v_stride = 64;
  append.num_rows = 1;
  append.slots = &slot;
  append.kv.k = append.kv.v = page;
  append.kv.dtype = DType::kFloat32;
  append.kv.page_size = 1;
  append.kv.num_kv_heads = 1;
  append.kv.head_dim = 64;
  append.kv.page_stride = append.kv.token_stride = append.kv.head_stride = 64;
  EXPECT_THROW(cuda::append_kv(append, nullptr), DeviceError);

  const SlotId destination = 0;
  cuda::MoveKv moves;
  moves.layers = &append.kv;
  moves.num_layers = moves.num_moves = 1;
  moves.sources = &slot;
  moves.destinations = &destination;
  EXPECT_THROW(cuda::move_kv(moves, nullptr), DeviceError);
}

}  // namespace
}  // namespace smartspec
