"""The request parameters of the protocol: which ones the server consumes, and what may be in the others."""

from __future__ import annotations

from typing import Any

from roost.core.errors import InvalidArgument
from roost.core.requests import RequestContext
from roost.core.tensors import ParameterValue
from roost.server.rest.codec_json import SourceText, kind
from roost.server.rest.errors import MalformedRequest

_INT64_MIN = -(2**63)
_UINT64_MAX = 2**64 - 1
_WIDE = 2.0**63
_BOOLEANS = frozenset({"sequence_start", "sequence_end", "binary_data_output"})
_UNSIGNED = frozenset({"priority", "timeout"})


def check_parameters(value: object, where: str, text: SourceText) -> dict[str, Any]:
    """Checks the type of a ``parameters`` object and of its values.

    Args:
        value: The object.
        where: Whose parameters they are, for messages.
        text: The JSON that it was parsed from.

    Raises:
        InvalidArgument: If it is not an object of strings, numbers and booleans.
    """
    if type(value) is not dict:
        raise MalformedRequest(f"unable to parse 'parameters' of {where}: expected an object, got {kind(value)}")
    for key, item in value.items():
        if type(item) not in (str, bool, int, float):
            raise InvalidArgument(
                f"parameter '{key}' of {where} has invalid type: expected a string, number or boolean, got {kind(item)}"
            )
        if type(item) is int and not _INT64_MIN <= item <= _UINT64_MAX:
            raise InvalidArgument(f"parameter '{key}' of {where} does not fit 64 bits")
        if type(item) is float and abs(item) >= _WIDE:
            text.refuse_wide_integers()
    return value


def request_parameters(
    value: object, context: RequestContext, text: SourceText
) -> tuple[dict[str, ParameterValue], bool]:
    """Takes the request's parameters apart.

    ``timeout`` (microseconds) can only bring the context's deadline closer; it and ``priority`` go into the context.

    Args:
        value: The ``parameters`` object.
        context: The request's context.
        text: The JSON that it was parsed from.

    Returns:
        The parameters for the model, and ``binary_data_output``.

    Raises:
        InvalidArgument: If one is reserved or has the wrong type.
    """
    parameters = check_parameters(value, "the request", text)
    rest: dict[str, ParameterValue] = {}
    binary = False
    for key, item in parameters.items():
        _check_parameter(key, item)
        if key == "timeout":
            set_timeout(item, context)
        elif key == "priority":
            context.priority = item
        elif key == "binary_data_output":
            binary = item
        else:
            rest[key] = item
    return rest, binary


def set_timeout(timeout_us: int, context: RequestContext) -> None:
    """Brings the deadline closer, unless the timeout is 0."""
    if timeout_us:
        context.timeout_s = timeout_us / 1e6
        context.deadline = min(context.deadline, context.received + context.timeout_s)


def _check_parameter(key: str, item: ParameterValue) -> None:
    if key in _BOOLEANS:
        if type(item) is not bool:
            raise MalformedRequest(f"unable to parse parameter '{key}': expected a boolean, got {kind(item)}")
    elif key in _UNSIGNED:
        _check_unsigned(key, item, "an unsigned integer")
    elif key == "sequence_id":
        if type(item) is not str:
            _check_unsigned(key, item, "an unsigned integer or a string")
    elif key == "headers" or key.startswith("triton_"):
        raise InvalidArgument(f"parameter '{key}' is reserved: it can't be set by a request")


def _check_unsigned(key: str, item: ParameterValue, expected: str) -> None:
    if type(item) is not int or item < 0:
        got = f"{item}" if type(item) is int else kind(item)
        raise MalformedRequest(f"unable to parse parameter '{key}': expected {expected}, got {got}")
