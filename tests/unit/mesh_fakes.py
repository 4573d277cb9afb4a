"""A mesh whose workers are objects: what they are told is seen, and what they answer is up to the test.

The fake workers keep books of their own and fail the test if the mesh asks for what a worker could not do: run what is
not loaded, unload what runs, load twice at once, or hold more than the budget.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from roost.core.errors import Cancelled, RoostError
from roost.core.frames import Credit, FrameType, Response, Run, StepTimes, WireTensor
from roost.core.names import DEFAULT_NAMESPACE, VersionKey
from roost.core.requests import InferRequest, InferResponse, RequestContext
from roost.core.tensors import Signature, Tensor, TensorSpec
from roost.proto import model_config_pb2 as mc
from roost.registry_client.digest import Artifact
from roost.registry_client.model_config import ModelDescription
from roost.registry_client.model_folder import ModelFolder
from roost.registry_client.policy import ModelPolicy
from roost.router.catalog import Catalog
from roost.router.inference import settle as settle_future
from roost.router.intake import Intake
from roost.router.learned import Learned
from roost.router.link import Link, LinkListener, LinkLost
from roost.router.mesh import Mesh, MeshSettings
from roost.router.models import Model, Version
from roost.router.pending import Pending
from roost.router.placement import Ledger
from roost.router.plans import Limits
from roost.router.process import WorkerProcess, WorkerSpec
from roost.router.revision import Revision
from roost.router.states import Availability, InstanceState
from roost.router.stats import Stats
from roost.router.streams import ResponseStream
from roost.router.worker import Worker

from tests.memory_store import MemoryStore
from tests.virtual_time import settle

SIGNATURE = Signature((TensorSpec("x", "UINT8", (-1,)),), (TensorSpec("y", "UINT8", (-1,)),))


@dataclass(eq=False)
class Call:
    """A LOAD or UNLOAD that waits for its answer."""

    process: FakeProcess
    type: FrameType
    payload: dict[str, Any]
    future: asyncio.Future[dict[str, Any]]
    number: int | None = None
    cancelled: bool = False

    @property
    def instance(self) -> int:
        return int(self.payload["instance"])

    @property
    def model(self) -> str:
        return str(self.payload["path"]) if self.type is FrameType.LOAD else self.process.loaded[self.instance]

    def succeed(self) -> None:
        """The worker has done it."""
        if self.future.done():
            return
        farm = self.process.farm
        if self.type is FrameType.LOAD:
            self.process.loaded[self.instance] = self.model
            farm.loads_done.append(self.model)
            self.future.set_result({"instance": self.instance, "signature": farm.signature.to_json()})
        else:
            del self.process.loaded[self.instance]
            self.future.set_result({"instance": self.instance})
        farm.calls.remove(self)
        farm.check_memory()

    def fail(self, error: RoostError) -> None:
        """The worker could not do it."""
        self.process.farm.calls.remove(self)
        self.future.set_exception(error)


def _joined(data: object) -> bytes:
    """Inline elements, which may lie in several buffers."""
    return b"".join(cast(Sequence[bytes], data)) if isinstance(data, list) else bytes(cast(bytes, data))


@dataclass(eq=False)
class Job:
    """A run that waits for its answer."""

    process: FakeProcess
    number: int
    run: Run
    places: Sequence[WireTensor] = ()
    started: bool = False
    cancelled: bool = False
    emitted: int = 0
    credit: Credit = field(default=Credit(0, 0))

    def __post_init__(self) -> None:
        self.credit = self.run.credit or self.credit

    @property
    def model(self) -> str:
        return self.process.loaded[self.run.instance]

    @property
    def data(self) -> bytes:
        """The elements of the first input."""
        return _joined(self.run.inputs[0].data)

    def start(self) -> None:
        """The worker begins with it."""
        self.started = True
        self.process.begun.add(self.number)

    def answer(self) -> None:
        """The worker is done: the input is the output."""
        outputs = [WireTensor("y", t.datatype, t.shape, _joined(t.data)) for t in self.run.inputs]
        self.answer_with(*outputs)

    def answer_with(self, *outputs: WireTensor) -> None:
        """The worker is done and has these outputs."""
        if not self.started:
            self.start()
        self._end()
        times = StepTimes(1, 2, 2, 3, 3, 3 + self.process.farm.run_ns)
        self.process.listener.on_response(self.number, Response(outputs, times=times))

    def emit(self, size_bytes: int = 1) -> bool:
        """The worker sends a response that is not the last one, if it has the credit for one; whether it had."""
        if self.run.credit is not None:
            if self.credit.responses <= 0 or self.credit.bytes <= 0:
                return False
            self.credit = Credit(self.credit.responses - 1, self.credit.bytes - size_bytes)
        if not self.started:
            self.start()
        output = WireTensor("y", "UINT8", (size_bytes,), bytes([self.emitted % 256]) * size_bytes)
        response = Response([output], self.emitted, final=False, times=StepTimes(1, 2, 2, 3, 3, 4))
        self.emitted += 1
        self.process.listener.on_response(self.number, response)
        return True

    def close(self) -> None:
        """The worker's model ends a stream without another response."""
        self._end()
        self.process.listener.on_response(self.number, Response([], self.emitted, times=StepTimes(1, 2, 2, 3, 3, 4)))

    def fail(self, error: RoostError) -> None:
        """The worker could not do it."""
        self._end()
        self.process.listener.on_run_error(self.number, error)

    def _end(self) -> None:
        self.process.farm.jobs.remove(self)


