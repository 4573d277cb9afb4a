"""Triton's extensions over gRPC, MLServer's repository service, and what the operator of the transport may choose."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from roost.core.errors import ResourceExhausted
from roost.core.requests import InferRequest, InferResponse
from roost.proto import grpc_service_pb2 as pb
from roost.server.restrictions import Restrictions
from roost.server.transport_options import TransportOptions
from tritonclient.utils import InferenceServerException

from tests.integration.grpc_place import INFER, SERVICE, STREAM, infer_bytes, serving, status_of
from tests.unit.grpc_fakes import MODEL, FakeDataPlane

pytestmark = pytest.mark.usefixtures("transport")

# -- extensions -----------------------------------------------------------------------------------------------------


async def test_statistics(served: tuple[int, grpc.aio.Channel]) -> None:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{served[0]}") as client:
        answer = await client.get_inference_statistics(MODEL, as_json=True)
        (statistics,) = answer["model_stats"]
        assert (statistics["name"], statistics["version"], statistics["inference_count"]) == (MODEL, "1", "3")
        steps = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output"}
        assert set(statistics["inference_stats"]) == steps | {"cache_hit", "cache_miss"}
        assert statistics["inference_stats"]["success"] == {"count": "2", "ns": "300"}
        with pytest.raises(InferenceServerException, match="requested model 'nope' is not available"):
            await client.get_inference_statistics("nope")


async def test_system_shared_memory(served: tuple[int, grpc.aio.Channel]) -> None:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{served[0]}") as client:
        await client.register_system_shared_memory("r", "/key", 128, offset=64)
        await client.register_system_shared_memory("s", "/other", 1)
        status = await client.get_system_shared_memory_status("r", as_json=True)
        assert status["regions"] == {"r": {"name": "r", "key": "/key", "offset": "64", "byte_size": "128"}}
        with pytest.raises(InferenceServerException, match="already in manager"):
            await client.register_system_shared_memory("r", "/key", 128)
        with pytest.raises(InferenceServerException, match="Unable to find"):
            await client.get_system_shared_memory_status("t")
        await client.unregister_system_shared_memory("r")
        assert list((await client.get_system_shared_memory_status()).regions) == ["s"]
        await client.unregister_system_shared_memory()
        assert not (await client.get_system_shared_memory_status()).regions


async def test_cuda_shared_memory_without_a_gpu(served: tuple[int, grpc.aio.Channel]) -> None:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{served[0]}") as client:
        assert not (await client.get_cuda_shared_memory_status()).regions
        with pytest.raises(InferenceServerException, match="no GPU 0") as info:
            await client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 8)
        assert "INVALID_ARGUMENT" in info.value.status()
        await client.unregister_cuda_shared_memory("r")


async def test_trace_settings(plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]) -> None:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{served[0]}") as client:
        settings = await client.get_trace_settings(MODEL, as_json=True)
        assert settings["settings"] == {"trace_level": {"value": ["OFF"]}, "trace_rate": {"value": ["1000"]}}
        assert plane.trace_updates == []
        updates = {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "5", "trace_count": None}
        await client.update_trace_settings(MODEL, updates)
    expected = {"trace_level": ("TIMESTAMPS", "TENSORS"), "trace_rate": ("5",), "trace_count": None}
    assert plane.trace_updates == [(MODEL, expected)]


async def test_log_settings(plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]) -> None:
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{served[0]}") as client:
        await client.update_log_settings({"log_verbose_level": 1, "log_info": False})
        settings = await client.get_log_settings(as_json=True)
    assert settings["settings"] == {
        "log_info": {"bool_param": False},
        "log_verbose_level": {"uint32_param": 1},
        "log_format": {"string_param": "default"},
    }
    empty = pb.LogSettingsRequest()
    empty.settings["log_info"].SetInParent()
    error = await status_of(served[1].unary_unary(SERVICE + "LogSettings")(empty.SerializeToString()))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_mlservers_repository_service(plane: FakeDataPlane, served: tuple[int, grpc.aio.Channel]) -> None:
    service = "/inference.model_repository.ModelRepositoryService/"
    index = await served[1].unary_unary(service + "RepositoryIndex")(b"")
    assert [model.name for model in pb.RepositoryIndexResponse.FromString(index).models] == [MODEL, "broken"]
    load = pb.RepositoryModelLoadRequest(model_name=MODEL).SerializeToString()
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        answer = await served[1].unary_unary(service + method)(load)
        # KServe's fields: the name as the first one, true as the second.
        assert answer == b"\x0a" + bytes([len(MODEL)]) + MODEL.encode() + b"\x10\x01"
    assert (plane.loaded, plane.unloaded) == ([(MODEL, {})], [(MODEL, {})])


# -- what the operator chose ----------------------------------------------------------------------------------------


async def test_restricted_calls_need_their_header(plane: FakeDataPlane) -> None:
    options = TransportOptions(restrictions=Restrictions.parse(["inference,health:key=secret"]))
    async with serving(plane, options=options) as (_, channel):
        health = health_pb2_grpc.HealthStub(channel)
        restricted: list[Callable[[Any], Awaitable[Any]]] = [
            lambda metadata: channel.unary_unary(INFER)(infer_bytes(), metadata=metadata),
            lambda metadata: channel.stream_stream(STREAM)(iter([infer_bytes()]), metadata=metadata).read(),
            lambda metadata: channel.unary_unary(SERVICE + "ServerLive")(b"", metadata=metadata),
            lambda metadata: health.Check(health_pb2.HealthCheckRequest(), metadata=metadata),
            lambda metadata: health.Watch(health_pb2.HealthCheckRequest(), metadata=metadata).read(),
        ]
        for call in restricted:
            await call((("triton-grpc-protocol-key", "secret"),))
            for metadata in ((), (("triton-grpc-protocol-key", "wrong"),), (("key", "secret"),)):
                error = await status_of(call(metadata))
                assert error.code() is grpc.StatusCode.PERMISSION_DENIED
                assert "'triton-grpc-protocol-key'" in (error.details() or "")
        await channel.unary_unary(SERVICE + "ServerMetadata")(b"")
    assert len(plane.requests) == 2


async def test_headers_are_forwarded_to_models(plane: FakeDataPlane) -> None:
    options = TransportOptions(forward_headers=re.compile("^x-"))
    metadata = (("x-user", "me"), ("y-user", "you"), ("x-raw-bin", b"\0"))
    async with serving(plane, options=options) as (_, channel):
        await channel.unary_unary(INFER)(infer_bytes(), metadata=metadata)
        await channel.stream_stream(STREAM)(iter([infer_bytes(mine=1)]), metadata=metadata).read()
    assert [request.parameters for request in plane.requests] == [{"x-user": "me"}, {"x-user": "me", "mine": 1}]


async def test_tritons_statuses(plane: FakeDataPlane) -> None:
    async def fail(_: InferRequest) -> InferResponse:
        raise ResourceExhausted("full")

    plane.on_infer = fail
    async with serving(plane, options=TransportOptions(compat_triton=True)) as (_, channel):
        error = await status_of(channel.unary_unary(INFER)(infer_bytes()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        nope = pb.ModelStatisticsRequest(name="nope").SerializeToString()
        error = await status_of(channel.unary_unary(SERVICE + "ModelStatistics")(nope))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
