// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// What the host side of the backend asks of the CUDA runtime. runtime.cpp is written on cudart,
// which is linked statically and loads the driver at its first call: a build with CUDA imports and
// runs where there is none. The tests link an implementation on the CPU's memory instead
// (tests/cuda/emulation/runtime.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

struct CUstream_st;

namespace smartspec::cuda {

struct DeviceInfo {
  std::string name;
  std::int32_t major = 0;  // compute capability
  std::int32_t minor = 0;
  std::int32_t num_multiprocessors = 0;
  std::size_t max_shared_bytes = 0;  // a block may ask for
  std::size_t total_bytes = 0;
  std::int32_t driver_version = 0;  // 13000: 13.0
};

/// Why no device can be used ("no CUDA driver", "compute capability 7.5, needs 8.0 or later"), or
/// empty. Never throws; asked once, then remembered.
const std::string& unavailable_reason() noexcept;
/// Of the current device. Throws DeviceError when there is none.
const DeviceInfo& device_info();

/// What allocate_device says when it cannot.
inline std::string out_of_memory_text(std::size_t bytes, std::size_t free_bytes,
                                      std::size_t total_bytes) {
  return "out of CUDA memory: " + std::to_string(bytes) + " bytes asked for, " +
         std::to_string(free_bytes) + " free of " + std::to_string(total_bytes);
}

/// Not zeroed; null for no bytes. Throws DeviceError naming the bytes asked for, those free and
/// those there are.
void* allocate_device(std::size_t bytes);
void free_device(void* data) noexcept;
/// Page-locked host memory.
void* allocate_pinned(std::size_t bytes);
void free_pinned(void* data) noexcept;

/// Between host and device in any direction, ordered on the stream. With pageable host memory the
/// call returns when the host memory may be reused.
void copy(void* to, const void* from, std::size_t bytes, CUstream_st* stream);
void fill_zero(void* data, std::size_t bytes, CUstream_st* stream);
void synchronize(CUstream_st* stream);

/// Owns a stream that does not wait for the default one.
class OwnedStream {
 public:
  OwnedStream();
  ~OwnedStream();
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  [[nodiscard]] CUstream_st* get() const noexcept { return stream_; }

 private:
  CUstream_st* stream_ = nullptr;
};

/// What was launched on a stream between begin and end, to be launched again as one.
class CapturedGraph {
 public:
  CapturedGraph();
  ~CapturedGraph();
  CapturedGraph(CapturedGraph&&) noexcept;
  CapturedGraph& operator=(CapturedGraph&&) noexcept;
  /// False when the runtime cannot capture: the caller launches directly.
  static bool is_supported() noexcept;
  static void begin(CUstream_st* stream);
  static CapturedGraph end(CUstream_st* stream);
  void launch(CUstream_st* stream) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smartspec::cuda
