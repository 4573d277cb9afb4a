"""Load, unload and index calls with ``--model-control explicit``, over both transports."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from roost.core.errors import Code
from roost.core.tensors import to_array

from tests.clients import PROBE_OUTPUTS, TRANSPORTS, CallFailed, connect, four, number, sixteen
from tests.models import write_dummy, write_garbage, write_identity, write_simple
from tests.server import RoostServer, eventually, started

SLOTS = 4


@contextmanager
def _explicit(repository: Path, folder: Path, *flags: str) -> Iterator[RoostServer]:
    with started(repository, folder, "--workers", "1", "--model-control", "explicit", *flags) as server:
        yield server


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_model_comes_and_goes(tmp_path: Path, repository: Path, transport: str) -> None:
    write_simple(repository / "simple" / "1" / "model.onnx")
    with _explicit(repository, tmp_path / "run") as server:
        async with connect(server, transport) as client:
            for _ in range(2):
                with pytest.raises(CallFailed) as error:
                    await client.infer("simple", sixteen())
                assert error.value.means(Code.NOT_FOUND)
                assert not await client.is_ready("simple")
                await client.load("simple")
                assert server.resident() == {"simple"}
                assert await client.is_ready("simple")
                assert (await client.index())["simple", "1"] == ("READY", "")
                await client.infer("simple", sixteen())
                await client.unload("simple")
                assert (await client.index())["simple", "1"] == ("UNAVAILABLE", "unloaded")
                await eventually(lambda: not server.instances(), "the memory back")
            write_simple(repository / "late" / "1" / "model.onnx")
            await client.load("late")
            await client.infer("late", sixteen())
            with pytest.raises(CallFailed) as error:
                await client.load("nope")
            assert error.value.means(Code.FAILED_PRECONDITION)
            assert error.value.message == "failed to load 'nope', failed to poll from model repository"
            await client.unload("nope")


async def test_only_what_the_command_line_names_is_there(tmp_path: Path, repository: Path) -> None:
    for name in ("a", "b"):
        write_dummy(repository / name / "1" / "model.dummy")
    with _explicit(repository, tmp_path / "run", "--load-model", "a") as server:
        async with connect(server, "rest") as client:
            assert await client.is_ready("a")
            assert not await client.is_ready("b")
            assert server.resident() == {"a"}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_load_that_fails_leaves_what_is_served(tmp_path: Path, repository: Path, transport: str) -> None:
    model = repository / "simple" / "1" / "model.onnx"
    write_simple(model)
    with _explicit(repository, tmp_path / "run", "--load-model", "simple") as server:
        async with connect(server, transport) as client:
            model.unlink()  # a new inode, as tools that replace files leave
            write_garbage(model)
            for _ in range(2):
                with pytest.raises(CallFailed) as error:
                    await client.load("simple")
                assert error.value.means(Code.FAILED_PRECONDITION)
                assert "Protobuf parsing failed" in error.value.message
                assert await client.is_ready("simple")
                await client.infer("simple", sixteen())
            (repository / "simple" / "config.pbtxt").write_text("nonsense")
            with pytest.raises(CallFailed) as error:
                await client.load("simple")
            assert error.value.means(Code.FAILED_PRECONDITION)
            await client.infer("simple", sixteen())
            (repository / "simple" / "config.pbtxt").unlink()
            write_simple(model)
            await client.load("simple")
            await client.infer("simple", sixteen())
            await eventually(lambda: len(server.instances()) == 1, "the old one gone")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_unload_while_requests_are_in_flight(tmp_path: Path, repository: Path, transport: str) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    with _explicit(repository, tmp_path / "run", "--load-model", "a") as server:
        async with connect(server, transport) as client:
            calls = [client.infer("a", four(), parameters={"run_s": 0.3}) for _ in range(2 * SLOTS)]
            tasks = [asyncio.create_task(call) for call in calls]
            await eventually(lambda: server.in_flight() + server.status()["queued"] == len(tasks), "all accepted")
            await client.unload("a")
            with pytest.raises(CallFailed) as error:
                await client.infer("a", four())
            assert error.value.means(Code.NOT_FOUND)
            await asyncio.gather(*tasks)
            await eventually(lambda: not server.instances(), "the memory back")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_new_version_takes_over_under_load(tmp_path: Path, repository: Path, transport: str) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy", run_s=0.01)
    with _explicit(repository, tmp_path / "run", "--load-model", "a") as server:
        versions: list[str] = []

        async def call_until_new() -> None:
            while not versions or versions[-1] != "2":
                versions.append((await client.infer("a", four())).model_version)

        async with connect(server, transport) as client:
            tasks = [asyncio.create_task(call_until_new()) for _ in range(SLOTS)]
            await eventually(lambda: len(versions) > 20, "some answers")
            write_dummy(repository / "a" / "2" / "model.dummy", load_s=0.2)
            await client.load("a")
            await asyncio.gather(*tasks)
            assert (await client.infer("a", four())).model_version == "2"
        assert set(versions) == {"1", "2"}
        await eventually(lambda: [i["version"] for i in server.instances()] == ["2"], "the old one gone")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_without_explicit_control_nothing_can_be_changed(
    tmp_path: Path, repository: Path, transport: str
) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy", outputs=PROBE_OUTPUTS)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, transport) as client:
            for call in (client.load, client.unload):
                with pytest.raises(CallFailed) as error:
                    await call("a")
                assert error.value.means(Code.FAILED_PRECONDITION)
                assert "explicit" in error.value.message
            assert number(await client.infer("a", four()), "pid")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_load_call_brings_configuration_and_files(tmp_path: Path, repository: Path, transport: str) -> None:
    write_simple(repository / "simple" / "1" / "model.onnx")
    other = write_simple(tmp_path / "other.onnx", batch=-1).read_bytes()
    overrides = tmp_path / "run" / "state" / "overrides"
    batching = json.dumps({"max_batch_size": "4", "backend": "onnxruntime"})
    with _explicit(repository, tmp_path / "run", "--load-model", "simple") as server:
        async with connect(server, transport) as client:
            await client.load("simple", {"config": batching, "file:2/model.onnx": other})
            assert (await client.infer("simple", sixteen())).model_version == "2"
            assert server.get("/v2/models/simple")[1]["versions"] == ["2"]
            assert server.get("/v2/models/simple/config")[1]["max_batch_size"] == 4
            refused: Sequence[tuple[Code, Mapping[str, str | bytes]]] = (
                (Code.INVALID_ARGUMENT, {"file:1/model.onnx": other}),
                (Code.INVALID_ARGUMENT, {"config": batching, "file:../model.onnx": other}),
                (Code.INVALID_ARGUMENT, {"config": '{"foo": 1}', "file:1/model.onnx": other}),
                (Code.FAILED_PRECONDITION, {"config": batching, "file:1/model.onnx": b"garbage"}),
                (Code.FAILED_PRECONDITION, {"config": batching}),  # the model on the disk has no batch dimension
            )
            for wrong, parameters in refused:
                with pytest.raises(CallFailed) as error:
                    await client.load("simple", parameters)
                assert error.value.means(wrong), error.value
                assert str(overrides) not in error.value.message
                assert (await client.infer("simple", sixteen())).model_version == "2"
            await client.load("simple")
            assert (await client.infer("simple", sixteen())).model_version == "1"
            await eventually(lambda: not list(overrides.iterdir()), "the files gone")
            await client.load("new", {"config": batching, "file:7/model.onnx": other})
            assert (await client.infer("new", sixteen())).model_version == "7"
            await client.unload("new")
            await eventually(lambda: not list(overrides.iterdir()), "the files gone")
            with pytest.raises(CallFailed) as error:
                await client.load("new")
            assert error.value.means(Code.FAILED_PRECONDITION)
    assert not overrides.exists()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_watched_model_is_replaced_under_load(tmp_path: Path, repository: Path, transport: str) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy", run_s=0.01)
    with started(
        repository, tmp_path / "run", "--workers", "1", "--model-control", "poll", "--repository-poll-interval", "100ms"
    ) as server:
        versions: list[str] = []

        async def call_until(last: str) -> None:
            while not versions or versions[-1] != last:
                versions.append((await client.infer("a", four())).model_version)

        async with connect(server, transport) as client:
            tasks = [asyncio.create_task(call_until("3")) for _ in range(SLOTS)]
            await eventually(lambda: len(versions) > 20, "some answers")
            write_dummy(repository / "a" / "2" / "model.dummy", load_s=0.1)
            await eventually(lambda: "2" in versions, "the new version")
            write_dummy(repository / "a" / "9" / "model.dummy", fail_load="no good")
            await eventually(lambda: "no good" in server.log, "the failure in the log")
            write_dummy(repository / ".next" / "3" / "model.dummy", load_s=0.1)
            (repository / "a").rename(repository / ".former")
            (repository / ".next").rename(repository / "a")
            await asyncio.gather(*tasks)
            assert set(versions) == {"1", "2", "3"}
            await eventually(lambda: [i["version"] for i in server.instances()] == ["3"], "the old ones gone")
            write_dummy(repository / "late" / "1" / "model.dummy")
            await eventually(lambda: server.get("/v2/models/late")[0] == 200, "a new model")
            shutil.rmtree(repository / "a")
            await eventually(lambda: server.get("/v2/models/a")[0] == 404, "a model gone")
            await eventually(lambda: "a" not in server.resident(), "its memory back")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_shapes_of_clients_and_model_differ(tmp_path: Path, repository: Path, transport: str) -> None:
    write_identity(repository / "id" / "1" / "model.onnx", "FP32", ("n", 2, 2))
    (repository / "id" / "config.pbtxt").write_text("""
        max_batch_size: 8
        input { name: "INPUT0" data_type: TYPE_FP32 dims: 4 reshape { shape: [2, 2] } }
        output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [1, 4] reshape { shape: [2, 2] } }
        optimization { graph { level: -1 } cuda { graphs: true } }
        parameters { key: "intra_op_thread_count" value { string_value: "2" } }
    """)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, transport) as client:
            for _ in range(2):
                (output,) = (await client.infer("id", four(1, 2, 3, 4))).outputs
                assert output.shape == (1, 1, 4)
                assert to_array(output).tolist() == [[[1, 2, 3, 4]]]
        metadata = server.get("/v2/models/id")[1]
        assert [t["shape"] for t in (*metadata["inputs"], *metadata["outputs"])] == [[-1, 4], [-1, 1, 4]]
        assert server.log.count("'optimization.cuda'") == 1


async def test_a_model_of_mlserver(tmp_path: Path, repository: Path) -> None:
    write_simple(repository / "simple" / "artifacts" / "net.onnx")
    settings = {
        "name": "simple",
        "implementation": "onnxruntime",
        "parameters": {"uri": "./artifacts/net.onnx", "version": "v1"},
        "inputs": [{"name": f"INPUT{i}", "datatype": "INT32", "shape": [1, 16]} for i in range(2)],
    }
    (repository / "simple" / "model-settings.json").write_text(json.dumps(settings))
    write_garbage(repository / "cat" / "model.cbm")
    (repository / "cat" / "model-settings.json").write_text('{"implementation": "mlserver_catboost.CatboostModel"}')
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "rest") as client:
            assert (await client.infer("simple", sixteen())).model_version == "v1"
            with pytest.raises(CallFailed) as error:
                await client.infer("cat", sixteen())
            assert error.value.means(Code.UNAVAILABLE)
            assert "needs the runtime 'catboost'" in error.value.message
