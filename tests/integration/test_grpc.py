"""The gRPC transport over real connections: tritonclient and plain stubs against a data plane that a test controls."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import uvloop
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from roost.core.errors import Code, FailedPrecondition, Unavailable, error_of
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import Tensor
from roost.proto import grpc_service_pb2 as pb
from roost.server.grpc_codec import decode_infer
from roost.server.grpc_errors import STATUS_OF_CODE
from roost.server.grpc_limits import GrpcLimits
from roost.server.grpc_server import GrpcServer, build_grpc_server
from roost.server.grpc_wire import encode_varint
from tritonclient.utils import InferenceServerException

from tests.integration.raw_http2 import RawCall, raw_call
from tests.unit.grpc_fakes import MODEL, FakeDataPlane

SERVICE = "/inference.GRPCInferenceService/"
INFER = SERVICE + "ModelInfer"
MIB = 2**20


@asynccontextmanager
async def serving(
    data_plane: FakeDataPlane, limits: GrpcLimits | None = None
) -> AsyncIterator[tuple[int, grpc.aio.Channel]]:
    """Runs a server; gives its port and a channel to it."""
    server = build_grpc_server(data_plane, limits or GrpcLimits(health_poll_s=0.01))
    port = server.bind("127.0.0.1", 0)
    await server.start()
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield port, channel
    finally:
        await server.stop(0)


@pytest.fixture
async def plane() -> FakeDataPlane:
    return FakeDataPlane()


@pytest.fixture
async def served(plane: FakeDataPlane) -> AsyncIterator[tuple[int, grpc.aio.Channel]]:
    async with serving(plane) as place:
        yield place


def infer_bytes(data: bytes = b"ab", model: str = MODEL, **parameters: int) -> bytes:
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[data])
    message.inputs.add(name="IN", datatype="UINT8", shape=[len(data)])
    for name, value in parameters.items():
        message.parameters[name].int64_param = value
    return message.SerializeToString()


def output_of(raw: bytes) -> bytes:
    (content,) = pb.ModelInferResponse.FromString(raw).raw_output_contents
    return content


async def status_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as info:
        await call
    return info.value


def triton_inputs() -> tuple[list[Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    numbers = np.arange(8, dtype=np.float32).reshape(2, 4)
    texts = np.array([b"a", b"\xff\x00"], dtype=np.object_)
    inputs = [triton.InferInput("IN", [2, 4], "FP32"), triton.InferInput("TEXT", [2], "BYTES")]
    inputs[0].set_data_from_numpy(numbers)
    inputs[1].set_data_from_numpy(texts)
    return inputs, numbers, texts


# -- tritonclient ---------------------------------------------------------------------------------------------------


def use_sync_client(port: int) -> None:
    """Every call in scope through tritonclient's blocking client."""
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.is_model_ready(MODEL, "1")
        assert not client.is_model_ready("nope")
        metadata = client.get_server_metadata()
        assert (metadata.name, metadata.version) == ("roost", "1.2.3")
        assert list(metadata.extensions) == ["model_repository", "binary_tensor_data"]
        model = client.get_model_metadata(MODEL, as_json=True)
        assert model["versions"] == ["1", "3"]
        assert model["inputs"][0] == {"name": "IN", "datatype": "FP32", "shape": ["-1", "4"]}
        assert client.get_model_config(MODEL).config.max_batch_size == 8
        assert [m.name for m in client.get_model_repository_index().models] == [MODEL, "broken"]
        client.load_model(MODEL, config='{"max_batch_size": 4}', files={"file:1/model.onnx": b"\x00\x01"})
        client.unload_model(MODEL, unload_dependents=True)
        inputs, numbers, texts = triton_inputs()
        for compression in (None, "gzip", "deflate"):
            result = client.infer(
                MODEL,
                inputs,
                request_id="r1",
                outputs=[triton.InferRequestedOutput("OUT_IN")],
                parameters={"mine": 3},
                compression_algorithm=compression,
            )
            assert np.array_equal(result.as_numpy("OUT_IN"), numbers)
            assert np.array_equal(result.as_numpy("OUT_TEXT"), texts)
            assert result.get_response().id == "r1"
        with pytest.raises(InferenceServerException, match="unknown model 'nope'") as info:
            client.infer("nope", inputs)
        assert "NOT_FOUND" in info.value.status()


async def test_every_call_of_tritonclient(plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]) -> None:
    await asyncio.to_thread(use_sync_client, served[0])
    config, file = '{"max_batch_size": 4}', b"\x00\x01"
    assert plane.loaded == [(MODEL, {"config": config, "file:1/model.onnx": file})]
    assert plane.unloaded == [(MODEL, {"unload_dependents": True})]
    assert [o.name for o in plane.requests[0].outputs] == ["OUT_IN"]
    assert plane.requests[0].parameters == {"mine": 3}
    assert plane.requests[0].context.caller.startswith("ipv4:127.0.0.1")


