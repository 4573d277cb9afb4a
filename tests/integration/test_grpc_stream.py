"""Streams of requests over gRPC: Triton's rules, back-pressure, clients that vanish, and the end of the server."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from roost.core.errors import Internal, NotFound
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import Tensor
from roost.proto import grpc_service_pb2 as pb
from roost.server.grpc_limits import GrpcLimits
from tritonclient.utils import InferenceServerException

from tests.integration.grpc_place import MIB, STREAM, build, infer_bytes, serving, status_of
from tests.unit.grpc_fakes import MODEL, FakeDataPlane, echo

pytestmark = pytest.mark.usefixtures("transport")

FINAL = "triton_final_response"
BIG_BYTES = 200_000  # more than HTTP/2 carries to a client that does not read


def wanting_empty_final(request_id: str, data: bytes) -> bytes:
    message = pb.ModelInferRequest.FromString(infer_bytes(data, request_id=request_id))
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    return message.SerializeToString()


async def count_up(request: InferRequest) -> AsyncGenerator[InferResponse, None]:
    """A decoupled model: as many answers as the first byte says, and then the end without one."""
    count = bytes(request.inputs[0].data)[0]
    for number in range(count):
        output = Tensor("OUT", "UINT8", (1,), bytes([number]))
        yield InferResponse(request.model_name, "1", [output], request.id, final=False)
    yield InferResponse(request.model_name, "1", [], request.id)


async def ask(channel: grpc.aio.Channel, *requests: bytes, **options: Any) -> list[pb.ModelStreamInferResponse]:
    """Sends requests at once, and gives all answers; the call must end well."""
    return await rest_of(channel.stream_stream(STREAM)(iter(requests), **options))


async def next_of(call: Any) -> pb.ModelStreamInferResponse:
    return pb.ModelStreamInferResponse.FromString(await call.read())


async def rest_of(call: Any) -> list[pb.ModelStreamInferResponse]:
    """All answers that are still to come; the call must end well."""
    answers = []
    while (raw := await call.read()) is not grpc.aio.EOF:
        answers.append(pb.ModelStreamInferResponse.FromString(raw))
    assert await call.code() is grpc.StatusCode.OK
    return answers


def seen(answer: pb.ModelStreamInferResponse) -> tuple[str, list[bytes], bool | None]:
    """The id, the outputs and the flag of an answer."""
    response = answer.infer_response
    flag = response.parameters[FINAL].bool_param if FINAL in response.parameters else None
    return response.id, list(response.raw_output_contents), flag


# -- answers --------------------------------------------------------------------------------------------------------


async def test_ordinary_models_run_together_and_answer_in_order(
    plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]
) -> None:
    may_answer = {str(number): asyncio.Event() for number in range(4)}
    done: list[str] = []

    async def answer(request: InferRequest) -> InferResponse:
        if len(plane.requests) == len(may_answer):
            may_answer["3"].set()
        await may_answer[request.id].wait()
        done.append(request.id)
        if request.id != "0":
            may_answer[str(int(request.id) - 1)].set()
        if request.id == "2":
            raise NotFound("gone")
        return await echo(request)

    plane.on_infer = answer
    requests = [infer_bytes(request_id=name) for name in may_answer]
    answers = await ask(served[1], *requests)
    assert done == ["3", "2", "1", "0"]
    assert [seen(item)[0] for item in answers] == ["0", "1", "2", "3"]
    assert [seen(item)[2] for item in answers] == [True, True, None, True]
    assert [item.error_message for item in answers] == ["", "", "gone", ""]


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([infer_bytes(b"\2", request_id="a")], [("a", [b"\0"], False), ("a", [b"\1"], False)]),
        ([wanting_empty_final("a", b"\1")], [("a", [b"\0"], False), ("a", [], True)]),
        ([wanting_empty_final("a", b"\0")], [("a", [], True)]),
        ([infer_bytes(b"\0", request_id="a")], []),
        ([], []),
    ],
)
async def test_decoupled_models_and_the_end_of_their_answers(
    requests: list[bytes],
    expected: list[tuple[str, list[bytes], bool]],
    plane: FakeDataPlane,
    served: tuple[int, grpc.aio.Channel],
) -> None:
    plane.on_stream = count_up
    answers = await ask(served[1], *requests)
    assert [seen(item) for item in answers] == expected
    assert all(item.infer_response.model_name == MODEL for item in answers)
    assert [item.infer_response.model_version for item in answers] == ["1" if data else "" for _, data, _ in expected]


async def test_a_last_answer_with_data_carries_the_flag(
    plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]
) -> None:
    async def two(request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        for number in range(2):
            yield InferResponse(MODEL, "1", [Tensor("OUT", "UINT8", (1,), b"x")], request.id, final=number == 1)

    plane.on_stream = two
    answers = await ask(served[1], infer_bytes(request_id="a"))
    assert [seen(item)[2] for item in answers] == [False, True]


async def test_decoupled_answers_interleave_and_hold_nobody_up(
    plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]
) -> None:
    others_answered = asyncio.Event()

    async def answer(request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        if request.id == "ordinary":
            yield await echo(request)
            return
        async for response in count_up(request):
            yield response
            if request.id == "first":
                await others_answered.wait()

    plane.on_stream = answer
    call = served[1].stream_stream(STREAM)()
    ids = []
    for request_id in ("first", "second", "ordinary"):
        await call.write(infer_bytes(b"\2", request_id=request_id))
        ids.append(seen(await next_of(call))[0])
    ids.append(seen(await next_of(call))[0])
    others_answered.set()
    await call.done_writing()
    ids += [seen(answer)[0] for answer in await rest_of(call)]
    assert (ids[0], sorted(ids[1:4]), ids[4:]) == ("first", ["ordinary", "second", "second"], ["first"])


async def test_errors_are_answers_and_the_stream_goes_on(
    plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel], caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: InferRequest) -> InferResponse:
        if request.id == "model":
            raise Internal("the model says no")
        if request.id == "bug":
            raise KeyError("secret")
        return await echo(request)

    plane.on_infer = answer
    answers = await ask(
        served[1],
        infer_bytes(model="nope", request_id="unknown"),
        b"\xff\xff",
        b"\x1f\x8b\x08 no gzip",
        infer_bytes(request_id="priority", priority=-1),
        infer_bytes(request_id="model"),
        infer_bytes(request_id="bug"),
        infer_bytes(request_id="fine"),
    )
    texts = [item.error_message for item in answers]
    assert [seen(item)[0] for item in answers] == ["unknown", "", "", "priority", "model", "bug", "fine"]
    for text, part in zip(
        texts, ["unknown model 'nope'", "not a", "damaged", "'priority'", "says no", "internal error", ""], strict=True
    ):
        assert part in text
    assert "secret" not in "".join(texts)
    assert "secret" in caplog.text
    named = [(item.infer_response.model_name, seen(item)[2]) for item in answers]
    assert named == [("", None)] * 4 + [(MODEL, True)] * 3
    assert plane.bodies.used_bytes == 0


async def test_a_client_may_ask_for_the_real_status(plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]) -> None:
    call = served[1].stream_stream(STREAM)(metadata=(("triton_grpc_error", "true"),))
    for request in (infer_bytes(request_id="a"), infer_bytes(model="nope")):
        await call.write(request)
    assert seen(await next_of(call))[0] == "a"
    error = await status_of(call.read())
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "unknown model 'nope'")


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests(compression: grpc.Compression, served: tuple[int, grpc.aio.Channel]) -> None:
    data = bytes(100_000)
    answers = await ask(served[1], infer_bytes(data), infer_bytes(b"a"), compression=compression)
    assert [seen(item)[1] for item in answers] == [[data], [b"a"]]


async def test_what_a_request_says_of_itself_arrives(
    plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]
) -> None:
    headers = (("traceparent", "00-ab-cd-01"),)
    await ask(served[1], infer_bytes(timeout=2_000_000), infer_bytes(), metadata=headers, timeout=20)
    first, second = (request.context for request in plane.requests)
    assert first.deadline == first.received + 2
    assert 0 < second.deadline - second.received < 20.1
    assert second.caller.startswith("ipv4:127.0.0.1")
    assert second.traceparent == "00-ab-cd-01"


# -- limits ---------------------------------------------------------------------------------------------------------


async def test_a_client_that_does_not_read_is_held_back() -> None:
    plane = FakeDataPlane(budget_bytes=5 * BIG_BYTES)  # a fifth request would not fit
    full = asyncio.Event()

    async def answer(request: InferRequest) -> InferResponse:
        if plane.in_flight == 4:
            full.set()
        assert plane.in_flight <= 4
        return await echo(request)

    plane.on_infer = answer
    async with serving(plane, GrpcLimits(max_stream_requests=4)) as (_, channel):
        requests = [infer_bytes(bytes(BIG_BYTES), request_id=str(number)) for number in range(40)]
        call = channel.stream_stream(STREAM)(iter(requests))
        await full.wait()
        answers = await rest_of(call)
    assert [(seen(item)[0], item.error_message) for item in answers] == [(str(number), "") for number in range(40)]
    assert plane.bodies.used_bytes == 0


async def test_a_decoupled_model_waits_for_its_reader(
    plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]
) -> None:
    produced = 0
    ended = asyncio.Event()

    async def endless(request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        nonlocal produced
        try:
            while True:
                produced += 1
                yield InferResponse(MODEL, "1", [Tensor("OUT", "UINT8", (BIG_BYTES,), bytes(BIG_BYTES))], final=False)
        finally:
            ended.set()

    plane.on_stream = endless
    call = served[1].stream_stream(STREAM)(iter([infer_bytes()]))
    for _ in range(20):
        await call.read()
    assert produced < 20 + 120  # connections take some megabytes on their own, more when the client is busy
    call.cancel()
    await ended.wait()


@pytest.mark.parametrize("closes_channel", [False, True])
async def test_a_vanishing_client_cancels_all_its_requests(
    closes_channel: bool, plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel], caplog: pytest.LogCaptureFixture
) -> None:
    all_there = asyncio.Event()

    async def wait_for_ever(request: InferRequest) -> InferResponse:
        if plane.in_flight == 3:
            all_there.set()
        await asyncio.Event().wait()
        raise AssertionError

    plane.on_infer = wait_for_ever
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served[0]}") as channel:
        call = channel.stream_stream(STREAM)(iter([infer_bytes()] * 3))
        await all_there.wait()
        assert plane.bodies.used_bytes == 3 * len(infer_bytes())
        if not closes_channel:
            call.cancel()
    await plane.bodies.is_empty()
    assert plane.in_flight == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_silent_streams_keep_nobody_from_sending(plane: FakeDataPlane) -> None:
    async with serving(plane, GrpcLimits(max_concurrent_receives=1, stream_silence_s=0.02)) as (_, channel):
        silent = [channel.stream_stream(STREAM)() for _ in range(3)]
        for call in silent:
            await call.wait_for_connection()
        assert [seen(item)[0] for item in await ask(channel, infer_bytes(request_id="a"))] == ["a"]
        for call in silent:
            await call.write(infer_bytes(request_id="late"))
            assert seen(await next_of(call))[0] == "late"


async def test_more_streams_than_allowed_are_refused(plane: FakeDataPlane) -> None:
    async with serving(plane, GrpcLimits(max_streams=1)) as (_, channel):
        first = channel.stream_stream(STREAM)()
        await first.write(infer_bytes())
        await first.read()
        error = await status_of(channel.stream_stream(STREAM)().read())
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await first.done_writing()
        assert await first.read() is grpc.aio.EOF
        assert len(await ask(channel, infer_bytes())) == 1


async def test_a_request_over_the_byte_budget_is_refused_alone() -> None:
    plane = FakeDataPlane(budget_bytes=1000)
    async with serving(plane) as (_, channel):
        large, small = infer_bytes(bytes(2000), request_id="large"), infer_bytes(request_id="small")
        answers = await ask(channel, large, small)
    assert [(seen(item)[0], bool(item.error_message)) for item in answers] == [("large", True), ("small", False)]


# -- the server's end -----------------------------------------------------------------------------------------------


async def test_a_message_over_the_limit_ends_the_stream_and_leaves_no_traceback(
    plane: FakeDataPlane, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(plane, GrpcLimits(max_message_bytes=MIB)) as (_, channel):
        for _ in range(30):  # whether the core or the handler ends first differs
            call = channel.stream_stream(STREAM)()
            await call.write(infer_bytes(b"a"))
            assert seen(await next_of(call))[1] == [b"a"]
            await call.write(infer_bytes(bytes(2 * MIB)))
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "larger than max" in await call.details()
    assert plane.bodies.used_bytes == 0
    assert not [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


async def test_stopping_answers_what_was_received_and_ends_silent_streams(plane: FakeDataPlane) -> None:
    release = asyncio.Event()

    async def hold(request: InferRequest) -> InferResponse:
        await release.wait()
        return await echo(request)

    server = build(plane)
    port = server.bind("127.0.0.1", 0)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        silent = channel.stream_stream(STREAM)()
        await silent.write(infer_bytes())
        await silent.read()
        plane.on_infer = hold
        busy, sent = channel.stream_stream(STREAM)(), channel.stream_stream(STREAM)(iter([infer_bytes(request_id="c")]))
        for request_id in ("a", "b"):
            await busy.write(infer_bytes(request_id=request_id))
        while plane.in_flight < 3:
            await plane.arrived.wait()
            plane.arrived.clear()
        stopping = asyncio.ensure_future(server.stop(600))
        error = await status_of(silent.read())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert not stopping.done()
        await busy.write(infer_bytes(request_id="late"))
        while not plane.refusals:
            await plane.arrived.wait()
            plane.arrived.clear()
        release.set()
        answers = [await next_of(busy) for _ in range(3)]
        assert [seen(item)[0] for item in answers] == ["a", "b", "late"]
        assert [item.error_message for item in answers] == ["", "", "the server is stopping"]
        assert (await status_of(busy.read())).code() is grpc.StatusCode.UNAVAILABLE
        assert [seen(answer)[0] for answer in await rest_of(sent)] == ["c"]
        await stopping


# -- tritonclient ---------------------------------------------------------------------------------------------------


def triton_input(count: int) -> list[Any]:
    item = triton.InferInput("IN", [1], "UINT8")
    item.set_data_from_numpy(np.array([count], np.uint8))
    return [item]


def use_sync_client(port: int) -> list[tuple[str, bool]]:
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        client.start_stream(lambda result, error: results.put((result, error)))
        client.async_stream_infer(MODEL, triton_input(2), request_id="r", enable_empty_final_response=True)
        answers = [results.get(timeout=30) for _ in range(3)]
        client.async_stream_infer("nope", triton_input(1), request_id="s")
        _, error = results.get(timeout=30)
        assert isinstance(error, InferenceServerException)
        assert "unknown model" in str(error)
        client.stop_stream()
    responses = [result.get_response() for result, _ in answers]
    return [(response.id, response.parameters[FINAL].bool_param) for response in responses]


async def test_tritonclient_streams(plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]) -> None:
    plane.on_stream = count_up
    assert await asyncio.to_thread(use_sync_client, served[0]) == [("r", False), ("r", False), ("r", True)]


async def test_tritonclient_aio_streams(plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for name in ("a", "b"):
            yield {"model_name": MODEL, "inputs": triton_input(3), "request_id": name}

    async with triton_aio.InferenceServerClient(f"127.0.0.1:{served[0]}") as client:
        results = [item async for item in client.stream_infer(requests())]
    assert [error for _, error in results] == [None, None]
    assert [result.get_response().id for result, _ in results] == ["a", "b"]
    assert results[0][0].as_numpy("OUT_IN").tolist() == [3]
