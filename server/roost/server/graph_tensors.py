"""Tensors between the steps of inference graphs: what of an answer is whose input. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from roost.core.errors import InvalidArgument
from roost.core.requests import RequestContext
from roost.core.tensors import DATATYPES, Tensor, TensorSpec, unpack_bytes
from roost.server.rest.codec_json import parse_json
from roost.server.rest.codec_json_out import json_numbers
from roost.server.rest.v1_codec import predict_of
from roost.server.rest.v1_response import encode_predictions


def size_bytes_of(tensors: Sequence[Tensor]) -> int:
    """What the elements of tensors take."""
    return sum(memoryview(tensor.data).nbytes for tensor in tensors)


def named(tensor: Tensor, name: str) -> Tensor:
    """A tensor with another name, whose elements are the same memory."""
    return Tensor(name, tensor.datatype, tensor.shape, tensor.data)


def inputs_of(tensors: Sequence[Tensor], specs: Sequence[TensorSpec], model: str) -> list[Tensor]:
    """What a model takes of an answer: the tensors with names of its inputs, or the only one as its only input.

    Args:
        tensors: The answer's.
        specs: The inputs of the model.
        model: Its name.

    Raises:
        InvalidArgument: If it takes none of them.
    """
    names = {spec.name for spec in specs}
    chosen = [tensor for tensor in tensors if tensor.name in names]
    if chosen:
        return [named(tensor, tensor.name) for tensor in chosen]
    required = [spec.name for spec in specs if not spec.optional] or list(names)
    if len(tensors) == 1 and len(required) == 1:
        return [named(tensors[0], required[0])]
    given = ", ".join(f"'{tensor.name}'" for tensor in tensors) or "nothing"
    wanted = ", ".join(f"'{spec.name}'" for spec in specs) or "nothing"
    raise InvalidArgument(f"model '{model}' takes {wanted}, and the step before has answered {given}")


def have_datatypes(tensors: Sequence[Tensor], specs: Sequence[TensorSpec]) -> bool:
    """Whether tensors have the datatypes that a model takes."""
    datatypes = {spec.name: spec.datatype for spec in specs if not spec.lenient}
    return all(datatypes.get(tensor.name, tensor.datatype) == tensor.datatype for tensor in tensors)


def retyped(tensors: Sequence[Tensor], specs: Sequence[TensorSpec], model: str) -> list[Tensor]:
    """Tensors with the datatypes that a model takes, as if they had gone through JSON of v1, which knows none.

    Raises:
        InvalidArgument: If their elements do not fit.
    """
    text = b"".join(encode_predictions(tensors, in_rows=False))
    values = parse_json(text)["outputs"]
    columns = {tensors[0].name: values} if len(tensors) == 1 else values
    context = RequestContext(0.0)  # without parameters nobody looks at it
    return predict_of({"inputs": columns}, memoryview(text), specs, model, "", context).inputs


def selected(tensors: Sequence[Tensor], wanted: Sequence[str], graph: str) -> list[Tensor]:
    """The tensors of an answer that are asked for; all if none is named.

    Raises:
        InvalidArgument: If there is no such tensor.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    for name in wanted:
        if name not in by_name:
            given = ", ".join(by_name) or "none"
            raise InvalidArgument(f"unexpected inference output '{name}' for model '{graph}', it has answered {given}")
    return [by_name[name] for name in wanted] if wanted else list(tensors)


def as_json(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Tensors of a request that nobody has checked yet, as conditions see them: flat, and what is not UTF-8 replaced.

    Raises:
        InvalidArgument: If elements do not fill a shape.
    """
    documents = []
    for tensor in tensors:
        head = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        documents.append({**head, "data": _elements(tensor)})
    return documents


def _elements(tensor: Tensor) -> list[Any]:
    if tensor.datatype == "BYTES":
        return [element.decode("utf-8", "replace") for element in unpack_bytes(tensor.data)]
    try:
        elements: list[Any] = json_numbers(tensor).tolist() if tensor.datatype in DATATYPES else []
    except ValueError:
        raise InvalidArgument(
            f"unexpected number of bytes for input '{tensor.name}', its shape is {list(tensor.shape)}"
        ) from None
    return elements
