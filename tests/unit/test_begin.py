"""The callback way into the data plane, on a mesh of fake workers in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from roost.core.errors import (
    Code,
    Internal,
    InvalidArgument,
    NotFound,
    RegionTooSmall,
    RoostError,
    Unavailable,
    Unimplemented,
)
from roost.core.requests import InferRequest, InferResponse, RegionSlice, RequestContext, RequestedOutput
from roost.core.tensors import Tensor
from roost.router.control import Control
from roost.router.inference import Inference
from roost.router.launching import Launcher
from roost.router.preload import Preload
from roost.router.proofs import Proofs
from roost.router.router import Router
from roost.router.traffic import Traffic, parse_routes
from roost.server.client_memory import FOLDER, ClientMemory
from roost.server.data_plane import RouterDataPlane
from roost.server.log_settings import LogBook
from roost.server.region_io import THREAD_BYTES

from tests.unit.mesh_fakes import Bed, Farm, InlineExecutor, bed
from tests.virtual_time import settle, virtual


@dataclass
class Place:
    """A data plane on a mesh."""

    on: Bed
    plane: RouterDataPlane
    outcomes: list[InferResponse | RoostError] = field(default_factory=list)

    def codes(self, model: str = "a") -> dict[Code | None, int]:
        """Finished requests by code; None is success."""
        stats = self.on.stats.of(model, "1")
        counted: list[tuple[Code | None, int]] = [(None, stats.ok), *(stats.errors or {}).items()]
        return {code: count for code, count in counted if count}


@asynccontextmanager
async def place(
    traffic: Traffic | None = None, *, batch: int = 4, log_requests: bool = False, regions: Path | None = None
) -> AsyncIterator[Place]:
    """Has a model ``a``, which is loaded."""
    async with bed(slots=4) as on:
        traffic = traffic or Traffic()
        inference = Inference(on.catalog, on.mesh, traffic, InlineExecutor())
        router = Router(
            on.catalog,
            on.mesh,
            on.ledger,
            traffic,
            on.stats,
            inference,
            cast(Control, None),
            cast(Proofs, None),
            cast(Preload, None),
            cast(Launcher, None),
        )
        plane = RouterDataPlane(
            router,
            server_name="roost",
            request_timeout_s=10,
            body_budget_bytes=1 << 20,
            log_requests=log_requests,
            shared_memory=ClientMemory(offered=regions is not None, folder=regions or FOLDER),
            log_book=LogBook("info", lambda level: None),
        )
        await on.mesh.loader.bring(on.model("a", 10, batch=batch))
        yield Place(on, plane)


def ask(data: bytes = b"12", model: str = "a", timeout_s: float = 10.0) -> InferRequest:
    now = time.monotonic()
    shape = (len(data), 1) if model == "a" else (len(data),)
    tensors = [Tensor("x", "UINT8", shape, data)]
    return InferRequest(model, "", RequestContext(now, now + timeout_s), tensors, id="7")


@virtual
@pytest.mark.parametrize("log_requests", [False, True])
async def test_answers_come_later_and_are_counted_once(log_requests: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with place(log_requests=log_requests) as at:
        with caplog.at_level("INFO", "roost.access"):
            for data in (b"a", b"bc"):
                assert at.plane.begin(ask(data), at.outcomes.append) is not None
            assert not at.outcomes
            await settle()
            at.on.answer_all()
        first, second = at.outcomes
        assert isinstance(first, InferResponse)
        assert isinstance(second, InferResponse)
        assert (first.id, first.model_version) == ("7", "1")
        assert [bytes(answer.outputs[0].data) for answer in (first, second)] == [b"a", b"bc"]
        assert at.codes() == {None: 2}
        assert len(caplog.records) == 2 * log_requests


@virtual
async def test_cancelling_failing_and_what_is_wrong_at_once() -> None:
    async with place() as at:
        ticket = at.plane.begin(ask(), at.outcomes.append)
        assert ticket is not None
        ticket.cancel()
        ticket.cancel()
        wrong = ask()
        wrong.outputs = [RequestedOutput("nope")]
        with pytest.raises(InvalidArgument, match="unexpected inference output"):
            at.plane.begin(wrong, at.outcomes.append)
        assert at.plane.begin(ask(), at.outcomes.append) is not None
        await settle()
        at.on.farm.jobs[0].fail(Internal("no"))
        (error,) = at.outcomes
        assert isinstance(error, Internal)
        assert at.codes() == {Code.CANCELLED: 1, Code.INVALID_ARGUMENT: 1, Code.INTERNAL: 1}
        late = at.plane.begin(ask(timeout_s=1.0), at.outcomes.append)
        assert late is not None
        await asyncio.sleep(2)
        at.on.answer_all()
        late.cancel()
        assert [type(outcome).code for outcome in at.outcomes if isinstance(outcome, RoostError)] == [
            Code.INTERNAL,
            Code.DEADLINE_EXCEEDED,
        ]


@virtual
async def test_a_model_that_was_replaced_when_its_worker_was_lost_is_answered_by_its_successor() -> None:
    async with place() as at:
        old = at.on.revisions[0]
        tickets = [at.plane.begin(ask(data), at.outcomes.append) for data in (b"a", b"b")]
        await settle()
        at.on.farm.on_call = Farm.held
        at.on.process_of(old).end(1)
        await asyncio.sleep(1)
        at.on.model("a", 10, batch=4)
        at.on.mesh.retire(old)
        at.on.farm.on_call = Farm.after(1.0)
        at.on.call(old).fail(InvalidArgument("the files have gone"))
        await settle()
        assert not at.outcomes
        assert tickets[1] is not None
        tickets[1].cancel()
        await asyncio.sleep(1.1)
        (job,) = at.on.farm.jobs
        assert job.data == b"a"
        job.answer()
        await settle()
        (outcome,) = at.outcomes
        assert isinstance(outcome, InferResponse)
        assert at.codes() == {None: 1, Code.CANCELLED: 1}


@virtual
async def test_a_model_that_can_not_be_loaded_again_and_has_no_successor_is_unavailable() -> None:
    async with place() as at:
        assert at.plane.begin(ask(), at.outcomes.append) is not None
        await settle()
        at.on.farm.on_call = Farm.held
        at.on.process_of(at.on.revisions[0]).end(1)
        await asyncio.sleep(1)
        at.on.call(at.on.revisions[0]).fail(InvalidArgument("the files have gone"))
        await settle()
        (outcome,) = at.outcomes
        assert isinstance(outcome, Unavailable)
        assert at.codes() == {Code.UNAVAILABLE: 1}


@virtual
async def test_what_needs_more_than_its_run_is_left_to_infer() -> None:
    async with place() as at:
        at.on.model("cold", 10)
        at.on.model("many", 10, decoupled=True)
        await at.on.mesh.loader.bring(at.on.revisions[2])
        classified = ask()
        classified.outputs = [RequestedOutput("y", classification=1)]
        asked = [ask(model="cold"), ask(model="many"), ask(model="nobody"), classified]
        assert [at.plane.begin(one, at.outcomes.append) for one in asked] == [None] * len(asked)
        assert at.codes() == {}
        at.on.farm.answer_runs_after(0.01)
        answer = await at.plane.infer(ask(b"1234", model="cold"))
        assert bytes(answer.outputs[0].data) == b"1234"
        assert at.codes("cold") == {None: 1}


def in_region(part: RegionSlice, room: RegionSlice) -> InferRequest:
    """A request with an input in shared memory, whose output belongs there."""
    request = ask()
    request.inputs = [Tensor("x", "UINT8", (part.byte_size, 1), b"")]
    request.regions = {"x": part}
    request.outputs = [RequestedOutput("y", region=room)]
    return request


@virtual
async def test_tensors_in_regions_take_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(b"abcd" + bytes(4))
    async with place(regions=tmp_path) as at:
        at.plane.shared_memory.register("r", "/object", 0, 8)
        part = RegionSlice("r", 2, 1)
        for room in (RegionSlice("r", 2, 4), RegionSlice("r", 1, 6)):
            assert at.plane.begin(in_region(part, room), at.outcomes.append) is not None
        assert at.plane.bodies.used_bytes == 4
        await settle()
        at.on.answer_all()
        answer, too_small = at.outcomes
        assert isinstance(answer, InferResponse)
        assert (set(answer.in_regions), bytes(answer.outputs[0].data)) == ({"y"}, b"")
        assert (tmp_path / "object").read_bytes() == b"abcdbc" + bytes(2)
        assert isinstance(too_small, RegionTooSmall)
        dropped = at.plane.begin(in_region(part, part), at.outcomes.append)
        assert dropped is not None
        dropped.cancel()
        dropped.cancel()
        wrong = in_region(part, part)
        wrong.outputs[0].name = "nope"
        with pytest.raises(InvalidArgument, match="unexpected inference output"):
            at.plane.begin(wrong, at.outcomes.append)
        with pytest.raises(NotFound):
            at.plane.begin(in_region(part, RegionSlice("other", 2)), at.outcomes.append)
        assert at.plane.bodies.used_bytes == 0
        await settle()
        at.on.answer_all()
        assert len(at.outcomes) == 2
        assert at.codes() == {None: 1, Code.INVALID_ARGUMENT: 2, Code.CANCELLED: 1}


@virtual
async def test_large_tensors_in_regions_and_those_of_cold_models_are_left_to_infer(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(bytes(16 << 20))
    async with place(regions=tmp_path) as at:
        at.on.model("cold", 10)
        at.plane.shared_memory.register("r", "/object", 0, 16 << 20)
        part, large = RegionSlice("r", 2), RegionSlice("r", THREAD_BYTES + 1)
        cold = in_region(part, part)
        cold.model_name = "cold"
        for request in (in_region(part, large), cold):
            assert at.plane.begin(request, at.outcomes.append) is None
        assert at.plane.bodies.used_bytes == 0


@virtual
async def test_infer_takes_the_same_way_and_cancels() -> None:
    async with place() as at:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(at.plane.infer(ask(data))) for data in (b"a", b"b", b"c")]
            await settle()
            (job,) = at.on.farm.jobs
            assert job.data == b"abc"
            calls[1].cancel()
            await settle()
            job.answer()
        assert [call.cancelled() for call in calls] == [False, True, False]
        assert at.codes() == {None: 2, Code.CANCELLED: 1}


@virtual
async def test_a_branch_that_begin_can_not_take_keeps_its_share() -> None:
    """Requests that are handed on to ``infer`` go where they were drawn to go."""
    targets = [{"model": "a", "version": "1", "weight": 1}, {"model": "cold", "version": "1", "weight": 1}]
    routes = parse_routes({"routes": [{"name": "r", "targets": targets}]}, "here")
    async with place(routes, batch=0) as at:
        at.on.model("cold", 10, decoupled=True)  # which begin never takes
        at.on.farm.answer_runs_after(0.001)
        drawn = {"a": 0, "cold": 0}
        for _ in range(200):
            request = ask(model="r")
            if at.plane.begin(request, at.outcomes.append) is None:
                with pytest.raises(Unimplemented):
                    await at.plane.infer(request)
            await settle()
            drawn[request.context.served_by[0]] += 1
        assert 70 < drawn["cold"] < 130
        await asyncio.sleep(1)
