// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "model/json_reader.hpp"

#include <limits>

#include "smartspec/error.hpp"

namespace smartspec {
namespace {

void append_code_point(std::string& out, std::uint32_t code) {
  const auto push = [&out](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    push(code);
  } else if (code < 0x800) {
    push(0xC0 | (code >> 6));
    push(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    push(0xE0 | (code >> 12));
    push(0x80 | ((code >> 6) & 0x3F));
    push(0x80 | (code & 0x3F));
  } else {
    push(0xF0 | (code >> 18));
    push(0x80 | ((code >> 12) & 0x3F));
    push(0x80 | ((code >> 6) & 0x3F));
    push(0x80 | (code & 0x3F));
  }
}

}  // namespace

void JsonReader::fail(const std::string& what) const {
  throw FormatError("JSON, byte " + std::to_string(position_) + ": " + what);
}

void JsonReader::skip_space() {
  while (!at_end()) {
    const char c = text_[position_];
    if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return;
    ++position_;
  }
}

bool JsonReader::accept(char token) {
  skip_space();
  if (at_end() || text_[position_] != token) return false;
  ++position_;
  return true;
}

void JsonReader::expect(char token) {
  if (!accept(token)) fail(std::string("expected '") + token + "'");
}

void JsonReader::expect_end() {
  skip_space();
  if (!at_end()) fail("unexpected text after the end");
}

std::uint64_t JsonReader::unsigned_integer() {
  constexpr auto kMax = std::numeric_limits<std::uint64_t>::max();
  skip_space();
  const std::size_t start = position_;
  std::uint64_t value = 0;
  for (; !at_end() && text_[position_] >= '0' && text_[position_] <= '9'; ++position_) {
    const auto digit = static_cast<std::uint64_t>(text_[position_] - '0');
    if (value > (kMax - digit) / 10) fail("integer above 2^64 - 1");
    value = value * 10 + digit;
  }
  if (position_ == start) fail("expected an unsigned integer");
  if (text_[start] == '0' && position_ - start > 1) fail("integer with a leading zero");
  return value;
}

std::string JsonReader::string() {
  expect('"');
  std::string out;
  while (true) {
    if (at_end()) fail("string without an end");
    const auto c = static_cast<unsigned char>(text_[position_]);
    if (c == '"') {
      ++position_;
      return out;
    }
    if (c < 0x20) fail("control character in a string");
    if (c == '\\') {
      ++position_;
      append_escape(out);
    } else if (c < 0x80) {
      out.push_back(static_cast<char>(c));
      ++position_;
    } else {
      append_utf8_sequence(out);
    }
  }
}

std::uint32_t JsonReader::hex4() {
  if (text_.size() - position_ < 4) fail("\\u needs four hexadecimal digits");
  std::uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = text_[position_];
    std::uint32_t digit = 0;
    if (c >= '0' && c <= '9') {
      digit = static_cast<std::uint32_t>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      digit = static_cast<std::uint32_t>(c - 'a') + 10;
    } else if (c >= 'A' && c <= 'F') {
      digit = static_cast<std::uint32_t>(c - 'A') + 10;
    } else {
      fail("\\u needs four hexadecimal digits");
    }
    value = value * 16 + digit;
    ++position_;
  }
  return value;
}

void JsonReader::append_escape(std::string& out) {
  constexpr std::string_view kNames = "\"\\/bfnrt";
  constexpr std::string_view kValues = "\"\\/\b\f\n\r\t";
  if (at_end()) fail("string without an end");
  const char c = text_[position_];
  if (const auto i = kNames.find(c); i != std::string_view::npos) {
    out.push_back(kValues[i]);
    ++position_;
    return;
  }
  if (c != 'u') fail("unknown escape in a string");
  ++position_;
  std::uint32_t code = hex4();
  if (code >= 0xDC00 && code < 0xE000) fail("lone low surrogate");
  if (code >= 0xD800 && code < 0xDC00) {
    if (text_.substr(position_, 2) != "\\u") fail("lone high surrogate");
    position_ += 2;
    const std::uint32_t low = hex4();
    if (low < 0xDC00 || low >= 0xE000) fail("high surrogate without a low one");
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  append_code_point(out, code);
}

// Well-formed sequences: Unicode 15, table 3-7 (no overlong forms, no surrogates, <= U+10FFFF).
void JsonReader::append_utf8_sequence(std::string& out) {
  const auto lead = static_cast<unsigned char>(text_[position_]);
  std::size_t length = 0;
  unsigned low = 0x80;
  unsigned high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    fail("invalid UTF-8");
  }
  if (text_.size() - position_ < length) fail("invalid UTF-8");
  for (std::size_t i = 1; i < length; ++i) {
    const auto byte = static_cast<unsigned char>(text_[position_ + i]);
    if (byte < low || byte > high) fail("invalid UTF-8");
    low = 0x80;
    high = 0xBF;
  }
  out.append(text_.substr(position_, length));
  position_ += length;
}

}  // namespace smartspec
