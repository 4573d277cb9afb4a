"""Workers of several kinds: those of others than the first come when a model needs them, and go when none does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from roost.core.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable
from roost.core.tasks import in_background
from roost.registry_client.model_folder import ModelFolder
from roost.router.kinds import LOOK_EVERY_S
from roost.router.mesh import KindSettings
from roost.router.models import Opener, check_backend
from roost.router.plans import Limits
from roost.router.process import WorkerSpec
from roost.router.snapshot import running
from roost.router.spread import Unplaceable

from tests.unit.mesh_fakes import Bed, Farm, bed, worker_of
from tests.virtual_time import settle, virtual

pytestmark = pytest.mark.filterwarnings("error")

IDLE_S = 60.0
TORCH = WorkerSpec("torch", "cpu", 1, 1)
SKLEARN = WorkerSpec("sklearn", "cpu", 1, 1)


@asynccontextmanager
async def kinds(budget: int = 100, *, torch: int = 1) -> AsyncIterator[Bed]:
    """A mesh with two more kinds of workers."""
    others = (KindSettings(TORCH, torch, ({"disk": "ssd"},)), KindSettings(SKLEARN, 1))
    async with (
        bed(budget, other_kinds=others, worker_idle_timeout_s=IDLE_S) as on,
        in_background(on.mesh.kinds.run()),
    ):
        yield on


def kinds_up(on: Bed) -> list[str]:
    return [worker.spec.kind for worker in on.mesh.workers if worker.up]


def kinds_shown(on: Bed) -> list[str]:
    return [worker.spec.kind for worker in running(on.mesh.workers)]


@virtual
async def test_workers_of_another_kind_start_with_the_first_load() -> None:
    async with kinds(torch=2) as on:
        assert kinds_up(on) == kinds_shown(on) == ["onnx"]
        net, other = on.model("net", 10, backend="pytorch"), on.model("other", 10)
        await on.make_resident(net, other)
        assert kinds_up(on) == ["onnx", "torch", "torch"]
        assert worker_of(net).spec.kind == "torch"
        assert worker_of(net).labels == {"disk": "ssd"}
        assert worker_of(other).spec.kind == "onnx"
        assert len({worker.id for worker in on.mesh.workers}) == len(on.mesh.workers)


@virtual
async def test_they_end_when_nothing_was_loaded_for_long_and_come_back() -> None:
    async with kinds() as on:
        net = on.model("net", 60, backend="pytorch")
        await on.make_resident(net)
        epoch = worker_of(net).epoch
        await asyncio.sleep(2 * IDLE_S)
        assert kinds_up(on) == ["onnx", "torch"]  # it is loaded
        await on.make_resident(on.model("other", 60))
        assert on.farm.models() == ["other"]
        await asyncio.sleep(IDLE_S - 2 * LOOK_EVERY_S)
        assert kinds_up(on) == ["onnx", "torch"]
        await asyncio.sleep(3 * LOOK_EVERY_S)
        assert kinds_shown(on) == ["onnx"]
        assert len(on.farm.processes) == 1
        await on.make_resident(net)
        assert worker_of(net).epoch > epoch


@virtual
async def test_a_load_that_comes_while_they_end_has_new_ones() -> None:
    async with kinds() as on:
        on.farm.death_takes_s = 3.0
        net = on.model("net", 10, backend="pytorch")
        await on.make_resident(net)
        on.mesh.loader.drop_copy(net.instances[0])
        await asyncio.sleep(IDLE_S + 1.5 * LOOK_EVERY_S)
        assert (kinds_up(on), kinds_shown(on)) == (["onnx"], ["onnx", "torch"])
        sent = on.submit(net)
        await asyncio.sleep(on.farm.death_takes_s + 1.0)
        on.job(net).answer()
        assert (await sent.future).outputs


@virtual
async def test_one_budget_for_all_kinds_and_victims_among_all() -> None:
    async with kinds(100) as on:
        first = on.model("first", 40)
        second = on.model("second", 40, backend="pytorch")
        third = on.model("third", 40, backend="xgboost")
        for revision in (first, second, third, first):
            await on.make_resident(revision)
            await asyncio.sleep(30.0)
        assert on.farm.models() == ["first", "third"]
        assert on.ledger.used_bytes == 80


@virtual
async def test_those_that_do_not_start_fail_their_models_and_no_others() -> None:
    async with kinds() as on:
        on.farm.may_start = False
        net, other = on.model("net", 10, backend="pytorch"), on.model("other", 10)
        sent = on.submit(net)
        await on.make_resident(other)
        with pytest.raises(Unavailable, match="no worker that may load it was up within 60 s"):
            await sent.future
        on.farm.may_start = True
        await asyncio.sleep(30.0)
        await on.make_resident(net)


@virtual
async def test_a_request_does_not_wait_for_them_longer_than_it_may() -> None:
    async with kinds() as on:
        on.farm.may_start = False
        net = on.model("net", 10, backend="pytorch")
        sent = on.submit(net, timeout_s=5.0)
        with pytest.raises(DeadlineExceeded):
            await sent.future
        on.farm.may_start = True
        await asyncio.sleep(90.0)


@virtual
async def test_without_workers_of_its_kind_a_model_is_refused_at_once() -> None:
    async with kinds(torch=0) as on:
        net = on.model("net", 10, backend="pytorch")
        with pytest.raises(Unplaceable, match="needs a worker of kind 'torch', and there is none"):
            await on.submit(net).future
        assert net.failure is None


@virtual
async def test_what_a_lost_worker_had_comes_back_in_one_of_its_kind() -> None:
    async with kinds(torch=2) as on:
        on.farm.on_call = Farm.soon
        net = on.model("net", 10, backend="pytorch")
        await on.make_resident(net)
        on.farm.processes[-1 if worker_of(net).id == 2 else -2].end(-signal.SIGKILL)
        await asyncio.sleep(1.0)
        assert on.farm.models() == ["net"]
        assert worker_of(net).spec.kind == "torch"


@virtual
async def test_what_their_processes_take_is_not_there_for_files() -> None:
    async with kinds() as on:
        on.mesh.set_limits(Limits(100, memory_bytes=1000))
        on.farm.base_bytes["torch"] = 300
        net = on.model("net", 60, backend="pytorch")
        await on.make_resident(net)
        await asyncio.sleep(2 * LOOK_EVERY_S)
        assert (on.ledger.limits.private_bytes, on.ledger.limits.memory_bytes) == (100, 700)
        await on.make_resident(on.model("other", 60))
        await asyncio.sleep(2 * IDLE_S)
        await settle()
        assert on.ledger.limits.memory_bytes == 1000


@pytest.mark.parametrize(
    ("backend", "may_bring_code", "match"),
    [
        ("pytorch", True, r"'pytorch' is not installed here, it needs pip install 'roost\[torch\]'"),
        ("xgboost", False, r"'roost\[sklearn\]'"),
        ("python", False, "models of backend 'python' are code, which is not allowed without --allow-code"),
    ],
)
def test_what_is_not_there_or_not_allowed(backend: str, may_bring_code: bool, match: str) -> None:
    with pytest.raises(FailedPrecondition, match=match):
        check_backend(backend, may_bring_code=may_bring_code, is_installed=lambda name: name == "python")
    check_backend("python", may_bring_code=True, is_installed=lambda _: True)


def test_code_is_from_repositories_that_may_have_it_and_never_from_load_calls(tmp_path: Path) -> None:
    for name, file in (("mine", "model.py"), ("net", "model.onnx")):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / file).write_bytes(b"")
    mine, net = ModelFolder("mine", tmp_path / "mine"), ModelFolder("net", tmp_path / "net")
    allowing, strict = Opener(explicit=False, code_from=frozenset({tmp_path})), Opener(explicit=False)
    assert allowing.open(mine).versions["1"].revision.may_bring_code
    assert "without --allow-code" in str(strict.open(mine).error)
    with pytest.raises(InvalidArgument, match="load calls bring no code, and models of 'python' are code"):
        allowing.open_with(mine, '{"backend": "python"}')
    for opener, allowed in ((allowing, True), (strict, False)):
        assert opener.open(net).versions["1"].revision.may_bring_code is allowed
