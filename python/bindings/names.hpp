// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Words for enumerations, in both directions.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>

#include "smartspec/sampler.hpp"
#include "smartspec/types.hpp"

namespace smartspec::python {

inline std::optional<DType> weight_dtype(const std::optional<std::string>& name) {
  if (!name || *name == "auto") return std::nullopt;
  if (*name == "float32") return DType::kFloat32;
  if (*name == "bfloat16") return DType::kBFloat16;
  throw std::invalid_argument("dtype must be 'auto', 'float32' or 'bfloat16', got '" + *name + "'");
}

/// None while it runs, else the word vLLM uses.
inline std::optional<std::string> word_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return std::nullopt;
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
    case FinishReason::kError:
      return "error";
  }
  return std::nullopt;
}

inline Device parse_device(const std::string& name) {
  if (name == "cpu") return Device::kCpu;
  if (name == "cuda") return Device::kCuda;
  throw std::invalid_argument("device must be 'cpu' or 'cuda', got '" + name + "'");
}

}  // namespace smartspec::python
