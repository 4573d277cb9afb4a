"""Looks at a mesh: what is seen of it, in which order, and what is remembered from look to look."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from roost.core.figures import Figures
from roost.router.activity import STALE_S, ActivitySampler
from roost.router.activity_view import Activity, Order, Question
from roost.router.placement import Ledger
from roost.router.plans import Limits
from roost.router.states import Availability, InstanceState
from roost.router.stats import Stats

from tests.virtual_time import run, virtual

MIB = 2**20


class Mesh:
    """Models ``a`` to ``d`` in a repository, some of them in use; no process, no requests."""

    def __init__(self, *, explicit: bool = False) -> None:
        self.stats = Stats()
        self.explicit = explicit
        self.ready, self.device, self.gpus, self.queues = True, "cpu", (), SimpleNamespace(requests=0)
        spec = SimpleNamespace(kind="onnx", device="cpu", threads=1)
        self.workers = [
            SimpleNamespace(id=i, spec=spec, state="up", restarts=0, pid=0, runs={}, link=None, instances={})
            for i in range(2)
        ]
        self.versions: dict[str, Any] = {}
        self.names = ["a", "b", "c", "d"]
        self.sampler = ActivitySampler(cast(Any, self), cast(Any, self), Ledger(Limits(100 * MIB)), self.stats)

    def __len__(self) -> int:
        return len(self.names)

    def homes(self) -> dict[str, None]:
        return dict.fromkeys(self.names)

    def known(self, name: str, version: str) -> Any:
        return self.versions.get(name)

    def use(self, name: str, requests: int, *, queued: int = 0, failed: bool = False) -> None:
        """The model has been used so often by now."""
        self.stats.of(name, "1").ok = requests
        revision = SimpleNamespace(
            key=SimpleNamespace(name=name, version="1"),
            queue=[None] * queued,
            description=SimpleNamespace(ensemble=None),
            failure="broken" if failed else None,
        )
        self.versions[name] = SimpleNamespace(revision=revision, availability=Availability.READY)

    def hold(self, name: str, worker: int, state: InstanceState = InstanceState.READY, mib: int = 4) -> None:
        """A copy of it is on a worker."""
        revision = self.versions[name].revision
        copy = SimpleNamespace(state=state, revision=revision, figures=Figures(mib * MIB), leases=0)
        self.workers[worker].instances[len(self.workers[worker].instances)] = copy

    async def look(self, order: Order = Order.RATE, needle: str = "", top: int = 10) -> Activity:
        return await self.sampler.look(Question(order, needle, top))


def states(view: Activity) -> list[tuple[str, str]]:
    return [(model.model, model.state) for model in view.models]


@virtual
async def test_a_rate_is_over_the_time_since_the_look_before() -> None:
    mesh = Mesh()
    mesh.use("a", 1000)
    first = await mesh.look()
    assert (first.window_s, first.models[0].requests_per_s, first.totals.requests_per_s) == (0.0, 0.0, 0.0)
    await asyncio.sleep(2.0)
    mesh.use("a", 1010)
    mesh.use("b", 4)
    mesh.stats.of("b", "1").loads = 1
    second = await mesh.look()
    assert second.window_s == pytest.approx(2.0, abs=0.01)
    assert [(row.model, round(row.requests_per_s, 1)) for row in second.models[:2]] == [("a", 5.0), ("b", 2.0)]
    assert round(second.totals.requests_per_s, 1) == 7.0
    assert round(second.totals.loads_per_s, 1) == 0.5
    mesh.use("a", 9999)
    assert (await mesh.look()).models == second.models  # somebody else looks at the same moment
    await asyncio.sleep(STALE_S + 1)
    assert (await mesh.look()).window_s == 0.0


@virtual
async def test_states_and_copies() -> None:
    mesh = Mesh()
    for name in ("a", "b", "c"):
        mesh.use(name, 1, failed=name == "c")
    mesh.hold("a", 0)
    mesh.hold("a", 1, InstanceState.LOADING)
    mesh.hold("b", 1, InstanceState.DRAINING)
    view = await mesh.look(Order.NAME)
    assert states(view) == [("a", "ready"), ("b", "draining"), ("c", "failed"), ("d", "standby")]
    assert view.models[0].workers == (0, 1)
    assert view.models[0].bytes == 8 * MIB
    assert sorted(row.model for row in view.moving) == ["a", "b"]
    assert view.totals.loaded == 1
    assert [dict(worker.copies) for worker in view.workers] == [{"ready": 1}, {"loading": 1, "draining": 1}]


@virtual
async def test_what_is_gone_is_forgotten() -> None:
    mesh = Mesh()
    mesh.use("a", 1)
    mesh.hold("a", 0)
    assert states(await mesh.look()) == [("a", "ready"), ("b", "standby"), ("c", "standby"), ("d", "standby")]
    await asyncio.sleep(1.0)
    mesh.workers[0].instances.clear()
    mesh.versions["a"].revision.description.ensemble = "its steps"
    assert states(await mesh.look())[0] == ("a", "ensemble")
    await asyncio.sleep(1.0)
    mesh.versions["a"].availability = Availability.UNAVAILABLE
    assert states(await mesh.look())[0] == ("a", "unloaded")
    await asyncio.sleep(1.0)
    mesh.stats.forget("a", ["1"])
    mesh.names.remove("a")
    assert states(await mesh.look()) == [("b", "standby"), ("c", "standby"), ("d", "standby")]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (Order.MEMORY, ["c", "b", "a"]),
        (Order.QUEUE, ["b", "a", "c"]),
        (Order.LOADS, ["a", "c", "b"]),
        (Order.NAME, ["a", "b", "c"]),
    ],
)
def test_orders(order: Order, expected: list[str]) -> None:
    async def main() -> None:
        mesh = Mesh()
        for name, mib, queued, loads in (("a", 1, 1, 3), ("b", 2, 5, 1), ("c", 3, 0, 2)):
            mesh.use(name, 1, queued=queued)
            mesh.hold(name, 0, mib=mib)
            mesh.stats.of(name, "1").loads = loads
        view = await mesh.look(order, top=3)
        assert [row.model for row in view.models] == expected
        assert view.matching == 4

    run(main())


@virtual
async def test_models_that_were_never_loaded_are_no_models_of_explicit_control() -> None:
    mesh = Mesh(explicit=True)
    mesh.use("b", 1)
    view = await mesh.look()
    assert (states(view), view.matching) == ([("b", "standby")], 1)


@virtual
async def test_others_have_a_turn_while_very_many_models_are_looked_at() -> None:
    mesh = Mesh()
    for index in range(2000):
        mesh.use(f"model-{index:04d}", index)
    turns = 0
    looking = asyncio.ensure_future(mesh.look(needle="99", top=5))
    while not looking.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 20
    assert looking.result().matching == 38
    assert len(looking.result().models) == 5
