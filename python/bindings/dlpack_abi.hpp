// SPDX-FileCopyrightText: The SmartSpec authors
// SPDX-License-Identifier: Apache-2.0
// The DLPack 1.x ABI, after its specification: the tensor, its two owners, and the table of C
// functions that frameworks offer since 1.3 (__dlpack_c_exchange_api__).
#pragma once

#include <cstdint>

namespace smartspec::python::dlpack {

struct DlDevice {
  std::int32_t type;
  std::int32_t id;
};
struct DlDataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  std::int32_t ndim;
  DlDataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // elements; null: dense (before 1.2)
  std::uint64_t byte_offset;
};
struct DlManagedTensor {  // capsule "dltensor"
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedTensor*);
};
struct DlManagedTensorVersioned {  // capsule "dltensor_versioned"
  std::uint32_t major;
  std::uint32_t minor;
  void* context;
  void (*deleter)(DlManagedTensorVersioned*);
  std::uint64_t flags;
  DlTensor tensor;
};
inline constexpr std::uint64_t kReadOnly = 1;  // flags
inline constexpr std::uint64_t kIsCopied = 2;
enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };

/// Capsule "dlpack_exchange_api" on a tensor's type. The functions return 0, or -1 with a Python
/// error set; none of them orders streams.
struct DlExchangeApi {
  std::uint32_t major;
  std::uint32_t minor;
  DlExchangeApi* previous;
  void (*allocate)();  // signature of no use here
  int (*export_tensor)(void* object, DlManagedTensorVersioned** out);
  void (*import_tensor)();
  void (*view_tensor)();
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

}  // namespace smartspec::python::dlpack
