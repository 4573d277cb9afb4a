"""A server that knows where its front end's time goes: ``roost`` with probes around the steps of the data path.

``python -m loadtests.step_probes FILE serve ...`` does what ``roost serve ...`` does. At SIGUSR1 it appends to FILE, as
a line of JSON, how much CPU time of the event loop's thread each step has used, without what the probes themselves
take. ``loadtests.steps`` starts it and reads that.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

# Steps of the data path, and the functions whose time they are. What these call counts as theirs, unless it is a step
# itself.
PROBES: Mapping[str, Sequence[str]] = {
    "0 read, frame": (
        "roost.server.rest.lean_protocol:LeanProtocol.data_received",
        "roost.server.http2.connection:Connection.buffer_updated",
    ),
    "1 decode": (
        "roost.server.rest.lean:LeanPath.begin",
        "roost.server.rest.lean:decode_plain",
        "roost.server.grpc_lean:LeanInfer.take",
        "roost.server.grpc_plain:InferCodec.decode_infer",
    ),
    "2 resolve": (
        "roost.server.data_plane:RouterDataPlane.begin",
        "roost.router.inference:Inference.begin",
    ),
    "3 validate": ("roost.router.intake:Intake.quick",),
    "4 admit, queue": ("roost.router.dispatching:Dispatcher.submit",),
    "6 batch": (
        "roost.router.dispatching:Dispatcher.pump",
        "roost.router.dispatching:plan",
        "roost.router.runs:Runs.begin",
    ),
    "7 link out": ("roost.router.link:WorkerLink.send_run",),
    "7 link in": ("roost.router.link:WorkerLink.buffer_updated",),
    "7 settle": (
        "roost.router.mesh:Mesh.run_answered",
        "roost.router.runs:Runs.end",
        "roost.router.runs:Runs.answer",
        "roost.router.runs:Runs.release",
    ),
    "7 statistics": ("roost.router.stats:Stats.finished", "roost.router.stats:ModelStats.ran"),
    "8 encode": (
        "roost.server.rest.lean:LeanPath.encode",
        "roost.server.grpc_plain:InferCodec.encode_parts",
    ),
}
WRITE = "8 write"
THE_PROBES = "probes"
STEPS = (*PROBES, WRITE)
_BEGINS = "RouterDataPlane"
_CALIBRATION_CALLS = 100_000

AnyCallable = Callable[..., Any]


class Clock:
    """Adds up the CPU time of functions by step; the time of a function is not that of those that it calls."""

    def __init__(self) -> None:
        # For each step: nanoseconds, calls, and calls of other probes from within.
        self.cells: dict[str, list[int]] = {}
        self._stack: list[list[int]] = []
        self._thread = threading.get_ident()
        self._inside_ns, self._outside_ns = 0.0, 0.0

    def probe(self, step: str, function: AnyCallable) -> AnyCallable:
        """The function with a probe around it, which works in the thread that made the clock."""
        cell = self.cells.setdefault(step, [0, 0, 0])
        stack, thread = self._stack, self._thread
        now_ns, this_thread = time.thread_time_ns, threading.get_ident

        def timed(*args: Any, **named: Any) -> Any:
            if this_thread() != thread:
                return function(*args, **named)
            inner = [0, 0]  # nanoseconds and calls of other probes from within
            stack.append(inner)
            began_ns = now_ns()
            try:
                return function(*args, **named)
            finally:
                took_ns = now_ns() - began_ns
                stack.pop()
                cell[0] += took_ns - inner[0]
                cell[1] += 1
                cell[2] += inner[1]
                if stack:
                    outer = stack[-1]
                    outer[0] += took_ns
                    outer[1] += 1

        return timed

    def calibrate(self) -> None:
        """Learns what a probe adds to the time of the function in it, and to that of its caller."""
        within = self.probe("calibration", lambda: None)

        def calls() -> None:
            for _ in range(_CALIBRATION_CALLS):
                within()

        def plain_calls() -> None:
            for _ in range(_CALIBRATION_CALLS):
                _nothing()

        outer = self.probe("outer", calls)
        outer()
        plain_ns = -time.thread_time_ns()
        plain_calls()
        plain_ns += time.thread_time_ns()
        self._inside_ns = self.cells["calibration"][0] / _CALIBRATION_CALLS
        self._outside_ns = (self.cells["outer"][0] - plain_ns) / _CALIBRATION_CALLS
        del self.cells["calibration"], self.cells["outer"]

    def steps_ns(self) -> dict[str, float]:
        """What each step has used until now, and the probes."""
        used = {
            step: own_ns - calls * self._inside_ns - inner * self._outside_ns
            for step, (own_ns, calls, inner) in self.cells.items()
        }
        calls = sum(cell[1] for cell in self.cells.values())
        return {**used, THE_PROBES: calls * (self._inside_ns + self._outside_ns)}


def _nothing() -> None:
    """What an empty call costs."""


def probed() -> Iterator[tuple[str, Any, str]]:
    """The step, owner and name of each function that gets a probe.

    Raises:
        AttributeError: If one of them is not there any more: the table above is to be brought up to date.
    """
    for step, places in PROBES.items():
        for place in places:
            module, _, path = place.partition(":")
            owner: Any = importlib.import_module(module)
            *outer, name = path.split(".")
            for part in outer:
                owner = getattr(owner, part)
            getattr(owner, name)
            yield step, owner, name


def install(clock: Clock) -> None:
    """Puts probes around all functions of the steps."""
    for step, owner, name in probed():
        function = getattr(owner, name)
        if owner.__name__ == _BEGINS:
            function = _with_write(clock, function)
        setattr(owner, name, clock.probe(step, function))


def _with_write(clock: Clock, begin: AnyCallable) -> AnyCallable:
    """The way out begins where the data plane calls back."""

    def begin_probed(self: Any, request: Any, done: AnyCallable) -> Any:
        return begin(self, request, clock.probe(WRITE, done))

    return begin_probed


def main() -> int:
    """Serves, with probes."""
    from roost.server.cli import main as roost

    file = Path(sys.argv[1])
    clock = Clock()
    clock.calibrate()
    install(clock)

    def write(number: int, frame: FrameType | None) -> None:
        with file.open("a", encoding="ascii") as lines:
            lines.write(json.dumps(clock.steps_ns()) + "\n")

    signal.signal(signal.SIGUSR1, write)
    return roost(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
