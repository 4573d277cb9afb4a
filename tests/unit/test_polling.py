"""Repositories that change while they are served: what is found, when it is acted upon, and what stays as it was."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from roost.core.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, RoostError, Unavailable
from roost.core.requests import InferRequest, InferResponse, RequestContext
from roost.core.tensors import Signature, Tensor, TensorSpec
from roost.registry_client.overrides import OverrideFolders
from roost.registry_client.repository import LocalRepository
from roost.router.catalog import Catalog
from roost.router.control import Control
from roost.router.failures import ARTIFACT_TRIES
from roost.router.inference import Inference
from roost.router.learned import Learned
from roost.router.looking import Looker
from roost.router.mesh import Mesh
from roost.router.placement import Ledger
from roost.router.plans import Limits
from roost.router.polling import FIRST_PAUSE_S, LONGEST_PAUSE_S, Failure, Polling, Watch
from roost.router.stats import Stats
from roost.router.traffic import Traffic

from tests.memory_store import MemoryStore
from tests.scarcity import no_descriptors
from tests.unit.mesh_fakes import Farm, InlineExecutor, Job, settings_of
from tests.virtual_time import settle, virtual

BUDGET = 1 << 40


@dataclass(eq=False)
class Site:
    """Models in a folder, served by fake workers."""

    root: Path
    catalog: Catalog
    mesh: Mesh
    farm: Farm
    ledger: Ledger
    control: Control
    polling: Polling
    inference: Inference
    stats: Stats
    sent: list[asyncio.Task[Any]] = field(default_factory=list)

    def write(self, name: str, version: str = "1", content: str = "1") -> Path:
        """Puts a version on the disk as publishers should, with a rename."""
        path = self.root / name / version / "model.dummy"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(".partial")
        partial.write_text(content)
        partial.rename(path)
        return path

    async def publish(self, name: str) -> Path:
        """The same for a model that is known from then on."""
        path = self.write(name)
        await self.look(1)
        return path

    def configure(self, name: str, text: str) -> None:
        partial = self.root / name / ".partial"
        partial.write_text(text)
        partial.rename(self.root / name / "config.pbtxt")

    async def infer(self, name: str, version: str = "", shape: tuple[int, ...] = (4,)) -> InferResponse:
        """A request from end to end."""
        data = bytes(math.prod(shape))
        request = InferRequest(name, version, RequestContext(time.monotonic()), [Tensor("x", "UINT8", shape, data)])
        return await self.inference.infer(request)

    async def look(self, times: int = 2) -> None:
        """A look at everything, and the looks behind it until all is settled."""
        async with asyncio.TaskGroup() as updates:
            await self.polling.look(updates)
        for _ in range(times - 1):
            await self.look_again()
        await settle()

    async def look_again(self) -> None:
        """A look at what differed the last time, and what comes of it."""
        async with asyncio.TaskGroup() as updates:
            await self.polling.look_again(updates)

    def loaded(self) -> list[str]:
        """The files of the models that are loaded, relative to the repository."""
        return [model.removeprefix(f"{self.root}/") for model in self.farm.models()]


@asynccontextmanager
async def site(folder: Path, *, explicit: bool = False) -> AsyncIterator[Site]:
    root = _made(folder / "r")
    ledger, stats, disk = Ledger(Limits(BUDGET)), Stats(), InlineExecutor()
    farm = Farm(defaultdict(int), lambda: BUDGET)
    farm.on_run = _answer_soon
    overrides = OverrideFolders(folder / "overrides")
    repositories = [LocalRepository(root)]
    catalog = Catalog(repositories, Learned(MemoryStore()), disk, explicit=explicit, overrides=overrides)
    async with asyncio.TaskGroup() as group:
        mesh = Mesh(settings_of(1, 4), ledger, catalog, stats, group, launch=farm.launch)
        try:
            await catalog.scan()
            await mesh.start()
            control = Control(catalog, mesh, stats, Traffic())
            polling = Polling(Looker(catalog, repositories, disk), control, 15.0)
            inference = Inference(catalog, mesh, Traffic(), disk, None if explicit else control.renew)
            yield Site(root, catalog, mesh, farm, ledger, control, polling, inference, stats)
        finally:
            await mesh.stop()


def _answer_soon(job: Job) -> None:
    asyncio.get_running_loop().call_soon(job.answer)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


class TestWatch:
    def test_acts_when_two_looks_agree_and_not_again_after_a_failure(self) -> None:
        watch = Watch()
        assert [watch.see("a", look, 0.0) for look in (1, 2, 2)] == [False, False, True]
        watch.failed["a"] = Failure(2)
        assert [watch.see("a", look, 1e9) for look in (2, 2, 3, 2, 3, 3)] == [False, False, False, False, False, True]
        assert not watch.pending

    def test_what_there_is_no_room_for_is_tried_again_ever_more_rarely(self) -> None:
        watch, now, pauses = Watch(), 0.0, []
        for _ in range(10):
            pauses.append(watch.put_off("a", 1, now))
            now += pauses[-1]
            assert not any(watch.see("a", 1, now - 1e-3) for _ in range(2))
            assert [watch.see("a", 1, now) for _ in range(2)] == [False, True]
        assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
        assert pauses[-2:] == [LONGEST_PAUSE_S] * 2
        assert watch.put_off("a", 2, now) == FIRST_PAUSE_S

    def test_what_is_as_it_was_is_forgotten(self) -> None:
        watch = Watch()
        watch.see("a", 1, 0.0)
        watch.failed["a"] = Failure(0)
        watch.same("a")
        assert not watch.see("a", 1, 0.0)
        assert not watch.failed


@virtual
async def test_folders_come_and_go(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        with pytest.raises(NotFound):
            await on.infer("a")
        on.write("a")
        await on.look()
        assert (await on.infer("a")).model_version == "1"
        assert on.catalog.available_names() == ["a"]
        (on.root / "a").rename(tmp_path / "elsewhere")
        await on.look(1)
        await on.infer("a")  # one look is not enough
        await on.look(2)
        with pytest.raises(NotFound):
            await on.infer("a")
        assert on.loaded() == []
        assert on.catalog.available_names() == []
        assert ("a", "1") not in on.stats.models


@virtual
async def test_a_folder_that_is_replaced_by_two_renames_never_goes(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        old = await on.publish("a")
        await on.infer("a")
        on.write(".next")
        (on.root / "a").rename(on.root / ".former")
        await on.look(1)
        await on.infer("a")
        (on.root / ".next").rename(on.root / "a")
        on.farm.on_call = Farm.loads_held
        looking = asyncio.create_task(on.look(3))
        await settle()
        (call,) = on.farm.calls
        assert call.model == str(old)
        assert (await on.infer("a")).model_version == "1"
        call.succeed()
        await looking
        assert on.farm.loads_done == [str(old)] * 2
        assert on.loaded() == ["a/1/model.dummy"]


@virtual
async def test_a_new_version_is_loaded_beside_the_old_one_and_takes_over(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        await on.publish("a")
        await on.infer("a")
        on.write("a", "2")
        on.farm.on_call = Farm.loads_held
        looking = asyncio.create_task(on.look())
        await settle()
        assert (await on.infer("a")).model_version == "1"
        on.farm.calls[0].succeed()
        await looking
        assert (await on.infer("a")).model_version == "2"
        assert on.loaded() == ["a/2/model.dummy"]
        with pytest.raises(Unavailable, match="version 1 is not at ready state"):
            await on.infer("a", "1")


@virtual
@pytest.mark.parametrize("wish", ["pin", "min_copies"])
@pytest.mark.parametrize("still", [True, False])
async def test_what_is_pinned_makes_way_for_its_successor(tmp_path: Path, wish: str, still: bool) -> None:
    size = f'parameters {{ key: "roost.memory_bytes" value {{ string_value: "{BUDGET * 2 // 3}" }} }}'
    value = "1" if wish == "min_copies" else "true"
    pinned = f'{size} parameters {{ key: "roost.{wish}" value {{ string_value: "{value}" }} }}'
    async with site(tmp_path) as on:
        on.write("a")
        on.configure("a", pinned)
        await on.look(1)
        await on.infer("a")
        (holding,) = on.ledger.holdings
        on.ledger.pin(holding, pinned=True)
        on.write("a", "2")
        on.configure("a", pinned if still else size)
        await on.look()
        assert (await on.infer("a")).model_version == "2"
        assert on.loaded() == ["a/2/model.dummy"]
        (after,) = on.ledger.holdings.values()
        assert after.pinned is still


@virtual
async def test_what_is_pinned_stays_so_if_its_successor_fails(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        on.write("a")
        on.configure("a", 'parameters { key: "roost.pin" value { string_value: "true" } }')
        await on.look(1)
        await on.infer("a")
        on.write("a", "2")
        on.farm.on_call = lambda call: call.fail(InvalidArgument("the file is garbage"))
        await on.look()
        (holding,) = on.ledger.holdings.values()
        assert holding.pinned


@virtual
async def test_what_is_not_loaded_is_replaced_without_a_load(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        for name in ("a", "b"):
            await on.publish(name)
        await on.catalog.index(ready=False)
        on.configure("a", "version_policy { all { } }")
        on.write("a", "2")
        on.write("b", "7")
        await on.look()
        assert on.farm.loads_done == []
        assert [(e.name, e.version) for e in await on.catalog.index(ready=True)] == [("a", "1"), ("a", "2"), ("b", "7")]


@virtual
async def test_what_fails_leaves_the_old_one_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with site(tmp_path) as on:
        await on.publish("a")
        await on.infer("a")
        on.write("a", "2")
        on.farm.on_call = lambda call: call.fail(InvalidArgument("the file is garbage"))
        for reason in ("the file is garbage", "config.pbtxt"):
            for _ in range(3):
                await on.look()
            (said,) = [record for record in caplog.records if record.name == "roost.router.polling"]
            assert reason in said.message
            caplog.clear()
            on.configure("a", "nonsense")
        assert (await on.infer("a")).model_version == "1"
        on.farm.on_call = Farm.soon
        on.configure("a", "")
        await on.look()
        assert (await on.infer("a")).model_version == "2"


@virtual
async def test_a_change_that_is_too_large_is_said_now_and_then_and_served_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path) as on:
        running = asyncio.create_task(on.polling.run())
        await on.publish("a")
        await on.infer("a")
        too_large = f'parameters {{ key: "roost.memory_bytes" value {{ string_value: "{BUDGET // 2}" }} }}'
        on.mesh.set_limits(Limits(BUDGET // 4))
        on.write("a", "2")
        on.configure("a", too_large)
        await asyncio.sleep(3600)
        said = [record.message for record in caplog.records if record.name == "roost.router.polling"]
        assert 3 < len(said) < 12
        assert (await on.infer("a")).model_version == "1"
        on.mesh.set_limits(Limits(BUDGET))
        await asyncio.sleep(LONGEST_PAUSE_S + 60)
        assert (await on.infer("a")).model_version == "2"
        running.cancel()


@virtual
async def test_an_evicted_model_whose_version_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        old = await on.publish("a")
        await on.infer("a")
        present = on.catalog.present("a")
        assert present is not None
        on.mesh.loader.evict(*present.versions["1"].revision.instances)
        await settle()
        on.write("a", "2")
        old.rename(on.root / "a" / ".old")
        assert (await on.infer("a")).model_version == "2"
        await on.look()
        assert len(on.farm.loads_done) == 2


@virtual
async def test_a_broken_model_is_served_once_it_is_mended(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        await on.publish("a")
        on.configure("a", "nonsense")
        with pytest.raises(Unavailable):
            await on.infer("a")
        on.configure("a", "")
        await on.look()
        assert (await on.infer("a")).model_version == "1"


@virtual
async def test_a_request_that_finds_a_model_mended_during_a_look_leaves_nothing_loaded_behind(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        await on.publish("a")
        on.configure("a", "nonsense")
        with pytest.raises(Unavailable):
            await on.infer("a")
        on.configure("a", "")
        await asyncio.sleep(2)
        asked = asyncio.create_task(on.infer("a"))
        looking = asyncio.create_task(on.control.refresh("a"))
        await asyncio.gather(asked, looking)
        await settle()
        present = on.catalog.present("a")
        assert present is not None
        assert len(on.loaded()) == len(present.versions["1"].revision.instances)


@virtual
async def test_a_model_that_goes_while_its_folder_is_read_is_not_known(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        await on.publish("a")
        asked = asyncio.create_task(on.infer("a"))
        await asyncio.sleep(0)
        await on.control.remove("a")
        with pytest.raises(NotFound):
            await asked
        assert on.catalog.names() == []


@virtual
async def test_to_list_one_model_no_other_is_opened(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        for name in ("a", "b"):
            await on.publish(name)
        on.configure("a", "nonsense")
        (entry,) = await on.catalog.index(ready=False, name="a")
        assert (entry.name, entry.state) == ("a", "UNAVAILABLE")
        assert on.catalog.present("b") is None
        assert await on.catalog.index(ready=False, name="c") == []


@virtual
async def test_a_name_in_two_repositories_is_not_served_until_one_of_them_is_gone(tmp_path: Path) -> None:
    repositories = [LocalRepository(_made(tmp_path / name)) for name in ("r", "s")]
    for repository in repositories:
        (repository.path / "a" / "1").mkdir(parents=True)
        (repository.path / "a" / "1" / "model.dummy").touch()
    catalog = Catalog(repositories, Learned(MemoryStore()), InlineExecutor(), explicit=True)
    await catalog.scan()
    assert "more than one repository" in str((await catalog.reopen("a")).error)
    (repositories[0].path / "a").rename(tmp_path / "a")
    assert list((await catalog.reopen("a")).versions) == ["1"]


@pytest.mark.parametrize(
    ("change", "loads"),
    [
        (lambda on: on.configure("a", "instance_group { count: 2 }"), 1),
        (lambda on: on.configure("a", "version_policy { all { } }"), 1),
        (lambda on: (on.root / "a" / "labels.txt").write_text("cat"), 1),
        (lambda on: on.configure("a", "max_batch_size: 0 metric_tags { key: 'a' value: 'b' }"), 2),
        (lambda on: on.write("a", "1", "other"), 2),
        (lambda on: (on.root / "a" / "1" / "model.dummy").write_text("in place"), 2),
    ],
)
def test_only_what_changed_is_loaded_anew(tmp_path: Path, change: Callable[[Site], Any], loads: int) -> None:
    @virtual
    async def check() -> None:
        async with site(tmp_path) as on:
            await on.publish("a")
            await on.infer("a")
            change(on)
            await on.look()
            await on.look()
            assert len(on.farm.loads_done) == loads
            assert on.loaded() == ["a/1/model.dummy"]
            await on.infer("a")
            assert len(on.farm.loads_done) == loads

    check()


@virtual
async def test_a_change_of_the_version_policy_alone_is_shown(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        await on.publish("a")
        on.write("a", "2")
        await on.infer("a")
        on.configure("a", "version_policy { all { } }")
        await on.look()
        assert (await on.infer("a", "1")).model_version == "1"
        assert [model.split("/")[1] for model in on.loaded()] == ["1", "2"]
        (version,) = [on.catalog.known("a", "2")]
        assert version is not None
        assert version.revision.description.config.version_policy.HasField("all")


@virtual
async def test_files_that_are_being_written_are_waited_for(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        await on.publish("a")
        await on.infer("a")
        growing = on.root / "a" / "2" / "model.dummy"
        growing.parent.mkdir()
        await on.look(1)
        for size in range(1, 5):
            growing.write_bytes(bytes(size))
            await on.look_again()
        assert (await on.infer("a")).model_version == "1"
        await on.look_again()
        assert (await on.infer("a")).model_version == "2"


@virtual
async def test_a_repository_that_can_not_be_read_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path) as on:
        await on.publish("a")
        await on.infer("a")
        on.root.rename(tmp_path / "away")
        for _ in range(3):
            await on.look()
        assert (await on.infer("a")).model_version == "1"
        assert len([r for r in caplog.records if "can't be read" in r.message]) == 1


@virtual
async def test_the_loop_looks_at_its_interval_and_survives_what_goes_wrong(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        running = asyncio.create_task(on.polling.run())
        await asyncio.sleep(14)
        on.write("a")
        await asyncio.sleep(2)
        await on.infer("a")
        on.write("a", "2")
        await asyncio.sleep(13)
        assert (await on.infer("a")).model_version == "1"
        await asyncio.sleep(4)
        assert (await on.infer("a")).model_version == "2"
        running.cancel()


@virtual
async def test_a_slow_load_holds_up_no_other_change(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        await on.publish("a")
        await on.infer("a")
        running = asyncio.create_task(on.polling.run())
        on.farm.on_call = Farm.loads_held
        on.write("a", content="2")
        await asyncio.sleep(20)
        (call,) = on.farm.calls
        on.farm.on_call = on.farm.soon
        on.write("b")
        await asyncio.sleep(20)
        assert (await on.infer("b")).model_version == "1"
        assert on.farm.calls == [call]  # what is under way is not begun again
        call.succeed()
        await settle()
        running.cancel()


@virtual
async def test_a_file_that_changed_before_the_model_is_loaded_again_is_a_new_contract(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        path = await on.publish("a")
        await on.infer("a")
        present = on.catalog.present("a")
        assert present is not None
        revision = present.versions["1"].revision
        on.mesh.loader.evict(*revision.instances)
        await settle()
        loads = len(on.farm.loads_done)
        await on.infer("a")
        assert len(on.farm.loads_done) == loads + 1
        on.mesh.loader.evict(*revision.instances)
        await settle()
        path.unlink()
        on.write("a", content="another model")
        on.farm.signature = Signature((TensorSpec("x", "UINT8", (-1, 2)),), (TensorSpec("y", "UINT8", (-1, 2)),))
        with pytest.raises(InvalidArgument, match=r"Expected \[-1,2\], got \[4\]"):
            await on.infer("a")
        assert (await on.infer("a", shape=(4, 2))).model_version == "1"


@virtual
async def test_files_of_a_load_call_are_served_until_they_are_replaced(tmp_path: Path) -> None:
    async with site(tmp_path, explicit=True) as on:
        folder = tmp_path / "overrides"

        def brought() -> int:
            return len(list(folder.iterdir())) if folder.exists() else 0

        on.write("a")
        await on.control.load("a", {})
        files: dict[str, bool | int | str | bytes] = {"config": '{"backend": "dummy"}', "file:2/model.dummy": b"x"}
        await on.control.load("a", files)
        loads = len(on.farm.loads_done)
        await on.control.load("a", files)  # the same again
        assert (len(on.farm.loads_done), brought()) == (loads, 1)
        assert (await on.infer("a")).model_version == "2"
        with pytest.raises(Unavailable, match="version 1 is not at ready state"):
            await on.infer("a", "1")
        with pytest.raises(NotFound):
            await on.infer("a", "3")
        await on.control.load("a", {**files, "file:2/model.dummy": b"y"})
        await settle()
        assert (len(on.farm.loads_done), brought()) == (loads + 1, 1)
        with pytest.raises(InvalidArgument, match="no field named"):
            await on.control.load("a", {**files, "config": '{"foo": 1}'})
        on.farm.on_call = lambda call: call.fail(InvalidArgument("garbage"))
        with pytest.raises(RoostError, match="garbage"):
            await on.control.load("a", {**files, "file:2/model.dummy": b"z"})
        on.farm.on_call = Farm.soon
        await settle()
        assert brought() == 1
        assert (await on.infer("a")).model_version == "2"
        await on.control.load("a", {})
        await settle()
        assert (await on.infer("a")).model_version == "1"
        assert brought() == 0
        await on.control.load("new", files)
        assert on.catalog.available_names() == ["a", "new"]
        await on.control.unload("new")
        await settle()
        assert brought() == 0
        assert on.catalog.available_names() == ["a"]
        assert on.catalog.names() == ["a"]


@virtual
async def test_a_configuration_of_a_load_call_holds_until_the_next_load(tmp_path: Path) -> None:
    async with site(tmp_path, explicit=True) as on:
        for version in ("1", "2"):
            on.write("a", version)
        config = {"config": '{"version_policy": {"all": {}}, "metric_tags": {"a": "b"}}'}
        for _ in range(2):
            await on.control.load("a", config)
            assert len(on.farm.loads_done) == 2
        assert (await on.infer("a", "1")).model_version == "1"
        await on.control.load("a", {})
        with pytest.raises(Unavailable, match="version 1 is not at ready state"):
            await on.infer("a", "1")
        await settle()
        assert on.loaded() == ["a/2/model.dummy"]
        with pytest.raises(FailedPrecondition, match="'nope', failed to poll from model repository"):
            await on.control.load("nope", config)
        with pytest.raises(FailedPrecondition, match="has no version to serve"):
            await on.control.load("a", {"config": '{"version_policy": {"specific": {"versions": [7]}}}'})
        assert (await on.infer("a")).model_version == "2"


@virtual
async def test_a_load_call_whose_client_goes_away_leaves_nothing(tmp_path: Path) -> None:
    async with site(tmp_path, explicit=True) as on:
        on.farm.on_call = Farm.loads_held
        files: dict[str, bool | int | str | bytes] = {"config": '{"backend": "dummy"}', "file:1/model.dummy": b"x"}
        loading = asyncio.create_task(on.control.load("a", files))
        await settle()
        loading.cancel()
        await settle()
        on.farm.calls[0].succeed()
        await settle()
        assert on.farm.models() == []
        assert list((tmp_path / "overrides").iterdir()) == []


@virtual
async def test_want_of_descriptors_is_not_remembered_against_a_model(tmp_path: Path) -> None:
    async with site(tmp_path) as on:
        await on.publish("m")
        for is_opened in (False, True):
            for _ in range(ARTIFACT_TRIES):
                with no_descriptors(), pytest.raises(ResourceExhausted, match="Too many open files"):
                    await on.infer("m")
                assert (on.catalog.present("m") is not None) == is_opened
            await on.catalog.model("m")
        assert (await on.infer("m")).outputs
