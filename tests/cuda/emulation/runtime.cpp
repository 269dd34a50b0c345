// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// cuda/host/runtime.hpp on the CPU's memory. Everything has been done when a call returns.
#include "host/runtime.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "block.hpp"
#include "memory.hpp"
#include "recording.hpp"
#include "smartspec/error.hpp"

struct CUstream_st {
  bool records = false;
  std::vector<std::function<void()>> work;  // recorded so far
};

namespace smartspec::emulation {
namespace {

std::mutex mutex;
thread_local int num_recording = 0;        // streams of this thread
std::map<void*, std::size_t> allocations;  // under mutex
std::size_t bytes_in_use = 0;              // under mutex
std::size_t limit = kDeviceBytes;          // under mutex

/// What a device refuses while a stream records.
void refuse_while_recording(const char* what) {
  if (num_recording > 0) throw DeviceError(std::string(what) + ": a stream is recording a graph");
}

}  // namespace

bool is_recording(const CUstream_st* stream) noexcept {
  return stream != nullptr && stream->records;
}

void record(CUstream_st* stream, std::function<void()> work) {
  stream->work.push_back(std::move(work));
}

std::size_t device_bytes_in_use() noexcept {
  const std::lock_guard lock(mutex);
  return bytes_in_use;
}

ScopedMemoryLimit::ScopedMemoryLimit(std::size_t bytes) noexcept {
  const std::lock_guard lock(mutex);
  before_ = limit;
  limit = bytes;
}

ScopedMemoryLimit::~ScopedMemoryLimit() {
  const std::lock_guard lock(mutex);
  limit = before_;
}

}  // namespace smartspec::emulation

namespace smartspec::cuda {
namespace {

constexpr std::align_val_t kAlignment{256};  // what cudaMalloc promises
constexpr int kFresh = 0xCD;                 // not zero, or missing fills would not show

}  // namespace

const std::string& unavailable_reason() noexcept {
  static const std::string kNone;
  return kNone;
}

const DeviceInfo& device_info() {
  static const DeviceInfo kInfo{.name = "emulated",
                                .major = 9,
                                .minor = 0,
                                .num_multiprocessors = 4,
                                .max_shared_bytes = emulation::kMaxSharedBytes,
                                .total_bytes = emulation::kDeviceBytes,
                                .driver_version = 13000};
  return kInfo;
}

void* allocate_device(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  emulation::refuse_while_recording("allocate_device");
  const std::lock_guard lock(emulation::mutex);
  const std::size_t free = emulation::limit - std::min(emulation::limit, emulation::bytes_in_use);
  if (bytes > free) {
    throw DeviceError(out_of_memory_text(bytes, free, emulation::limit));
  }
  void* data = ::operator new(bytes, kAlignment);
  std::memset(data, kFresh, bytes);
  emulation::allocations[data] = bytes;
  emulation::bytes_in_use += bytes;
  return data;
}

void free_device(void* data) noexcept {
  if (data == nullptr) return;
  {
    const std::lock_guard lock(emulation::mutex);
    const auto found = emulation::allocations.find(data);
    if (found != emulation::allocations.end()) {
      emulation::bytes_in_use -= found->second;
      emulation::allocations.erase(found);
    }
  }
  ::operator delete(data, kAlignment);  // of a foreign pointer: AddressSanitizer reports it
}

void* allocate_pinned(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  void* data = ::operator new(bytes, kAlignment);
  std::memset(data, kFresh, bytes);
  return data;
}

void free_pinned(void* data) noexcept {
  if (data != nullptr) ::operator delete(data, kAlignment);
}

void copy(void* to, const void* from, std::size_t bytes, CUstream_st* /*stream*/) {
  if (bytes == 0) return;
  emulation::refuse_while_recording("copy");  // it might be of memory that is gone by then
  std::memcpy(to, from, bytes);
}

void fill_zero(void* data, std::size_t bytes, CUstream_st* stream) {
  if (bytes == 0) return;
  const auto fill = [=] { std::memset(data, 0, bytes); };
  if (emulation::is_recording(stream)) {
    emulation::record(stream, fill);
  } else {
    fill();
  }
}

void synchronize(CUstream_st* /*stream*/) { emulation::refuse_while_recording("synchronize"); }

OwnedStream::OwnedStream() : stream_(new CUstream_st) {}
OwnedStream::~OwnedStream() { delete stream_; }

struct CapturedGraph::Impl {
  std::vector<std::function<void()>> work;
};

CapturedGraph::CapturedGraph() = default;
CapturedGraph::~CapturedGraph() = default;
CapturedGraph::CapturedGraph(CapturedGraph&&) noexcept = default;
CapturedGraph& CapturedGraph::operator=(CapturedGraph&&) noexcept = default;

bool CapturedGraph::is_supported() noexcept { return true; }

void CapturedGraph::begin(CUstream_st* stream) {
  if (stream == nullptr || stream->records) throw DeviceError("begin: this stream cannot record");
  stream->records = true;
  stream->work.clear();
  ++emulation::num_recording;
}

CapturedGraph CapturedGraph::end(CUstream_st* stream) {
  if (!emulation::is_recording(stream)) throw DeviceError("end: the stream does not record");
  stream->records = false;
  --emulation::num_recording;
  CapturedGraph out;
  out.impl_ = std::make_unique<Impl>();
  out.impl_->work = std::move(stream->work);
  return out;
}

void CapturedGraph::launch(CUstream_st* /*stream*/) const {
  if (impl_ == nullptr) throw DeviceError("launch: nothing was recorded");
  for (const std::function<void()>& work : impl_->work) work();
}

}  // namespace smartspec::cuda
