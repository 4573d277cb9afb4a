"""GPUs as NVIDIA's management library (NVML) shows them: which there are, and what they are doing now.

The library comes with the driver; the package ``nvidia-ml-py``, module ``pynvml``, calls it. Both may be missing. A GPU
that is divided (MIG) counts as its parts, each of which has memory of its own and can be used by a process by itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULE = "pynvml"
DEVICE_PREFIX = "cuda:"

_DRIVER = Path("/proc/driver/nvidia/version")


class NoGpus(Exception):
    """There are none to be used; the text is the end of a sentence that says why."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a part of one that a process can use by itself.

    Attributes:
        number: Its number here, as configurations name it.
        uuid: Its name on this machine, whatever else is visible.
        product: What it is called in shops.
        total_bytes: Its memory.
        free_bytes: How much of that nobody had when it was found.
    """

    number: int
    uuid: str
    product: str
    total_bytes: int
    free_bytes: int

    @property
    def name(self) -> str:
        """Its name here."""
        return f"{DEVICE_PREFIX}{self.number}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a GPU is doing; None for what it does not say.

    Attributes:
        total_bytes: Its memory.
        used_bytes: What all processes of the machine have of it.
        free_bytes: What can be had.
        utilization: For which share of the last moment it was busy, 0 to 1.
        power_w: What it draws, in watts.
        power_limit_w: What it may draw.
        energy_j: What it has drawn since the driver was loaded, in joules.
    """

    total_bytes: int
    used_bytes: int
    free_bytes: int
    utilization: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None


class Nvml:
    """The library, initialised; for any thread.

    Args:
        module: ``pynvml``.

    Raises:
        NoGpus: If there is no driver, or it does not answer.
    """

    def __init__(self, module: Any) -> None:
        self._nvml = module
        try:
            module.nvmlInit()
        except module.NVMLError as error:
            raise NoGpus(f"the NVIDIA driver does not answer: {error}") from None

    def gpus(self) -> list[Gpu]:
        """All that there are, divided ones as their parts, numbered from 0."""
        found: list[Gpu] = []
        for handle in self._handles():
            memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
            uuid, product = self._ask("nvmlDeviceGetUUID", handle), self._ask("nvmlDeviceGetName", handle)
            if memory is not None and uuid is not None:  # one without memory of its own shares the machine's
                found.append(Gpu(len(found), _text(uuid), _text(product or "GPU"), int(memory.total), int(memory.free)))
        return found

    def read(self, uuid: str) -> Reading | None:
        """What a GPU is doing now; None if it does not answer. May take some milliseconds."""
        handle = self._ask("nvmlDeviceGetHandleByUUID", uuid)
        memory = None if handle is None else self._ask("nvmlDeviceGetMemoryInfo", handle)
        if memory is None:
            return None
        rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
        return Reading(
            int(memory.total),
            int(memory.used),
            int(memory.free),
            None if rates is None else rates.gpu / 100,
            _thousandth(self._ask("nvmlDeviceGetPowerUsage", handle)),
            _thousandth(self._ask("nvmlDeviceGetEnforcedPowerLimit", handle)),
            _thousandth(self._ask("nvmlDeviceGetTotalEnergyConsumption", handle)),
        )

    def driver(self) -> str:
        """The driver's version."""
        return _text(self._ask("nvmlSystemGetDriverVersion") or "unknown")

    def _handles(self) -> Iterator[Any]:
        for index in range(self._ask("nvmlDeviceGetCount") or 0):
            handle = self._ask("nvmlDeviceGetHandleByIndex", index)
            if handle is None:  # it is lost, or not ours
                continue
            mode = self._ask("nvmlDeviceGetMigMode", handle)
            if mode is not None and mode[0]:
                for part in range(self._ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
                    if (part_handle := self._ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, part)) is not None:
                        yield part_handle
            else:
                yield handle

    def _ask(self, function: str, *arguments: Any) -> Any:
        """What a function of the library says; None if that is not supported, or fails."""
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError:
            return None


def open_nvml(load: Callable[[str], Any] = importlib.import_module, driver: Path = _DRIVER) -> Nvml:
    """Loads the library.

    Args:
        load: Imports a module.
        driver: A file that is there if the driver is.

    Raises:
        NoGpus: If the package or the driver is missing.
    """
    try:
        module = load(MODULE)
    except ImportError:
        if driver.exists():
            raise NoGpus("nvidia-ml-py is not installed: pip install 'roost[gpu]'") from None
        raise NoGpus("there is no NVIDIA driver") from None
    return Nvml(module)


def chosen(found: Sequence[Gpu], wanted: Sequence[str], visible: str | None) -> list[Gpu]:
    """The GPUs to be used, numbered by what is visible.

    Args:
        found: All that there are.
        wanted: Numbers, such as ``cuda:1`` or ``1``, or beginnings of UUIDs; empty: all.
        visible: ``CUDA_VISIBLE_DEVICES``, which says what there is for this process; None if it is not set.

    Raises:
        NoGpus: If one is wanted that is not there.
    """
    seen = list(found) if visible is None else _visible(found, visible)
    numbered = [_numbered(gpu, number) for number, gpu in enumerate(seen)]
    if not wanted:
        return numbered
    result: list[Gpu] = []
    for name in wanted:
        gpu = _find(numbered, name)
        if gpu is None:
            names = ", ".join(f"{gpu.name} ({gpu.uuid})" for gpu in numbered) or "none"
            raise NoGpus(f"there is no '{name}'; there are: {names}")
        if gpu not in result:
            result.append(gpu)
    return result


def _visible(found: Sequence[Gpu], text: str) -> list[Gpu]:
    """As CUDA reads it: the first name that means nothing hides all behind it."""
    seen: list[Gpu] = []
    for name in text.split(","):
        gpu = _find(found, name.strip())
        if gpu is None or gpu in seen:
            break
        seen.append(gpu)
    return seen


def _find(gpus: Sequence[Gpu], name: str) -> Gpu | None:
    number = name.removeprefix(DEVICE_PREFIX)
    if number.isascii() and number.isdigit():
        return next((gpu for gpu in gpus if gpu.number == int(number)), None)
    found = [gpu for gpu in gpus if gpu.uuid.startswith(name)] if name.startswith(("GPU-", "MIG-")) else []
    return found[0] if len(found) == 1 else None


def _numbered(gpu: Gpu, number: int) -> Gpu:
    return Gpu(number, gpu.uuid, gpu.product, gpu.total_bytes, gpu.free_bytes)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)  # older packages give bytes


def _thousandth(value: Any) -> float | None:
    return None if value is None else value / 1000
