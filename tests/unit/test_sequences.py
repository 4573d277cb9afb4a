"""Requests of sequences on a mesh of fake workers in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.core.errors import Aborted, DeadlineExceeded, Internal, InvalidArgument, ResourceExhausted, Unavailable
from roost.core.frames import WireTensor
from roost.core.requests import InferRequest, RequestContext, RequestedOutput
from roost.core.tensors import DATATYPES, Signature, Tensor, TensorSpec
from roost.router.inference import Inference
from roost.router.models import Version
from roost.router.revision import Revision
from roost.router.sequencing import Sequencing, draw_of
from roost.router.traffic import Traffic

from tests.unit.mesh_fakes import Bed, FakeProcess, InlineExecutor, Job, bed
from tests.virtual_time import run, settle, virtual

STATE = {"input_name": "sum", "output_name": "next", "data_type": "TYPE_INT32", "dims": [1]}
CONTROLS = [
    {"name": "start", "control": [{"kind": "CONTROL_SEQUENCE_START", "int32_false_true": [0, 1]}]},
    {"name": "ready", "control": [{"kind": "CONTROL_SEQUENCE_READY", "fp32_false_true": [-1, 1]}]},
    {"name": "end", "control": [{"kind": "CONTROL_SEQUENCE_END", "bool_false_true": [False, True]}]},
    {"name": "id", "control": [{"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_UINT64"}]},
]
DATATYPE = {"start": "INT32", "ready": "FP32", "end": "BOOL", "id": "UINT64", "sum": "INT32"}


@dataclass
class Place:
    """Inference on a mesh whose models add up the ``x`` of a sequence."""

    on: Bed
    inference: Inference
    asked: list[asyncio.Task[int]] = field(default_factory=list)
    sums: dict[tuple[FakeProcess, str, int], tuple[int, int]] = field(default_factory=dict)

    def model(
        self,
        name: str = "m",
        size: int = 10,
        *,
        batch: int = 0,
        backend: str = "dummy",
        controls: bool = False,
        state: bool = True,
        decoupled: bool = False,
        **sequences: Any,
    ) -> Revision:
        """Makes a model known that keeps its sums where the server can see them, or inside."""
        lead = (-1,) if batch else ()
        own = [c["name"] for c in CONTROLS] if controls else []
        inputs = [TensorSpec("x", "INT32", (*lead, 1))]
        inputs += [TensorSpec(str(name), DATATYPE[str(name)], (*lead, 1)) for name in own]
        outputs = [TensorSpec("y", "INT32", (*lead, 1))]
        if state:
            inputs.append(TensorSpec("sum", "INT32", (*lead, 1)))
            outputs.append(TensorSpec("next", "INT32", (*lead, 1)))
        self.on.farm.signature = Signature(tuple(inputs), tuple(outputs))
        batching = {"control_input": CONTROLS if controls else [], "state": [STATE] if state else [], **sequences}
        return self.on.model(name, size, batch=batch, backend=backend, decoupled=decoupled, sequence_batching=batching)

    def ask(
        self, id_: Any, x: int = 0, flags: str = "", *, model: str = "m", timeout_s: float = 60.0
    ) -> asyncio.Task[int]:
        """Sends a request; ``s`` in the flags begins a sequence, ``e`` ends it."""
        task = asyncio.create_task(self._answer(request_of(id_, x, flags, model, timeout_s)))
        self.asked.append(task)
        return task

    async def _answer(self, request: InferRequest) -> int:
        response = await self.inference.infer(request)
        (output,) = response.outputs
        assert output.name == "y"
        return int(np.frombuffer(output.data, np.int32)[0])

    def compute(self, job: Job) -> None:
        """Answers a run as the models do, row by row."""
        given = {t.name: np.frombuffer(_joined(t.data), DATATYPES[t.datatype].dtype) for t in job.run.inputs}
        x = given["x"]
        if "sum" in given:
            total = given["sum"] + x
        elif "ready" not in given:
            total = x
        else:
            total = np.zeros_like(x)
            for row in range(len(x)):
                if given["ready"][row] > 0:
                    key, id_ = (job.process, job.model, row), given["id"][row]
                    owner, before = (id_, 0) if given["start"][row] else self.sums[key]
                    assert owner == id_, "a row of another sequence"
                    total[row] = before + x[row]
                    self.sums[key] = owner, int(total[row])
        shape = job.run.inputs[0].shape
        outputs = {"y": total, "next": total} if "sum" in given else {"y": total}
        wanted = job.run.outputs or list(outputs)
        job.answer_with(
            *(WireTensor(name, "INT32", shape, outputs[name].astype(np.int32).tobytes()) for name in wanted)
        )

    def compute_all(self) -> None:
        """Answers what runs now."""
        for job in list(self.on.farm.jobs):
            self.compute(job)

    def compute_soon(self) -> None:
        """From now on runs are answered as they come."""
        loop = asyncio.get_running_loop()
        self.on.farm.on_run = lambda job: cast(None, loop.call_soon(self.compute, job))


def _joined(data: Any) -> bytes:
    return b"".join(bytes(part) for part in data) if isinstance(data, list) else bytes(data)


def request_of(id_: Any, x: int, flags: str, model: str = "m", timeout_s: float = 60.0) -> InferRequest:
    now = time.monotonic()
    parameters = {"sequence_id": id_, "sequence_start": "s" in flags, "sequence_end": "e" in flags}
    shape = (1, 1) if "rows" in model else (1,)
    tensors = [Tensor("x", "INT32", shape, np.int32(x).tobytes())]
    return InferRequest(model, "", RequestContext(now, now + timeout_s), tensors, parameters=parameters)


@asynccontextmanager
async def place(budget: int = 100, *, workers: int = 1, slots: int = 4, **changes: Any) -> AsyncIterator[Place]:
    async with bed(budget, workers=workers, slots=slots, max_queued_bytes=1 << 20, **changes) as on:
        at = Place(on, Inference(on.catalog, on.mesh, Traffic(), InlineExecutor()))
        yield at
        await asyncio.gather(*at.asked, return_exceptions=True)
        await asyncio.sleep(100)  # all sequences end
        for revision in on.revisions:
            assert revision.sequences is None or not len(revision.sequences.table)
        assert (on.mesh.sequence_budget.sequences, on.mesh.sequence_budget.bytes) == (0, 0)


@virtual
async def test_state_goes_from_one_request_to_the_next_and_clients_do_not_see_it() -> None:
    async with place() as at:
        at.model()
        at.compute_soon()
        answers = [at.ask(1, 5, "s"), at.ask(2, 50, "s"), at.ask(1, 6), at.ask(2, 60, "e"), at.ask(1, 7, "e")]
        assert await asyncio.gather(*answers) == [5, 50, 11, 110, 18]
        with pytest.raises(InvalidArgument, match="sequence 1 to model 'm' must specify the START flag"):
            await at.ask(1, 1)
        assert await at.ask(1, 1, "s") == 1
        assert await at.ask("one", 2, "se") == 2


@virtual
async def test_sequences_share_batches_and_each_is_told_where_it_is() -> None:
    async with place() as at:
        at.model("rows", batch=4, controls=True, oldest={"max_candidate_sequences": 3})
        asked = [at.ask(id_, id_ * 10, "s", model="rows") for id_ in (1, 2, 3, 4)]
        asked.append(at.ask(2, 5, "e", model="rows"))
        await settle()
        (job,) = at.on.farm.jobs
        values = {t.name: np.frombuffer(_joined(t.data), DATATYPES[t.datatype].dtype).tolist() for t in job.run.inputs}
        assert values == {
            "x": [10, 20, 30],
            "start": [1, 1, 1],
            "ready": [1.0] * 3,
            "end": [False] * 3,
            "id": [1, 2, 3],
            "sum": [0, 0, 0],
        }
        at.compute(job)
        await settle()
        (job,) = at.on.farm.jobs  # the fourth sequence has no place
        assert [np.frombuffer(_joined(t.data), DATATYPES[t.datatype].dtype).tolist() for t in job.run.inputs] == [
            [5], [0], [1.0], [True], [2], [20],
        ]  # fmt: skip
        at.compute(job)
        await settle()
        at.compute_soon()
        at.compute_all()
        assert await asyncio.gather(*asked) == [10, 20, 30, 40, 25]


@virtual
async def test_rows_of_their_own() -> None:
    async with place() as at:
        revision = at.model("rows", batch=4, controls=True, state=False)
        asked = [at.ask(id_, id_, "s", model="rows") for id_ in (1, 2, 3)]
        await settle()
        at.compute_all()
        assert await asyncio.gather(*asked) == [1, 2, 3]
        last, other = at.ask(3, 10, model="rows"), at.ask(1, 100, model="rows")
        await settle()
        (job,) = at.on.farm.jobs
        ready = {t.name: np.frombuffer(_joined(t.data), DATATYPES[t.datatype].dtype).tolist() for t in job.run.inputs}
        assert (ready["x"], ready["ready"], ready["id"]) == ([100, 0, 10], [1, -1, 1], [1, 0, 3])
        second = at.ask(2, 7, "e", model="rows")  # one run follows the other
        await settle()
        assert at.on.farm.jobs == [job]
        at.compute(job)
        await settle()
        at.compute_all()
        assert list(await asyncio.gather(last, other, second)) == [13, 101, 9]
        fourth = at.ask(4, 4, "s", model="rows")  # gets the row of the second
        gone = at.ask(1, 1, model="rows")
        await settle()
        assert revision.sequences is not None
        assert {sequence.id: sequence.place for sequence in revision.sequences.table} == {1: 0, 3: 2, 4: 1}
        gone.cancel()
        at.compute_all()
        assert await fourth == 4
        late = at.ask(3, 1, model="rows", timeout_s=0.01)
        with pytest.raises(DeadlineExceeded):
            await late
        at.compute_all()


@virtual
async def test_a_copy_that_knows_sequences_stays_until_nobody_has_used_them() -> None:
    async with place(100) as at:
        at.model("a", 60, controls=True, state=False, max_sequence_idle_microseconds=5_000_000)
        at.compute_soon()
        began = time.monotonic()
        assert await at.ask(1, 1, "s", model="a") == 1
        other = at.model("b", 60)
        waits = at.ask(1, 1, "s", model="b")  # there is no room for both
        await asyncio.sleep(4)
        assert not waits.done()
        assert await at.ask(1, 2, model="a") == 3
        assert await waits == 1
        assert time.monotonic() - began == pytest.approx(9, abs=0.1)
        assert at.on.farm.models() == [other.key.name]
        with pytest.raises(InvalidArgument, match="START"):
            await at.ask(1, 2, model="a")


@virtual
async def test_state_that_the_server_keeps_survives_eviction() -> None:
    async with place(100) as at:
        at.model("a", 60, max_sequence_idle_microseconds=60_000_000)
        at.compute_soon()
        assert await at.ask(1, 1, "s", model="a") == 1
        at.model("b", 60)
        assert await at.ask(1, 1, "s", model="b") == 1
        assert at.on.farm.models() == ["b"]
        assert await at.ask(1, 2, "e", model="a") == 3


@pytest.mark.parametrize("state", [True, False])
def test_what_a_lost_worker_leaves_of_sequences(state: bool) -> None:
    """Nothing of a sequence runs twice; it is over if the model knew it, and as before if the server does."""

    async def lose() -> None:
        async with place(workers=2) as at:
            revision = at.model("a", controls=True, state=state, max_sequence_idle_microseconds=60_000_000)
            at.compute_soon()
            assert await at.ask(1, 1, "s", model="a") == 1
            at.on.farm.on_run = lambda job: job.start()
            runs = at.ask(1, 10, model="a")
            await settle()
            waits = at.ask(1, 100, model="a")
            at.on.process_of(revision).end(-11)
            with pytest.raises(Unavailable if state else Aborted):
                await runs
            with pytest.raises(Aborted, match="lost a request" if state else "process that ran its model has ended"):
                await waits
            await asyncio.sleep(1)
            at.compute_soon()
            if state:
                assert await at.ask(1, 10, model="a") == 11
                return
            with pytest.raises(Aborted, match="it has to be begun anew"):
                await at.ask(1, 10, model="a")
            assert not at.on.farm.jobs
            assert await at.ask(1, 7, "se", model="a") == 7

    run(lose())


@virtual
async def test_a_model_whose_process_has_ended_knows_no_sequences_any_more() -> None:
    async with place() as at:
        at.model("a", controls=True, state=False, oldest={"max_candidate_sequences": 4})
        at.compute_soon()
        assert await at.ask(1, 1, "s", model="a") == 1
        assert await at.ask(2, 2, "s", model="a") == 2
        at.on.farm.on_run = lambda job: job.fail(Unavailable("the model's process was ended"))
        with pytest.raises(Unavailable):
            await at.ask(1, 1, model="a")
        with pytest.raises(Aborted):
            await at.ask(1, 1, model="a")
        at.compute_soon()
        assert await at.ask(2, 1, "e", model="a") >= 1  # whether it knows this one, the next process says itself


@virtual
async def test_a_failure_and_a_client_that_goes_away_leave_a_sequence_as_it_was() -> None:
    async with place() as at:
        at.model()
        at.compute_soon()
        assert await at.ask(1, 5, "s") == 5
        at.on.farm.on_run = lambda job: job.fail(Internal("no"))
        with pytest.raises(Internal):
            await at.ask(1, 6)
        at.on.farm.on_run = lambda job: None
        gone = at.ask(1, 7)
        await settle()
        (job,) = at.on.farm.jobs
        gone.cancel()
        await settle()
        assert job.cancelled
        at.compute(job)
        late, behind = at.ask(1, 8, timeout_s=0.5), at.ask(1, 9, timeout_s=0.5)
        with pytest.raises(DeadlineExceeded):
            await late
        with pytest.raises((Aborted, DeadlineExceeded)):
            await behind
        at.compute_all()
        at.compute_soon()
        assert await at.ask(1, 10, "e") == 15


@virtual
async def test_requests_that_no_sequence_can_have() -> None:
    async with place(max_sequences=1, max_sequence_bytes=10) as at:
        at.model("rows", batch=4, controls=True)
        at.model(controls=True)
        at.compute_soon()
        for id_ in (0, "", True, 1.5):
            with pytest.raises(InvalidArgument, match="must specify a non-zero or non-empty correlation ID"):
                await at.ask(id_, 1, "s")
        with pytest.raises(InvalidArgument, match="over the limit of 128"):
            await at.ask("x" * 129, 1, "s")
        request = request_of(1, 1, "s", "rows")
        request.inputs[0] = Tensor("x", "INT32", (2, 1), bytes(8))
        with pytest.raises(InvalidArgument, match="must specify batch-size 1"):
            await at.inference.infer(request)
        for id_, match in (("one", "must specify a numeric correlation ID"), (1 << 64, "does not fit UINT64")):
            with pytest.raises(InvalidArgument, match=match):
                await at.ask(id_, 1, "s")
        assert await at.ask(1, 1, "s") == 1
        with pytest.raises(ResourceExhausted, match="as many as there may be"):
            await at.ask(2, 1, "s")
        assert await at.ask(1, 1, "e") == 2


@virtual
async def test_a_client_may_ask_for_the_state_if_it_is_an_output_too() -> None:
    async with place() as at:
        revision = at.model()
        revision.description.config.output.add(name="y")
        revision.description.config.output.add(name="next")
        at.compute_soon()
        for wanted in ([], ["next"], ["y"]):
            request = request_of(1, 3, "se")
            request.outputs = [RequestedOutput(name) for name in wanted]
            response = await at.inference.infer(request)
            assert [output.name for output in response.outputs] == (wanted or ["y", "next"])


@virtual
async def test_a_sequence_goes_on_with_the_version_that_it_has_begun_with() -> None:
    async with place() as at:
        old = at.model("a", controls=True, state=False, max_sequence_idle_microseconds=20_000_000)
        at.compute_soon()
        assert await at.ask(1, 1, "s", model="a") == 1
        new = at.model("a", controls=True, state=False, max_sequence_idle_microseconds=20_000_000)
        assert old.sequences is not None
        old.sequences.replaced()
        at.on.mesh.retire(old)
        assert await at.ask(1, 2, model="a") == 3
        assert new.sequences is not None
        assert not len(new.sequences.table)
        assert await at.ask(1, 2, "e", model="a") == 5
        await settle()
        assert not old.instances
        assert await at.ask(1, 2, "s", model="a") == 2
        at.on.farm.on_run = lambda job: None
        runs, waits = at.ask(1, 3, model="a"), at.ask(1, 4, model="a")
        await settle()
        at.on.mesh.retire(new)  # it is unloaded: what was asked before is answered
        at.compute_soon()
        at.compute_all()
        assert [await runs, await waits] == [5, 9]
        await settle()
        assert not new.instances
        with pytest.raises(Aborted, match="unloaded"):
            await at.ask(1, 2, model="a")


@virtual
async def test_what_is_to_be_replaced_makes_room_though_it_knows_sequences() -> None:
    async with place(100) as at:
        old = at.model("a", 60, controls=True, state=False, max_sequence_idle_microseconds=20_000_000)
        at.compute_soon()
        assert await at.ask(1, 1, "s", model="a") == 1
        at.on.mesh.give_way(old, yields=True)
        waits = at.ask(1, 1, "s", model=at.model("b", 60).key.name)
        await settle()
        assert not waits.done()  # it has a while yet
        assert await waits == 1
        with pytest.raises(Aborted, match="not in memory any more"):
            await at.ask(1, 2, model="a")


@virtual
async def test_requests_keep_their_order_while_their_model_is_looked_for() -> None:
    async with place() as at:
        at.model()
        at.compute_soon()
        model = at.on.catalog.present("m")
        assert model is not None
        looks: list[asyncio.Future[Version]] = []

        async def look() -> Version:
            looks.append(asyncio.get_running_loop().create_future())
            return await looks[-1]

        sequencing = Sequencing(at.on.mesh, InlineExecutor())
        order: list[int] = []

        async def find(number: int, id_: int) -> None:
            await sequencing.in_order(request_of(id_, number, ""), look)
            order.append(number)

        finds = [asyncio.create_task(find(number, id_)) for number, id_ in enumerate((1, 1, 2))]
        await settle()
        assert len(looks) == 2
        assert sequencing.is_behind(request_of(1, 0, ""))
        looks[1].set_result(model.versions["1"])
        await settle()
        looks[0].set_result(model.versions["1"])
        await settle()
        looks[2].set_result(model.versions["1"])
        await asyncio.gather(*finds)
        assert order == [2, 0, 1]
        del finds
        await settle()
        assert not sequencing.is_behind(request_of(1, 0, ""))


def test_a_route_keeps_a_sequence_together() -> None:
    random = Random(1)
    draws = {id_: {draw_of(request_of(id_, 1, ""), random) for _ in range(3)} for id_ in range(1000)}
    assert all(len(of_one) == 1 for of_one in draws.values())
    assert 400 < sum(of_one.pop() < 0.5 for of_one in draws.values()) < 600


@virtual
async def test_a_decoupled_model_has_one_stream_of_a_sequence_at_a_time() -> None:
    async with place() as at:
        at.model("a", controls=True, state=False, decoupled=True)

        async def answers(flags: str) -> int:
            count = 0
            async with aclosing(at.inference.infer_stream(request_of(5, 1, flags, "a"))) as responses:
                async for response in responses:
                    count += bool(response.outputs)
            return count

        first, second = asyncio.create_task(answers("s")), asyncio.create_task(answers("e"))
        for responses in (3, 2):
            await settle()
            (job,) = at.on.farm.jobs
            assert not job.run.parameters  # which are for programs alone
            for _ in range(responses):
                assert job.emit()
            job.close()
        assert await first == 3
        assert await second == 2


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["ask", "ask", "ask", "answer", "answer", "lose", "evict", "cancel", "pause"]),
            st.integers(1, 3),
            st.sampled_from(["", "", "s", "e"]),
        ),
        max_size=40,
    ),
    model=st.sampled_from(["m", "rows", "own rows"]),
)
def test_every_answer_is_the_sum_of_what_was_answered_before(steps: list[tuple[str, int, str]], model: str) -> None:
    """Whatever happens to models, workers and clients: answers are as if each sequence had been alone."""

    async def check() -> None:
        async with place(100, workers=2) as at:
            batching: Any = {"oldest": {"max_candidate_sequences": 2}} if model == "rows" else {}
            has_own = model == "own rows"
            batch = 0 if model == "m" else 2
            idle_us = 8_000_000
            at.model(
                model,
                60,
                batch=batch,
                controls=has_own,
                state=not has_own,
                max_sequence_idle_microseconds=idle_us,
                **batching,
            )
            at.on.farm.on_run = lambda job: job.start()
            sent: list[tuple[int, int, str, asyncio.Task[int]]] = []
            for x, (step, id_, flags) in enumerate(steps, 1):
                await _step(at, model, step, id_, x, flags, sent)
                await settle()
            at.compute_all()
            at.compute_soon()
            await asyncio.gather(*at.asked, return_exceptions=True)
        sums: dict[int, int] = {}
        for id_, x, flags, task in sent:
            if task.cancelled() or task.exception() is not None or model == "own rows":
                continue  # what a model remembers of requests that failed is its own business
            sums[id_] = x + (0 if flags == "s" else sums[id_])
            assert task.result() == sums[id_]

    run(check())


async def _step(
    at: Place, model: str, step: str, id_: int, x: int, flags: str, sent: list[tuple[int, int, str, asyncio.Task[int]]]
) -> None:
    match step:
        case "ask":
            sent.append((id_, x, flags, at.ask(id_, x, flags, model=model)))
        case "answer" if at.on.farm.jobs:
            at.compute(at.on.farm.jobs[x % len(at.on.farm.jobs)])
        case "lose" if at.on.farm.processes:
            at.on.farm.processes[0].end(-9)
        case "evict" if "other" not in [revision.key.name for revision in at.on.revisions]:
            signature = at.on.farm.signature
            at.on.farm.signature = Signature(signature.inputs[:1], signature.outputs[:1])
            at.on.submit(at.on.model("other", 60))
            at.on.farm.signature = signature
        case "cancel" if sent:
            sent[x % len(sent)][3].cancel()
        case "pause":
            await asyncio.sleep(5)
