// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Builds safetensors files in memory, sound or not.
#pragma once

#include <cstdint>
#include <string>

namespace smartspec::testing {

inline std::string little_endian(std::uint64_t value) {
  std::string out;
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>((value >> (8 * i)) & 0xFF));
  return out;
}

/// Header length, header, then `data_bytes` bytes 0, 1, 2, ...
inline std::string safetensors_bytes(const std::string& header, std::size_t data_bytes) {
  std::string out = little_endian(header.size()) + header;
  for (std::size_t i = 0; i < data_bytes; ++i) out.push_back(static_cast<char>(i & 0xFF));
  return out;
}

inline std::string tensor_json(const std::string& name, const std::string& dtype,
                               const std::string& shape, const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + shape +
         "],\"data_offsets\":[" + offsets + "]}";
}

}  // namespace smartspec::testing
