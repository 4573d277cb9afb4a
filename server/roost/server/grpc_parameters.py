"""Request parameters of gRPC calls: which ones the server consumes, which ones go to the model, which are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from roost.core.errors import InvalidArgument
from roost.core.tensors import ParameterValue

_RESERVED_PREFIX = "triton_"
_RESERVED_NAMES = frozenset({"headers"})
_SHARED_MEMORY_PREFIX = "shared_memory_"
_MAX_INT64 = 2**63 - 1


@dataclass(slots=True)
class RequestParameters:
    """The parameters of a request, sorted by whom they are for.

    Attributes:
        priority: 0 is the model's default; 1 is the highest.
        timeout_s: How long the client wants to wait; infinite if it did not say.
        custom: What the model gets.
    """

    priority: int = 0
    timeout_s: float = math.inf
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
            case "triton_enable_empty_final_response":  # only streams have a final response that may be empty
                _choice(name, value, "bool_param")
            case _:
                result.custom[name] = _custom(name, value)
    return result


def read_tensor_parameters(parameters: Mapping[str, Any], what: str) -> dict[str, ParameterValue]:
    """Reads the parameters of an input or of a requested output.

    Args:
        parameters: Names and ``InferParameter`` messages.
        what: Whose they are, for errors.

    Raises:
        InvalidArgument: If they ask for shared memory or classification, or a value has the wrong type.
    """
    result = {}
    for name, value in parameters.items():
        if name.startswith(_SHARED_MEMORY_PREFIX):
            raise InvalidArgument(f"{what} uses shared memory, which this server does not offer")
        if name == "classification":
            raise InvalidArgument(f"{what} asks for classification, which this server does not offer")
        result[name] = _choice(name, value, "bool_param", "int64_param", "string_param", "double_param")
    return result


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
