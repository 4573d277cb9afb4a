"""Open-loop load: requests go out at times fixed beforehand, and latency counts from when each was *meant* to be sent.

A closed loop (wrk, h2load) waits for answers before it sends more, so a server that stalls is asked less and looks
better than it is. Here the generator (``open_loop.c``, compiled on first use) keeps to its schedule; a run in which it
could not is invalid and says so. What an answer is worth is judged here, once for each different one.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

SOURCE = Path(__file__).with_suffix(".c")
SEED = 16159082839903944936  # of the schedule in MLPerf's server scenario
NO_ANSWER = 2**32 - 1
REFUSALS = (429, 503, 504)
MOST_LATE_SHARE = 0.01

RECORD = np.dtype(
    [
        ("due_ns", "u8"),
        ("sent_ns", "u8"),
        ("done_ns", "u8"),
        ("status", "u4"),
        ("answer", "u4"),
        ("waited", "u8"),
    ]
)

Records = np.ndarray[Any, np.dtype[Any]]
IsRight = Callable[[int, bytes], bool]
Picks = npt.NDArray[np.uint32]


class NoGenerator(RuntimeError):
    """The generator could not be compiled or did not run to its end."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When requests are due, and over how many connections they go.

    Attributes:
        rate_per_s: How many requests are due per second, on average.
        duration_s: For how long.
        arrivals: ``poisson``: exponential gaps; ``uniform``: equal ones.
        seed: Of the gaps. The same one gives the same pattern at every rate, so that rates differ in nothing else.
        connections: How many there are; a request that finds all of them busy waits, which counts.
        give_up_s: A request that has waited so long for a connection is not sent any more, as no client would.
        grace_s: How long answers may come after the last request was due.
        settle_s: Requests due before that are sent but not counted.
    """

    rate_per_s: float
    duration_s: float
    arrivals: Literal["poisson", "uniform"] = "poisson"
    seed: int = SEED
    connections: int = 1024
    give_up_s: float = 3600.0
    grace_s: float = 2.0
    settle_s: float = 0.5

    def due_ns(self) -> npt.NDArray[np.uint64]:
        """When each request is due, in nanoseconds after the start."""
        count = max(1, round(self.rate_per_s * self.duration_s))
        if self.arrivals == "uniform":
            at = np.arange(count) / self.rate_per_s
        else:
            at = np.cumsum(np.random.default_rng(self.seed).exponential(1 / self.rate_per_s, count))
        return (at * 1e9).astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and their bytes: heads and bodies."""

    host: str
    port: int
    requests: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Tally:
    """What came of a run, settling time left out. Latencies are from the intended send time, NaN if there are none.

    Attributes:
        requests: How many were due.
        seconds: In which time.
        in_time: Right answers within the limit.
        right: Right answers.
        wrong: Answers with status 200 that are not right.
        refused: Answers with a status that says "not now" (429, 503, 504).
        failed: Everything else, such as broken connections and what never came.
        p50_s, p99_s: Latency of right answers.
        refusal_p99_s: Latency of refusals.
        lag_p99_s: How late the generator sent what it could have sent.
        late_share: Share of requests that it sent later than was allowed.
    """

    requests: int
    seconds: float
    in_time: int
    right: int
    wrong: int
    refused: int
    failed: int
    p50_s: float
    p99_s: float
    refusal_p99_s: float
    lag_p99_s: float
    late_share: float

    @property
    def share_in_time(self) -> float:
        """Of all requests, those that were answered rightly and in time."""
        return self.in_time / self.requests

    @property
    def goodput_per_s(self) -> float:
        """Right answers in time, per second."""
        return self.in_time / self.seconds

    @property
    def is_valid(self) -> bool:
        """Whether the generator kept to its schedule."""
        return self.late_share <= MOST_LATE_SHARE


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the generator saw.

    Attributes:
        schedule: What it was to do.
        records: One for each request.
        answers: The different ones, with the number of the request that they are to.
        generator_cpu_s: What it has used itself, of cores that it shares with the server.
        begun_ns: When the schedule began, by the monotonic clock.
    """

    schedule: Schedule
    records: Records
    answers: Sequence[tuple[int, bytes]]
    generator_cpu_s: float = 0.0
    begun_ns: int = 0

    def tally(self, is_right: IsRight, limit_s: float, most_late_s: float) -> Tally:
        """Judges a run.

        Args:
            is_right: Is told the number of a request in ``Target.requests`` and the body of an answer.
            limit_s: Right answers after that are too late.
            most_late_s: How late the generator may send a request for which it had a connection.
        """
        counted = self.records[self.records["due_ns"] >= self.schedule.settle_s * 1e9]
        if not len(counted):
            raise ValueError("the run was shorter than its settling time")
        worth = np.array([is_right(*answer) for answer in self.answers] + [False])
        known = np.minimum(counted["answer"], len(self.answers))
        right = (counted["status"] == 200) & worth[known]
        refused = np.isin(counted["status"], REFUSALS)
        latency_s = (counted["done_ns"].astype(np.int64) - counted["due_ns"].astype(np.int64)) / 1e9
        punctual = counted[(counted["waited"] == 0) & (counted["sent_ns"] > 0)]
        lag_s = (punctual["sent_ns"] - punctual["due_ns"]) / 1e9
        wrong = (counted["status"] == 200) & ~right
        return Tally(
            requests=len(counted),
            seconds=len(counted) / self.schedule.rate_per_s,
            in_time=int(np.sum(right & (latency_s <= limit_s))),
            right=int(right.sum()),
            wrong=int(wrong.sum()),
            refused=int(refused.sum()),
            failed=int(len(counted) - right.sum() - refused.sum() - wrong.sum()),
            p50_s=_quantile(latency_s[right], 0.5),
            p99_s=_quantile(latency_s[right], 0.99),
            refusal_p99_s=_quantile(latency_s[refused], 0.99),
            lag_p99_s=_quantile(lag_s, 0.99),
            late_share=float(np.sum(lag_s > most_late_s)) / len(counted),
        )


def _quantile(values: npt.NDArray[np.float64], share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else float("nan")


def post(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole HTTP request."""
    fields = {"Host": "localhost", "Content-Type": "application/json", **(headers or {}), "Content-Length": len(body)}
    return "".join([f"POST {path} HTTP/1.1\r\n", *(f"{k}: {v}\r\n" for k, v in fields.items()), "\r\n"]).encode() + body


