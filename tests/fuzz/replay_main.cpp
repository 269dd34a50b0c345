// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Runs a fuzz entry without libFuzzer. Arguments: files to replay; none: seeded random inputs, so
// that every test run exercises the entry. Link with one file that defines LLVMFuzzerTestOneInput.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

constexpr unsigned kRandomInputs = 2'000;

bool run(const std::vector<std::uint8_t>& input, const char* name) {
  try {
    LLVMFuzzerTestOneInput(input.data(), input.size());
    return true;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return false;
  }
}

std::vector<std::uint8_t> random_input(unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<std::uint8_t> input(generator() % 2 == 0 ? generator() % 64 : generator() % 4096);
  for (std::uint8_t& byte : input) byte = static_cast<std::uint8_t>(generator());
  // Runs of one byte repeat an operation, which independent bytes hardly ever do.
  for (unsigned runs = generator() % 4; runs > 0 && !input.empty(); --runs) {
    const std::size_t begin = generator() % input.size();
    const std::size_t end = begin + generator() % (input.size() - begin);
    for (std::size_t i = begin; i < end; ++i) input[i] = input[begin];
  }
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "cannot read %s\n", argv[i]);
      return EXIT_FAILURE;
    }
    const std::vector<std::uint8_t> input{std::istreambuf_iterator<char>(file), {}};
    if (!run(input, argv[i])) return EXIT_FAILURE;
  }
  for (unsigned seed = 1; argc == 1 && seed <= kRandomInputs; ++seed) {
    const std::vector<std::uint8_t> input = random_input(seed);
    if (run(input, ("random input " + std::to_string(seed)).c_str())) continue;
    std::ofstream("fuzz_failure.bin", std::ios::binary)
        .write(reinterpret_cast<const char*>(input.data()),
               static_cast<std::streamsize>(input.size()));
    std::fprintf(stderr, "the input is in fuzz_failure.bin\n");
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
