// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <system_error>

#include "propose/suffix/file_format.hpp"
#include "smartspec/error.hpp"

namespace smartspec::suffix {
namespace {

constexpr int kThreads = 2;
constexpr std::size_t kMaxRead = std::size_t{1} << 30;

[[noreturn]] void fail(const char* what, int error) {
  throw Error(std::string(what) + ": " + std::generic_category().message(error));
}

[[noreturn]] void reject(const std::string& what) { throw FormatError(what); }

std::string got(std::uint64_t found, const std::string& allowed) {
  return " is " + std::to_string(found) + ", must be " + allowed;
}

void expect(const char* field, std::uint64_t found, std::uint64_t wanted) {
  if (found != wanted) reject(field + got(found, std::to_string(wanted)));
}

bool is_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

std::string quoted(std::string_view hash) {
  return hash.empty() ? "unknown" : "'" + std::string(hash) + "'";
}

}  // namespace

FileReader::FileReader(const std::string& path, const SuffixIndexOptions& options) {
  try {
    open(path);
    read_header();
    check_options(options);
    read_table();
  } catch (...) {
    if (file_ >= 0) ::close(file_);
    throw;
  }
}

FileReader::~FileReader() { ::close(file_); }

void FileReader::open(const std::string& path) {
  // O_NONBLOCK: opening a FIFO without a writer would wait for ever.
  file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file_ < 0) fail("cannot open", errno);
  struct stat info{};
  if (::fstat(file_, &info) != 0) fail("cannot stat", errno);
  if (!S_ISREG(info.st_mode)) reject("not a regular file");
  size_ = static_cast<std::uint64_t>(info.st_size);
}

void FileReader::read(std::uint64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t count =
        ::pread(file_, bytes.data(), std::min(bytes.size(), kMaxRead), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("cannot read", errno);
    if (count == 0) reject("ends at byte " + std::to_string(offset) + ": it was cut off meanwhile");
    bytes = bytes.subspan(static_cast<std::size_t>(count));
    offset += static_cast<std::uint64_t>(count);
  }
}

void FileReader::read_header() {
  if (size_ < sizeof(FileHeader)) {
    reject("file size" + got(size_, "at least " + std::to_string(sizeof(FileHeader)) +
                                        ": not a suffix index, or cut off"));
  }
  read(0, std::as_writable_bytes(std::span(&header_, 1)));
  if (header_.magic != kFileMagic) reject("not a suffix index: does not begin with SSPECSFX");
  if (header_.byte_order != kFileByteOrder) {
    reject("byte_order" + got(header_.byte_order, std::to_string(kFileByteOrder) +
                                                      ": written by another kind of machine"));
  }
  if (header_.version != kFileVersion) {
    reject("version" + got(header_.version, std::to_string(kFileVersion) +
                                                ": written by another version of the library"));
  }
  if (header_.file_bytes != size_) {
    reject("file size" + got(size_, std::to_string(header_.file_bytes) + ": cut off, or added to"));
  }
  const std::uint64_t table = std::uint64_t{header_.num_sections} * sizeof(FileSection);
  expect("header_bytes", header_.header_bytes, padded(sizeof(FileHeader) + table));
  if (header_.header_bytes > size_) {
    reject("num_sections" + got(header_.num_sections, "fewer: the table does not fit the file"));
  }
  std::vector<std::byte> front(header_.header_bytes);
  read(0, front);
  FileHeader blank = header_;
  blank.checksum = 0;
  const auto bytes = std::as_bytes(std::span(&blank, 1));
  std::copy(bytes.begin(), bytes.end(), front.begin());
  if (checksum(front) != header_.checksum) reject("header is corrupted: its checksum differs");
}

// What the index leaves open, any file may state; what it states, the file must state as well.
void FileReader::check_options(const SuffixIndexOptions& options) const {
  if (options.vocab_size > 0 && header_.vocab_size != options.vocab_size) {
    reject("vocab_size is " + std::to_string(header_.vocab_size) + ", must be " +
           std::to_string(options.vocab_size) + " as in the index's options");
  }
  if (header_.vocab_size < 0) {
    reject("vocab_size is " + std::to_string(header_.vocab_size) + ", must be at least 0");
  }
  if (header_.tokenizer_hash_size > header_.tokenizer_hash.size()) {
    reject("tokenizer_hash_size" + got(header_.tokenizer_hash_size, "at most 64"));
  }
  const std::string_view hash(header_.tokenizer_hash.data(), header_.tokenizer_hash_size);
  if (!options.tokenizer_hash.empty() && hash != options.tokenizer_hash) {
    reject("tokenizer_hash is " + quoted(hash) + ", must be " + quoted(options.tokenizer_hash) +
           " as in the index's options");
  }
}

void FileReader::read_table() {
  sections_.resize(header_.num_sections);
  read(sizeof(FileHeader), std::as_writable_bytes(std::span(sections_)));
  std::uint64_t end = header_.header_bytes;
  for (const FileSection& section : sections_) {
    expect("section offset", section.offset, end);
    if (section.bytes > size_ - end || padded(section.bytes) > size_ - end) {
      reject("section bytes" + got(section.bytes, "at most " + std::to_string(size_ - end)));
    }
    end += padded(section.bytes);
  }
  expect("file size", size_, end);
}

void FileReader::load(const FileSection& section, std::span<std::byte> bytes) const {
  compare(section, checksum(bytes, kThreads, [&](std::size_t begin, std::size_t size) {
            read(section.offset + begin, bytes.subspan(begin, size));
          }));
}

void FileReader::verify(const FileSection& section, std::span<const std::byte> bytes) const {
  compare(section, checksum(bytes, kThreads));
}

void FileReader::compare(const FileSection& section, std::uint64_t sum) const {
  std::array<std::byte, kFileAlignment> padding;
  const auto rest = std::span(padding).first(padded(section.bytes) - section.bytes);
  read(section.offset + section.bytes, rest);
  if (sum == section.checksum && is_zero(rest)) return;
  reject(std::string(name_of(section.kind)) + " of namespace " +
         std::to_string(section.name_space) + " is corrupted: its checksum differs");
}

}  // namespace smartspec::suffix
