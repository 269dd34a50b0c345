// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "emulation/memory.hpp"
#include "host/runtime.hpp"
#include "smartspec/error.hpp"

namespace smartspec::cuda {
namespace {

TEST(Runtime, DeviceIsThereAndNamed) {
  EXPECT_EQ(unavailable_reason(), "");
  EXPECT_EQ(device_info().name, "emulated");
  EXPECT_EQ(device_info().major, 9);
  EXPECT_EQ(device_info().max_shared_bytes, 232448U);
  EXPECT_TRUE(CapturedGraph::is_supported());
  EXPECT_THROW(CapturedGraph::begin(nullptr), DeviceError);
}

TEST(Runtime, GraphsRunWhatWasRecorded) {
  const OwnedStream stream;
  auto* data = static_cast<std::uint8_t*>(allocate_device(8));
  CapturedGraph::begin(stream.get());
  EXPECT_THROW(CapturedGraph::begin(stream.get()), DeviceError);
  EXPECT_THROW(allocate_device(1), DeviceError);
  EXPECT_THROW(synchronize(stream.get()), DeviceError);
  fill_zero(data, 8, stream.get());
  const CapturedGraph graph = CapturedGraph::end(stream.get());
  EXPECT_EQ(data[0], 0xCD);  // recorded, not done
  EXPECT_THROW(CapturedGraph::end(stream.get()), DeviceError);
  for (int i = 0; i < 2; ++i) {
    data[7] = 1;
    graph.launch(stream.get());
    EXPECT_EQ(data[7], 0);
  }
  EXPECT_THROW(CapturedGraph().launch(stream.get()), DeviceError);
  free_device(data);
}

TEST(Runtime, MemoryIsCopiedAndCounted) {
  const std::size_t before = emulation::device_bytes_in_use();
  const OwnedStream stream;
  auto* data = static_cast<std::uint8_t*>(allocate_device(100));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % 256, 0U);
  EXPECT_EQ(emulation::device_bytes_in_use(), before + 100);
  EXPECT_EQ(data[99], 0xCD);  // not zero
  const std::vector<std::uint8_t> in(50, 7);
  fill_zero(data, 100, stream.get());
  copy(data + 10, in.data(), in.size(), stream.get());
  std::vector<std::uint8_t> out(100);
  copy(out.data(), data, 100, stream.get());
  synchronize(stream.get());
  EXPECT_EQ(out[9], 0);
  EXPECT_EQ(out[10], 7);
  EXPECT_EQ(out[59], 7);
  EXPECT_EQ(out[60], 0);
  free_device(data);
  EXPECT_EQ(emulation::device_bytes_in_use(), before);
  free_device(nullptr);
  free_pinned(allocate_pinned(5));
}

TEST(Runtime, OutOfMemoryNamesTheBytes) {
  const emulation::ScopedMemoryLimit limit(emulation::device_bytes_in_use() + 1000);
  void* data = allocate_device(600);
  try {
    allocate_device(500);
    ADD_FAILURE() << "nothing thrown";
  } catch (const DeviceError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("500 bytes"), std::string::npos) << text;
    EXPECT_NE(text.find("400 free"), std::string::npos) << text;
  }
  free_device(data);
  free_device(allocate_device(1000));
}

}  // namespace
}  // namespace smartspec::cuda
