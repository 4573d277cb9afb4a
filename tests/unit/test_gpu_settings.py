"""``--devices``: which GPUs a server takes, what it starts for them, and what ``doctor`` and metrics say of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from roost.router.process import worker_arguments, worker_environment
from roost.router.view import DeviceView
from roost.runtimes.nvml import NoGpus, Nvml
from roost.server.arguments import ConfigError
from roost.server.config import ServeConfig, read_command
from roost.server.derived import mesh_settings
from roost.server.doctor_checks import Verdict, check_gpus
from roost.server.gpus import find_gpus
from roost.server.machine import Machine
from roost.server.metrics_triton import gpu_text

from tests import fake_nvml
from tests.fake_nvml import GIB, gpu


def configured(tmp_path: Path, *argv: str, **environ: str) -> ServeConfig:
    return read_command(["--model-repository", str(tmp_path), *argv], {"HOME": "/", **environ}, Machine(4, GIB)).config


def library() -> Nvml:
    return Nvml(fake_nvml)


def no_library() -> Nvml:
    raise NoGpus("there is no NVIDIA driver")


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two GPUs."""
    monkeypatch.setenv(fake_nvml.FILE, str(fake_nvml.write(tmp_path, [gpu("GPU-a"), gpu("GPU-b", used=GIB)])))
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "environ", "expected"),
    [
        ([], {}, ["GPU-a", "GPU-b"]),
        (["--devices", "auto"], {"CUDA_VISIBLE_DEVICES": "1"}, ["GPU-b"]),
        (["--devices", "cpu"], {}, []),
        ([], {"ROOST_DEVICES": "cuda:1, GPU-a"}, ["GPU-b", "GPU-a"]),
    ],
)
def test_what_is_taken(two: Path, argv: Sequence[str], environ: dict[str, str], expected: Sequence[str]) -> None:
    assert [gpu.uuid for gpu in find_gpus(configured(two, *argv, **environ), library).gpus] == expected


def test_mistakes_are_named(two: Path) -> None:
    for value in ("gpu", "cuda:x", "cpu,cuda:0", "auto,0", "", "GPU-"):
        with pytest.raises(ConfigError, match=r"--devices: .* is not auto, cpu or a GPU such as"):
            configured(two, "--devices", value)
    with pytest.raises(ConfigError, match="--devices: there is no '2'; there are: cuda:0"):
        find_gpus(configured(two, "--devices", "2"), library)
    with pytest.raises(ConfigError, match="--devices: there is no NVIDIA driver"):
        find_gpus(configured(two, "--devices", "0"), no_library)
    assert find_gpus(configured(two), no_library).reason == "there is no NVIDIA driver"


def test_workers_see_their_gpu_or_none(two: Path) -> None:
    config = configured(
        two, "--fake-gpus", "--workers-of", "torch=0", "--worker-labels", "zone=a", "--worker-labels", "0:disk=ssd"
    )
    settings = mesh_settings(config, find_gpus(config, library))
    kinds = {specs[0].kind: [spec.device for spec in specs] for specs in settings.gpu_kinds}
    assert kinds == {f"{kind}-gpu": ["cuda:0", "cuda:1"] for kind in ("onnx", "tensorflow", "sklearn", "python")}
    assert settings.gpu_labels == {"zone": "a"}
    spec = settings.gpu_kinds[0][1]
    assert worker_environment(spec, {})["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert worker_arguments(spec)[-3:] == ["--gpu", "cuda:1", "--fake-gpu"]
    assert worker_environment(settings.spec, {"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == ""
    alone = mesh_settings(configured(two, "--devices", "cpu"))
    assert (alone.gpus, alone.gpu_kinds) == ((), ())
    assert "--gpu" not in worker_arguments(alone.spec)
    assert worker_environment(alone.spec, {"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == "0"


def test_doctor_shows_them(two: Path) -> None:
    finding = check_gpus(configured(two), library)
    assert finding.verdict is Verdict.NOTE  # what these tests run with was not built for them
    assert finding.text == "cuda:0 Fake GPU-a (8 GiB of 8 GiB free), cuda:1 Fake GPU-b (7 GiB of 8 GiB free)"
    assert check_gpus(configured(two, "--fake-gpus"), library).verdict is Verdict.OK
    assert check_gpus(configured(two, "--devices", "cpu"), no_library).text == "not used"
    assert check_gpus(configured(two), no_library).text == "not used: there is no NVIDIA driver"
    assert check_gpus(configured(two, "--devices", "7"), library).verdict is Verdict.PROBLEM


def test_tritons_metrics_of_gpus() -> None:
    said: dict[str, Any] = {"really_used_bytes": 5, "utilization": 0.25, "power_w": 61.5, "energy_j": 1e6}
    gpus = DeviceView("cuda:0", 1, 0, 0, uuid="GPU-a", total_bytes=8, **said), DeviceView("cuda:1", 1, 0, 0, uuid="MIG")
    samples = {
        (sample.name.removesuffix("_total"), sample.labels["gpu_uuid"]): sample.value
        for family in text_string_to_metric_families(gpu_text([DeviceView("cpu", 1, 0, 0), *gpus]))
        for sample in family.samples
    }
    assert samples == {
        ("nv_gpu_utilization", "GPU-a"): 0.25,
        ("nv_gpu_memory_total_bytes", "GPU-a"): 8,
        ("nv_gpu_memory_total_bytes", "MIG"): 0,
        ("nv_gpu_memory_used_bytes", "GPU-a"): 5,
        ("nv_gpu_power_usage", "GPU-a"): 61.5,
        ("nv_energy_consumption", "GPU-a"): 1e6,
    }
    assert gpu_text([DeviceView("cpu", 1, 0, 0)]) == ""
