"""Prepared copies in the mesh: loads take them where they are, and they are made and verified in the background.

A copy is made once a model was loaded and that took long or the model is large, never in the way of anything: it is
given memory that nobody has, after a while also that of models that were not used since that load, and gives way when
a load wants it. The cache decides what there is; whatever happens to it, a model that has no copy is loaded as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from cachetools import LRUCache
from roost.router.background import Attempts, Background
from roost.router.placement import Ledger
from roost.router.prepared import order_of
from roost.router.prepared_counts import PreparedCounts
from roost.router.preparer import Answer, Preparer
from roost.router.revision import Revision
from roost.router.room import Room
from roost.runtimes.prepared.cache import Copy, CopyCache
from roost.runtimes.prepared.forms import FORMS, has_copies
from roost.runtimes.prepared.identity import PREPARED_BACKENDS, can_prepare, copied_options, copy_key
from roost.runtimes.prepared.making import WORTH_LOAD_S

log = logging.getLogger(__name__)

T = TypeVar("T")
Model: TypeAlias = tuple[str, str, tuple[tuple[str, str], ...]]
"""What a copy depends on, for this server's life: digest of the files, runtime, options."""

BYTES_PER_ARTIFACT_BYTE = 6
ROOM_BYTES = 64 << 20
MAX_ATTEMPTS = 3
MAX_FAULTS = 2
MAX_TIMES_MADE = 3
"""A copy may have been wiped; but where the cache is too small for all, they must not be made for ever."""

_RESERVATION = -2  # proofs have -1
_KNOWN = 65536


class Instances(Protocol):
    """Whoever has the instances; see ``roost.router.loading``."""

    def retire_copy(self, key: str) -> None:
        """A prepared copy is damaged: what was loaded from it goes."""

    def evict_idle(self, numbers: Sequence[int]) -> None:
        """Takes out instances that nobody leases."""


@dataclass(eq=False, slots=True)
class _Work(Attempts):
    """A model to make a copy of."""

    revision: Revision


