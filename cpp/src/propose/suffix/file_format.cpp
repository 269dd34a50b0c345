// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "propose/suffix/file_format.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <exception>
#include <thread>

namespace smartspec::suffix {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 20;
constexpr std::uint64_t kOdd1 = 0x9E3779B97F4A7C15ULL;
constexpr std::uint64_t kOdd2 = 0xD6E8FEB86659FD93ULL;

std::uint64_t mix(std::uint64_t x) noexcept {
  x = (x ^ (x >> 32)) * kOdd2;
  return x ^ (x >> 29);
}

struct Lanes {
  std::array<std::uint64_t, 4> lane = {kOdd1, kOdd2, ~kOdd1, ~kOdd2};

  void add(const std::byte* block) noexcept {
    std::array<std::uint64_t, 4> word;
    std::memcpy(word.data(), block, sizeof(word));
    for (std::size_t i = 0; i < 4; ++i) lane[i] = (std::rotl(lane[i], 29) ^ word[i]) * kOdd1;
  }
};

std::uint64_t chunk_checksum(std::span<const std::byte> bytes) noexcept {
  Lanes lanes;
  const std::size_t whole = bytes.size() / 32 * 32;
  for (std::size_t i = 0; i < whole; i += 32) lanes.add(bytes.data() + i);
  if (whole < bytes.size()) {
    std::array<std::byte, 32> last{};
    std::copy(bytes.begin() + static_cast<std::ptrdiff_t>(whole), bytes.end(), last.begin());
    lanes.add(last.data());
  }
  std::uint64_t sum = mix(bytes.size());
  for (const std::uint64_t lane : lanes.lane) sum = mix(std::rotl(sum, 23) ^ lane);
  return sum;
}

}  // namespace

std::uint64_t checksum(std::span<const std::byte> bytes, int num_threads) {
  return checksum(bytes, num_threads, [](std::size_t, std::size_t) {});
}

std::uint64_t checksum(std::span<const std::byte> bytes, int num_threads,
                       const std::function<void(std::size_t, std::size_t)>& fill) {
  const std::size_t count = (bytes.size() + kChunkBytes - 1) / kChunkBytes;
  std::vector<std::uint64_t> sums(count);
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(num_threads));
  std::atomic<std::size_t> next = 0;
  const auto work = [&](std::size_t thread) {
    try {
      for (std::size_t i = next++; i < count; i = next++) {
        const std::size_t begin = i * kChunkBytes;
        const std::size_t size = std::min(kChunkBytes, bytes.size() - begin);
        fill(begin, size);
        sums[i] = chunk_checksum(bytes.subspan(begin, size));
      }
    } catch (...) {
      errors[thread] = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 1; i < errors.size() && count >= 4; ++i) threads.emplace_back(work, i);
    work(0);
  }
  for (const std::exception_ptr& error : errors) {
    if (error != nullptr) std::rethrow_exception(error);
  }
  std::uint64_t sum = mix(bytes.size() + kOdd1);
  for (const std::uint64_t each : sums) sum = mix(std::rotl(sum, 23) ^ each);
  return sum;
}

const char* name_of(SectionKind kind) noexcept {
  switch (kind) {
    case SectionKind::kName:
      return "name";
    case SectionKind::kCalibration:
      return "calibration";
    case SectionKind::kStates:
      return "states";
    case SectionKind::kEdges:
      return "edges";
    case SectionKind::kSummary:
      return "summary";
    case SectionKind::kSequenceText:
      return "sequence text";
    case SectionKind::kSequenceLengths:
      return "sequence lengths";
    case SectionKind::kFrozenText:
      return "frozen text";
    case SectionKind::kFrozenOrder:
      return "frozen order";
  }
  return "unknown";
}

}  // namespace smartspec::suffix
