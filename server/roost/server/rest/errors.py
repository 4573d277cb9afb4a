"""From neutral codes to HTTP: total maps, and the answers that only HTTP needs (404, 405, 413, 431, 501)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web
from roost.core.errors import Code, InvalidArgument, Limit, LoadFailed, PollFailed, RegionTooSmall, RoostError
from roost.server.unexpected import unexpected

HTTP_STATUS: Mapping[Code, int] = {
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.ABORTED: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    # Not in the registry of statuses; proxies have long used it for a caller that went away.
    Code.CANCELLED: 499,
    Code.INTERNAL: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
# ``--compat triton``: whoever moves from Triton and compares statuses finds the same ones.
TRITON_STATUS: Mapping[Code, int] = {
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 503,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 400,
    Code.ABORTED: 400,
    Code.RESOURCE_EXHAUSTED: 503,
    Code.CANCELLED: 400,
    Code.INTERNAL: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 503,
}
# Where Triton has another status for a call, named by the end of its path.
_TRITON_STATUS_OF_CALL: Mapping[tuple[str, Code], int] = {
    ("stats", Code.NOT_FOUND): 400,
    ("setting", Code.NOT_FOUND): 400,
    ("setting", Code.FAILED_PRECONDITION): 400,
    ("logging", Code.INVALID_ARGUMENT): 503,
    ("register", Code.NOT_FOUND): 500,
    ("load", Code.INVALID_ARGUMENT): 500,
}
_RETRY_STATUSES = frozenset({429, 503})


class MalformedRequest(InvalidArgument):
    """A body that is not the JSON that the call takes; Triton has another status for it than for wrong values."""


# And for errors that it tells from others of their code.
_TRITON_STATUS_OF_ERROR: Mapping[type[RoostError], int] = {
    MalformedRequest: 500,
    RegionTooSmall: 500,
    PollFailed: 500,
    LoadFailed: 400,
}


class Refusal(Exception):
    """A request that HTTP itself refuses, before any neutral code applies.

    Args:
        status: The HTTP status.
        message: What the client reads.
        headers: Headers to add.
        close: Whether the connection can't be used any more, because a body was left unread.
        limit: The limit of the server that was in the way, if one was.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
        limit: Limit | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
        self.close = close
        self.limit = limit


class ClientGone(Exception):
    """The client went away while its request was read; nobody waits for an answer."""


def retry_after(retry_after_s: float | None) -> dict[str, str]:
    """The Retry-After header, in whole seconds as HTTP wants them; none where trying again does not help."""
    return {} if retry_after_s is None else {"Retry-After": str(max(1, math.ceil(retry_after_s)))}


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error as every client of the protocol expects it: JSON with the key ``error``."""
    # The standard library escapes what it can't encode; names in messages come from clients.
    body = json.dumps({"error": message}, separators=(",", ":")).encode()
    reason = "Client Closed Request" if status == 499 else None
    response = web.Response(status=status, reason=reason, body=body, content_type="application/json")
    if headers:
        response.headers.update(headers)
    return response


def response_of(error: Exception, triton_call: str | None = None) -> web.Response:
    """Turns whatever a handler raised into an answer; what nobody expected gets an id and goes to the log.

    Args:
        error: What was raised.
        triton_call: The end of the path that was called, if the status is to be Triton's.
    """
    if isinstance(error, RoostError):
        status = HTTP_STATUS[error.code] if triton_call is None else _triton_status(error, triton_call)
        return error_response(
            status, error.message, retry_after(error.retry_after_s) if status in _RETRY_STATUSES else None
        )
    if isinstance(error, Refusal):
        response = error_response(error.status, error.message, error.headers)
        if error.close:
            response.force_close()
        return response
    if isinstance(error, web.HTTPException):
        allow = error.headers.get("Allow")
        return error_response(error.status, HTTPStatus(error.status).phrase, {"Allow": allow} if allow else None)
    return unexpected_error(error)


def error_body(error: Exception) -> bytes:
    """What ``response_of`` would say, for an answer whose status is out already."""
    body = response_of(error).body
    return body if isinstance(body, bytes) else b""


def _triton_status(error: RoostError, call: str) -> int:
    by_error = _TRITON_STATUS_OF_ERROR.get(type(error))
    return by_error or _TRITON_STATUS_OF_CALL.get((call, error.code)) or TRITON_STATUS[error.code]


def unexpected_error(error: BaseException | None) -> web.Response:
    """The answer to a defect: an id that finds the traceback in the log, and nothing else."""
    shown = unexpected(error, "a REST call")
    return error_response(500, f"{shown.message}; the server's log has the details")
