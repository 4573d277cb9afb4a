"""The generate extension over REST: flat JSON objects to requests, responses to flat JSON objects. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
from roost.core.errors import InvalidArgument
from roost.core.requests import InferRequest, InferResponse, RequestContext
from roost.core.tensors import DATATYPES, Tensor, TensorSpec, element_count
from roost.server.rest.codec_json import SourceText, flatten, kind, pack_elements, parse_object
from roost.server.rest.codec_json_out import json_parameters, json_pieces
from roost.server.rest.codec_parameters import request_parameters
from roost.server.rest.errors import MalformedRequest


def decode_generate(
    body: memoryview, inputs: Sequence[TensorSpec], *, model_name: str, model_version: str, context: RequestContext
) -> InferRequest:
    """Reads a generate request: keys that are inputs of the model become tensors, all others parameters.

    Args:
        body: The whole body.
        inputs: The model's, batch dimension included.
        model_name: From the path.
        model_version: From the path, empty if it is not there.
        context: The request's context; parameters may bring its deadline closer and set its priority.

    Raises:
        InvalidArgument: Whatever is wrong with the body.
    """
    document = parse_object(body)
    id_ = document.pop("id", "")
    if type(id_) is not str:
        raise MalformedRequest(f"Unable to parse 'id': expected a string, got {kind(id_)}")
    specs = {spec.name: spec for spec in inputs}
    tensors: list[Tensor] = []
    others: dict[str, Any] = {}
    for key, value in _flat(document):
        spec = specs.get(key)
        if spec is None:
            others[key] = value
        else:
            tensors.append(_tensor(spec, value))
    parameters, _ = request_parameters(others, context, SourceText(body))
    return InferRequest(model_name, model_version, context, tensors, id=id_, parameters=parameters)


def _flat(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values; those of a nested ``parameters`` object too."""
    nested = document.get("parameters", {})
    if type(nested) is not dict:
        raise MalformedRequest(f"unable to parse 'parameters': expected an object, got {kind(nested)}")
    for key, value in document.items():
        if key == "parameters":
            continue
        if key in nested:
            raise InvalidArgument(f"'{key}' is given twice, by itself and in 'parameters'")
        yield key, value
    yield from nested.items()


def _tensor(spec: TensorSpec, value: Any) -> Tensor:
    elements, _ = flatten(spec.name, value if type(value) is list else [value])
    shape = _fill(spec, len(elements))
    data = pack_elements(spec.name, DATATYPES[spec.datatype], shape, len(elements), elements)
    return Tensor(spec.name, spec.datatype, shape, data)


def _fill(spec: TensorSpec, count: int) -> tuple[int, ...]:
    """The shape that so many elements have: the last dimension that is not fixed takes them all."""
    fixed = element_count([dim for dim in spec.shape if dim >= 0])
    free = max((axis for axis, dim in enumerate(spec.shape) if dim < 0), default=None)
    rest, surplus = divmod(count, fixed) if fixed else (0, count)
    if surplus or (free is None and count != fixed):
        raise InvalidArgument(f"input '{spec.name}' has shape {list(spec.shape)}, which {count} elements can't fill")
    return tuple(dim if dim >= 0 else rest if axis == free else 1 for axis, dim in enumerate(spec.shape))


def encode_generate(response: InferResponse, id_: str) -> bytes:
    """Writes a response as one flat object, its keys sorted; an output of one element is a scalar.

    Raises:
        InvalidArgument: If an output can't be written as JSON.
    """
    document: dict[str, Any] = json_parameters(response.parameters)
    if id_:
        document["id"] = id_
    document["model_name"] = response.model_name
    document["model_version"] = response.model_version
    for tensor in response.outputs:
        text = b"".join(json_pieces(tensor))
        document[tensor.name] = orjson.Fragment(text[1:-1] if element_count(tensor.shape) == 1 else text)
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
