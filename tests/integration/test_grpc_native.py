"""The native gRPC transport over sockets: that it serves, when it does not, how connections end."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import replace

import grpc
import grpc.aio
import pytest
from roost.core.requests import InferRequest, InferResponse
from roost.proto import grpc_service_pb2 as pb
from roost.server.grpc_limits import GrpcLimits
from roost.server.grpc_native import NativeTransport
from roost.server.grpc_server import build_grpc_server

from tests.integration.grpc_place import INFER, SERVICE, infer_bytes, output_of, serving, status_of
from tests.unit.grpc_fakes import FakeDataPlane, echo
from tests.unit.http2_fakes import Client


async def for_ever(_: InferRequest) -> InferResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def test_inference_takes_the_lean_way_and_everything_else_is_served_too(plane: FakeDataPlane) -> None:
    async with serving(plane) as (_, channel):
        infer = channel.unary_unary(INFER)
        for size in (0, 1, 1000, 60_000):
            assert output_of(await infer(infer_bytes(bytes(size)))) == bytes(size)
        assert plane.begun == 4
        for size in (70_000, 3_000_000):  # more than clients send unasked
            assert output_of(await infer(infer_bytes(bytes(size)))) == bytes(size)
        packed = infer(infer_bytes(b"a" * 1000), compression=grpc.Compression.Gzip)
        assert output_of(await packed) == b"a" * 1000
        assert plane.begun == 4
        assert await channel.unary_unary(SERVICE + "ServerLive")(b"") == b"\x08\x01"
    assert len(plane.requests) == 7
    assert plane.requests[0].context.caller.startswith("ipv4:127.0.0.1:")
    assert plane.bodies.used_bytes == 0


@pytest.mark.parametrize(
    ("limits", "is_native", "words"),
    [
        (GrpcLimits(), True, ""),
        (GrpcLimits(transport="native", max_connection_age_s=5.0), True, ""),
        (GrpcLimits(transport="grpcio"), False, ""),
        (GrpcLimits(response_compression="gzip"), False, "--grpc-infer-response-compression"),
        (GrpcLimits(response_compression="gzip", transport="native"), False, "--grpc-infer-response-compression"),
    ],
)
async def test_what_it_lacks_is_served_by_grpcio_with_a_line_in_the_log(
    limits: GrpcLimits, is_native: bool, words: str, plane: FakeDataPlane, caplog: pytest.LogCaptureFixture
) -> None:
    server = build_grpc_server(plane, limits)
    assert isinstance(server.transport, NativeTransport) is is_native
    assert bool(caplog.records) is bool(words)
    assert words in caplog.text
    await server.stop(0)


async def test_many_calls_on_many_connections_get_their_own_answers(plane: FakeDataPlane) -> None:
    async def ask(channel: grpc.aio.Channel, number: int) -> None:
        data = struct.pack("<I", number) * (1 + number % 30_000)
        raw = await channel.unary_unary(INFER)(infer_bytes(data, request_id=str(number)))
        assert pb.ModelInferResponse.FromString(raw).id == str(number)
        assert output_of(raw) == data

    async with serving(plane) as (port, _):
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(4)]
        await asyncio.gather(*(ask(channels[number % 4], number * 977) for number in range(200)))
        for channel in channels:
            await channel.close()
    assert plane.bodies.used_bytes == 0


async def test_a_killed_client_cancels_its_requests(plane: FakeDataPlane) -> None:
    plane.on_infer = for_ever
    async with serving(plane) as (port, _):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        maker = Client(plane)  # for its frames alone
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        writer.write(b"".join(maker.call(stream_id, infer_bytes()) for stream_id in (1, 3, 5)) + maker.headers(7))
        while len(plane.requests) < 3:
            await plane.arrived.wait()
            plane.arrived.clear()
        assert plane.bodies.used_bytes == 3 * len(infer_bytes())
        # Closing it now resets the connection, as the kernel does for a process that is no more.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await plane.bodies.is_empty()
        await plane.cancelled.wait()


async def test_connections_that_are_too_old_are_replaced_without_an_error(plane: FakeDataPlane) -> None:
    callers: set[str] = set()
    enough = asyncio.Event()

    async def answer(request: InferRequest) -> InferResponse:
        callers.add(request.context.caller)
        if len(callers) > 2:
            enough.set()
        return await echo(request)

    plane.on_infer = answer
    async with serving(plane, GrpcLimits(max_connection_age_s=0.05)) as (_, channel):
        infer = channel.unary_unary(INFER)
        async with asyncio.timeout(30):
            while not enough.is_set():
                await infer(infer_bytes())


async def test_calls_that_outlive_the_grace_of_an_old_connection_are_cut_off(plane: FakeDataPlane) -> None:
    plane.on_infer = for_ever
    limits = GrpcLimits(max_connection_age_s=0.02, max_connection_age_grace_s=0.02)
    async with serving(plane, limits) as (_, channel):
        error = await status_of(channel.unary_unary(INFER)(infer_bytes()))
        assert error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        await plane.cancelled.wait()
    assert plane.bodies.used_bytes == 0


async def test_stopping_without_grace_ends_calls_at_once(plane: FakeDataPlane) -> None:
    plane.on_infer = for_ever
    server = build_grpc_server(plane, replace(GrpcLimits(), transport="native"))
    port = server.bind("127.0.0.1", 0)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        lean = channel.unary_unary(INFER)(infer_bytes())
        await plane.arrived.wait()
        plane.may_begin = False
        plane.arrived.clear()
        ordinary = channel.unary_unary(INFER)(infer_bytes())
        await plane.arrived.wait()
        await server.stop(0)
        for call in (lean, ordinary):
            assert (await status_of(call)).code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        error = await status_of(channel.unary_unary(INFER)(infer_bytes(), timeout=5))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert plane.bodies.used_bytes == 0


async def test_the_name_of_an_unknown_model_is_in_the_error(plane: FakeDataPlane) -> None:
    async with serving(plane) as (_, channel):
        error = await status_of(channel.unary_unary(INFER)(infer_bytes(model="ünknown %")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "unknown model 'ünknown %'"
