"""``roost doctor``: what it says of machines and models, and how many models fit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.figures import Figures
from roost.registry_client.repository import LocalRepository
from roost.router.learned import Learned, Measured
from roost.router.measured import measured_conditions
from roost.router.plans import Limits
from roost.router.proof import Proof, conditions_of
from roost.router.sizes import estimated_bytes
from roost.router.store_sqlite import SqliteStore
from roost.server import cli
from roost.server.config import ServeConfig, read_command
from roost.server.doctor_checks import (
    Verdict,
    check_cpus,
    check_folder,
    check_mappings,
    check_memory,
    check_open_files,
    check_other_kinds,
    check_overcommit,
    check_peak,
    check_shared_memory,
)
from roost.server.known_sizes import STORE_FILE, KnownSizes, known_sizes
from roost.server.machine import Machine
from roost.server.sizing import ModelSize, fit, read_repositories

from tests.models import write_garbage, write_simple

GIB = 2**30
V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:1 - cgroup2 cgroup2 rw\n"
OK, NOTE, PROBLEM = Verdict.OK, Verdict.NOTE, Verdict.PROBLEM


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    """A server with 2 CPUs and 8 GiB."""
    (tmp_path / "models").mkdir()
    argv = ["--model-repository", str(tmp_path / "models"), "--state-dir", str(tmp_path / "state"), "--workers", "2"]
    return read_command(argv, {}, Machine(2, 8 * GIB)).config


def make(root: Path, **files: str) -> Path:
    """A made-up ``/proc``; two underscores in a name are a slash."""
    for name, text in {"meminfo": "MemTotal: 8388608 kB\nMemAvailable: 8000000 kB\n", **files}.items():
        path = root / "proc" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("budget_bytes", "meminfo", "limit_bytes", "verdict", "says"),
    [
        (None, {}, None, OK, "8 GiB in the machine; 5.5 GiB for models"),
        (4 * GIB, {}, None, OK, "4 GiB for models"),
        (8 * GIB, {}, None, PROBLEM, "8 GiB for models"),
        (None, {"meminfo": "MemTotal: 8388608 kB\nMemAvailable: 1048576 kB\n"}, None, NOTE, "8 GiB in the machine"),
        (2 * GIB, {}, 4 * GIB, OK, "8 GiB in the machine, 4 GiB for this group of processes; 2 GiB for models"),
        (None, {}, 64 << 20, PROBLEM, "0 B for models"),
    ],
)
def test_memory(
    config: ServeConfig,
    tmp_path: Path,
    budget_bytes: int | None,
    meminfo: dict[str, str],
    limit_bytes: int | None,
    verdict: Verdict,
    says: str,
) -> None:
    root = make(tmp_path, **meminfo)
    if limit_bytes is not None:
        make(tmp_path, self__cgroup="0::/box\n", self__mountinfo=V2_MOUNT)
        (tmp_path / "sys/fs/cgroup/box").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/box/memory.max").write_text(str(limit_bytes))
    machine = Machine(2, min(8 * GIB, limit_bytes or 8 * GIB))
    finding = check_memory(replace(config, memory_budget_bytes=budget_bytes, machine=machine), root)
    assert (finding.verdict, bool(finding.advice)) == (verdict, verdict is not OK)
    assert says in finding.text


def test_everything_at_its_limit_at_once(config: ServeConfig) -> None:
    assert check_peak(replace(config, memory_budget_bytes=2 * GIB)).verdict is OK
    assert check_peak(replace(config, memory_budget_bytes=7 * GIB)).verdict is NOTE


@pytest.mark.parametrize(
    ("installed", "changes", "verdict", "text"),
    [
        ("torch", {}, OK, "torch 237 MiB once"),
        ("torch", {"workers_of": {"torch": 0}}, OK, "no other framework"),
        ("xgboost", {"workers_of": {"torch": 1, "sklearn": 1}}, OK, "sklearn 104 MiB once"),
        ("", {"code_repositories": (Path("/models"),), "workers_of": {"python": 1}}, OK, "python 23 MiB once"),
        ("", {}, OK, "no other framework"),
        ("torch", {"memory_budget_bytes": 7 * GIB}, NOTE, "torch"),
    ],
)
def test_other_kinds_of_workers(
    config: ServeConfig, installed: str, changes: dict[str, Any], verdict: Verdict, text: str
) -> None:
    def find(name: str) -> ModuleSpec | None:
        return ModuleSpec(name, None, origin=name) if name == installed else None

    finding = check_other_kinds(replace(config, **changes), find)
    assert (finding.verdict, text in finding.text) == (verdict, True), finding


@pytest.mark.parametrize(
    ("cpuinfo", "workers", "verdict"),
    [
        ("flags : fpu sse2 avx2 fma\n", 2, OK),
        ("Features : fp asimd\n", 1, OK),
        ("flags : fpu sse2\n", 1, NOTE),
        ("flags : avx2\n", 3, NOTE),
        ("", 1, OK),
    ],
)
def test_cpus(config: ServeConfig, tmp_path: Path, cpuinfo: str, workers: int, verdict: Verdict) -> None:
    assert check_cpus(replace(config, workers=workers), make(tmp_path, cpuinfo=cpuinfo)).verdict is verdict


@pytest.mark.parametrize(("limit", "verdict"), [("65530\n", NOTE), ("1048576\n", OK), ("", OK)])
def test_mappings(tmp_path: Path, limit: str, verdict: Verdict) -> None:
    assert check_mappings(make(tmp_path, sys__vm__max_map_count=limit)).verdict is verdict


@pytest.mark.parametrize(("mode", "verdict"), [("0\n", OK), ("1\n", OK), ("2\n", PROBLEM)])
def test_overcommit(tmp_path: Path, mode: str, verdict: Verdict) -> None:
    assert check_overcommit(make(tmp_path, sys__vm__overcommit_memory=mode)).verdict is verdict


@pytest.mark.parametrize(("limit", "verdict"), [(256, PROBLEM), (4096, NOTE), (1048576, OK), (-1, OK)])
def test_open_files(limit: int, verdict: Verdict) -> None:
    assert check_open_files(limit).verdict is verdict


@pytest.mark.parametrize(
    ("mounts", "writable", "wanted_bytes", "verdict"),
    [
        ("/dev/sda / ext4 rw\n", True, 1, OK),
        ("/dev/sda / ext4 rw\n", True, 2**60, NOTE),
        ("/dev/sda / ext4 rw\nhost:/x {folder} nfs4 rw\n", True, 1, PROBLEM),
        ("host:/x / nfs4 rw\n/dev/sda {folder} ext4 rw\n", True, 1, OK),
        ("/dev/sda / ext4 rw\n", False, 1, PROBLEM),
    ],
)
def test_folders(tmp_path: Path, mounts: str, writable: bool, wanted_bytes: int, verdict: Verdict) -> None:
    root = make(tmp_path, self__mounts=mounts.format(folder=tmp_path))
    folder = tmp_path / "not" / "yet"
    found = check_folder("--state-dir", folder, wanted_bytes, root, lambda place: writable and place == tmp_path)
    assert found.verdict is verdict


def test_shared_memory_matters_to_clients_alone(config: ServeConfig, tmp_path: Path) -> None:
    assert check_shared_memory(config, tmp_path).verdict is OK
    assert check_shared_memory(replace(config, allow_client_shm=True), tmp_path).verdict is PROBLEM


def sizes(*each_bytes: int) -> list[ModelSize]:
    return [ModelSize(f"m{i}", "1", 0, size) for i, size in enumerate(each_bytes)]


@pytest.mark.parametrize(
    ("each_bytes", "budget_bytes", "expected", "too_large"),
    [
        ((), 10, (0, 0, 0), 0),
        ((3, 3, 3, 3), 10, (3, 3, 3), 0),
        ((1, 1, 1, 1), 10, (4, 4, 4), 0),
        ((9, 1, 1, 1), 10, (2, 3, 3), 0),
        ((90, 5, 5), 10, (2, 2, 2), 1),
        ((11,), 10, (0, 0, 0), 1),
    ],
)
def test_what_fits(
    each_bytes: tuple[int, ...], budget_bytes: int, expected: tuple[int, int, int], too_large: int
) -> None:
    found = fit(sizes(*each_bytes), Limits(budget_bytes), 1)
    assert found.all_at_once == (expected[2] == len(each_bytes))
    assert (found.largest_first, found.on_average, found.smallest_first) == expected
    assert len(found.too_large) == too_large


@pytest.mark.parametrize(
    ("limits", "workers", "fits"),
    [
        (Limits(100), 1, 10),
        (Limits(35), 1, 3),
        (Limits(100, 130), 1, 3),  # three files and four times ten bytes of memory
        (Limits(100, math.inf, 50), 1, 2),
        (Limits(100, math.inf, 50), 2, 4),
    ],
)
def test_each_of_three_figures_may_be_what_limits(limits: Limits, workers: int, fits: int) -> None:
    each = [ModelSize(f"m{i}", "1", 0, 10, 30, 25, f"copy {i}") for i in range(10)]
    assert fit(each, limits, workers).smallest_first == fits
    shared = [replace(size, copy="copy") for size in each]
    assert fit(shared, replace(limits, memory_bytes=130), workers).smallest_first >= fits


@given(st.lists(st.integers(1, 1000), max_size=30), st.integers(0, 5000))
def test_an_average_lies_between_the_extremes(each_bytes: list[int], budget_bytes: int) -> None:
    found = fit(sizes(*each_bytes), Limits(budget_bytes), 1)
    assert found.largest_first <= found.on_average <= found.smallest_first <= len(each_bytes)
    assert found.smallest_first + len(found.too_large) <= len(each_bytes)


def test_a_repository_is_accounted_as_the_server_does(tmp_path: Path) -> None:
    model = write_simple(tmp_path / "plain" / "1" / "model.onnx")
    write_simple(tmp_path / "declared" / "3" / "model.onnx")
    (tmp_path / "declared" / "config.pbtxt").write_text(
        'parameters { key: "roost.memory_bytes" value { string_value: "12MiB" } }'
    )
    (tmp_path / "empty").mkdir()
    write_garbage(tmp_path / "garbled" / "config.pbtxt")
    found = read_repositories([LocalRepository(tmp_path)], KnownSizes())
    size = model.stat().st_size
    assert found.models == 4
    assert [(s.name, s.version, s.file_bytes, s.bytes) for s in found.sizes] == [
        ("declared", "3", size, 12 << 20),
        ("plain", "1", size, estimated_bytes(size)),
    ]
    assert sorted(name for name, _ in found.broken) == ["empty", "garbled"]


def test_what_a_server_has_found_out_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_simple(tmp_path / "models" / "m" / "1" / "model.onnx")
    repository = LocalRepository(tmp_path / "models")
    folder = repository.open_model("m")
    description = folder.load_config()
    learned = Learned(SqliteStore(tmp_path / STORE_FILE))
    artifact = folder.artifact("1", description, learned)
    measured = Measured(Figures(2 << 20, 0, 7), run_bytes=3 << 20)
    learned.put_measured(artifact.digest, measured_conditions(description), measured)
    learned.put_proof(artifact.digest, conditions_of(description), Proof(16))
    with known_sizes(tmp_path, None) as known:  # while a server writes
        (size,) = read_repositories([repository], known).sizes
    learned.close()
    assert (size.bytes, size.mappings, size.run_bytes) == (2 << 20, 7, 48 << 20)
    cli.main(["doctor", "--model-repository", str(tmp_path / "models"), "--state-dir", str(tmp_path)])
    assert "at a time, of which a full batch of m takes 48 MiB" in capsys.readouterr().out


def test_a_name_in_two_repositories_is_no_model(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_simple(tmp_path / place / "same" / "1" / "model.onnx")
    found = read_repositories([LocalRepository(tmp_path / place) for place in ("a", "b")], KnownSizes())
    assert not found.sizes
    assert found.broken == (("same", "it is in more than one repository"),)


def test_the_command_says_how_many_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(3):
        write_simple(tmp_path / "models" / f"m{index}" / "1" / "model.onnx")
    flags = ["--model-repository", str(tmp_path / "models"), "--state-dir", str(tmp_path / "state")]
    cli.main(["doctor", *flags, "--memory-budget", "9MiB"])
    text = capsys.readouterr().out
    assert "9 MiB for models hold" in text
    assert "2 of 3 versions" in text
    cli.main(["doctor", *flags, "--memory-budget", "64MiB"])
    assert "all 3 versions at once" in capsys.readouterr().out
    assert cli.main(["doctor", *flags, "--memory-budget", "1MiB", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["run_bytes"] == 0  # none was measured
    assert len(document["fit"]["too_large"]) == 3
    assert not (tmp_path / "state").exists()  # it changes nothing


def test_a_machine_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["doctor", "--state-dir", str(tmp_path), "--memory-budget", "300MiB"])
    assert "     42 models of 1 MiB on the disk" in capsys.readouterr().out


def test_mistakes_are_those_of_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--memory-budgt", "1"]) == 2
    assert "did you mean --memory-budget?" in capsys.readouterr().err
    assert cli.main(["doctor", "--help"]) == 0


def test_a_model_that_no_runtime_reads_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "models" / "old"
    folder.mkdir(parents=True)
    (folder / "model.h5").touch()
    flags = ["--model-repository", str(folder.parent), "--state-dir", str(tmp_path / "state")]
    assert cli.main(["doctor", *flags]) == 1
    assert "old: 'model.h5' is a Keras model in the format of old" in capsys.readouterr().out
