"""Inference requests and responses as plain values, the same whatever transport carried them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

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
        queued: When it entered its model's queue.
        load_wait_s: How much of its wait was for a load.
        run_started: When the worker began with it.
        run_ended: When the worker was done with it.
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
    run_ended: float = 0.0


@dataclass(slots=True)
class RequestedOutput:
    """An output that the client asks for; ``binary`` matters to REST alone."""

    name: str
    binary: bool = False
    parameters: Parameters = field(default_factory=dict)


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
    """

    model_name: str
    model_version: str
    context: RequestContext
    inputs: list[Tensor]
    outputs: list[RequestedOutput] = field(default_factory=list)
    id: str = ""
    parameters: Parameters = field(default_factory=dict)
    namespace: str = DEFAULT_NAMESPACE


@dataclass(slots=True)
class InferResponse:
    """The answer to one request; output data belongs to it and is never reused while it is alive."""

    model_name: str
    model_version: str
    outputs: list[Tensor]
    id: str = ""
    parameters: Parameters = field(default_factory=dict)
