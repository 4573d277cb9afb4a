"""A revision: one version of a model as it is on disk and configured, with its queue and its instances."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from roost.core.figures import Figures
from roost.core.names import VersionKey
from roost.core.tensors import Signature
from roost.registry_client.backends import BACKENDS
from roost.registry_client.batching import BatchPolicy, batch_policy
from roost.registry_client.digest import Artifact
from roost.registry_client.instance_groups import Demand, demand_of
from roost.registry_client.load_options import load_options
from roost.registry_client.model_config import ModelDescription
from roost.registry_client.model_folder import ModelFolder
from roost.router.batching import Limits, limits_of
from roost.router.failures import LoadFailure
from roost.router.intake import Intake, intake_of
from roost.router.learned import Measured
from roost.router.pace import Pace
from roost.router.pending import Batch, Pending
from roost.router.proof import Proof
from roost.router.states import READY, InstanceEvent, InstanceState, next_instance_state
from roost.router.stats import ModelStats
from roost.router.validation import Contract
from roost.runtimes.adapters import kind_of

if TYPE_CHECKING:
    from roost.router.ensemble_plan import Plan
    from roost.router.loads import Load
    from roost.router.sequences import Sequences
    from roost.router.worker import Worker
    from roost.runtimes.prepared.cache import Copy

_FULLY_CAUTIOUS_STRAIN = 0.5

_UNKNOWN_PACE = Pace()  # of all models that were never used, of which there may be very many


@dataclass(eq=False, slots=True)
class Instance:
    """One loaded copy of a revision in a worker, or one on its way in or out.

    Attributes:
        figures: What the ledger accounts for it.
        runs: The batches under way, those that were sent first before the others.
        turn_at: When the first of them began, as far as the router can tell.
        copy: The prepared copy that it is loaded from, if so.
        busy_s: For how long there was a batch under way, up to ``turn_at``.
        own_bytes: What the processes took that it has for itself, once it was loaded; 0 if it has none.
    """

    id: int
    revision: Revision
    worker: Worker
    figures: Figures
    state: InstanceState = InstanceState.LOADING
    leases: int = 0
    runs: list[Batch] = field(default_factory=list)
    turn_at: float = 0.0
    copy: Copy | None = None
    busy_s: float = 0.0
    own_bytes: int = 0

    def free_in_s(self, now: float) -> float:
        """When the batches that it has will have run, as far as that was predicted."""
        if not self.runs:
            return 0.0
        return max(0.0, sum(batch.predicted_s for batch in self.runs) - (now - self.turn_at))

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
        looked_at: When that was last.
        contract: What requests are checked against; None until the signature is known, and after an eviction, since the
            files may be others at the next load.
        former: The contract of what was loaded last; it holds again if the files are still the same.
        instances: Loaded copies and those on their way in or out.
        queue: Requests that wait, in the order in which they are to go.
        queued_rows: How many rows they are.
        strain: Which share of those that came lately had no hope to be answered in time, as the queue was too long.
        strained_until: When that is forgotten.
        claimed: Whether the ledger knows that there are any.
        pumping: Whether it is about to be looked what of them can be sent.
        waker: Looks again when they have waited long enough for others.
        look_at: When deadlines are looked at next; see ``roost.router.deadlines``.
        in_order: Requests that were taken and not answered, if answers have to keep their order.
        pace: How long batches take; its own from the first request on.
        policy: What the configuration says of batches.
        limits: What a batch may be.
        intake: The quick check of requests; None whenever there is no contract.
        served_by: Its name and version, as contexts of requests have them.
        counters: What is counted for its version, from its first request on.
        load: The load under way, whose outcome all wait for who want the revision and find no instance.
        waiters: How many wait for an instance besides those in the queue.
        failure: Why it can't be loaded, if so.
        failure_checked: When the files were last looked at for a change that could mend the failure.
        crashes: Worker processes that ended while they ran or loaded it, since its last answer.
        refused: It was found to be too large for the budget, which was logged.
        used: Whether there was a request for it.
        retired: It is not to be used any more: instances go when their last request is answered.
        yields: What is loaded now is to take its place: nothing of it is pinned, whatever its owner wants.
        renewed: When it was last looked whether other files are to take its place.
        labels: What the classes of its outputs are called, by output; read when first asked for.
        decoupled: Whether a request may get more or fewer responses than one.
        special: Whether a request may need more than one run and one answer, so that the quick way is not for it.
        caches: Whether requests that are the same may get the same answer.
        demand: What each of its runs needs of what runs share; None for nothing.
        stateless: Whether a request may be run again that was begun with, as nobody can tell.
        is_code: Whether it is a program, which may do something that must not be done twice.
        sequences: Those of its requests, from the first one on, if its model knows of sequences.
        plan: Of an ensemble, what its steps were found to be; None until its first request.
        kind: The kind of the workers that load it; see ``roost.router.devices``. An ensemble is never loaded.
        devices: Those of them that may; empty for all of that kind.
        on_gpu: Whether those use GPUs.
        fell_back: Whether it was logged that it runs on the CPU although its owner wants a GPU.
        may_bring_code: Whether it comes from where models may be code.
        proof: What is known of whether its rows may be run together.
        batching: What its configuration shows of that; empty until it was loaded.
        measured: What an instance takes of what was looked at last, if that is known.
        measured_copy: Likewise one from a prepared copy, if that was more than when the copy was made.
        measured_on_gpu: Likewise one on a GPU.
    """

    key: VersionKey
    folder: ModelFolder
    description: ModelDescription
    artifact: Artifact | None = None
    looked_at: float = -math.inf
    contract: Contract | None = None
    former: Contract | None = None
    instances: list[Instance] = field(default_factory=list)
    queue: list[Pending] = field(default_factory=list)
    queued_rows: int = 0
    strain: float = 0.0
    strained_until: float = -math.inf
    claimed: bool = False
    pumping: bool = False
    waker: asyncio.TimerHandle | None = None
    look_at: float = math.inf
    in_order: deque[Pending] | None = None
    pace: Pace = _UNKNOWN_PACE
    intake: Intake | None = None
    counters: ModelStats | None = None
    load: Load | None = None
    waiters: int = 0
    failure: LoadFailure | None = None
    failure_checked: float = 0.0
    crashes: int = 0
    refused: bool = False
    used: bool = False
    retired: bool = False
    yields: bool = False
    renewed: float = -math.inf
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    proof: Proof | None = None
    batching: str = ""
    measured: Measured | None = None
    measured_copy: Measured | None = None
    measured_on_gpu: Measured | None = None
    may_bring_code: bool = False
    devices: frozenset[str] = frozenset()
    on_gpu: bool = False
    fell_back: bool = False
    plan: Plan | None = None
    sequences: Sequences | None = None
    kind: str = field(init=False)
    decoupled: bool = field(init=False)
    special: bool = field(init=False)
    caches: bool = field(init=False)
    demand: Demand | None = field(init=False)
    stateless: bool = field(init=False)
    is_code: bool = field(init=False)
    served_by: tuple[str, str] = field(init=False)
    policy: BatchPolicy = field(init=False)
    limits: Limits = field(init=False)

    def __post_init__(self) -> None:
        self.kind = kind_of(self.description.backend) if self.description.ensemble is None else ""
        self.decoupled = self.description.decoupled
        self.caches = self.description.config.response_cache.enable
        self.demand = demand_of(self.description.config)
        ensemble, sequences = self.description.ensemble, self.description.sequences
        self.special = self.decoupled or self.caches or ensemble is not None or sequences is not None
        is_stateless = BACKENDS[self.description.backend].is_stateless
        self.stateless = is_stateless and not self.decoupled and sequences is None
        self.served_by = (self.key.name, self.key.version)
        self.policy = batch_policy(self.description.config)
        self.is_code = BACKENDS[self.description.backend].is_code
        # What a program does with several requests at once its author has to say.
        is_batched = not self.is_code or self.description.config.HasField("dynamic_batching")
        self.batch_up_to(self.description.max_batch_size if is_batched else 0)
        if self.policy.preserve_ordering:
            self.in_order = deque()

    @property
    def batch_rows(self) -> int:
        """How many rows a batch may have; up to 1: requests are not batched."""
        return self.limits.max_rows

    def load_options(self) -> dict[str, str]:
        """What its runtime is told when it loads it."""
        return load_options(self.description, self.key.version, allow_code=self.may_bring_code)

    def batch_up_to(self, rows: int) -> None:
        """From now on batches of so many rows are formed; 0 or 1 for none. Decoupled models never batch."""
        policy = self.policy
        self.limits = limits_of(0 if self.decoupled else rows, policy.preferred_rows, policy.max_delay_s)
        self._renew_intake()
        if self.pace is not _UNKNOWN_PACE:
            self.pace = Pace()  # what counts as a row may be something else now
        # What waits, or runs and may have to wait again, was measured for what held before: it runs alone.
        for pending in (*self.queue, *self._running()):
            pending.key = object()

    def _running(self) -> Iterator[Pending]:
        return (pending for instance in self.instances for batch in instance.runs for pending in batch.requests)

    def redescribe(self, description: ModelDescription) -> None:
        """The configuration has changed in what a loaded instance does not depend on."""
        rows, before = self.limits.max_rows, self.description.max_batch_size
        self.description = description
        self.policy = batch_policy(description.config)
        self.demand = demand_of(description.config)
        if not self.policy.preserve_ordering and not self.in_order:
            self.in_order = None
        elif self.policy.preserve_ordering and self.in_order is None:
            self.in_order = deque((*self._running(), *self.queue))
        self.batch_up_to(rows if before == description.max_batch_size else description.max_batch_size)

    def describe(self, signature: Signature) -> None:
        """The signature is known: requests can be checked."""
        self.hold_to(Contract(self.key.name, signature, self.description.max_batch_size))

    def hold_to(self, contract: Contract | None) -> None:
        """Sets what requests are checked against."""
        self.contract = contract
        self._renew_intake()

    def _renew_intake(self) -> None:
        self.intake = None if self.contract is None else self.intake_by(self.contract)

    def intake_by(self, contract: Contract) -> Intake:
        """The quick check that goes with a full one."""
        return intake_of(contract.signature, contract.max_batch_size, batches=self.limits.max_rows > 1)

    def count_with(self, counters: ModelStats) -> None:
        """The first request has come: from now on it is counted, and learned how long batches take."""
        self.counters = counters
        self.pace = Pace()

    def cool(self) -> None:
        """An instance is gone: after the last one the files have to be looked at before anything else is promised."""
        if not self.instances and self.contract is not None:
            self.former = self.contract
            self.hold_to(None)

    def caution(self, now: float) -> float:
        """So many times what a batch is expected to take it should have time for; 1 as long as hardly any are refused.

        Where many have to be, one that runs and may be late takes the place of another that would not have been.
        """
        if now > self.strained_until:
            return 1.0
        return 1.0 + (self.pace.caution - 1.0) * min(1.0, self.strain / _FULLY_CAUTIOUS_STRAIN)

    def in_use(self) -> bool:
        """Whether it is loaded or about to be."""
        return bool(self.resident() or self.load is not None or self.wanted())

    def resident(self) -> bool:
        """Whether an instance takes batches."""
        for instance in self.instances:  # noqa: SIM110 - asked for each request, and a generator costs as much again
            if instance.state is READY:
                return True
        return False

    def wanted(self) -> bool:
        """Whether anybody waits for an instance."""
        return bool(self.queue or self.waiters)
