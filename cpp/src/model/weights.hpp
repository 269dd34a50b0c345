// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Fetches named weights, checks them against the configuration, converts and packs them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.hpp"
#include "smartspec/model.hpp"

namespace smartspec {

/// A weight in the wanted type: a view of the caller's memory, or of `storage` when it had to be
/// converted or was not aligned.
struct LoadedWeight {
  TensorView view;
  std::vector<std::byte> storage;
};

/// Used during Model construction only. Every method throws FormatError naming the weight when it
/// is missing, mis-shaped or of a type that holds no weights.
class WeightLoader {
 public:
  using Shape = std::span<const std::int64_t>;

  WeightLoader(const WeightSource& source, Backend& backend, DType dtype)
      : source_(source), backend_(backend), dtype_(dtype) {}

  /// The stored weight, checked, as it lies.
  [[nodiscard]] TensorView find(const std::string& name, Shape shape);
  /// In the model's dtype and aligned to its elements.
  [[nodiscard]] LoadedWeight load(const std::string& name, Shape shape);
  /// Linear layers with the same input, one behind the other: {name, out_features} each.
  using Parts = std::span<const std::pair<std::string, std::int32_t>>;
  [[nodiscard]] PackedLinear linear(Parts parts, std::int32_t in_features);
  /// Vectors one behind the other, widened to f32, on the device.
  [[nodiscard]] Buffer vectors(Parts parts);
  [[nodiscard]] std::int64_t num_parameters() const noexcept { return num_parameters_; }

 private:
  const WeightSource& source_;
  Backend& backend_;
  DType dtype_;
  std::int64_t num_parameters_ = 0;
};

}  // namespace smartspec
