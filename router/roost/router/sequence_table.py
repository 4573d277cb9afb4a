"""Sequences of requests, the pure part: who is in which sequence, whose turn it is, and when a sequence has ended.

Nothing here knows of tasks or models, and time is passed in. A request has a *turn* in its sequence: turns are taken
in the order in which requests came, one at a time. So many sequences as there are places for are served at once; the
others wait in the *backlog*, first come first served.

======================  ==============================================  =====================================
a turn is over           of its sequence                                 of the turns behind it
======================  ==============================================  =====================================
it went well             goes on; has ended if the request was its last  the next one comes
it failed                is as it was before the request                 fail, up to the next first request
it failed, first or last  has ended                                      the same
======================  ==============================================  =====================================
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator

from roost.core.errors import Aborted, InvalidArgument, Limit, ResourceExhausted, RoostError
from roost.router.sequence import HERE, OVER, WAITING, CorrelationId, Sequence, SequenceBudget, Turn, shown

MAX_REMEMBERED = 1024
"""So many sequences of a model are remembered whose end their clients do not know of yet."""


class SequenceTable:
    """The sequences of one revision of a model.

    Args:
        model: Its name, for error texts.
        places: How many sequences are served at once.
        idle_s: After so long without a request a sequence has ended.
        budget: What the sequences of all models may have.
        when_ended: Told of each sequence that has ended.
    """

    def __init__(
        self,
        model: str,
        *,
        places: int,
        idle_s: float,
        budget: SequenceBudget,
        when_ended: Callable[[Sequence], None] = lambda _: None,
    ) -> None:
        self._model = model
        self._places = places
        self._idle_s = idle_s
        self._budget = budget
        self._when_ended = when_ended
        self._live: dict[CorrelationId, Sequence] = {}
        self._idle: dict[Sequence, None] = {}  # the one that was used first before the others
        self._backlog: dict[Sequence, None] = {}
        self._given_up: dict[CorrelationId, str] = {}
        self._free: list[int] = []
        self._used_places = 0
        self.waiting = 0
        """How many requests wait for their turns."""

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, id_: CorrelationId) -> bool:
        """Whether a request may follow in the sequence."""
        sequence = self._live.get(id_)
        return sequence is not None and sequence.is_open

    def __iter__(self) -> Iterator[Sequence]:
        return iter(list(self._live.values()))

    def enter(self, id_: CorrelationId, *, start: bool, end: bool, now: float) -> Turn:
        """A request has come.

        Args:
            id_: Its correlation id.
            start: Whether it begins a sequence; one of that id that has not ended goes on as this one.
            end: Whether it is the last of its sequence.
            now: The time.

        Raises:
            InvalidArgument: If there is no such sequence that it could follow in.
            Aborted: If there was one, and the server has given it up.
            ResourceExhausted: If too many wait, or too many sequences have begun.
        """
        self.expire(now)
        sequence = self._live.get(id_)
        if not start and (sequence is None or not sequence.is_open):
            raise self._unknown(id_)
        if self.waiting >= self._budget.max_waiting:
            text = f"Exceeds maximum queue size: {self.waiting} requests wait in sequences of model '{self._model}'"
            raise ResourceExhausted(text, retry_after_s=1.0, limit=Limit.QUEUE_FULL)
        if sequence is None:
            sequence = self._begin(id_)
        self._idle.pop(sequence, None)
        turn = Turn(sequence, start, end)
        sequence.turns.append(turn)
        sequence.is_open = not end
        self.waiting += 1
        self._go_on(sequence)
        return turn

    def over(self, turn: Turn, now: float, *, ok: bool) -> None:
        """A request was answered, or nobody waits for it any more; one that is over already is fine.

        Args:
            turn: Its turn.
            now: The time.
            ok: Whether it went well.
        """
        if turn.phase is OVER:
            return
        sequence = turn.sequence
        position = sequence.turns.index(turn)
        self._leave(turn)
        del sequence.turns[position]
        if not ok:
            self._fail_behind(turn, position)
        self._settle(sequence, now)

    def give_up(self, sequence: Sequence, reason: str) -> None:
        """A sequence can't go on: its requests fail, and so do those that would follow, until it is begun anew."""
        self._given_up.pop(sequence.id, None)
        self._given_up[sequence.id] = reason
        if len(self._given_up) > MAX_REMEMBERED:
            del self._given_up[next(iter(self._given_up))]
        turns = list(sequence.turns)
        sequence.turns.clear()
        for turn in turns:
            self._leave(turn)
        self._finish(sequence)
        for turn in turns:
            turn.told(Aborted(f"{self._text(sequence.id)} {reason}"))

    def expire(self, now: float) -> None:
        """Ends the sequences that nobody has used for too long."""
        while self._idle:
            sequence = next(iter(self._idle))
            if sequence.used_at + self._idle_s > now:
                return
            self._finish(sequence)

    @property
    def expires_at(self) -> float:
        """When the next one ends so if nobody uses it; infinity if none does."""
        return next(iter(self._idle)).used_at + self._idle_s if self._idle else math.inf

    def _begin(self, id_: CorrelationId) -> Sequence:
        self._budget.begin()
        self._given_up.pop(id_, None)
        sequence = self._live[id_] = Sequence(id_)
        if self._free:
            sequence.place = heapq.heappop(self._free)
        elif self._used_places < self._places:
            sequence.place = self._used_places
            self._used_places += 1
        else:
            self._backlog[sequence] = None
        return sequence

    def _go_on(self, sequence: Sequence) -> None:
        """Tells the request whose turn it is now."""
        if sequence.place is None or not sequence.turns:
            return
        turn = sequence.turns[0]
        if turn.phase is WAITING:
            turn.phase = HERE
            self.waiting -= 1
            turn.told(None)

    def _leave(self, turn: Turn) -> None:
        self.waiting -= turn.phase is WAITING
        turn.phase = OVER

    def _fail_behind(self, failed: Turn, position: int) -> None:
        """Those that came in the belief that one before them would run are not answered as if it had."""
        turns = failed.sequence.turns
        closes = failed.start or failed.end
        behind: list[Turn] = []
        while position < len(turns) and not turns[position].start:
            turn = turns[position]
            del turns[position]
            self._leave(turn)
            behind.append(turn)
            closes = closes or turn.end
        if position == len(turns):  # else another one begins behind them, and says what may follow
            failed.sequence.is_open = not closes
        for turn in behind:
            turn.told(Aborted(f"{self._text(failed.sequence.id)} has lost a request that came before this one"))

    def _settle(self, sequence: Sequence, now: float) -> None:
        """Sees what becomes of a sequence that has a request less."""
        if sequence.turns:
            self._go_on(sequence)
        elif not sequence.is_open:
            self._finish(sequence)
        else:
            sequence.used_at = now
            self._idle[sequence] = None

    def _finish(self, sequence: Sequence) -> None:
        """A sequence has ended: the next one of the backlog gets its place."""
        del self._live[sequence.id]
        self._idle.pop(sequence, None)
        self._backlog.pop(sequence, None)
        self._budget.end(sequence.state_bytes)
        place, sequence.place = sequence.place, None
        sequence.state, sequence.state_bytes = (), 0
        self._when_ended(sequence)
        if place is None:
            return
        if not self._backlog:
            heapq.heappush(self._free, place)
            return
        following = next(iter(self._backlog))
        del self._backlog[following]
        following.place = place
        self._go_on(following)

    def _unknown(self, id_: CorrelationId) -> RoostError:
        reason = self._given_up.get(id_)
        if reason is not None:
            return Aborted(f"{self._text(id_)} {reason}")
        return InvalidArgument(
            f"inference request for sequence {shown(id_)} to model '{self._model}' must specify the START flag on the "
            "first request of the sequence"
        )

    def _text(self, id_: CorrelationId) -> str:
        return f"sequence {shown(id_)} of model '{self._model}'"
