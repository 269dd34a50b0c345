// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Fuzz entry: any bytes either make a sound SafetensorsFile or throw FormatError. The tests replay
// it over seeded mutations; with clang, add -fsanitize=fuzzer,address to fuzz without end.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "smartspec/error.hpp"
#include "smartspec/safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // A copy of exactly this size lets AddressSanitizer see reads past the end.
  const std::vector<std::uint8_t> bytes(data, data + size);
  const auto check = [](bool holds) {
    if (!holds) std::abort();
  };
  try {
    const smartspec::SafetensorsFile file(bytes.data(), bytes.size());
    std::uint64_t sum = 0;
    for (const std::string& name : file.names()) {
      try {
        const auto view = file.find(name);
        check(view.has_value() && view->rank >= 1 && view->rank <= 4);
        const auto* first = static_cast<const std::uint8_t*>(view->data);
        check(first >= bytes.data() && first <= bytes.data() + bytes.size());
        const auto left = static_cast<std::size_t>(bytes.data() + bytes.size() - first);
        check(view->num_bytes() <= left);
        for (std::size_t i = 0; i < view->num_bytes(); ++i) sum += first[i];
      } catch (const smartspec::FormatError&) {
        // find() refuses types and ranks that views do not know
      }
    }
    // The tensors cover the data section once, so the sum is bounded by the file.
    check(sum <= std::uint64_t{255} * bytes.size());
  } catch (const smartspec::FormatError&) {
    // the only error allowed
  }
  return 0;
}
