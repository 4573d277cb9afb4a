"""What an inference request asks for: its ``outputs``, and places in shared memory. Pure."""

from __future__ import annotations

from typing import Any

from roost.core.errors import InvalidArgument
from roost.core.requests import RegionSlice, RequestedOutput
from roost.core.tensors import Parameters
from roost.server.rest.codec_json import SourceText, check_depth, kind
from roost.server.rest.codec_parameters import check_parameters
from roost.server.rest.errors import MalformedRequest

REGION = "shared_memory_region"
_REGION_OFFSET = "shared_memory_offset"
_REGION_SIZE = "shared_memory_byte_size"
REGION_KEYS = frozenset({REGION, _REGION_OFFSET, _REGION_SIZE})
_OUTPUT_KEYS = frozenset({"name", "parameters"})
_CONSUMED = REGION_KEYS | {"binary_data", "classification"}
_UINT64_MAX = 2**64 - 1


def check_unknown(value: dict[str, Any], known: frozenset[str], depth: int) -> None:
    """Keys that nobody reads are ignored, but may not nest without end."""
    if value.keys() <= known:
        return
    for key in value.keys() - known:
        check_depth(value[key], depth)


def tensor_name(item: dict[str, Any], where: str) -> str:
    """The name of an input or output.

    Raises:
        MalformedRequest: If it has none.
    """
    name = item.get("name")
    if type(name) is not str or not name:
        got = "an empty one" if name == "" else kind(name) if "name" in item else "nothing"
        raise MalformedRequest(f"Unable to parse 'name' in '{where}': expected a string, got {got}")
    return name


def region_slice(parameters: Parameters, where: str) -> RegionSlice:
    """The place in shared memory that the parameters of a tensor name.

    Raises:
        MalformedRequest: If one of them has the wrong type.
        InvalidArgument: If region or size are missing.
    """
    region = parameters.get(REGION)
    if type(region) is not str:
        if region is None:
            raise InvalidArgument(f"{where} has shared memory parameters without '{REGION}'")
        raise MalformedRequest(f"unable to parse '{REGION}' of {where}: expected a string, got {kind(region)}")
    if _REGION_SIZE not in parameters:
        raise InvalidArgument(f"{where} in shared memory must set '{_REGION_SIZE}'")
    return RegionSlice(region, _unsigned(parameters, _REGION_SIZE, where), _unsigned(parameters, _REGION_OFFSET, where))


def _unsigned(parameters: Parameters, key: str, where: str) -> int:
    value = parameters.get(key, 0)
    if type(value) is not int or not 0 <= value <= _UINT64_MAX:
        got = value if type(value) is int else kind(value)
        raise MalformedRequest(f"unable to parse '{key}' of {where}: expected an unsigned integer, got {got}")
    return value


def decode_outputs(items: object, text: SourceText) -> list[RequestedOutput]:
    """Reads ``outputs``.

    Args:
        items: Its value.
        text: The JSON that it was parsed from.

    Raises:
        InvalidArgument: Whatever is wrong with them.
    """
    if type(items) is not list:
        raise MalformedRequest(f"Unable to parse 'outputs': expected an array, got {kind(items)}")
    outputs: list[RequestedOutput] = []
    names: set[str] = set()
    for item in items:
        if type(item) is not dict:
            raise MalformedRequest(f"Unable to parse 'outputs': expected objects, got {kind(item)}")
        check_unknown(item, _OUTPUT_KEYS, 4)
        name = tensor_name(item, "outputs")
        if name in names:
            raise InvalidArgument(f"output '{name}' already exists in request")
        names.add(name)
        outputs.append(_decode_output(name, item, text))
    return outputs


def _decode_output(name: str, item: dict[str, Any], text: SourceText) -> RequestedOutput:
    if "parameters" not in item:
        return RequestedOutput(name)
    parameters = check_parameters(item["parameters"], f"output '{name}'", text)
    binary = parameters.get("binary_data", False)
    if type(binary) is not bool:
        raise MalformedRequest(
            f"unable to parse 'binary_data' of output '{name}': expected a boolean, got {kind(binary)}"
        )
    output = RequestedOutput(name, binary)
    if len(parameters) > ("binary_data" in parameters):
        _read_rest(output, parameters)
    return output


def _read_rest(output: RequestedOutput, parameters: Parameters) -> None:
    """Reads what plain requests do not have."""
    where = f"output '{output.name}'"
    output.parameters = {key: value for key, value in parameters.items() if key not in _CONSUMED}
    if "classification" in parameters:
        output.classification = _unsigned(parameters, "classification", where)
    if parameters.keys() & REGION_KEYS:
        output.region = region_slice(parameters, where)
        for key, is_set in (("binary_data", output.binary), ("classification", output.classification)):
            if is_set:
                raise InvalidArgument(f"{where} can't set both '{key}' and '{REGION}'")
