"""The extensions with tritonclient's four clients: shared memory, statistics, settings, load overrides, plugins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import tritonclient.utils.shared_memory as shm
from tritonclient.http import InferenceServerClient as HttpClient
from tritonclient.http import InferResult as HttpResult
from tritonclient.http.aio import InferenceServerClient as HttpAioClient
from tritonclient.utils import InferenceServerException

from tests.clients import HEADER_LENGTH
from tests.conformance.triton import HTTP, MODULES, Triton, code, triton
from tests.models import write_identity
from tests.server import RoostServer

every_client = pytest.mark.parametrize("kind", tuple(MODULES))
TENSOR_BYTES = 16 * 4
TRACE_KEYS = {"trace_level", "trace_rate", "trace_count", "log_frequency", "trace_file", "trace_mode"}
LOG_KEYS = {"log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"}


# -- shared memory --------------------------------------------------------------------------------------------------


@pytest.fixture
def region() -> Iterator[Any]:
    """A region of the client's with room for four tensors of ``simple``."""
    handle = shm.create_shared_memory_region("tensors", f"/conformance-{os.getpid()}", 4 * TENSOR_BYTES)
    yield handle
    shm.destroy_shared_memory_region(handle)


@pytest.fixture
def no_regions(server: RoostServer) -> Iterator[None]:
    """A server that has forgotten all regions afterwards, whatever a test does."""
    yield
    assert server.post("/v2/systemsharedmemory/unregister")[0] == 200


@pytest.mark.usefixtures("no_regions")
@every_client
async def test_system_shared_memory(server: RoostServer, kind: str, region: Any) -> None:
    key = f"/conformance-{os.getpid()}"
    arrays = [np.full((1, 16), value, np.int32) for value in (5, 3)]
    shm.set_shared_memory_region(region, arrays)
    async with triton(server, kind) as client:
        await client.call("register_system_shared_memory", "tensors", key, 4 * TENSOR_BYTES)
        assert _regions(await client.call("get_system_shared_memory_status")) == {"tensors": (key, 0, 4 * TENSOR_BYTES)}
        named = await client.call("get_system_shared_memory_status", "tensors")
        assert set(_regions(named)) == {"tensors"}
        inputs = [client.module.InferInput(f"INPUT{index}", [1, 16], "INT32") for index in range(2)]
        for index, item in enumerate(inputs):
            item.set_shared_memory("tensors", TENSOR_BYTES, offset=index * TENSOR_BYTES)
        output = client.output("OUTPUT0")
        output.set_shared_memory("tensors", TENSOR_BYTES, offset=2 * TENSOR_BYTES)
        result = await client.infer("simple", inputs, outputs=[output, client.output("OUTPUT1")])
        assert (result.as_numpy("OUTPUT1") == 2).all()
        described = result.get_output("OUTPUT0")
        assert _field(described, "datatype") == "INT32"
        assert [int(dim) for dim in _field(described, "shape")] == [1, 16]
        assert (shm.get_contents_as_numpy(region, np.int32, [1, 16], 2 * TENSOR_BYTES) == 8).all()
        output.unset_shared_memory()
        assert (await client.infer("simple", inputs, outputs=[output])).as_numpy("OUTPUT0")[0, 0] == 8
        await client.call("unregister_system_shared_memory", "tensors")
        assert _regions(await client.call("get_system_shared_memory_status")) == {}
        with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'tensors'") as error:
            await client.infer("simple", inputs)
        assert code(error.value) == "NOT_FOUND"
        await client.call("register_system_shared_memory", "tensors", key, TENSOR_BYTES, offset=TENSOR_BYTES)
        with pytest.raises(InferenceServerException, match="already in manager") as error:
            await client.call("register_system_shared_memory", "tensors", key, TENSOR_BYTES)
        assert code(error.value) == "ALREADY_EXISTS"
        await client.call("unregister_system_shared_memory")
        assert _regions(await client.call("get_system_shared_memory_status")) == {}


