"""What models ask of other models: frames, and how the router treats them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from roost.core.errors import NotFound, RoostError
from roost.core.frames import (
    HEADER_BYTES,
    Call,
    FrameError,
    FrameType,
    Region,
    Run,
    WireTensor,
    call_frame,
    parse_call,
    unpack_header,
)
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import Tensor, from_array, to_array
from roost.router.calls import ModelCalls
from roost.router.worker import Worker

from tests.virtual_time import settle, virtual

ONES = from_array("x", "FP32", np.ones(3, np.float32))


def call_of(model: str = "other", data: Any = ONES.data, deadline_ns: int = 0) -> Call:
    return Call(model, "2", Run(0, deadline_ns, [WireTensor("x", "FP32", (3,), data)], ["y"], {"a": 1}))


def payload_of(call: Call) -> bytes:
    frame = b"".join(bytes(buffer) for buffer in call_frame(7, call))
    header = unpack_header(frame)
    assert (header.type, header.request) == (FrameType.CALL, 7)
    return frame[HEADER_BYTES:]


def test_a_call_comes_as_it_was_sent() -> None:
    parsed = parse_call(payload_of(call_of(deadline_ns=5)))
    assert (parsed.model, parsed.version, parsed.run.parameters) == ("other", "2", {"a": 1})
    assert (parsed.run.deadline_ns, list(parsed.run.outputs)) == (5, ["y"])
    (tensor,) = parsed.run.inputs
    assert bytes(cast(memoryview, tensor.data)) == ONES.data
    with pytest.raises(FrameError, match="elsewhere"):
        parse_call(payload_of(call_of(data=Region(0, 12))))


class Asker:
    """A worker whose model asks, and the mesh's part of the answer."""

    def __init__(self) -> None:
        self.answers: dict[int, Sequence[Tensor] | RoostError] = {}
        self.asked: list[InferRequest] = []
        self.hold = asyncio.Event()
        self.worker = cast(Worker, SimpleNamespace(id=3, link=self))

    def send_answer(self, number: int, answer: Sequence[Tensor] | RoostError) -> None:
        self.answers[number] = answer

    async def infer(self, request: InferRequest) -> InferResponse:
        self.asked.append(request)
        if request.model_name == "slow":
            await self.hold.wait()
        if request.model_name == "nobody":
            raise NotFound("no such model")
        return InferResponse(request.model_name, "2", request.inputs)


@virtual
async def test_calls_are_requests() -> None:
    asker = Asker()
    async with asyncio.TaskGroup() as group:
        calls = ModelCalls(group)
        calls.infer = asker.infer
        calls.called(asker.worker, 1, call_of(deadline_ns=int((time.monotonic() + 2) * 1e9)))
        calls.called(asker.worker, 2, call_of("nobody"))
        calls.called(asker.worker, 3, call_of("slow"))
        calls.called(asker.worker, 4, call_of("slow"))
        await settle()
        (answer,) = cast(Sequence[Tensor], asker.answers[1])
        assert to_array(answer).tolist() == [1, 1, 1]
        assert isinstance(asker.answers[2], NotFound)
        first, second, *_ = asker.asked
        assert (first.model_version, [output.name for output in first.outputs]) == ("2", ["y"])
        assert first.context.deadline == pytest.approx(time.monotonic() + 2)
        assert (second.context.deadline, second.parameters) == (math.inf, {"a": 1})
        calls.called(asker.worker, 3, None)
        calls.called(asker.worker, 9, None)
        await settle()
        calls.lost(asker.worker)
    assert asker.answers.keys() == {1, 2}, "nobody waits for the others"
