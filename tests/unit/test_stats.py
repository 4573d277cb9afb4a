"""Counters of requests, runs and responses: what a revision is told, and what outlives it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from roost.core.errors import (
    Code,
    DeadlineExceeded,
    Internal,
    Limit,
    NotFound,
    ResourceExhausted,
    RoostError,
    Unavailable,
    error_of,
)
from roost.core.errors import limit_of as limit
from roost.core.frames import Response, StepTimes, WireTensor
from roost.core.requests import RequestContext
from roost.core.statistics import BatchStatistics, ModelStatistics, StatisticDuration
from roost.router.models import Version
from roost.router.outcomes import OUTCOME_OF_CODE, OUTCOME_OF_LIMIT, Outcome, outcome_of
from roost.router.records import note_steps, record_of
from roost.router.responses import FIRST_RESPONSE_MS, POSITIONS, Kind, ResponseStats
from roost.router.revision import Revision
from roost.router.states import Availability
from roost.router.statistics import statistics
from roost.router.stats import LOAD_HALF_LIFE_S, NOTHING, Stats
from roost.router.traffic import Traffic

from tests.unit.mesh_fakes import Bed, bed
from tests.virtual_time import settle, virtual

STEPS = StepTimes(1_000, 1_400, 1_400, 3_400, 3_400, 3_500)  # 400 ns, 2,000 ns, 100 ns


def context(*, queued_s: float = 0.001, run: StepTimes | None = None, waited_s: float = 0.0) -> RequestContext:
    """Of a request that came now."""
    now = time.monotonic()
    made = RequestContext(now, served_by=("m", "1"), queued=now + queued_s)
    if run is not None:
        began_ns = int((now + queued_s + waited_s) * 1e9) - run.input_start
        note_steps(made, StepTimes(*(began_ns + ns for ns in vars_of(run))))
    return made


def vars_of(times: StepTimes) -> tuple[int, ...]:
    return (
        times.input_start,
        times.input_end,
        times.infer_start,
        times.infer_end,
        times.output_start,
        times.output_end,
    )


def test_the_tables_of_outcomes_are_total() -> None:
    assert set(OUTCOME_OF_CODE) == set(Code)
    assert set(OUTCOME_OF_LIMIT) == set(Limit)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ResourceExhausted("", limit=Limit.QUEUE_FULL), Outcome.REJECTED),
        (error_of(Code.RESOURCE_EXHAUSTED, "the worker has no memory"), Outcome.REJECTED),
        (DeadlineExceeded("it waited", limit=Limit.DEADLINE), Outcome.REJECTED),
        (DeadlineExceeded("it was running", limit=Limit.RUN_DEADLINE), Outcome.OTHER),
        (error_of(Code.CANCELLED, ""), Outcome.CANCELED),
        (error_of(Code.INTERNAL, "the model failed"), Outcome.BACKEND),
        (Unavailable("the worker was lost"), Outcome.BACKEND),
        (Unavailable("the server is stopping", limit=Limit.DRAINING), Outcome.REJECTED),
        (error_of(Code.INVALID_ARGUMENT, ""), Outcome.OTHER),
    ],
)
def test_outcomes(error: RoostError, outcome: Outcome) -> None:
    assert outcome_of(error.code, limit(error)) is outcome


@pytest.mark.parametrize("code", Code)
def test_no_refusal_goes_without_a_limit(code: Code) -> None:
    has_limit = limit(error_of(code, "from a worker")) is not None
    assert has_limit == (code in (Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED))


def test_a_record_has_the_parts_of_a_request() -> None:
    record = record_of(context(run=STEPS, waited_s=0.02), None)
    assert (record.name, record.version, record.code, record.limit) == ("m", "1", None, None)
    parts = (record.preprocess_s, record.queue_s, record.input_s, record.infer_s, record.output_s)
    assert parts == pytest.approx((0.001, 0.02, 400e-9, 2000e-9, 100e-9), abs=50e-9)
    assert record.compute_s == pytest.approx(2500e-9, abs=50e-9)
    assert sum(parts) + record.postprocess_s == pytest.approx(record.total_s)


def test_waiting_for_a_load_is_no_waiting_for_a_slot() -> None:
    made = context(run=STEPS, waited_s=0.5)
    made.load_wait_s = 0.3
    record = record_of(made, None)
    assert (record.queue_s, record.load_wait_s) == pytest.approx((0.2, 0.3), abs=1e-6)


def test_a_refused_request_has_no_steps() -> None:
    record = record_of(context(), ResourceExhausted("", limit=Limit.QUEUE_FULL))
    assert (record.code, record.limit) == (Code.RESOURCE_EXHAUSTED, Limit.QUEUE_FULL)
    assert (record.queue_s, record.compute_s, record.postprocess_s) == (0, 0, 0)
    assert record_of(RequestContext(time.monotonic()), Code.CANCELLED).preprocess_s >= 0


def test_refusals_are_counted_by_limit() -> None:
    stats = Stats()
    stats.record(record_of(context(), ResourceExhausted("", limit=Limit.QUEUE_FULL)))
    stats.record(record_of(context(), error_of(Code.DEADLINE_EXCEEDED, "")))
    stats.record(record_of(context(), error_of(Code.INVALID_ARGUMENT, "")))
    assert {limit: count for limit, count in stats.refusals.items() if count} == {
        Limit.QUEUE_FULL: 1,
        Limit.DEADLINE: 1,
    }
    assert set(stats.refusals) == set(Limit)


def test_a_new_revision_starts_at_zero_and_the_counters_go_on() -> None:
    stats = Stats()
    own = stats.of("m", "1")
    own.restart()
    own.ran(4, STEPS)
    stats.record(record_of(context(run=STEPS), None))
    stats.record(record_of(context(), error_of(Code.INTERNAL, "")))
    assert own.since_restart()[:1] == (1,)
    own.restart()
    assert own.since_restart() == NOTHING
    assert own.batches() == []
    assert own.last_at == 0
    own.ran(2, STEPS)
    stats.record(record_of(context(run=STEPS), None))
    counted = own.since_restart()
    assert (counted.success, counted.failures, counted.rows, counted.executions) == (1, (0, 0, 0, 0), 2, 1)
    assert (own.ok, own.errors, own.rows, own.executions) == (2, {Code.INTERNAL: 1}, 6, 2)


def test_batches_by_size() -> None:
    own = Stats().of("m", "1")
    for rows in (8, 1, 8, 2):
        own.ran(rows, STEPS)
    assert [list(batch) for batch in own.batches()] == [
        [1, 1, 400, 2000, 100],
        [2, 1, 400, 2000, 100],
        [8, 2, 800, 4000, 200],
    ]
    assert (own.rows, own.executions) == (19, 4)


def test_responses_by_position() -> None:
    own, made = Stats().of("m", "1"), context()
    for start, end in ((1_000, 2_000), (5_000, 5_500)):
        response = Response([WireTensor("OUT", "INT32", (1,), b"1234")], times=StepTimes(0, 0, 0, start, start, end))
        own.responded(made, response)
        note_steps(made, response.times)
    own.responded(made, Response([], times=StepTimes(0, 0, 0, 5_500, 5_500, 6_000)))
    own.stream_failed(made, cancelled=True)
    assert own.responses is not None
    first, second, third = own.responses.by_position().values()
    assert (first.compute_infer, first.compute_output) == (StatisticDuration(1, 1_000), StatisticDuration(1, 1_000))
    # The second one began when the first one was sent.
    assert (second.compute_infer, second.success) == (StatisticDuration(1, 3_000), StatisticDuration(1, 3_500))
    assert third.empty_response == StatisticDuration(1, 500)
    assert (third.cancel.count, third.fail.count, third.success.count) == (1, 0, 0)
    assert sum(own.responses.first_counts) == 1


def test_positions_are_bounded() -> None:
    responses = ResponseStats()
    for position in range(1000):
        responses.responded(position, 1, 1)
    responses.ended(5000, Kind.FAIL, 1)
    shown = responses.by_position()
    assert list(shown) == [str(position) for position in range(POSITIONS + 1)]
    assert (shown[str(POSITIONS)].success.count, shown[str(POSITIONS)].fail.count) == (1000 - POSITIONS, 1)


def test_first_responses_by_time() -> None:
    responses = ResponseStats()
    for took_s in (0.1, 0.2, 60.0):
        responses.first(took_s)
    assert dict(zip((*FIRST_RESPONSE_MS, "more"), responses.first_counts, strict=True)) == {
        100: 1,
        500: 1,
        2000: 0,
        5000: 0,
        "more": 1,
    }


async def ask(on: Bed, revision: Revision) -> None:
    """A request as the router and the data plane treat it."""
    if not revision.used:
        on.mesh.begin_use(revision)
    await on.make_resident(revision)
    request = on.sent[-1].pending.request
    request.context.served_by = (revision.key.name, revision.key.version)
    on.stats.record(record_of(request.context, None))


async def show(on: Bed, name: str = "", version: str = "") -> list[ModelStatistics]:
    return await statistics(on.catalog, Traffic(), on.stats, name, version)


@virtual
async def test_statistics_outlive_an_eviction() -> None:
    async with bed(100) as on:
        on.farm.run_ns = 1
        a, b, unused = on.model("a", 60), on.model("b", 60), on.model("unused", 10)
        await ask(on, a)
        (before,) = await show(on)
        assert before.memory_usage[0].byte_size == 60
        await on.make_resident(b)
        assert on.farm.models() == ["b"]
        (after,) = await show(on, "a")
        assert after.memory_usage[0].byte_size == 0
        assert (after.inference_stats, after.batch_stats) == (before.inference_stats, before.batch_stats)
        assert after.inference_stats.success.count == after.inference_stats.queue.count == 1
        assert after.batch_stats == (
            BatchStatistics(1, StatisticDuration(1, 1), StatisticDuration(1, 1), StatisticDuration(1, 1)),
        )
        assert [s.name for s in await show(on)] == ["a"], "only what was used"
        (never,) = await show(on, unused.key.name, "1")
        assert (never.inference_count, never.last_inference_ms, never.inference_stats.fail.count) == (0, 0, 0)


@virtual
async def test_a_revision_that_takes_over_starts_anew() -> None:
    async with bed(100) as on:
        await ask(on, on.model("a", 10))
        new = on.model("a", 10)
        on.mesh.retire(on.revisions[0])
        assert await show(on) == []
        assert [s.inference_stats.success.count for s in await show(on, "a")] == [0]
        await ask(on, new)
        assert [s.inference_stats.success.count for s in await show(on)] == [1]
        assert on.stats.of("a", "1").ok == 2
        on.mesh.retire(new)
        await settle()
        assert await show(on) == []


@virtual
async def test_statistics_of_what_is_not_there() -> None:
    async with bed(100) as on:
        on.model("a", 10)
        for name, version, text in (
            ("b", "", "requested model 'b' is not available"),
            ("b", "1", "requested model 'b' is not available"),
            ("a", "2", "requested model 'a' version 2 is not available"),
        ):
            with pytest.raises(NotFound) as caught:
                await show(on, name, version)
            assert caught.value.message == text


@virtual
async def test_statistics_are_sorted_by_name_and_number() -> None:
    async with bed(100) as on:
        for name in ("b", "a"):
            revision = on.model(name, 1)
            model = on.catalog.present(name)
            assert model is not None
            for number in ("10", "9"):
                other = replace(revision, key=revision.key._replace(version=number))
                model.versions[number] = Version(other, Availability.READY)
        for model_version in ("1", "9", "10"):
            for name in ("a", "b"):
                model = on.catalog.present(name)
                assert model is not None
                on.mesh.begin_use(model.versions[model_version].revision)
        shown = [(s.name, s.version) for s in await show(on)]
        assert shown == [(name, version) for name in "ab" for version in ("1", "9", "10")]
        assert [s.version for s in await show(on, "a")] == ["1", "9", "10"]


@virtual
async def test_streams_are_counted_by_what_became_of_them() -> None:
    async with bed(100) as on:
        a = on.model("a", 10, decoupled=True)
        on.mesh.begin_use(a)
        failed = on.submit(a)
        await settle()
        on.job(a).fail(Internal("the model failed"))
        gone = on.submit(a)
        await settle()
        gone.cancel()
        await settle()
        on.answer_all()
        await settle()
        assert failed.future.done()
        (shown,) = await show(on, "a")
        assert (shown.response_stats["0"].fail.count, shown.response_stats["0"].cancel.count) == (1, 1)


def test_a_load_that_was_slow_once_is_forgiven_with_time() -> None:
    stats = Stats()
    assert stats.expected_load_s("m", "1", 0.0) == 0.0
    stats.loaded("m", "1", 80.0, 100.0)
    assert stats.expected_load_s("m", "1", 100.0) == 80.0
    assert stats.expected_load_s("m", "1", 100.0 + LOAD_HALF_LIFE_S) == pytest.approx(40.0)
    stats.loaded("m", "1", 2.0, 500.0)
    assert stats.expected_load_s("m", "1", 500.0) == 2.0
