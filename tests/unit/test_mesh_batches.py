"""Batches: the mesh on fake workers, in virtual time. A byte is a row, and the answer to it is the same byte."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from roost.core.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    RoostError,
    Unavailable,
)
from roost.core.frames import WireTensor
from roost.core.requests import InferRequest, RequestContext, RequestedOutput
from roost.core.tensors import Signature, Tensor, TensorSpec, pack_bytes
from roost.proto import model_config_pb2 as mc
from roost.router.revision import Revision
from roost.router.statistics import statistics
from roost.router.traffic import Traffic

from tests.unit.mesh_fakes import Bed, Sent, bed
from tests.virtual_time import settle, virtual

pytestmark = pytest.mark.filterwarnings("error")


async def resident(on: Bed, batch: int = 4, *, name: str = "a", **config: Any) -> Revision:
    """A model that batches and is loaded; nothing is known of how long it takes."""
    revision = on.model(name, 10, batch=batch, **config)
    await on.mesh.loader.bring(revision)
    return revision


def sent_data(on: Bed) -> list[bytes]:
    """The rows of all runs that have no answer yet."""
    return [job.data for job in on.farm.jobs]


async def outcome(sent: Sent) -> bytes | type[RoostError]:
    try:
        return bytes((await sent.future).outputs[0].data)
    except RoostError as error:
        return type(error)


async def outcomes(*sent: Sent) -> list[bytes | type[RoostError]]:
    return [await outcome(one) for one in sent]


# How batches form


@virtual
async def test_what_comes_together_goes_together_and_what_comes_later_fills_the_next() -> None:
    async with bed(slots=4) as on:
        a = await resident(on)
        first = [on.submit(a, data=data) for data in (b"a", b"bc")]
        await settle()
        assert sent_data(on) == [b"abc"]
        later = [on.submit(a, data=data) for data in (b"d", b"ef", b"g", b"h")]
        await settle()
        assert sent_data(on) == [b"abc"], "one batch at a time"
        on.answer_all()
        assert sent_data(on) == [b"defg"], "it goes at once, and as full as it gets"
        on.answer_all()
        assert sent_data(on) == [b"h"]
        on.answer_all()
        assert await outcomes(*first, *later) == [b"a", b"bc", b"d", b"ef", b"g", b"h"]
        assert (on.stats.of("a", "1").executions, on.stats.of("a", "1").rows) == (3, 8)


@virtual
async def test_a_model_without_batches_gets_one_request_at_a_time() -> None:
    async with bed(slots=2) as on:
        a = await resident(on, batch=0)
        sent = [on.submit(a, data=data) for data in (b"ab", b"c", b"d")]
        await settle()
        assert sent_data(on) == [b"ab", b"c"]
        on.answer_all()
        on.answer_all()
        assert await outcomes(*sent) == [b"ab", b"c", b"d"]


@virtual
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_as_many_batches_at_once_as_there_are_instances(count: int) -> None:
    async with bed(slots=4) as on:
        a = await resident(on, batch=1 << 10, instance_group=[{"count": count}])
        for number in range(5):
            on.submit(a, data=bytes([number]))
            await settle()
        assert len(on.farm.jobs) == count
        on.answer_all()
        on.answer_all()


@virtual
async def test_one_more_goes_ahead_if_it_is_no_smaller_and_all_is_over_in_an_instant() -> None:
    async with bed(slots=4) as on:
        on.farm.run_ns = 100_000
        a = await resident(on, batch=4)
        await outcomes(*await answered(on, a, b"a", b"a"))
        on.submit(a, data=b"ab")
        await settle()
        on.submit(a, data=b"c")
        await asyncio.sleep(0.0005)
        assert sent_data(on) == [b"ab"], "a small one waits for company as long as the device is busy"
        on.submit(a, data=b"d")
        on.submit(a, data=b"e")
        await settle()
        assert sent_data(on) == [b"ab", b"cde"]
        on.submit(a, data=b"fghi")
        await settle()
        assert len(on.farm.jobs) == 2
        on.answer_all()
        on.answer_all()


async def answered(on: Bed, revision: Revision, *data: bytes) -> list[Sent]:
    """Sends requests one after the other, and answers each."""
    sent = []
    for one in data:
        sent.append(on.submit(revision, data=one))
        await settle()
        on.answer_all()
        await asyncio.sleep(0.01)
    return sent


@virtual
async def test_short_runs_may_wait_in_the_worker_but_not_behind_one_that_is_overdue() -> None:
    async with bed(slots=2) as on:
        on.farm.most_runs = 16
        on.farm.run_ns = 100_000
        a = await resident(on, batch=0)
        await answered(on, a, b"a", b"a")
        for _ in range(30):
            on.submit(a)
        await settle()
        assert len(on.farm.jobs) == 16
        await asyncio.sleep(0.01)
        on.farm.jobs[-1].answer()
        assert len(on.farm.jobs) == 15, "those that are there take much longer than was expected"
        for _ in range(30):
            on.answer_all()
            await settle()


@virtual
async def test_short_runs_do_not_keep_a_long_one_from_its_slot_for_ever() -> None:
    async with bed(max_queue=5000) as on:
        on.farm.most_runs = 16
        on.farm.run_ns = 100_000
        a, b = await resident(on, batch=0), await resident(on, batch=0, name="b")
        await answered(on, a, b"a", b"a")
        for _ in range(3):
            on.submit(a)
        await settle()
        long = on.submit(b, data=b"b")
        for _ in range(20):
            on.submit(a)
            on.submit(a)
            await settle()
            on.farm.jobs[0].answer()
            if long.future.done():
                break
        assert await outcome(long) == b"b"
        for _ in range(60):
            on.answer_all()
            await settle()


@virtual
async def test_who_is_due_first_goes_first_and_equals_in_their_order() -> None:
    async with bed() as on:
        a = await resident(on, batch=2)
        on.submit(a, data=b"..")
        await settle()
        for data, timeout_s in ((b"a", 9.0), (b"b", 5.0), (b"c", 9.0), (b"d", 5.0), (b"e", 70.0), (b"f", 9.0)):
            on.submit(a, data=data, timeout_s=timeout_s)
        on.submit(a, data=b"g")  # has all the time in the world, and is not overtaken for ever
        order = []
        for _ in range(5):
            await settle()
            order += sent_data(on)
            on.answer_all()
        assert order == [b"..", b"bd", b"ac", b"fg", b"e"]


@virtual
async def test_only_what_is_alike_shares_a_batch() -> None:
    async with bed() as on:
        a = await resident(on, batch=8)
        on.submit(a, data=b"x")
        await settle()
        on.submit(a, data=b"a")
        on.submit(a, data=b"b")
        on.submit(a, data=b"c", mode="fast")
        on.submit(a, data=b"d", mode="fast")
        on.submit(a, data=b"e", mode="slow")
        on.submit(a, data=b"f")
        runs = []
        for _ in range(5):
            on.answer_all()
            runs += [(job.data, dict(job.run.parameters)) for job in on.farm.jobs]
        assert runs == [(b"ab", {}), (b"cd", {"mode": "fast"}), (b"e", {"mode": "slow"}), (b"f", {})]


@virtual
async def test_rows_of_other_shapes_and_no_rows_at_all_run_by_themselves() -> None:
    async with bed() as on:
        on.farm.signature = Signature((TensorSpec("x", "UINT8", (-1, -1)),), (TensorSpec("y", "UINT8", (-1, -1)),))
        a = await resident(on, batch=8)
        requests = [(1, 2), (1, 2), (1, 3), (2, 3), (0, 3), (0, 3), (1, 3)]
        for shape in requests:
            tensor = Tensor("x", "UINT8", shape, bytes(shape[0] * shape[1]))
            on.send(a, InferRequest("a", "", RequestContext(time.monotonic()), [tensor]))
        shapes = []
        for _ in range(6):
            await settle()
            shapes += [job.run.inputs[0].shape for job in on.farm.jobs]
            on.answer_all()
        assert shapes == [(2, 2), (3, 3), (0, 3), (0, 3), (1, 3)]


@virtual
async def test_inputs_in_another_order_are_put_in_that_of_the_model() -> None:
    two = Signature((TensorSpec("x", "UINT8", (-1,)), TensorSpec("z", "UINT8", (-1,))), ())
    async with bed() as on:
        on.farm.signature = two
        a = await resident(on, batch=8)
        x, z = Tensor("x", "UINT8", (1,), b"x"), Tensor("z", "UINT8", (1,), b"z")
        for inputs in ([x, z], [z, x]):
            on.send(a, InferRequest("a", "", RequestContext(time.monotonic()), inputs))
        await settle()
        (job,) = on.farm.jobs
        assert [(t.name, t.data) for t in job.run.inputs] == [("x", [b"x", b"x"]), ("z", [b"z", b"z"])]
        job.answer()


# How they are answered


@virtual
async def test_each_gets_the_outputs_that_it_asked_for() -> None:
    async with bed() as on:
        outputs = tuple(TensorSpec(name, "UINT8", (-1,)) for name in "pqr")
        on.farm.signature = Signature((TensorSpec("x", "UINT8", (-1,)),), outputs)
        a = await resident(on, batch=8)
        on.submit(a, data=b"-")
        await settle()

        def send(data: bytes, *names: str) -> Sent:
            wanted = [RequestedOutput(name) for name in names]
            context = RequestContext(time.monotonic())
            return on.send(a, InferRequest("a", "", context, [Tensor("x", "UINT8", (len(data),), data)], wanted))

        sent = [send(b"ab", "q"), send(b"c", "r", "q")]
        on.answer_all()
        (job,) = on.farm.jobs
        assert job.run.outputs == ["q", "r"]
        job.answer_with(WireTensor("q", "UINT8", (3,), b"ABC"), WireTensor("r", "UINT8", (3,), b"123"))
        names = [[(o.name, o.shape, bytes(o.data)) for o in (await one.future).outputs] for one in sent]
        assert names == [[("q", (2, 1), b"AB")], [("r", (1, 1), b"3"), ("q", (1, 1), b"C")]]
        sent = [send(b"a", "q"), send(b"b")]
        await settle()
        (job,) = on.farm.jobs
        assert not job.run.outputs, "one of them wants all"
        job.answer_with(*(WireTensor(name, "UINT8", (2,), b"12") for name in "pqr"))
        assert [[o.name for o in (await one.future).outputs] for one in sent] == [["q"], ["p", "q", "r"]]


@virtual
async def test_strings_are_split_by_elements() -> None:
    async with bed() as on:
        on.farm.signature = Signature((TensorSpec("x", "UINT8", (-1,)),), (TensorSpec("y", "BYTES", (-1, 2)),))
        a = await resident(on, batch=8)
        sent = [on.submit(a, data=data) for data in (b"a", b"bc", b"d")]
        await settle()
        rows = [[b"", b"one"], [b"two", b"\0"], [b"three", b""], [b"4", b"5" * 1000]]
        whole = pack_bytes([element for row in rows for element in row])
        on.job(a).answer_with(WireTensor("y", "BYTES", (4, 2), whole))
        got = [(await one.future).outputs[0] for one in sent]
        assert [tensor.shape for tensor in got] == [(1, 2), (2, 2), (1, 2)]
        expected = [pack_bytes(rows[0]), pack_bytes([*rows[1], *rows[2]]), pack_bytes(rows[3])]
        assert [bytes(tensor.data) for tensor in got] == expected


WRONG = [
    WireTensor("y", "UINT8", (1,), b"a"),
    WireTensor("y", "UINT8", (), b"a"),
    WireTensor("y", "BYTES", (2,), b"\1\0\0\0a\5\0\0\0b"),
    WireTensor("y", "UINT8", (2,), b"abc"),
]


@virtual
@pytest.mark.parametrize("output", WRONG)
async def test_a_model_whose_outputs_are_no_rows_of_the_batch_is_not_batched_again(output: WireTensor) -> None:
    async with bed(slots=4) as on:
        a = await resident(on)
        sent = [on.submit(a, data=data) for data in (b"a", b"b")]
        await settle()
        (job,) = on.farm.jobs
        job.answer_with(output)
        assert sent_data(on) == [b"a", b"b"]
        on.answer_all()
        assert await outcomes(*sent) == [b"a", b"b"]
        assert a.batch_rows == 0
        sent = [on.submit(a, data=data) for data in (b"a", b"b")]
        await settle()
        assert sent_data(on) == [b"a", b"b"]
        on.answer_all()


@virtual
async def test_the_answers_keep_the_order_of_the_requests_if_so_asked() -> None:
    async with bed(slots=4) as on:
        a = await resident(on, batch=2, instance_group=[{"count": 3}], dynamic_batching={"preserve_ordering": True})
        sent = [on.submit(a, data=bytes([n]), timeout_s=5.0 if n == 4 else 9.0 - n / 10) for n in range(6)]
        await settle()
        assert sent_data(on) == [b"\0\1", b"\2\3", b"\4\5"], "deadlines change nothing"
        on.farm.jobs[2].answer()
        on.farm.jobs[1].fail(Cancelled("the worker said so"))
        assert not any(one.future.done() for one in sent)
        on.job(a).answer()
        order = [b"\0", b"\1", Cancelled, Cancelled, b"\4", b"\5"]
        assert await outcomes(*sent) == order


@virtual
async def test_a_request_that_is_over_keeps_nobody_behind_it_waiting() -> None:
    async with bed(slots=4) as on:
        a = await resident(
            on, batch=1 << 4, instance_group=[{"count": 4}], dynamic_batching={"preserve_ordering": True}
        )
        sent = []
        for n in range(4):
            sent.append(on.submit(a, data=bytes([n]), timeout_s=1.0 if n == 0 else 100.0))
            await settle()
        for job in on.farm.jobs[1:]:
            job.answer()
        assert not sent[3].future.done()
        await asyncio.sleep(1.1)
        assert await outcomes(*sent) == [DeadlineExceeded, b"\1", b"\2", b"\3"]
        on.answer_all()
        last = [on.submit(a, data=b"x"), on.submit(a, data=b"y")]
        await settle()
        last[0].cancel()
        on.answer_all()
        assert await outcome(last[1]) == b"y"


@virtual
async def test_very_many_answers_may_wait_for_one_and_not_longer_than_their_deadline() -> None:
    async with bed(slots=2, max_queued_bytes=1 << 20, max_queue=5000) as on:
        a = await resident(on, batch=4096, instance_group=[{"count": 2}], dynamic_batching={"preserve_ordering": True})
        first = on.submit(a, data=b"1")
        await settle()
        others = [on.submit(a, data=b"x") for _ in range(2000)]
        hasty = on.submit(a, data=b"h", timeout_s=2.0)
        await settle()
        on.farm.jobs[1].answer()
        assert not hasty.future.done()
        await asyncio.sleep(2.1)
        assert await outcome(hasty) is DeadlineExceeded
        on.answer_all()
        assert await outcomes(first, *others) == [b"1"] + [b"x"] * 2000


@virtual
async def test_the_order_is_kept_from_the_moment_on_when_that_is_asked_for() -> None:
    async with bed(slots=2) as on:
        a = await resident(on, batch=1, instance_group=[{"count": 2}])
        sent = [on.submit(a, data=bytes([n])) for n in range(3)]
        await settle()
        config = mc.ModelConfig()
        config.CopyFrom(a.description.config)
        config.dynamic_batching.preserve_ordering = True
        a.redescribe(replace(a.description, config=config))
        sent.append(on.submit(a, data=b"\3"))
        on.farm.jobs[1].answer()
        assert not any(one.future.done() for one in sent)
        for _ in range(3):
            await settle()
            on.answer_all()
        assert await outcomes(*sent) == [b"\0", b"\1", b"\2", b"\3"]


@virtual
async def test_a_client_that_takes_its_answer_badly_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async with bed() as on:
        a = await resident(on)
        sent = [on.submit(a, data=data) for data in (b"a", b"b", b"c")]

        def fails(outcome: object) -> None:
            sent[1].future.cancel()
            raise ValueError("a bug of whoever encodes answers")

        sent[1].pending.done = fails
        await settle()
        on.answer_all()
        assert await outcomes(sent[0], sent[2]) == [b"a", b"c"]
        assert "could not be handed over" in caplog.text


@virtual
async def test_an_answer_that_waits_for_its_turn_is_no_run_of_the_next_process() -> None:
    async with bed(slots=2) as on:
        a = await resident(on, batch=1, instance_group=[{"count": 2}], dynamic_batching={"preserve_ordering": True})
        b = await resident(on, batch=1, name="b")
        sent = [on.submit(a, data=bytes([n])) for n in range(2)]
        await settle()
        number = on.farm.jobs[1].number
        on.farm.jobs[1].answer()
        on.process_of(a).end(1)  # which had not begun with the first one
        await asyncio.sleep(1)
        other = on.submit(b, data=b"b")
        await asyncio.sleep(1)
        assert number in {job.number for job in on.farm.jobs}, "numbers begin anew"
        sent[1].cancel()
        assert not any(job.cancelled for job in on.farm.jobs)
        on.answer_all()
        assert await outcomes(sent[0], other) == [b"\0", b"b"]


@virtual
async def test_statistics_count_batches_rows_and_requests() -> None:
    async with bed() as on:
        a = await resident(on, batch=8)
        on.mesh.begin_use(a)
        for sizes in ((1,), (1, 2), (3,), (1, 1, 1), (2, 2, 2)):
            for size in sizes:
                on.submit(a, data=bytes(size))
            await settle()
            on.answer_all()
        (shown,) = await statistics(on.catalog, Traffic(), on.stats, "a", "")
        assert (shown.inference_count, shown.execution_count) == (16, 5)
        assert {batch.batch_size: batch.compute_infer.count for batch in shown.batch_stats} == {1: 1, 3: 3, 6: 1}


# Cancelling, failing, expiring, losing


@virtual
async def test_one_of_a_batch_is_cancelled_and_the_others_are_answered() -> None:
    async with bed() as on:
        a = await resident(on)
        sent = [on.submit(a, data=data) for data in (b"a", b"b", b"c")]
        await settle()
        (job,) = on.farm.jobs
        sent[1].cancel()
        assert not job.cancelled
        job.answer()
        assert await outcomes(sent[0], sent[2]) == [b"a", b"c"]


@virtual
async def test_when_all_of_a_batch_are_cancelled_the_worker_is_told() -> None:
    async with bed() as on:
        a = await resident(on)
        sent = [on.submit(a, data=data) for data in (b"a", b"b")]
        waiting = on.submit(a, data=b"cdef")
        await settle()
        (job,) = on.farm.jobs
        for one in sent:
            assert not job.cancelled
            one.cancel()
        assert job.cancelled
        job.fail(Cancelled("the run was cancelled"))
        on.answer_all()
        assert await outcome(waiting) == b"cdef"


@virtual
@pytest.mark.parametrize("error", [InvalidArgument("bad rows"), Internal("the model failed"), ResourceExhausted("no")])
async def test_a_bad_one_fails_alone(error: RoostError) -> None:
    async with bed() as on:
        a = await resident(on)
        sent = [on.submit(a, data=data) for data in (b"a", b"!", b"c")]
        behind = on.submit(a, data=b"dd")
        await settle()
        on.job(a).fail(error)
        seen = []
        while on.farm.jobs:
            (job,) = on.farm.jobs
            seen.append(job.data)
            job.fail(error) if b"!" in job.data else job.answer()
            await settle()
        assert seen == [b"a", b"!", b"c", b"dd"], "apart and in their order, before those behind them"
        assert await outcomes(*sent, behind) == [b"a", type(error), b"c", b"dd"]


@virtual
@pytest.mark.parametrize("error", [Unavailable("gone"), Cancelled("told so"), DeadlineExceeded("too late")])
async def test_what_is_no_requests_fault_is_not_tried_again(error: RoostError) -> None:
    async with bed() as on:
        a = await resident(on)
        sent = [on.submit(a, data=data) for data in (b"a", b"b")]
        await settle()
        on.job(a).fail(error)
        assert not on.farm.jobs
        assert await outcomes(*sent) == [type(error)] * 2
        first, second = (one.future.exception() for one in sent)
        assert first is not second


@virtual
async def test_programs_are_not_run_again() -> None:
    async with bed() as on:
        a = await resident(on)
        a.is_code = True
        sent = [on.submit(a, data=data) for data in (b"a", b"b")]
        await settle()
        on.job(a).fail(Internal("the model failed"))
        assert not on.farm.jobs
        assert await outcomes(*sent) == [Internal] * 2


@virtual
async def test_programs_are_batched_if_their_configuration_says_so() -> None:
    async with bed() as on:
        silent = on.model("silent", 10, batch=4, backend="python")
        spoken = on.model("spoken", 10, batch=4, backend="python", dynamic_batching=mc.ModelDynamicBatching())
        assert (silent.limits.max_rows, spoken.limits.max_rows) == (0, 4)


@virtual
async def test_a_program_leaves_slots_for_others() -> None:
    async with bed(slots=8) as on:
        hangs, other = await resident(on, 0), await resident(on, 0, name="b")
        hangs.is_code = True
        stuck = [on.submit(hangs) for _ in range(9)]
        await settle()
        assert len(on.farm.jobs) == 2
        served = on.submit(other)
        await settle()
        on.job(other).answer()
        assert await outcome(served) == b"1234"
        while on.farm.jobs:
            assert len(on.farm.jobs) <= 2
            on.farm.jobs[0].answer()
            await settle()
        assert await outcomes(*stuck) == [b"1234"] * 9


@virtual
async def test_a_deadline_comes_in_the_middle_of_a_batch() -> None:
    async with bed() as on:
        a = await resident(on)
        sent = [on.submit(a, data=data, timeout_s=t) for data, t in ((b"a", 1.0), (b"b", 2.0), (b"c", 9.0))]
        await settle()
        (job,) = on.farm.jobs
        assert job.run.deadline_ns == pytest.approx((time.monotonic() + 9.0) * 1e9, rel=1e-6)
        await asyncio.sleep(1.1)
        assert [one.future.done() for one in sent] == [True, False, False]
        await asyncio.sleep(1.0)
        assert [one.future.done() for one in sent] == [True, True, False]
        assert not job.cancelled
        job.answer()
        assert await outcomes(*sent) == [DeadlineExceeded, DeadlineExceeded, b"c"]


@virtual
async def test_a_batch_of_a_killed_worker_that_had_not_begun_is_sent_again_in_order_and_once() -> None:
    async with bed(slots=4) as on:
        a = await resident(on, instance_group=[{"count": 2}])
        sent = [on.submit(a, data=bytes([n])) for n in range(10)]
        await settle()
        assert sent_data(on) == [b"\0\1\2\3", b"\4\5\6\7"]
        sent[2].cancel()
        on.farm.jobs[1].start()
        on.process_of(a).end(1)
        assert await outcomes(*sent[4:8]) == [Unavailable] * 4
        await asyncio.sleep(1)
        assert sent_data(on) == [b"\0\1\3\10", b"\11"]
        on.process_of(a).end(1)
        await asyncio.sleep(1)
        assert sent_data(on) == [b"\10\11"]
        on.answer_all()
        assert await outcomes(sent[0], sent[1], sent[3]) == [Unavailable] * 3
        assert await outcomes(sent[8], sent[9]) == [b"\10", b"\11"]


# More work than time


async def known_pace(on: Bed, revision: Revision, run_s: float) -> None:
    """Lets the mesh learn how long a batch takes, however large it is."""
    on.farm.run_ns = round(run_s * 1e9)
    for number in range(8):
        on.submit(revision, data=bytes(1 + number % 4))
        await asyncio.sleep(0.01)
        on.answer_all()


@virtual
async def test_who_can_not_be_served_in_time_is_refused_at_once() -> None:
    async with bed() as on:
        a = await resident(on)
        await known_pace(on, a, 1.0)
        on.submit(a, data=b"...", timeout_s=30.0)
        await settle()
        waiting = [on.submit(a, data=b"xxxx", timeout_s=2.8) for _ in range(1)]
        with pytest.raises(DeadlineExceeded, match="would expire"):
            on.submit(a, data=b"y", timeout_s=2.8)
        on.submit(a, data=b"z", timeout_s=9.0)
        for _ in range(3):
            await settle()
            on.answer_all()
        assert await outcomes(*waiting) == [b"xxxx"]


@virtual
async def test_who_waits_too_long_is_refused_when_it_is_too_late_and_not_at_the_end() -> None:
    async with bed() as on:
        a = await resident(on)
        await known_pace(on, a, 0.5)
        on.submit(a, data=b"....")  # and it takes much longer
        await settle()
        late, later = (on.submit(a, data=b"a", timeout_s=t) for t in (0.8, 1.3))
        await settle()
        assert await outcome(late) is DeadlineExceeded, "what runs is not over before"
        await asyncio.sleep(0.75)
        assert not later.future.done()
        await asyncio.sleep(0.1)
        assert await outcome(later) is DeadlineExceeded
        on.answer_all()


@virtual
async def test_a_prediction_is_not_believed_for_ever() -> None:
    async with bed() as on:
        a = await resident(on)
        await known_pace(on, a, 5.0)
        refused = on.submit(a, data=b"a", timeout_s=1.0)
        await settle()
        assert await outcome(refused) is DeadlineExceeded
        await asyncio.sleep(1)
        tried = on.submit(a, data=b"a", timeout_s=1.0)
        await settle()
        on.answer_all()
        assert await outcome(tried) == b"a"


@virtual
async def test_one_that_is_much_larger_than_all_others_is_not_refused_for_what_they_took() -> None:
    async with bed(max_queued_bytes=1 << 20) as on:
        a = await resident(on)
        on.farm.run_ns = 10_000_000
        await answered(on, a, b"a", b"a", b"a")
        large = on.submit(a, data=bytes(50_000), timeout_s=1.0)
        await settle()
        on.answer_all()
        assert await outcome(large) == bytes(50_000)


# Triton's knobs


@virtual
async def test_the_delay_is_waited_for_company_and_no_longer() -> None:
    async with bed() as on:
        a = await resident(on, dynamic_batching={"max_queue_delay_microseconds": 500_000})
        on.submit(a, data=b"a")
        await asyncio.sleep(0.3)
        on.submit(a, data=b"b")
        await asyncio.sleep(0.1)
        assert not on.farm.jobs
        await asyncio.sleep(0.2)
        assert sent_data(on) == [b"ab"]
        on.answer_all()
        on.submit(a, data=b"cdef")
        await settle()
        assert sent_data(on) == [b"cdef"], "a full one waits for nobody"
        on.answer_all()


def levels(**more: Any) -> dict[str, Any]:
    return {"dynamic_batching": {"priority_levels": 3, "default_priority_level": 2, **more}}


@virtual
async def test_priorities() -> None:
    async with bed() as on:
        a = await resident(on, batch=2, **levels())
        on.submit(a, data=b"..")
        await settle()
        for data, priority in ((b"a", 3), (b"b", 0), (b"c", 1), (b"d", 9), (b"e", 1), (b"f", 2)):
            on.submit(a, data=data, priority=priority)
        order = []
        for _ in range(4):
            on.answer_all()
            order += sent_data(on)
        assert order == [b"ce", b"bd", b"fa"]


@virtual
async def test_a_level_may_be_full() -> None:
    async with bed() as on:
        policies = {"default_queue_policy": {"max_queue_size": 2}, "priority_queue_policy": {1: {"max_queue_size": 1}}}
        a = await resident(on, batch=2, **levels(**policies))
        on.submit(a, data=b"..")
        await settle()
        for data, priority in ((b"a", 1), (b"b", 2), (b"c", 2), (b"d", 3)):
            on.submit(a, data=data, priority=priority)
        for priority in (1, 2):
            with pytest.raises(ResourceExhausted, match="Exceeds maximum queue size"):
                on.submit(a, data=b"x", priority=priority)
        for _ in range(3):
            on.answer_all()
            await settle()


@virtual
@pytest.mark.parametrize(("override", "asked_s", "waits_s"), [(False, 0.0, 1.0), (False, 0.5, 1.0), (True, 0.5, 0.5)])
async def test_a_level_has_a_timeout_for_what_waits(override: bool, asked_s: float, waits_s: float) -> None:
    policy = {"default_timeout_microseconds": 1_000_000, "allow_timeout_override": override}
    async with bed(request_timeout_s=60.0) as on:
        a = await resident(on, batch=2, dynamic_batching={"default_queue_policy": policy})
        running = on.submit(a, data=b"..")
        await settle()
        now = time.monotonic()
        context = RequestContext(now, now + (asked_s or 60.0), timeout_s=asked_s)
        waiting = on.send(a, InferRequest("a", "", context, [Tensor("x", "UINT8", (1,), b"a")]))
        await asyncio.sleep(waits_s - 0.1)
        assert not waiting.future.done()
        await asyncio.sleep(0.2)
        assert await outcome(waiting) is DeadlineExceeded
        await asyncio.sleep(10)
        on.answer_all()
        assert await outcome(running) == b"..", "it is over with waiting when it runs"


@virtual
async def test_what_has_waited_too_long_goes_last_if_so_configured() -> None:
    policy = {"default_timeout_microseconds": 1_000_000, "timeout_action": "DELAY"}
    async with bed() as on:
        a = await resident(on, batch=1 << 3, dynamic_batching={"default_queue_policy": policy})
        on.submit(a, data=b".")
        await settle()
        on.submit(a, data=b"a" * 8)
        await asyncio.sleep(1.5)
        on.submit(a, data=b"b" * 8)
        order = []
        for _ in range(3):
            on.answer_all()
            order += sent_data(on)
            await settle()
        assert order == [b"b" * 8, b"a" * 8]
