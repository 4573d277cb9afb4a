"""Finds out in the background what instances of loaded models take, which is most often far less than the estimate.

A model is measured in a process of its own once it was loaded, unless its configuration says what it takes or it was
measured before. The process is given memory that nobody has, after a while also that of models that were not used since
that load, and gives way when a load wants it. What was found out is accounted for the instances that there are, and
kept for the loads to come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from cachetools import LRUCache
from roost.core.figures import Figures
from roost.core.units import format_bytes
from roost.router.background import Attempts, Background
from roost.router.learned import Learned, Measured
from roost.router.measured import measured_conditions
from roost.router.placement import Ledger
from roost.router.prepared import order_of
from roost.router.preparer import Answer, Preparer
from roost.router.revision import Instance, Revision
from roost.router.room import Room
from roost.router.sizes import accounted
from roost.router.states import InstanceState

log = logging.getLogger(__name__)

T = TypeVar("T")

Key: TypeAlias = tuple[str, str]
"""Digest of a model's files, and what else its figures depend on."""

MEASURED_BACKENDS = frozenset({"onnxruntime"})

PROCESS_BYTES = 48 << 20
"""The preparer and the process that it starts, without the model: 36 MB were measured."""

ROOM_BYTES = 64 << 20
BYTES_PER_ARTIFACT_BYTE = 6
MAX_ATTEMPTS = 3

_RESERVATION = -3  # proofs have -1, prepared copies -2
_KNOWN = 65536


class Instances(Protocol):
    """Whoever has the instances; see ``roost.router.loading``."""

    def evict_idle(self, numbers: Sequence[int]) -> None:
        """Takes out instances that nobody leases."""


@dataclass(eq=False, slots=True)
class _Work(Attempts):
    """Files to be measured, and the revisions that were loaded from them."""

    revisions: dict[Revision, None]


