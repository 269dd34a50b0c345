// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "harness.hpp"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <exception>
#include <fstream>
#include <random>
#include <stdexcept>

namespace smartspec::bench {

namespace {

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "stream"); }
  ~Stream() { cudaStreamDestroy(handle_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  [[nodiscard]] cudaStream_t get() const { return handle_; }

 private:
  cudaStream_t handle_ = nullptr;
};

class Event {
 public:
  Event() { check(cudaEventCreate(&handle_), "event"); }
  ~Event() { cudaEventDestroy(handle_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) const { check(cudaEventRecord(handle_, stream), "record"); }
  [[nodiscard]] double seconds_since(const Event& start) const {
    float milliseconds = 0.0F;
    check(cudaEventElapsedTime(&milliseconds, start.handle_, handle_), "elapsed time");
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t handle_ = nullptr;
};

Times median_of(std::vector<double> seconds, int launches) {
  std::sort(seconds.begin(), seconds.end());
  return {.median = seconds[seconds.size() / 2] / launches, .best = seconds[0] / launches};
}

std::uint32_t bits_of(float value, DType dtype) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  switch (dtype) {
    case DType::kFloat32:
      return bits;
    case DType::kBFloat16:
      return bits >> 16;
    case DType::kFloat16: {  // |value| in [2^-14, 2^15]: rebias the exponent
      const std::uint32_t sign = bits >> 16 & 0x8000U;
      return sign | (((bits & 0x7FFFFFFFU) - 0x38000000U) >> 13 & 0x7FFFU);
    }
    case DType::kFloat8E4M3: {  // |value| in [2^-6, 2^8]
      const std::uint32_t sign = bits >> 24 & 0x80U;
      return sign | (((bits & 0x7FFFFFFFU) - 0x3C000000U) >> 20 & 0x7FU);
    }
    default:
      return bits >> 24;
  }
}

std::string quoted(const std::string& text) { return "\"" + text + "\""; }

std::string number(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

}  // namespace

void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code));
}

DeviceMemory::DeviceMemory(std::size_t bytes) : bytes_(bytes) {
  check(cudaMalloc(&data_, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
}

DeviceMemory::~DeviceMemory() { cudaFree(data_); }

void DeviceMemory::fill_random(DType dtype, std::uint32_t seed) const {
  const std::size_t chunk = std::min<std::size_t>(bytes_, std::size_t{16} << 20);
  const std::size_t width = size_of(dtype);
  std::vector<std::uint8_t> host(chunk / width * width);
  std::minstd_rand random(seed);
  for (std::size_t i = 0; i < host.size(); i += width) {
    // A sum of four uniforms; kept away from zero, where the small formats have subnormals.
    float value = -2.0F;
    for (int k = 0; k < 4; ++k) value += static_cast<float>(random() % 65536) / 65536.0F;
    if (value > -0.0625F && value < 0.0625F) value = value < 0 ? -0.0625F : 0.0625F;
    const std::uint32_t bits = bits_of(value, dtype);
    for (std::size_t k = 0; k < width; ++k) host[i + k] = static_cast<std::uint8_t>(bits >> 8 * k);
  }
  auto* const out = static_cast<std::uint8_t*>(data_);
  check(cudaMemcpy(out, host.data(), host.size(), cudaMemcpyHostToDevice), "fill");
  for (std::size_t done = host.size(); done < bytes_; done += host.size()) {
    check(
        cudaMemcpy(out + done, out, std::min(host.size(), bytes_ - done), cudaMemcpyDeviceToDevice),
        "fill");
  }
}

Times time_replays(int rounds, int launches, const std::function<void(cudaStream_t)>& work) {
  const Stream stream;
  work(stream.get());  // loads modules and asks for shared memory, which a capture need not see
  check(cudaStreamSynchronize(stream.get()), "warm-up");
  check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "begin capture");
  work(stream.get());
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream.get(), &graph), "end capture");
  cudaGraphExec_t replay = nullptr;
  const cudaError_t code = cudaGraphInstantiate(&replay, graph, 0);
  cudaGraphDestroy(graph);
  check(code, "graph");
  const Event start;
  const Event stop;
  std::vector<double> seconds;
  for (int i = -3; i < rounds; ++i) {
    start.record(stream.get());
    check(cudaGraphLaunch(replay, stream.get()), "replay");
    stop.record(stream.get());
    check(cudaStreamSynchronize(stream.get()), "replay");
    if (i >= 0) seconds.push_back(stop.seconds_since(start));
  }
  cudaGraphExecDestroy(replay);
  return median_of(std::move(seconds), launches);
}

double copy_bandwidth(int rounds) {
  constexpr std::size_t kBytes = std::size_t{1} << 30;
  const DeviceMemory from(kBytes);
  const DeviceMemory to(kBytes);
  from.fill_random(DType::kBFloat16, 1);
  const Times times = time_replays(rounds, 1, [&](cudaStream_t stream) {
    check(cudaMemcpyAsync(to.as(), from.as(), kBytes, cudaMemcpyDeviceToDevice, stream), "copy");
  });
  return 2.0 * static_cast<double>(kBytes) / times.median;
}

std::size_t l2_bytes() {
  int device = 0;
  int bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device), "L2 size");
  return static_cast<std::size_t>(bytes);
}

Report::Report(std::string program) : head_("\"program\": " + quoted(program)) {
  int device = 0;
  cudaDeviceProp properties{};
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaGetDeviceProperties(&properties, device), "device properties");
  int driver = 0;
  int runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  head_ += ", \"device\": " + quoted(properties.name) +
           ", \"multiprocessors\": " + std::to_string(properties.multiProcessorCount) +
           ", \"compute_capability\": " +
           quoted(std::to_string(properties.major) + "." + std::to_string(properties.minor)) +
           ", \"driver\": " + std::to_string(driver) + ", \"runtime\": " + std::to_string(runtime);
  std::printf("%s, %d multiprocessors, compute capability %d.%d, driver %d, runtime %d\n",
              properties.name, properties.multiProcessorCount, properties.major, properties.minor,
              driver, runtime);
}

void Report::set(const std::string& key, double value) {
  head_ += ", " + quoted(key) + ": " + number(value);
}

void Report::start_case(const std::string& name) { cases_.push_back("{\"name\": " + quoted(name)); }

void Report::add(const std::string& key, double value) {
  cases_.back() += ", " + quoted(key) + ": " + number(value);
}

void Report::write(const std::string& path) const {
  if (path.empty()) return;
  std::ofstream out(path);
  out << "{" << head_ << ", \"cases\": [";
  for (std::size_t i = 0; i < cases_.size(); ++i)
    out << (i == 0 ? "\n" : ",\n") << cases_[i] << "}";
  out << "\n]}\n";
  if (!out.flush()) throw std::runtime_error("cannot write " + path);
}

std::string option(int argc, char** argv, const std::string& name, const std::string& fallback) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (argv[i] == name) return argv[i + 1];
  }
  return fallback;
}

int guarded_main(const std::function<void()>& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

}  // namespace smartspec::bench