class FakeLink:
    """Stands for ``WorkerLink``."""

    def __init__(self, process: FakeProcess) -> None:
        self._process = process
        self._numbers = itertools.count(1)
        self.closed = False

    def next_number(self) -> int:
        return next(self._numbers)

    @property
    def arena_bytes(self) -> int:
        return 0

    def send_run(self, number: int, run: Run, outputs: Sequence[WireTensor] = ()) -> None:
        if not self.closed:
            self._process.take_run(Job(self._process, number, run, outputs))

    def has_started(self, number: int) -> bool:
        return number in self._process.begun

    def stage(self, size_bytes: int) -> memoryview | None:
        return None

    def send_cancel(self, number: int) -> None:
        for job in self._process.farm.jobs:
            if job.process is self._process and job.number == number:
                job.cancelled = True
        for call in self._process.farm.calls:
            if call.process is self._process and call.number == number:
                call.cancelled = True

    def send_credit(self, number: int, credit: Credit) -> None:
        for job in self._process.farm.jobs:
            if job.process is self._process and job.number == number:
                job.credit = Credit(job.credit.responses + credit.responses, job.credit.bytes + credit.bytes)

    def send_answer(self, number: int, answer: Sequence[Tensor] | RoostError) -> None:
        self._process.answers[number] = answer

    async def hung(self) -> None:
        await self._process.hung.wait()
        self._process.hung.clear()

    async def call(self, type_: FrameType, payload: dict[str, Any], *, number: int | None = None) -> dict[str, Any]:
        if self.closed:
            raise LinkLost("the worker is gone")
        call = Call(self._process, type_, payload, asyncio.get_running_loop().create_future(), number)
        self._process.take_call(call)
        try:
            return await call.future
        finally:
            if call in self._process.farm.calls:
                self._process.farm.calls.remove(call)

    def abort(self) -> None:
        self._process.lose_link()


