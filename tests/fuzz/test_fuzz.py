"""A bounded run of each target, and proof that the driver finds what it looks for; ``make fuzz`` is the long run."""

from __future__ import annotations

import time
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from roost.core.errors import Internal, InvalidArgument

from tests.fuzz.driver import Target, Violation, attempt, fuzz
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.targets import targets

TARGETS = targets()
# Reads and writes of memory that was cut off, and models that take no raw request.
REFUSED_SEEDS = {"shared-memory": 2, "rest-raw": 28}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_bounded_run(target: Target) -> None:
    report = fuzz(target, 3000, seed=7)
    assert report.violations == []
    assert report.accepted > 0
    assert len(report.outcomes) > 1


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_examples(target: Target, data: st.DataObject) -> None:
    given_bytes = data.draw(st.binary(max_size=300) | st.sampled_from(target.seeds))
    if data.draw(st.booleans()):
        given_bytes = target.mutate(Random(data.draw(st.integers(0, 2**32))), given_bytes)
    attempt(target, given_bytes)


def test_every_seed_is_valid() -> None:
    for target in TARGETS:
        refused = [seed for seed in target.seeds if attempt(target, seed)]
        assert len(refused) <= REFUSED_SEEDS.get(target.name, 0), (target.name, refused)


def _of(run: object) -> Target:
    return Target("broken", [b"abcdef"], run, mutate_bytes)  # type: ignore[arg-type]


def test_a_crash_is_found() -> None:
    def run(data: bytes) -> None:
        if b"\xff" in data:
            raise IndexError("list index out of range")
        raise InvalidArgument("no")

    report = fuzz(_of(run), 20_000, seed=1)
    assert "IndexError" in report.violations[0]
    assert report.inputs < 20_000


def test_an_internal_error_is_one() -> None:
    def run(_: bytes) -> None:
        raise Internal("who knows")

    with pytest.raises(Violation, match="who knows"):
        attempt(_of(run), b"")


def test_a_hang_is_found() -> None:
    def run(data: bytes) -> None:
        end = time.thread_time() + (0.02 if len(data) > 8 else 0)
        while time.thread_time() < end:
            pass

    report = fuzz(_of(run), 2000, seed=1, max_input_s=0.02)
    assert "took" in report.violations[0]


def test_waiting_is_found() -> None:
    report = fuzz(_of(lambda _: time.sleep(0.02)), 2000, seed=1, max_input_s=0.001)
    assert "took" in report.violations[0]


def test_a_leak_is_found() -> None:
    kept = []

    def run(_: bytes) -> None:
        kept.append(bytearray(b"x") * 2048)

    report = fuzz(_of(run), 20_000, seed=1)
    assert "memory grew" in report.violations[0]
