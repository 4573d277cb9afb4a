"""Which GPUs a server uses: ``--devices``, and what there is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from roost.core.units import format_bytes
from roost.runtimes.adapters import DEFAULT_KIND, GPU_SUFFIX, KINDS, kind_of
from roost.runtimes.gpu_builds import built_for_gpus, gpu_kinds
from roost.runtimes.nvml import Gpu, NoGpus, Nvml, Reading, chosen, open_nvml
from roost.server.arguments import ConfigError
from roost.server.config import ServeConfig
from roost.server.values import AUTO_DEVICES, ONLY_CPU

log = logging.getLogger(__name__)


def _unknown(uuid: str) -> Reading | None:
    """There is nobody to ask."""
    return None


@dataclass(frozen=True, slots=True)
class FoundGpus:
    """The GPUs that models may run on.

    Attributes:
        gpus: Them, in the order of their numbers.
        kinds: The kinds of workers that use them.
        read: Says what the one of a UUID is doing.
        reason: Why there are none, or nothing uses them; empty where they are used, or not wanted.
    """

    gpus: tuple[Gpu, ...] = ()
    kinds: tuple[str, ...] = ()
    read: Callable[[str], Reading | None] = field(default=_unknown, repr=False)
    reason: str = ""

    @property
    def has_framework(self) -> bool:
        """Whether a framework was built for them; Python models may use them in any case."""
        return bool(set(self.kinds) - {kind_of("python") + GPU_SUFFIX})


def find_gpus(config: ServeConfig, open_library: Callable[[], Nvml] = open_nvml) -> FoundGpus:
    """Looks for the GPUs that the configuration wants.

    Raises:
        ConfigError: If it names one that is not there.
    """
    if config.devices == ONLY_CPU:
        return FoundGpus()
    wanted = () if config.devices == AUTO_DEVICES else tuple(config.devices.split(","))
    try:
        nvml = open_library()
        gpus = chosen(nvml.gpus(), wanted, config.visible_gpus)
    except NoGpus as error:
        if wanted:
            raise ConfigError(f"--devices: {error}") from None
        return FoundGpus(reason=str(error))
    if not gpus:
        return FoundGpus(reason="there is none that this process may use")
    counts = {kind for kind, count in config.workers_of.items() if count} | {DEFAULT_KIND}
    built = (lambda _: True) if config.fake_gpus else built_for_gpus
    kinds = gpu_kinds([kind for kind in KINDS if kind in counts], built)
    return FoundGpus(tuple(gpus), tuple(kinds), nvml.read)


def say(found: FoundGpus) -> None:
    """Logs what models run on."""
    for gpu in found.gpus:
        free, total = format_bytes(gpu.free_bytes), format_bytes(gpu.total_bytes)
        log.info("%s: %s, %s of %s free (%s)", gpu.name, gpu.product, free, total, gpu.uuid)
    if found.gpus and not found.has_framework:
        log.warning(
            "none of the frameworks that are installed was built for GPUs: their models run on the CPU; for ONNX "
            "Runtime install roost[onnx-gpu]"
        )
    elif found.reason:
        log.info("models run on the CPU: %s", found.reason)
