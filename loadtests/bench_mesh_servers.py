"""Servers of the mesh bench, and what is done to them and read of them."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtests.bench_load import LoadFailed
from loadtests.bench_mesh_asked import Asked, Seen, seen
from loadtests.open_loop import Picks, Schedule, Target, run
from tests.server import HOST, RoostServer, private_bytes_of, wait_for

START_S = 120.0
REST_S = 15.0
CONNECTIONS = 1024
GRACE_S = 20.0
_LOOK_EVERY_S = 0.1
_REST_LOOK_S = 0.5
_REST_BYTES = 256 * 1024
_LOADS_IN_FLIGHT = 8
_ALL_AT_ONCE_PER_S = 1e6
_LOAD_ALL_S = 400.0


@contextmanager
def serving(repository: Path, folder: Path, *flags: str) -> Iterator[RoostServer]:
    """A server that is ready; what was measured is worth more than an orderly end, which tests look at."""
    server = RoostServer(repository, folder, "--log-level", "warning", *flags)
    try:
        wait_for(server.is_ready, "the ready file", START_S)
        server.wait_ready()
        yield server
        with contextlib.suppress(AssertionError):
            server.stop()
    finally:
        server.clean_up()


def steady(rate_per_s: float, seconds: float) -> Schedule:
    """A rate for some time; what is slow has time to come, since it is no failure."""
    return Schedule(rate_per_s, seconds, connections=CONNECTIONS, grace_s=GRACE_S)


def drive(
    server: RoostServer, questions: Asked, schedule: Schedule, picks: Picks, *, limit_s: float = float("inf")
) -> Seen:
    """Open-loop load, judged."""
    outcome = run(Target(HOST, server.ports["http"], questions.requests), schedule, picks)
    return seen(outcome, questions, picks, limit_s)


def load_all(server: RoostServer, questions: Asked, picks: Picks) -> Seen:
    """Asks each of some models once, a few at a time, so that all are loaded.

    Raises:
        LoadFailed: If one of them does not answer rightly.
    """
    schedule = Schedule(
        _ALL_AT_ONCE_PER_S,
        len(picks) / _ALL_AT_ONCE_PER_S,
        "uniform",
        connections=_LOADS_IN_FLIGHT,
        grace_s=_LOAD_ALL_S,
        settle_s=0.0,
    )
    answered = drive(server, questions, schedule, picks)
    if answered.failures:
        raise LoadFailed(f"the first requests to {len(picks)} models: {answered.text()}\n{server.log[-2000:]}")
    return answered


def calm(server: RoostServer) -> None:
    """Waits until a server is done with what nobody waits for any more, or for a while."""
    give_up = time.monotonic() + REST_S
    while time.monotonic() < give_up and (server.status()["queued"] or server.in_flight()):
        time.sleep(_REST_LOOK_S)


def private_at_rest(server: RoostServer) -> int:
    """Anonymous memory of all its processes once it does not change any more, or after a while."""
    give_up, last = time.monotonic() + REST_S, server.private_bytes()
    while time.monotonic() < give_up:
        time.sleep(_REST_LOOK_S)
        now = server.private_bytes()
        if abs(now - last) < _REST_BYTES:
            return now
        last = now
    return last


def read(server: RoostServer, port: str, path: str) -> int:
    """Reads an answer to its end without a look at it; returns its length."""
    connection = http.client.HTTPConnection(HOST, server.ports[port], timeout=60.0)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        length = 0
        while piece := response.read(1 << 20):
            length += len(piece)
    finally:
        connection.close()
    if response.status != 200:
        raise LoadFailed(f"{path}: {response.status}")
    return length


class Peak:
    """The most anonymous memory that all processes of a server had at any sample, and each of them then."""

    def __init__(self) -> None:
        self.bytes = 0
        self.samples = 0
        self.server_bytes = 0
        self.others_bytes: list[int] = []

    @contextmanager
    def watch(self, server: RoostServer) -> Iterator[None]:
        """Looks at it again and again meanwhile."""

        def look() -> None:
            each = {pid: private_bytes_of(pid) for pid in server.processes()}
            self.samples += 1
            if sum(each.values()) > self.bytes:
                self.bytes = sum(each.values())
                self.server_bytes = each.pop(server.pid, 0)
                self.others_bytes = sorted(each.values(), reverse=True)

        with repeatedly(look, _LOOK_EVERY_S):
            yield

    def text(self) -> str:
        """For people."""
        others = ", ".join(f"{size / 1e6:.0f}" for size in self.others_bytes)
        return (
            f"{self.bytes / 1e6:.0f} MB in {self.samples} samples (server {self.server_bytes / 1e6:.0f}, "
            f"workers and other processes {others})"
        )


@contextmanager
def repeatedly(
    act: Callable[[], object], every_s: float, *, first_s: float = 0.0, then: Callable[[], object] = lambda: None
) -> Iterator[list[tuple[int, int]]]:
    """Does something at equal intervals meanwhile, in a thread, at once if it is late; gives when each began and ended.

    Args:
        act: What is done.
        every_s: How long one begins after the other.
        first_s: After how long the first one does.
        then: What is done after each, and belongs to none of the times.

    Raises:
        LoadFailed: At the end, if it failed.
    """
    windows: list[tuple[int, int]] = []
    failures: list[Exception] = []
    over = threading.Event()

    def work() -> None:
        due = time.monotonic() + first_s
        while not over.wait(max(0.0, due - time.monotonic())):
            due += every_s
            begin_ns = time.monotonic_ns()
            try:
                act()
                windows.append((begin_ns, time.monotonic_ns()))
                then()
            except Exception as error:  # of whatever kind: the main thread is to know
                failures.append(error)
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield windows
    finally:
        over.set()
        thread.join()
    if failures:
        raise LoadFailed(f"what was done meanwhile: {failures[0]!r}") from failures[0]


def control(server: RoostServer, name: str, what: str) -> None:
    """A load or unload call.

    Raises:
        LoadFailed: If it fails.
    """
    status, answer = server.post(f"/v2/repository/models/{name}/{what}", {})
    if status != 200:
        raise LoadFailed(f"{what} of {name}: {status} {answer}")


def residents(server: RoostServer, names: Sequence[str]) -> int:
    """How many of these models are in memory."""
    return len(server.resident() & set(names))
