// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A Llama-family decoder in plain loops over doubles: the oracle of the Decoder tests. It shares no
// code with the library; visibility is given row by row, so it knows neither caches nor trees.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "smartspec/model.hpp"

namespace smartspec::testing {

/// Random weights by Hugging Face name, stored as f32, bf16 or f16; the oracle sees stored values.
class Weights {
 public:
  Weights(const ModelConfig& config, DType stored, std::uint64_t seed);

  [[nodiscard]] std::optional<TensorView> find(std::string_view name) const;
  [[nodiscard]] const std::vector<double>& values(const std::string& name) const;
  [[nodiscard]] WeightSource source() const;
  [[nodiscard]] std::vector<std::string> names() const;
  void erase(const std::string& name) { tensors_.erase(name); }
  TensorView& view(const std::string& name) { return tensors_.at(name).view; }

 private:
  struct Tensor {
    std::vector<double> values;
    std::vector<unsigned char> bytes;
    TensorView view;
  };
  void add(const std::string& name, std::vector<std::int64_t> shape, double center, double spread,
           std::uint64_t seed);

  DType stored_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

struct ReferenceRow {
  std::int32_t token = 0;
  std::int32_t position = 0;
  std::vector<std::int32_t> visible;  // rows, itself included
};

/// Where the decoder rounds to bf16 by contract: inputs of linear layers, and K and V as cached.
struct Rounding {
  bool linear_inputs = false;
  bool kv = false;
};

/// Logits of every row. config.head_dim must be set.
std::vector<std::vector<double>> reference_logits(const ModelConfig& config, const Weights& weights,
                                                  const std::vector<ReferenceRow>& rows,
                                                  Rounding rounding = {});

/// Rows of a plain sequence: each sees all before it.
std::vector<ReferenceRow> reference_chain(const std::vector<std::int32_t>& tokens);

}  // namespace smartspec::testing
