// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A small benchmark harness: cases interleaved in alternating order, medians, and the machine's
// read bandwidth measured in the same run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace smartspec::bench {

struct Times {
  double median = 0.0;  // seconds
  double best = 0.0;
};

/// Runs every case once per round, in ascending order in even rounds and descending in odd ones, so
/// that drift of the host meets all cases alike. The first round warms up.
std::vector<Times> interleave(const std::vector<std::function<void()>>& cases, int rounds);

/// Reads a 256 MiB buffer on huge pages with `threads` threads; `run` reads it once.
class ReadBandwidth {
 public:
  explicit ReadBandwidth(int threads);
  ~ReadBandwidth();
  ReadBandwidth(const ReadBandwidth&) = delete;
  ReadBandwidth& operator=(const ReadBandwidth&) = delete;
  void run();
  [[nodiscard]] double bytes() const;

 private:
  struct Impl;
  Impl* impl_;
};

/// --name value from the command line.
std::string option(int argc, char** argv, const std::string& name, const std::string& fallback);
int int_option(int argc, char** argv, const std::string& name, int fallback);

}  // namespace smartspec::bench
