"""Prepared copies as real processes make and load them, and what becomes of them when something goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from roost.core.errors import RoostError
from roost.core.frames import FrameType
from roost.core.tensors import Tensor, from_array, to_array
from roost.router.sizes import LEAST_BYTES
from roost.runtimes.onnx import OnnxRuntime
from roost.runtimes.prepared.cache import Copy, CopyCache
from roost.runtimes.prepared.identity import copy_key
from roost.runtimes.prepared.making import CopyOrder, NotNow, make_copy
from roost.runtimes.protocol import LoadSpec, RunHandle

from tests.models import write_mlp, write_simple
from tests.server import DEADLINE_S, RoostServer, started, wait_for
from tests.worker_client import WorkerClient, arrays_of

LIMIT_BYTES = 1 << 30
MEMORY_BYTES = 2 << 30
TIMEOUT_S = 120.0
LAYERS = (512, 2048, 2048, 10)
ONES = from_array("x", "FP32", np.ones((1, LAYERS[0]), np.float32))
FLAGS = ("--model-control", "explicit", "--load-model", "one")
ROWS = from_array("x", "FP32", np.random.default_rng(5).random((3, LAYERS[0]), np.float32))


def order(path: Path, digest: str = "d") -> CopyOrder:
    status = path.stat()
    files = [[path.name, status.st_ino, status.st_size, status.st_mtime_ns]]
    return CopyOrder(str(path), str(path.parent), digest, files, "onnxruntime", memory_bytes=MEMORY_BYTES)


def command(repository: Path, cache: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "roost.server.cli", "prepare", *arguments]
    return [*command, "--model-repository", str(repository), "--cache-dir", str(cache)]


def prepare(
    repository: Path, cache: Path, *arguments: str, within: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end, ``within`` a command that changes its limits."""
    return subprocess.run(
        [*within, *command(repository, cache, *arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def garble(data: Path) -> None:
    """Writes over a page of a file that is read-only."""
    data.chmod(0o600)
    with data.open("r+b") as file:
        file.seek(data.stat().st_size - (1 << 20))
        file.write(os.urandom(4096))


def infer(server: RoostServer, model: str) -> Any:
    """What a model answers to ones."""
    document = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, LAYERS[0]], "data": [1.0] * LAYERS[0]}]}
    status, answer = server.post(f"/v2/models/{model}/infer", document)
    assert status == 200, answer
    return answer["outputs"]


def trials(server: RoostServer) -> list[psutil.Process]:
    """The fresh processes in which models are tried now."""
    found = psutil.Process(server.pid).children(recursive=True)
    return [process for process in found if "roost.runtimes.prepared.fresh" in process.cmdline()]


def load_anew(server: RoostServer, model: str) -> None:
    for call in ("unload", "load"):
        status, answer = server.post(f"/v2/repository/models/{model}/{call}")
        assert status == 200, answer


def copies(cache: Path) -> list[Path]:
    return sorted(path.parent for path in cache.glob("*/model.data"))


def ask(copy: str, root: str, *, prepared: bool, rows: Tensor = ROWS) -> np.ndarray[Any, Any]:
    model = OnnxRuntime().load(LoadSpec(copy, root, prepared=prepared))
    (output,) = model.run([rows], (), RunHandle())
    return np.array(to_array(output))


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model of 22 MB, for which a copy is worth it, and with one for which it is not."""
    repository = tmp_path_factory.mktemp("repository")
    write_mlp(repository / "mlp" / "1" / "model.onnx", LAYERS)
    write_simple(repository / "simple" / "1" / "model.onnx")
    return repository


@pytest.fixture(scope="module")
def prepared(mlp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with its copy."""
    cache = tmp_path_factory.mktemp("caches") / "cache"
    ended = prepare(mlp, cache)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "mlp 1: prepared" in ended.stdout
    assert "simple 1: no copy" in ended.stdout
    return cache


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Copy:
    """The copy, in a cache of the test's own."""
    shutil.copytree(prepared, tmp_path / "cache")
    cache = CopyCache(tmp_path / "cache", LIMIT_BYTES)
    (home,) = copies(cache.folder)
    found = cache.find(home.name)
    assert found is not None
    return found


