// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Fuzz entry: bytes choose the options and then the operations on a KV cache, checked against the
// naive model. For libFuzzer (clang++ -fsanitize=fuzzer) or replay_main.cpp.
#include <cstddef>
#include <cstdint>

#include "kv/kv_model.hpp"
#include "smartspec/kv_cache.hpp"

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
  smartspec::KvCacheOptions options;
  options.num_blocks = 1 + static_cast<std::int32_t>(source(32));
  options.block_size = 16 * (1 + static_cast<std::int32_t>(source(2)));
  options.enable_prefix_caching = source(8) != 0;
  options.hash_seed = source(256);
  smartspec::KvCache cache(options);
  smartspec::kv_test::KvDriver driver(cache, source, {.max_sequences = 6, .max_length = 100});
  while (bytes.left > 0) driver.operation();
  driver.finish();  // a broken promise is an uncaught ModelFailure: a crash to the fuzzer
  return 0;
}
