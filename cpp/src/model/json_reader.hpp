// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// A strict pull reader for the little JSON a safetensors header may hold: objects, arrays, strings
// and unsigned integers. The caller says what must come next, so depth is bounded by its code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace smartspec {

/// Borrows `text`. Every error is a FormatError with the byte offset. (JSON: RFC 8259; strings must
/// be valid UTF-8, and escaped surrogates must come in pairs.)
class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  /// Skips white space and takes `token`, one of { } [ ] : ,
  void expect(char token);
  /// The same, but leaves the text alone and returns false when something else comes.
  [[nodiscard]] bool accept(char token);
  [[nodiscard]] std::string string();
  /// Digits only: no sign, fraction, exponent or leading zero; above 2^64 - 1 is an error.
  [[nodiscard]] std::uint64_t unsigned_integer();
  /// Only white space may follow.
  void expect_end();
  [[noreturn]] void fail(const std::string& what) const;

 private:
  void skip_space();
  void append_escape(std::string& out);
  void append_utf8_sequence(std::string& out);
  [[nodiscard]] std::uint32_t hex4();
  [[nodiscard]] bool at_end() const noexcept { return position_ == text_.size(); }

  std::string_view text_;
  std::size_t position_ = 0;
};

}  // namespace smartspec
