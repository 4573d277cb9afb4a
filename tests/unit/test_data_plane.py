"""What the data plane does around the router: shared memory in and out, and one count for each request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest
from roost.core.errors import Code, Internal, InvalidArgument, NotFound, ResourceExhausted, RoostError
from roost.core.requests import (
    Done,
    InferRequest,
    InferResponse,
    RegionSlice,
    RequestContext,
    RequestedOutput,
    Ticket,
)
from roost.core.tensors import Tensor
from roost.router.records import RequestRecord, record_of
from roost.router.router import Router
from roost.server.client_memory import ClientMemory
from roost.server.data_plane import EXTENSIONS, RouterDataPlane
from roost.server.log_settings import LogBook

LARGE = 3 << 20


class Counts:
    def __init__(self) -> None:
        self.codes: list[Code | None] = []
        self.on_end: Callable[[InferRequest, RequestRecord], None] | None = None

    def finished(self, request: InferRequest, error: RoostError | Code | None) -> None:
        record = record_of(request.context, error)
        self.codes.append(record.code)
        assert self.on_end is not None
        self.on_end(request, record)


class EchoRouter:
    """Answers what it gets, as often as the parameter ``times`` says; fails or waits on command."""

    def __init__(self) -> None:
        self.stats = Counts()
        self.ready = True
        self.began = asyncio.Event()
        self.loads: list[tuple[Any, ...]] = []

    def begin(self, request: InferRequest, done: Done, *, in_regions: bool = False) -> Ticket | None:
        return None

    def stage(self, name: str, version: str, size_bytes: int) -> memoryview | None:
        return None

    async def infer(self, request: InferRequest) -> InferResponse:
        async with aclosing(self.infer_stream(request)) as responses:
            return await anext(responses)

    async def infer_stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        if "wait" in request.parameters:
            self.began.set()
            await asyncio.Event().wait()
        times = int(request.parameters.get("times", 1))
        for index in range(times):
            outputs = [Tensor("OUT", t.datatype, t.shape, t.data) for t in request.inputs]
            yield InferResponse(request.model_name, "1", outputs, request.id, final=index == times - 1)
        if "fail" in request.parameters:  # as the mesh does it
            outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            outcome.set_exception(Internal("the model failed"))
            await outcome
        if "bug" in request.parameters:
            raise RuntimeError("a bug")

    def names(self) -> list[str]:
        return ["m"]


class Place:
    """A data plane with a region ``r`` in ``object_file``."""

    def __init__(self, folder: Path, size_bytes: int = 100) -> None:
        self.object_file = folder / "object"
        self.object_file.write_bytes(bytes(size_bytes))
        self.router = EchoRouter()
        self.memory = ClientMemory(offered=True, folder=folder)
        self.plane = RouterDataPlane(
            cast(Router, self.router),
            server_name="roost",
            request_timeout_s=10,
            body_budget_bytes=4 * LARGE,
            log_requests=True,
            shared_memory=self.memory,
            log_book=LogBook("info", lambda level: None),
        )
        self.memory.register("r", "object", 0, size_bytes)

    @property
    def codes(self) -> list[Code | None]:
        return self.router.stats.codes


def request(
    inputs: Mapping[str, RegionSlice | bytes | memoryview], out: RegionSlice | None = None, **parameters: bool | int
) -> InferRequest:
    regions = {name: value for name, value in inputs.items() if isinstance(value, RegionSlice)}
    tensors = []
    for name, value in inputs.items():
        data = b"" if isinstance(value, RegionSlice) else value
        tensors.append(Tensor(name, "UINT8", (value.byte_size if isinstance(value, RegionSlice) else len(data),), data))
    outputs = [RequestedOutput("OUT", region=out)] if out is not None else []
    context = RequestContext(time.monotonic())
    return InferRequest("m", "", context, tensors, outputs, parameters=parameters, regions=regions)


@pytest.mark.parametrize("size_bytes", [8, LARGE])
async def test_tensors_in_regions(tmp_path: Path, size_bytes: int) -> None:
    place = Place(tmp_path, 2 * size_bytes)
    data = bytes(range(8)) * (size_bytes // 8)
    place.object_file.write_bytes(data + bytes(size_bytes))
    response = await place.plane.infer(
        request({"IN": RegionSlice("r", size_bytes)}, RegionSlice("r", size_bytes, size_bytes))
    )
    assert response.in_regions == {"OUT"}
    assert (response.outputs[0].shape, bytes(response.outputs[0].data)) == ((size_bytes,), b"")
    assert place.object_file.read_bytes() == data + data
    assert place.plane.bodies.used_bytes == 0
    assert place.codes == [None]
    await place.plane.close()


async def test_inputs_in_regions_beside_others(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.object_file.write_bytes(bytes(range(100)))
    response = await place.plane.infer(request({"A": b"abc", "B": RegionSlice("r", 2, 98)}))
    assert [bytes(output.data) for output in response.outputs] == [b"abc", b"bc"]
    assert response.in_regions == frozenset()


@pytest.mark.parametrize(
    ("inputs", "out", "error", "gist"),
    [
        ({"IN": RegionSlice("no", 8)}, None, NotFound, "Unable to find shared memory region: 'no'"),
        ({"IN": RegionSlice("r", 8, 9999)}, None, InvalidArgument, "Invalid offset"),
        ({"IN": b"x"}, RegionSlice("no", 8), NotFound, "Unable to find"),
        ({"IN": b"x"}, RegionSlice("r", 8, 95), InvalidArgument, "Invalid offset . byte size"),
        ({"IN": b"x" * 9}, RegionSlice("r", 8), InvalidArgument, "should be at least 9 bytes"),
        ({"IN": RegionSlice("huge", 1 << 40)}, None, ResourceExhausted, "request bodies"),
        ({"IN": RegionSlice("huge", 64)}, None, InvalidArgument, "truncated"),
    ],
)
async def test_what_is_wrong_with_regions(
    tmp_path: Path,
    inputs: Mapping[str, RegionSlice | bytes | memoryview],
    out: RegionSlice | None,
    error: type[RoostError],
    gist: str,
) -> None:
    place = Place(tmp_path)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    place.memory.register("huge", "huge", 0, 1 << 40)
    (tmp_path / "huge").write_bytes(b"")
    with pytest.raises(error, match=gist):
        await place.plane.infer(request(inputs, out))
    assert place.plane.bodies.used_bytes == 0
    assert place.codes == [error.code]


async def test_a_stream_writes_each_answer_and_is_counted_once(tmp_path: Path) -> None:
    place = Place(tmp_path)
    call = request({"IN": b"ab"}, RegionSlice("r", 2, 5), times=3)
    async with aclosing(place.plane.infer_stream(call)) as responses:
        async for response in responses:
            assert response.in_regions == {"OUT"}
            assert place.object_file.read_bytes()[5:7] == b"ab"
            place.object_file.write_bytes(bytes(100))
    assert place.codes == [None]


@pytest.mark.parametrize(
    ("parameters", "taken", "code"),
    [
        ({"times": 3}, 3, None),
        ({"times": 3}, 2, Code.CANCELLED),
        ({"times": 2, "fail": True}, 9, Code.INTERNAL),
        ({"times": 2, "bug": True}, 9, Code.INTERNAL),
    ],
)
async def test_how_streams_are_counted(
    tmp_path: Path, parameters: dict[str, int], taken: int, code: Code | None
) -> None:
    place = Place(tmp_path)
    try:
        async with aclosing(place.plane.infer_stream(request({"IN": b"x"}, None, **parameters))) as responses:
            async for _ in responses:
                taken -= 1
                if not taken:
                    break
    except (Internal, RuntimeError):
        pass
    assert place.codes == [code]


async def test_a_cancelled_request_gives_everything_back(tmp_path: Path) -> None:
    place = Place(tmp_path)
    call = asyncio.ensure_future(place.plane.infer(request({"IN": RegionSlice("r", 8)}, wait=True)))
    await place.router.began.wait()
    assert place.plane.bodies.used_bytes == 8
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert place.plane.bodies.used_bytes == 0
    assert place.codes == [Code.CANCELLED]


async def test_extensions_say_what_works(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert place.plane.server_metadata().extensions == EXTENSIONS
    place.memory.offered = False
    assert "system_shared_memory" not in place.plane.server_metadata().extensions


async def test_trace_settings_of_unknown_models(tmp_path: Path) -> None:
    plane = Place(tmp_path).plane
    with pytest.raises(NotFound, match="Request for unknown model : nope"):
        await plane.trace_settings("nope")
    with pytest.raises(NotFound, match="Request for unknown model : nope"):
        await plane.update_trace_settings({"trace_rate": ("7",)}, "nope")
    assert (await plane.update_trace_settings({"trace_rate": ("7",)}, "m"))["trace_rate"] == "7"
    assert (await plane.trace_settings())["trace_rate"] == "1000"


@pytest.mark.parametrize(
    ("call", "parameters", "gist"),
    [
        ("load_model", {"foo": 1}, "unrecognized load parameter 'foo'."),
        ("load_model", {"config": "{}", "file": b""}, "unrecognized load parameter 'file'."),
        ("unload_model", {"foo": 1}, "unrecognized unload parameter 'foo'."),
        ("unload_model", {"unload_dependents": "yes"}, "is true or false"),
    ],
)
async def test_parameters_of_loads_and_unloads(
    tmp_path: Path, call: str, parameters: dict[str, Any], gist: str
) -> None:
    with pytest.raises(InvalidArgument, match=gist):
        await getattr(Place(tmp_path).plane, call)("m", parameters)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_failed_request_keeps_no_tensors(tmp_path: Path, streamed: bool) -> None:
    """Not even until the garbage collector comes by."""
    place = Place(tmp_path)

    async def fail() -> weakref.ref[memoryview]:
        data = memoryview(b"abc")
        asked = request({"IN": data}, times=0, fail=True)
        with contextlib.suppress(Internal):
            if streamed:
                async with aclosing(place.plane.infer_stream(asked)) as responses:
                    await anext(responses)
            else:
                await place.plane.infer(asked)
        return weakref.ref(data)

    gc.collect()
    gc.disable()
    try:
        kept = await fail()
        await asyncio.sleep(0)
        assert kept() is None
    finally:
        gc.enable()
    assert place.codes == [Code.INTERNAL]
