"""What is done about memory that nobody accounts for: pure, sample by sample."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from roost.router.drift import (
    ALLOWED_BYTES,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    SETTLED_AFTER_S,
    WINDOW_S,
    Charge,
    DriftWatch,
    Measure,
    Pause,
    Step,
)

MIB = 1 << 20
OVER = ALLOWED_BYTES + 16 * MIB
MOST = 1 << 30


@dataclass
class Worker:
    """A process in which instances take what the test says; time passes a second at a time."""

    watch: DriftWatch = field(default_factory=lambda: DriftWatch(MOST))
    now: float = 100.0
    instances: dict[int, int] = field(default_factory=dict)
    beyond: int = 0
    """What the process takes that no instance has been accounted with from its beginning."""
    charged: dict[int, int] = field(default_factory=dict)

    def look(self, *ran: int) -> Step:
        accounted = sum(self.instances.values()) + sum(self.charged.values())
        drift = self.beyond - sum(self.charged.values())
        step = self.watch.observe(self.now, drift, accounted, self.instances, lambda: self._present(ran))
        self.now += 1.0
        if isinstance(step, Charge):
            for instance, extra in step.extra_bytes.items():
                self.charged[instance] = self.charged.get(instance, 0) + extra
        return step

    def looks(self, count: int, *ran: int) -> list[Step]:
        """What was done meanwhile."""
        return [step for _ in range(count) if (step := self.look(*ran)) is not None]

    def leave(self, instance: int, back: int) -> None:
        """It goes; so much of what is beyond goes with it."""
        del self.instances[instance]
        self.charged.pop(instance, None)
        self.beyond -= back

    def _present(self, ran: Collection[int]) -> Collection[int]:
        return [instance for instance in ran if instance in self.instances]


ROUND = int(WINDOW_S) + 1


def test_what_comes_and_goes_within_seconds_is_the_memory_of_runs() -> None:
    worker = Worker(instances={1: MIB})
    for _ in range(50):
        worker.beyond = 1 << 30
        assert worker.looks(ROUND - 2, 1) == []
        worker.beyond = 0
        assert worker.looks(1) == []


def test_what_has_gone_after_a_trim_was_free() -> None:
    worker = Worker(instances={1: MIB}, beyond=OVER)
    assert worker.looks(ROUND) == [Measure.TRIM]
    worker.beyond = 0
    assert worker.looks(100) == []
    worker.beyond = OVER  # another time
    assert worker.looks(ROUND) == [Measure.TRIM]


def test_who_ran_while_it_came_is_charged_and_then_it_is_accounted_for() -> None:
    worker = Worker(instances={1: MIB, 2: MIB})
    worker.looks(ROUND, 1, 2)
    worker.beyond = OVER
    assert worker.looks(3 * ROUND, 1) == [Measure.TRIM, Charge({1: OVER})]
    assert worker.looks(100, 1, 2) == []


def test_several_share_it() -> None:
    worker = Worker(instances={1: MIB, 2: MIB, 3: MIB})
    worker.look()
    for ran in ((1,), (1, 2)):
        worker.beyond += OVER
        worker.look(*ran)
    (_, charge) = worker.looks(3 * ROUND, 1, 2, 3)
    assert charge == Charge({1: OVER + OVER // 2, 2: OVER // 2})


def test_what_was_there_before_anybody_ran_has_no_cause() -> None:
    worker = Worker(instances={1: MIB}, beyond=OVER)
    assert worker.looks(2 * ROUND, 1) == [Measure.TRIM, Measure.RECYCLE]


def test_a_charged_instance_that_leaves_its_memory_behind() -> None:
    worker = Worker(instances={1: MIB, 2: MIB})
    worker.look()
    worker.beyond = OVER
    assert worker.looks(2 * ROUND, 1) == [Measure.TRIM, Charge({1: OVER})]
    worker.leave(1, back=0)
    assert worker.looks(2 * ROUND, 2) == [Measure.TRIM, Measure.RECYCLE]


def test_a_charged_instance_that_takes_its_memory_with_it() -> None:
    worker = Worker(instances={1: MIB, 2: MIB})
    worker.look()
    worker.beyond = OVER
    worker.looks(2 * ROUND, 1)
    worker.leave(1, back=OVER)
    assert worker.looks(10 * ROUND, 2) == []


def test_a_model_that_leaks_is_charged_up_to_a_limit() -> None:
    worker = Worker(instances={1: MIB})
    done: list[Step] = []
    while not done or done[-1] is not Measure.RECYCLE:
        worker.beyond += 20 * MIB
        done += worker.looks(1, 1)
    assert 2 * ALLOWED_BYTES < worker.charged[1] <= MOST
    assert worker.watch.settled(worker.now) == {}  # it never stayed the same


def test_large_workers_may_drift_more() -> None:
    worker = Worker(instances={1: 2 << 30}, beyond=200 * MIB)
    assert worker.looks(3 * ROUND) == []
    worker.beyond = 300 * MIB
    assert worker.looks(ROUND) == [Measure.TRIM]


def test_a_charge_that_lasts_is_told_once() -> None:
    worker = Worker(instances={1: MIB})
    worker.look()
    worker.beyond = OVER
    worker.looks(2 * ROUND, 1)
    assert worker.watch.settled(worker.now) == {}
    worker.now += SETTLED_AFTER_S
    assert worker.watch.settled(worker.now) == {1: OVER}
    assert worker.watch.settled(worker.now) == {}


@given(
    st.lists(
        st.tuples(st.integers(-(1 << 28), 1 << 30), st.sets(st.integers(1, 4)), st.integers(0, 9)),
        min_size=1,
        max_size=120,
    )
)
def test_nothing_is_done_without_a_lasting_drift_and_no_charge_is_too_much(
    samples: list[tuple[int, set[int], int]],
) -> None:
    worker = Worker(DriftWatch(100 * MIB), instances=dict.fromkeys(range(1, 5), MIB))
    drifts: list[int] = []
    for beyond, ran, gone in samples:
        worker.beyond = beyond
        if gone in worker.instances:
            worker.leave(gone, back=0)
        drifts.append(worker.beyond - sum(worker.charged.values()))
        step = worker.look(*ran)
        assert step is None or min(drifts[-ROUND:]) > ALLOWED_BYTES
        if isinstance(step, Charge):
            assert set(step.extra_bytes) <= set(worker.instances)
            assert all(extra >= 0 for extra in step.extra_bytes.values())
            assert sum(step.extra_bytes.values()) <= min(drifts[-ROUND:])
        assert all(charged <= 100 * MIB for charged in worker.charged.values())


def test_pauses_double_while_they_follow_each_other() -> None:
    pause, now, lengths = Pause(), 0.0, []
    for _ in range(9):
        assert pause.is_over(now)
        pause.begin(now)
        lengths.append(pause.until - now)
        assert not pause.is_over(pause.until - 1)
        now = pause.until
    assert lengths[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert lengths[-1] == LONGEST_PAUSE_S
    pause.begin(now + 5 * LONGEST_PAUSE_S)
    assert pause.until == now + 5 * LONGEST_PAUSE_S + FIRST_PAUSE_S
