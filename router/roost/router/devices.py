"""Step 5: whether an instance goes to a GPU or stays on the CPU, and which GPUs there are.

Workers on GPUs are of kinds of their own, such as ``onnx-gpu``: one worker for each GPU, whose memory the ledger limits
for all of them together. What a framework can do with a GPU is known once such a worker is up, as it tries that first.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from roost.proto import model_config_pb2 as mc
from roost.registry_client.instance_groups import asks_for_gpu
from roost.router.revision import Revision
from roost.router.spread import Unplaceable
from roost.router.worker import Worker
from roost.runtimes.adapters import GPU_SUFFIX, kind_of
from roost.runtimes.nvml import DEVICE_PREFIX, Gpu, Reading

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class GpuState:
    """A GPU that models run on.

    Attributes:
        gpu: What does not change of it.
        reading: What it said last of what it is doing, if it did.
    """

    gpu: Gpu
    reading: Reading | None = None


_ALL_OF_THE_KIND: frozenset[str] = frozenset()  # one for all models: each empty set would be 216 bytes of its own


class Devices:
    """Says for each load what it goes to.

    Args:
        workers: All workers.
        gpus: The GPUs, in the order of their numbers.
    """

    def __init__(self, workers: Sequence[Worker], gpus: Sequence[Gpu]) -> None:
        self._on_gpu: dict[str, list[Worker]] = {}
        for worker in workers:
            if worker.spec.kind.endswith(GPU_SUFFIX):
                self._on_gpu.setdefault(worker.spec.kind, []).append(worker)
        self._names = {gpu.number: gpu.name for gpu in gpus}

    def choose(self, revision: Revision) -> bool:
        """Decides, by what is known now, where the next instance of a revision goes; returns whether that is a GPU.

        Args:
            revision: It gets ``kind``, ``devices`` and ``on_gpu``.

        Raises:
            Unplaceable: If its configuration names a GPU that is not there, while others are.
        """
        config, kind = revision.description.config, kind_of(revision.description.backend)
        numbers = {number for group in config.instance_group for number in group.gpus}
        if self._names and (missing := sorted(numbers - self._names.keys())):
            there = ", ".join(map(str, sorted(self._names)))
            raise Unplaceable(
                f"model '{revision.key.name}' version {revision.key.version} specifies invalid or unsupported gpu id "
                f"{missing[0]}; GPUs that are used here: {there}"
            )
        wanted = frozenset(self._names[number] for number in numbers) if self._names else frozenset()
        usable = frozenset() if _is_for_cpus(config) else self._usable(kind + GPU_SUFFIX, revision, wanted)
        if usable:
            revision.kind, revision.on_gpu, revision.devices = kind + GPU_SUFFIX, True, usable
            return True
        revision.kind, revision.on_gpu, revision.devices = kind, False, _ALL_OF_THE_KIND
        if (asks_for_gpu(config) or numbers) and not revision.fell_back:
            revision.fell_back = True
            why = f"backend '{revision.description.backend}' can't use one here" if self._names else "there is none"
            log.warning("%s asks for a GPU, and %s: it runs on the CPU", revision.key, why)
        return False

    async def ready(self, revision: Revision, changed: Callable[[], Awaitable[object]]) -> bool:
        """Waits until a worker has said that it can use its GPU for a revision; False if none can after all.

        Args:
            revision: ``choose`` has said that it goes to a GPU, and its kind of workers is held.
            changed: Returns when a worker has come or ended.
        """
        while self.choose(revision):
            if any(self._has_said(worker, revision) for worker in self._on_gpu[revision.kind]):
                return True
            await changed()
        return False

    def _usable(self, kind: str, revision: Revision, wanted: frozenset[str]) -> frozenset[str]:
        """The GPUs whose worker has the revision's backend, or may turn out to have it."""
        backend = revision.description.backend
        return frozenset(
            worker.spec.device
            for worker in self._on_gpu.get(kind, ())
            if (worker.gpu_runtimes is None or backend in worker.gpu_runtimes)
            and (not wanted or worker.spec.device in wanted)
        )

    @staticmethod
    def _has_said(worker: Worker, revision: Revision) -> bool:
        return worker.gpu_runtimes is not None and worker.spec.device in revision.devices


def _is_for_cpus(config: mc.ModelConfig) -> bool:
    """Whether all that is said of instances is that they are on CPUs."""
    groups = config.instance_group
    return bool(groups) and all(group.kind == mc.ModelInstanceGroup.KIND_CPU for group in groups)


def show_devices(config: mc.ModelConfig, revision: Revision) -> None:
    """Writes into a complete configuration where instances of a revision are, as far as that was decided."""
    asked = revision.description.config.instance_group
    for position, group in enumerate(config.instance_group):
        if revision.fell_back and not revision.on_gpu:
            group.kind = mc.ModelInstanceGroup.KIND_CPU
            del group.gpus[:]
        elif revision.on_gpu and (not asked or asked[position].kind != mc.ModelInstanceGroup.KIND_CPU):
            group.kind = mc.ModelInstanceGroup.KIND_GPU
            if not group.gpus:
                group.gpus.extend(sorted(int(name.removeprefix(DEVICE_PREFIX)) for name in revision.devices))
