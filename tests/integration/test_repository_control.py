"""Load, unload and index calls with ``--model-control explicit``, over both transports."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from roost.core.errors import Code

from tests.clients import PROBE_OUTPUTS, TRANSPORTS, CallFailed, connect, four, number, sixteen
from tests.models import write_dummy, write_garbage, write_simple
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
            assert error.value.means(Code.NOT_FOUND) or error.value.means(Code.FAILED_PRECONDITION)
            assert "nope" in error.value.message
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
