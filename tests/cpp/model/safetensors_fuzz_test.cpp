// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Replays the fuzz entry over a small corpus and seeded mutations of it.
#include <gtest/gtest.h>

#include <array>
#include <random>
#include <string>
#include <vector>

#include "model/safetensors_bytes.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace smartspec::testing {
namespace {

std::vector<std::string> corpus() {
  const std::string a = tensor_json("a", "F32", "2,3", "0,24");
  const std::string b = tensor_json("b", "BF16", "4", "24,32");
  const std::string c = tensor_json("c\\u00e9", "U8", "", "32,33");
  const std::string d = tensor_json("d", "F8_E4M3", "1,1,1,1,2", "33,35");
  const std::string e = tensor_json("e", "I64", "0", "35,35");
  return {
      "",
      safetensors_bytes("{}", 0),
      safetensors_bytes("{" + a + "," + b + "}   ", 32),
      safetensors_bytes("{\"__metadata__\":{\"format\":\"pt\",\"k\":\"\\ud83d\\ude00\"}," + a +
                            "," + b + "," + c + "," + d + "," + e + "}",
                        35),
  };
}

void mutate(std::string& bytes, std::mt19937_64& rng) {
  static const std::array<std::string, 16> kPieces = {"{",
                                                      "}",
                                                      "[",
                                                      "]",
                                                      ",",
                                                      ":",
                                                      "\"",
                                                      "\\u",
                                                      "-1",
                                                      "18446744073709551615",
                                                      "9223372036854775808",
                                                      "\"F32\"",
                                                      "\"shape\":[",
                                                      "[[[[[[[[",
                                                      "\xff",
                                                      "\"a\":"};
  const auto at = [&](std::size_t end) { return static_cast<std::size_t>(rng() % (end + 1)); };
  const std::size_t position = at(bytes.size());
  switch (rng() % 6) {
    case 0:
      bytes.resize(position);
      break;
    case 1:
      bytes.insert(position, kPieces[rng() % kPieces.size()]);
      break;
    case 2:
      bytes.erase(position, 1 + rng() % 4);
      break;
    case 3:
      bytes.insert(position, bytes.substr(at(bytes.size()), 1 + rng() % 40));
      break;
    default:
      if (position < bytes.size()) bytes[position] = static_cast<char>(rng() & 0xFF);
  }
}

/// Most mutations change the header's length, which the first eight bytes must follow to get deep.
void repair_length(std::string& bytes, std::size_t data_bytes) {
  if (bytes.size() < 8 + data_bytes) return;
  bytes.replace(0, 8, little_endian(bytes.size() - 8 - data_bytes));
}

TEST(SafetensorsFuzz, CorpusAndMutationsThrowFormatErrorOrLoad) {
  const std::vector<std::string> seeds = corpus();
  const std::array<std::size_t, 4> data_bytes = {0, 0, 32, 35};
  const auto run = [](const std::string& bytes) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  };
  for (const std::string& seed : seeds) run(seed);
  std::mt19937_64 rng(20261121);
  for (int i = 0; i < 200'000; ++i) {
    const std::size_t which = rng() % seeds.size();
    std::string bytes = seeds[which];
    const auto count = 1 + rng() % 4;
    for (std::size_t k = 0; k < count; ++k) mutate(bytes, rng);
    if (rng() % 4 != 0) repair_length(bytes, data_bytes[which]);
    run(bytes);
  }
}

}  // namespace
}  // namespace smartspec::testing
