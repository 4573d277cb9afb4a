"""From neutral codes to HTTP: one total map, and the answers that only HTTP needs (404, 405, 413, 431, 501)."""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web
from roost.core.errors import Code, RoostError

_log = logging.getLogger(__name__)

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
_RETRY_STATUSES = frozenset({429, 503})


class Refusal(Exception):
    """A request that HTTP itself refuses, before any neutral code applies.

    Args:
        status: The HTTP status.
        message: What the client reads.
        headers: Headers to add.
        close: Whether the connection can't be used any more, because a body was left unread.
    """

    def __init__(
        self, status: int, message: str, *, headers: Mapping[str, str] | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
        self.close = close


class ClientGone(Exception):
    """The client went away while its request was read; nobody waits for an answer."""


def retry_after(retry_after_s: float | None) -> dict[str, str]:
    """The Retry-After header, in whole seconds as HTTP wants them; none where trying again does not help."""
    return {} if retry_after_s is None else {"Retry-After": str(max(1, math.ceil(retry_after_s)))}


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error as every client of the protocol expects it: JSON with the key ``error``."""
    # The standard library escapes what it can't encode; names in messages come from clients.
    body = json.dumps({"error": message}).encode()
    reason = "Client Closed Request" if status == 499 else None
    response = web.Response(status=status, reason=reason, body=body, content_type="application/json")
    if headers:
        response.headers.update(headers)
    return response


def response_of(error: Exception) -> web.Response:
    """Turns whatever a handler raised into an answer; what nobody expected gets an id and goes to the log."""
    if isinstance(error, RoostError):
        status = HTTP_STATUS[error.code]
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


def unexpected_error(error: BaseException | None) -> web.Response:
    """The answer to a defect: an id that finds the traceback in the log, and nothing else."""
    error_id = secrets.token_hex(4)
    _log.error("unexpected error %s", error_id, exc_info=error)
    return error_response(500, f"internal error {error_id}; the server's log has the details")