async def test_every_call_of_tritonclient_aio(plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]) -> None:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{served[0]}") as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(MODEL)
        assert not await client.is_model_ready("nope")
        assert (await client.get_server_metadata()).name == "roost"
        assert (await client.get_model_metadata(MODEL)).platform == "onnxruntime_onnx"
        assert (await client.get_model_config(MODEL)).config.name == MODEL
        assert len((await client.get_model_repository_index()).models) == 2
        await client.load_model(MODEL)
        await client.unload_model(MODEL)
        inputs, numbers, _ = triton_inputs()
        result = await client.infer(MODEL, inputs, priority=2, timeout=5_000_000, sequence_id=7, sequence_start=True)
        assert np.array_equal(result.as_numpy("OUT_IN"), numbers)
    (request,) = plane.requests
    assert request.context.priority == 2
    assert request.context.deadline == request.context.received + 5
    assert request.parameters == {"sequence_id": 7, "sequence_start": True, "sequence_end": False}


# -- errors ---------------------------------------------------------------------------------------------------------


async def test_bytes_that_are_no_message(served: tuple[int, grpc.aio.Channel]) -> None:
    for method in ("ModelInfer", "ModelMetadata", "ModelConfig", "RepositoryModelLoad", "RepositoryIndex"):
        error = await status_of(served[1].unary_unary(SERVICE + method)(b"\xff\xff\xff"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = await status_of(served[1].stream_unary(INFER)(iter(())))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("code", list(Code))
async def test_errors_keep_code_message_and_retry_hint(
    code: Code, plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]
) -> None:
    async def fail(_: InferRequest) -> InferResponse:
        raise error_of(code, "because é\n", retry_after_s=1.5)

    plane.on_infer = fail
    error = await status_of(served[1].unary_unary(INFER)(infer_bytes()))
    assert error.code() is STATUS_OF_CODE[code]
    assert error.details() == "because é\n"
    assert dict(error.trailing_metadata())["retry-after-ms"] == "1500"
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1500"


async def test_unexpected_errors_are_internal_with_an_id(
    plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel], caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: InferRequest) -> InferResponse:
        raise KeyError("secret")

    plane.on_infer = fail
    error = await status_of(served[1].unary_unary(INFER)(infer_bytes()))
    assert error.code() is grpc.StatusCode.INTERNAL
    details = error.details() or ""
    assert "secret" not in details
    assert details.split()[-1] in caplog.text
    assert "KeyError" in caplog.text