@dataclass(eq=False)
class Measuring:
    """See the module.

    Attributes:
        learned: Keeps what was found out.
        ledger: The device's budget.
        room: Where loads wait for memory.
        instances: Whoever takes instances out.
        preparer: Does the work.
        disk: The store is used on it.
        busy: Whether another process works in the background now.
    """

    learned: Learned
    ledger: Ledger
    room: Room
    instances: Instances
    preparer: Preparer
    disk: Executor
    busy: Callable[[], bool]
    _queue: dict[Key, _Work] = field(default_factory=dict)
    _settled: LRUCache[Key, None] = field(default_factory=lambda: LRUCache(_KNOWN))
    _background: Background = field(init=False)

    def __post_init__(self) -> None:
        self._background = Background(_RESERVATION, self.ledger, self.room, self.preparer)

    def loaded(self, revision: Revision) -> None:
        """A revision was loaded: what an instance takes is found out, unless it is known."""
        description, instance = revision.description, revision.instances[-1]
        if revision.artifact is None or description.backend not in MEASURED_BACKENDS or not _is_plain(instance):
            return
        if revision.measured is not None:
            self._account(instance, revision.measured)  # it may have been found out while this one was loaded
            return
        if description.policy.memory_bytes is not None:
            return
        key = _key_of(revision)
        work = self._queue.get(key)
        if work is not None:
            work.revisions[revision] = None
        elif key not in self._settled:
            self._queue[key] = _Work({revision: None}, since=time.monotonic())
            self._background.changed()

    async def run(self) -> None:
        """Measures what was loaded, one model after another, until cancelled."""
        async with self._background.used():
            await self._background.repeat(partial(self._background.step, self._queue, self._do), self._give_up)

    def _give_up(self) -> None:
        log.exception("measuring models failed: those that waited for it stay accounted with estimates")
        self._queue.clear()

    async def _do(self, key: Key, work: _Work) -> bool:
        """Measures a model, unless it is known by now or nobody needs it; returns whether that was possible now."""
        work.revisions = {
            r: None for r in work.revisions if not r.retired and r.artifact is not None and _key_of(r) == key
        }
        if not work.revisions:  # all were replaced, or have other files by now
            del self._queue[key]
        elif (known := await self._on_disk(partial(self.learned.get_measured, *key))) is not None:
            self._settle(key, known)
        elif self.busy() or not await self._reserve(key, work, time.monotonic()):
            return False
        else:
            await self._measure(key, work)
        return True

    async def _reserve(self, key: Key, work: _Work, now: float) -> bool:
        """Takes the memory for it; if there will never be so much, it is given up."""
        revision = next(iter(work.revisions))
        assert revision.artifact is not None
        need_bytes = PROCESS_BYTES + ROOM_BYTES + BYTES_PER_ARTIFACT_BYTE * revision.artifact.size_bytes
        taken = await self._background.take(need_bytes, work.since, now, self.instances.evict_idle)
        if taken is None:
            self._settle(key, None)
            log.debug("%s is not measured: the memory budget is too small for that", revision.key)
        return bool(taken)

    async def _measure(self, key: Key, work: _Work) -> None:
        revision = next(iter(work.revisions))
        artifact = revision.artifact
        assert artifact is not None
        memory_bytes = self._background.held_bytes - PROCESS_BYTES
        threads = self.preparer.spec.threads
        order = order_of(
            revision.folder,
            revision.description,
            artifact,
            threads=threads,
            memory_bytes=memory_bytes,
            options=revision.load_options(),
        )
        answer = await self._background.ask({"job": "measure", "order": asdict(order)})
        if self._background.interrupted and "result" not in answer:
            work.put_off_interrupted()
            return
        measured = _measured_of(answer)
        if measured is None:
            self._failed(key, work, answer)
            return
        await self._on_disk(partial(self.learned.put_measured, *key, measured))
        log.debug("%s takes %s of memory", revision.key, format_bytes(measured.figures.private_bytes))
        self._settle(key, measured)

    def _settle(self, key: Key, measured: Measured | None) -> None:
        """Nothing is left to be found out; what was, the instances that there are are accounted with from now on."""
        work = self._queue.pop(key)
        self._settled[key] = None
        if measured is None:
            return
        for revision in work.revisions:
            if revision.artifact is None or _key_of(revision) != key:
                continue
            revision.measured = measured
            for instance in revision.instances:
                if _is_plain(instance) and instance.state is not InstanceState.LOADING:
                    self._account(instance, measured)
        self.room.changed()

    def _account(self, instance: Instance, measured: Measured) -> None:
        instance.figures = accounted(measured.figures, instance.revision.description.policy.memory_bytes)
        self.ledger.resized(instance.id, instance.figures)

    def _failed(self, key: Key, work: _Work, answer: Answer) -> None:
        work.failures += 1
        result = answer.get("result")
        reason = result.get("reason") if isinstance(result, dict) else answer.get("error")
        name = next(iter(work.revisions)).key
        log.debug("%s could not be measured: %s", name, reason or "the answer can't be understood")
        work.put_off_failed()
        if work.failures >= MAX_ATTEMPTS:
            self._settle(key, None)

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.disk, call)


def _is_plain(instance: Instance) -> bool:
    """Whether it was loaded from the model itself; prepared copies were measured when they were made.

    What it takes beside a GPU is not what it takes on the CPU.
    """
    return instance.copy is None and not instance.figures.device_bytes and instance.state is not InstanceState.GONE


def _key_of(revision: Revision) -> Key:
    assert revision.artifact is not None
    return revision.artifact.digest, measured_conditions(revision.description)


def _measured_of(answer: Answer) -> Measured | None:
    """What an answer says; None if it says nothing, or makes no sense."""
    result = answer.get("result")
    try:
        taken: Mapping[str, Any] = result["taken"] if isinstance(result, dict) else {}
        figures = Figures(int(taken["private_bytes"]), int(taken["mapped_bytes"]), int(taken["mappings"]))
        return Measured(figures, float(taken["load_s"]), int(taken["peak_bytes"]), int(taken.get("run_bytes", 0)))
    except (LookupError, TypeError, ValueError):
        return None
