"""Request parameters of gRPC calls: which ones the server consumes, which ones go to the model, which are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from roost.core.errors import InvalidArgument
from roost.core.requests import RegionSlice, RequestedOutput
from roost.core.tensors import Parameters, ParameterValue

_RESERVED_PREFIX = "triton_"
_RESERVED_NAMES = frozenset({"headers"})
_REGION = "shared_memory_region"
_REGION_SIZE = "shared_memory_byte_size"
_REGION_OFFSET = "shared_memory_offset"
_CLASSIFICATION = "classification"
_CONSUMED_OF_TENSOR = frozenset({_REGION, _REGION_SIZE, _REGION_OFFSET, _CLASSIFICATION})
_MAX_INT64 = 2**63 - 1


@dataclass(slots=True)
class RequestParameters:
    """The parameters of a request, sorted by whom they are for.

    Attributes:
        priority: 0 is the model's default; 1 is the highest.
        timeout_s: How long the client wants to wait; infinite if it did not say.
        wants_empty_final: Whether a stream that ends without an answer shall say so.
        custom: What the model gets.
    """

    priority: int = 0
    timeout_s: float = math.inf
    wants_empty_final: bool = False
    custom: dict[str, ParameterValue] = field(default_factory=dict)


def read_request_parameters(parameters: Mapping[str, Any]) -> RequestParameters:
    """Sorts the parameters of a request.

    Args:
        parameters: Names and ``InferParameter`` messages.

    Raises:
        InvalidArgument: If a name is reserved or a value has the wrong type.
    """
    result = RequestParameters()
    for name, value in parameters.items():
        match name:
            case "priority":
                result.priority = _unsigned(name, value)
            case "timeout":
                timeout_us = _unsigned(name, value)
                result.timeout_s = timeout_us / 1e6 if timeout_us else math.inf
            case "sequence_id":
                result.custom[name] = _choice(name, value, "int64_param", "string_param", "uint64_param")
            case "sequence_start" | "sequence_end":
                result.custom[name] = _choice(name, value, "bool_param")
            case "triton_enable_empty_final_response":
                result.wants_empty_final = bool(_choice(name, value, "bool_param"))
            case _:
                result.custom[name] = _custom(name, value)
    return result


def read_input_parameters(parameters: Mapping[str, Any], name: str) -> tuple[Parameters, RegionSlice | None]:
    """Reads the parameters of an input: those for the model, and where its elements are if in shared memory.

    Args:
        parameters: Names and ``InferParameter`` messages.
        name: The input's.

    Raises:
        InvalidArgument: If a value has the wrong type or makes no sense.
    """
    return _custom_of_tensor(parameters), _region(parameters, f"input '{name}'")


def read_requested_output(name: str, parameters: Mapping[str, Any]) -> RequestedOutput:
    """Reads what is wanted of an output.

    Args:
        name: The output's.
        parameters: Names and ``InferParameter`` messages.

    Raises:
        InvalidArgument: If a value has the wrong type or makes no sense, or two of them contradict each other.
    """
    what = f"output '{name}'"
    region = _region(parameters, what)
    classes = 0
    if _CLASSIFICATION in parameters:
        classes = int(_choice(_CLASSIFICATION, parameters[_CLASSIFICATION], "int64_param"))
        if classes <= 0:
            raise InvalidArgument(f"invalid value {classes} for 'classification' parameter of {what}, expected over 0")
        if region is not None:
            raise InvalidArgument(f"'classification' of {what} can't be combined with shared memory")
    return RequestedOutput(name, True, _custom_of_tensor(parameters), classes, region)


def put_parameter(target: Any, value: ParameterValue) -> None:
    """Writes a value into an ``InferParameter`` message."""
    match value:
        case bool():
            target.bool_param = value
        case int():
            if value > _MAX_INT64:
                target.uint64_param = value
            else:
                target.int64_param = value
        case float():
            target.double_param = value
        case _:
            target.string_param = value


def _custom(name: str, value: Any) -> ParameterValue:
    if name.startswith(_RESERVED_PREFIX) or name in _RESERVED_NAMES:
        raise InvalidArgument(f"parameter '{name}' is reserved and should not be specified")
    return _choice(name, value, "bool_param", "int64_param", "string_param", "double_param")


def _custom_of_tensor(parameters: Mapping[str, Any]) -> Parameters:
    return {
        name: _choice(name, value, "bool_param", "int64_param", "string_param", "double_param")
        for name, value in parameters.items()
        if name not in _CONSUMED_OF_TENSOR
    }


def _region(parameters: Mapping[str, Any], what: str) -> RegionSlice | None:
    # Looking a missing key up in a map of protobuf would insert it.
    if _REGION not in parameters:
        for name in (_REGION_SIZE, _REGION_OFFSET):
            if name in parameters:
                raise InvalidArgument(f"'{name}' of {what} is given without '{_REGION}'")
        return None
    if _REGION_SIZE not in parameters:
        raise InvalidArgument(f"'{_REGION_SIZE}' must be specified along with '{_REGION}' for {what}")
    return RegionSlice(
        str(_choice(_REGION, parameters[_REGION], "string_param")),
        _unsigned(_REGION_SIZE, parameters[_REGION_SIZE]),
        _unsigned(_REGION_OFFSET, parameters[_REGION_OFFSET]) if _REGION_OFFSET in parameters else 0,
    )


def _unsigned(name: str, value: Any) -> int:
    number = _choice(name, value, "int64_param", "uint64_param")
    if not isinstance(number, int) or number < 0:
        raise InvalidArgument(f"invalid value {number} for '{name}' parameter, expected 0 or more")
    return number


def _choice(name: str, value: Any, *allowed: str) -> ParameterValue:
    chosen = value.WhichOneof("parameter_choice")
    if chosen not in allowed:
        raise InvalidArgument(
            f"invalid value type for '{name}' parameter, expected {' or '.join(allowed)}, got {chosen or 'nothing'}"
        )
    result: ParameterValue = getattr(value, chosen)
    return result