def post_json(path: str, document: Any) -> bytes:
    """A whole HTTP request with a JSON body."""
    return post(path, json.dumps(document, separators=(",", ":")).encode())


def generator() -> Path:
    """The compiled generator, which lies in the virtual environment under a name that says what it was made from.

    Raises:
        NoGenerator: There is no C compiler, or it fails.
    """
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    program = Path(sys.prefix) / "loadtests" / f"open_loop-{digest}"
    if program.exists():
        return program
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise NoGenerator("the open-loop generator needs a C compiler: install gcc (apt-get install gcc libc6-dev)")
    program.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        fresh = Path(folder) / "open_loop"
        line = [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(fresh), str(SOURCE)]
        compiled = subprocess.run(line, capture_output=True, text=True, check=False)
        if compiled.returncode:
            raise NoGenerator(f"{' '.join(line)}\n{compiled.stderr}")
        fresh.replace(program)  # whole or not at all
    return program


def run(target: Target, schedule: Schedule, picks: Picks | None = None) -> Outcome:
    """Sends requests to the target as the schedule says and waits for the end.

    Args:
        target: Where they go.
        schedule: When.
        picks: The number in ``target.requests`` of what is sent each time; without it they are sent in turn.

    Raises:
        NoGenerator: It cannot be compiled, or it failed; the message says why.
    """
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    program = generator()
    with tempfile.TemporaryDirectory(prefix="roost-open-loop-") as name:
        files = [Path(name, part) for part in ("due", "picks", "requests", "records", "answers")]
        _write_orders(files, target, schedule, picks)
        times_ms = [round(seconds * 1000) for seconds in (schedule.give_up_s, schedule.grace_s)]
        words = [target.host, target.port, schedule.connections, *times_ms, *files]
        line = [str(program), *map(str, words)]
        limit_s = schedule.duration_s * 2 + schedule.grace_s + 30
        cpu_s = _children_cpu_s()
        ended = subprocess.run(line, capture_output=True, text=True, timeout=limit_s, check=False)
        cpu_s = _children_cpu_s() - cpu_s
        if ended.returncode:
            raise NoGenerator(ended.stderr.strip() or f"the generator ended with {ended.returncode}")
        *_, records, answers = files
        answered = read_answers(answers.read_bytes())
        return Outcome(schedule, np.fromfile(records, RECORD), answered, cpu_s, int(ended.stdout))


def _write_orders(files: Sequence[Path], target: Target, schedule: Schedule, picks: Picks | None) -> None:
    due_ns = schedule.due_ns()
    if picks is None:
        picks = np.arange(len(due_ns), dtype=np.uint32) % np.uint32(len(target.requests))
    due, picked, requests, *_ = files
    due.write_bytes(due_ns.tobytes())
    picked.write_bytes(picks.tobytes())
    requests.write_bytes(b"".join(struct.pack("=I", len(content)) + content for content in target.requests))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_answers(data: bytes) -> list[tuple[int, bytes]]:
    """What the generator writes of the different answers: the number of the request, and the body."""
    found, at = [], 0
    while at < len(data):
        request, length = struct.unpack_from("=II", data, at)
        found.append((request, data[at + 8 : at + 8 + length]))
        at += 8 + length
    return found
