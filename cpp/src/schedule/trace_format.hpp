// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The file of a policy trace. Little-endian, no padding:
//   "SSPTRACE" | u32 version | u32 n, n bytes: name of the policy | records
//   record: u8 kind | u32 n, n bytes: payload | u32 FNV-1a of all before it in the record
// A trace ends with a kEnd record; one without was cut off. A context is written when it changed
// and holds for the calls behind it, and so are the proposers.
//
// Token ids are numbered per request in order of appearance, over drafts and emitted tokens alike.
// That keeps what a policy may use (which are equal) and drops what they mean; how often a request
// repeats itself remains visible.
#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "smartspec/error.hpp"
#include "smartspec/token_tree.hpp"

namespace smartspec::trace {

inline constexpr std::string_view kMagic = "SSPTRACE";
inline constexpr std::uint32_t kVersion = 3;

enum class Kind : std::uint8_t {
  kProposers = 1,  // u32 count, each: u8 pays, u32 n, n bytes
  kContext,        // the step without the proposers, u32 count, the requests
  kPrefill,        // i32 wanted | i32 answer
  kPlan,           // u32 count, candidates | u32 count, choices
  kAllocate,       // choices, drafts, trees | per tree: what was kept
  kObserve,        // the outcome
  kFinish,         // i64 request
  kEnd,            // u64 records before it
};

enum class TreeForm : std::uint8_t { kNull, kChain, kTree };  // u32 n, tokens, [parents], survival
enum class Kept : std::uint8_t { kPrefix, kOther };           // u32 nodes; a tree

template <class T>
concept Number = std::integral<T> || std::floating_point<T>;

template <Number T>
constexpr auto bits_of(T value) {
  if constexpr (std::same_as<T, double>) {
    return std::bit_cast<std::uint64_t>(value);
  } else if constexpr (std::same_as<T, float>) {
    return std::bit_cast<std::uint32_t>(value);
  } else {
    return static_cast<std::make_unsigned_t<T>>(value);
  }
}

inline std::uint32_t checksum(std::span<const std::byte> bytes) {
  std::uint32_t hash = 2166136261U;
  for (const std::byte byte : bytes)
    hash = (hash ^ std::to_integer<std::uint32_t>(byte)) * 16777619U;
  return hash;
}

/// Appends to a buffer.
class Writer {
 public:
  template <Number T>
  void put(T value) {
    bytes.resize(bytes.size() + sizeof(T));
    put_at(bytes.size() - sizeof(T), value);
  }
  void put(bool value) { put(static_cast<std::uint8_t>(value ? 1 : 0)); }
  void put_count(std::size_t count) { put(static_cast<std::uint32_t>(count)); }
  void put(std::string_view text) {
    put_count(text.size());
    for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
  }
  template <Number T>
  void put_at(std::size_t offset, T value) {
    const auto bits = bits_of(value);
    for (std::size_t i = 0; i < sizeof(bits); ++i) {
      bytes[offset + i] = static_cast<std::byte>((bits >> (8 * i)) & 0xFFU);
    }
  }

  std::vector<std::byte> bytes;
};

/// Reads a part of the file; throws FormatError naming the offset in the file.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, std::size_t offset = 0)
      : bytes_(bytes), offset_(offset) {}

  [[nodiscard]] std::size_t remaining() const noexcept { return bytes_.size() - at_; }
  [[nodiscard]] std::size_t offset() const noexcept { return offset_ + at_; }  // in the file

  [[noreturn]] void fail(const std::string& what) const {
    throw FormatError("policy trace damaged at byte " + std::to_string(offset()) + ": " + what);
  }

  std::span<const std::byte> take(std::size_t size, const char* what) {
    if (size > remaining()) {
      fail(std::string(what) + " needs " + std::to_string(size) + " bytes, " +
           std::to_string(remaining()) + " are left");
    }
    const auto out = bytes_.subspan(at_, size);
    at_ += size;
    return out;
  }

  template <Number T>
  T get(const char* what) {
    using Bits = decltype(bits_of(T{}));
    const auto raw = take(sizeof(Bits), what);
    Bits bits = 0;
    for (std::size_t i = 0; i < sizeof(Bits); ++i) {
      bits = static_cast<Bits>(bits | static_cast<Bits>(std::to_integer<Bits>(raw[i]) << (8 * i)));
    }
    if constexpr (std::floating_point<T>) {
      return std::bit_cast<T>(bits);
    } else {
      return static_cast<T>(bits);
    }
  }

  template <Number T>
  T get_in(const char* what, std::int64_t first, std::int64_t last) {
    const T value = get<T>(what);
    if (!(static_cast<std::int64_t>(value) >= first && static_cast<std::int64_t>(value) <= last)) {
      fail(std::string(what) + " must be in [" + std::to_string(first) + ", " +
           std::to_string(last) + "], got " + std::to_string(value));
    }
    return value;
  }

  bool get_bool(const char* what) { return get_in<std::uint8_t>(what, 0, 1) != 0; }

  /// A count of things that take at least `least_bytes` each: never more than the bytes left allow,
  /// so that it is safe to allocate for.
  std::size_t get_count(const char* what, std::size_t least_bytes) {
    const auto count = static_cast<std::size_t>(get<std::uint32_t>(what));
    if (count > remaining() / least_bytes) {
      fail(std::string(what) + " " + std::to_string(count) + " is more than the " +
           std::to_string(remaining()) + " bytes left can hold");
    }
    return count;
  }

  std::string get_text(const char* what) {
    const std::size_t size = get_count(what, 1);
    const auto raw = take(size, what);
    std::string text(size, '\0');
    for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>(raw[i]);
    return text;
  }

 private:
  std::span<const std::byte> bytes_;
  std::size_t offset_;  // of bytes_ in the file
  std::size_t at_ = 0;
};

}  // namespace smartspec::trace
