"""What tritonclient's users do, with all four of its clients."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from roost.core.tensors import DATATYPES
from tritonclient.utils import InferenceServerException

from tests.conformance.triton import HTTP, MODULES, Triton, triton
from tests.server import RoostServer, eventually

KINDS = tuple(MODULES)

every_client = pytest.mark.parametrize("kind", KINDS)


@every_client
async def test_health(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        assert await client.call("is_server_live") is True
        assert await client.call("is_server_ready") is True
        assert await client.call("is_model_ready", "simple") is True
        assert await client.call("is_model_ready", "simple", "3") is True
        assert await client.call("is_model_ready", "simple", "2") is False
        assert await client.call("is_model_ready", "nope") is False


@every_client
async def test_server_metadata(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        metadata = await client.call("get_server_metadata")
    assert metadata["name"] == "conforming"
    assert metadata["version"]
    assert "model_repository" in metadata["extensions"]
    assert "binary_tensor_data" in metadata["extensions"]


@every_client
async def test_model_metadata(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        metadata = await client.call("get_model_metadata", "simple")
        batched = await client.call("get_model_metadata", "batched", "1")
    assert metadata["name"] == "simple"
    assert metadata["versions"] == ["1", "3"]
    assert metadata["platform"] == "onnxruntime_onnx"
    assert [(row["name"], row["datatype"]) for row in metadata["inputs"]] == [("INPUT0", "INT32"), ("INPUT1", "INT32")]
    assert [int(dim) for dim in metadata["outputs"][0]["shape"]] == [1, 16]
    assert [int(dim) for dim in batched["inputs"][0]["shape"]] == [-1, 16]


@every_client
async def test_model_config(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        config = await client.call("get_model_config", "batched")
    config = config.get("config", config)
    assert config["name"] == "batched"
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] == 8
    assert config["input"][0]["data_type"] == "TYPE_INT32"
    assert [int(dim) for dim in config["input"][0]["dims"]] == [16]


@every_client
async def test_repository_index(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        index = await client.call("get_model_repository_index")
    rows = index["models"] if isinstance(index, dict) else index
    simple = [row for row in rows if row["name"] == "simple"]
    assert [(row["version"], row["state"]) for row in simple] == [("1", "READY"), ("3", "READY")]


@every_client
async def test_load_and_unload(explicit_server: RoostServer, kind: str) -> None:
    async with triton(explicit_server, kind) as client:
        assert await client.call("is_model_ready", "simple") is False
        await client.call("load_model", "simple")
        assert await client.call("is_model_ready", "simple") is True
        result = await client.infer("simple", client.sixteen(1, 1))
        assert result.as_numpy("OUTPUT0")[0, 0] == 2
        await client.call("unload_model", "simple")
        assert await client.call("is_model_ready", "simple") is False
        with pytest.raises(InferenceServerException, match="nope"):
            await client.call("load_model", "nope")


@every_client
async def test_infer(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        result = await client.infer("simple", client.sixteen(5, 3), request_id="abc-1")
        assert (result.as_numpy("OUTPUT0") == 8).all()
        assert (result.as_numpy("OUTPUT1") == 2).all()
        response = _response(client, result)
        assert (response["id"], response["model_name"], response["model_version"]) == ("abc-1", "simple", "3")


@every_client
async def test_a_version(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        result = await client.infer("simple", client.sixteen(5, 3), model_version="1")
        assert _response(client, result)["model_version"] == "1"
        with pytest.raises(InferenceServerException) as error:
            await client.infer("simple", client.sixteen(5, 3), model_version="2")
        assert error.value.status() in ("404", "StatusCode.NOT_FOUND")


@every_client
async def test_requested_outputs(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        outputs = [client.output("OUTPUT1")]
        result = await client.infer("simple", client.sixteen(5, 3), outputs=outputs)
        assert [row["name"] for row in _response(client, result)["outputs"]] == ["OUTPUT1"]
        assert (result.as_numpy("OUTPUT1") == 2).all()
        assert result.as_numpy("OUTPUT0") is None


@every_client
async def test_batches(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        result = await client.infer("batched", client.sixteen(5, 3, rows=8))
        assert result.as_numpy("OUTPUT0").shape == (8, 16)
        with pytest.raises(InferenceServerException, match="<= 8"):
            await client.infer("batched", client.sixteen(5, 3, rows=9))


@every_client
async def test_parameters_and_timeout(server: RoostServer, kind: str) -> None:
    async with triton(server, kind) as client:
        inputs = client.sixteen(5, 3)
        options = {"parameters": {"text": "x", "flag": True, "count": 3}, "priority": 1, "timeout": 10_000_000}
        result = await client.infer("simple", inputs, **options)
        assert (result.as_numpy("OUTPUT0") == 8).all()


@pytest.mark.parametrize("kind", HTTP)
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
async def test_json_and_binary_tensors(server: RoostServer, kind: str, binary_in: bool, binary_out: bool) -> None:
    async with triton(server, kind) as client:
        inputs = client.sixteen(5, 3, binary_data=binary_in)
        outputs = [client.output("OUTPUT0", binary_data=binary_out), client.output("OUTPUT1", binary_data=True)]
        result = await client.infer("simple", inputs, outputs=outputs)
        assert (result.as_numpy("OUTPUT0") == 8).all()
        assert (result.as_numpy("OUTPUT1") == 2).all()
        first = _response(client, result)["outputs"][0]
        assert ("data" in first) is not binary_out


@pytest.mark.parametrize("kind", HTTP)
@pytest.mark.parametrize("request_coding", ["gzip", "deflate", None])
@pytest.mark.parametrize("response_coding", ["gzip", "deflate", None])
async def test_http_compression(
    server: RoostServer, kind: str, request_coding: str | None, response_coding: str | None
) -> None:
    array = np.arange(64 * 1024, dtype=np.float32).reshape(64, -1)
    async with triton(server, kind) as client:
        result = await client.infer(
            "identity_FP32",
            [client.input("INPUT0", array, "FP32")],
            request_compression_algorithm=request_coding,
            response_compression_algorithm=response_coding,
        )
        assert (result.as_numpy("OUTPUT0") == array).all()


@pytest.mark.parametrize("kind", ["grpc", "grpc.aio"])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_grpc_compression(server: RoostServer, kind: str, coding: str) -> None:
    array = np.arange(64 * 1024, dtype=np.float32).reshape(64, -1)
    async with triton(server, kind) as client:
        inputs = [client.input("INPUT0", array, "FP32")]
        result = await client.infer("identity_FP32", inputs, compression_algorithm=coding)
        assert (result.as_numpy("OUTPUT0") == array).all()


def _values(datatype: str) -> Any:
    if datatype == "BYTES":
        words = [b"", b"a", b"with\x00zero", "größe".encode(), b"x" * 5000, b"0"]
        return np.array(words, dtype=object).reshape(2, 3)
    dtype = DATATYPES[datatype].dtype
    assert dtype is not None
    if dtype.kind == "b":
        return np.array([[True, False, True], [False, False, True]])
    if dtype.kind == "f":
        info = np.finfo(dtype)
        return np.array([[0, 1.5, -2.25], [info.max, info.tiny, -np.inf]], dtype)
    limits = np.iinfo(dtype)
    return np.array([[0, 1, 2], [limits.min, limits.max, 7]], dtype)


@every_client
@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BF16"])
async def test_datatypes(server: RoostServer, kind: str, datatype: str) -> None:
    array = _values(datatype)
    async with triton(server, kind) as client:
        result = await client.infer(f"identity_{datatype}", [client.input("INPUT0", array, datatype)])
        answer = result.as_numpy("OUTPUT0")
        assert answer.dtype == array.dtype
        assert answer.shape == array.shape
        assert (answer == array).all()
        empty = array[:0]
        result = await client.infer(f"identity_{datatype}", [client.input("INPUT0", empty, datatype)])
        assert result.as_numpy("OUTPUT0").shape == (0, 3)


@pytest.mark.parametrize("kind", HTTP)
@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name not in ("BF16", "FP16")])
async def test_datatypes_as_json(server: RoostServer, kind: str, datatype: str) -> None:
    array = _values(datatype)
    if array.dtype.kind == "f":
        array[1, 2] = -1.0  # JSON has no infinity
    async with triton(server, kind) as client:
        inputs = [client.input("INPUT0", array, datatype, binary_data=False)]
        outputs = [client.output("OUTPUT0", binary_data=False)]
        result = await client.infer(f"identity_{datatype}", inputs, outputs=outputs)
        answer = result.as_numpy("OUTPUT0")
        if datatype == "BYTES":
            assert [str(item) for item in answer.reshape(-1)] == [item.decode() for item in array.reshape(-1)]
        else:
            assert (answer == array).all()


@every_client
async def test_bytes_that_are_no_text(server: RoostServer, kind: str) -> None:
    array = np.array([[b"\xff\x00\xfe", b"", bytes(range(256))]], dtype=object)
    async with triton(server, kind) as client:
        result = await client.infer("echo_BYTES", [client.input("INPUT0", array, "BYTES")])
        assert (result.as_numpy("OUTPUT0") == array).all()
        # ONNX Runtime's strings are text: what is none is refused, not changed.
        with pytest.raises(InferenceServerException, match=r"INPUT0.*UTF-8"):
            await client.infer("identity_BYTES", [client.input("INPUT0", array, "BYTES")])


@every_client
@pytest.mark.parametrize("model", ["identity_BF16", "echo_BF16"])
async def test_bf16(server: RoostServer, kind: str, model: str) -> None:
    array = np.array([[0, 1.5, -2.25], [3, 1e30, -0.5]], ml_dtypes.bfloat16)
    async with triton(server, kind) as client:
        result = await client.infer(model, [client.input("INPUT0", array, "BF16")])
        answer = result.as_numpy("OUTPUT0")
        assert answer.shape == (2, 3)
        assert (answer == array).all()


@every_client
async def test_errors(server: RoostServer, kind: str) -> None:
    bad = ("400", "StatusCode.INVALID_ARGUMENT")
    async with triton(server, kind) as client:
        with pytest.raises(InferenceServerException, match="unknown model: 'nope'") as error:
            await client.infer("nope", client.sixteen(1, 1))
        assert error.value.status() in ("404", "StatusCode.NOT_FOUND")
        wrong = [client.input(f"INPUT{i}", np.ones((1, 4), np.int32), "INT32") for i in range(2)]
        with pytest.raises(InferenceServerException, match="unexpected shape for input 'INPUT0'") as error:
            await client.infer("simple", wrong)
        assert error.value.status() in bad
        with pytest.raises(InferenceServerException, match="expected 2 inputs but got 1") as error:
            await client.infer("simple", client.sixteen(1, 1)[:1])
        assert error.value.status() in bad
        with pytest.raises(InferenceServerException, match="unknown model: 'nope'"):
            await client.call("get_model_metadata", "nope")


@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_asynchronous_calls_of_the_blocking_clients(server: RoostServer, kind: str) -> None:
    options = {"concurrency": 4} if kind == "http" else {}
    async with triton(server, kind, **options) as client:
        results: list[Any] = []
        if kind == "http":
            calls = [await client.call("async_infer", "simple", client.sixteen(i, 1)) for i in range(20)]
            results = [call.get_result() for call in calls]
        else:
            for i in range(20):
                await client.call("async_infer", "simple", client.sixteen(i, 1), _keep(results))
            await eventually(lambda: len(results) == 20, "all answers")
        values = sorted(int(result.as_numpy("OUTPUT0")[0, 0]) for result in results)
        assert values == list(range(1, 21))


def _keep(results: list[Any]) -> Any:
    def done(result: Any, error: Any) -> None:
        results.append(error or result)

    return done


def _response(client: Triton, result: Any) -> dict[str, Any]:
    """The answer without its tensors' contents."""
    if client.is_http:
        document: dict[str, Any] = result.get_response()
        return document
    return dict(result.get_response(as_json=True))
