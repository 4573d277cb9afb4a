"""Deadlines, sizes, floods and slow readers over gRPC."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
import pytest
import uvloop
from roost.core.errors import DeadlineExceeded, Limit
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import Tensor
from roost.proto import grpc_service_pb2 as pb
from roost.server.grpc_codec import decode_infer
from roost.server.grpc_limits import GrpcLimits
from roost.server.grpc_wire import encode_varint
from roost.server.transport_options import TransportOptions

from tests.integration.grpc_place import INFER, MIB, SERVICE, infer_bytes, output_of, serving, status_of
from tests.integration.raw_http2 import RawCall, raw_call
from tests.unit.grpc_fakes import MODEL, FakeDataPlane

pytestmark = pytest.mark.usefixtures("transport")

# -- time -----------------------------------------------------------------------------------------------------------


async def wait_for_ever(_: InferRequest) -> InferResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def test_cancelling_the_call_cancels_the_request(
    plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]
) -> None:
    plane.on_infer = wait_for_ever
    call = served[1].unary_unary(INFER)(infer_bytes())
    await plane.arrived.wait()
    assert plane.bodies.used_bytes > 0
    call.cancel()
    await plane.cancelled.wait()
    await plane.bodies.is_empty()


async def test_the_calls_own_deadline_counts_and_ends_the_request(
    plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]
) -> None:
    plane.on_infer = wait_for_ever
    error = await status_of(served[1].unary_unary(INFER)(infer_bytes(timeout=50_000_000), timeout=0.3))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await plane.cancelled.wait()
    context = plane.requests[0].context
    assert 0 < context.deadline - context.received < 0.5


@pytest.mark.parametrize("compat_triton", [False, True])
async def test_the_calls_own_deadline_has_one_status_whoever_ends_it(plane: FakeDataPlane, compat_triton: bool) -> None:
    async def until_the_deadline(request: InferRequest) -> InferResponse:
        await asyncio.sleep(request.context.deadline - time.monotonic())
        raise DeadlineExceeded("too late")

    plane.on_infer = until_the_deadline
    async with serving(plane, options=TransportOptions(compat_triton=compat_triton)) as (_, channel):
        errors = [await status_of(channel.unary_unary(INFER)(infer_bytes(), timeout=0.02)) for _ in range(30)]
    assert {error.code() for error in errors} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert all("Deadline Exceeded" in (error.details() or "") for error in errors)


async def test_who_answers_no_pings_is_cut_off_after_the_keepalive_timeout(plane: FakeDataPlane) -> None:
    limits = GrpcLimits(keepalive_time_s=0.1, keepalive_timeout_s=0.1, keepalive_permit_without_calls=True)
    async with serving(plane, limits) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")  # and empty settings
        async with asyncio.timeout(10):
            sent = await reader.read(-1)  # to its end
        writer.close()
    assert b"ping_timeout" in sent


async def test_deadline_without_any_wish_is_the_servers(
    plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]
) -> None:
    await served[1].unary_unary(INFER)(infer_bytes(), metadata=(("traceparent", "00-ab-cd-01"),))
    context = plane.requests[0].context
    assert context.deadline == context.received + 60.0
    assert context.traceparent == "00-ab-cd-01"


async def test_a_message_that_does_not_come_is_given_up() -> None:
    plane = FakeDataPlane(request_timeout_s=0.1)
    async with serving(plane, GrpcLimits(max_concurrent_receives=1)) as (port, channel):
        stalled = channel.stream_unary(INFER)()
        error = await status_of(stalled)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        half = RawCall(port, INFER)
        await half.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(half.read_frames())
            group.create_task(half.send(infer_bytes(), 60 * MIB))  # over the window, so it is cut short by the end
            await half.answered()
        half.close()
        assert output_of(await channel.unary_unary(INFER)(infer_bytes())) == b"ab"
    assert plane.bodies.used_bytes == 0


# -- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate]
)
async def test_too_large_messages_are_refused_and_the_connection_lives(compression: grpc.Compression) -> None:
    plane = FakeDataPlane()
    async with serving(plane, GrpcLimits(max_message_bytes=MIB)) as (_, channel):
        infer = channel.unary_unary(INFER)
        error = await status_of(infer(infer_bytes(bytes(20 * MIB)), compression=compression))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        data = bytes(MIB - 1000)
        assert output_of(await infer(infer_bytes(data), compression=compression)) == data
    assert len(plane.requests) == 1
    await plane.bodies.is_empty()  # grpc.aio says so a moment after the client has its answer


@pytest.mark.parametrize("name", ["none", "gzip", "deflate"])
async def test_responses_are_packed_as_the_server_is_told(plane: FakeDataPlane, name: Any) -> None:
    async with serving(plane, GrpcLimits(response_compression=name)) as (_, channel):
        call = channel.unary_unary(INFER)(infer_bytes(bytes(100_000)))
        assert output_of(await call) == bytes(100_000)


async def test_damaged_compressed_message(served: tuple[int, grpc.aio.Channel]) -> None:
    error = await status_of(served[1].unary_unary(INFER)(b"\x1f\x8b\x08 no gzip"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_bodies_over_the_budget_are_refused_until_others_are_done() -> None:
    plane = FakeDataPlane(budget_bytes=MIB)
    release = asyncio.Event()

    async def hold(request: InferRequest) -> InferResponse:
        await release.wait()
        return InferResponse(MODEL, "1", [])

    plane.on_infer = hold
    async with serving(plane) as (_, channel):
        infer = channel.unary_unary(INFER)
        held = infer(infer_bytes(bytes(MIB // 2)))
        await plane.arrived.wait()
        error = await status_of(infer(infer_bytes(bytes(MIB * 3 // 4))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "retry-after-ms" in dict(error.trailing_metadata())
        assert plane.refusals == [Limit.BODY_BUDGET]
        release.set()
        await held
        await plane.bodies.is_empty()
        await infer(infer_bytes(bytes(MIB * 3 // 4)))


async def test_more_calls_than_may_wait_are_refused() -> None:
    plane = FakeDataPlane()
    async with serving(plane, GrpcLimits(max_concurrent_receives=1, max_waiting_receives=1)) as (_, channel):
        stalled = [channel.stream_unary(INFER)() for _ in range(3)]
        done, pending = await asyncio.wait(
            [asyncio.ensure_future(status_of(call)) for call in stalled], return_when=asyncio.FIRST_COMPLETED
        )
        assert [task.result().code() for task in done] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert plane.refusals == [Limit.RECEIVES]
        # Neither probes nor questions about models wait behind them.
        assert await channel.unary_unary(SERVICE + "ServerReady")(b"") == b"\x08\x01"
        await channel.unary_unary(SERVICE + "ModelReady")(pb.ModelReadyRequest(name=MODEL).SerializeToString())
        for call in stalled:
            call.cancel()
        await asyncio.wait(pending)


def resident_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process, now and at its peak."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    fields = {line[0]: line[1] for line in lines if len(line) > 1}
    return int(fields["VmRSS:"]) * 1024, int(fields["VmHWM:"]) * 1024


@pytest.fixture
def flood_server(transport: str) -> Iterator[tuple[int, int]]:
    """A server of its own process: 2 slots, messages of up to 32 MiB, a budget of 64 MiB. Gives process and port."""
    module = "tests.integration.grpc_flood_server"
    arguments = [sys.executable, "-m", module, transport, "2", str(32 * MIB), str(64 * MIB)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(arguments, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.communicate("", timeout=30)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
async def test_a_flood_of_large_messages_does_not_fill_memory(method: str, flood_server: tuple[int, int]) -> None:
    pid, port = flood_server
    zeros = 16 * MIB
    message = pb.ModelInferRequest(model_name=MODEL)
    message.inputs.add(name="IN", datatype="UINT8", shape=[zeros])
    head = message.SerializeToString() + b"\x3a" + encode_varint(zeros)
    assert len(decode_infer(head + bytes(zeros), 0.0, 1.0).inputs[0].data) == zeros
    await raw_call(port, SERVICE + method, head, zeros)
    before, _ = resident_bytes(pid)
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(raw_call(port, SERVICE + method, head, zeros)) for _ in range(200)]
    answered = [task.result() for task in calls]
    assert sum(call.sent_bytes for call in answered) > 200 * zeros
    assert any(call.got_data for call in answered)
    # Two slots, each with the pieces and the whole of a message, and the budget; a fifth on top for the allocator.
    bound = 1.2 * (2 * 2 * 32 * MIB + 64 * MIB)
    if method == "ModelStreamInfer":  # its connections stay open while the ends of the streams wait for their turn
        bound += 200 * MIB
    assert resident_bytes(pid)[1] - before < bound < 200 * zeros / 5


# -- slow readers ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def stalling_proxy(port: int, may_read: asyncio.Event) -> AsyncIterator[int]:
    """A proxy for one connection that passes nothing on from the server until it is told to."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allowed: asyncio.Event | None) -> None:
        while data := await reader.read(4096):
            if allowed is not None:
                await allowed.wait()
            writer.write(data)
            await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_over.clear()
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        writers.extend((writer, upstream_writer))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(pump(reader, upstream_writer, None))
                group.create_task(pump(upstream_reader, writer, may_read))
        except* ConnectionError:
            pass
        finally:
            is_over.set()

    writers: list[asyncio.StreamWriter] = []
    is_over = asyncio.Event()
    is_over.set()
    proxy = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield proxy.sockets[0].getsockname()[1]
    finally:
        proxy.close()
        for writer in writers:
            writer.close()
        await is_over.wait()


