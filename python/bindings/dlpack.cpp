// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
#include "dlpack.hpp"

#include <algorithm>
#include <array>

#include "dlpack_abi.hpp"

namespace smartspec::python {

namespace {

using namespace dlpack;

std::string word_of(const DlDataType& dtype) {
  const std::string bits = std::to_string(dtype.bits);
  std::string word;
  switch (dtype.code) {
    case 0:
      word = "int" + bits;
      break;
    case 1:
      word = "uint" + bits;
      break;
    case 2:
      word = "float" + bits;
      break;
    case 4:
      word = "bfloat" + bits;
      break;
    case 5:
      word = "complex" + bits;
      break;
    case 6:
      word = "bool";
      break;
    case 10:
      word = name_of(DType::kFloat8E4M3);
      break;
    case 12:
      word = name_of(DType::kFloat8E5M2);
      break;
    default:
      word = "of DLPack code " + std::to_string(dtype.code) + " with " + bits + " bits";
  }
  return dtype.lanes == 1 ? word : word + " x " + std::to_string(dtype.lanes);
}

std::string join(std::initializer_list<std::string_view> words) {
  std::string out;
  for (const std::string_view word : words) {
    out += (out.empty() ? "" : ", ") + std::string(word);
  }
  return out;
}

/// Of a tensor without gaps.
std::vector<std::int64_t> dense_strides(const std::vector<std::int64_t>& shape) {
  std::vector<std::int64_t> out(shape.size(), 1);
  for (std::size_t i = shape.size(); i-- > 1;) {
    out[i - 1] = out[i] * std::max<std::int64_t>(shape[i], 1);
  }
  return out;
}

py::object exported(py::handle source, const char* name, std::uintptr_t stream) {
  if (!py::hasattr(source, "__dlpack__") || !py::hasattr(source, "__dlpack_device__")) {
    throw py::type_error(std::string(name) + ": must be a tensor with __dlpack__, got " +
                         py::type::of(source).attr("__name__").cast<std::string>());
  }
  const py::tuple device = source.attr("__dlpack_device__")();
  const int type = py::int_(device[0]).cast<int>();
  py::dict arguments;
  // Memory of the host has no stream to wait for; DLPack writes the legacy default stream as 1.
  arguments["stream"] = type == kCuda || type == kCudaManaged
                            ? py::object(py::int_(stream == 0 ? 1 : stream))
                            : py::object(py::none());
  arguments["max_version"] = py::make_tuple(1, 1);
  const py::object method = source.attr("__dlpack__");
  try {
    return method(**arguments);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;  // producers of DLPack 0 know no max_version
  }
  arguments.attr("pop")("max_version");
  return method(**arguments);
}

/// Calls the deleter in the end.
template <class Managed>
std::shared_ptr<void> owner_of(Managed* managed) {
  return {managed, [](void* self) {
            auto* const owned = static_cast<Managed*>(self);
            if (owned->deleter != nullptr) owned->deleter(owned);
          }};
}

/// Through the type's table of C functions, which costs a tenth of __dlpack__. Null when there is
/// none, or when the framework works on another stream and must be asked to wait.
DlManagedTensorVersioned* exported_fast(py::handle source, std::uintptr_t stream) {
  const auto capsule = py::reinterpret_steal<py::object>(PyObject_GetAttrString(
      reinterpret_cast<PyObject*>(Py_TYPE(source.ptr())), "__dlpack_c_exchange_api__"));
  if (!capsule || PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api") == 0) {
    PyErr_Clear();
    return nullptr;
  }
  const auto* const api =
      static_cast<const DlExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api->major != 1) return nullptr;
  DlManagedTensorVersioned* out = nullptr;
  if (api->export_tensor(source.ptr(), &out) != 0) throw py::error_already_set();
  const DlDevice device = out->tensor.device;
  if (device.type != kCuda && device.type != kCudaManaged) return out;
  void* current = nullptr;
  if (api->current_stream(device.type, device.id, &current) == 0 &&
      reinterpret_cast<std::uintptr_t>(current) == stream) {
    return out;
  }
  PyErr_Clear();
  owner_of(out);
  return nullptr;
}

}  // namespace

std::string text_of(const std::vector<std::int64_t>& numbers) {
  std::string out = "[";
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    out +=
        numbers[i] < 0 ? (i == 0 ? "*" : ", *") : (i == 0 ? "" : ", ") + std::to_string(numbers[i]);
  }
  return out + "]";
}

Tensor::Tensor(py::handle source, const char* name, std::uintptr_t stream) : name_(name) {
  if (DlManagedTensorVersioned* const managed = exported_fast(source, stream)) {
    owner_ = owner_of(managed);
    read_flags(managed->flags);
    read(managed->tensor);
    return;
  }
  const py::object capsule = exported(source, name, stream);
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
    auto* const managed = static_cast<DlManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->major != 1) {
      refuse("DLPack version " + std::to_string(managed->major), "0 and 1");
    }
    PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");  // the deleter is ours to call
    owner_ = owner_of(managed);
    read_flags(managed->flags);
    read(managed->tensor);
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0) {
    auto* const managed =
        static_cast<DlManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    owner_ = owner_of(managed);
    read(managed->tensor);
  } else {
    throw py::type_error(std::string(name) + ": __dlpack__ gave no DLPack capsule");
  }
}

