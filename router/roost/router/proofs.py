"""Finds out in the background which loaded models may be batched, and tells their revisions.

A model is tried once it was loaded for a request, never before and never in the way of anything: the preparer gets
memory only if there is some that nobody has, and gives it back as soon as a load wants it.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from cachetools import LRUCache
from roost.core.errors import RoostError
from roost.core.figures import Figures
from roost.core.units import format_bytes
from roost.registry_client.warmup import warmup_samples
from roost.router.background import LINGER_S, PATIENCE_S, Attempts, Background
from roost.router.catalog import Catalog
from roost.router.placement import Ledger
from roost.router.plans import Fits, Refuse
from roost.router.preparer import Answer, Preparer
from roost.router.proof import (
    DEFAULT_ROWS,
    PENDING,
    BatchingMode,
    Decision,
    Proof,
    conditions_of,
    decide,
)
from roost.router.revision import Revision
from roost.router.room import Room

log = logging.getLogger(__name__)

Key: TypeAlias = tuple[str, str]
"""Digest of a model's files, and what else a proof depends on."""

PROCESS_BYTES = 64 << 20
BYTES_PER_ARTIFACT_BYTE = 5
LEAST_ROOM_BYTES = 64 << 20
MOST_ROOM_BYTES = 256 << 20

BUDGET_S = 60.0

_RESERVATION = -1
_KNOWN = 4096


@dataclass(eq=False, slots=True)
class _Work(Attempts):
    """An artifact to be tried, and the revisions that wait for what comes of it."""

    revisions: list[Revision]


