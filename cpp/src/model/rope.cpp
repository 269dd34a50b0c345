// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "model/rope.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace smartspec {
namespace {

// Llama 3.1's scaling: long wavelengths are stretched by `factor`, short ones kept, those between
// are interpolated (transformers: rope type "llama3").
double llama3_frequency(double frequency, const RopeScaling& s) {
  const double original = s.original_max_position_embeddings;
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  if (wavelength < original / s.high_freq_factor) return frequency;
  if (wavelength > original / s.low_freq_factor) return frequency / s.factor;
  const double smooth =
      (original / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return (1.0 - smooth) * frequency / s.factor + smooth * frequency;
}

}  // namespace

std::vector<double> rope_frequencies(const ModelConfig& config) {
  std::vector<double> out(static_cast<std::size_t>(config.head_dim / 2));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / config.head_dim;
    double frequency = std::pow(config.rope_theta, -exponent);
    switch (config.rope_scaling.type) {
      case RopeScaling::Type::kNone:
        break;
      case RopeScaling::Type::kLinear:
        frequency /= config.rope_scaling.factor;
        break;
      case RopeScaling::Type::kLlama3:
        frequency = llama3_frequency(frequency, config.rope_scaling);
        break;
    }
    out[i] = frequency;
  }
  return out;
}

RopeTable::RopeTable(const ModelConfig& config, std::int32_t max_positions)
    : frequencies_(rope_frequencies(config)), max_positions_(max_positions) {}

void RopeTable::reach(std::int32_t position, Backend& backend) {
  if (position < num_positions_) return;
  constexpr std::int32_t kFirst = 4096;
  const std::int64_t wanted = std::max<std::int64_t>(
      {std::int64_t{position} + 1, std::int64_t{num_positions_} * 2, kFirst});
  const auto rows = static_cast<std::size_t>(std::min<std::int64_t>(wanted, max_positions_));
  const std::size_t width = frequencies_.size();
  std::vector<float> cosines(rows * width);
  std::vector<float> sines(rows * width);
  for (std::size_t p = 0; p < rows; ++p) {
    for (std::size_t i = 0; i < width; ++i) {
      const double angle = static_cast<double>(p) * frequencies_[i];
      cosines[p * width + i] = static_cast<float>(std::cos(angle));
      sines[p * width + i] = static_cast<float>(std::sin(angle));
    }
  }
  const std::size_t bytes = cosines.size() * sizeof(float);
  Buffer cos = backend.allocate(bytes);
  Buffer sin = backend.allocate(bytes);
  backend.upload(cos.data(), cosines.data(), bytes);
  backend.upload(sin.data(), sines.data(), bytes);
  cos_ = std::move(cos);
  sin_ = std::move(sin);
  num_positions_ = static_cast<std::int32_t>(rows);
}

}  // namespace smartspec
