"""Stands for ``pynvml``: the same functions, but what they say is in the JSON file that ``FAKE_NVML`` names.

The file is a list of GPUs: ``uuid``, ``name``, ``total`` and ``used`` bytes, and what a GPU may say besides: ``busy``
(percent), ``milliwatts``, ``milliwatts_at_most``, ``millijoules``, ``parts`` (GPUs, if it is divided). It is read with
every call, so a test can change it. A server finds this module where a folder with ``import_path`` is on its path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FILE = "FAKE_NVML"
GIB = 1 << 30


class NVMLError(Exception):
    """What all functions raise."""


def gpu(uuid: str, total: int | None = 8 * GIB, used: int = 0, **more: Any) -> dict[str, Any]:
    """An entry of the file."""
    return {"uuid": uuid, "name": f"Fake {uuid}", "total": total, "used": used, **more}


def write(folder: Path, gpus: Sequence[Mapping[str, Any]]) -> Path:
    """Writes the file, whole."""
    file = folder / "gpus.json"
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(gpus))
    partial.replace(file)
    return file


def import_path(folder: Path) -> Path:
    """A folder that makes ``import pynvml`` find this module."""
    folder.mkdir(exist_ok=True)
    (folder / "pynvml.py").write_text(Path(__file__).read_text())
    return folder


def nvmlInit() -> None:
    if FILE not in os.environ:
        raise NVMLError("Driver Not Loaded")


def nvmlSystemGetDriverVersion() -> str:
    return "1.2.3"


def nvmlDeviceGetCount() -> int:
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index: int) -> Any:
    if _gpus()[index].get("lost"):
        raise NVMLError("GPU is lost")
    return _gpus()[index]["uuid"]


def nvmlDeviceGetHandleByUUID(uuid: str) -> Any:
    return _entry(uuid)["uuid"]


def nvmlDeviceGetMigMode(handle: Any) -> list[int]:
    return [int("parts" in _entry(handle)), 0]


def nvmlDeviceGetMaxMigDeviceCount(handle: Any) -> int:
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle: Any, index: int) -> Any:
    parts = _entry(handle)["parts"]
    if index >= len(parts):
        raise NVMLError("Not Found")
    return parts[index]["uuid"]


def nvmlDeviceGetUUID(handle: Any) -> str:
    return str(_entry(handle)["uuid"])


def nvmlDeviceGetName(handle: Any) -> bytes:
    return str(_entry(handle)["name"]).encode()


def nvmlDeviceGetMemoryInfo(handle: Any) -> Any:
    total, used = _said(handle, "total"), _said(handle, "used")
    return SimpleNamespace(total=total, used=used, free=total - used)


def nvmlDeviceGetUtilizationRates(handle: Any) -> Any:
    return SimpleNamespace(gpu=_said(handle, "busy"))


def nvmlDeviceGetPowerUsage(handle: Any) -> int:
    return _said(handle, "milliwatts")


def nvmlDeviceGetEnforcedPowerLimit(handle: Any) -> int:
    return _said(handle, "milliwatts_at_most")


def nvmlDeviceGetTotalEnergyConsumption(handle: Any) -> int:
    return _said(handle, "millijoules")


def _gpus() -> list[dict[str, Any]]:
    gpus: list[dict[str, Any]] = json.loads(Path(os.environ[FILE]).read_bytes())
    return gpus


def _all() -> Iterator[dict[str, Any]]:
    for entry in _gpus():
        yield entry
        yield from entry.get("parts", ())


def _entry(handle: Any) -> dict[str, Any]:
    for entry in _all():
        if entry["uuid"] == handle:
            return entry
    raise NVMLError("Not Found")


def _said(handle: Any, key: str) -> int:
    value = _entry(handle).get(key)
    if value is None:
        raise NVMLError("Not Supported")
    return int(value)
