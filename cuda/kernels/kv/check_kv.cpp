// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv/check_kv.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>

namespace smartspec::cuda::kernels {
namespace {

struct Dimension {
  const char* name;
  std::int64_t extent;  // 0: not known here
  std::int64_t stride;
};

/// From the inside out, every stride must step over all that lies within it.
void check_strides(const std::string& verb, const std::string& field, const PagedKv& kv) {
  std::array<Dimension, 3> dims = {{{"token_stride", kv.page_size, kv.token_stride},
                                    {"head_stride", kv.num_kv_heads, kv.head_stride},
                                    {"page_stride", 0, kv.page_stride}}};
  std::stable_sort(dims.begin(), dims.end(),
                   [](const Dimension& a, const Dimension& b) { return a.stride < b.stride; });
  std::int64_t span = kv.head_dim;
  for (const Dimension& d : dims) {
    if (d.extent == 1) continue;
    if (d.stride < span || d.stride > std::numeric_limits<std::int64_t>::max() / 65536) {
      refuse(verb, field + "." + d.name, std::to_string(d.stride),
             "at least " + std::to_string(span) + ", for elements not to overlap");
    }
    if (d.extent == 0) return;  // what lies outside the pages is the caller's
    span += (d.extent - 1) * d.stride;
  }
}

}  // namespace

void refuse(const std::string& verb, const std::string& field, const std::string& value,
            const std::string& allowed) {
  throw std::invalid_argument(verb + ": " + field + " is " + value + "; allowed: " + allowed);
}

void check_range(const std::string& verb, const std::string& field, std::int64_t value,
                 std::int64_t low, std::int64_t high) {
  if (value >= low && value <= high) return;
  refuse(verb, field, std::to_string(value),
         high == std::numeric_limits<std::int32_t>::max()
             ? "at least " + std::to_string(low)
             : std::to_string(low) + " to " + std::to_string(high));
}

void check_set(const std::string& verb, const std::string& field, const void* pointer) {
  if (pointer == nullptr) refuse(verb, field, "null", "device memory");
}

void check_paged_kv(const std::string& verb, const std::string& field, const PagedKv& kv) {
  check_set(verb, field + ".k", kv.k);
  check_set(verb, field + ".v", kv.v);
  switch (kv.dtype) {
    case DType::kFloat32:
    case DType::kBFloat16:
    case DType::kFloat16:
    case DType::kFloat8E4M3:
    case DType::kFloat8E5M2:
    case DType::kInt8:
      break;
    default:
      refuse(verb, field + ".dtype", name_of(kv.dtype),
             "float32, bfloat16, float16, float8_e4m3fn, float8_e5m2, int8");
  }
  check_range(verb, field + ".page_size", kv.page_size, 1, 256);
  check_range(verb, field + ".num_kv_heads", kv.num_kv_heads, 1, 1024);
  check_range(verb, field + ".head_dim", kv.head_dim, 1, 1024);
  check_strides(verb, field, kv);
}

}  // namespace smartspec::cuda::kernels
