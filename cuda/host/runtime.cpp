// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "host/runtime.hpp"

#include <cuda_runtime_api.h>

#include <array>
#include <mutex>
#include <optional>
#include <utility>

#include "host/check.hpp"
#include "smartspec/error.hpp"

namespace smartspec::cuda {
namespace {

constexpr std::int32_t kMinMajor = 8;

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string error_text(cudaError_t code) {
  return std::string(cudaGetErrorName(code)) + " (" + cudaGetErrorString(code) + ")";
}

std::string find_reason() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    (void)cudaGetLastError();
    return "no NVIDIA driver was found";
  }
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  if (code == cudaErrorInsufficientDriver) {
    return "the NVIDIA driver supports CUDA " + version_text(driver) + ", this build needs " +
           version_text(CUDART_VERSION) + " or later";
  }
  if (code == cudaErrorNoDevice || (code == cudaSuccess && count == 0)) return "no CUDA device";
  if (code != cudaSuccess) return error_text(code);
  const DeviceInfo& info = device_info();
  if (info.major >= kMinMajor) return {};
  return info.name + " has compute capability " + std::to_string(info.major) + "." +
         std::to_string(info.minor) + ", needs 8.0 or later";
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

DeviceInfo read_device_info(int device) {
  DeviceInfo info;
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  info.name = properties.name;
  info.total_bytes = properties.totalGlobalMem;
  info.major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  info.minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  info.num_multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  info.max_shared_bytes =
      static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check(cudaDriverGetVersion(&info.driver_version), "cudaDriverGetVersion");
  return info;
}

}  // namespace

void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  (void)cudaGetLastError();
  // What the runtime says of these depends on the call; the reason is the same for all.
  const bool is_unusable = code == cudaErrorInsufficientDriver || code == cudaErrorNoDevice;
  throw DeviceError(std::string(what) + ": " +
                    (is_unusable ? unavailable_reason() : error_text(code)));
}

const std::string& unavailable_reason() noexcept {
  static const std::string reason = []() noexcept -> std::string {
    try {
      return find_reason();
    } catch (const std::exception& error) {
      return error.what();
    }
  }();
  return reason;
}

const DeviceInfo& device_info() {
  constexpr std::size_t kMaxDevices = 64;
  static std::mutex mutex;
  static std::array<std::optional<DeviceInfo>, kMaxDevices> known;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard lock(mutex);
  std::optional<DeviceInfo>& info = known.at(static_cast<std::size_t>(device));
  if (!info) info = read_device_info(device);
  return *info;
}

void* allocate_device(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  void* data = nullptr;
  const cudaError_t code = cudaMalloc(&data, bytes);
  if (code == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    std::size_t free_bytes = 0;
    std::size_t total_bytes = 0;
    (void)cudaMemGetInfo(&free_bytes, &total_bytes);
    throw DeviceError(out_of_memory_text(bytes, free_bytes, total_bytes));
  }
  check(code, "cudaMalloc");
  return data;
}

void free_device(void* data) noexcept {
  // Fails only after an earlier error or when the process is about to end.
  if (cudaFree(data) != cudaSuccess) (void)cudaGetLastError();
}

void* allocate_pinned(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  void* data = nullptr;
  check(cudaHostAlloc(&data, bytes, cudaHostAllocPortable | cudaHostAllocMapped), "cudaHostAlloc");
  return data;
}

void free_pinned(void* data) noexcept {
  if (cudaFreeHost(data) != cudaSuccess) (void)cudaGetLastError();
}

void copy(void* to, const void* from, std::size_t bytes, CUstream_st* stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
}

void fill_zero(void* data, std::size_t bytes, CUstream_st* stream) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(data, 0, bytes, stream), "cudaMemsetAsync");
}

void synchronize(CUstream_st* stream) {
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

OwnedStream::OwnedStream() {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
}

OwnedStream::~OwnedStream() {
  if (cudaStreamDestroy(stream_) != cudaSuccess) (void)cudaGetLastError();
}

struct CapturedGraph::Impl {
  cudaGraphExec_t graph = nullptr;
  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (graph != nullptr && cudaGraphExecDestroy(graph) != cudaSuccess) (void)cudaGetLastError();
  }
};

CapturedGraph::CapturedGraph() = default;
CapturedGraph::~CapturedGraph() = default;
CapturedGraph::CapturedGraph(CapturedGraph&&) noexcept = default;
CapturedGraph& CapturedGraph::operator=(CapturedGraph&&) noexcept = default;

bool CapturedGraph::is_supported() noexcept { return true; }

void CapturedGraph::begin(CUstream_st* stream) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
}

CapturedGraph CapturedGraph::end(CUstream_st* stream) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  CapturedGraph out;
  out.impl_ = std::make_unique<Impl>();
  const cudaError_t code = cudaGraphInstantiate(&out.impl_->graph, graph, 0);
  (void)cudaGraphDestroy(graph);
  check(code, "cudaGraphInstantiate");
  return out;
}

void CapturedGraph::launch(CUstream_st* stream) const {
  if (impl_ == nullptr) throw DeviceError("CapturedGraph::launch: nothing was captured");
  check(cudaGraphLaunch(impl_->graph, stream), "cudaGraphLaunch");
}

}  // namespace smartspec::cuda
