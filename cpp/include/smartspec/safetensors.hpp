// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Reads a safetensors file by memory mapping; tensors are views into the map.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "smartspec/export.hpp"
#include "smartspec/tensor_view.hpp"

namespace smartspec {

/// Immutable after opening; safe to read from many threads. Views live as long as mapping() does.
/// The file must not be truncated while it is mapped.
class SMARTSPEC_API SafetensorsFile {
 public:
  /// Throws FormatError on anything the format forbids: truncated, header above 100 MB or not the
  /// expected JSON, duplicate names, overflowing shapes, offsets that overlap, leave holes, run
  /// past the file or disagree with shape times dtype.
  explicit SafetensorsFile(const std::string& path);
  /// The same checks over bytes in memory, borrowed: for fuzzers and embedded weights.
  SafetensorsFile(const void* data, std::size_t size);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  /// Empty when there is no such tensor. The data may lie unaligned, as the file's header has any
  /// length; a scalar is seen as one element of rank 1. Throws FormatError on tensors a view cannot
  /// hold: rank above 4, or a dtype other than F32, BF16, F16, I32, I64 and U8.
  [[nodiscard]] std::optional<TensorView> find(std::string_view name) const;
  [[nodiscard]] std::vector<std::string> names() const;  // sorted
  /// Owns the mapped bytes: hand it to ModelOptions::keep_alive. Null over borrowed bytes.
  [[nodiscard]] std::shared_ptr<void> mapping() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smartspec
