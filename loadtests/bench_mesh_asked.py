"""What the mesh bench asks of many models, what is right for each, and what came of a run, request by request."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.bench_requests import WireRequest, build
from loadtests.models import Arrays, BenchModel
from loadtests.open_loop import Outcome, Picks, Tally, post
from loadtests.open_requests import agrees

ROWS = 20
MOST_LATE_S = 0.002
NEVER_NS = 2**62

Mask = npt.NDArray[np.bool_]
Times = npt.NDArray[np.int64]
Windows = Sequence[tuple[int, int]]
"""Begin and end in nanoseconds of the monotonic clock, one after the other."""


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """One request for each of many models.

    Attributes:
        names: The models.
        requests: Whole HTTP requests.
        expected: What ONNX Runtime itself answers to each.
    """

    names: Sequence[str]
    requests: Sequence[bytes]
    expected: Sequence[Arrays]

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: Asked) -> Asked:
        return Asked([*self.names, *other.names], [*self.requests, *other.requests], [*self.expected, *other.expected])

    def is_right(self, number: int, body: bytes) -> bool:
        """Whether a body is the answer of that model to that request."""
        try:
            document = json.loads(body)
            outputs = {output["name"]: output for output in document["outputs"]}
            named = document["model_name"] == self.names[number]
            return named and all(agrees(outputs[name], right) for name, right in self.expected[number].items())
        except (ValueError, KeyError, TypeError):
            return False


def asked(model: BenchModel, names: Iterable[str]) -> Asked:
    """Requests of one row each to models that differ in nothing but their names; rows repeat after some.

    Args:
        model: What they are.
        names: Theirs.
    """
    names = list(names)
    built = [_row(model, number) for number in range(min(ROWS, len(names)))]
    rows = [built[number % len(built)] for number in range(len(names))]
    requests = [post(f"/v2/models/{name}/infer", row.body, row.headers) for name, row in zip(names, rows, strict=True)]
    return Asked(names, requests, [row.expected for row in rows])


def _row(model: BenchModel, number: int) -> WireRequest:
    inputs = {name: array[number : number + 1] for name, array in model.draw(number + 1).items()}
    return build(dataclasses.replace(model, draw=lambda _: inputs), "json", 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What came of a run, without its settling time; times in nanoseconds of the monotonic clock.

    Attributes:
        picks: Which model each request was for.
        due_ns: When it was to be sent.
        done_ns: When it was answered; a time that never comes if it was not.
        good: Whether the answer was right.
        tally: The same as figures.
        cores: How much of a core the generator took from the server.
    """

    picks: Picks
    due_ns: Times
    done_ns: Times
    good: Mask
    tally: Tally
    cores: float = 0.0

    @property
    def failures(self) -> int:
        """Requests without a right answer."""
        return int(len(self.good) - self.good.sum())

    def quantile_s(self, share: float, where: Mask | None = None) -> float:
        """A quantile of the latency of right answers, of some of them; NaN if there are none."""
        chosen = self.good if where is None else self.good & where
        latency_ns = (self.done_ns - self.due_ns)[chosen]
        return float(np.quantile(latency_ns, share)) / 1e9 if len(latency_ns) else float("nan")

    def in_time(self, limit_s: float) -> Mask:
        """Whose answers were right and came in time."""
        return self.good & (self.done_ns - self.due_ns <= limit_s * 1e9)

    def overlaps(self, windows: Windows) -> Mask:
        """Which requests were under way, or should have been, within one of the windows."""
        begins, ends = np.array(windows or [(NEVER_NS, NEVER_NS)], np.int64).T
        first = np.searchsorted(ends, self.due_ns)
        inside = first < len(ends)
        return np.asarray(inside & (begins[np.where(inside, first, 0)] <= self.done_ns))

    def text(self) -> str:
        """What did not go well, for people."""
        tally = self.tally
        return f"{tally.wrong} wrong, {tally.refused} refused, {tally.failed} failed of {tally.requests}"


def seen(outcome: Outcome, questions: Asked, picks: Picks, limit_s: float = float("inf")) -> Seen:
    """Judges a run.

    Args:
        outcome: What the generator saw.
        questions: What was asked.
        picks: The model of each request.
        limit_s: When answers are too late for the tally.
    """
    is_right = functools.lru_cache(maxsize=None)(questions.is_right)
    counted: Mask = outcome.records["due_ns"] >= outcome.schedule.settle_s * 1e9
    records = outcome.records[counted]
    worth = np.array([is_right(*answer) for answer in outcome.answers] + [False])
    good = (records["status"] == 200) & worth[np.minimum(records["answer"], len(worth) - 1)]
    done_ns = np.where(records["done_ns"] > 0, records["done_ns"].astype(np.int64) + outcome.begun_ns, NEVER_NS)
    return Seen(
        picks[counted],
        records["due_ns"].astype(np.int64) + outcome.begun_ns,
        done_ns,
        good,
        outcome.tally(is_right, limit_s, MOST_LATE_S),
        outcome.generator_cpu_s / outcome.schedule.duration_s,
    )


def recovery_s(
    run: Seen, moments_ns: Sequence[int], *, limit_s: float, share: float, bin_s: float, hold_s: float
) -> list[float]:
    """How long after each of some moments goodput was back, and stayed for a while or until the next moment.

    Time after a moment is cut into equal bins by when requests were due; goodput is back before the first of so many
    bins in a row in each of which a share of them were answered rightly and in time.

    Args:
        run: What was seen.
        moments_ns: When something was done to the server.
        limit_s: Within which time answers must come.
        share: Of the requests of a bin.
        bin_s: How long bins are; how exact the result is.
        hold_s: How long it has to stay.
    """
    in_time = run.in_time(limit_s)
    ends_ns = [*moments_ns[1:], int(run.due_ns.max(initial=0)) + 1]
    found = []
    for begin_ns, end_ns in zip(moments_ns, ends_ns, strict=True):
        within = (run.due_ns >= begin_ns) & (run.due_ns < end_ns)
        bins = (run.due_ns[within] - begin_ns) // round(bin_s * 1e9)
        due = np.bincount(bins)
        good = np.bincount(bins, in_time[within])
        bad = np.flatnonzero(good < share * due)
        gaps = np.diff([-1, *bad, len(due) + round(hold_s / bin_s)]) > hold_s / bin_s  # the last one ends the window
        found.append(float([-1, *bad][int(np.argmax(gaps))] + 1) * bin_s)
    return found


def zipf_shares(count: int, exponent: float) -> npt.NDArray[np.float64]:
    """The share of requests for each of so many models, in order of rank."""
    weights = np.arange(1, count + 1, dtype=float) ** -exponent
    return np.asarray(weights / weights.sum())


def draw(count: int, rates: npt.NDArray[Any], seed: int) -> Picks:
    """Which model each of so many requests is for, models drawn in proportion to their rates."""
    rng = np.random.default_rng(seed)
    return rng.choice(len(rates), count, p=rates / rates.sum()).astype(np.uint32)