class FakeProcess:
    """Stands for a worker process."""

    def __init__(self, farm: Farm, spec: WorkerSpec, pid: int, listener: LinkListener) -> None:
        self.farm = farm
        self.spec = spec
        self.pid = pid
        self.listener = listener
        self.loaded: dict[int, str] = {}
        self.answers: dict[int, Sequence[Tensor] | RoostError] = {}
        self.begun: set[int] = set()
        self.hung = asyncio.Event()
        self.stop_seen = asyncio.Event()
        self.out_of_memory = False
        self._link = FakeLink(self)
        self._ending = False
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def link(self) -> Link:
        return self._link

    def kill(self) -> None:
        self.end(-signal.SIGKILL)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    async def stopped(self) -> None:
        await self.stop_seen.wait()

    def ran_out_of_memory(self) -> bool:
        return self.out_of_memory

    def end(self, code: int = 1, *, keeps_link: bool = False) -> None:
        """The process ends; its link closes first, as the kernel does it, and its memory is free last.

        Args:
            code: Its exit code.
            keeps_link: Whether a copy of it keeps the link open.
        """
        if self._ending:
            return
        self._ending = True
        if not keeps_link:
            self.lose_link()
        if self.farm.death_takes_s:
            asyncio.get_running_loop().call_later(self.farm.death_takes_s, self._ended.set_result, code)
        else:
            self._ended.set_result(code)

    def end_soon(self, code: int) -> None:
        """The process ends on the next turn of the loop."""
        asyncio.get_running_loop().call_soon(self.end, code)

    def lose_link(self) -> None:
        """The link closes; the process ends soon after, if it has not."""
        if self._link.closed:
            return
        self._link.closed = True
        farm = self.farm
        farm.jobs = [job for job in farm.jobs if job.process is not self]
        for call in [call for call in farm.calls if call.process is self]:
            farm.calls.remove(call)
            if not call.future.done():
                call.future.set_exception(LinkLost("the worker was lost"))
        self.loaded.clear()
        if self in farm.processes:
            farm.processes.remove(self)
        self.listener.on_lost(self._link)
        self.end_soon(0)

    def take_call(self, call: Call) -> None:
        farm = self.farm
        if call.type is FrameType.TRIM:
            farm.on_trim(self)
            call.future.set_result({})
            return
        if call.type is FrameType.LOAD:
            loading = [other.model for other in farm.calls if other.type is FrameType.LOAD]
            assert call.model not in loading, f"{call.model} is loaded twice at once"
            assert call.instance not in self.loaded
        else:
            assert not [j for j in farm.jobs if j.process is self and j.run.instance == call.instance], "it still runs"
            if call.instance not in self.loaded:
                call.future.set_exception(Cancelled("not loaded"))
                return
        farm.calls.append(call)
        farm.check_memory()
        farm.on_call(call)

    def take_run(self, job: Job) -> None:
        farm = self.farm
        assert job.run.instance in self.loaded, "a run of what is not loaded"
        farm.jobs.append(job)
        mine = [other for other in farm.jobs if other.process is self]
        assert len(mine) <= max(self.spec.slots, farm.most_runs), "more runs than slots"
        farm.on_run(job)


class Farm:
    """All fake workers.

    Attributes:
        on_call: Does something with each LOAD and UNLOAD; by default they succeed at once.
        on_run: Likewise with each run; by default nothing, so that the test answers.
        on_trim: Told of each worker that is to give memory back.
        calls: Loads and unloads that have no answer yet.
        jobs: Runs that have no answer yet.
        loads_done: Models in the order in which they were loaded.
        may_start: Whether processes can be started.
        base_bytes: What processes of a kind take before anything is loaded.
        gpu_runtimes: What the processes of a device say that they can use it for.
        death_takes_s: How long a process that lost its link still has its memory.
        most_runs: How many runs a worker may have at once besides one for each slot.
        run_ns: What the worker says that a run took.
    """

    def __init__(self, sizes: dict[str, int], budget_bytes: Callable[[], int]) -> None:
        self.signature = SIGNATURE
        self.processes: list[FakeProcess] = []
        self.calls: list[Call] = []
        self.jobs: list[Job] = []
        self.loads_done: list[str] = []
        self.on_call: Callable[[Call], None] = self.soon
        self.on_run: Callable[[Job], None] = lambda job: None
        self.on_trim: Callable[[FakeProcess], None] = lambda process: None
        self.may_start = True
        self.base_bytes: dict[str, int] = {}
        self.gpu_runtimes: dict[str, Sequence[str]] = {}
        self.death_takes_s = 0.0
        self.most_runs = 0
        self.run_ns = 10_000_000
        self._sizes = sizes
        self._budget_bytes = budget_bytes
        self._pids = itertools.count(100)

    async def launch(self, spec: WorkerSpec, worker: int, epoch: int, listener: LinkListener) -> WorkerProcess:
        """See ``Launch``."""
        if not self.may_start:
            raise OSError("no more processes")
        process = FakeProcess(self, spec, next(self._pids), listener)
        self.processes.append(process)
        base_bytes = self.base_bytes.get(spec.kind, 0)
        hello = {"pid": process.pid, "base_bytes": base_bytes, "gpu_runtimes": self.gpu_runtimes.get(spec.device, ())}
        asyncio.get_running_loop().call_soon(listener.on_hello, hello)
        return process

    @staticmethod
    def soon(call: Call) -> None:
        """Answers on the next turn of the loop."""
        asyncio.get_running_loop().call_soon(call.succeed)

    @staticmethod
    def after(delay_s: float) -> Callable[[Call], None]:
        """Answers that much later."""
        return lambda call: cast(None, asyncio.get_running_loop().call_later(delay_s, call.succeed))

    @staticmethod
    def held(call: Call) -> None:
        """Leaves the answer to the test."""

    @staticmethod
    def loads_held(call: Call) -> None:
        """Leaves the answer of loads to the test."""
        if call.type is FrameType.UNLOAD:
            Farm.soon(call)

    def answer_runs_after(self, delay_s: float) -> None:
        """Has all runs from now on take that long."""

        def later(job: Job) -> None:
            job.start()
            asyncio.get_running_loop().call_later(delay_s, answer, job)

        def answer(job: Job) -> None:
            if job in self.jobs:
                job.answer()

        self.on_run = later

    def check_memory(self) -> None:
        """What the workers really hold is within the budget."""
        held = [model for process in self.processes for model in process.loaded.values()]
        held += [call.model for call in self.calls if call.type is FrameType.LOAD]
        assert sum(self._sizes[model] for model in held) <= self._budget_bytes()

    def models(self) -> list[str]:
        """What is loaded, sorted."""
        return sorted(model for process in self.processes for model in process.loaded.values())


