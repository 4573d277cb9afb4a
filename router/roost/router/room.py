"""The line of loads that wait for memory on a device, and for their turn, in the order of their ranks."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from roost.core.errors import Cancelled, ResourceExhausted
from roost.core.figures import Figures
from roost.router.forecast import Forecast
from roost.router.loads import Load, LoadPriority
from roost.router.placement import Ledger
from roost.router.plans import Evict, Fits, Refuse, Wait
from roost.router.refusals import no_room, nobody_waits, too_large
from roost.router.revision import Revision
from roost.router.states import READY

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Need:
    """What an instance needs that is to be loaded.

    Attributes:
        figures: How much it is accounted with.
        file: Names the file that it maps, if others may map the same.
        places: Says which workers it may go to now, the best first.
    """

    figures: Figures
    file: str | None = None
    places: Callable[[], Sequence[int]] = tuple


@dataclass(eq=False, slots=True)
class _Entry:
    """A load that waits, or is under way.

    Attributes:
        place: Which of the lists it is in.
        future: Done once it may begin.
        refused_since: Nothing that was used since then could go for it, which it was refused for.
    """

    instance: int
    load: Load
    need: Need
    place: list[_Entry]
    future: asyncio.Future[None]
    refused_since: float = math.inf


class Room:
    """Reserves memory for loads, has others evicted for them, and says when each of them may begin.

    A load first waits for memory, then for one of the turns. No more of them have memory than can soon begin, and one
    that has it and has not begun gives it back to one that goes before it. If there are several turns, one is always
    left for what somebody waits for.

    Args:
        ledger: The device's budget.
        make_room: Evicts the idle instances of the first list and drains the busy ones of the second.
        turns: How many loads are under way at once.
        delayed: Called for a load that has to wait for memory until a time that is known.
    """

    def __init__(
        self,
        ledger: Ledger,
        make_room: Callable[[Sequence[int], Sequence[int]], None],
        *,
        turns: int = 1,
        delayed: Callable[[Load], None] = lambda load: None,
    ) -> None:
        self._ledger = ledger
        self._make_room = make_room
        self._turns = turns
        self._delayed = delayed
        self._line: list[_Entry] = []
        self._ready: list[_Entry] = []
        self._begun: list[_Entry] = []
        self._entries: dict[Load, _Entry] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looking = self._look_again = self._stopped = False
        self.forecast = Forecast(turns)
        self.give_way: Callable[[], bool] = lambda: False
        """Asked before anything else has to go: whether memory of something that can wait will be free at once."""

    async def reserve(self, instance: int, load: Load, need: Need) -> None:
        """Waits until the ledger has the memory for a new instance and it is its turn; both are taken then.

        Args:
            instance: The id that the ledger will know it by.
            load: What it is for; ``ended`` is to be called with it when it has ended.
            need: How much of what.

        Raises:
            ResourceExhausted: If it can never fit, or may evict nothing that would have to go.
            Cancelled: If nobody wants the load any more.
        """
        if not load.wanted:
            raise nobody_waits()
        entry = _Entry(instance, load, need, self._line, asyncio.get_running_loop().create_future())
        self._entries[load] = entry
        insort(self._line, entry, key=_rank)
        self.changed()
        try:
            await entry.future
        except ResourceExhausted:
            if load.older_than <= entry.refused_since:
                raise
            await self.reserve(instance, load, need)  # a request has come for it meanwhile
        except asyncio.CancelledError:
            if self._entries.get(load) is entry:
                self._take_out(entry)
                self.changed()
            raise

    def ended(self, load: Load) -> None:
        """A load that had its turn is over, well or not; its memory is somebody else's business."""
        entry = self._entries.pop(load, None)
        if entry is not None:
            entry.place.remove(entry)
        self.forecast.pause(load, time.monotonic())
        self.changed()

    def urged(self, load: Load) -> None:
        """A load is more urgent than before, or may have more evicted."""
        entry = self._entries.get(load)
        if entry is not None and entry.place is self._begun:
            return
        self.forecast.add(load, time.monotonic())
        if entry is not None:
            entry.place.sort(key=_rank)
            self.changed()

    def unwanted(self, load: Load) -> None:
        """Nobody wants a load any more: it leaves the line, or is given up if others wait or it could not be used."""
        entry = self._entries.get(load)
        if entry is None:
            return
        if entry.place is not self._begun:
            self._refuse(entry, nobody_waits())
        elif load.revision.retired:
            _give_up(load)
        self.changed()

    def changed(self) -> None:
        """Looks whether the loads in the line can go on; called whenever that may have changed."""
        if not (self._entries or self._ledger.grown) or self._stopped:  # nearly always
            return
        if self._looking:  # what is done here has come back here
            self._look_again = True
            return
        self._looking = True
        try:
            self._look()
            while self._look_again:
                self._look_again = False
                self._look()
        finally:
            self._looking = False

    def stop(self) -> None:
        """Lets nothing begin any more; the loads are cancelled by whoever started them."""
        self._stopped = True
        self._look_again_at(math.inf)

    def _look(self) -> None:
        if self._ledger.grown:
            self._relieve()
        self._give_turns()
        while self._line:
            head = self._line[0]
            if not head.load.wanted:
                self._refuse(head, nobody_waits())
            elif self._enough_ahead(head) or not self._advance(head):
                break
            self._give_turns()
        first = self._line[0] if self._line else self._ready[0] if self._ready else None
        if first is not None and first.load.priority is LoadPriority.REQUEST:
            for entry in self._begun:
                if not entry.load.wanted:
                    _give_up(entry.load)

    def _relieve(self) -> None:
        """Has others go since instances have turned out to take more than there is."""
        match self._ledger.relief(time.monotonic()):
            case Evict(idle, busy):
                self._make_room(idle, busy)
            case Wait(until):
                self._look_again_at(until)

    def _give_turns(self) -> None:
        while self._ready:
            first = self._ready[0]
            is_urgent = first.load.priority <= LoadPriority.LOOK
            if not first.load.wanted:
                self._refuse(first, nobody_waits())
            elif len(self._begun) < (self._turns if is_urgent else max(1, self._turns - 1)):
                self._move(first, self._begun)
                self.forecast.begin(first.load, time.monotonic())
                first.future.set_result(None)
            else:
                return

    def _enough_ahead(self, head: _Entry) -> bool:
        """Whether so many have memory and go before it that it could not begin soon."""
        rank = head.load.rank
        ahead = sum(1 for entry in (*self._ready, *self._begun) if entry.load.rank <= rank)
        return ahead >= 2 * self._turns

    def _advance(self, head: _Entry) -> bool:
        """Decides about the next in line; False if it has to wait."""
        load = head.load
        need = head.need
        plan = self._ledger.plan(
            need.figures, time.monotonic(), older_than=load.older_than, file=need.file, places=need.places()
        )
        if isinstance(plan, Evict | Wait) and self._ready and self._ready[-1].load.rank > load.rank:
            self._give_back(self._ready[-1])
            return True
        if isinstance(plan, Evict | Wait) and self.give_way():
            return False
        match plan:
            case Fits(place):
                self._reserve(head, place)
                self._move(head, self._ready)
                return True
            case Refuse():
                error = too_large(load, need.figures, plan)
                if not load.revision.refused:
                    load.revision.refused = True
                    log.warning("%s", error.message)
                self._refuse(head, error)
                return True
            case Evict(idle, busy):
                self._make_room(idle, busy)
                return False
            case Wait(until):
                return self._wait(head, until)

    def _reserve(self, entry: _Entry, place: int | None) -> None:
        need, revision = entry.need, entry.load.revision
        policy = revision.description.policy
        self._ledger.reserve(
            entry.instance,
            revision,
            need.figures,
            file=need.file,
            place=place,
            pinned=(policy.pin or _is_one_of_the_least(revision)) and not revision.yields,
            priority=policy.priority,
        )

    def _wait(self, head: _Entry, until: float) -> bool:
        """Nothing may go for the next in line; returns whether it does not wait for that."""
        load = head.load
        if until == math.inf:
            if load.older_than == math.inf or self._ledger.coming_or_going():
                return False
            head.refused_since = load.older_than
            self._refuse(head, no_room(load))
            return True
        self.forecast.blocked(load, until)
        self._delayed(load)
        if head.future.done():
            return True
        self._look_again_at(until)
        return False

    def _give_back(self, entry: _Entry) -> None:
        """One that has memory but no turn has to wait for it once more."""
        self._ledger.gone(entry.instance)
        self._move(entry, self._line)

    def _refuse(self, entry: _Entry, error: ResourceExhausted | Cancelled) -> None:
        self._take_out(entry)
        if not entry.future.done():  # else its task was cancelled
            entry.future.set_exception(error)

    def _take_out(self, entry: _Entry) -> None:
        del self._entries[entry.load]
        entry.place.remove(entry)
        if entry.place is not self._line:
            self._ledger.gone(entry.instance)
        self.forecast.pause(entry.load, time.monotonic())

    def _move(self, entry: _Entry, place: list[_Entry]) -> None:
        entry.place.remove(entry)
        insort(place, entry, key=_rank)
        entry.place = place

    def _look_again_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when < math.inf:
            delay_s = max(0.0, when - time.monotonic()) + 0.001
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.changed)


def _is_one_of_the_least(revision: Revision) -> bool:
    """Whether the next copy is one of those that its owner wants in any case, and so is never evicted.

    From the first moment on: where there is no room for all that are wanted, they would have one another evicted.
    """
    least = revision.description.policy.min_copies
    return least > 0 and sum(instance.state is READY for instance in revision.instances) < least


def _rank(entry: _Entry) -> tuple[int, float, int]:
    return entry.load.rank


def _give_up(load: Load) -> None:
    if load.cancel is not None:
        load.cancel()
