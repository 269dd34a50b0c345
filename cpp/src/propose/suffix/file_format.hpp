// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The file of a suffix index: a header, a table of sections, and the sections, each from a page
// boundary on so that it can be mapped. Everything is in the byte order of the machine that wrote
// it; every byte of the file is covered by a checksum or must be zero.
//
// Sections stand in this order and without gaps: for each namespace its name and calibration, then
// its generations, oldest first, each either an automaton (states, edges, summary, the text and the
// lengths of its sequences) or frozen (text, order). The last generation of a namespace is an
// automaton: the live one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "smartspec/suffix_index.hpp"

namespace smartspec::suffix {

inline constexpr std::size_t kFileAlignment = 4096;
inline constexpr std::array<char, 8> kFileMagic = {'S', 'S', 'P', 'E', 'C', 'S', 'F', 'X'};
inline constexpr std::uint32_t kFileByteOrder = 0x01020304;
inline constexpr std::uint32_t kFileVersion = 1;

enum class SectionKind : std::uint32_t {
  kName = 1,
  kCalibration,      // Calibration::state()
  kStates,           // State[]
  kEdges,            // Edge[]
  kSummary,          // SuffixAutomaton::Summary
  kSequenceText,     // TokenId[]
  kSequenceLengths,  // uint32[]
  kFrozenText,       // TokenId[], as FrozenSegment::text()
  kFrozenOrder,      // uint32[]
};
[[nodiscard]] const char* name_of(SectionKind kind) noexcept;

struct FileHeader {
  std::array<char, 8> magic = kFileMagic;
  std::uint32_t byte_order = kFileByteOrder;
  std::uint32_t version = kFileVersion;
  std::uint64_t file_bytes = 0;
  std::uint64_t header_bytes = 0;  // header, table and padding
  std::uint64_t checksum = 0;      // of those bytes, with 0 in this field's place
  std::uint32_t num_sections = 0;
  std::uint32_t num_namespaces = 0;
  std::uint32_t num_generations = 0;
  std::int32_t vocab_size = 0;            // 0: unknown
  std::uint32_t tokenizer_hash_size = 0;  // 0: unknown
  std::uint32_t zero = 0;
  std::array<char, 64> tokenizer_hash{};
};
static_assert(sizeof(FileHeader) == 128);

struct FileSection {
  SectionKind kind = SectionKind::kName;
  std::uint32_t name_space = 0;  // counted from 0
  std::uint32_t generation = 0;  // age rank over all namespaces, 0 the oldest; of names: 0
  std::uint32_t zero = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;  // without the padding, which is zero
  std::uint64_t checksum = 0;
};
static_assert(sizeof(FileSection) == 40);

[[nodiscard]] constexpr std::uint64_t padded(std::uint64_t bytes) noexcept {
  return (bytes + kFileAlignment - 1) / kFileAlignment * kFileAlignment;
}

/// 64 bits over four lanes of multiply and rotate; not against an adversary. A change within one
/// aligned 8-byte word always changes it. `num_threads` share large inputs, without a difference.
[[nodiscard]] std::uint64_t checksum(std::span<const std::byte> bytes, int num_threads = 1);
/// The same; fill(offset, size) is called before a part of `bytes` is read, from several threads,
/// and may throw.
[[nodiscard]] std::uint64_t checksum(std::span<const std::byte> bytes, int num_threads,
                                     const std::function<void(std::size_t, std::size_t)>& fill);

/// Writes a file beside `path` that takes its place with commit(), and is removed without. Every
/// member throws Error with path and reason. A new file is its owner's only, for it holds users'
/// text; one that replaces another keeps that one's permissions.
class FileWriter {
 public:
  FileWriter(std::string path, std::size_t num_sections);
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  ~FileWriter();

  void add(SectionKind kind, std::uint32_t name_space, std::uint32_t generation,
           std::span<const std::byte> bytes);
  /// Fills the sections' part of the header in and hands the rest over to the system.
  void finish(FileHeader header);
  /// Waits for the disk, then renames.
  void commit();

 private:
  void write(std::span<const std::byte> bytes, std::uint64_t offset);
  [[noreturn]] void fail(const char* what, int error) const;

  std::string path_;
  std::string temporary_;
  int file_ = -1;
  std::size_t num_sections_;
  std::uint64_t end_;
  std::vector<FileSection> sections_;
};

/// An open file whose header and table are sound: sections lie in it in order and without gaps.
/// Throws FormatError, which says what is wrong and what is allowed, and Error if reading fails.
class FileReader {
 public:
  FileReader(const std::string& path, const SuffixIndexOptions& options);
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;
  ~FileReader();

  [[nodiscard]] int file() const noexcept { return file_; }
  [[nodiscard]] const FileHeader& header() const noexcept { return header_; }
  [[nodiscard]] std::span<const FileSection> sections() const noexcept { return sections_; }
  void read(std::uint64_t offset, std::span<std::byte> bytes) const;
  /// Reads the section's content and compares it with its checksum.
  void load(const FileSection& section, std::span<std::byte> bytes) const;
  /// The same for content that is mapped.
  void verify(const FileSection& section, std::span<const std::byte> bytes) const;

 private:
  void open(const std::string& path);
  void read_header();
  void check_options(const SuffixIndexOptions& options) const;
  void read_table();
  void compare(const FileSection& section, std::uint64_t sum) const;

  int file_ = -1;
  std::uint64_t size_ = 0;
  FileHeader header_;
  std::vector<FileSection> sections_;
};

}  // namespace smartspec::suffix
