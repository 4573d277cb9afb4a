"""Runs that nobody waits for any more, and that go on all the same.

Most frameworks can't be interrupted. A model that computes for ever would keep a slot of its worker, its memory and a
CPU, each with every request, until nothing else runs there. So its worker is ended, and what else ran there runs again.
"""

from __future__ import annotations

import asyncio
import logging
import time

from roost.router.ends import End
from roost.router.pending import Batch
from roost.router.worker import Worker

log = logging.getLogger(__name__)

GRACE_S = 30.0
"""So long a run may go on in any case, unless it keeps others from running."""

BLOCKING_GRACE_S = 5.0
"""The same where all slots of a worker have such runs."""

PATIENCE = 4.0
"""And so many times as long as it was expected to take, in any case."""


class Overruns:
    """See the module. One timer is enough for all of them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._given_up: dict[Batch, float] = {}

    def watch(self, batch: Batch) -> None:
        """Nobody waits for a run any more. Programs have processes of their own, which their worker ends."""
        if batch.instance.revision.is_code:
            return
        if not self._given_up:
            self._loop.call_later(BLOCKING_GRACE_S, self._look)
        self._given_up[batch] = time.monotonic()

    def _look(self) -> None:
        now = time.monotonic()
        going_on = {batch: since for batch, since in self._given_up.items() if _goes_on(batch)}
        self._given_up = going_on
        for batch, since in going_on.items():
            worker = batch.instance.worker
            grace_s = BLOCKING_GRACE_S if _is_blocked(worker) else GRACE_S
            if now - since >= grace_s and now - batch.sent >= PATIENCE * batch.predicted_s:
                self._end(worker, batch, now)
        if going_on:
            self._loop.call_later(BLOCKING_GRACE_S, self._look)

    @staticmethod
    def _end(worker: Worker, batch: Batch, now: float) -> None:
        if worker.blamed is None:  # it ends by now
            text = "a run of %s goes on after %.0f s, and nobody waits for it: worker %d is ended"
            log.error(text, batch.instance.revision.key, now - batch.sent, worker.id)
            worker.kill(End.OVERRAN, batch.instance.revision)


def _goes_on(batch: Batch) -> bool:
    return batch.instance.worker.runs.get(batch.number) is batch  # else it has ended, or its worker has


def _is_blocked(worker: Worker) -> bool:
    return not worker.has_slot and not any(batch.open for batch in worker.runs.values())