@dataclass(eq=False)
class PreparedCopies:
    """See the module.

    Attributes:
        cache: The folder.
        ledger: The device's budget.
        room: Where loads wait for memory.
        instances: What was loaded from copies.
        preparer: Does the work.
        disk: The cache is read on it.
        counts: What metrics show.
        busy: Whether another process works in the background now.
    """

    cache: CopyCache
    ledger: Ledger
    room: Room
    instances: Instances
    preparer: Preparer
    disk: Executor
    counts: PreparedCounts
    busy: Callable[[], bool]
    _queue: dict[Model, _Work] = field(default_factory=dict)
    _settled: LRUCache[Model, None] = field(default_factory=lambda: LRUCache(_KNOWN))
    _times_made: LRUCache[Model, int] = field(default_factory=lambda: LRUCache(_KNOWN))
    _faults: LRUCache[str, int] = field(default_factory=lambda: LRUCache(_KNOWN))
    _damaged: set[str] = field(default_factory=set)
    _background: Background = field(init=False)

    def __post_init__(self) -> None:
        self._background = Background(_RESERVATION, self.ledger, self.room, self.preparer)
        self.counts.limit_bytes = self.cache.limit_bytes

    async def find(self, revision: Revision) -> Copy | None:
        """The copy to load a revision from, whose files were looked at."""
        if not _has_copies(revision):
            return None
        copy = await self._on_disk(partial(self._find, *_model_of(revision)))
        if copy is None or self._faults.get(copy.key, 0) >= MAX_FAULTS:
            return None
        self._damaged.discard(copy.key)  # it was made anew
        return copy

    def failed(self, revision: Revision, copy: Copy, *, lost: bool) -> None:
        """A load from a copy failed; after a few times it is not tried again before the next start.

        Args:
            revision: What was to be loaded.
            copy: The copy.
            lost: The worker was lost, which may have had another reason.
        """
        faults = self._faults[copy.key] = self._faults.get(copy.key, 0) + 1
        self.counts.failures += 1
        log.warning("the prepared copy %.12s %s", copy.key, "ended its worker" if lost else "can't be loaded")
        if not lost:
            self.disk.submit(self.cache.forget, copy.key)
        if faults >= MAX_FAULTS:
            self._settled[_model_of(revision)] = None

    def loaded(self, revision: Revision, load_s: float, copy: Copy | None) -> None:
        """A revision was loaded: it gets a copy if that may be worth it and was not tried."""
        if copy is not None:
            self.counts.loads += 1
            if copy.key in self._damaged:  # which was found out while it loaded
                asyncio.get_running_loop().call_soon(self.instances.retire_copy, copy.key)
            return
        artifact = revision.artifact
        if artifact is None or not _has_copies(revision):
            return
        form = FORMS[revision.description.backend]
        if artifact.size_bytes < (form.least_slow_bytes if load_s > WORTH_LOAD_S else form.least_bytes):
            return
        model = _model_of(revision)
        if model in self._settled or self._times_made.get(model, 0) >= MAX_TIMES_MADE:
            return
        work = self._queue.setdefault(model, _Work(revision, since=time.monotonic()))
        work.revision = revision
        self._background.changed()

    async def run(self) -> None:
        """Verifies what there is, then makes copies of what was loaded, one after another, until cancelled."""
        try:
            async with self._background.used():
                try:
                    await self._check_all()
                except Exception:
                    log.exception("verifying prepared copies failed: they are used as they are")
                await self._background.repeat(partial(self._background.step, self._queue, self._do), self._give_up)
        finally:
            with contextlib.suppress(OSError):  # the folder was wiped, or the next start sees to it
                await self._on_disk(self.cache.sweep)

    def _give_up(self) -> None:
        log.exception("making prepared copies failed: those that waited for it get none")
        self._queue.clear()

    async def _check_all(self) -> None:
        """Verifies the copies that were not since the machine was started, those used last first."""
        for backend in PREPARED_BACKENDS:  # the first call reads the runtime's library: no request has to wait
            await self._on_disk(partial(copy_key, "", backend, {}))
        await self._on_disk(self.cache.trim)
        for key in await self._on_disk(self.cache.unchecked):
            job = {"job": "check_copy", "key": key, **self._where()}
            answer = await self._background.ask(job)
            result = answer.get("result")
            whole = result.get("whole") if isinstance(result, dict) else None
            if whole is None:
                log.warning("the prepared copy %.12s could not be verified: it is used as it is", key)
            elif not whole:
                self.counts.damaged += 1
                log.error("the prepared copy %.12s is damaged: what was loaded from it is loaded again", key)
                self._damaged.add(key)
                self.instances.retire_copy(key)
        await self.preparer.end()
        await self._count()

    async def _do(self, model: Model, work: _Work) -> bool:
        """Makes a copy of a model, unless nobody needs it any more; returns whether that was possible now."""
        if work.revision.retired or work.revision.artifact is None or _model_of(work.revision) != model:
            del self._queue[model]
        elif self.busy() or not await self._reserve(model, work, time.monotonic()):
            return False
        else:
            await self._make(model, work)
        return True

    async def _reserve(self, model: Model, work: _Work, now: float) -> bool:
        """Takes the memory for it; if there will never be so much, it gets none."""
        artifact = work.revision.artifact
        assert artifact is not None
        process_bytes = FORMS[work.revision.description.backend].process_bytes
        need_bytes = process_bytes + ROOM_BYTES + BYTES_PER_ARTIFACT_BYTE * artifact.size_bytes
        taken = await self._background.take(need_bytes, work.since, now, self.instances.evict_idle)
        if taken is None:
            del self._queue[model]
            self._settled[model] = None
            log.debug("no prepared copy of %s: the memory budget is too small to make it", work.revision.key)
        return bool(taken)

    async def _make(self, model: Model, work: _Work) -> None:
        revision = work.revision
        artifact = revision.artifact
        assert artifact is not None
        form = FORMS[revision.description.backend]
        memory_bytes = self._background.held_bytes - form.process_bytes + form.reserved_bytes
        order = order_of(
            revision.folder,
            revision.description,
            artifact,
            threads=self.preparer.spec.threads,
            memory_bytes=memory_bytes,
            options=revision.load_options(),
        )
        answer = await self._background.ask({"job": "prepare_copy", "order": asdict(order), **self._where()})
        if self._background.interrupted and "result" not in answer:
            work.put_off_interrupted()
            return
        self._take(model, work, answer)
        await self._count()

    def _take(self, model: Model, work: _Work, answer: Answer) -> None:
        """Notes what came of an attempt."""
        result = answer.get("result")
        found: dict[str, Any] = {"reason": answer.get("error", "the answer can't be understood"), "passing": True}
        if isinstance(result, dict):
            found = result
        key = work.revision.key
        if not found.get("reason") and "made" in found:
            self.counts.made += bool(found["made"])
            self._times_made[model] = self._times_made.get(model, 0) + 1
            log.info("there is a prepared copy of %s now", key)
            del self._queue[model]
            return
        if not found.get("passing"):
            self.counts.refused += 1
            log.debug("no prepared copy of %s: %s", key, found["reason"])
        elif self._try_again(work, str(found["reason"])):
            return
        del self._queue[model]
        self._settled[model] = None

    def _try_again(self, work: _Work, reason: str) -> bool:
        """Whether an attempt that failed is made again, later."""
        self.counts.failures += 1
        work.failures += 1
        level = logging.WARNING if work.failures == 1 else logging.DEBUG
        log.log(level, "no prepared copy of %s now: %s", work.revision.key, reason)
        work.put_off_failed()
        return work.failures < MAX_ATTEMPTS

    def _where(self) -> dict[str, Any]:
        return {"cache_dir": str(self.cache.folder), "cache_bytes": self.cache.limit_bytes}

    async def _count(self) -> None:
        self.counts.bytes = await self._on_disk(self.cache.used_bytes)

    def _find(self, digest: str, backend: str, options: tuple[tuple[str, str], ...]) -> Copy | None:
        try:
            return self.cache.find(copy_key(digest, backend, dict(options))) if can_prepare(backend) else None
        except OSError as error:  # what copies depend on can't be looked at now
            log.warning("%.12s is loaded without a look for its prepared copy: %s", digest, error.strerror)
            return None

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.disk, call)


def _has_copies(revision: Revision) -> bool:
    description, artifact = revision.description, revision.artifact
    return artifact is not None and has_copies(description.backend, artifact.path, description.options)


def _model_of(revision: Revision) -> Model:
    assert revision.artifact is not None
    options = copied_options(revision.load_options())
    return revision.artifact.digest, revision.description.backend, tuple(sorted(options.items()))