async def test_methods_not_served_say_so(served: tuple[int, grpc.aio.Channel]) -> None:
    channel = served[1]
    for method in ("ModelStatistics", "TraceSetting", "LogSettings", "SystemSharedMemoryStatus"):
        error = await status_of(channel.unary_unary(SERVICE + method)(b""))
        assert (error.code(), error.details()) == (
            grpc.StatusCode.UNIMPLEMENTED,
            f"{method} is not implemented by this server",
        )
    stream = channel.stream_stream(SERVICE + "ModelStreamInfer")(iter([infer_bytes()]))
    assert (await status_of(stream.read())).code() is grpc.StatusCode.UNIMPLEMENTED
    index = pb.RepositoryIndexRequest(repository_name="x").SerializeToString()
    error = await status_of(channel.unary_unary(SERVICE + "RepositoryIndex")(index))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_failed_load_keeps_its_code(plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]) -> None:
    async def refuse(name: str, parameters: object) -> None:
        raise FailedPrecondition("explicit model control is off")

    plane.load_model = refuse  # type: ignore[method-assign]
    load = pb.RepositoryModelLoadRequest(model_name=MODEL).SerializeToString()
    error = await status_of(served[1].unary_unary(SERVICE + "RepositoryModelLoad")(load))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


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
    assert plane.bodies.used_bytes == 0


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
def flood_server() -> Iterator[tuple[int, int]]:
    """A server of its own process: 2 slots, messages of up to 32 MiB, a budget of 64 MiB. Gives process and port."""
    arguments = [sys.executable, "-m", "tests.integration.grpc_flood_server", "2", str(32 * MIB), str(64 * MIB)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(arguments, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.communicate("", timeout=30)


async def test_a_flood_of_large_messages_does_not_fill_memory(flood_server: tuple[int, int]) -> None:
    pid, port = flood_server
    zeros = 16 * MIB
    message = pb.ModelInferRequest(model_name=MODEL)
    message.inputs.add(name="IN", datatype="UINT8", shape=[zeros])
    head = message.SerializeToString() + b"\x3a" + encode_varint(zeros)
    assert len(decode_infer(head + bytes(zeros), 0.0, 1.0).inputs[0].data) == zeros
    await raw_call(port, INFER, head, zeros)
    before, _ = resident_bytes(pid)
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(raw_call(port, INFER, head, zeros)) for _ in range(200)]
    answered = [task.result() for task in calls]
    assert sum(call.sent_bytes for call in answered) > 200 * zeros
    assert any(call.got_data for call in answered)
    # Two slots, each with the pieces and the whole of a message, and the budget; a fifth on top for the allocator.
    bound = 1.2 * (2 * 2 * 32 * MIB + 64 * MIB)
    assert resident_bytes(pid)[1] - before < bound < 200 * zeros / 10


# -- slow readers ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def stalling_proxy(port: int, may_read: asyncio.Event) -> AsyncIterator[int]:
    """A proxy that passes nothing on from the server until it is told to."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allowed: asyncio.Event | None) -> None:
        while data := await reader.read(4096):
            if allowed is not None:
                await allowed.wait()
            writer.write(data)
            await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(pump(reader, upstream_writer, None))
                group.create_task(pump(upstream_reader, writer, may_read))
        except* ConnectionError:
            pass

    proxy = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield proxy.sockets[0].getsockname()[1]
    finally:
        proxy.close()


async def read_slowly() -> None:
    """Answers wait in the server while their buffer is written over again and again; each must arrive as it was."""
    plane = FakeDataPlane()
    slot = bytearray(2 * MIB)
    answered = asyncio.Event()

    async def answer_from_slot(request: InferRequest) -> InferResponse:
        slot[:] = bytes(request.inputs[0].data[:1]) * len(slot)
        if len(plane.requests) == 8:
            answered.set()
        return InferResponse(MODEL, "1", [Tensor("OUT", "UINT8", (len(slot),), memoryview(slot))])

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
        slot[:] = b"\xee" * len(slot)
        may_read.set()
        for number, call in enumerate(calls):
            assert output_of(await call) == bytes([number + 1]) * len(slot)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_slow_readers_get_the_right_bytes(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(read_slowly())


# -- health, reflection, lifecycle ----------------------------------------------------------------------------------


async def test_health_check_is_server_ready(plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]) -> None:
    stub = health_pb2_grpc.HealthStub(served[1])
    for service in ("", "inference.GRPCInferenceService", "anything"):
        plane.ready = True
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        plane.ready = False
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_watch_tells_changes_and_ends_with_the_server(plane: FakeDataPlane) -> None:
    response = health_pb2.HealthCheckResponse
    server = build_grpc_server(plane, GrpcLimits(health_poll_s=0.01))
    port = server.bind("127.0.0.1", 0)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == response.SERVING
        plane.ready = False
        assert (await watch.read()).status == response.NOT_SERVING
        plane.ready = True
        assert (await watch.read()).status == response.SERVING
        stopping = asyncio.ensure_future(server.stop(60))
        assert (await watch.read()).status == response.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        assert await watch.code() is grpc.StatusCode.OK
        await stopping


async def test_reflection_lists_and_describes_every_service(served: tuple[int, grpc.aio.Channel]) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(served[1])
    questions = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.Such"),
    ]
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(questions))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert names >= {"inference.GRPCInferenceService", "grpc.health.v1.Health"}
    for answer, name, method in ((answers[1], "GRPCInferenceService", "ModelInfer"), (answers[2], "Health", "Check")):
        methods = set()
        for raw in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(raw)
            methods |= {m.name for service in file.service if service.name == name for m in service.method}
        assert method in methods
    assert answers[3].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_reflection_refuses_what_is_no_question(served: tuple[int, grpc.aio.Channel]) -> None:
    call = served[1].stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(iter([b"\xff"]))
    assert (await status_of(call.read())).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_taken_port_is_an_error(plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]) -> None:
    second: GrpcServer = build_grpc_server(plane, GrpcLimits())
    with pytest.raises(OSError, match=f"cannot listen for gRPC on 127.0.0.1:{served[0]}"):
        second.bind("127.0.0.1", served[0])
    await second.stop(0)


async def test_stop_lets_calls_in_flight_finish(plane: FakeDataPlane) -> None:
    release = asyncio.Event()

    async def hold(request: InferRequest) -> InferResponse:
        await release.wait()
        raise Unavailable("late but answered")

    plane.on_infer = hold
    server = build_grpc_server(plane, GrpcLimits())
    port = server.bind("127.0.0.1", 0)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(INFER)(infer_bytes())
        await plane.arrived.wait()
        stopping = asyncio.ensure_future(server.stop(60))
        await asyncio.sleep(0)
        release.set()
        assert (await status_of(call)).details() == "late but answered"
        await stopping
