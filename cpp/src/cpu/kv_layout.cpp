// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "cpu/kv_layout.hpp"

#include <cstring>

namespace smartspec::cpu {

// A step of one token is 4 bytes in both element types: one float or a pair of bf16.
void KvLayout::write_key(void* group, std::int32_t lane, const float* k,
                         const std::uint16_t* narrow) const noexcept {
  char* out = static_cast<char*>(group) + std::ptrdiff_t{lane} * 4;
  const char* in = bf16_ ? reinterpret_cast<const char*>(narrow) : reinterpret_cast<const char*>(k);
  for (std::int64_t s = 0; s < steps_; ++s) std::memcpy(out + s * kLineBytes, in + s * 4, 4);
}

void KvLayout::copy_key(const void* from_group, std::int32_t from_lane, void* to_group,
                        std::int32_t to_lane) const noexcept {
  const char* in = static_cast<const char*>(from_group) + std::ptrdiff_t{from_lane} * 4;
  char* out = static_cast<char*>(to_group) + std::ptrdiff_t{to_lane} * 4;
  for (std::int64_t s = 0; s < steps_; ++s) {
    std::memcpy(out + s * kLineBytes, in + s * kLineBytes, 4);
  }
}

}  // namespace smartspec::cpu
