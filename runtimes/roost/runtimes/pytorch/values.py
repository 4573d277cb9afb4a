"""Tensors of the protocol as PyTorch's, on the same memory, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from roost.core.errors import Internal, InvalidArgument
from roost.core.tensors import DATATYPES, Tensor, from_array, to_array
from roost.runtimes.protocol import Place
from roost.runtimes.pytorch.naming import Argument, Form

DATATYPE_OF: Mapping[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.float32: "FP32",
    torch.float64: "FP64",
    torch.bfloat16: "BF16",
}
"""The protocol's names of PyTorch's datatypes; those that it lacks are not served."""

_TENSOR = Form.TENSOR  # members are slow to look up


def to_value(tensor: Tensor, argument: Argument) -> Any:
    """What a program is given for an input: a tensor on the input's own memory, unless the program would change that.

    Raises:
        InvalidArgument: If the bytes do not fill the shape, or there are several values where one is wanted.
    """
    array = to_array(tensor)
    if argument.form is _TENSOR:
        value = torch.from_numpy(array.copy() if argument.is_changed else array)
        return value.view(torch.bfloat16) if tensor.datatype == "BF16" else value
    if argument.form is Form.TEXTS:
        return [_text(element, tensor.name) for element in array.reshape(-1)]
    if array.size != 1:
        raise InvalidArgument(f"input '{tensor.name}' is one value for the whole run, and has {array.size}")
    value = array.reshape(-1)[0]
    match argument.form:
        case Form.TEXT:
            return _text(value, tensor.name)
        case Form.FLAG:
            return bool(value)
        case Form.INTEGER:
            return int(value)
        case _:
            return float(value)


def leaves(result: Any) -> Iterator[Any]:
    """The results of a run in order, however they are nested in tuples and lists; a list of texts is one of them."""
    if isinstance(result, tuple | list) and not _is_texts(result):
        for part in result:
            yield from leaves(part)
    else:
        yield result


def to_output(name: str, datatype: str, value: Any, place: Place | None, *, is_kept: bool) -> Tensor:
    """A result as an output, in its place if that fits.

    Args:
        name: The output's name.
        datatype: What it has to be.
        value: What the program has given.
        place: Where it is wanted.
        is_kept: Whether the program may keep the tensor and write to it later.

    Raises:
        Internal: If it is something else.
    """
    if isinstance(value, bool | int | float):
        value = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    if isinstance(value, str) or (isinstance(value, list | tuple) and _is_texts(value)):
        return _texts(name, datatype, value)
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.dtype not in DATATYPE_OF:
        what = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise Internal(f"output '{name}' of the model is a {what}, which can't be served")
    if DATATYPE_OF[value.dtype] != datatype:
        raise Internal(f"output '{name}' of the model is {DATATYPE_OF[value.dtype]}, not {datatype} as declared")
    return _output(name, datatype, value.detach(), place, is_kept)


def _output(name: str, datatype: str, value: torch.Tensor, place: Place | None, is_kept: bool) -> Tensor:
    shape = tuple(value.shape)
    if place is not None and place.datatype == datatype and place.shape == shape and value.numel():
        # Copied here, once, wherever the elements lie: what is not in its place the worker has to copy there.
        memory = torch.frombuffer(place.memory, dtype=value.dtype).view(shape)
        memory.copy_(value)
        return Tensor(name, datatype, shape, place.memory)
    if datatype == "BF16":
        value = value.contiguous().view(torch.uint16)
    array = value.resolve_neg().cpu().numpy()
    return from_array(name, datatype, array.copy() if is_kept else array)


def _texts(name: str, datatype: str, value: Any) -> Tensor:
    if datatype != "BYTES":
        raise Internal(f"output '{name}' of the model is text, not {datatype} as declared")
    elements = np.array([value] if isinstance(value, str) else list(value), dtype=object)
    return from_array(name, DATATYPES[datatype].name, elements)


def _is_texts(value: Any) -> bool:
    return bool(value) and all(isinstance(part, str) for part in value)


def _text(element: bytes, name: str) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"input '{name}' has an element that is not UTF-8") from None
