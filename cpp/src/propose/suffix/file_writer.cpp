// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "propose/suffix/file_format.hpp"
#include "smartspec/error.hpp"

namespace smartspec::suffix {
namespace {

// The system takes at most 2 GiB at once.
constexpr std::size_t kMaxWrite = std::size_t{1} << 30;
constexpr int kChecksumThreads = 2;

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

FileWriter::FileWriter(std::string path, std::size_t num_sections)
    : path_(std::move(path)),
      temporary_(path_ + ".XXXXXX"),
      num_sections_(num_sections),
      end_(padded(sizeof(FileHeader) + num_sections * sizeof(FileSection))) {
  sections_.reserve(num_sections);
  struct stat older{};
  const bool is_new = ::stat(path_.c_str(), &older) != 0;
  if (!is_new && !S_ISREG(older.st_mode)) throw Error(path_ + ": is not a regular file");
  file_ = ::mkostemp(temporary_.data(), O_CLOEXEC);
  if (file_ < 0) fail("cannot create a file beside it", errno);
  // Where that is not allowed, the owner's only will do.
  if (!is_new) (void)::fchmod(file_, older.st_mode & 0777);
}

FileWriter::~FileWriter() {
  if (file_ >= 0) ::close(file_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void FileWriter::fail(const char* what, int error) const {
  throw Error(path_ + ": " + what + ": " + std::generic_category().message(error));
}

void FileWriter::write(std::span<const std::byte> bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(file_, bytes.data(), std::min(bytes.size(), kMaxWrite),
                                     static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("cannot write", errno);
    if (written == 0) fail("cannot write", ENOSPC);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset += static_cast<std::uint64_t>(written);
  }
}

void FileWriter::add(SectionKind kind, std::uint32_t name_space, std::uint32_t generation,
                     std::span<const std::byte> bytes) {
  sections_.push_back({.kind = kind,
                       .name_space = name_space,
                       .generation = generation,
                       .offset = end_,
                       .bytes = bytes.size(),
                       .checksum = checksum(bytes, kChecksumThreads)});
  write(bytes, end_);
  end_ += padded(bytes.size());
}

void FileWriter::finish(FileHeader header) {
  if (sections_.size() != num_sections_) throw Error(path_ + ": wrong number of sections");
  if (::ftruncate(file_, static_cast<off_t>(end_)) != 0) fail("cannot write", errno);
  header.file_bytes = end_;
  header.header_bytes = padded(sizeof(FileHeader) + num_sections_ * sizeof(FileSection));
  header.num_sections = static_cast<std::uint32_t>(num_sections_);
  std::vector<std::byte> front(header.header_bytes);
  const auto put = [&front](const auto& parts, std::size_t at) {
    const auto bytes = std::as_bytes(std::span(parts));
    std::copy(bytes.begin(), bytes.end(), front.begin() + static_cast<std::ptrdiff_t>(at));
  };
  put(std::span(&header, 1), 0);
  put(sections_, sizeof(header));
  header.checksum = checksum(front);
  put(std::span(&header, 1), 0);
  write(front, 0);
}

void FileWriter::commit() {
  if (::fsync(file_) != 0) fail("cannot write to the disk", errno);
  if (::close(std::exchange(file_, -1)) != 0) fail("cannot write", errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot replace it", errno);
  temporary_.clear();
  // The file is complete either way: only how soon its name is on the disk depends on this.
  const int folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;
  (void)::fsync(folder);
  ::close(folder);
}

}  // namespace smartspec::suffix
