"""Inference requests and responses as plain values, the same whatever transport carried them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from roost.core.errors import RoostError
from roost.core.names import DEFAULT_NAMESPACE
from roost.core.tensors import Parameters, Tensor


@dataclass(slots=True)
class RequestContext:
    """What is known of a request besides its content. All times are ``time.monotonic`` seconds.

    Attributes:
        received: When its first byte was seen.
        deadline: When an answer is of no use any more.
        caller: Who asks, for logs.
        priority: 0 is the model's default; 1 is the highest.
        traceparent: The W3C trace context header, if any.
        served_by: Name and version of the model it was resolved to; empty if it was not.
        queued: When it began to wait for its model: in its queue, or for the first load, which shows what it takes.
        load_wait_s: How much of its wait was for a load.
        run_started: When the worker began with it.
        infer_started: When its input was ready and the model began to compute.
        infer_ended: When the model had computed.
        run_ended: When the worker was done with it, or with the response of a stream that came last.
        responses: How many responses a stream has given.
        timeout_s: The request's own ``timeout`` parameter, which the deadline takes into account; 0 if it has none.
        branch: Where a route was found to lead, until it is followed.
    """

    received: float
    deadline: float = math.inf
    caller: str = ""
    priority: int = 0
    traceparent: str = ""
    served_by: tuple[str, str] = ("", "")
    queued: float = 0.0
    load_wait_s: float = 0.0
    run_started: float = 0.0
    infer_started: float = 0.0
    infer_ended: float = 0.0
    run_ended: float = 0.0
    responses: int = 0
    timeout_s: float = 0.0
    branch: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class RegionSlice:
    """A part of a shared-memory region that a client registered; offset and size in bytes."""

    region: str
    byte_size: int
    offset: int = 0


@dataclass(slots=True)
class RequestedOutput:
    """An output that the client asks for.

    Attributes:
        name: Which.
        binary: Whether it is wanted as bytes behind the JSON; matters to REST alone.
        parameters: Other parameters of the output.
        classification: Over 0: answer so many of the highest values, as BYTES ``value:index[:label]``.
        region: Where to write it; None: into the answer.
    """

    name: str
    binary: bool = False
    parameters: Parameters = field(default_factory=dict)
    classification: int = 0
    region: RegionSlice | None = None


@dataclass(slots=True)
class InferRequest:
    """One inference request.

    Attributes:
        model_name: Model or route.
        model_version: Empty: whatever the model's policy or route says.
        context: Deadline, caller and timestamps.
        inputs: Tensors in the order they came.
        outputs: Outputs asked for; empty: all.
        id: The client's id, empty if none.
        parameters: Request parameters for the model.
        namespace: The namespace of the model.
        regions: Where the elements of inputs are that the client gave in shared memory, by input name. The data
            plane reads them; until then their tensors are empty.
    """

    model_name: str
    model_version: str
    context: RequestContext
    inputs: list[Tensor]
    outputs: list[RequestedOutput] = field(default_factory=list)
    id: str = ""
    parameters: Parameters = field(default_factory=dict)
    namespace: str = DEFAULT_NAMESPACE
    regions: Mapping[str, RegionSlice] = field(default_factory=dict)


@dataclass(slots=True)
class InferResponse:
    """An answer to a request; output data belongs to it and is never reused while it is alive.

    Attributes:
        model_name: As the client asked.
        model_version: Which version answered.
        outputs: What was asked for; those in ``in_regions`` have no data here.
        id: The request's.
        parameters: What the model says besides.
        final: Whether no other answer to the request follows. A final one without outputs is no answer of the model,
            it only says that a stream has ended.
        in_regions: Names of outputs that were written to the client's shared memory.
    """

    model_name: str
    model_version: str
    outputs: list[Tensor]
    id: str = ""
    parameters: Parameters = field(default_factory=dict)
    final: bool = True
    in_regions: frozenset[str] = frozenset()


Done: TypeAlias = Callable[[InferResponse | RoostError], None]
"""Takes the outcome of a request: called exactly once, on the event loop; must not raise."""


class Ticket(Protocol):
    """A request that was taken and has no outcome yet."""

    def cancel(self) -> None:
        """Nobody waits for the request any more: its ``Done`` is not called from now on. Safe at any time."""
