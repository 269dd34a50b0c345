// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// Checked, zero-copy views of tensors of any framework that speaks DLPack (torch, CuPy, JAX,
// NumPy). The structs are those of the DLPack 1.x specification, which is stable; the library's
// public headers know nothing of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "views.hpp"

namespace smartspec::python {

namespace dlpack {
struct DlTensor;
}

/// What an argument must look like. Shapes: -1 is any extent.
struct TensorSpec {
  enum class Layout : std::uint8_t {
    kDense,  // C-contiguous
    kRows,   // rows of the first axis may lie apart
    kInner,  // only the last axis is contiguous
  };

  const char* name = "";                           // a literal
  std::initializer_list<std::string_view> dtypes;  // empty: any
  std::initializer_list<std::int64_t> shape;
  Layout layout = Layout::kDense;
  bool written = false;  // refuses tensors that are marked read-only
};

/// A view that keeps the framework's memory alive. Destroyed with the GIL. Empty for None.
class Tensor {
 public:
  Tensor() = default;
  /// Takes what `source` exports, without a copy. The producer orders its work before `stream` (a
  /// CUDA stream's handle; 0: the legacy default stream). Throws TypeError for what is no tensor.
  Tensor(py::handle source, const char* name, std::uintptr_t stream);
  /// Throws std::invalid_argument naming the argument, what it has and what is allowed.
  void check(const TensorSpec& spec) const;

  [[nodiscard]] bool empty() const noexcept { return owner_ == nullptr; }
  /// Null when empty.
  template <class T = void>
  [[nodiscard]] T* data() const noexcept {
    return static_cast<T*>(data_);
  }
  [[nodiscard]] const char* name() const noexcept { return name_; }
  [[nodiscard]] const std::string& dtype() const noexcept { return dtype_; }
  [[nodiscard]] std::int64_t extent(std::size_t axis) const { return shape_.at(axis); }
  [[nodiscard]] std::int64_t stride(std::size_t axis) const { return strides_.at(axis); }
  [[nodiscard]] const std::vector<std::int64_t>& shape() const noexcept { return shape_; }
  [[nodiscard]] const std::vector<std::int64_t>& strides() const noexcept { return strides_; }
  [[nodiscard]] std::size_t num_bytes() const noexcept;  // of the elements
  [[nodiscard]] bool is_read_only() const noexcept { return read_only_; }
  [[nodiscard]] bool is_on_cuda() const noexcept;
  [[nodiscard]] bool is_on_host() const noexcept;
  [[nodiscard]] std::string device() const;  // "cpu", "cuda:0"

 private:
  void read_flags(std::uint64_t flags);
  void read(const dlpack::DlTensor& tensor);
  [[noreturn]] void refuse(const std::string& has, const std::string& allowed) const;

  std::shared_ptr<void> owner_;
  void* data_ = nullptr;
  const char* name_ = "";  // a literal
  std::string dtype_;      // NumPy's and torch's word
  std::int32_t element_bits_ = 0;
  std::int32_t device_type_ = 0;  // of DLPack
  std::int32_t device_id_ = 0;
  std::vector<std::int64_t> shape_;
  std::vector<std::int64_t> strides_;  // elements; of axes with one element as if dense
  bool read_only_ = false;
};

/// "float8_e4m3fn" and so on; throws std::invalid_argument naming the argument for other words.
DType dtype_of(const std::string& word, const char* name);

/// The tensors of one call. Each is checked when it is taken; finish() then makes sure that they
/// are on one CUDA device, so that everything else is told apart first.
class TensorArguments {
 public:
  explicit TensorArguments(std::uintptr_t stream) : stream_(stream) {}

  Tensor take(py::handle source, const TensorSpec& spec);
  /// Empty for None.
  Tensor take_optional(py::handle source, const TensorSpec& spec);
  /// A tensor that was taken by an earlier call.
  void add(const Tensor& tensor);
  void finish() const;
  [[nodiscard]] std::uintptr_t stream() const noexcept { return stream_; }

 private:
  struct Place {
    const char* name;
    bool is_on_cuda;
    std::string device;
  };
  std::uintptr_t stream_;
  std::vector<Place> places_;
};

std::string text_of(const std::vector<std::int64_t>& numbers);  // "[2, 3]"

}  // namespace smartspec::python
