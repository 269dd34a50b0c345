# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Tensors that export whatever a test wants them to: devices that this machine lacks, element types
that NumPy has not, capsules of either DLPack version. The memory is NumPy's."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CPU, CUDA, CUDA_HOST = 1, 2, 3
CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2 = 4, 10, 12


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_exported: list[Any] = []  # what was exported must live until its deleter has returned; for good


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Exported:
    """`array` as a tensor on another device. `deleted` counts calls of the deleter."""

    def __init__(
        self,
        array: np.ndarray[Any, Any],
        *,
        device: tuple[int, int] = (CUDA, 0),
        code: int | None = None,
        versioned: bool = True,
        version: tuple[int, int] = (1, 1),
        flags: int = 0,
        null_strides: bool = False,
        byte_offset: int = 0,
    ) -> None:
        self.array = array
        self.device = device
        self.versioned = versioned
        self.calls: list[dict[str, Any]] = []
        self.deleted = 0
        rank = array.ndim
        self._shape = (ctypes.c_int64 * rank)(*array.shape)
        self._strides = (ctypes.c_int64 * rank)(*(s // array.itemsize for s in array.strides))
        tensor = _Tensor(
            array.ctypes.data, *device, rank,
            CODES[array.dtype.kind] if code is None else code, 8 * array.itemsize, 1,
            self._shape, None if null_strides else self._strides, byte_offset,
        )  # fmt: skip
        self._deleter = _Deleter(self._delete)
        self._managed = (
            _ManagedVersioned(*version, None, self._deleter, flags, tensor)
            if versioned
            else _Managed(tensor, None, self._deleter)
        )

    def _delete(self, _managed: int) -> None:
        self.deleted += 1

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        _exported.append(self)
        if not self.versioned and "max_version" in arguments:
            raise TypeError("unexpected keyword argument 'max_version'")
        name = b"dltensor_versioned" if self.versioned else b"dltensor"
        return _new_capsule(ctypes.addressof(self._managed), name, None)


_Export = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))
_Stream = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p)
)


class _ExchangeApi(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("export_tensor", _Export),
        ("import_tensor", ctypes.c_void_p),
        ("view_tensor", ctypes.c_void_p),
        ("current_stream", _Stream),
    )


class ExportedInC(Exported):
    """Offers DLPack's C functions as well. `current_stream`: the framework's, on every device."""

    current_stream = 0

    @staticmethod
    def _export(address: int, out: Any) -> int:
        self = ctypes.cast(address, ctypes.py_object).value
        _exported.append(self)
        out[0] = ctypes.addressof(self._managed)
        return 0

    @staticmethod
    def _stream(_type: int, _device: int, out: Any) -> int:
        out[0] = ExportedInC.current_stream
        return 0


_API_NAME = b"dlpack_exchange_api"  # capsules keep the pointer
_api = _ExchangeApi(
    1, 3, None, None, _Export(ExportedInC._export), None, None, _Stream(ExportedInC._stream)
)
ExportedInC.__dlpack_c_exchange_api__ = _new_capsule(  # type: ignore[attr-defined]
    ctypes.addressof(_api), _API_NAME, None
)
