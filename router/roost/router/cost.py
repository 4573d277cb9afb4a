"""Step 5, eviction by what it costs: those go first whose going brings the least loading back for a byte.

What an instance is worth is

    (long-term rate + FRESH_WEIGHT * short-term rate while it is fresh) * load time / bytes

Rates are counts of uses that decay exponentially. The clock that they decay by is not time but *rounds*: one round is
as many uses as there are instances, so that the policy works alike at one request a minute and at ten thousand a
second, and a night without requests makes nothing older. An instance is *fresh* for a round after its last use. So
what is asked for in bursts is kept while its burst may last, what is asked for seldom but steadily is kept for its
long-term rate, and what is asked for once is not kept for that: the short-term rate leaves out the last use.

Counts and rates are those of the revision and survive its instances; of several copies of it each counts with an equal
share of the rate, since what one of them would not serve another one does. All counts decay alike, so that the order of
two instances changes only where one of them is used, stops being fresh, or gets or loses a sibling. Values are
logarithms, normed to round 0, and need no update by time.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from roost.router.periods import Periods
from roost.router.ranking import Rank, Ranking

LONG_HALF_LIFE_ROUNDS = 30.0
SHORT_HALF_LIFE_ROUNDS = 1.0
FRESH_ROUNDS = 1.0
FRESH_WEIGHT = 0.5
STALED_AT_ONCE = 4
AWAITED_BONUS = 20.0  # above all that is not awaited, a million times
NEVER_USED = -1e12  # below all that was; the last one loaded goes first, as with ``Lru``
LOAD_GAIN = 0.5
MIN_LOAD_S = 1e-3


@dataclass(eq=False, slots=True)
class History:
    """How much an owner is used, and how long it takes to load.

    Attributes:
        round: When ``long`` and ``short`` were true: at its last use.
        long: Uses, decayed with the long half-life.
        short: Uses before the last one, decayed with the short half-life: one that comes alone is no burst.
        load_s: Moving average of its load times; 0 before the first.
    """

    round: float = 0.0
    long: float = 0.0
    short: float = 0.0
    load_s: float = 0.0

    def count_use(self, round: float) -> None:
        """It is used now."""
        if self.long:
            age = round - self.round
            self.long *= 2.0 ** (-age / LONG_HALF_LIFE_ROUNDS)
            self.short = (self.short + 1.0) * 2.0 ** (-age / SHORT_HALF_LIFE_ROUNDS)
        self.long += 1.0
        self.round = round

    def learn_load_time(self, load_s: float) -> None:
        """One of its loads took so long."""
        self.load_s += (load_s - self.load_s) * (LOAD_GAIN if self.load_s else 1.0)

    def worth(self, *, fresh: bool) -> float:
        """Logarithm of its rate, for one that was used."""
        rate = self.long / LONG_HALF_LIFE_ROUNDS
        if fresh:
            rate += FRESH_WEIGHT * self.short / SHORT_HALF_LIFE_ROUNDS
        return math.log2(rate) + self.round / LONG_HALF_LIFE_ROUNDS


@dataclass(eq=False, slots=True, kw_only=True)
class Standing(Rank):
    """A rank, and what its value is made of.

    Attributes:
        owner: The instance's revision.
        history: Of its owner.
        ranking: Where it stands, among those of its priority.
        weight: Logarithm of the load time for each byte, of its share of the owner's rate.
        used_round: When the instance itself was used last.
    """

    owner: Hashable
    history: History
    ranking: Ranking
    weight: float
    used_round: float = -math.inf


class Cost:
    """Least rate times load time for each byte first. Implements ``EvictionPolicy``."""

    def __init__(self) -> None:
        self._round = 0.0
        self._histories: dict[Hashable, History] = {}
        self._standings: dict[int, Standing] = {}
        self._rankings: dict[int, Ranking] = {}
        self._fresh: OrderedDict[int, Standing] = OrderedDict()
        self._copies: dict[Hashable, tuple[int, ...]] = {}  # of these the garbage collector need not look at any
        self._periods = Periods()
        self._awaited: list[tuple[float, int]] = []
        self._now = -math.inf

    def loaded(
        self, instance: int, owner: Hashable, size_bytes: int, load_s: float, now: float, priority: int = 0
    ) -> None:
        """Ranks the instance by what its owner was used for before; one that is awaited as if the use had come."""
        history = self._histories.get(owner)
        if history is None:
            history = self._histories[owner] = History()
        history.learn_load_time(load_s)
        self._share(owner, (*self._copies.get(owner, ()), instance))
        weight = self._weight(owner, history, size_bytes)
        value = history.worth(fresh=False) + weight if history.long else NEVER_USED - instance
        ranking = self._rankings.get(priority)
        if ranking is None:
            ranking = self._rankings[priority] = Ranking()
        standing = Standing(instance, value, owner=owner, history=history, ranking=ranking, weight=weight)
        self._standings[instance] = standing
        ranking.add(standing)
        until = self._periods.awaited_until(owner, now)
        if until > now:
            standing.value += AWAITED_BONUS
            heapq.heappush(self._awaited, (until, instance))

    def resized(self, instance: int, size_bytes: int) -> None:
        """Keeping the instance takes something else from now on, so it is worth more or less."""
        standing = self._standings[instance]
        _weigh(standing, self._weight(standing.owner, standing.history, size_bytes))

    def used(self, instance: int, now: float) -> None:
        """Counts a use of the owner."""
        standing = self._standings[instance]
        history = standing.history
        self._round += 1.0 / len(self._standings)
        self._now = now
        history.count_use(self._round)
        self._periods.used(standing.owner, now, history.load_s)
        self._freshen(standing)

    def warm(self, instance: int, now: float) -> None:
        """Uses count where they begin."""

    def forget(self, instance: int) -> None:
        """Takes the instance out; what is known of its owner stays."""
        standing = self._standings.pop(instance, None)
        if standing is None:
            return
        self._fresh.pop(instance, None)
        standing.ranking.remove(standing)
        self._share(standing.owner, tuple(other for other in self._copies[standing.owner] if other != instance))

    def forget_owner(self, owner: Hashable) -> None:
        """Drops what is known of the owner."""
        self._histories.pop(owner, None)
        self._periods.forget(owner)

    def coldest_first(self) -> Iterator[int]:
        """Least worth first."""
        self._stale_some()
        self._give_up_waiting()
        rankings = self._rankings
        return chain.from_iterable(rankings[priority].lowest_first() for priority in sorted(rankings))

    def next_due(self) -> float:
        """When the first owner on a timer is due."""
        return self._periods.next_due()

    def due(self, now: float) -> Iterable[tuple[Hashable, float]]:
        """Owners that are used on a timer, shortly before it."""
        return [(owner, expected) for owner, expected in self._periods.due(now) if owner not in self._copies]

    def _share(self, owner: Hashable, copies: tuple[int, ...]) -> None:
        """The owner has other copies from now on: each of them counts with more or less of its rate."""
        before = self._copies.pop(owner, ())
        if copies:
            self._copies[owner] = copies
        if before and copies:
            more = math.log2(len(before) / len(copies))
            for instance in before:
                standing = self._standings.get(instance)
                if standing is not None:
                    _weigh(standing, standing.weight + more)

    def _weight(self, owner: Hashable, history: History, size_bytes: int) -> float:
        shares = len(self._copies[owner])
        return math.log2(max(history.load_s, MIN_LOAD_S) / (max(size_bytes, 1) * shares))

    def _freshen(self, standing: Standing) -> None:
        is_first = standing.used_round == -math.inf
        standing.used_round = self._round
        self._fresh[standing.instance] = standing
        self._fresh.move_to_end(standing.instance)
        standing.value = standing.history.worth(fresh=True) + standing.weight
        if is_first or standing.value < standing.filed:  # one that was never used is filed below all others
            standing.ranking.file(standing)

    def _stale_some(self) -> None:
        """Takes the bonus from those that were not used for a round, a bounded number at a time."""
        before = self._round - FRESH_ROUNDS
        for _ in range(min(STALED_AT_ONCE, len(self._fresh))):
            instance, standing = next(iter(self._fresh.items()))
            if standing.used_round > before:
                return
            del self._fresh[instance]
            standing.value = standing.history.worth(fresh=False) + standing.weight
            if standing.value < standing.filed:
                standing.ranking.file(standing)

    def _give_up_waiting(self) -> None:
        """Takes the bonus from those that were loaded for a use that did not come."""
        while self._awaited and self._awaited[0][0] <= self._now:
            _, instance = heapq.heappop(self._awaited)
            standing = self._standings.get(instance)
            if standing is not None and standing.used_round == -math.inf:
                standing.value = standing.history.worth(fresh=False) + standing.weight
                standing.ranking.file(standing)


def _weigh(standing: Standing, weight: float) -> None:
    """Keeping an instance is worth something else from now on."""
    more, standing.weight = weight - standing.weight, weight
    if standing.value > NEVER_USED:
        standing.value += more
        if standing.value < standing.filed:
            standing.ranking.file(standing)
