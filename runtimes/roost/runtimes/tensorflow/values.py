"""Tensors as TensorFlow's library has them, and as the worker link has them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from roost.core.errors import ResourceExhausted
from roost.core.tensors import NO_PARAMETERS, Buffer, Tensor, pack_bytes, to_array
from roost.runtimes.protocol import Place
from roost.runtimes.tensorflow.library import STRING_BYTES, Deallocator, Library

DATATYPES: Mapping[int, str] = {
    1: "FP32",
    2: "FP64",
    3: "INT32",
    4: "UINT8",
    5: "INT16",
    6: "INT8",
    7: "BYTES",
    9: "INT64",
    10: "BOOL",
    14: "BF16",
    17: "UINT16",
    19: "FP16",
    22: "UINT32",
    23: "UINT64",
}
"""Those that the protocol has, by TensorFlow's number."""

OTHER_DATATYPES: Mapping[int, str] = {
    8: "complex64",
    18: "complex128",
    20: "resource",
    21: "variant",
}
"""What error texts call some of the others."""

NUMBERS: Mapping[str, int] = {name: number for number, name in DATATYPES.items()}

_STRING = NUMBERS["BYTES"]
_COPIED_AT_ONCE_BYTES = 64 << 10


class Values:
    """Makes tensors for the library, and reads those that it has made.

    Inputs are copied: the library keeps the memory of a tensor as long as anything of the model refers to it, such as a
    variable, and a run's inputs are gone with the run. The copy is the library's own, and operators may write their
    results there.

    Args:
        library: The library.
    """

    def __init__(self, library: Library) -> None:
        self._call = library.call
        self._texts: dict[int, Any] = {}  # memory of string tensors by address
        self._free_texts = Deallocator(self._forget)  # the library has its address: it must stay

    def make(self, tensor: Tensor) -> int:
        """A ``TF_Tensor`` with a copy of a tensor's elements; the caller's to be freed.

        Raises:
            InvalidArgument: If the bytes do not fill the shape.
            ResourceExhausted: If there is no memory for it.
        """
        array = to_array(tensor)
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        if tensor.datatype == "BYTES" and array.size:
            return self._make_texts(array.reshape(-1).tolist(), dims)
        size = array.nbytes if array.size else 0
        made: int | None = self._call.TF_AllocateTensor(NUMBERS[tensor.datatype], dims, len(dims), size)
        address: int = (self._call.TF_TensorData(made) if made is not None else None) or 0
        if made is None or (size and not address):
            raise ResourceExhausted("not enough memory to run the model")
        if size:
            ctypes.memmove(address, array.__array_interface__["data"][0], size)
        return made

    def read(self, name: str, datatype: str, value: int, place: Place | None) -> Tensor:
        """A copy of what a ``TF_Tensor`` has, where it is wanted if it fits there."""
        call = self._call
        shape = tuple(call.TF_Dim(value, axis) for axis in range(call.TF_NumDims(value)))
        size, address = call.TF_TensorByteSize(value), call.TF_TensorData(value)
        if datatype == "BYTES":
            data: Buffer = self._read_texts(address, size // STRING_BYTES)
        elif place is not None and (place.datatype, place.shape, len(place.memory)) == (datatype, shape, size) and size:
            data = place.memory
            ctypes.memmove(_address_of(data), address, size)
        elif size <= _COPIED_AT_ONCE_BYTES:
            data = ctypes.string_at(address, size) if size else b""
        else:
            large = np.empty(size, np.uint8)
            ctypes.memmove(_address_of(large), address, size)  # lets other threads run meanwhile
            data = large.data
        return Tensor(name, datatype, shape, data, NO_PARAMETERS)

    def free(self, values: Any) -> None:
        """Frees an array of ``TF_Tensor``, as far as it is filled."""
        for value in values:
            if value:
                self._call.TF_DeleteTensor(value)

    def _make_texts(self, texts: list[bytes], dims: Any) -> int:
        size = STRING_BYTES * len(texts)
        memory = ctypes.create_string_buffer(size)  # all zeros are empty texts
        address = ctypes.addressof(memory)
        copy = self._call.TF_StringCopy
        for position, element in zip(range(address, address + size, STRING_BYTES), texts, strict=True):
            copy(position, element, len(element))
        self._texts[address] = memory
        made: int = self._call.TF_NewTensor(_STRING, dims, len(dims), address, size, self._free_texts, None)
        return made

    def _forget(self, address: int, size: int, _: int | None) -> None:
        """Called by the library, in any thread, once nothing refers to a string tensor any more."""
        for position in range(address, address + size, STRING_BYTES):
            self._call.TF_StringDealloc(position)
        self._texts.pop(address, None)

    def _read_texts(self, address: int | None, count: int) -> bytes:
        if not address:
            return b""
        at, length = self._call.TF_StringGetDataPointer, self._call.TF_StringGetSize
        ends = address + count * STRING_BYTES
        return pack_bytes(ctypes.string_at(at(text), length(text)) for text in range(address, ends, STRING_BYTES))


def _address_of(buffer: Any) -> int:
    """Where memory is that is not empty."""
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address
