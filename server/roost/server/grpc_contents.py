"""Typed tensor contents of gRPC requests, laid out as the bytes that everything behind the transport works with."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from roost.core.errors import InvalidArgument
from roost.core.tensors import DATATYPES, Buffer
from roost.proto import grpc_service_pb2 as pb

_CONTENTS_FIELD = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Datatypes narrower than the field that carries them: numpy's dtype of the field.
_CARRIER = {"INT8": np.dtype("<i4"), "INT16": np.dtype("<i4"), "UINT8": np.dtype("<u4"), "UINT16": np.dtype("<u4")}


def pack_contents(item: pb.ModelInferRequest.InferInputTensor, model_name: str) -> Buffer:
    """Lays typed contents out as bytes.

    Raises:
        InvalidArgument: If they are not in the field of their datatype, or do not fit it.
    """
    field = _CONTENTS_FIELD.get(item.datatype)
    if field is None:
        if item.datatype in DATATYPES:
            raise InvalidArgument(f"input '{item.name}' of type {item.datatype} can only be sent in raw_input_contents")
        raise InvalidArgument(f"input '{item.name}' has the unknown datatype '{item.datatype[:40]}'")
    for descriptor, _ in item.contents.ListFields():
        if descriptor.name != field:
            raise InvalidArgument(
                f"unexpected explicit tensor data for input tensor '{item.name}' for model '{model_name}' of type "
                f"'{item.datatype}': expected {field}, got {descriptor.name}"
            )
    values = getattr(item.contents, field)
    if field == "bytes_contents":
        return _pack_elements(values)
    dtype = DATATYPES[item.datatype].dtype
    assert dtype is not None
    array = np.fromiter(values, _CARRIER.get(item.datatype, dtype), len(values))
    if array.dtype != dtype:
        bounds = np.iinfo(dtype)
        outside = array[(array < bounds.min) | (array > bounds.max)]
        if outside.size:
            raise InvalidArgument(
                f"{outside[0]} in input '{item.name}' does not fit its datatype {item.datatype}: "
                f"expected {bounds.min} to {bounds.max}"
            )
        array = array.astype(dtype)
    return array.tobytes()


def _pack_elements(elements: Iterable[bytes]) -> bytearray:
    """Lays BYTES elements out one after the other; a list of millions of them would cost many times their size."""
    packed = bytearray()
    for element in elements:
        packed += len(element).to_bytes(4, "little")
        packed += element
    return packed
