"""What keeps a server from starting, what does not, and what it remembers of the time before."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients import connect, four, sixteen
from tests.models import write_dummy, write_garbage, write_simple
from tests.server import DEADLINE_S, HOST, RoostServer, command, eventually, run_to_end, started

MANY_MODELS = 20_000


def _one_line(ended: tuple[int, str], *words: str) -> None:
    code, text = ended
    assert code == 2, text
    assert text.count("\n") == 1, text
    assert text.startswith("roost: error: ")
    for word in words:
        assert word in text


def test_a_state_folder_in_use(tmp_path: Path, repository: Path) -> None:
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        _one_line(run_to_end(repository, tmp_path / "run"), "--state-dir", "another server")
        assert server.get("/v2/health/ready")[0] == 200


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port", "--admin-port", "--metrics-port"])
def test_a_taken_port(tmp_path: Path, repository: Path, flag: str) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = str(taken.getsockname()[1])
        _one_line(run_to_end(repository, tmp_path / "run", flag, port), flag, port)


@pytest.mark.parametrize("state", ["missing", "file"])
def test_a_repository_that_is_none(tmp_path: Path, state: str) -> None:
    path = tmp_path / "models"
    if state == "file":
        path.write_text("")
    _one_line(run_to_end(path, tmp_path / "run"), "--model-repository", str(path))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("routes: [", "line 1"),
        ("routes: 3", "list"),
        ("rutes: []", "rutes"),
        ("routes:\n- name: a\n  targets: []\n", "weight"),
        ("routes:\n- name: a\n  targets:\n  - version: 1\n    weight: -1\n", "-1"),
        ("routes:\n- name: a/b\n  targets:\n  - version: 1\n", "a/b"),
    ],
)
def test_a_routes_file_that_is_wrong(tmp_path: Path, repository: Path, content: str, word: str) -> None:
    routes = tmp_path / "routes.yaml"
    routes.write_text(content)
    _one_line(run_to_end(repository, tmp_path / "run", "--routes", str(routes)), str(routes), word)


def test_a_missing_routes_file(tmp_path: Path, repository: Path) -> None:
    path = tmp_path / "routes.yaml"
    _one_line(run_to_end(repository, tmp_path / "run", "--routes", str(path)), "--routes", str(path))


def test_a_state_folder_that_is_a_file(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state").write_text("")
    _one_line(run_to_end(repository, tmp_path / "run"), "--state-dir")


_WITHOUT_RUNTIMES = """
import importlib.util, sys
find = importlib.util.find_spec
frameworks = {"onnxruntime", "torch", "tensorflow", "sklearn", "xgboost", "lightgbm"}
importlib.util.find_spec = lambda name, *rest: None if name in frameworks else find(name, *rest)
from roost.server.cli import main
sys.exit(main())
"""


def test_no_runtime_is_installed(tmp_path: Path, repository: Path) -> None:
    flags = [flag for flag in command(repository, tmp_path)[3:] if flag != "--enable-dummy"]
    line = [sys.executable, "-c", _WITHOUT_RUNTIMES, *flags]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=tmp_path)
    assert ended.stderr == "roost: error: no runtime is installed: pip install 'roost[onnx]'\n"
    assert (ended.returncode, ended.stdout) == (2, "")
    assert not (tmp_path / "state").exists()


def test_an_empty_repository(tmp_path: Path, repository: Path) -> None:
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        assert server.get("/v2/health/ready") == (200, {"ready": True})
        assert server.post("/v2/repository/index") == (200, [])
        assert server.metric("roost_gc_survivors_frozen") == 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system takes root and a kernel that allows it")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def _serves(server: RoostServer) -> None:
    for transport in ("rest", "grpc"):
        async with connect(server, transport) as client:
            await client.infer("simple", sixteen())
            await client.metadata("other")


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


async def test_a_full_disk_at_the_start(tmp_path: Path, repository: Path, disk: Path) -> None:
    write_simple(repository / "simple" / "1" / "model.onnx")
    write_dummy(repository / "other" / "1" / "model.dummy")
    _fill(disk)
    with started(repository, tmp_path / "run", "--workers", "1", "--state-dir", str(disk)) as server:
        await _serves(server)
        assert "store" in server.log


async def test_a_disk_that_fills_up(tmp_path: Path, repository: Path, disk: Path) -> None:
    write_simple(repository / "simple" / "1" / "model.onnx")
    write_dummy(repository / "other" / "1" / "model.dummy")
    with started(repository, tmp_path / "run", "--workers", "1", "--state-dir", str(disk)) as server:
        _fill(disk)
        await _serves(server)


def _remount(disk: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)


def test_a_state_folder_that_can_only_be_read(tmp_path: Path, repository: Path, disk: Path) -> None:
    _remount(disk, "ro")
    _one_line(run_to_end(repository, tmp_path / "run", "--state-dir", str(disk)), "--state-dir", "ead-only")
    _remount(disk, "rw")
    with started(repository, tmp_path / "run", "--workers", "1", "--state-dir", str(disk)):
        pass


async def test_a_damaged_store(tmp_path: Path, repository: Path) -> None:
    write_simple(repository / "simple" / "1" / "model.onnx")
    write_dummy(repository / "other" / "1" / "model.dummy")
    for _ in range(2):
        with started(repository, tmp_path / "run", "--workers", "1") as server:
            await _serves(server)
        for path in (tmp_path / "run" / "state").glob("*.sqlite*"):
            path.write_bytes(b"\x00garbage" * 1000)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        await _serves(server)


async def test_twenty_thousand_models(tmp_path: Path, repository: Path) -> None:
    first = write_simple(tmp_path / "first.onnx")
    for number in range(MANY_MODELS):
        folder = repository / f"model-{number:05}"
        folder.mkdir()
        (folder / "model.onnx").hardlink_to(first)
    began = time.monotonic()
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        print(f"ready after {time.monotonic() - began:.2f} s with {MANY_MODELS} models")
        assert server.status()["models"] == MANY_MODELS
        for transport in ("rest", "grpc"):
            async with connect(server, transport) as client:
                began = time.monotonic()
                await client.infer(f"model-{MANY_MODELS - 1}", sixteen())
                print(f"first request over {transport}: {(time.monotonic() - began) * 1e3:.1f} ms")
                began = time.monotonic()
                index = await client.index()
                print(f"index of all models: {time.monotonic() - began:.2f} s")
                assert len(index) == MANY_MODELS
                assert set(index.values()) == {("READY", "")}
        began = time.monotonic()
    print(f"stopped after {time.monotonic() - began:.2f} s")


async def test_a_restart_hashes_nothing_again(tmp_path: Path, repository: Path) -> None:
    model = write_simple(repository / "simple" / "1" / "model.onnx")
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "rest") as client:
            await client.infer("simple", sixteen())
    # Garbage of the same size, written in place, with its time set back: the file's identity is what it was.
    before = model.stat()
    with model.open("r+b") as file:
        file.write(bytes(before.st_size))
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    with started(repository, tmp_path / "run", "--workers", "1", "--no-preload") as server:
        async with connect(server, "rest") as client:
            assert await client.metadata("simple") == ["INPUT0", "INPUT1"]
        assert server.metric("roost_loads_total") == 0
        assert not server.instances()


@pytest.mark.parametrize("transport", ["rest", "grpc"])
async def test_a_broken_file_that_is_replaced_is_served(tmp_path: Path, repository: Path, transport: str) -> None:
    model = write_garbage(repository / "mended" / "1" / "model.onnx")
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, transport) as client:
            await _becomes_ready(server, transport, lambda: write_simple(model))
            await client.infer("mended", sixteen())
            assert await client.is_ready("mended")
            assert (await client.index())["mended", "1"] == ("READY", "")


async def _becomes_ready(server: RoostServer, transport: str, mend: Callable[[], object]) -> None:
    """See the tests: the model fails until it is mended, and not for ever after."""
    async with connect(server, transport) as client:
        for _ in range(4):  # so often that it is not tried again for its own sake
            with pytest.raises(Exception, match="mended"):
                await client.infer("mended", sixteen())
        assert not await client.is_ready("mended")
        mend()

    def look() -> bool:
        return server.post("/v2/models/mended/infer", _SIMPLE_JSON)[0] == 200

    await eventually(look, "the mended model")


_SIMPLE_JSON = {
    "inputs": [
        {"name": name, "datatype": "INT32", "shape": [1, 16], "data": list(range(16))} for name in ("INPUT0", "INPUT1")
    ]
}


async def test_a_broken_config_that_is_replaced_is_served(tmp_path: Path, repository: Path) -> None:
    write_simple(repository / "mended" / "1" / "model.onnx")
    config = repository / "mended" / "config.pbtxt"
    config.write_text("max_batch_sise: 4\n")
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        await _becomes_ready(server, "rest", lambda: config.write_text("max_batch_size: 0\n"))


async def test_a_folder_that_gets_its_first_version_is_served(tmp_path: Path, repository: Path) -> None:
    folder = repository / "mended"
    folder.mkdir()
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        await _becomes_ready(server, "grpc", lambda: write_simple(folder / "1" / "model.onnx"))


async def test_a_missing_file_that_comes_is_served(tmp_path: Path, repository: Path) -> None:
    folder = repository / "mended" / "1"
    folder.mkdir(parents=True)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        await _becomes_ready(server, "grpc", lambda: write_simple(folder / "model.onnx"))


async def test_other_models_are_served_while_one_is_broken(tmp_path: Path, repository: Path) -> None:
    write_garbage(repository / "bad" / "1" / "model.onnx")
    write_dummy(repository / "good" / "1" / "model.dummy", run_s=0.01)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "grpc") as client:
            bad = [client.infer("bad", sixteen()) for _ in range(20)]
            good = [client.infer("good", four()) for _ in range(20)]
            results = await asyncio.gather(*bad, *good, return_exceptions=True)
        assert all(isinstance(result, Exception) for result in results[:20])
        assert not any(isinstance(result, Exception) for result in results[20:])
        assert server.metric("roost_load_failures_total", model="bad") == 1
