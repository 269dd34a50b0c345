// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The safetensors format (huggingface/safetensors, "Format"): u64 little-endian header length, a
// JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes without gaps.
#include "smartspec/safetensors.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "core/mapped_file.hpp"
#include "model/json_reader.hpp"
#include "smartspec/error.hpp"

namespace smartspec {
namespace {

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::size_t kLengthBytes = 8;
constexpr std::size_t kMaxShapeEntries = 64;  // far above any tensor; bounds memory per entry

struct StoredType {
  std::string_view name;
  std::uint64_t bits = 0;
  std::optional<DType> dtype;  // empty: legal in a file, but not readable as a view
};

constexpr std::array<StoredType, 22> kStoredTypes = {{
    {"F32", 32, DType::kFloat32},     {"BF16", 16, DType::kBFloat16},
    {"F16", 16, DType::kFloat16},     {"I32", 32, DType::kInt32},
    {"I64", 64, DType::kInt64},       {"U8", 8, DType::kUInt8},
    {"BOOL", 8, std::nullopt},        {"I8", 8, std::nullopt},
    {"I16", 16, std::nullopt},        {"U16", 16, std::nullopt},
    {"U32", 32, std::nullopt},        {"U64", 64, std::nullopt},
    {"F64", 64, std::nullopt},        {"C64", 64, std::nullopt},
    {"F8_E4M3", 8, std::nullopt},     {"F8_E5M2", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},     {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt}, {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},     {"F4", 4, std::nullopt},
}};

struct Entry {
  const StoredType* type = nullptr;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0;  // bytes from the start of the data section
  std::uint64_t end = 0;
};

using Entries = std::map<std::string, Entry, std::less<>>;

/// Names come from the file: keep messages short and printable.
std::string quoted(std::string_view name) {
  constexpr std::size_t kMaxShown = 120;
  std::string out = "'";
  for (const char c : name.substr(0, kMaxShown)) {
    out.push_back(static_cast<unsigned char>(c) < 0x20 || c == 0x7F ? '?' : c);
  }
  return out + (name.size() > kMaxShown ? "...'" : "'");
}

[[noreturn]] void fail_tensor(std::string_view name, const std::string& what) {
  throw FormatError("safetensors: tensor " + quoted(name) + ": " + what);
}

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return out + "]";
}

const StoredType& stored_type(std::string_view tensor, std::string_view name) {
  for (const StoredType& type : kStoredTypes) {
    if (type.name == name) return type;
  }
  fail_tensor(tensor, "unknown dtype " + quoted(name));
}

Entry read_entry(JsonReader& json, const std::string& name) {
  Entry entry;
  bool has_shape = false;
  bool has_offsets = false;
  json.expect('{');
  do {
    const std::string key = json.string();
    json.expect(':');
    if (key == "dtype" && entry.type == nullptr) {
      entry.type = &stored_type(name, json.string());
    } else if (key == "shape" && !has_shape) {
      has_shape = true;
      json.expect('[');
      if (json.accept(']')) continue;  // a scalar
      do {
        if (entry.shape.size() == kMaxShapeEntries) fail_tensor(name, "more than 64 dimensions");
        entry.shape.push_back(json.unsigned_integer());
      } while (json.accept(','));
      json.expect(']');
    } else if (key == "data_offsets" && !has_offsets) {
      has_offsets = true;
      json.expect('[');
      entry.begin = json.unsigned_integer();
      json.expect(',');
      entry.end = json.unsigned_integer();
      json.expect(']');
    } else {
      fail_tensor(name, "unknown or repeated key " + quoted(key) +
                            "; allowed, once each: dtype, shape, data_offsets");
    }
  } while (json.accept(','));
  json.expect('}');
  if (entry.type == nullptr) fail_tensor(name, "dtype is missing");
  if (!has_shape) fail_tensor(name, "shape is missing");
  if (!has_offsets) fail_tensor(name, "data_offsets is missing");
  return entry;
}

void read_metadata(JsonReader& json) {
  std::set<std::string> keys;
  json.expect('{');
  if (json.accept('}')) return;
  do {
    std::string key = json.string();
    json.expect(':');
    (void)json.string();
    if (keys.contains(key)) {
      throw FormatError("safetensors: __metadata__ has the key " + quoted(key) + " twice");
    }
    keys.insert(std::move(key));
  } while (json.accept(','));
  json.expect('}');
}

Entries read_header(std::string_view header) {
  Entries entries;
  bool has_metadata = false;
  JsonReader json(header);
  if (header.empty() || header.front() != '{') json.fail("a safetensors header begins with '{'");
  json.expect('{');
  if (!json.accept('}')) {
    do {
      std::string name = json.string();
      json.expect(':');
      if (name == "__metadata__") {
        if (has_metadata) throw FormatError("safetensors: __metadata__ appears twice");
        has_metadata = true;
        read_metadata(json);
        continue;
      }
      Entry entry = read_entry(json, name);
      if (entries.contains(name)) fail_tensor(name, "the name appears twice");
      entries.emplace(std::move(name), std::move(entry));
    } while (json.accept(','));
    json.expect('}');
  }
  json.expect_end();
  return entries;
}

std::uint64_t checked_product(std::string_view name, const Entry& entry, std::uint64_t a,
                              std::uint64_t b) {
  if (b != 0 && a > std::numeric_limits<std::uint64_t>::max() / b) {
    fail_tensor(name, "shape " + shape_text(entry.shape) + " overflows 64 bits");
  }
  return a * b;
}

/// Bytes that shape and dtype ask for.
std::uint64_t expected_bytes(std::string_view name, const Entry& entry) {
  std::uint64_t elements = 1;
  for (const std::uint64_t extent : entry.shape) {
    if (extent > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      fail_tensor(name, "shape " + shape_text(entry.shape) + " overflows 64 bits");
    }
    elements = checked_product(name, entry, elements, extent);
  }
  const std::uint64_t bits = checked_product(name, entry, elements, entry.type->bits);
  if (bits % 8 != 0) {
    fail_tensor(name, "shape " + shape_text(entry.shape) + " of " + std::string(entry.type->name) +
                          " does not end on a byte");
  }
  return bits / 8;
}

void check_layout(const Entries& entries, std::uint64_t data_bytes) {
  std::vector<const Entries::value_type*> order;
  order.reserve(entries.size());
  for (const auto& item : entries) {
    const auto& [name, entry] = item;
    const std::string offsets =
        "data_offsets [" + std::to_string(entry.begin) + ", " + std::to_string(entry.end) + "]";
    if (entry.begin > entry.end) fail_tensor(name, offsets + ": begin lies after end");
    if (entry.end > data_bytes) {
      fail_tensor(name, offsets + " run past the " + std::to_string(data_bytes) + " data bytes");
    }
    const std::uint64_t expected = expected_bytes(name, entry);
    if (entry.end - entry.begin != expected) {
      fail_tensor(name, offsets + " hold " + std::to_string(entry.end - entry.begin) +
                            " bytes, but " + std::string(entry.type->name) + " " +
                            shape_text(entry.shape) + " needs " + std::to_string(expected));
    }
    order.push_back(&item);
  }
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  std::uint64_t covered = 0;
  for (const auto* item : order) {
    if (item->second.begin != covered) {
      fail_tensor(item->first, "data begin at byte " + std::to_string(item->second.begin) +
                                   (item->second.begin < covered ? ", overlapping" : ", leaving") +
                                   (item->second.begin < covered ? " the tensor" : " a hole") +
                                   " before it; expected byte " + std::to_string(covered));
    }
    covered = item->second.end;
  }
  if (covered != data_bytes) {
    throw FormatError("safetensors: tensors cover " + std::to_string(covered) + " of " +
                      std::to_string(data_bytes) + " data bytes");
  }
}

}  // namespace