@every_client
async def test_cuda_shared_memory_without_a_gpu(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        assert not (await client.call("get_cuda_shared_memory_status") or {}).get("regions")
        with pytest.raises(InferenceServerException, match="GPU") as error:
            # The clients pass the handle on as the CUDA library gives it: in base64.
            await client.call("register_cuda_shared_memory", "tensors", b"AAAA", 0, 64)
        assert code(error.value) == "INVALID_ARGUMENT"
        await client.call("unregister_cuda_shared_memory")


def _regions(status: Any) -> dict[str, tuple[str, int, int]]:
    rows = status.get("regions", {}).values() if isinstance(status, dict) else status
    return {row["name"]: (row["key"], int(row.get("offset", 0)), int(row["byte_size"])) for row in rows}


def _field(described: Any, name: str) -> Any:
    return described[name] if isinstance(described, dict) else getattr(described, name)


# -- classification -------------------------------------------------------------------------------------------------


@every_client
async def test_classification(server: RoostServer, kind: str) -> None:
    array = np.array([[0.1, 0.9, 0.5, 0.3]], np.float32)
    async with triton(server, kind) as client:
        inputs = [client.input("INPUT0", array, "FP32")]
        result = await client.infer("labelled", inputs, outputs=[client.output("OUTPUT0", class_count=2)])
        assert result.as_numpy("OUTPUT0").tolist() == [[b"0.900000:1:dog", b"0.500000:2:fish"]]
        result = await client.infer("simple", client.sixteen(9, 7), outputs=[client.output("OUTPUT0", class_count=1)])
        # ``simple`` has no batches: its two dimensions are one list.
        assert result.as_numpy("OUTPUT0").tolist() == [b"16:0"]


# -- statistics and settings ----------------------------------------------------------------------------------------


@every_client
async def test_statistics(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        before = await _count(client)
        for _ in range(3):
            await client.infer("batched", client.sixteen(1, 1, rows=2))
        assert await _count(client) == (before[0] + 3, before[1] + 6)
        everything = await client.call("get_inference_statistics")
        assert {"batched", "simple"} <= {row["name"] for row in everything["model_stats"]}
        with pytest.raises(InferenceServerException, match="nope"):
            await client.call("get_inference_statistics", "nope")


async def _count(client: Triton) -> tuple[int, int]:
    """Successful requests to ``batched``, and their rows."""
    stats = await client.call("get_inference_statistics", "batched", "1")
    (row,) = stats["model_stats"]
    assert len(row["inference_stats"]) == 8
    return int(row["inference_stats"]["success"].get("count", 0)), int(row.get("inference_count", 0))


@every_client
async def test_trace_settings(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        settings = _settings(await client.call("get_trace_settings"))
        assert set(settings) == TRACE_KEYS
        assert settings["trace_level"] == ["OFF"]
        changed = _settings(await client.call("update_trace_settings", "simple", settings={"trace_rate": "7"}))
        assert changed["trace_rate"] in ("7", ["7"])
        assert _settings(await client.call("get_trace_settings", "simple")) == changed
        assert _settings(await client.call("get_trace_settings")) == settings
        cleared = _settings(await client.call("update_trace_settings", "simple", settings={"trace_rate": None}))
        assert cleared == settings
        with pytest.raises(InferenceServerException, match="trac") as error:
            await client.call("update_trace_settings", settings={"trace_level": ["TIMESTAMPS"]})
        assert code(error.value) in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")


@every_client
async def test_log_settings(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        settings = _settings(await client.call("get_log_settings"))
        assert set(settings) == LOG_KEYS
        changed = _settings(await client.call("update_log_settings", {"log_verbose_level": 1}))
        assert changed == {**settings, "log_verbose_level": 1}
        assert _settings(await client.call("get_log_settings")) == changed
        await client.call("update_log_settings", {"log_verbose_level": settings["log_verbose_level"]})
        with pytest.raises(InferenceServerException) as error:
            await client.call("update_log_settings", {"log_file": "elsewhere.log"})
        assert code(error.value) == "UNIMPLEMENTED"


def _settings(answer: dict[str, Any]) -> dict[str, Any]:
    """Settings as plain values, whichever transport they came over."""
    if "settings" not in answer:
        return answer
    values = {}
    for name, value in answer["settings"].items():
        values[name] = value["value"] if "value" in value else next(iter(value.values()), [])
    return values


# -- load overrides -------------------------------------------------------------------------------------------------


@every_client
async def test_load_with_config_and_files(explicit_server: RoostServer, kind: str, tmp_path: Path) -> None:
    model = write_identity(tmp_path / "model.onnx", "FP32").read_bytes()
    name = f"sent_{kind.replace('.', '_')}"
    async with triton(explicit_server, kind) as client:
        config = '{"backend": "onnxruntime", "version_policy": {"specific": {"versions": [2]}}}'
        await client.call("load_model", name, config=config, files={"file:2/model.onnx": model})
        metadata = await client.call("get_model_metadata", name)
        assert (metadata["versions"], metadata["inputs"][0]["datatype"]) == (["2"], "FP32")
        array = np.array([[1.5, 2.5]], np.float32)
        result = await client.infer(name, [client.input("INPUT0", array, "FP32")])
        assert (result.as_numpy("OUTPUT0") == array).all()
        with pytest.raises(InferenceServerException):
            await client.call("load_model", "simple", config="{")
        await client.call("unload_model", name)
        assert await client.call("is_model_ready", name) is False


# -- what the clients do themselves ---------------------------------------------------------------------------------


class _AddHeader:
    """A plugin as the clients' own one for basic authentication."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, request: Any) -> None:
        self.calls += 1
        request.headers["x-test"] = "1"


@every_client
async def test_plugins(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        plugin = _AddHeader()
        await client.call("register_plugin", plugin)
        assert await client.call("plugin") is plugin
        await client.infer("simple", client.sixteen(1, 1))
        assert plugin.calls == 1
        await client.call("unregister_plugin")
        assert await client.call("is_server_live")
        assert plugin.calls == 1


@pytest.mark.parametrize("cls", [HttpClient, HttpAioClient])
async def test_bodies_made_and_read_without_a_connection(server: RoostServer, cls: Any) -> None:
    async with triton(server, "http") as client:
        body, length = cls.generate_request_body(client.sixteen(5, 3), request_id="a")
    url = f"http://{server.http}/v2/models/simple/infer"
    headers = {HEADER_LENGTH: str(length)}
    async with aiohttp.ClientSession() as session, session.post(url, data=bytes(body), headers=headers) as answer:
        assert answer.status == 200
        data, found = await answer.read(), answer.headers.get(HEADER_LENGTH)
    options = {"header_length": found and int(found)}
    for result in (cls.parse_response_body(data, **options), HttpResult.from_response_body(data, **options)):
        assert (result.as_numpy("OUTPUT0") == 8).all()


async def test_inputs_describe_themselves() -> None:
    for module in MODULES.values():
        item = module.InferInput("X", [1, 2], "INT32")
        item.set_shape([2, 1])
        assert (item.name(), item.datatype(), item.shape()) == ("X", "INT32", [2, 1])
        assert module.InferRequestedOutput("Y").name() == "Y"


@pytest.mark.parametrize("kind", HTTP)
async def test_query_parameters_and_headers(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        extra = {"query_params": {"a": "1", "b": ["x", "y"]}, "headers": {"x-note": "z"}}
        result = await client.infer("simple", client.sixteen(5, 3), **extra)
        assert (result.as_numpy("OUTPUT0") == 8).all()
        assert await client.call("is_model_ready", "simple", **extra)
