"""The ledger of a device against a naive model of it, which keeps plain rows and counts everything anew."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from roost.core.figures import Figures
from roost.router.eviction import COST, LRU, POLICIES
from roost.router.placement import Ledger
from roost.router.plans import Evict, Figure, Fits, Limits, Plan, Refuse, Wait

LIMITS = Limits(100, 150, 50)
OWNERS = ("a", "b", "c", "d")
FILES = {"f": 40, "g": 75}
WORKERS = (0, 1, 2)
PLACES = ((), (), (0,), (0, 1), (1, 0), (2, 1))
GPU_BYTES = 60

figures = st.builds(
    Figures,
    st.integers(0, 130),
    st.sampled_from([0, 0, 0, 30, 100]),
    st.integers(0, 60),
    st.sampled_from([0, 0, 10, 25, 45, 70]),
)


@dataclass
class Row:
    """What the naive model knows of an instance."""

    owner: str
    figures: Figures
    file: str
    place: int | None
    pinned: bool
    priority: int
    phase: str = "reserved"
    leases: int = 0
    busy_since: float | None = None
    last_used: float = -math.inf
    order: int = 0  # smaller goes first
    protection: float = 1.0


@dataclass(frozen=True)
class Wanted:
    """What somebody asks the ledger for."""

    need: Figures
    file: str | None
    places: tuple[int, ...]
    older_than: float = math.inf


class LedgerMachine(RuleBasedStateMachine):
    """Claims, leases, loads, growth, drains and losses in any order."""

    eviction = LRU
    limits = LIMITS
    gpus: Mapping[str, tuple[int, ...]] = {}  # and the workers that use them

    def __init__(self) -> None:
        super().__init__()
        self.policy = POLICIES[self.eviction]()
        self.ledger = Ledger(self.limits, self.policy)
        for name, workers in self.gpus.items():
            self.ledger.add_device(name, workers)
            self.ledger.limit_device(name, GPU_BYTES)
        self.rows: dict[int, Row] = {}
        self.claims: dict[str, int] = dict.fromkeys(OWNERS, 0)
        self.now = 1000.0
        self.count = 0

    def pick(self, data: st.DataObject, wanted: Callable[[Row], bool]) -> int:
        return data.draw(st.sampled_from([n for n, row in self.rows.items() if wanted(row)]))

    def tick(self) -> int:
        self.count += 1
        return self.count

    def is_busy(self, row: Row) -> bool:
        return row.leases > 0 or self.claims[row.owner] > 0

    def rest(self, row: Row) -> None:
        if not self.is_busy(row):
            row.busy_since = None

    def start_leaving(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.ledger.leaving(number)
            self.rows[number].phase = "leaving"
            self.rows[number].pinned = False

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        owner=st.sampled_from(OWNERS),
        need=figures,
        file=st.sampled_from([None, None, *FILES]),
        places=st.sampled_from(PLACES),
        pinned=st.sampled_from([False, False, False, True]),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
    )
    def wants_memory(
        self, owner: str, need: Figures, file: str | None, places: tuple[int, ...], pinned: bool, priority: int
    ) -> None:
        if file is not None:
            need = replace(need, mapped_bytes=FILES[file])
        plan = self.checked_plan(Wanted(need, file, places))
        if isinstance(plan, Fits):
            number = self.tick()
            self.ledger.reserve(number, owner, need, file=file, place=plan.place, pinned=pinned, priority=priority)
            self.rows[number] = Row(owner, need, file or str(number), plan.place, pinned, priority)
        elif isinstance(plan, Evict):
            self.start_leaving((*plan.idle, *plan.busy))

    @rule(need=figures, places=st.sampled_from(PLACES), age=st.sampled_from([-math.inf, 0.0, 0.5, 2.0, 30.0]))
    def asks_for_older_ones(self, need: Figures, places: tuple[int, ...], age: float) -> None:
        self.checked_plan(Wanted(need, None, places, self.now - age if age >= 0 else -math.inf))

    @precondition(lambda self: bool(self.rows))
    @rule(data=st.data(), found=figures)
    def takes_something_else(self, data: st.DataObject, found: Figures) -> None:
        number = self.pick(data, lambda row: True)
        row = self.rows[number]
        if row.file in FILES:
            found = replace(found, mapped_bytes=FILES[row.file])
        self.ledger.resized(number, found)
        row.figures = found

    @precondition(lambda self: self.ledger.grown)
    @rule()
    def makes_good(self) -> None:
        """What has grown beyond a limit; for processes and GPUs one after another."""
        plan = self.ledger.relief(self.now)
        crowded = [place for place in WORKERS if not self.fits(Wanted(Figures(0), None, (place,)), self.rows, place)]
        if any(self.on_gpu(self.pinned(), place) > GPU_BYTES for place in crowded):
            return  # nothing helps there
        assert isinstance(plan, Fits) == (self.fits(Wanted(Figures(0), None, ()), self.rows, None) and not crowded)
        assert self.ledger.grown != isinstance(plan, Fits)
        if isinstance(plan, Evict):
            self.start_leaving((*plan.idle, *plan.busy))

    @precondition(lambda self: any(row.phase == "reserved" for row in self.rows.values()))
    @rule(data=st.data(), load_s=st.sampled_from([0.0, 0.1, 1.0]))
    def load_ends(self, data: st.DataObject, load_s: float) -> None:
        number = self.pick(data, lambda row: row.phase == "reserved")
        row = self.rows[number]
        self.ledger.loaded(number, self.now, load_s=load_s)
        row.phase, row.protection = "resident", max(1.0, 4 * load_s)
        if self.claims[row.owner]:
            row.busy_since = row.last_used = self.now
            row.order = self.tick()
        else:
            row.busy_since, row.order = None, -self.tick()

    @precondition(lambda self: any(row.phase != "leaving" for row in self.rows.values()))
    @rule(data=st.data(), pinned=st.booleans())
    def is_pinned_or_not(self, data: st.DataObject, pinned: bool) -> None:
        number = self.pick(data, lambda row: row.phase != "leaving")
        self.ledger.pin(number, pinned=pinned)
        self.rows[number].pinned = pinned

    @precondition(lambda self: any(row.phase == "reserved" for row in self.rows.values()))
    @rule(data=st.data(), places=st.sampled_from([(0,), (1,), (0, 1), (1, 0)]))
    def is_sent_to_a_worker(self, data: st.DataObject, places: tuple[int, ...]) -> None:
        number = self.pick(data, lambda row: row.phase == "reserved")
        row = self.rows[number]
        others = {n: other for n, other in self.rows.items() if n != number}
        with_room = [
            p
            for p in places
            if self.mappings(others, p) + row.figures.mappings <= self.limits.mappings
            and self.on_gpu(others, p) + row.figures.device_bytes * self.has_gpu(p) <= GPU_BYTES
        ]
        planned = row.place if row.place in places else places[0]
        row.place = with_room[0] if with_room else planned
        assert self.ledger.assign(number, places) == row.place

    @precondition(lambda self: bool(self.rows))
    @rule(data=st.data())
    def worker_is_lost(self, data: st.DataObject) -> None:
        self.start_leaving([self.pick(data, lambda row: True)])

    @precondition(lambda self: any(row.phase != "resident" for row in self.rows.values()))
    @rule(data=st.data())
    def is_gone(self, data: st.DataObject) -> None:
        number = self.pick(data, lambda row: row.phase != "resident")
        self.ledger.gone(number)
        del self.rows[number]

    @rule(owner=st.sampled_from(OWNERS))
    def request_comes(self, owner: str) -> None:
        self.ledger.claim(owner, self.now)
        self.claims[owner] += 1
        for row in self.rows.values():
            if row.owner == owner and row.busy_since is None:
                row.busy_since = self.now

    @precondition(lambda self: any(self.claims.values()))
    @rule(data=st.data())
    def request_goes(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from([owner for owner, count in self.claims.items() if count]))
        self.claims[owner] -= 1
        mine = [row for row in self.rows.values() if row.owner == owner]
        became_idle = self.claims[owner] == 0 and any(not row.leases for row in mine)
        assert self.ledger.unclaim(owner) == became_idle
        for row in mine:
            self.rest(row)

    @precondition(lambda self: any(row.phase == "resident" for row in self.rows.values()))
    @rule(data=st.data())
    def batch_starts(self, data: st.DataObject) -> None:
        number = self.pick(data, lambda row: row.phase == "resident")
        row = self.rows[number]
        self.ledger.lease(number, self.now)
        row.leases, row.last_used, row.order = row.leases + 1, self.now, self.tick()
        row.busy_since = self.now if row.busy_since is None else row.busy_since

    @precondition(lambda self: any(row.leases > 0 for row in self.rows.values()))
    @rule(data=st.data())
    def batch_ends(self, data: st.DataObject) -> None:
        number = self.pick(data, lambda row: row.leases > 0)
        row = self.rows[number]
        row.leases, row.last_used, row.order = row.leases - 1, self.now, self.tick()
        assert self.ledger.release(number, self.now) == (not self.is_busy(row))
        self.rest(row)

    @invariant()
    def figures_add_up(self) -> None:
        ledger, rows = self.ledger, self.rows
        assert ledger.used_bytes == sum(row.figures.private_bytes for row in rows.values())
        assert ledger.mapped_bytes == self.mapped(rows)
        reserved = [row.figures.private_bytes for row in rows.values() if row.phase == "reserved"]
        assert ledger.reserved_bytes == sum(reserved)
        for name, workers in self.gpus.items():
            there = [row for row in rows.values() if row.place in workers]
            taken = ledger.device(name)
            assert taken.bytes == sum(row.figures.device_bytes for row in there)
            assert taken.moving == sum(row.phase != "resident" for row in there)
        for place in WORKERS:
            here = [row.figures for row in rows.values() if row.place == place]
            assert ledger.figures_of(place) == Figures(
                sum(f.private_bytes for f in here), sum(f.mapped_bytes for f in here), sum(f.mappings for f in here)
            )
        phases = {n: h.phase.name.lower() for n, h in ledger.holdings.items()}
        assert phases == {n: row.phase for n, row in rows.items()}
        assert ledger.coming_or_going() == any(row.phase != "resident" for row in rows.values())
        assert {owner: ledger.claimed(owner) for owner in OWNERS} == {o: n > 0 for o, n in self.claims.items()}

    @staticmethod
    def mapped(rows: dict[int, Row]) -> int:
        return sum({row.file: row.figures.mapped_bytes for row in rows.values() if row.figures.mapped_bytes}.values())

    @staticmethod
    def mappings(rows: dict[int, Row], place: int | None) -> int:
        return sum(row.figures.mappings for row in rows.values() if row.place == place)

    def has_gpu(self, place: int | None) -> bool:
        return any(place in workers for workers in self.gpus.values())

    def on_gpu(self, rows: dict[int, Row], place: int | None) -> int:
        """What is taken of the GPU that a worker uses."""
        workers = next((workers for workers in self.gpus.values() if place in workers), ())
        return sum(row.figures.device_bytes for row in rows.values() if row.place in workers)

    def fits(self, wanted: Wanted, rows: dict[int, Row], place: int | None) -> bool:
        """Whether it would fit beside these."""
        need = wanted.need
        private = sum(row.figures.private_bytes for row in rows.values()) + need.private_bytes
        is_mapped = any(row.file == wanted.file and row.figures.mapped_bytes for row in rows.values())
        memory = private + self.mapped(rows) + (0 if is_mapped else need.mapped_bytes)
        mappings = 0 if place is None else self.mappings(rows, place) + need.mappings
        on_gpu = self.on_gpu(rows, place) + need.device_bytes * self.has_gpu(place)
        if on_gpu > GPU_BYTES:
            return False
        return (
            private <= self.limits.private_bytes
            and memory <= self.limits.memory_bytes
            and mappings <= self.limits.mappings
        )

    def coldest_first(self) -> list[int]:
        """The order that the policy must have, or has: what ``cost`` makes of uses is tested where it belongs."""
        if self.eviction == LRU:
            return sorted(self.rows, key=lambda number: (self.rows[number].priority, self.rows[number].order))
        for _ in self.rows:  # it looks at a few at a time whether they are still fresh
            self.policy.coldest_first()
        return list(self.policy.coldest_first())

    def checked_plan(self, wanted: Wanted) -> Plan:
        """The ledger's plan, after it was compared with what the rows allow."""
        before = copy.deepcopy(self.ledger.holdings)
        self.coldest_first()
        plan = self.plan(wanted)
        assert self.plan(wanted) == plan
        assert self.ledger.holdings == before
        refusal = self.refusal(wanted)
        if refusal is None:
            self.compare(plan, wanted)
        else:
            assert plan == refusal
        return plan

    def plan(self, wanted: Wanted) -> Plan:
        return self.ledger.plan(
            wanted.need, self.now, older_than=wanted.older_than, file=wanted.file, places=wanted.places
        )

    def pinned(self) -> dict[int, Row]:
        return {number: row for number, row in self.rows.items() if row.pinned}

    def refusal(self, wanted: Wanted) -> Refuse | None:
        pinned, need = self.pinned(), wanted.need
        private_bytes = sum(row.figures.private_bytes for row in pinned.values())
        if need.private_bytes > self.limits.private_bytes - private_bytes:
            return Refuse(self.limits.private_bytes - private_bytes)
        is_mapped = any(row.file == wanted.file and row.figures.mapped_bytes for row in pinned.values())
        left = self.limits.memory_bytes - private_bytes - self.mapped(pinned)
        if need.private_bytes + (0 if is_mapped else need.mapped_bytes) > left:
            return Refuse(left, Figure.MEMORY)
        if not wanted.places or self.never_full(wanted):
            return None
        left_on_gpus = [GPU_BYTES - self.on_gpu(pinned, p) for p in wanted.places if self.has_gpu(p)]
        if left_on_gpus and need.device_bytes > max(left_on_gpus):
            return Refuse(max(left_on_gpus), Figure.DEVICE)
        return Refuse(max(self.limits.mappings - self.mappings(pinned, p) for p in wanted.places), Figure.MAPPINGS)

    def never_full(self, wanted: Wanted) -> list[int | None]:
        """The workers in which what is pinned leaves enough of everything that counts there."""
        pinned, need = self.pinned(), wanted.need
        return [
            place
            for place in wanted.places
            if need.mappings + self.mappings(pinned, place) <= self.limits.mappings
            and need.device_bytes * self.has_gpu(place) + self.on_gpu(pinned, place) <= GPU_BYTES
        ]

    def compare(self, plan: Plan, wanted: Wanted) -> None:
        places: list[int | None] = self.never_full(wanted) if wanted.places else [None]
        now = [place for place in places if self.fits(wanted, self.rows, place)]
        staying = {number: row for number, row in self.rows.items() if row.phase != "leaving"}
        if now:
            assert plan == Fits(now[0])
        elif any(self.fits(wanted, staying, place) for place in places):
            assert plan == Wait()
        else:
            self.compare_eviction(plan, wanted, staying, places)

    def compare_eviction(self, plan: Plan, wanted: Wanted, staying: dict[int, Row], places: list[int | None]) -> None:
        may_go = [n for n, row in staying.items() if row.phase == "resident" and not row.pinned]
        may_go = [n for n in may_go if staying[n].last_used < wanted.older_than or staying[n].last_used == -math.inf]
        ends = {
            n: staying[n].busy_since + staying[n].protection  # type: ignore[operator]
            for n in may_go
            if self.is_busy(staying[n])
        }
        now = [n for n in may_go if ends.get(n, self.now) <= self.now]

        def suffices(gone: Iterable[int], place: int | None) -> bool:
            gone = set(gone)
            return self.fits(wanted, {n: row for n, row in staying.items() if n not in gone}, place)

        if not isinstance(plan, Evict):
            assert isinstance(plan, Wait)
            assert not any(suffices(now, place) for place in places)
            assert plan.until in {end for end in ends.values() if end > self.now} | {math.inf}
            assert plan.until < math.inf or not any(suffices(may_go, place) for place in places)
            return
        order = [n for n in self.coldest_first() if n in now]
        line = [n for n in order if not staying[n].leases] + [n for n in order if staying[n].leases]
        victims = [*plan.idle, *plan.busy]
        assert victims == [n for n in line if n in set(victims)]
        assert not any(staying[n].leases for n in plan.idle)
        assert all(staying[n].leases for n in plan.busy)
        colder = line[: line.index(victims[-1])]
        assert any(
            suffices(victims, place)
            and not any(suffices(set(victims) - {n}, place) for n in victims)
            and not suffices(colder, place)
            for place in places
        ), "too few, one too many, or colder ones would have sufficed"


