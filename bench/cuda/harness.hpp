// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Timing of device work: graph replays between events, medians, and the device's copy bandwidth
// measured in the same run. Results go to the screen and to a JSON file.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "smartspec/types.hpp"

namespace smartspec::bench {

/// Throws std::runtime_error naming `what` unless `code` is cudaSuccess.
void check(cudaError_t code, const char* what);

/// Device memory, not initialised.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(std::size_t bytes);
  template <class T>
  explicit DeviceMemory(const std::vector<T>& values) : DeviceMemory(values.size() * sizeof(T)) {
    check(cudaMemcpy(data_, values.data(), bytes_, cudaMemcpyHostToDevice), "upload");
  }
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  template <class T = void>
  [[nodiscard]] T* as() const noexcept {
    return static_cast<T*>(data_);
  }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  template <class T>
  [[nodiscard]] std::vector<T> download() const {
    std::vector<T> out(bytes_ / sizeof(T));
    check(cudaMemcpy(out.data(), data_, bytes_, cudaMemcpyDeviceToHost), "download");
    return out;
  }
  void fill_zero() const { check(cudaMemset(data_, 0, bytes_), "cudaMemset"); }
  /// About normal numbers of this type; repeats after 16 MiB.
  void fill_random(DType dtype, std::uint32_t seed) const;

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

struct Times {
  double median = 0.0;  // seconds of one launch
  double best = 0.0;
};

/// Captures `work`, which makes `launches` launches, replays it `rounds` times after a warm-up.
Times time_replays(int rounds, int launches, const std::function<void(cudaStream_t)>& work);

/// Bytes read and written per second by a device-to-device copy of 1 GiB.
double copy_bandwidth(int rounds);

std::size_t l2_bytes();

/// Lines of "name: value" pairs, printed as a table row by the caller and kept for write().
class Report {
 public:
  explicit Report(std::string program);
  void start_case(const std::string& name);
  void add(const std::string& key, double value);
  /// {"program", "device", ..., "cases": [...]}; nothing when the path is empty.
  void write(const std::string& path) const;
  void set(const std::string& key, double value);

 private:
  std::string head_;
  std::vector<std::string> cases_;
};

std::string option(int argc, char** argv, const std::string& name, const std::string& fallback);

/// Runs `body`, prints what it throws; the exit status.
int guarded_main(const std::function<void()>& body);

}  // namespace smartspec::bench
