"""How errors leave over gRPC: the total map of codes to statuses, and the one place where a call is aborted."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio
from roost.core.errors import Code, LoadFailed, PollFailed, RegionTooSmall, RoostError

_CORE_LOG = logging.getLogger("grpc._cython.cygrpc")  # what grpc.aio itself has to say

STATUS_OF_CODE: Mapping[Code, grpc.StatusCode] = {
    Code.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Code.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Code.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.CANCELLED: grpc.StatusCode.CANCELLED,
    Code.ABORTED: grpc.StatusCode.ABORTED,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Code.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Code.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
}

# Triton knows fewer reasons; where it has several statuses for one of ours, the one its clients meet most.
_TRITON_STATUS_OF_CODE: Mapping[Code, grpc.StatusCode] = {
    **STATUS_OF_CODE,
    Code.FAILED_PRECONDITION: grpc.StatusCode.UNAVAILABLE,
    Code.RESOURCE_EXHAUSTED: grpc.StatusCode.UNAVAILABLE,
    Code.DEADLINE_EXCEEDED: grpc.StatusCode.UNAVAILABLE,
    Code.PERMISSION_DENIED: grpc.StatusCode.UNAVAILABLE,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAVAILABLE,
    Code.ABORTED: grpc.StatusCode.INTERNAL,
}
_TRITON_STATUS_OF_METHOD: Mapping[tuple[str, Code], grpc.StatusCode] = {
    ("ModelStatistics", Code.NOT_FOUND): grpc.StatusCode.INVALID_ARGUMENT,
    ("TraceSetting", Code.NOT_FOUND): grpc.StatusCode.INVALID_ARGUMENT,
    ("TraceSetting", Code.FAILED_PRECONDITION): grpc.StatusCode.INVALID_ARGUMENT,
    ("LogSettings", Code.INVALID_ARGUMENT): grpc.StatusCode.UNAVAILABLE,
    ("SystemSharedMemoryRegister", Code.NOT_FOUND): grpc.StatusCode.INTERNAL,
}
_TRITON_STATUS_OF_ERROR: Mapping[type[RoostError], grpc.StatusCode] = {
    RegionTooSmall: grpc.StatusCode.INTERNAL,
    PollFailed: grpc.StatusCode.INTERNAL,
    LoadFailed: grpc.StatusCode.INVALID_ARGUMENT,
}

# Timers may be this early.
_TIMER_SLACK_S = 0.005

# Clients refuse metadata over 8 KiB at random, and percent-encoding may triple a message.
_MAX_DETAILS_BYTES = 2400


def status_of(error: RoostError, method: str = "", compat_triton: bool = False) -> grpc.StatusCode:
    """The status of an error.

    Args:
        error: The error.
        method: Which method failed, without its service.
        compat_triton: Whether it is to be the status that Triton has for it.
    """
    if not compat_triton:
        return STATUS_OF_CODE[error.code]
    by_error = _TRITON_STATUS_OF_ERROR.get(type(error))
    return by_error or _TRITON_STATUS_OF_METHOD.get((method, error.code)) or _TRITON_STATUS_OF_CODE[error.code]


def as_value(error: RoostError) -> RoostError:
    """Makes a caught error one that can be kept.

    Its traceback holds the frames it went through and with them the request's bytes; a frame that keeps the error
    as well is a cycle, and megabytes would stay until the garbage collector comes by.
    """
    return error.with_traceback(None)


def details_of(error: RoostError) -> str:
    """The message of an error, short enough for a status."""
    encoded = error.message.encode(errors="replace")
    if len(encoded) <= _MAX_DETAILS_BYTES:
        return encoded.decode()
    return encoded[:_MAX_DETAILS_BYTES].decode(errors="ignore") + "..."


def trailing_metadata_of(error: RoostError) -> tuple[tuple[str, str], ...]:
    """When to try again, in the two forms that clients look for; empty if it is not known."""
    if error.retry_after_s is None:
        return ()
    delay_ms = str(max(0, math.ceil(error.retry_after_s * 1000)))
    return (("retry-after-ms", delay_ms), ("grpc-retry-pushback-ms", delay_ms))


def log_ended_calls_quietly() -> None:
    """Keeps calls that the core has ended itself out of the log.

    It ends one whose message is over the limit, for instance. If the handler returns before grpc.aio has heard of it,
    grpc.aio fails to send the status and logs that as an error with a traceback, though only the client did wrong.
    """
    _CORE_LOG.addFilter(_is_no_ended_call)


def _is_no_ended_call(record: logging.LogRecord) -> bool:
    failure = record.exc_info[1] if record.exc_info else None
    return not isinstance(failure, grpc.aio.InternalError)


async def abort(context: Any, error: RoostError, status: grpc.StatusCode | None = None) -> NoReturn:
    """Ends a call with the status of an error, or another one.

    Raises:
        grpc.aio.AbortError: Always, but for the next; grpc.aio wants to see it, so nobody may catch it.
        CancelledError: If the call has ended already.
    """
    status, details = ending_of(error, status or status_of(error), context.time_remaining())
    try:
        await context.abort(status, details, trailing_metadata_of(error))
    except grpc.aio.InternalError:
        # The core has ended the call itself, as it does when a message is over the limit: nobody waits for a status.
        raise asyncio.CancelledError from None
    raise AssertionError("a call went on after its abort")


def ending_of(error: RoostError, status: grpc.StatusCode, remaining_s: float | None) -> tuple[grpc.StatusCode, str]:
    """The status and words that a call ends with.

    A call whose own deadline is over is ended by its client too, at the same moment: both give the same status and
    words, or it would be chance what a program has to look for.

    Args:
        error: Why it ends.
        status: The error's status.
        remaining_s: Until the call's own deadline; None if it has none.
    """
    details = details_of(error)
    if error.code is Code.DEADLINE_EXCEEDED and remaining_s is not None and remaining_s <= _TIMER_SLACK_S:
        return grpc.StatusCode.DEADLINE_EXCEEDED, f"Deadline Exceeded: {details}"
    return status, details
