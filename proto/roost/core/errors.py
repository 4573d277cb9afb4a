"""Errors that travel through every layer, with codes that no transport owns.

The tree::

    RoostError
    ├── InvalidArgument
    │   └── RegionTooSmall
    ├── NotFound
    ├── AlreadyExists
    ├── FailedPrecondition
    │   ├── PollFailed
    │   └── LoadFailed
    ├── ResourceExhausted
    ├── Unavailable
    ├── DeadlineExceeded
    ├── Cancelled
    ├── Aborted
    ├── Unauthenticated
    ├── PermissionDenied
    ├── Unimplemented
    └── Internal

The codes are google.rpc's. ``roost.server`` maps them to HTTP and gRPC statuses, nothing else does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Code(StrEnum):
    """A neutral reason for a failure, named as in google.rpc.Code."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    ABORTED = "ABORTED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


class Limit(StrEnum):
    """A limit of the server that a request ran into, as the metrics call it.

    ``DEADLINE`` is one that passed before the model began, ``RUN_DEADLINE`` one that passed while it ran. ``WORKER`` is
    any limit that a worker or the model itself ran into. ``LAG`` is a server that is too far behind to answer in time.
    ``LOAD_WAIT`` is a load that would take longer than the request may wait. ``SEQUENCES`` are sequences of requests
    that have not ended, or the memory that their state takes.
    """

    QUEUE_FULL = "queue_full"
    QUEUE_BYTES = "queue_bytes"
    BODY_BUDGET = "body_budget"
    ANSWER_BUDGET = "answer_budget"
    NO_MEMORY = "no_memory"
    LOAD_WAIT = "load_wait"
    SEQUENCES = "sequences"
    RECEIVES = "receives"
    TOO_LARGE = "too_large"
    DEADLINE = "deadline"
    RUN_DEADLINE = "run_deadline"
    RECEIVE_TIMEOUT = "receive_timeout"
    LAG = "lag"
    DRAINING = "draining"
    WORKER = "worker"


class RoostError(Exception):
    """An error whose message may be shown to a client: no paths, keys or memory names in it.

    Args:
        message: What went wrong, in one sentence.
        retry_after_s: When trying again may help, in seconds; None if it is not known.
        limit: The limit that was in the way, if one was.
    """

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(self, message: str, *, retry_after_s: float | None = None, limit: Limit | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.limit = limit


class InvalidArgument(RoostError):
    """The request is wrong whatever the state of the server."""

    code = Code.INVALID_ARGUMENT


class RegionTooSmall(InvalidArgument):
    """An output does not fit into the memory that its client has for it."""


class NotFound(RoostError):
    """There is no such model, version or resource."""

    code = Code.NOT_FOUND


class AlreadyExists(RoostError):
    """The resource is there already."""

    code = Code.ALREADY_EXISTS


class FailedPrecondition(RoostError):
    """The server is not in the state that the call needs."""

    code = Code.FAILED_PRECONDITION


class PollFailed(FailedPrecondition):
    """The repository has no such model, or its files describe none."""


class LoadFailed(FailedPrecondition):
    """A version of a model was found and can't be loaded."""


class ResourceExhausted(RoostError):
    """A limit of memory, queue or bytes is reached."""

    code = Code.RESOURCE_EXHAUSTED


class Unavailable(RoostError):
    """The model or the server can't answer now."""

    code = Code.UNAVAILABLE


class DeadlineExceeded(RoostError):
    """The time for the request ran out."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(RoostError):
    """The caller went away."""

    code = Code.CANCELLED


class Aborted(RoostError):
    """The operation lost against a concurrent one."""

    code = Code.ABORTED


class Unauthenticated(RoostError):
    """The caller did not say who they are."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(RoostError):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED


class Unimplemented(RoostError):
    """The server does not know how to do this."""

    code = Code.UNIMPLEMENTED


class Internal(RoostError):
    """A defect of the server or a failure inside a model."""

    code = Code.INTERNAL


# What an error without a limit of its own ran into: those come from workers, or from runs that nobody told of it.
_LIMIT_OF_CODE = {Code.RESOURCE_EXHAUSTED: Limit.WORKER, Code.DEADLINE_EXCEEDED: Limit.DEADLINE}


def limit_of(error: RoostError) -> Limit | None:
    """The limit that an error is about; None if it is no refusal. No refusal goes without one."""
    return error.limit or _LIMIT_OF_CODE.get(error.code)


_CLASSES: dict[Code, type[RoostError]] = {cls.code: cls for cls in RoostError.__subclasses__()}


def error_of(code: Code, message: str, *, retry_after_s: float | None = None) -> RoostError:
    """Makes the error of a code, for errors that arrive over a link as (code, message)."""
    return _CLASSES[code](message, retry_after_s=retry_after_s)
