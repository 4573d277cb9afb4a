"""The gRPC transport over real connections: tritonclient and plain stubs against a data plane that a test controls."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from roost.core.errors import Code, FailedPrecondition, Unavailable, error_of
from roost.core.requests import InferRequest, InferResponse
from roost.proto import grpc_service_pb2 as pb
from roost.server.grpc_errors import STATUS_OF_CODE
from tritonclient.utils import InferenceServerException

from tests.integration.grpc_place import INFER, SERVICE, build, infer_bytes, status_of
from tests.unit.grpc_fakes import MODEL, FakeDataPlane

pytestmark = pytest.mark.usefixtures("transport")


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
    plane.may_begin = False  # what it gives is never a surprise
    error = await status_of(served[1].unary_unary(INFER)(infer_bytes()))
    assert error.code() is grpc.StatusCode.INTERNAL
    details = error.details() or ""
    assert "secret" not in details
    assert details.split()[-1] in caplog.text
    assert "KeyError" in caplog.text


async def test_repositories_have_no_names(served: tuple[int, grpc.aio.Channel]) -> None:
    for method in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"):
        request = pb.RepositoryIndexRequest(repository_name="x").SerializeToString()
        error = await status_of(served[1].unary_unary(SERVICE + method)(request))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_failed_load_keeps_its_code(plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]) -> None:
    async def refuse(name: str, parameters: object) -> None:
        raise FailedPrecondition("explicit model control is off")

    plane.load_model = refuse  # type: ignore[method-assign]
    load = pb.RepositoryModelLoadRequest(model_name=MODEL).SerializeToString()
    error = await status_of(served[1].unary_unary(SERVICE + "RepositoryModelLoad")(load))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


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
    server = build(plane)
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
    second = build(plane)
    with pytest.raises(OSError, match=f"cannot listen for gRPC on 127.0.0.1:{served[0]}"):
        second.bind("127.0.0.1", served[0])
    await second.stop(0)


async def test_stop_lets_calls_in_flight_finish(plane: FakeDataPlane) -> None:
    release = asyncio.Event()

    async def hold(request: InferRequest) -> InferResponse:
        await release.wait()
        raise Unavailable("late but answered")

    plane.on_infer = hold
    server = build(plane)
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
