// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "model/weights.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "model/numeric.hpp"
#include "smartspec/error.hpp"

namespace smartspec {
namespace {

template <class T>
T read(const std::byte* data, std::size_t index) {
  T value;  // memcpy: file offsets need not be aligned
  std::memcpy(&value, data + index * sizeof(T), sizeof(T));
  return value;
}

float element(const std::byte* data, DType dtype, std::size_t index) {
  switch (dtype) {
    case DType::kBFloat16:
      return float_from_bf16(read<std::uint16_t>(data, index));
    case DType::kFloat16:
      return float_from_f16(read<std::uint16_t>(data, index));
    default:
      return read<float>(data, index);
  }
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return out + "]";
}

bool is_aligned(const TensorView& view) {
  return reinterpret_cast<std::uintptr_t>(view.data) % size_of(view.dtype) == 0;
}

LoadedWeight convert(const TensorView& stored, DType dtype) {
  LoadedWeight out{stored, {}};
  if (stored.dtype == dtype && is_aligned(stored)) return out;
  const auto count = static_cast<std::size_t>(stored.num_elements());
  const auto* source = static_cast<const std::byte*>(stored.data);
  out.storage.resize(count * size_of(dtype));
  if (stored.dtype == dtype) {
    std::memcpy(out.storage.data(), source, out.storage.size());
  } else if (dtype == DType::kFloat32) {
    auto* target = reinterpret_cast<float*>(out.storage.data());
    for (std::size_t i = 0; i < count; ++i) target[i] = element(source, stored.dtype, i);
  } else {
    auto* target = reinterpret_cast<std::uint16_t*>(out.storage.data());
    for (std::size_t i = 0; i < count; ++i) {
      target[i] = bf16_from_float(element(source, stored.dtype, i));
    }
  }
  out.view.data = out.storage.data();
  out.view.dtype = dtype;
  return out;
}

}  // namespace

TensorView WeightLoader::find(const std::string& name, Shape shape) {
  const std::optional<TensorView> found = source_(name);
  if (!found) {
    throw FormatError("weight " + name + " is missing; expected shape " + shape_text(shape));
  }
  const TensorView& view = *found;
  const auto rank = static_cast<std::size_t>(std::clamp(view.rank, 0, 4));
  const Shape stored(view.shape.data(), rank);
  if (view.rank != static_cast<std::int32_t>(rank) || !std::ranges::equal(stored, shape)) {
    throw FormatError("weight " + name + " has shape " + shape_text(stored) + "; expected " +
                      shape_text(shape));
  }
  if (view.dtype != DType::kFloat32 && view.dtype != DType::kBFloat16 &&
      view.dtype != DType::kFloat16) {
    throw FormatError("weight " + name + " has dtype " + name_of(view.dtype) +
                      "; allowed: float32, bfloat16, float16");
  }
  if (view.data == nullptr || view.device != Device::kCpu) {
    throw FormatError("weight " + name + " must lie in host memory");
  }
  num_parameters_ += view.num_elements();
  return view;
}

LoadedWeight WeightLoader::load(const std::string& name, Shape shape) {
  return convert(find(name, shape), dtype_);
}

PackedLinear WeightLoader::linear(Parts parts, std::int32_t in_features) {
  std::vector<LoadedWeight> loaded;
  std::vector<TensorView> views;
  for (const auto& [name, out_features] : parts) {
    loaded.push_back(load(name, std::array<std::int64_t, 2>{out_features, in_features}));
    views.push_back(loaded.back().view);
  }
  return backend_.pack_linear(views, dtype_);
}

Buffer WeightLoader::vectors(Parts parts) {
  std::vector<float> values;
  for (const auto& [name, length] : parts) {
    const TensorView view = find(name, std::array<std::int64_t, 1>{length});
    const auto* data = static_cast<const std::byte*>(view.data);
    for (std::size_t i = 0; i < static_cast<std::size_t>(length); ++i) {
      values.push_back(element(data, view.dtype, i));
    }
  }
  const std::size_t bytes = values.size() * sizeof(float);
  Buffer out = backend_.allocate(bytes);
  backend_.upload(out.data(), values.data(), bytes);
  return out;
}

}  // namespace smartspec
