"""Sequences of requests, their turns, and what all of them may have together: plain values for ``sequence_table``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from roost.core.errors import Limit, ResourceExhausted, RoostError
from roost.core.names import shorten
from roost.core.tensors import Tensor
from roost.router.revision import Instance

CorrelationId: TypeAlias = int | str


class Phase(Enum):
    """Where a turn is."""

    WAITING = auto()
    HERE = auto()  # the request may run
    OVER = auto()


WAITING, HERE, OVER = Phase  # members are slow to look up


def nobody(error: RoostError | None) -> None:
    """Nobody wants to be told, not yet or not any more."""


@dataclass(eq=False, slots=True)
class Turn:
    """One request's place in its sequence.

    Attributes:
        sequence: The sequence.
        start: Whether the request is the first of a sequence.
        end: Whether it is the last one.
        phase: Where it is.
        told: Called with None when the turn has come, and with an error when the request is not to be answered, be it
            that it waits or that it runs. Must not call the table.
    """

    sequence: Sequence
    start: bool
    end: bool
    phase: Phase = WAITING
    told: Callable[[RoostError | None], None] = nobody


@dataclass(eq=False, slots=True)
class Sequence:
    """A sequence that has begun and not ended; its correlation id may be used again for the next one meanwhile.

    Attributes:
        id: The correlation id.
        turns: Its requests that were not answered yet, in order.
        is_open: Whether a request that is not the first of a sequence may follow.
        place: Which of the places it has; None while it is in the backlog.
        used_at: When the last of its requests was over.
        state: What the model has given for the next request.
        state_bytes: What that takes.
        instance: The loaded copy that knows it; None if there is none.
    """

    id: CorrelationId
    turns: deque[Turn] = field(default_factory=deque)
    is_open: bool = True
    place: int | None = None
    used_at: float = 0.0
    state: Items[Tensor] = ()
    state_bytes: int = 0
    instance: Instance | None = None


@dataclass(slots=True)
class SequenceBudget:
    """What the sequences of all models may have together.

    Attributes:
        max_sequences: How many there may be.
        max_bytes: What their state may take.
        max_waiting: How many requests to one revision may wait for their turns.
        sequences: How many there are.
        bytes: What their state takes.
    """

    max_sequences: int
    max_bytes: int
    max_waiting: int = 1000
    sequences: int = 0
    bytes: int = 0

    def begin(self) -> None:
        """There is to be one more.

        Raises:
            ResourceExhausted: If there are enough.
        """
        if self.sequences >= self.max_sequences:
            text = f"{self.sequences} sequences have begun and not ended, which is as many as there may be"
            raise ResourceExhausted(text, retry_after_s=1.0, limit=Limit.SEQUENCES)
        self.sequences += 1

    def resize(self, before: int, after: int) -> None:
        """The state of one takes more or less than before.

        Raises:
            ResourceExhausted: If there is no room for that.
        """
        if after > before and self.bytes + after - before > self.max_bytes:
            text = "the state of all sequences takes as much memory as it may"
            raise ResourceExhausted(text, retry_after_s=1.0, limit=Limit.SEQUENCES)
        self.bytes += after - before

    def end(self, state_bytes: int) -> None:
        """One has ended."""
        self.sequences -= 1
        self.bytes -= state_bytes


def shown(id_: CorrelationId) -> str:
    """A correlation id as error texts have it."""
    return shorten(id_, 128) if isinstance(id_, str) else str(id_)
