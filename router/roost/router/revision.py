"""A revision: one version of a model as it is on disk and configured, with its queue and its instances."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from roost.core.errors import RoostError
from roost.core.names import VersionKey
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import Signature
from roost.registry_client.digest import Artifact
from roost.registry_client.model_config import ModelDescription
from roost.registry_client.model_folder import ModelFolder
from roost.router.failures import LoadFailure
from roost.router.states import InstanceEvent, InstanceState, next_instance_state
from roost.router.streams import ResponseStream
from roost.router.validation import Contract

if TYPE_CHECKING:
    from roost.router.worker import Worker

BASE_BYTES = 4 << 20
BYTES_PER_ARTIFACT_BYTE = 3


class Pending:
    """A request in the queue or under way; its future is settled exactly once, with its last response or an error."""

    __slots__ = ("future", "instance", "nbytes", "request", "retried", "revision", "run", "started", "stream", "timer")

    def __init__(
        self, revision: Revision, request: InferRequest, future: asyncio.Future[InferResponse], nbytes: int
    ) -> None:
        self.revision = revision
        self.request = request
        self.future = future
        self.nbytes = nbytes
        self.timer: asyncio.TimerHandle | None = None
        self.instance: Instance | None = None  # set while it runs
        self.run = 0
        self.started = False
        self.retried = False
        self.stream = ResponseStream(future) if revision.decoupled else None

    @property
    def deadline(self) -> float:
        """See ``roost.router.batching.Queued``."""
        return self.request.context.deadline

    def settle(self, outcome: InferResponse | RoostError) -> None:
        """Ends it with its last response or an error, the first time it is called."""
        if self.timer is not None:
            self.timer.cancel()
        if self.future.done():
            return
        if isinstance(outcome, RoostError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


@dataclass(eq=False, slots=True)
class Instance:
    """One loaded copy of a revision in a worker, or one on its way in or out."""

    id: int
    revision: Revision
    worker: Worker
    bytes: int
    state: InstanceState = InstanceState.LOADING
    leases: int = 0

    def advance(self, event: InstanceEvent) -> None:
        """Moves to the next state.

        Raises:
            IllegalTransition: If the table does not allow it; the state stays.
        """
        self.state = next_instance_state(self.state, event)


@dataclass(eq=False, slots=True)
class Revision:
    """See the module.

    Attributes:
        key: Namespace, name and version.
        folder: Where its files are.
        description: Its configuration as written.
        artifact: Its files; None until they were looked at.
        contract: What requests are checked against; None until the signature is known, and after an eviction, since the
            files may be others at the next load.
        former: The contract of what was loaded last; it holds again if the files are still the same.
        instances: Loaded copies and those on their way in or out.
        queue: Requests that wait.
        load: The load under way, whose outcome all who want the revision wait for.
        waiters: How many wait for an instance besides those in the queue.
        failure: Why it can't be loaded, if so.
        failure_checked: When the files were last looked at for a change that could mend the failure.
        crashes: Worker processes that ended while they ran or loaded it, since its last answer.
        refused: It was found to be too large for the budget, which was logged.
        used: Whether there was a request for it.
        retired: It is not to be used any more: instances go when their last request is answered.
        renewed: When it was last looked whether other files are to take its place.
        labels: What the classes of its outputs are called, by output; read when first asked for.
        decoupled: Whether a request may get more or fewer responses than one.
    """

    key: VersionKey
    folder: ModelFolder
    description: ModelDescription
    artifact: Artifact | None = None
    contract: Contract | None = None
    former: Contract | None = None
    instances: list[Instance] = field(default_factory=list)
    queue: deque[Pending] = field(default_factory=deque)
    load: asyncio.Future[RoostError | None] | None = None
    waiters: int = 0
    failure: LoadFailure | None = None
    failure_checked: float = 0.0
    crashes: int = 0
    refused: bool = False
    used: bool = False
    retired: bool = False
    renewed: float = -math.inf
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    decoupled: bool = field(init=False)

    def __post_init__(self) -> None:
        self.decoupled = self.description.decoupled

    def describe(self, signature: Signature) -> None:
        """The signature is known: requests can be checked."""
        self.contract = Contract(self.key.name, signature, self.description.max_batch_size)

    def size_bytes(self) -> int:
        """What an instance is accounted with: what the config declares, else an upper estimate from the files."""
        declared = self.description.policy.memory_bytes
        if declared is not None:
            return declared
        assert self.artifact is not None
        return BASE_BYTES + BYTES_PER_ARTIFACT_BYTE * self.artifact.size_bytes

    def cool(self) -> None:
        """An instance is gone: after the last one the files have to be looked at before anything else is promised."""
        if not self.instances and self.contract is not None:
            self.former, self.contract = self.contract, None

    def free_instance(self) -> Instance | None:
        """The instance on the worker with the most free slots, if any has one."""
        best: Instance | None = None
        for instance in self.instances:
            if instance.state is not InstanceState.READY or instance.worker.free_slots <= 0:
                continue
            if best is None or instance.worker.free_slots > best.worker.free_slots:
                best = instance
        return best

    def in_use(self) -> bool:
        """Whether it is loaded or about to be."""
        return bool(self.resident() or self.load is not None or self.wanted())

    def resident(self) -> bool:
        """Whether an instance takes batches."""
        return any(instance.state is InstanceState.READY for instance in self.instances)

    def wanted(self) -> bool:
        """Whether anybody waits for an instance."""
        return bool(self.queue or self.waiters)