def test_a_copy_answers_the_same_and_has_its_weights_in_the_page_cache(mlp: Path, copy: Copy) -> None:
    model = mlp / "mlp" / "1" / "model.onnx"
    expected = ask(str(model), str(model.parent), prepared=False)
    np.testing.assert_array_equal(ask(copy.path, copy.root, prepared=True), expected)
    assert copy.manifest.plain is not None
    assert copy.manifest.copy is not None
    assert copy.manifest.copy.private_bytes < copy.manifest.plain.private_bytes / 3


def test_a_second_call_makes_nothing(mlp: Path, prepared: Path) -> None:
    before = [path.stat().st_ino for path in copies(prepared)]
    ended = prepare(mlp, prepared, "mlp")
    assert ended.returncode == 0
    assert "simple" not in ended.stdout
    assert [path.stat().st_ino for path in copies(prepared)] == before


def test_several_processes_prepare_at_once(mlp: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    running = [
        subprocess.Popen(command(mlp, cache, "mlp"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ended = [(*process.communicate(timeout=TIMEOUT_S), process.returncode) for process in running]
    assert 0 in [code for *_, code in ended], ended
    for out, err, code in ended:
        assert "prepared" in out if code == 0 else "another process makes it" in out, err
    (home,) = copies(cache)
    assert CopyCache(cache, LIMIT_BYTES).check(home.name)
    assert {path.name for path in cache.iterdir()} == {home.name, "lock"}


def test_a_disk_that_is_full_fails_the_copy_alone(mlp: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ended = prepare(mlp, cache, "mlp", within=("prlimit", f"--fsize={1 << 20}"))
    assert ended.returncode == 1, ended.stdout
    assert "mlp 1: failed" in ended.stdout
    assert {path.name for path in cache.iterdir()} <= {"lock"}
    ended = prepare(mlp, cache, "mlp")
    assert ended.returncode == 0, ended.stdout
    assert len(copies(cache)) == 1


def test_memory_that_does_not_suffice_fails_the_copy_alone(mlp: Path, tmp_path: Path) -> None:
    cache = CopyCache(tmp_path / "cache", LIMIT_BYTES)
    small = order(mlp / "mlp" / "1" / "model.onnx")
    with pytest.raises(NotNow, match="memory"):
        make_copy(cache, CopyOrder(small.path, small.root, small.digest, small.files, small.backend, 4 << 20))
    assert copies(cache.folder) == []
    assert cache.look_up(copy_key(small.digest, small.backend, {})) is None


def test_garbage_in_the_weights_does_not_pass_the_check(copy: Copy) -> None:
    # Whether it would load depends on the processor: for some, ONNX Runtime packs the weights once more and compares.
    cache = CopyCache(Path(copy.root).parent, LIMIT_BYTES)
    garble(Path(copy.root) / "model.data")
    assert not cache.check(copy.key)
    assert cache.find(copy.key) is None


def test_a_worker_loads_a_copy_whose_files_may_go_then(mlp: Path, copy: Copy) -> None:
    model = mlp / "mlp" / "1" / "model.onnx"
    fields = {"backend": "onnxruntime", "path": copy.path, "root": copy.root, "prepared": True}
    with WorkerClient() as worker:
        worker.control(FrameType.LOAD, instance=1, **fields)
        shutil.rmtree(copy.root)  # what is mapped lives on
        answer = arrays_of(worker.run(1, [ROWS]))
        with pytest.raises(RoostError) as error:
            worker.control(FrameType.LOAD, instance=2, **fields)
        assert copy.root not in error.value.message
    np.testing.assert_array_equal(answer["y"], ask(str(model), str(model.parent), prepared=False))


class TestInAServer:
    """A model is loaded, gets a copy in the background, and is loaded from it the next time."""

    @pytest.fixture
    def repository(self, tmp_path: Path) -> Path:
        write_mlp(tmp_path / "repository" / "one" / "1" / "model.onnx", LAYERS)
        return tmp_path / "repository"

    def test_a_copy_is_made_used_and_survives_a_restart(self, repository: Path, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        with started(repository, tmp_path, *FLAGS, "--cache-dir", str(cache)) as server:
            first = infer(server, "one")
            wait_for(lambda: server.metric("roost_prepared_made_total") == 1, "the copy")
            assert server.metric("roost_prepared_bytes") > 0
            load_anew(server, "one")
            assert infer(server, "one") == first
            assert server.metric("roost_prepared_loads_total") == 1
        with started(repository, tmp_path, *FLAGS, "--cache-dir", str(cache)) as server:
            assert infer(server, "one") == first
            assert server.metric("roost_prepared_loads_total") == 1

    def test_what_is_being_made_ends_with_the_server(self, repository: Path, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        with started(repository, tmp_path, *FLAGS, "--cache-dir", str(cache)) as server:
            wait_for(lambda: list(cache.glob("making-*")), "a copy in the making")
            wait_for(lambda: trials(server), "a process that tries it")
            server.signal(signal.SIGTERM)
            assert server.process.wait(DEADLINE_S) == 0
            assert not server.processes()
            assert not list(cache.glob("making-*"))

    def test_several_models_in_several_workers_pay_for_one_file(self, repository: Path, tmp_path: Path) -> None:
        shutil.copytree(repository / "one", repository / "two")
        cache = tmp_path / "cache"
        assert prepare(repository, cache).returncode == 0
        (home,) = copies(cache)
        copy = CopyCache(cache, LIMIT_BYTES).find(home.name)
        assert copy is not None
        assert copy.manifest.copy is not None
        flags = (*FLAGS, "--load-model", "two", "--workers", "2", "--cache-dir", str(cache))
        with started(repository, tmp_path, *flags) as server:
            assert infer(server, "one") == infer(server, "two")
            assert server.metric("roost_device_mapped_bytes") == copy.manifest.size_bytes
            for worker in ("0", "1"):
                mapped_bytes = server.metric("roost_worker_accounted_mapped_bytes", worker=worker)
                assert mapped_bytes == copy.manifest.size_bytes
                mappings = server.metric("roost_worker_accounted_mappings", worker=worker)
                assert mappings == copy.manifest.copy.mappings
            accounted_bytes = 2 * max(LEAST_BYTES, copy.manifest.copy.private_bytes)
            assert server.metric("roost_resident_bytes") == accounted_bytes

    def test_a_cache_that_is_wiped_costs_nothing_but_time(self, repository: Path, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        assert prepare(repository, cache).returncode == 0
        with started(repository, tmp_path, *FLAGS, "--cache-dir", str(cache)) as server:
            first = infer(server, "one")
            assert server.metric("roost_prepared_loads_total") == 1
            shutil.rmtree(cache)
            assert infer(server, "one") == first, "what is mapped lives on"
            load_anew(server, "one")
            assert infer(server, "one") == first, "the model itself is loaded"
            assert server.metric("roost_prepared_loads_total") == 1
            wait_for(lambda: server.metric("roost_prepared_made_total") == 1, "a new copy")

    def test_a_damaged_copy_is_found_and_what_was_loaded_from_it_replaced(
        self, repository: Path, tmp_path: Path
    ) -> None:
        cache = tmp_path / "cache"
        assert prepare(repository, cache, "one").returncode == 0
        (home,) = copies(cache)
        garble(home / "model.data")
        (home / "checked").unlink()  # as after a restart of the machine
        model = repository / "one" / "1" / "model.onnx"
        expected = ask(str(model), str(model.parent), prepared=False, rows=ONES).reshape(-1).tolist()
        with started(repository, tmp_path, *FLAGS, "--cache-dir", str(cache)) as server:
            wait_for(lambda: server.metric("roost_prepared_damaged_total") == 1, "the check")
            assert infer(server, "one")[0]["data"] == pytest.approx(expected)
            assert "is damaged" in server.log
            wait_for(lambda: server.metric("roost_prepared_made_total") == 1, "a new copy")

    def test_a_copy_whose_files_do_not_load_is_given_up(self, repository: Path, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        assert prepare(repository, cache, "one").returncode == 0
        (home,) = copies(cache)
        size_bytes = (home / "model.onnx").stat().st_size
        (home / "model.onnx").chmod(0o600)
        (home / "model.onnx").write_bytes(b"x" * size_bytes)
        with started(repository, tmp_path, *FLAGS, "--cache-dir", str(cache)) as server:
            assert infer(server, "one")
            assert server.metric("roost_prepared_failures_total") == 1
            assert server.metric("roost_prepared_loads_total") == 0
            assert str(home) not in server.log
