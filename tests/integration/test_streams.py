"""Streams of decoupled models and classified answers: a router with a real worker, without transports."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path

import numpy as np
import pytest
from roost.core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    RoostError,
    Unavailable,
    Unimplemented,
)
from roost.core.requests import InferRequest, InferResponse, RequestContext, RequestedOutput
from roost.core.tensors import ParameterValue, Tensor, from_array, to_array, unpack_bytes
from roost.registry_client.repository import LocalRepository
from roost.router.assembly import router
from roost.router.learned import Learned
from roost.router.mesh import MeshSettings
from roost.router.plans import Limits
from roost.router.process import WorkerSpec
from roost.router.router import Router
from roost.router.store_sqlite import SqliteStore
from roost.router.streams import WINDOW
from roost.router.traffic import Traffic

from tests.models import write_dummy

LONG_S = 60.0
DECOUPLED = "model_transaction_policy { decoupled: true }"
MAX_ANSWER_BYTES = 16 << 20


def write_models(repository: Path) -> None:
    """``stream`` and ``plain`` number their responses; the echoes give ``x`` as ``y``, whose classes have labels."""
    x, sequence = ("x", "UINT8", (-1,)), ("sequence", "INT64", (1,))
    for name, config in (("stream", DECOUPLED), ("plain", ""), ("echo", DECOUPLED), ("plain_echo", "")):
        outputs = [("y", "FP32", (-1,))] if "echo" in name else [("copy", "UINT8", (-1,)), sequence]
        inputs = [("x", "FP32", (-1,))] if "echo" in name else [x]
        write_dummy(repository / name / "1" / "model.dummy", inputs, outputs)
        if "echo" in name:
            config += ' output { name: "y" data_type: TYPE_FP32 dims: [-1] label_filename: "labels.txt" }'
            (repository / name / "labels.txt").write_text("cat\ndog\nfish\n", encoding="utf-8")
        (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")


@asynccontextmanager
async def routing(repository: Path, state: Path) -> AsyncIterator[Router]:
    """A router over one worker that runs one request at a time."""
    write_models(repository)
    settings = MeshSettings(
        WorkerSpec("onnx", "cpu", 1, 1, enable_dummy=True, log_level="error"),
        workers=1,
        load_timeout_s=LONG_S,
        load_concurrency=1,
        max_queue=100,
        max_queued_bytes=1 << 30,
        max_answer_bytes=MAX_ANSWER_BYTES,
    )
    with closing(Learned(SqliteStore(state / "roost.sqlite"))) as learned:
        async with router([LocalRepository(repository)], learned, settings, Traffic(), explicit=False) as made:
            made.set_limits(Limits(1 << 30))
            yield made


def request_to(
    model: str, x: Tensor | None = None, timeout_s: float = LONG_S, **parameters: ParameterValue
) -> InferRequest:
    now = time.monotonic()
    x = x or from_array("x", "UINT8", np.zeros(1, np.uint8))
    return InferRequest(model, "", RequestContext(now, now + timeout_s), [x], parameters=parameters)


def sequence_of(response: InferResponse) -> int | None:
    arrays = {tensor.name: to_array(tensor) for tensor in response.outputs}
    return int(arrays["sequence"][0]) if arrays else None


async def read_and_stop(stream: AsyncGenerator[InferResponse, None]) -> None:
    """A reader that takes one response, or waits for it, and then hangs."""
    async with aclosing(stream):
        await anext(stream)
        await asyncio.Event().wait()


async def assert_serves(router: Router) -> None:
    """The only slot of the only worker is free."""
    assert sequence_of(await router.infer(request_to("plain"))) == 0


async def test_streams_of_any_length_come_in_order(repository: Path, tmp_path: Path) -> None:
    async with routing(repository, tmp_path) as router:
        for count, close_empty in ((10_000, True), (2, False), (1, False), (1, True), (0, True)):
            request = request_to("stream", stream=count, close_empty=close_empty)
            items = [(sequence_of(item), item.final) async for item in router.infer_stream(request)]
            expected: list[tuple[int | None, bool]] = [(i, False) for i in range(count)]
            if close_empty:
                expected.append((None, True))
            else:
                expected[-1] = (count - 1, True)
            assert items == expected
        (item,) = [item async for item in router.infer_stream(request_to("plain"))]
        assert (sequence_of(item), item.final) == (0, True)
        with pytest.raises(Unimplemented, match="doesn't support models with decoupled transaction policy"):
            await router.infer(request_to("stream"))
        with pytest.raises(InvalidArgument):
            await anext(router.infer_stream(request_to("stream", from_array("z", "UINT8", np.zeros(1, np.uint8)))))


async def test_large_responses_pass_one_by_one(repository: Path, tmp_path: Path) -> None:
    async with routing(repository, tmp_path) as router:
        x = from_array("x", "UINT8", np.ones(3 * WINDOW.bytes, np.uint8))
        count = 2 * MAX_ANSWER_BYTES // WINDOW.bytes  # far more than may be there at once
        items = [sequence_of(item) async for item in router.infer_stream(request_to("stream", x, stream=count))]
        assert items == list(range(count))


async def test_a_stream_that_nobody_reads_holds_no_more_than_a_window(repository: Path, tmp_path: Path) -> None:
    async with routing(repository, tmp_path) as router:
        await assert_serves(router)
        size = 100_000
        x = from_array("x", "UINT8", np.ones(size, np.uint8))
        stream = router.infer_stream(request_to("stream", x, timeout_s=1, stream=10_000))
        assert sequence_of(await anext(stream)) == 0
        # The slot is taken for as long as the stream may last, and free after that.
        await assert_serves(router)
        left = [sequence_of(await anext(stream)) for _ in range(WINDOW.bytes // size)]
        assert left == list(range(1, len(left) + 1))
        with pytest.raises(DeadlineExceeded):
            await anext(stream)


@pytest.mark.parametrize("interval_s", [0, LONG_S], ids=["out of credit", "between two responses"])
@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_a_client_that_leaves_ends_its_stream(
    repository: Path, tmp_path: Path, interval_s: float, how: str
) -> None:
    async with routing(repository, tmp_path) as router:
        stream = router.infer_stream(request_to("stream", stream=10_000, interval_s=interval_s))
        assert sequence_of(await anext(stream)) == 0
        if how == "close":
            await stream.aclose()
        else:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(read_and_stop(stream))
                await asyncio.sleep(0)
                reader.cancel()
        await assert_serves(router)


@pytest.mark.parametrize(
    ("parameters", "count", "error", "text"),
    [
        ({"stream": 5, "fail_after": 2, "fail": "a", "fail_code": "RESOURCE_EXHAUSTED"}, 2, ResourceExhausted, "a"),
        ({"stream": 5, "fail_after": 0}, 0, Internal, "the model failed"),
        ({"fail": "no"}, 0, Internal, "no"),
    ],
)
async def test_an_error_comes_behind_the_responses_before_it(
    repository: Path,
    tmp_path: Path,
    parameters: dict[str, ParameterValue],
    count: int,
    error: type[RoostError],
    text: str,
) -> None:
    async with routing(repository, tmp_path) as router:
        request = request_to("stream")
        request.parameters = parameters
        stream = router.infer_stream(request)
        assert [sequence_of(await anext(stream)) for _ in range(count)] == list(range(count))
        with pytest.raises(error, match=text):
            await anext(stream)
        await assert_serves(router)


async def test_a_model_that_is_not_decoupled_can_not_stream(repository: Path, tmp_path: Path) -> None:
    async with routing(repository, tmp_path) as router:
        for count in (0, 3):
            with pytest.raises(Internal, match="did not answer exactly once"):
                await router.infer(request_to("plain", stream=count))
        await assert_serves(router)


async def test_a_worker_that_is_killed_in_mid_stream(repository: Path, tmp_path: Path) -> None:
    async with routing(repository, tmp_path) as router:
        stream = router.infer_stream(request_to("stream", stream=3, interval_s=LONG_S))
        assert sequence_of(await anext(stream)) == 0
        (pid,) = router.workers_pids
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="was lost"):
            await anext(stream)
        await assert_serves(router)


async def test_the_end_of_the_router_ends_streams(repository: Path, tmp_path: Path) -> None:
    async with routing(repository, tmp_path) as router:
        stream = router.infer_stream(request_to("stream", stream=10_000))
        assert sequence_of(await anext(stream)) == 0
    with pytest.raises(Unavailable):
        async for _ in stream:
            pass


async def test_classified_outputs(repository: Path, tmp_path: Path) -> None:
    async with routing(repository, tmp_path) as router:
        scores = from_array("x", "FP32", np.array([0.1, 0.9, 0.5, 0.3], np.float32))
        expected = [b"0.900000:1:dog", b"0.500000:2:fish", b"0.300000:3", b"0.100000:0:cat"]
        wanted = [RequestedOutput("y", classification=9)]
        request = request_to("plain_echo", scores)
        request.outputs = wanted
        (output,) = (await router.infer(request)).outputs
        assert (output.name, output.datatype, output.shape) == ("y", "BYTES", (4,))
        assert unpack_bytes(output.data) == expected
        (repository / "plain_echo" / "labels.txt").unlink()  # they are known by now
        (output,) = (await router.infer(request)).outputs
        assert unpack_bytes(output.data) == expected
        request = request_to("echo", scores, stream=2, close_empty=True)
        request.outputs = wanted
        items = [[unpack_bytes(tensor.data) for tensor in item.outputs] async for item in router.infer_stream(request)]
        assert items == [[expected], [expected], []]

        large = np.zeros(1_000_001, np.float32)
        large[77] = 1
        request = request_to("plain_echo", from_array("x", "FP32", large[:-1]))
        request.outputs = [RequestedOutput("y", classification=1)]
        (output,) = (await router.infer(request)).outputs
        assert unpack_bytes(output.data) == [b"1.000000:77"]
        request = request_to("plain_echo", from_array("x", "FP32", large))
        request.outputs = wanted
        with pytest.raises(InvalidArgument, match="1000001 elements"):
            await router.infer(request)
        await assert_serves(router)


async def test_labels_that_are_not_there(repository: Path, tmp_path: Path) -> None:
    async with routing(repository, tmp_path) as router:
        (repository / "echo" / "labels.txt").unlink()
        request = request_to("echo", from_array("x", "FP32", np.zeros(3, np.float32)))
        request.outputs = [RequestedOutput("y", classification=1)]
        with pytest.raises(InvalidArgument, match="labels"):
            await anext(router.infer_stream(request))
        await assert_serves(router)