class GpuLedgerMachine(LedgerMachine):
    """The same with two GPUs, one of which two workers share, and memory for more than they hold."""

    limits = Limits(500, 700, 120)
    gpus: Mapping[str, tuple[int, ...]] = {"shared": (0, 1), "own": (2,)}


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


class CostLedgerMachine(LedgerMachine):
    """The same with the other policy."""

    eviction = COST


CostLedgerMachine.TestCase.settings = LedgerMachine.TestCase.settings
TestCostLedger = CostLedgerMachine.TestCase

GpuLedgerMachine.TestCase.settings = LedgerMachine.TestCase.settings
TestGpuLedger = GpuLedgerMachine.TestCase


@settings(max_examples=200, deadline=None)
@given(
    loaded=st.lists(st.tuples(st.sampled_from(WORKERS), st.integers(1, 30), st.booleans()), max_size=8),
    size=st.integers(1, 70),
    places=st.sampled_from([(0,), (0, 2), (1, 0), (2, 1, 0)]),
)
def test_who_goes_for_memory_of_a_gpu(loaded: list[tuple[int, int, bool]], size: int, places: tuple[int, ...]) -> None:
    machine = GpuLedgerMachine()
    for place, taken, is_leased in loaded:
        if machine.on_gpu(machine.rows, place) + taken > GPU_BYTES:
            continue
        number, figures = machine.tick(), Figures(1, device_bytes=taken)
        machine.ledger.reserve(number, "a", figures, place=place)
        machine.ledger.loaded(number, machine.now, load_s=0.0)
        machine.rows[number] = Row("a", figures, str(number), place, False, 0, "resident", order=-number)
        if is_leased:
            machine.ledger.lease(number, machine.now)
            machine.rows[number].leases, machine.rows[number].order = 1, machine.tick()
            machine.rows[number].busy_since = machine.rows[number].last_used = machine.now
    plan = machine.checked_plan(Wanted(Figures(1, device_bytes=size), None, places))
    if isinstance(plan, Evict):
        gone = [machine.rows[number] for number in (*plan.idle, *plan.busy)]
        assert {row.place == 2 for row in gone} in ({True}, {False}), "of one GPU only"
