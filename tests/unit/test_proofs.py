"""Which models are batched, and how that is found out without being in anybody's way; no process and no time passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from google.protobuf import json_format
from roost.core.errors import RoostError
from roost.core.figures import Figures
from roost.core.names import DEFAULT_NAMESPACE, VersionKey
from roost.core.tasks import in_background
from roost.core.tensors import Signature, TensorSpec
from roost.registry_client.digest import Artifact
from roost.registry_client.model_config import ModelDescription, complete_config, parse_config_json, parse_config_text
from roost.registry_client.model_folder import ModelFolder
from roost.router.background import LINGER_S, PATIENCE_S, RETRY_AFTER_S, TIMEOUT_S
from roost.router.catalog import Catalog
from roost.router.learned import Learned
from roost.router.loads import Load
from roost.router.placement import Ledger
from roost.router.plans import Limits
from roost.router.preparer import Preparer, PreparerFailed, PreparerSpec
from roost.router.proof import DEFAULT_ROWS, MAX_FAILURES, BatchingMode, Decision, Proof, conditions_of, decide
from roost.router.proofs import Proofs
from roost.router.revision import Revision
from roost.router.room import Need, Room

from tests.memory_store import MemoryStore
from tests.unit.mesh_fakes import FakeFolder, InlineExecutor
from tests.virtual_time import settle, virtual

OPEN = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))
PROVEN = {"result": {"max_rows": 16, "reason": ""}}
BUDGET_BYTES = 1 << 30
MODEL_BYTES = 1 << 20


def described(text: str = "", backend: str = "onnxruntime") -> ModelDescription:
    return parse_config_text(f"backend: '{backend}' {text}", "m")


def signature(inputs: tuple[int, ...], outputs: tuple[int, ...] = (-1, 2)) -> Signature:
    return Signature((TensorSpec("x", "FP32", inputs),), (TensorSpec("y", "FP32", outputs),))


class TestDecide:
    @pytest.mark.parametrize(
        ("description", "of", "mode", "decision"),
        [
            (described("max_batch_size: 8"), OPEN, BatchingMode.PROVEN, Decision(8, "config")),
            (described("max_batch_size: 8"), OPEN, BatchingMode.DECLARED, Decision(8, "config")),
            (described(), OPEN, BatchingMode.PROVEN, None),
            (described(), OPEN, BatchingMode.DECLARED, Decision(0, "not tried: --batching declared")),
            (described(), OPEN, BatchingMode.SYMBOLIC, Decision(DEFAULT_ROWS, "symbolic: up to 32 rows")),
            (
                described(),
                signature((1, 4)),
                BatchingMode.SYMBOLIC,
                Decision(0, "not proven: input 'x' has a fixed first dimension"),
            ),
            (
                described(),
                signature((-1, 4), ()),
                BatchingMode.PROVEN,
                Decision(0, "not proven: output 'y' has no dimension for rows"),
            ),
            (
                described("parameters { key: 'roost.batching' value { string_value: 'off' } } max_batch_size: 8"),
                OPEN,
                BatchingMode.PROVEN,
                Decision(0, "off"),
            ),
            (
                described("parameters { key: 'roost.batching' value { string_value: 'on' } }"),
                OPEN,
                BatchingMode.DECLARED,
                Decision(DEFAULT_ROWS, "on"),
            ),
            (
                described(backend="dummy"),
                OPEN,
                BatchingMode.PROVEN,
                Decision(0, "not proven: models of backend 'dummy' can't be tried"),
            ),
            (
                described("model_transaction_policy { decoupled: true }", "dummy"),
                OPEN,
                BatchingMode.SYMBOLIC,
                Decision(0, "off"),
            ),
        ],
    )
    def test_what_follows_from_configuration_and_signature(
        self, description: ModelDescription, of: Signature, mode: BatchingMode, decision: Decision | None
    ) -> None:
        assert decide(description, of, mode) == decision

    def test_a_reshaped_tensor(self) -> None:
        reshaped = Signature((TensorSpec("x", "FP32", (-1, 4), inner=(-1, 2, 2)),), OPEN.outputs)
        assert decide(described(), reshaped, BatchingMode.PROVEN) == Decision(0, "not proven: input 'x' is reshaped")

    def test_what_is_shown_can_be_sent_back(self) -> None:
        shown = [
            "config",
            "pending",
            "not tried: --batching declared",
            "symbolic: up to 32 rows",
            Proof(16).decision.text,
            Proof(0, "operator NonZero mixes rows").decision.text,
        ]
        for text in shown:
            config = complete_config(described(), OPEN)
            config.parameters["roost.batching"].string_value = text
            again = parse_config_json(json_format.MessageToJson(config), "m")
            assert again.policy.batching is None

    def test_a_proof_holds_for_the_options_that_it_was_made_with(self) -> None:
        graph = "optimization { graph { level: -1 } }"
        warmup = "model_warmup { name: 'w' inputs { key: 'x' value { dims: [1] zero_data: true } } }"
        assert len({conditions_of(described(text)) for text in ("", graph, warmup)}) == 3


@dataclass(eq=False)
class FakeProcess:
    """A preparer whose answers are up to the test."""

    pid: int
    jobs: list[dict[str, Any]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    killed: bool = False
    _answer: asyncio.Future[Any] | None = None

    async def ask(self, job: Any) -> Any:
        self.jobs.append(dict(job))
        self._answer = asyncio.get_running_loop().create_future()
        if self.ended.is_set():
            raise PreparerFailed
        return await self._answer

    def answer(self, answer: Any = None) -> None:
        assert self._answer is not None
        self._answer.set_result(answer or PROVEN)

    def kill(self) -> None:
        self.killed = True
        self.end()

    def finish(self) -> None:
        self.end()

    def end(self) -> None:
        self.ended.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(PreparerFailed())

    async def wait(self) -> int:
        await self.ended.wait()
        return -9 if self.killed else 0


@dataclass
class Bed:
    """A background that finds things out, and what it works with."""

    ledger: Ledger
    store: MemoryStore
    room: Room
    catalog: Catalog
    proofs: Proofs
    processes: list[FakeProcess]

    @property
    def process(self) -> FakeProcess:
        (process,) = [process for process in self.processes if not process.ended.is_set()]
        return process

    def proofs_kept(self) -> list[Proof | None]:
        keys = [key.removeprefix("proofs/").split("/", 1) for key in self.store.scan("proofs/")]
        return [Learned(self.store).get_proof(digest, conditions) for digest, conditions in keys]

    def running(self) -> bool:
        return any(not process.ended.is_set() for process in self.processes)

    async def load(self, name: str = "m", text: str = "", **changes: Any) -> Revision:
        """Loads a model whose files are those of ``of``, its own by default."""
        folder = FakeFolder(changes.get("of", name))
        cast(Any, folder).path = "/models/" + name
        cast(Any, folder).artifact = _sized(folder.artifact)
        revision = Revision(VersionKey(DEFAULT_NAMESPACE, name, "1"), cast(ModelFolder, folder), described(text))
        await self.catalog.prepare(revision)
        revision.describe(changes.get("signature", OPEN))
        self.catalog.loaded(revision)
        await settle()
        return revision


def _sized(artifact: Callable[..., Artifact]) -> Callable[..., Artifact]:
    def sized(*args: Any) -> Artifact:
        made = artifact(*args)
        return Artifact(made.path, made.root, made.digest, MODEL_BYTES, made.stamp)

    return sized


@asynccontextmanager
async def bed(budget_bytes: int = BUDGET_BYTES, store: MemoryStore | None = None) -> AsyncIterator[Bed]:
    """A bed; at the end no process and no memory may be left."""
    ledger, store, processes = Ledger(Limits(budget_bytes)), store or MemoryStore(), list[FakeProcess]()
    room = Room(ledger, lambda idle, busy: None)
    catalog = Catalog([], Learned(store), InlineExecutor(), explicit=False)

    async def launch(spec: PreparerSpec) -> FakeProcess:
        assert all(process.ended.is_set() for process in processes)
        processes.append(FakeProcess(len(processes) + 1))
        return processes[-1]

    proofs = Proofs(BatchingMode.PROVEN, ledger, room, catalog, Preparer(PreparerSpec(), launch))
    made = Bed(ledger, store, room, catalog, proofs, processes)
    async with in_background(proofs.run()):
        yield made
        await settle()
    room.stop()
    assert not made.running()
    assert -1 not in ledger.holdings


class TestFindingOut:
    @virtual
    async def test_a_loaded_model_is_tried_and_batched_from_then_on(self) -> None:
        async with bed() as b:
            revision = await b.load()
            assert (revision.batching, revision.batch_rows) == ("pending", 0)
            assert b.process.jobs[0]["job"] == "prove_batching"
            assert b.process.jobs[0]["memory_bytes"] <= b.ledger.used_bytes
            b.process.answer()
            await settle()
            assert (revision.batching, revision.batch_rows) == ("proven: up to 16 rows", 16)
            assert await b.proofs.describe(revision) == "proven: up to 16 rows"
            assert b.proofs_kept() == [Proof(16)]

    @virtual
    async def test_what_is_not_proven_says_why(self) -> None:
        async with bed() as b:
            revision = await b.load()
            b.process.answer({"result": {"max_rows": 0, "reason": "operator NonZero mixes rows"}})
            await settle()
            assert (revision.batching, revision.batch_rows) == ("not proven: operator NonZero mixes rows", 0)

    @virtual
    async def test_the_same_files_are_tried_once(self) -> None:
        async with bed() as b:
            first, second = await b.load("a"), await b.load("b", of="a")
            b.process.answer()
            await settle()
            third = await b.load("c", of="a")
            assert [r.batch_rows for r in (first, second, third)] == [16, 16, 16]
            assert len(b.process.jobs) == 1

    @virtual
    async def test_one_after_another_by_one_process_that_ends(self) -> None:
        async with bed() as b:
            await b.load("a")
            await b.load("b")
            assert len(b.process.jobs) == 1
            b.process.answer()
            await settle()
            b.process.answer()
            await settle()
            assert len(b.processes) == 1
            await asyncio.sleep(LINGER_S + 1)
            assert not b.running()
            assert b.ledger.used_bytes == 0

    @virtual
    async def test_it_is_remembered_after_a_restart(self) -> None:
        async with bed() as b:
            await b.load()
            b.process.answer()
            await settle()
            store = b.store
        async with bed(store=store) as b:
            assert (await b.load()).batch_rows == 16
            assert not b.processes

    @virtual
    async def test_a_model_that_is_not_to_be_tried(self) -> None:
        async with bed() as b:
            declared = await b.load("a", "max_batch_size: 4")
            fixed = await b.load("b", signature=signature((1, 4)))
            assert (declared.batching, declared.batch_rows) == ("config", 4)
            assert fixed.batching == "not proven: input 'x' has a fixed first dimension"
            assert not b.processes

    @virtual
    async def test_files_that_changed_meanwhile_prove_nothing(self) -> None:
        async with bed() as b:
            revision = await b.load()
            cast(Any, revision.folder).generation += 1
            b.process.answer()
            await settle()
            assert (revision.batching, revision.batch_rows) == ("pending", 0)
            assert not b.proofs_kept()

    @virtual
    async def test_others_with_the_files_that_one_had_are_tried_by_theirs(self) -> None:
        async with bed() as b:
            changed = await b.load("a")
            kept = await b.load("b", of="a")
            cast(Any, changed.folder).generation += 1
            b.process.answer()
            await settle()
            assert len(b.process.jobs) == 2
            b.process.answer()
            await settle()
            assert (changed.batch_rows, kept.batch_rows) == (0, 16)

    @virtual
    async def test_a_replaced_revision_is_not_tried(self) -> None:
        async with bed() as b:
            await b.load("a")
            waiting = await b.load("b")
            waiting.retired = True
            b.process.answer()
            await settle()
            assert len(b.process.jobs) == 1


class TestMisfortune:
    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (None, "it was ended by signal 9"),
            ({"error": "not enough memory"}, "not enough memory"),
            ({"result": {"max_rows": "many"}}, "the preparer's answer can't be understood"),
        ],
    )
    @virtual
    async def test_an_attempt_that_fails_is_made_again_but_not_for_ever(
        self, answer: dict[str, Any] | None, reason: str
    ) -> None:
        async with bed() as b:
            revision = await b.load()
            for attempt in range(MAX_FAILURES):
                assert b.running()
                if answer is None:
                    b.process.kill()
                else:
                    b.process.answer(answer)
                await settle()
                assert revision.batching == f"not proven: the attempt failed: {reason}"
                await asyncio.sleep(RETRY_AFTER_S * 4**attempt + 1)
            assert not b.running()
            store = b.store
        async with bed(store=store) as b:
            assert (await b.load()).batching == f"not proven: the attempt failed: {reason}"
            assert not b.processes

    @virtual
    async def test_one_that_hangs_is_ended(self) -> None:
        async with bed() as b:
            revision = await b.load()
            process = b.process
            await asyncio.sleep(TIMEOUT_S + 1)
            assert process.killed
            assert "had no answer within 1800 s" in revision.batching

    @virtual
    async def test_what_is_not_installed_is_not_remembered(self) -> None:
        async with bed() as b:
            revision = await b.load()
            b.process.answer({"error": "the package 'onnx' is not installed", "missing": True})
            await asyncio.sleep(RETRY_AFTER_S * 100)
            assert revision.batching == "not proven: the package 'onnx' is not installed"
            assert not b.proofs_kept()
            assert len(b.processes) == 1


class TestGivingWay:
    @virtual
    async def test_it_waits_while_models_load(self) -> None:
        async with bed() as b:
            b.ledger.reserve(1, "other", Figures(1000))
            await b.load()
            assert not b.processes
            b.ledger.loaded(1, 0.0, load_s=0.1)
            await asyncio.sleep(2)
            assert b.running()

    @virtual
    async def test_but_not_for_ever_if_there_is_memory(self) -> None:
        async with bed() as b:
            b.ledger.reserve(1, "other", Figures(1000))
            await b.load()
            await asyncio.sleep(PATIENCE_S + 2)
            assert b.running()

    @virtual
    async def test_it_evicts_nothing(self) -> None:
        async with bed() as b:
            b.ledger.reserve(1, "other", Figures(BUDGET_BYTES - 1000))
            b.ledger.loaded(1, 0.0, load_s=0.1)
            revision = await b.load()
            await asyncio.sleep(100)
            assert not b.processes
            assert revision.batching == "pending"
            b.ledger.leaving(1)
            b.ledger.gone(1)
            await asyncio.sleep(2)
            assert b.running()

    @virtual
    async def test_a_budget_that_is_too_small(self) -> None:
        async with bed(budget_bytes=1 << 20) as b:
            revision = await b.load()
            assert revision.batching.startswith("not proven: trying it takes ")
            assert not b.proofs_kept()

    @virtual
    async def test_a_load_gets_its_memory_at_once_and_the_trial_is_made_later(self) -> None:
        async with bed() as b:
            revision, other = await b.load(), await b.load("other", "max_batch_size: 1")
            other.waiters = 1
            process = b.process
            await b.room.reserve(1, load_of(other), Need(Figures(BUDGET_BYTES - 1000)))
            assert process.killed
            assert b.ledger.used_bytes == BUDGET_BYTES - 1000
            assert revision.batching == "pending"
            b.ledger.gone(1)
            await asyncio.sleep(LINGER_S * 10)
            b.process.answer()
            await settle()
            assert revision.batch_rows == 16

    @virtual
    async def test_a_process_that_lingers_goes_at_once(self) -> None:
        async with bed() as b:
            await b.load()
            other = await b.load("other", "max_batch_size: 1")
            other.waiters = 1
            b.process.answer()
            await settle()
            await b.room.reserve(1, load_of(other), Need(Figures(BUDGET_BYTES - 1000)))
            assert not b.running()


def load_of(revision: Revision) -> Load:
    return Load(revision, asyncio.get_running_loop().create_future())


@virtual
async def test_models_that_were_not_loaded_yet() -> None:
    async with bed() as b:
        revision = await b.load()
        b.process.answer()
        await settle()
        cold = Revision(revision.key, revision.folder, revision.description)
        assert await b.proofs.describe(cold) == ""
        cold.describe(OPEN)
        assert await b.proofs.describe(cold) == "proven: up to 16 rows"
        broken = Revision(revision.key, cast(ModelFolder, _Broken()), revision.description)
        broken.describe(OPEN)
        assert await b.proofs.describe(broken) == "pending"


class _Broken:
    def artifact(self, *_: Any) -> Artifact:
        raise RoostError("its files are gone")
