"""What is let in under overload, in virtual time: an event loop that takes in requests and answers in turns."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

import pytest
from roost.core.errors import DeadlineExceeded
from roost.core.requests import RequestContext
from roost.server.rest.codec import RestInferRequest
from roost.server.rest.lean import LeanPath
from roost.server.rest.lean_heads import Kind
from roost.server.rest.lean_turn import Turn
from roost.server.rest.lean_window import Window
from roost.server.rest.limits import RestLimits
from roost.server.transport_options import TransportOptions

from tests.unit.grpc_fakes import FakeDataPlane

ALLOWANCE_S = 0.018
REFUSE_S, READ_S, ANSWER_S, EXPIRE_S, TURN_S = 15e-6, 40e-6, 25e-6, 20e-6, 100e-6
# What a worker answers in a turn of the loop.
ANSWERS = 16


class Place:
    """A server whose requests all are of one kind; what the operating system holds is in ``arrived``."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turn, self.window = Turn(lambda: self.now), Window()
        self.arrived: deque[float] = deque()
        self.under_way: deque[tuple[float, float]] = deque()
        self.in_time = 0
        self.refusals: list[float] = []
        self._soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def run_turn(self) -> None:
        self.now += TURN_S
        for callback in self._soon:
            callback()
        self._soon.clear()
        self._answer()
        for _ in range(len(self.arrived)):
            self._look_at(self.arrived.popleft())

    def _answer(self) -> None:
        answered = 0
        while self.under_way:
            sent, received = self.under_way[0]
            is_late = self.now - received > ALLOWANCE_S
            if not is_late and answered == ANSWERS:
                break
            self.under_way.popleft()
            self.now += EXPIRE_S if is_late else ANSWER_S
            answered += not is_late
            self.in_time += self.now - sent <= ALLOWANCE_S / 0.9
            self.window.leave(received, self.now, is_late)

    def _look_at(self, sent: float) -> None:
        if self.turn.is_late(self, ALLOWANCE_S) or self.window.is_full(self.now):  # type: ignore[arg-type]
            self.now += REFUSE_S
            self.refusals.append(self.now - sent)
        else:
            self.now += READ_S
            self.window.under_way += 1
            self.under_way.append((sent, self.turn.began))


def offer(place: Place, rate_per_s: float, until: float) -> None:
    """Requests that come as they come."""

    def times() -> Iterator[float]:
        start = place.now
        for number in range(int((until - start) * rate_per_s)):
            yield start + number / rate_per_s

    coming = deque(times())
    while place.now < until:
        while coming and coming[0] <= place.now:
            place.arrived.append(coming.popleft())
        place.run_turn()


def test_overload_keeps_goodput_and_refuses_soon() -> None:
    place = Place()
    offer(place, 6_000, until=1.0)
    assert place.in_time == pytest.approx(6_000, rel=0.01)
    assert not place.refusals
    offer(place, 24_000, until=3.0)
    assert (place.in_time - 6_000) / 2.0 >= 6_000
    place.refusals.sort()
    assert place.refusals[int(len(place.refusals) * 0.99)] <= 0.020


def test_a_thousand_connections_that_ask_again_at_once() -> None:
    """Refusing them all takes most of what each allows; some are let in all the same."""
    place = Place()
    for _ in range(200):
        place.arrived.extend([place.now] * (1024 - len(place.under_way)))
        place.run_turn()
    assert place.in_time >= 200 * ANSWERS / 2


def ended(window: Window, now: float, late: int, in_time: int) -> None:
    for _ in range(late + in_time):
        window.under_way += 1
    for number in range(late + in_time):
        window.leave(now, now, number < late)


def test_a_window_without_late_requests_has_no_end() -> None:
    window = Window()
    ended(window, 1.0, 8, 24)
    for _ in range(10_000):
        window.under_way += 1
    assert not window.is_full(1.0)


def test_requests_that_say_nothing() -> None:
    window = Window()
    for _ in range(100):
        window.under_way += 1
        window.leave(1.0, 1.0, None)
    ended(window, 1.0, 31, 0)
    assert window.under_way == 0
    for _ in range(100):
        window.under_way += 1
    assert not window.is_full(1.0)


def test_a_window_grows_and_is_forgotten() -> None:
    window = Window()
    ended(window, 1.0, 100, 0)
    assert window.under_way == 0
    room = 0
    while not window.is_full(1.5):
        window.under_way += 1
        room += 1
    assert 8 <= room < 100
    for _ in range(200):
        window.leave(1.5, 1.5, False)
        window.under_way += 1
    assert not window.is_full(1.5)
    while not window.is_full(1.5):
        window.under_way += 1
    # Cut at 1.0: what made them late may be over.
    assert not window.is_full(2.1)


def test_what_came_before_the_cut_does_not_cut_again() -> None:
    window = Window()
    for _ in range(320):
        window.under_way += 1
    for _ in range(320):
        window.leave(0.0, 1.0, True)
    assert not window.is_full(1.0)
    for _ in range(200):
        window.under_way += 1
    assert not window.is_full(1.0)


async def test_those_that_are_late_long_after_the_last_one_came_cut_all_the_same() -> None:
    lean = LeanPath(FakeDataPlane(), RestLimits(), TransportOptions())
    kind = Kind("m", "", "identity", 60.0)
    came = lean.turn.now = time.monotonic() - 10.0
    request = RestInferRequest("m", "", RequestContext(came, came + 60.0), [])
    for _ in range(200):
        kind.window.under_way += 1
    for _ in range(200):
        lean.ended(kind, request, DeadlineExceeded("late"))
    assert kind.window.under_way == 0
    for _ in range(200):
        kind.window.under_way += 1
    assert kind.window.is_full(time.monotonic())