class FakeFolder:
    """A model folder whose only file changes when the test says so."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.generation = 1

    def artifact(self, version: str, description: ModelDescription, cache: object) -> Artifact:
        return Artifact(self.name, self.name, f"{self.name}-{self.generation}", 1, self.stamp(version, description))

    def stamp(self, version: str, description: ModelDescription) -> Any:
        return (self.name, self.generation)


class InlineExecutor(Executor):
    """Runs work where it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@dataclass(eq=False)
class Sent:
    """A request that was sent: its future gets the outcome."""

    future: asyncio.Future[InferResponse]
    pending: Pending
    stream: ResponseStream | None

    def cancel(self) -> None:
        """Its client goes away."""
        self.pending.cancel()
        self.future.cancel()


@dataclass(eq=False)
class Bed:
    """A mesh on fake workers, and short ways to ask it for things."""

    mesh: Mesh
    farm: Farm
    ledger: Ledger
    catalog: Catalog
    stats: Stats
    sizes: dict[str, int]
    group: asyncio.TaskGroup
    revisions: list[Revision] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)

    def model(
        self,
        name: str,
        size: int,
        *,
        pin: bool = False,
        decoupled: bool = False,
        batch: int = 0,
        backend: str = "dummy",
        gpu_bytes: int | None = None,
        **config: Any,
    ) -> Revision:
        """Makes a model of so many bytes known, with a configuration."""
        self.sizes[name] = size
        policy = ModelPolicy(memory_bytes=size, pin=pin, gpu_memory_bytes=gpu_bytes)
        transaction = {"decoupled": decoupled}
        made = mc.ModelConfig(name=name, max_batch_size=batch, model_transaction_policy=transaction, **config)
        description = ModelDescription(made, backend, policy, batch)
        key = VersionKey(DEFAULT_NAMESPACE, name, "1")
        revision = Revision(key, cast(ModelFolder, FakeFolder(name)), description)
        self.catalog.install(
            Model(name, description=description, versions={"1": Version(revision, Availability.READY)})
        )
        self.revisions.append(revision)
        return revision

    def submit(
        self,
        revision: Revision,
        *,
        timeout_s: float = math.inf,
        data: bytes = b"1234",
        priority: int = 0,
        **parameters: str | int,
    ) -> Sent:
        """Sends a request; one byte is a row, if the model batches."""
        now = time.monotonic()
        context = RequestContext(now, now + timeout_s, priority=priority)
        tensors = [Tensor("x", "UINT8", (len(data),), data)]
        request = InferRequest(revision.key.name, "", context, tensors, parameters=parameters)
        sent = self.send(revision, request)
        self.sent.append(sent)
        return sent

    def send(self, revision: Revision, request: InferRequest) -> Sent:
        """Sends a request that was made elsewhere."""
        future: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()
        stream = ResponseStream() if revision.decoupled else None

        def done(outcome: InferResponse | RoostError) -> None:
            assert not future.done(), "a second outcome, or one for a client that has gone"
            settle_future(future, outcome)
            if stream is not None:
                stream.end(outcome)

        batch = revision.batch_rows
        intake = revision.intake or Intake(self.farm.signature, batch, batches=batch > 1)
        pending = self.mesh.submit(revision, request, done, intake.measure(request), stream=stream)
        return Sent(future, pending, stream)

    async def infer(self, revision: Revision, *, timeout_s: float = math.inf) -> InferResponse:
        """Sends a request and waits as the router does."""
        sent = self.submit(revision, timeout_s=timeout_s)
        try:
            return await sent.future
        except asyncio.CancelledError:
            sent.cancel()
            raise

    async def make_resident(self, *revisions: Revision) -> None:
        """Loads by one request each, in this order."""
        for revision in revisions:
            pending = self.submit(revision)
            await settle()
            self.job(revision).answer()
            await pending.future

    def job(self, revision: Revision, place: int = 0) -> Job:
        """A run of the model that has no answer yet."""
        return [job for job in self.farm.jobs if job.model == revision.key.name][place]

    def call(self, revision: Revision) -> Call:
        """The load or unload of the model that has no answer yet."""
        (call,) = [call for call in self.farm.calls if call.model == revision.key.name]
        return call

    def process_of(self, revision: Revision) -> FakeProcess:
        """The worker that the model is loaded on."""
        return next(p for p in self.farm.processes if revision.key.name in p.loaded.values())

    def answer_all(self) -> None:
        """Answers all runs under way."""
        for job in list(self.farm.jobs):
            job.answer()

    async def assert_clean(self) -> None:
        """Nothing of what was asked is left anywhere, and the books agree with what is loaded."""
        await settle()
        assert all(pending.future.done() for pending in self.sent)
        assert (self.mesh.queues.requests, self.mesh.queues.bytes) == (0, 0)
        assert not self.farm.jobs
        assert not self.farm.calls
        for worker in self.mesh.workers:
            assert not worker.runs
            assert not worker.waiting
        for revision in self.revisions:
            assert (len(revision.queue), revision.waiters, revision.load) == (0, 0, None)
            assert not self.ledger.claimed(revision)
            assert all(i.state is InstanceState.READY and not i.leases for i in revision.instances)
        assert all(holding.leases == 0 for holding in self.ledger.holdings.values())
        assert all(holding.busy_since == math.inf for holding in self.ledger.holdings.values())
        assert not self.ledger.coming_or_going()
        assert self.ledger.used_bytes == sum(self.sizes[model] for model in self.farm.models())
        assert sorted(r.key.name for r in self.revisions for _ in r.instances) == self.farm.models()