void Tensor::read_flags(std::uint64_t flags) {
  read_only_ = (flags & kReadOnly) != 0;
  if ((flags & kIsCopied) != 0) refuse("a copy", "tensors that can be exported as they are");
}

void Tensor::read(const DlTensor& tensor) {
  data_ =
      tensor.data == nullptr ? nullptr : static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
  dtype_ = word_of(tensor.dtype);
  element_bits_ = tensor.dtype.bits * tensor.dtype.lanes;
  device_type_ = tensor.device.type;
  device_id_ = tensor.device.id;
  shape_.assign(tensor.shape, tensor.shape + tensor.ndim);
  strides_ = dense_strides(shape_);
  for (std::size_t i = 0; tensor.strides != nullptr && i < shape_.size(); ++i) {
    if (shape_[i] > 1) strides_[i] = tensor.strides[i];  // of one element it may be anything
  }
}

void Tensor::refuse(const std::string& has, const std::string& allowed) const {
  throw std::invalid_argument(std::string(name_) + " has " + has + "; allowed: " + allowed);
}

void Tensor::check(const TensorSpec& spec) const {
  if (spec.dtypes.size() != 0 &&
      std::find(spec.dtypes.begin(), spec.dtypes.end(), dtype_) == spec.dtypes.end()) {
    refuse("dtype " + dtype_, join(spec.dtypes));
  }
  const std::vector<std::int64_t> wanted(spec.shape);
  bool fits = wanted.size() == shape_.size();
  for (std::size_t i = 0; fits && i < shape_.size(); ++i) {
    fits = wanted[i] < 0 || wanted[i] == shape_[i];
  }
  if (!fits) refuse("shape " + text_of(shape_), text_of(wanted));
  std::vector<std::int64_t> dense = dense_strides(shape_);
  const char* layout = "C-contiguous";
  std::size_t first = 0;  // axis that must be dense
  if (spec.layout == TensorSpec::Layout::kRows) {
    first = 1;
    layout = "contiguous but for the first axis";
  } else if (spec.layout == TensorSpec::Layout::kInner) {
    first = shape_.empty() ? 0 : shape_.size() - 1;
    layout = "a last stride of 1";
  }
  const bool is_empty = std::find(shape_.begin(), shape_.end(), 0) != shape_.end();
  bool positive = true;  // a stride of 0 or below would make rows of an output overlap
  for (std::size_t i = 0; i < first && i < shape_.size(); ++i) positive &= strides_[i] > 0;
  if (!is_empty &&
      !(positive &&
        std::equal(strides_.begin() + static_cast<std::ptrdiff_t>(std::min(first, shape_.size())),
                   strides_.end(),
                   dense.begin() + static_cast<std::ptrdiff_t>(std::min(first, shape_.size()))))) {
    refuse("shape " + text_of(shape_) + " with strides " + text_of(strides_), layout);
  }
  if (spec.written && read_only_) refuse("read-only memory", "tensors that may be written");
}

std::size_t Tensor::num_bytes() const noexcept {
  std::size_t elements = 1;
  for (const std::int64_t extent : shape_) elements *= static_cast<std::size_t>(extent);
  return elements * static_cast<std::size_t>(element_bits_) / 8;
}

bool Tensor::is_on_cuda() const noexcept {
  return device_type_ == kCuda || device_type_ == kCudaManaged;
}

bool Tensor::is_on_host() const noexcept {
  return device_type_ == kCpu || device_type_ == kCudaHost;
}

std::string Tensor::device() const {
  if (is_on_host()) return "cpu";
  if (is_on_cuda()) return "cuda:" + std::to_string(device_id_);
  return "DLPack device type " + std::to_string(device_type_);
}

DType dtype_of(const std::string& word, const char* name) {
  constexpr std::array kAll = {DType::kFloat32, DType::kBFloat16,   DType::kFloat16,
                               DType::kInt32,   DType::kInt64,      DType::kUInt8,
                               DType::kInt8,    DType::kFloat8E4M3, DType::kFloat8E5M2};
  std::string allowed;
  for (const DType dtype : kAll) {
    if (word == name_of(dtype)) return dtype;
    allowed += std::string(allowed.empty() ? "" : ", ") + name_of(dtype);
  }
  throw std::invalid_argument(std::string(name) + " is '" + word + "'; allowed: " + allowed);
}

Tensor TensorArguments::take(py::handle source, const TensorSpec& spec) {
  Tensor tensor(source, spec.name, stream_);
  tensor.check(spec);
  add(tensor);
  return tensor;
}

Tensor TensorArguments::take_optional(py::handle source, const TensorSpec& spec) {
  return source.is_none() ? Tensor() : take(source, spec);
}

void TensorArguments::add(const Tensor& tensor) {
  if (!tensor.empty()) places_.push_back({tensor.name(), tensor.is_on_cuda(), tensor.device()});
}

void TensorArguments::finish() const {
  const auto first = std::find_if(places_.begin(), places_.end(),
                                  [](const Place& place) { return place.is_on_cuda; });
  const std::string wanted = first == places_.end() ? "a CUDA device" : first->device;
  for (const Place& place : places_) {
    if (place.device != wanted) {
      throw std::invalid_argument(std::string(place.name) + " is on " + place.device +
                                  "; must be on " + wanted);
    }
  }
}

}  // namespace smartspec::python
