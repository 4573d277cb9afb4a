"""Models on GPUs: which go there, what they take of which memory, who goes for them, and what others leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from roost.core.errors import FailedPrecondition, ResourceExhausted, Unavailable
from roost.proto import model_config_pb2 as mc
from roost.router.device_watch import LEAST_RESERVE_BYTES, DeviceWatch, budget_bytes
from roost.router.mesh import KindSettings
from roost.router.process import WorkerSpec
from roost.router.revision import Revision
from roost.router.snapshot import view_devices
from roost.runtimes.nvml import Gpu, Reading

from tests.unit.mesh_fakes import Bed, InlineExecutor, bed, worker_of
from tests.virtual_time import settle, virtual

pytestmark = pytest.mark.filterwarnings("error")

MIB = 1 << 20
BUDGET = 100 * MIB
TOTAL = LEAST_RESERVE_BYTES + BUDGET
ONNX, TORCH = WorkerSpec("onnx-gpu", "cuda:0", 1, 1), WorkerSpec("torch-gpu", "cuda:0", 1, 1)
GROUP = mc.ModelInstanceGroup
ON_CPU, ON_GPU, MODEL = [{"kind": GROUP.KIND_CPU}], [{"kind": GROUP.KIND_GPU}], [{"kind": GROUP.KIND_MODEL}]


@dataclass
class Hardware:
    """What the management library would say."""

    used: dict[str, int] = field(default_factory=dict)

    def read(self, uuid: str) -> Reading | None:
        used = self.used.get(uuid)
        return None if used is None else Reading(TOTAL, used, TOTAL - used, 0.5)


@dataclass
class Place:
    """A mesh with GPUs."""

    on: Bed
    hardware: Hardware
    watch: DeviceWatch

    def device(self, revision: Revision) -> str:
        return worker_of(revision).spec.device

    def taken(self, number: int = 0) -> int:
        return self.on.ledger.device(f"cuda:{number}").bytes


@asynccontextmanager
async def gpus(
    count: int = 1, *, able: Sequence[str] = ("dummy", "pytorch"), kinds: int = 2, **changes: Any
) -> AsyncIterator[Place]:
    """So many GPUs with ``BUDGET`` bytes for models each, and a worker of each kind on each."""
    found = tuple(Gpu(number, f"GPU-{number}", "x", TOTAL, TOTAL) for number in range(count))
    specs = [tuple(replace(spec, device=gpu.name) for gpu in found) for spec in (ONNX, TORCH)[:kinds]]
    cpu_torch = KindSettings(WorkerSpec("torch", "cpu", 1, 1), 1)
    async with bed(1000, gpus=found, gpu_kinds=tuple(specs), other_kinds=(cpu_torch,), **changes) as on:
        on.farm.gpu_runtimes = {gpu.name: able for gpu in found}
        hardware = Hardware({gpu.uuid: 0 for gpu in found})
        remember = on.catalog.remember_gpu_size
        room = on.mesh.loader.room
        watch = DeviceWatch(on.mesh.gpus, on.mesh.workers, on.ledger, room, hardware.read, InlineExecutor(), remember)
        watch.begin()
        await watch.look()
        on.mesh.loader.creator.weigh = watch.weigh
        yield Place(on, hardware, watch)


@virtual
async def test_models_go_to_gpus_unless_they_say_something_else(caplog: pytest.LogCaptureFixture) -> None:
    async with gpus() as place:
        groups = {"auto": [], "wants": ON_GPU, "stays": ON_CPU, "chooses": MODEL, "both": [*ON_CPU, *ON_GPU]}
        models = {
            name: place.on.model(name, 10, gpu_bytes=7 * MIB, instance_group=group) for name, group in groups.items()
        }
        net = place.on.model("net", 10, gpu_bytes=7 * MIB, backend="pytorch")
        await place.on.make_resident(*models.values(), net)
        on_gpu = {name for name, model in models.items() if place.device(model) == "cuda:0"}
        assert on_gpu == {"auto", "wants", "chooses", "both"}
        assert worker_of(net).spec.kind == "torch-gpu"
        assert (place.taken(), place.on.ledger.used_bytes) == (5 * 7 * MIB, 6 * 10)
        assert "asks for a GPU" not in caplog.text


@virtual
async def test_what_can_not_use_one_runs_on_the_cpu_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async with gpus(able=["other"]) as place:
        wants, auto = (
            place.on.model(n, 10, gpu_bytes=7 * MIB, instance_group=g) for n, g in (("a", ON_GPU), ("b", []))
        )
        table = place.on.model("table", 10, backend="xgboost")
        await place.on.make_resident(wants, auto)
        assert (place.device(wants), place.device(auto)) == ("cpu", "cpu")
        assert place.taken() == 0
        assert caplog.text.count("asks for a GPU, and backend 'dummy' can't use one here: it runs on the CPU") == 1
        with pytest.raises(FailedPrecondition, match="kind 'sklearn'"):
            await place.on.infer(table)
    async with bed() as on:
        await on.make_resident(on.model("a", 10, instance_group=ON_GPU))
        assert "asks for a GPU, and there is none: it runs on the CPU" in caplog.text


@virtual
async def test_a_configuration_chooses_among_gpus() -> None:
    async with gpus(3) as place:
        second = place.on.model("second", 10, gpu_bytes=60 * MIB, instance_group=[{"gpus": [1]}])
        other = place.on.model("other", 10, gpu_bytes=60 * MIB, instance_group=[{"gpus": [1]}, {"gpus": [2]}])
        await place.on.make_resident(second, other)
        assert (place.device(second), place.device(other)) == ("cuda:1", "cuda:2")
        wrong = place.on.model("wrong", 10, instance_group=[{"kind": GROUP.KIND_GPU, "gpus": [0, 7]}])
        with pytest.raises(
            FailedPrecondition, match="invalid or unsupported gpu id 7; GPUs that are used here: 0, 1, 2"
        ):
            await place.on.infer(wrong)


@virtual
async def test_loads_wait_until_it_is_known_what_a_gpu_can_be_used_for() -> None:
    async with gpus(kinds=1) as place:
        place.on.farm.may_start = False
        model = place.on.model("model", 10, gpu_bytes=7 * MIB)
        sent = place.on.submit(model)
        await asyncio.sleep(5.0)
        assert not sent.future.done()
        place.on.farm.may_start = True
        await asyncio.sleep(30.0)  # the starts that failed have made the next one wait
        place.on.job(model).answer()
        await sent.future
        assert place.device(model) == "cuda:0"


@virtual
async def test_a_load_whose_worker_never_comes_ends() -> None:
    async with gpus(kinds=1, load_timeout_s=20.0) as place:
        place.on.farm.may_start = False
        with pytest.raises(Unavailable, match="no worker on a GPU was up within 20 s"):
            await place.on.infer(place.on.model("model", 10))
        place.on.farm.may_start = True


@virtual
async def test_memory_of_a_gpu_evicts_what_is_on_it_in_whatever_worker_and_nothing_else() -> None:
    async with gpus(2) as place:
        first = [{"gpus": [0]}]
        oldest = place.on.model("oldest", 100, instance_group=ON_CPU)
        elsewhere = place.on.model("elsewhere", 100, gpu_bytes=80 * MIB, instance_group=[{"gpus": [1]}])
        net = place.on.model("net", 10, gpu_bytes=60 * MIB, backend="pytorch", instance_group=first)
        last = place.on.model("last", 10, gpu_bytes=30 * MIB, instance_group=first)
        new = place.on.model("new", 10, gpu_bytes=50 * MIB, instance_group=first)
        for model in (oldest, elsewhere, net, last, new):
            await place.on.make_resident(model)
            await asyncio.sleep(30.0)
        assert place.on.farm.models() == ["elsewhere", "last", "new", "oldest"]
        assert (place.taken(0), place.taken(1)) == (80 * MIB, 80 * MIB)
        large = place.on.model("large", 10, gpu_bytes=101 * MIB)
        with pytest.raises(ResourceExhausted, match=r"needs 101 MiB of a GPU.s memory, more than the 100 MiB"):
            await place.on.infer(large)
        assert place.on.farm.models() == ["elsewhere", "last", "new", "oldest"]


@virtual
async def test_with_two_gpus_there_is_room_on_the_other() -> None:
    async with gpus(2) as place:
        models = [place.on.model(f"m{number}", 10, gpu_bytes=45 * MIB) for number in range(4)]
        await place.on.make_resident(*models)
        assert sorted(map(place.device, models)) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
        assert place.on.farm.models() == ["m0", "m1", "m2", "m3"]


@virtual
async def test_what_others_take_makes_ours_less_and_they_may_give_it_back() -> None:
    async with gpus() as place:
        models = [place.on.model(f"m{number}", 10, gpu_bytes=30 * MIB) for number in range(3)]
        for model in models:
            await place.on.make_resident(model)
            await asyncio.sleep(5.0)
        account = place.on.ledger.device("cuda:0")
        place.hardware.used["GPU-0"] = 90 * MIB
        await place.watch.look()
        assert account.limit_bytes == BUDGET  # all of what is used is ours
        place.hardware.used["GPU-0"] = 110 * MIB
        await place.watch.look()
        await settle()
        assert account.limit_bytes == 80 * MIB
        assert place.on.farm.models() == ["m1", "m2"]
        place.hardware.used["GPU-0"] = 60 * MIB
        await place.watch.look()
        assert account.limit_bytes == BUDGET
        place.on.farm.on_call = place.on.farm.held
        place.on.mesh.loader.drop_copy(models[1].instances[0])
        for used, limit in ((80, BUDGET - 20 * MIB), (0, BUDGET - 20 * MIB)):  # one is leaving
            place.hardware.used["GPU-0"] = used * MIB
            await place.watch.look()
            await settle()
            assert account.limit_bytes == limit
        place.on.call(models[1]).succeed()
        place.on.farm.on_call = place.on.farm.soon
        await settle()
        place.hardware.used["GPU-0"] = 30 * MIB
        await place.watch.look()
        assert account.limit_bytes == BUDGET
        place.hardware.used.clear()
        await place.watch.look()  # it does not answer: as it was
        assert account.limit_bytes == BUDGET
        (_, view) = view_devices(place.on.ledger, "cpu", place.on.mesh.gpus)
        assert (view.name, view.budget_bytes, view.used_bytes, view.utilization) == ("cuda:0", BUDGET, 30 * MIB, None)


@virtual
async def test_what_a_model_takes_is_learned_where_nothing_else_happens() -> None:
    async with gpus() as place:
        before_load = place.on.farm.on_call

        def growing(call: Any) -> None:
            place.hardware.used["GPU-0"] += 5 * MIB
            before_load(call)

        place.on.farm.on_call = growing
        state = place.on.mesh.gpus[0]
        place.watch.gpus[0].gpu = replace(state.gpu, total_bytes=1 << 40, free_bytes=1 << 40)
        place.watch.begin()
        model = place.on.model("model", 10)
        await place.on.make_resident(model)
        assert place.taken() == 5 * MIB  # the estimate was less
        place.on.mesh.loader.drop_copy(model.instances[0])
        await settle()
        model.measured_on_gpu = None  # as after a restart
        await place.on.make_resident(model)
        assert place.taken() == 5 * MIB

        busy, other = place.on.model("busy", 10, gpu_bytes=1 * MIB), place.on.model("other", 10)
        await place.on.make_resident(busy)
        running = place.on.submit(busy)
        await settle()
        sent = place.on.submit(other)
        await settle()
        assert other.measured_on_gpu is None
        place.on.job(busy).answer()
        await settle()
        place.on.job(other).answer()
        await asyncio.gather(running.future, sent.future)


def test_a_reserve_is_left() -> None:
    assert budget_bytes(80 << 30, 79 << 30) == (75 << 30)
    assert budget_bytes(1 << 30, 1 << 30) == (1 << 30) - LEAST_RESERVE_BYTES
    assert budget_bytes(1 << 30, 1 << 20) == 0