class Slot(npt.NDArray[np.uint8]):
    """A place in memory that is written over as soon as nothing refers to it any more, as places of answers are."""

    def __del__(self) -> None:
        if self.base is not None and self.base.size == self.size:  # the place itself, no part of it
            self.base[:] = 0xEE


async def read_slowly() -> None:
    """Answers wait in the server while memory is used again as soon as it may be; each must arrive as it was."""
    plane = FakeDataPlane()
    answered = asyncio.Event()

    async def answer_from_slot(request: InferRequest) -> InferResponse:
        slot = np.full(2 * MIB, request.inputs[0].data[0], np.uint8).view(Slot)
        if len(plane.requests) == 8:
            answered.set()
        return InferResponse(MODEL, "1", [Tensor("OUT", "UINT8", (len(slot),), slot.data)])

    plane.on_infer = answer_from_slot
    may_read = asyncio.Event()
    options = [("grpc.max_receive_message_length", -1)]
    async with (
        serving(plane) as (port, _),
        stalling_proxy(port, may_read) as proxy_port,
        grpc.aio.insecure_channel(f"127.0.0.1:{proxy_port}", options=options) as channel,
    ):
        may_read.set()
        await channel.channel_ready()
        may_read.clear()
        calls = [channel.unary_unary(INFER)(infer_bytes(bytes([number + 1]))) for number in range(8)]
        await answered.wait()
        may_read.set()
        for number, call in enumerate(calls):
            assert output_of(await call) == bytes([number + 1]) * (2 * MIB)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_slow_readers_get_the_right_bytes(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(read_slowly())
