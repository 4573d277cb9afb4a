"""Runs a target with inputs made from valid ones, and watches for crashes, hangs and growth.

An input that brings about an outcome not seen before is kept and mutated further, so that the run gets deeper than one
change from a valid input. Everything is drawn from one seed.
"""

from __future__ import annotations

import base64
import faulthandler
import gc
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from roost.core.errors import Code, RoostError
from roost.server.rest.errors import Refusal

from tests.fuzz.mutation import MAX_BYTES, mutate_bytes
from tests.server import private_bytes_of

# What a client may be told; INTERNAL would be a defect of ours.
ALLOWED: Final = frozenset(Code) - {Code.INTERNAL}
STUCK_S: Final = 60.0
_BATCH: Final = 1000
_MAX_WAIT: Final = 10
_MAX_KEPT: Final = 400
_MAX_OUTCOMES: Final = 2000
_VARIABLE = re.compile(r"'.*?'|\"[^\"]*\"|\[.*?\]|-?\d[\d.e+]*", re.DOTALL)


@dataclass(frozen=True)
class Target:
    """Something that takes bytes from clients.

    Attributes:
        name: What it is called on the command line.
        seeds: Valid inputs.
        run: Takes one input; may raise what a client may be told.
        mutate: Makes an input of another that keeps its structure.
    """

    name: str
    seeds: Sequence[bytes]
    run: Callable[[bytes], None]
    mutate: Callable[[Random, bytes], bytes]


class Violation(Exception):
    """A target did what it must not do."""


@dataclass
class Report:
    """What a run found.

    Attributes:
        inputs: How many were run.
        accepted: How many of them were valid.
        duration_s: How long it all took, making the inputs included.
        slowest_s: The longest that one input took, of the processor's time.
        growth_bytes: By how much anonymous memory grew, once warm.
        outcomes: Kinds of refusals.
        violations: What is wrong.
    """

    inputs: int = 0
    accepted: int = 0
    duration_s: float = 0.0
    slowest_s: float = 0.0
    growth_bytes: int = 0
    outcomes: set[str] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)


def attempt(target: Target, data: bytes) -> str:
    """Runs one input; returns what came of it, empty if it was accepted.

    Raises:
        Violation: If the target raised what no client may be told.
    """
    try:
        target.run(data)
    except RoostError as error:
        if error.code not in ALLOWED:
            raise Violation(f"{error.code}: {error.message}") from error
        return f"{error.code}: {_VARIABLE.sub('_', error.message[:300])}"
    except Refusal as error:
        if error.status >= 500 and error.status != 501:
            raise Violation(f"{error.status}: {error.message}") from error
        return f"{error.status}: {_VARIABLE.sub('_', error.message[:300])}"
    except Exception as error:
        raise Violation(f"{type(error).__name__}: {error}") from error
    return ""


def fuzz(
    target: Target, inputs: int, seed: int, *, max_input_s: float = 1.0, max_growth_bytes: int = 10 << 20
) -> Report:
    """Runs a target with so many inputs.

    Args:
        target: What to run.
        inputs: How many; the first twentieth warms up, before memory is looked at.
        seed: Makes the run repeatable.
        max_input_s: No input may take more of the processor's time, or ten times as long.
        max_growth_bytes: Memory may not grow by more.
    """
    rng = Random(seed)
    report = Report()
    corpus = list(target.seeds)
    begun = time.monotonic()
    warm_bytes = 0
    while report.inputs < inputs and not report.violations:
        faulthandler.dump_traceback_later(STUCK_S, exit=True)
        for _ in range(min(_BATCH, inputs - report.inputs)):
            _one(target, rng, corpus, report, max_input_s)
            if report.violations:
                break
        if not warm_bytes and report.inputs * 20 >= inputs:
            warm_bytes = _private_bytes()
    faulthandler.cancel_dump_traceback_later()
    report.duration_s = time.monotonic() - begun
    report.growth_bytes = _private_bytes() - warm_bytes
    if report.growth_bytes > max_growth_bytes:
        report.violations.append(f"memory grew by {report.growth_bytes} bytes")
    return report


def _one(target: Target, rng: Random, corpus: list[bytes], report: Report, max_input_s: float) -> None:
    data = rng.choice(corpus if rng.random() < 0.5 else target.seeds)
    data = target.mutate(rng, data) if rng.random() < 0.7 else mutate_bytes(rng, data)
    began_s, began_cpu_s = time.perf_counter(), time.thread_time()
    try:
        outcome = attempt(target, data)
    except Violation as violation:
        report.violations.append(f"{violation}; input {_printable(data)}")
        outcome = str(violation)
    # Others may have the processor meanwhile: only what is much longer than its own work counts as waiting.
    took_s = max(time.thread_time() - began_cpu_s, (time.perf_counter() - began_s) / _MAX_WAIT)
    report.inputs += 1
    report.accepted += not outcome
    report.slowest_s = max(report.slowest_s, took_s)
    if took_s > max_input_s:
        report.violations.append(f"one input took {took_s:.2f} s; input {_printable(data)}")
    if outcome not in report.outcomes and len(report.outcomes) < _MAX_OUTCOMES:
        report.outcomes.add(outcome)
        if len(corpus) < len(target.seeds) + _MAX_KEPT and len(data) <= MAX_BYTES:
            corpus.append(data)


def _private_bytes() -> int:
    gc.collect()
    return private_bytes_of(os.getpid())


def _printable(data: bytes) -> str:
    return base64.b64encode(data).decode()


def describe(target: Target, report: Report) -> str:
    """One line about a run."""
    rate = report.inputs / report.duration_s if report.duration_s else 0.0
    return (
        f"{target.name:<14} {report.inputs:>9,} inputs  {rate:>7,.0f}/s  "
        f"{report.accepted / report.inputs:>5.1%} accepted  {len(report.outcomes):>4} outcomes  "
        f"slowest {report.slowest_s * 1000:>6.1f} ms  memory {report.growth_bytes / 2**20:+.1f} MiB"
    )


def replay(target: Target, text: str) -> None:
    """Runs one input of an earlier report once more, with its traceback if it fails."""
    outcome = attempt(target, base64.b64decode(text))
    print(outcome or "accepted", file=sys.stdout)