struct SafetensorsFile::Impl {
  std::shared_ptr<MappedFile> file;  // null: borrowed bytes
  const std::byte* data = nullptr;   // start of the data section
  Entries entries;

  void parse(const std::byte* bytes, std::size_t size) {
    if (size < kLengthBytes) {
      throw FormatError("safetensors: " + std::to_string(size) +
                        " bytes, too short for the 8-byte header length");
    }
    std::uint64_t length = 0;
    for (std::size_t i = kLengthBytes; i-- > 0;) {
      length = length << 8 | std::to_integer<std::uint64_t>(bytes[i]);
    }
    const std::size_t rest = size - kLengthBytes;
    if (length > kMaxHeaderBytes || length > rest) {
      throw FormatError("safetensors: header length " + std::to_string(length) +
                        "; allowed: at most " + std::to_string(kMaxHeaderBytes) +
                        " and the file's remaining " + std::to_string(rest) + " bytes");
    }
    const auto header_bytes = static_cast<std::size_t>(length);
    entries = read_header({reinterpret_cast<const char*>(bytes + kLengthBytes), header_bytes});
    check_layout(entries, rest - header_bytes);
    data = bytes + kLengthBytes + header_bytes;
  }
};

SafetensorsFile::SafetensorsFile(const std::string& path) : impl_(std::make_unique<Impl>()) {
  impl_->file = std::make_shared<MappedFile>(path);
  try {
    impl_->parse(impl_->file->data(), impl_->file->size());
  } catch (const FormatError& error) {
    throw FormatError(path + ": " + error.what());
  }
}

SafetensorsFile::SafetensorsFile(const void* data, std::size_t size)
    : impl_(std::make_unique<Impl>()) {
  impl_->parse(static_cast<const std::byte*>(data), size);
}

SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

std::optional<TensorView> SafetensorsFile::find(std::string_view name) const {
  const auto it = impl_->entries.find(name);
  if (it == impl_->entries.end()) return std::nullopt;
  const Entry& entry = it->second;
  if (!entry.type->dtype) {
    fail_tensor(name, "unsupported dtype " + std::string(entry.type->name) +
                          "; readable: F32, BF16, F16, I32, I64, U8");
  }
  TensorView view;
  if (entry.shape.size() > view.shape.size()) {
    fail_tensor(name, "rank " + std::to_string(entry.shape.size()) + "; readable: at most 4");
  }
  view.data = impl_->data + entry.begin;
  view.dtype = *entry.type->dtype;
  // A TensorView of rank 0 is empty, so a scalar is seen as one element of rank 1.
  view.rank = std::max(1, static_cast<std::int32_t>(entry.shape.size()));
  view.shape[0] = 1;
  for (std::size_t i = 0; i < entry.shape.size(); ++i) {
    view.shape[i] = static_cast<std::int64_t>(entry.shape[i]);
  }
  return view;
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> out;
  out.reserve(impl_->entries.size());
  for (const auto& item : impl_->entries) out.push_back(item.first);
  return out;
}

std::shared_ptr<void> SafetensorsFile::mapping() const noexcept { return impl_->file; }

}  // namespace smartspec
