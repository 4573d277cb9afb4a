"""Requests of sequences: the shell around ``sequence_table``, between the checks of a request and its queue.

What a request of a sequence needs besides its run: the one before it must have been answered, there must be a place
for its sequence, the loaded copy that knows the sequence is kept from eviction, and its model is told where in the
sequence it is and given what it gave with the last one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from roost.core.errors import InvalidArgument
from roost.core.requests import InferRequest
from roost.core.tensors import Tensor
from roost.registry_client.sequences import (
    SEQUENCE_END,
    SEQUENCE_ID,
    SEQUENCE_START,
    SequencePolicy,
    initial_bytes,
)
from roost.router.leases import Leases
from roost.router.loading import Loader
from roost.router.revision import Instance, Revision
from roost.router.sequence import HERE, CorrelationId, Sequence, SequenceBudget, Turn
from roost.router.sequence_request import SequenceRequest, until
from roost.router.sequence_rows import RowBatches, Submit
from roost.router.sequence_table import SequenceTable
from roost.router.sequence_tensors import Wiring
from roost.router.states import READY

MAX_ID_CHARACTERS = 128
_UNLOADED = "has ended, since its model was unloaded or replaced: it has to be begun anew"
_LOST = "has ended, since the process that ran its model has ended: it has to be begun anew"
_GONE = "has ended, since its model is not in memory any more: it has to be begun anew"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What sequences of all models need.

    Attributes:
        submit: Takes requests into their queues.
        loader: Loads and protects.
        leases: Keep loaded copies from eviction.
        budget: What all sequences may have.
        disk: Where files with initial states are read.
        live: For each model name those of its revisions that have sequences.
    """

    submit: Submit
    loader: Loader
    leases: Leases
    budget: SequenceBudget
    disk: Executor
    live: dict[str, dict[Sequences, None]]


