"""Streams of decoupled models: the mesh on fake workers that keep to their credit, in virtual time."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from roost.core.errors import Code, DeadlineExceeded, Internal, ResourceExhausted, RoostError, Unavailable
from roost.core.requests import InferResponse
from roost.router.revision import Revision
from roost.router.streams import WINDOW

from tests.unit.mesh_fakes import Bed, Sent, bed, worker_of
from tests.virtual_time import settle, virtual

pytestmark = pytest.mark.filterwarnings("error")


async def responses(on: Bed, pending: Sent) -> AsyncGenerator[InferResponse, None]:
    """Takes a stream as the router does."""
    assert pending.stream is not None
    try:
        final = False
        while not final:
            response = await pending.stream.take()
            final = response.final
            yield response
    finally:
        if not pending.future.done():
            pending.cancel()
        pending.stream.close()


def first_byte(response: InferResponse) -> int:
    return memoryview(response.outputs[0].data)[0]


async def outcome_of(stream: AsyncGenerator[InferResponse, None]) -> tuple[list[int], RoostError | None]:
    """The first bytes of all responses that have outputs, and the error at the end."""
    seen: list[int] = []
    try:
        async with aclosing(stream):
            async for response in stream:
                seen += [first_byte(response)] if response.outputs else []
    except RoostError as error:
        return seen, error
    return seen, None


async def assert_slot_is_free(on: Bed, revision: Revision) -> None:
    """The next request to the model is answered."""
    pending = on.submit(revision)
    await settle()
    on.job(revision).answer()
    assert (await pending.future).final


@virtual
async def test_responses_come_in_order_and_the_last_one_is_final() -> None:
    async with bed() as on:
        a = on.model("a", 10, decoupled=True)
        for with_data in (True, False):
            stream = responses(on, on.submit(a, data=b"\x09"))
            await settle()
            job = on.job(a)
            job.emit()
            job.emit()
            assert [first_byte(await anext(stream)) for _ in range(2)] == [0, 1]
            job.answer() if with_data else job.close()
            last = await anext(stream)
            assert last.final
            assert [first_byte(last)] if with_data else not last.outputs
            assert [item async for item in stream] == []


@virtual
@pytest.mark.parametrize("size_bytes", [1, WINDOW.bytes // 4, WINDOW.bytes * 3])
async def test_a_consumer_that_takes_everything_never_stops_the_worker(size_bytes: int) -> None:
    async with bed() as on:
        a = on.model("a", 10, decoupled=True)
        stream = responses(on, on.submit(a))
        await settle()
        job = on.job(a)
        taken = 0
        for _ in range(100):
            assert job.emit(size_bytes)
            while job.emit(size_bytes):
                pass
            while taken < job.emitted:
                assert first_byte(await anext(stream)) == taken % 256
                taken += 1
        job.close()
        assert (await anext(stream)).final
        await stream.aclose()


@virtual
@pytest.mark.parametrize(("size_bytes", "most"), [(1, WINDOW.responses), (WINDOW.bytes // 4, 4), (WINDOW.bytes * 3, 1)])
async def test_a_stream_that_nobody_takes_stops_its_worker_until_the_deadline(size_bytes: int, most: int) -> None:
    async with bed() as on:
        a = on.model("a", 10, decoupled=True)
        stream = responses(on, on.submit(a, timeout_s=30))
        await settle()
        job = on.job(a)
        while job.emit(size_bytes):
            pass
        assert job.emitted == most
        await asyncio.sleep(29)
        assert not on.job(a).cancelled
        await asyncio.sleep(2)
        assert job.cancelled
        job.fail(RoostError("cancelled"))
        seen, error = await outcome_of(stream)
        assert seen == list(range(most))
        assert isinstance(error, DeadlineExceeded)
        await assert_slot_is_free(on, a)


@virtual
@pytest.mark.parametrize("blocked", [False, True])
async def test_a_consumer_that_leaves_ends_the_run_and_the_slot_is_free_when_it_has_ended(blocked: bool) -> None:
    async with bed() as on:
        a = on.model("a", 10, decoupled=True)
        stream = responses(on, on.submit(a))
        await settle()
        job = on.job(a)
        while job.emit() and blocked:
            pass
        await anext(stream)
        await stream.aclose()
        assert job.cancelled
        waiting = on.submit(a)
        await settle()
        assert on.farm.jobs == [job]
        job.emit()  # it was on its way
        job.fail(RoostError("cancelled"))
        await settle()
        on.job(a).answer()
        assert (await waiting.future).final


@virtual
async def test_a_consumer_that_leaves_before_the_run_leaves_the_queue() -> None:
    async with bed() as on:
        a = on.model("a", 10, decoupled=True)
        first = on.submit(a)
        stream = responses(on, on.submit(a))
        task = asyncio.ensure_future(anext(stream))
        await settle()
        task.cancel()
        await settle()
        assert len(a.queue) == 0
        on.job(a).answer()
        await first.future


@virtual
async def test_a_model_that_fails_after_two_responses() -> None:
    async with bed() as on:
        a = on.model("a", 10, decoupled=True)
        pending = on.submit(a)
        await settle()
        job = on.job(a)
        job.emit()
        job.emit()
        job.fail(Internal("broken"))
        seen, error = await outcome_of(responses(on, pending))
        assert (seen, error and error.message) == ([0, 1], "broken")
        await assert_slot_is_free(on, a)


@virtual
@pytest.mark.parametrize("emitted", [0, 1])
async def test_a_lost_worker_ends_its_streams_and_none_of_them_runs_twice(emitted: int) -> None:
    async with bed(workers=2) as on:
        a = on.model("a", 10, decoupled=True)
        pending = on.submit(a)
        await settle()
        job = on.job(a)
        job.start()
        for _ in range(emitted):
            job.emit()
        worker_of(a).kill()
        seen, error = await outcome_of(responses(on, pending))
        assert seen == [0][:emitted]
        assert isinstance(error, Unavailable)
        await settle()
        assert not on.farm.jobs
        await assert_slot_is_free(on, a)


@virtual
async def test_a_stream_that_had_not_begun_runs_on_the_next_worker_with_all_its_credit() -> None:
    async with bed() as on:
        a = on.model("a", 10, decoupled=True)
        pending = on.submit(a)
        await settle()
        on.process_of(a).end(-signal.SIGKILL)
        await asyncio.sleep(1)
        job = on.job(a)
        while job.emit():
            pass
        job.close()
        seen, error = await outcome_of(responses(on, pending))
        assert (len(seen), error) == (WINDOW.responses, None)


@virtual
async def test_a_response_that_there_is_no_memory_for_ends_the_run() -> None:
    async with bed() as on:
        a = on.model("a", 10, decoupled=True)
        pending = on.submit(a)
        await settle()
        job = on.job(a)
        job.emit()
        job.process.listener.on_response_refused(job.number, ResourceExhausted("no memory"))
        assert job.cancelled
        seen, error = await outcome_of(responses(on, pending))
        assert (seen, error and error.code) == ([0], Code.RESOURCE_EXHAUSTED)
        waiting = on.submit(a)
        await settle()
        assert on.farm.jobs == [job], "its slot is not free before the worker has said so"
        job.fail(RoostError("cancelled"))
        await settle()
        on.job(a).answer()
        await waiting.future


@virtual
async def test_a_worker_that_streams_what_is_not_decoupled_fails_that_request_alone() -> None:
    async with bed() as on:
        a = on.model("a", 10)
        pending = on.submit(a)
        await settle()
        job = on.job(a)
        job.emit()
        with pytest.raises(Internal, match="not decoupled"):
            await pending.future
        assert job.cancelled
        job.answer()
        await assert_slot_is_free(on, a)


@virtual
async def test_ten_thousand_responses() -> None:
    async with bed() as on:
        a = on.model("a", 10, decoupled=True)
        stream = responses(on, on.submit(a))
        await settle()
        job = on.job(a)
        taken = 0
        async with aclosing(stream), asyncio.timeout(3600):
            while taken < 10_000:
                while job.emit():
                    pass
                first_byte(await anext(stream))
                taken += 1
        job.fail(RoostError("cancelled"))
        await assert_slot_is_free(on, a)
