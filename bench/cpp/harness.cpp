// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "harness.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "cpu/aligned.hpp"
#include "cpu/thread_pool.hpp"

namespace smartspec::bench {
namespace {

constexpr std::size_t kBytes = std::size_t{256} << 20;

/// Sums a range; enough independent adders that memory is the limit, not arithmetic.
std::uint64_t sum(const std::uint64_t* p, std::size_t n) {
  std::uint64_t lanes[16] = {};
  for (std::size_t i = 0; i + 16 <= n; i += 16) {
    __builtin_prefetch(p + i + 512);
    __builtin_prefetch(p + i + 520);
    for (std::size_t l = 0; l < 16; ++l) lanes[l] += p[i + l];
  }
  std::uint64_t total = 0;
  for (const std::uint64_t lane : lanes) total += lane;
  return total;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

std::vector<Times> interleave(const std::vector<std::function<void()>>& cases, int rounds) {
  std::vector<std::vector<double>> seconds(cases.size());
  for (int round = 0; round <= rounds; ++round) {
    for (std::size_t i = 0; i < cases.size(); ++i) {
      const std::size_t c = round % 2 == 0 ? i : cases.size() - 1 - i;
      const double start = now();
      cases[c]();
      if (round > 0) seconds[c].push_back(now() - start);
    }
  }
  std::vector<Times> times;
  for (std::vector<double>& list : seconds) {
    std::sort(list.begin(), list.end());
    times.push_back({list[list.size() / 2], list.front()});
  }
  return times;
}

struct ReadBandwidth::Impl {
  explicit Impl(int threads) : pool(threads), buffer(cpu::allocate_aligned(kBytes)) {
    std::memset(buffer.data(), 1, kBytes);
  }
  cpu::ThreadPool pool;
  Buffer buffer;
  volatile std::uint64_t sink = 0;
};

ReadBandwidth::ReadBandwidth(int threads) : impl_(new Impl(threads)) {}
ReadBandwidth::~ReadBandwidth() { delete impl_; }

void ReadBandwidth::run() {
  constexpr std::int64_t kTasks = 64;
  const std::size_t words = kBytes / sizeof(std::uint64_t) / kTasks;
  const auto* data = impl_->buffer.as<std::uint64_t>();
  std::vector<std::uint64_t> sums(kTasks);
  impl_->pool.run(kTasks, [&](std::int64_t t, std::int32_t) {
    sums[static_cast<std::size_t>(t)] = sum(data + static_cast<std::size_t>(t) * words, words);
  });
  impl_->sink = sums.back();
}

double ReadBandwidth::bytes() const { return static_cast<double>(kBytes); }

std::string option(int argc, char** argv, const std::string& name, const std::string& fallback) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (name == argv[i]) return argv[i + 1];
  }
  return fallback;
}

int int_option(int argc, char** argv, const std::string& name, int fallback) {
  const std::string text = option(argc, argv, name, "");
  return text.empty() ? fallback : std::stoi(text);
}

}  // namespace smartspec::bench
