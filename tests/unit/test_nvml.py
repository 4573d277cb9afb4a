"""GPUs as the management library shows them, and which of them are used."""

from __future__ import annotations

from pathlib import Path

import pytest
from roost.runtimes.gpu_builds import built_for_gpus, gpu_kinds
from roost.runtimes.nvml import Gpu, NoGpus, Nvml, Reading, chosen, open_nvml

from tests import fake_nvml
from tests.fake_nvml import GIB, gpu

GPUS = [Gpu(number, uuid, "x", 8, 8) for number, uuid in enumerate(("GPU-aa", "GPU-ab", "MIG-c"))]


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nvml:
    divided = gpu("GPU-b", parts=[gpu("MIG-1", 2 * GIB, busy=None), gpu("MIG-2", 4 * GIB, GIB)])
    gpus = [gpu("GPU-a", used=GIB, busy=37, milliwatts=61_500, milliwatts_at_most=70_000, millijoules=5), divided]
    gpus += [gpu("GPU-shared", total=None), gpu("GPU-lost", lost=True), gpu("GPU-c")]
    monkeypatch.setenv(fake_nvml.FILE, str(fake_nvml.write(tmp_path, gpus)))
    return Nvml(fake_nvml)


def test_parts_stand_for_what_is_divided_and_what_has_no_memory_is_left_out(nvml: Nvml) -> None:
    assert nvml.gpus() == [
        Gpu(0, "GPU-a", "Fake GPU-a", 8 * GIB, 7 * GIB),
        Gpu(1, "MIG-1", "Fake MIG-1", 2 * GIB, 2 * GIB),
        Gpu(2, "MIG-2", "Fake MIG-2", 4 * GIB, 3 * GIB),
        Gpu(3, "GPU-c", "Fake GPU-c", 8 * GIB, 8 * GIB),
    ]
    assert nvml.gpus()[1].name == "cuda:1"
    assert nvml.driver() == "1.2.3"


def test_readings_leave_out_what_is_not_said(nvml: Nvml) -> None:
    assert nvml.read("GPU-a") == Reading(8 * GIB, GIB, 7 * GIB, 0.37, 61.5, 70.0, 0.005)
    assert nvml.read("MIG-1") == Reading(2 * GIB, 0, 2 * GIB)
    assert nvml.read("GPU-gone") is None


@pytest.mark.parametrize(
    ("wanted", "visible", "expected"),
    [
        ((), None, ["GPU-aa", "GPU-ab", "MIG-c"]),
        (("cuda:2", "0"), None, ["MIG-c", "GPU-aa"]),
        (("GPU-ab", "MIG-", "1"), None, ["GPU-ab", "MIG-c"]),
        ((), "1,0", ["GPU-ab", "GPU-aa"]),
        ((), "MIG-c,9,0", ["MIG-c"]),
        ((), "", []),
        ((), "-1", []),
        ((), "1,1", ["GPU-ab"]),
        (("cuda:0",), "2,1", ["MIG-c"]),
        (("cuda:3",), None, None),
        (("GPU-a",), None, None),
        (("cuda:1",), "2", None),
    ],
)
def test_which_are_used(wanted: tuple[str, ...], visible: str | None, expected: list[str] | None) -> None:
    if expected is None:
        with pytest.raises(NoGpus, match=f"there is no '{wanted[0]}'"):
            chosen(GPUS, wanted, visible)
    else:
        assert [gpu.uuid for gpu in chosen(GPUS, wanted, visible)] == expected


def test_numbers_are_those_of_what_is_visible() -> None:
    assert [gpu.number for gpu in chosen(GPUS, (), "2,0")] == [0, 1]
    assert [(gpu.number, gpu.uuid) for gpu in chosen(GPUS, ("cuda:1",), "2,0")] == [(1, "GPU-aa")]


def test_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    driver = tmp_path / "version"
    with pytest.raises(NoGpus, match="no NVIDIA driver"):
        open_nvml(missing, driver)
    driver.touch()
    with pytest.raises(NoGpus, match=r"pip install 'roost\[gpu\]'"):
        open_nvml(missing, driver)
    monkeypatch.delenv(fake_nvml.FILE, raising=False)
    with pytest.raises(NoGpus, match="Driver Not Loaded"):
        open_nvml(lambda _: fake_nvml, driver)


def test_what_was_built_for_gpus() -> None:
    assert built_for_gpus("python")
    assert not built_for_gpus("onnxruntime")  # what these tests run with
    assert gpu_kinds(["onnx", "python"]) == ["python-gpu"]
    assert gpu_kinds(["onnx", "python"], lambda name: name == "onnxruntime") == ["onnx-gpu"]
