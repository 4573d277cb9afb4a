"""The three figures of memory in the mesh on fake workers: files that are shared, mappings, growth, priorities."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field, replace

import pytest
from roost.core.errors import ResourceExhausted
from roost.core.figures import Figures
from roost.router.learned import Measured as Found
from roost.router.plans import Limits
from roost.router.prepared import NoCopies
from roost.router.revision import Revision
from roost.router.sizes import LEAST_BYTES, copy_size, estimated_bytes, plain_size
from roost.runtimes.prepared.cache import Copy
from roost.runtimes.prepared.manifest import FileRecord, Manifest, Measured

from tests.unit.mesh_fakes import Bed, Call, Farm, bed, worker_of
from tests.virtual_time import settle, virtual

pytestmark = pytest.mark.filterwarnings("error")

SIZE = LEAST_BYTES
FILE_BYTES = 1 << 20
MAPPINGS = 30


@dataclass
class Copies(NoCopies):
    """A copy of every model: of one file for those whose names begin with the same letter."""

    peak_bytes: int = SIZE
    blamed: list[bool] = field(default_factory=list)

    def failed(self, revision: Revision, copy: Copy, *, lost: bool) -> None:
        self.blamed.append(lost)

    async def find(self, revision: Revision) -> Copy | None:
        name = revision.key.name
        measured = Measured(0.0, 0.0, SIZE, self.peak_bytes, MAPPINGS)
        manifest = Manifest(name[0], "dummy", files={"f": FileRecord(FILE_BYTES, "")}, copy=measured)
        return Copy(f"copy of {name[0]}", name, name, manifest)


def limit(on: Bed, *, memory_bytes: int = 1 << 40, mappings: int = 1 << 20) -> None:
    on.ledger.limits = Limits(on.ledger.limits.private_bytes, memory_bytes, mappings)


@virtual
async def test_a_file_that_several_models_map_is_paid_for_once() -> None:
    async with bed(100 * SIZE, workers=2) as on:
        on.mesh.loader.copies = Copies()
        limit(on, memory_bytes=2 * FILE_BYTES + 4 * SIZE)
        await on.make_resident(*[on.model(name, SIZE) for name in ("a1", "a2", "b1")])
        assert on.ledger.mapped_bytes == 2 * FILE_BYTES
        await on.make_resident(on.model("a3", SIZE))
        assert len(on.farm.models()) == 4
        await on.make_resident(on.model("c1", SIZE))
        assert on.farm.models() == ["a1", "a2", "a3", "c1"], "three are older, but one brings as much"
        await on.make_resident(on.model("d1", SIZE))
        assert on.farm.models() == ["c1", "d1"], "the file's pages are free when the last one has gone"


@virtual
async def test_a_load_goes_where_its_mappings_fit_and_evicts_where_they_do_not() -> None:
    async with bed(100 * SIZE, workers=2) as on:
        on.mesh.loader.copies = Copies()
        limit(on, mappings=2 * MAPPINGS)
        models = [on.model(name, SIZE) for name in ("a", "b", "c", "d", "e")]
        await on.make_resident(*models)
        assert on.farm.models() == ["b", "c", "d", "e"]
        assert [on.ledger.figures_of(worker.id).mappings for worker in on.mesh.workers] == [2 * MAPPINGS] * 2
        limit(on, mappings=MAPPINGS - 1)
        with pytest.raises(ResourceExhausted, match=r"needs 30 mappings, more than the 29 that a process may have"):
            await on.infer(models[0])


@virtual
async def test_what_only_the_load_took_is_there_for_others_afterwards() -> None:
    async with bed(5 * SIZE) as on:
        on.mesh.loader.copies = Copies(peak_bytes=4 * SIZE)
        a, b = on.model("a", SIZE), on.model("b", SIZE)
        on.farm.on_call = on.farm.held
        load = asyncio.ensure_future(on.mesh.loader.bring(a))
        await settle()
        assert (on.ledger.used_bytes, on.ledger.reserved_bytes) == (4 * SIZE, 4 * SIZE)
        on.call(a).succeed()
        await load
        assert on.ledger.used_bytes == a.instances[0].figures.private_bytes == SIZE
        on.farm.on_call = on.farm.soon
        await on.make_resident(b)
        assert on.farm.models() == ["a", "b"]


@pytest.mark.parametrize(
    ("code", "from_copy", "blamed"),
    [(-signal.SIGKILL, [True, True], []), (-signal.SIGSEGV, [True, False], [True]), (1, [True, False], [True])],
)
@virtual
async def test_a_copy_is_blamed_for_a_lost_worker_unless_that_was_killed(
    code: int, from_copy: list[bool], blamed: list[bool]
) -> None:
    begun: list[bool] = []

    def lose_the_first(call: Call) -> None:
        begun.append(call.payload["prepared"])
        if len(begun) == 1:
            call.process.end_soon(code)
        else:
            Farm.soon(call)

    async with bed(100 * SIZE) as on:
        copies = on.mesh.loader.copies = Copies()
        on.farm.death_takes_s = 0.1
        on.farm.on_call = lose_the_first
        await on.mesh.loader.bring(on.model("a", SIZE))
        assert (begun, copies.blamed) == (from_copy, blamed)


@virtual
async def test_others_go_when_a_model_turns_out_to_take_more() -> None:
    async with bed(100) as on:
        a, b = on.model("a", 40), on.model("b", 40)
        await on.make_resident(a, b)
        (instance,) = b.instances
        for found, left in ((60, ["a", "b"]), (61, ["b"])):
            instance.figures = Figures(found)
            on.ledger.resized(instance.id, instance.figures)
            on.mesh.loader.room.changed()
            await settle()
            assert on.farm.models() == left
        on.sizes["b"] = 61


@virtual
async def test_what_has_grown_beyond_everything_goes_when_it_is_idle() -> None:
    async with bed(100) as on:
        a = on.model("a", 40)
        await on.make_resident(a)
        sent = on.submit(a)
        await settle()
        on.ledger.resized(a.instances[0].id, Figures(101))
        on.mesh.loader.room.changed()
        await settle()
        assert on.farm.models() == ["a"]
        on.answer_all()
        await sent.future
        await settle()
        assert on.farm.models() == []


@virtual
async def test_models_of_a_lower_priority_go_first() -> None:
    async with bed(100) as on:
        revisions = [on.model(name, 25) for name in "abcd"]
        for revision, priority in zip(revisions, (1, 0, 0, -1), strict=True):
            policy = replace(revision.description.policy, priority=priority)
            revision.description = replace(revision.description, policy=policy)
        await on.make_resident(*revisions)
        await on.make_resident(on.model("e", 50))
        assert on.farm.models() == ["a", "c", "e"]


@virtual
async def test_a_worker_is_accounted_with_what_is_about_to_be_loaded_in_it() -> None:
    async with bed(100, workers=2) as on:
        a = on.model("a", 40)
        on.farm.on_call = on.farm.held
        load = asyncio.ensure_future(on.mesh.loader.bring(a))
        await settle()
        assert sorted(worker.account.private_bytes for worker in on.mesh.workers) == [0, 40]
        on.call(a).succeed()
        await load
        assert worker_of(a).account.private_bytes == 40
        on.farm.on_call = on.farm.soon


MIB = 1 << 20
FOUND = Found(Figures(6 * MIB, 0, 9), 0.1, 8 * MIB)
FILES = {"data": FileRecord(5 * MIB, "")}
COPY = Manifest("d", "onnxruntime", files=FILES, copy=Measured(0.1, 0.1, 2 * MIB, 3 * MIB, 40))


@pytest.mark.parametrize(
    ("declared_bytes", "found", "loading_bytes", "loaded_bytes"),
    [
        (None, None, estimated_bytes(MIB), estimated_bytes(MIB)),
        (MIB, None, MIB, MIB),
        (None, FOUND, 8 * MIB, 6 * MIB),
        (MIB, FOUND, 8 * MIB, 6 * MIB),
        (7 * MIB, FOUND, 8 * MIB, 7 * MIB),
        (9 * MIB, FOUND, 9 * MIB, 9 * MIB),
        (None, Found(Figures(0)), LEAST_BYTES, LEAST_BYTES),
    ],
)
def test_what_a_model_takes_from_its_own_files(
    declared_bytes: int | None, found: Found | None, loading_bytes: int, loaded_bytes: int
) -> None:
    size = plain_size(declared_bytes, MIB, found)
    assert (size.loading.private_bytes, size.loaded.private_bytes) == (loading_bytes, loaded_bytes)
    assert size.loaded.mappings == (9 if found is FOUND else 0)


@pytest.mark.parametrize(
    ("declared_bytes", "manifest", "more", "loading_bytes", "loaded"),
    [
        (None, COPY, None, 3 * MIB, Figures(2 * MIB, 5 * MIB, 40)),
        (4 * MIB, COPY, None, 4 * MIB, Figures(4 * MIB, 5 * MIB, 40)),
        (None, COPY, FOUND, 8 * MIB, Figures(6 * MIB, 5 * MIB, 40)),
        (None, replace(COPY, copy=None), FOUND, 8 * MIB, Figures(6 * MIB, 5 * MIB, 9)),
        (None, replace(COPY, copy=None), None, estimated_bytes(MIB), Figures(estimated_bytes(MIB), 5 * MIB)),
    ],
)
def test_what_a_model_takes_from_a_copy(
    declared_bytes: int | None, manifest: Manifest, more: Found | None, loading_bytes: int, loaded: Figures
) -> None:
    size = copy_size(declared_bytes, MIB, manifest, more)
    assert size.loaded == loaded
    assert size.loading == replace(loaded, private_bytes=loading_bytes)