class Sequences:
    """The sequences of one revision.

    Args:
        revision: The revision, whose configuration has ``policy``.
        policy: How its sequences are served.
        around: What that takes.
    """

    def __init__(self, revision: Revision, policy: SequencePolicy, around: Surroundings) -> None:
        self.revision = revision
        self.policy = policy
        self.around = around
        self.table = SequenceTable(
            revision.key.name,
            places=policy.candidates,
            idle_s=policy.idle_s,
            budget=around.budget,
            when_ended=self._ended,
        )
        has_rows = policy.is_direct and policy.keeps_inside and revision.batch_rows > 1
        self.rows = RowBatches(revision, policy, around.submit) if has_rows else None
        self._wiring: Wiring | None = None
        self._initial: Mapping[str, bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_replaced = False

    @asynccontextmanager
    async def turn(self, request: InferRequest) -> AsyncIterator[SequenceRequest]:
        """Waits for a request's turn, which lasts as long as the block; the block is to run it.

        Raises:
            InvalidArgument: If it is not of a sequence that it could be of.
            Aborted: If its sequence was given up, or has lost a request before it.
            ResourceExhausted: If there are too many sequences, or too many requests wait in them.
            DeadlineExceeded: If its turn has not come in time.
        """
        made = SequenceRequest(self, request, self._enter(request))
        try:
            await made.come()
            with self.around.loader.claimed(self.revision):
                yield made
        finally:
            made.close()
            self.table.over(made.turn, time.monotonic(), ok=made.is_answered)
            self.retired()
            self._watch()

    def _enter(self, request: InferRequest) -> Turn:
        """Gives a request its place; nothing is awaited, so that requests are in the order in which they came."""
        model, parameters = self.revision.key.name, request.parameters
        if self.revision.description.max_batch_size > 0 and any(t.shape[:1] > (1,) for t in request.inputs):
            raise InvalidArgument(
                f"inference request to model '{model}' must specify batch-size 1 due to requirements of sequence "
                "batcher"
            )
        id_ = correlation_id(request)
        if not id_:
            raise InvalidArgument(
                f"inference request to model '{model}' must specify a non-zero or non-empty correlation ID"
            )
        if isinstance(id_, str) and len(id_) > MAX_ID_CHARACTERS:
            raise InvalidArgument(
                f"inference request to model '{model}': a correlation ID of {len(id_)} characters is over the limit "
                f"of {MAX_ID_CHARACTERS}"
            )
        start, end = parameters.get(SEQUENCE_START) is True, parameters.get(SEQUENCE_END) is True
        request.context.served_by = self.revision.served_by
        turn = self.table.enter(id_, start=start, end=end, now=time.monotonic())
        self.around.live.setdefault(model, {})[self] = None
        return turn

    async def wiring(self) -> Wiring:
        """Makes the tensors that clients do not see; the contract must be known."""
        contract = self.revision.contract or self.revision.former
        assert contract is not None
        if self._initial is None:
            self._initial = await self._read_initial()
        if self._wiring is None or self._wiring.contract is not contract:
            self._wiring = Wiring(self.policy, contract, self._initial)
        return self._wiring

    async def _read_initial(self) -> Mapping[str, bytes]:
        states = [state for state in self.policy.states if state.initial_file]
        if not states:
            return {}
        read = partial(initial_bytes, states, self.revision.folder.read_initial_state)
        return await asyncio.get_running_loop().run_in_executor(self.around.disk, read)

    async def bind(self, turn: Turn, deadline: float) -> None:
        """Has a sequence keep the loaded copy that knows it, or the one that is to.

        Raises:
            RoostError: If there is none and none can be loaded; if the sequence has lost its own, it is given up.
        """
        sequence, revision = turn.sequence, self.revision
        if sequence.instance is not None:
            if sequence.instance.state is not READY:
                self.table.give_up(sequence, _GONE)
            return
        while (instance := _ready(revision)) is None:
            if revision.retired and not turn.start:
                self.table.give_up(sequence, _UNLOADED)
                return
            await until(deadline, self.around.loader.bring(revision, deadline=deadline))
        if turn.phase is HERE:
            self._lease(sequence, instance)

    def _lease(self, sequence: Sequence, instance: Instance) -> None:
        sequence.instance = instance
        self.around.leases.take(instance)

    def keep(self, sequence: Sequence, state: list[Tensor]) -> None:
        """Keeps what a sequence needs for its next request.

        Raises:
            ResourceExhausted: If there is no room for it.
        """
        state_bytes = sum(len(tensor.data) for tensor in state)
        self.around.budget.resize(sequence.state_bytes, state_bytes)
        sequence.state, sequence.state_bytes = state, state_bytes

    def _ended(self, sequence: Sequence) -> None:
        instance, sequence.instance = sequence.instance, None
        if not len(self.table):
            live = self.around.live.get(self.revision.key.name, {})
            live.pop(self, None)
            if not live:
                self.around.live.pop(self.revision.key.name, None)
        if instance is not None:
            self.around.leases.give_back(instance)

    def lost(self, instance: Instance) -> None:
        """The process of a loaded copy has ended; called before its requests are seen to."""
        self._end_those_of(instance, _LOST)

    def gone(self, instance: Instance) -> None:
        """A loaded copy takes no more requests."""
        self._end_those_of(instance, _GONE)

    def _end_those_of(self, instance: Instance, reason: str) -> None:
        for sequence in self.table:
            if sequence.instance is instance:
                self.table.give_up(sequence, reason)

    def lost_by(self, sequence: Sequence) -> None:
        """A run was lost, though its worker may live: if the model is in a process of its own, that has ended."""
        if self.policy.keeps_inside and sequence.instance is not None:
            self.table.give_up(sequence, _LOST)

    def replaced(self) -> None:
        """Another revision takes over: sequences that have begun go on with this one as long as it is in memory."""
        self._is_replaced = True
        instance = _ready(self.revision)
        for sequence in self.table:
            if sequence.instance is None and instance is not None:
                self._lease(sequence, instance)

    def retired(self) -> None:
        """Sees, once the revision is not asked for any more, which of its sequences have no way to go on.

        What was asked before is answered.
        """
        for sequence in self.table if self.revision.retired else ():
            if not sequence.turns and (sequence.instance is None or not self._is_replaced):
                self.table.give_up(sequence, _UNLOADED)

    def _watch(self) -> None:
        """Has a look when the next sequence ends because nobody uses it."""
        expires_at = self.table.expires_at
        if self._timer is None and expires_at < math.inf:
            delay_s = max(0.0, expires_at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.table.expire(time.monotonic())
        self._watch()


def correlation_id(request: InferRequest) -> CorrelationId:
    """The correlation id of a request; 0 if it has none."""
    value = request.parameters.get(SEQUENCE_ID, 0)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else 0


def _ready(revision: Revision) -> Instance | None:
    return next((instance for instance in revision.instances if instance.state is READY), None)
