"""Step 1 of the data path over REST: bodies to requests. Pure.

A body is JSON, or JSON of ``Inference-Header-Content-Length`` bytes followed by the elements of the inputs that have
a ``binary_data_size``. Tensors of the second kind are views on the body; those in shared memory are read by the data
plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from roost.core.errors import InvalidArgument
from roost.core.requests import InferRequest, RegionSlice, RequestContext
from roost.core.tensors import DATATYPES, DataType, Parameters, Tensor, element_count
from roost.server.rest.codec_json import SourceText, kind, pack_elements, parse_json
from roost.server.rest.codec_outputs import (
    REGION,
    REGION_KEYS,
    check_unknown,
    decode_outputs,
    region_slice,
    tensor_name,
)
from roost.server.rest.codec_parameters import check_parameters, request_parameters
from roost.server.rest.errors import MalformedRequest

HEADER_LENGTH = "Inference-Header-Content-Length"
_REQUEST_KEYS = frozenset({"id", "parameters", "inputs", "outputs"})
_INPUT_KEYS = frozenset({"name", "datatype", "shape", "parameters", "data"})
_MAX_HEADER_LENGTH_DIGITS = 18
_NO_PARAMETERS: dict[str, Any] = {}


@dataclass(slots=True)
class RestInferRequest(InferRequest):
    """A request over REST; ``binary_by_default`` holds for the outputs if none is listed."""

    binary_by_default: bool = False


def parse_header_length(text: str | None) -> int | None:
    """Reads the Inference-Header-Content-Length header.

    Raises:
        InvalidArgument: If it is not a number that a length can be.
    """
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= _MAX_HEADER_LENGTH_DIGITS:
        return int(text)
    raise InvalidArgument(f"{HEADER_LENGTH} should be in range 0 to the length of the body, got '{text[:40]}'")


def decode_infer(
    body: memoryview, header_length: int | None, *, model_name: str, model_version: str, context: RequestContext
) -> RestInferRequest:
    """Reads an inference request; raw requests (a header length of 0) go to ``decode_raw``.

    Args:
        body: The whole body, not compressed; binary tensors are views on it.
        header_length: How many bytes of it are JSON; None: all.
        model_name: From the path.
        model_version: From the path, empty if it is not there.
        context: The request's context; parameters may bring its deadline closer and set its priority.

    Raises:
        InvalidArgument: Whatever is wrong with the body.
    """
    if header_length is None:
        header_length = len(body)
    elif header_length > len(body):
        raise InvalidArgument(f"{HEADER_LENGTH} should be in range 0 to {len(body)}, got {header_length}")
    return infer_of(parse_json(body[:header_length]), body, header_length, model_name, model_version, context)


def infer_of(
    document: object,
    body: memoryview,
    header_length: int,
    model_name: str,
    model_version: str,
    context: RequestContext,
) -> RestInferRequest:
    """The same for a body whose JSON is parsed already."""
    if type(document) is not dict:
        raise MalformedRequest(f"unable to parse the request JSON: expected an object, got {kind(document)}")
    check_unknown(document, _REQUEST_KEYS, 2)
    text = SourceText(body[:header_length])
    id_ = document.get("id", "")
    if type(id_) is not str:
        raise MalformedRequest(f"Unable to parse 'id': expected a string, got {kind(id_)}")
    parameters: Parameters = _NO_PARAMETERS
    binary = False
    if "parameters" in document:
        parameters, binary = request_parameters(document["parameters"], context, text)
    regions: dict[str, RegionSlice] = {}
    inputs = _decode_inputs(document, text, body[header_length:], model_name, regions)
    outputs = decode_outputs(document["outputs"], text) if "outputs" in document else []
    return RestInferRequest(
        model_name,
        model_version,
        context,
        inputs,
        outputs,
        id_,
        parameters,
        regions=regions,
        binary_by_default=binary,
    )


def _decode_inputs(
    document: dict[str, Any], text: SourceText, binary: memoryview, model_name: str, regions: dict[str, RegionSlice]
) -> list[Tensor]:
    """The inputs; where those in shared memory are goes into ``regions``."""
    items = document.get("inputs")
    if type(items) is not list:
        got = kind(items) if "inputs" in document else "nothing"
        raise MalformedRequest(f"Unable to parse 'inputs': expected an array, got {got}")
    tensors: list[Tensor] = []
    names: set[str] = set()
    position = 0
    for item in items:
        tensor, taken = _decode_input(item, text, binary[position:], model_name, regions)
        if tensor.name in names:
            raise InvalidArgument(f"input '{tensor.name}' already exists in request")
        names.add(tensor.name)
        tensors.append(tensor)
        position += taken
    if position != len(binary):
        raise InvalidArgument(
            f"unexpected additional input data for model '{model_name}': "
            f"the inputs announce {position} bytes of binary data, got {len(binary)}"
        )
    return tensors


def _decode_input(
    item: object, text: SourceText, binary: memoryview, model_name: str, regions: dict[str, RegionSlice]
) -> tuple[Tensor, int]:
    """One input, and how many bytes of the binary part are its own."""
    if type(item) is not dict:
        raise MalformedRequest(f"Unable to parse 'inputs': expected objects, got {kind(item)}")
    check_unknown(item, _INPUT_KEYS, 4)
    name = tensor_name(item, "inputs")
    datatype = _datatype(item, name)
    shape, count = _shape(item, name)
    parameters: dict[str, Any] = _NO_PARAMETERS
    if "parameters" in item:
        parameters = check_parameters(item["parameters"], f"input '{name}'", text)
    _check_source(name, item, parameters)
    if "data" in item:
        return Tensor(
            name, datatype.name, shape, pack_elements(name, datatype, shape, count, item["data"]), parameters
        ), 0
    if REGION in parameters:
        regions[name] = region_slice(parameters, f"input '{name}'")
        others = {key: value for key, value in parameters.items() if key not in REGION_KEYS}
        return Tensor(name, datatype.name, shape, b"", others), 0
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise MalformedRequest(f"unable to parse 'binary_data_size' of input '{name}': expected an unsigned integer")
    if size > len(binary):
        raise InvalidArgument(
            f"unexpected size for input '{name}', expecting {size - len(binary)} additional bytes "
            f"for model '{model_name}'"
        )
    others = {key: value for key, value in parameters.items() if key != "binary_data_size"}
    return Tensor(name, datatype.name, shape, binary[:size], others), size


def _datatype(item: dict[str, Any], name: str) -> DataType:
    text = item.get("datatype")
    datatype = DATATYPES.get(text) if type(text) is str else None
    if datatype is None:
        got = f"'{text[:40]}'" if type(text) is str else kind(text) if "datatype" in item else "nothing"
        raise InvalidArgument(f"invalid datatype for input '{name}': expected one of {', '.join(DATATYPES)}, got {got}")
    return datatype


def _shape(item: dict[str, Any], name: str) -> tuple[tuple[int, ...], int]:
    """The shape and its number of elements."""
    dims = item.get("shape")
    if type(dims) is not list:
        got = kind(dims) if "shape" in item else "nothing"
        raise MalformedRequest(f"Unable to parse 'shape' of input '{name}': expected an array, got {got}")
    for dim in dims:
        if type(dim) is not int:
            raise MalformedRequest(f"Unable to parse 'shape' of input '{name}': expected integers, got {kind(dim)}")
    shape = tuple(dims)
    try:
        return shape, element_count(shape)
    except InvalidArgument as error:
        wrong = MalformedRequest if shape and min(shape) < 0 else InvalidArgument
        raise wrong(f"input '{name}': {error.message}") from None


def _check_source(name: str, item: dict[str, Any], parameters: Parameters) -> None:
    """An input's elements come from exactly one place."""
    if "data" in item and not parameters:
        return
    sources = [f"'{key}'" for key in ("binary_data_size", REGION) if key in parameters]
    if "data" in item:
        sources.append("'data'")
    if len(sources) != 1:
        got = f"{' and '.join(sources)} are set" if sources else "no field is set"
        raise InvalidArgument(
            f"input '{name}' must set only one of 'data' and the parameters 'binary_data_size' and "
            f"'shared_memory_region'. But {got}"
        )
    if REGION not in parameters and not REGION_KEYS.isdisjoint(parameters):
        raise InvalidArgument(f"input '{name}' has shared memory parameters without '{REGION}'")
