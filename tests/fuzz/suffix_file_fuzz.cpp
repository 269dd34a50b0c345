// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Fuzz entry: bytes are loaded as a suffix index's file, as they are and again with checksums made
// to fit; or, since random bytes are hardly ever a file, they change one that was saved. Either
// makes an index that can be asked and fed, or throws FormatError. For libFuzzer or
// replay_main.cpp.
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "propose/suffix/file_format.hpp"
#include "smartspec/error.hpp"
#include "smartspec/suffix_index.hpp"

namespace {

using smartspec::SuffixIndex;
using smartspec::suffix::FileHeader;
using smartspec::suffix::FileSection;

using Bytes = std::vector<std::uint8_t>;

constexpr smartspec::TokenId kVocab = 50;

smartspec::SuffixIndexOptions options() {
  smartspec::SuffixIndexOptions options;
  options.vocab_size = kVocab;
  options.max_bytes = std::size_t{1} << 20;
  options.generation_bytes = 10'000;
  options.background = false;
  return options;
}

std::vector<smartspec::TokenId> text(std::uint32_t seed, std::size_t size) {
  std::vector<smartspec::TokenId> tokens(size);
  for (auto& token : tokens) {
    seed = seed * 1664525 + 1013904223;
    token = static_cast<smartspec::TokenId>((seed >> 16) % (seed >> 31 == 0 ? 4 : kVocab));
  }
  return tokens;
}

/// A file of this process, removed with it.
struct TempFile {
  TempFile()
      : path((std::filesystem::temp_directory_path() /
              ("smartspec_suffix_file_fuzz_" + std::to_string(::getpid())))
                 .string()) {}
  ~TempFile() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }
  std::string path;
};

Bytes saved_file(const std::string& path) {
  SuffixIndex index(options());
  const std::vector<std::int64_t> offsets{0, 100, 250, 251, 400};
  index.preload(offsets, text(1, 400));
  index.preload(offsets, text(2, 400), "name");
  index.save(path);
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void make_checksums_fit(Bytes& bytes) {
  FileHeader header;
  if (bytes.size() < sizeof(header)) return;
  std::memcpy(&header, bytes.data(), sizeof(header));
  const auto part = [&](std::uint64_t offset, std::uint64_t size) {
    return std::as_bytes(std::span<const std::uint8_t>(bytes)).subspan(offset, size);
  };
  for (std::uint64_t i = 0; i < header.num_sections; ++i) {
    const std::uint64_t at = sizeof(header) + i * sizeof(FileSection);
    FileSection section;
    if (at + sizeof(section) > bytes.size()) return;
    std::memcpy(&section, bytes.data() + at, sizeof(section));
    if (section.offset > bytes.size() || section.bytes > bytes.size() - section.offset) continue;
    section.checksum = smartspec::suffix::checksum(part(section.offset, section.bytes));
    std::memcpy(bytes.data() + at, &section, sizeof(section));
  }
  if (header.header_bytes < sizeof(header) || header.header_bytes > bytes.size()) return;
  header.checksum = 0;
  std::memcpy(bytes.data(), &header, sizeof(header));
  header.checksum = smartspec::suffix::checksum(part(0, header.header_bytes));
  std::memcpy(bytes.data(), &header, sizeof(header));
}

void check(bool holds) {
  if (!holds) std::abort();
}

void use(SuffixIndex& index) {
  for (const char* name : {"", "name"}) {
    smartspec::SuffixRequest request;
    request.id = 1;
    request.name_space = name;
    index.start_request(request);
    for (std::int64_t position = 0; position < 60; position += 20) {
      const auto tokens = text(static_cast<std::uint32_t>(position), 20);
      const std::int64_t offsets[2] = {0, 20};
      index.update({{&request.id, 1}, {&position, 1}, offsets, tokens});
      std::int32_t length = 0;
      std::vector<smartspec::TokenId> drafted(8);
      std::vector<std::int32_t> parents(8);
      std::vector<float> survival(8);
      index.draft({&request.id, 1}, {}, {.max_tokens = 8, .min_survival = 0, .tree_width = 3},
                  {drafted, parents, survival, {&length, 1}, {}});
      check(length >= 0 && length <= 8);
      for (std::int32_t i = 0; i < length; ++i) {
        const auto k = static_cast<std::size_t>(i);
        check(drafted[k] >= 0 && drafted[k] < kVocab && parents[k] < i);
        check(survival[k] >= 0 && survival[k] <= 1);
      }
      (void)index.lookup(tokens, name);
    }
    index.finish_request(1);
    check(index.forget(1));
  }
}

void load(const std::string& path, const Bytes& bytes) {
  std::filesystem::remove(path);  // some file systems wait for the disk when one is overwritten
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  SuffixIndex index(options());
  try {
    index.load(path);
  } catch (const smartspec::FormatError&) {
    check(index.stats().num_namespaces == 0);
    return;
  }
  use(index);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const TempFile file;
  static const Bytes saved = saved_file(file.path);
  Bytes bytes(data, data + size);
  load(file.path, bytes);
  make_checksums_fit(bytes);
  load(file.path, bytes);
  // Three bytes say where, the fourth what; at most 16 changes, so that some get through.
  bytes = saved;
  for (std::size_t i = 0; i + 4 <= std::min<std::size_t>(size, 64); i += 4) {
    const std::size_t at = data[i] | std::size_t{data[i + 1]} << 8 | std::size_t{data[i + 2]} << 16;
    bytes[at % bytes.size()] = data[i + 3];
  }
  if (size % 4 == 3) bytes.resize(bytes.size() - size);
  make_checksums_fit(bytes);
  load(file.path, bytes);
  return 0;
}
