// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A regular file mapped into memory, read-only.
#pragma once

#include <cstddef>
#include <string>

namespace smartspec {

/// Owns the mapping. Immutable, so safe to read from many threads. The file must not shrink while
/// it is mapped: the operating system answers reads beyond its new end with SIGBUS.
class MappedFile {
 public:
  /// Throws FormatError naming the path and the reason: missing, not readable, not a regular file.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] const std::byte* data() const noexcept { return data_; }  // null when empty
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace smartspec
