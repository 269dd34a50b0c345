// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Fuzz entry: bytes choose the options and then the calls on a suffix index, checked against the
// naive model. For libFuzzer (clang++ -fsanitize=fuzzer) or replay_main.cpp.
#include <cstddef>
#include <cstdint>

#include "propose/suffix_index_driver.hpp"

namespace {

struct ByteSource {
  struct Bytes {
    const std::uint8_t* data;
    std::size_t left;
  };
  Bytes* bytes;
  std::uint32_t operator()(std::uint32_t bound) const {
    if (bytes->left == 0) return 0;
    --bytes->left;
    const std::uint32_t value = *bytes->data++;
    // Above a byte's range: scaled, so that large numbers are reached.
    return bound <= 256 ? value % bound : value * (bound / 256) % bound;
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ByteSource::Bytes bytes{data, size};
  const ByteSource source{&bytes};
  smartspec::SuffixIndexOptions options;
  options.vocab_size = smartspec::suffix_test::kVocabSize;
  options.max_bytes = std::size_t{1} << 20;
  options.generation_bytes = std::size_t{2} << (10 + source(8));
  options.freeze = source(3) != 0;
  options.background = source(16) == 0;  // what it finds does not come again
  smartspec::SuffixIndex index(options);
  smartspec::suffix_test::IndexDriver driver(index, source,
                                             {.max_requests = 6,
                                              .max_slice = 100,
                                              .max_sequence = 255,
                                              .lookups = 4,
                                              .clear_interval = 4});
  while (bytes.left > 0) driver.operation();
  driver.finish();  // a broken promise is an uncaught ModelFailure: a crash to the fuzzer
  return 0;
}