@dataclass(eq=False)
class Proofs:
    """See the module.

    Attributes:
        mode: Which models are batched.
        ledger: The device's budget.
        room: Where loads wait for memory.
        catalog: Keeps what was found out.
        preparer: Does the work.
    """

    mode: BatchingMode
    ledger: Ledger
    room: Room
    catalog: Catalog
    preparer: Preparer
    _queue: dict[Key, _Work] = field(default_factory=dict)
    _known: LRUCache[Key, Proof] = field(default_factory=lambda: LRUCache(_KNOWN))
    _background: Background = field(init=False)

    def __post_init__(self) -> None:
        self.catalog.when_loaded = self.loaded
        self._background = Background(_RESERVATION, self.ledger, self.room, self.preparer)

    def loaded(self, revision: Revision) -> None:
        """A revision was loaded: what is known of its batches holds from now on, and what is not is found out."""
        assert revision.contract is not None
        decision = decide(revision.description, revision.contract.signature, self.mode)
        if decision is None:
            key = _key_of(revision)
            proof = self._known.get(key) or revision.proof
            if proof is None or not proof.settled:
                self._enqueue(key, revision, proof.failures if proof is not None else 0)
            decision = proof.decision if proof is not None else Decision(0, PENDING)
        _apply(revision, decision)

    async def describe(self, revision: Revision) -> str:
        """What the configuration of a revision shows of batches; its contract is known."""
        contract = revision.contract or revision.former
        if revision.batching or contract is None:
            return revision.batching
        decision = decide(revision.description, contract.signature, self.mode)
        if decision is None and revision.artifact is None:
            try:
                await self.catalog.prepare(revision)  # it may have been found out before the server was started
            except RoostError:
                return PENDING
        if decision is None and revision.proof is not None:
            decision = revision.proof.decision
        return decision.text if decision is not None else PENDING

    async def run(self) -> None:
        """Tries what was enqueued, one after another, until cancelled."""
        async with self._background.used():
            await self._background.repeat(self._step, self._give_up)

    def _give_up(self) -> None:
        log.exception("finding out about batches failed: what waited for it stays as it is")
        self._queue.clear()

    async def _step(self) -> float:
        """Does the next piece of work if that is possible; else says how long to wait for a change."""
        background = self._background
        if background.interrupted:
            await background.end(at_once=True)
        if not self._queue and self.preparer.pid:
            await background.wait(LINGER_S)
        if not self._queue:
            await background.end(at_once=background.interrupted)
            return 0.0 if self._queue else math.inf
        return await background.step(self._queue, self._do)

    async def _do(self, key: Key, work: _Work) -> bool:
        """Tries an artifact, unless nobody needs it any more; returns whether that was possible now."""
        work.revisions = [r for r in work.revisions if not r.retired and _key_of(r) == key]
        if not work.revisions:  # all were replaced, or have other files by now
            del self._queue[key]
        elif not await self._reserve(key, work, time.monotonic()):
            return False
        else:
            await self._try(key, work)
        return True

    def _enqueue(self, key: Key, revision: Revision, failures: int) -> None:
        work = self._queue.get(key)
        if work is None:
            self._queue[key] = _Work([revision], since=time.monotonic(), failures=failures)
            self._background.changed()
        elif revision not in work.revisions:
            work.revisions.append(revision)

    async def _reserve(self, key: Key, work: _Work, now: float) -> bool:
        """Takes memory that nobody has; without any, whatever the preparer still had is free again."""
        artifact = work.revisions[0].artifact
        assert artifact is not None
        need_bytes = self._room_bytes() + PROCESS_BYTES + BYTES_PER_ARTIFACT_BYTE * artifact.size_bytes
        held_bytes = self._background.held_bytes
        quiet = self.ledger.reserved_bytes == held_bytes or now - work.since > PATIENCE_S
        match self.ledger.plan(Figures(max(0, need_bytes - held_bytes)), now):
            case Fits() if quiet:
                self._background.reserve(need_bytes)
                return True
            case Refuse():
                del self._queue[key]
                reason = f"not proven: trying it takes {format_bytes(need_bytes)} of the memory budget"
                self._say(work, Decision(0, reason))
        await self._background.end()
        return False

    def _room_bytes(self) -> int:
        """What batches may take beside the model."""
        return min(MOST_ROOM_BYTES, max(LEAST_ROOM_BYTES, self.ledger.limits.private_bytes // 4))

    async def _try(self, key: Key, work: _Work) -> None:
        """Has the preparer try an artifact; whatever comes of it is remembered, unless a load came first."""
        revision = work.revisions[0]
        answer = await self._background.ask(self._job(revision))
        if self._background.interrupted and "result" not in answer:
            work.put_off_interrupted()
            return
        changed = await self.catalog.changed(revision)
        del self._queue[key]
        if changed:  # what was tried may have been the new files; their load enqueues them
            work.revisions.remove(revision)
            if work.revisions:  # which still have what was to be tried
                self._queue[key] = work
            return
        if answer.get("missing"):
            self._say(work, Decision(0, f"not proven: {answer['error']}"))
            return
        proof = _proof_of(answer, work)
        self._known[key] = proof
        self._say(work, proof.decision)
        if not proof.settled:
            work.failures = proof.failures
            work.put_off_failed()
            self._queue[key] = work
        await self.catalog.remember_proof(key, proof)

    def _job(self, revision: Revision) -> dict[str, Any]:
        artifact, description = revision.artifact, revision.description
        assert artifact is not None
        return {
            "job": "prove_batching",
            "path": artifact.path,
            "root": artifact.root,
            "options": dict(description.options),
            "threads": self.preparer.spec.threads,
            "max_rows": DEFAULT_ROWS,
            "budget_s": BUDGET_S,
            "memory_bytes": self._background.held_bytes - PROCESS_BYTES,
            "samples": warmup_samples(description.config),
            "samples_root": str(revision.folder.path),
        }

    def _say(self, work: _Work, decision: Decision) -> None:
        for revision in work.revisions:
            log.debug("batches of %s: %s", revision.key, decision.text)
            if not revision.retired:
                _apply(revision, decision)


def _key_of(revision: Revision) -> Key:
    assert revision.artifact is not None
    return revision.artifact.digest, conditions_of(revision.description)


def _apply(revision: Revision, decision: Decision) -> None:
    revision.batching = decision.text
    if revision.batch_rows != decision.rows:
        revision.batch_up_to(decision.rows)


def _proof_of(answer: Answer, work: _Work) -> Proof:
    """What an answer proves; one that makes no sense is a failure like any other."""
    result = answer.get("result")
    if isinstance(result, dict):
        try:
            return Proof(int(result["max_rows"]), str(result["reason"]))
        except (LookupError, TypeError, ValueError):
            pass
    reason = answer.get("error", "the preparer's answer can't be understood")
    return Proof(0, f"the attempt failed: {reason}", work.failures + 1)