def settings_of(workers: int, slots: int, **changes: Any) -> MeshSettings:
    defaults = {
        "load_timeout_s": 60.0,
        "load_concurrency": workers + 1,
        "max_queue": 1000,
        "max_queued_bytes": 10_000,
        "max_answer_bytes": 10_000,
    }
    return MeshSettings(WorkerSpec("onnx", "cpu", slots, 1), workers=workers, **{**defaults, **changes})


@asynccontextmanager
async def bed(
    budget: int = 100, *, workers: int = 1, slots: int = 1, may_start: bool = True, **changes: Any
) -> AsyncIterator[Bed]:
    """A running mesh; at the end nothing may be left, before the workers are stopped and after."""
    ledger, stats, sizes = Ledger(Limits(budget)), Stats(), dict[str, int]()
    farm = Farm(sizes, lambda: ledger.limits.private_bytes)
    farm.may_start = may_start
    catalog = Catalog([], Learned(MemoryStore()), InlineExecutor(), explicit=False)
    broken: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: _note(broken, context))
    async with asyncio.TaskGroup() as group:
        mesh = Mesh(settings_of(workers, slots, **changes), ledger, catalog, stats, group, launch=farm.launch)
        try:
            await mesh.start()
            made = Bed(mesh, farm, ledger, catalog, stats, sizes, group)
            yield made
            await made.assert_clean()
        finally:
            await mesh.stop()
    assert ledger.used_bytes == 0
    assert not ledger.holdings
    assert not farm.processes
    assert not broken


def _note(broken: list[str], context: dict[str, Any]) -> None:
    """Callbacks and tasks must not raise; a request's error that nobody looks at is no such case."""
    if not str(context.get("message", "")).startswith("Future exception was never retrieved"):
        broken.append(str(context))


def worker_of(revision: Revision) -> Worker:
    """The worker of the only instance."""
    (instance,) = revision.instances
    return instance.worker
