"""How errors leave over gRPC: the total map of codes to statuses, and the one place where a call is aborted."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Mapping
from typing import Any, NoReturn

import grpc
from roost.core.errors import Code, Internal, RoostError

_LOG = logging.getLogger(__name__)

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

# Clients refuse metadata over 8 KiB at random, and percent-encoding may triple a message.
_MAX_DETAILS_BYTES = 2400


def unexpected(error: Exception, method: str) -> Internal:
    """Makes what a client sees of an error nobody foresaw: an id, under which the log holds the traceback."""
    error_id = secrets.token_hex(4)
    _LOG.error("unexpected error %s in %s", error_id, method, exc_info=error)
    return Internal(f"internal error {error_id}")


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


async def abort(context: Any, error: RoostError) -> NoReturn:
    """Ends a call with the status of an error.

    Raises:
        grpc.aio.AbortError: Always; grpc.aio wants to see it, so nobody may catch it.
    """
    await context.abort(STATUS_OF_CODE[error.code], details_of(error), trailing_metadata_of(error))
    raise AssertionError("a call went on after its abort")
