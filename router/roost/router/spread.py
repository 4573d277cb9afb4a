"""Step 5, the pure part of where copies are: which worker gets the next one of a revision, and which one gives one up.

Copies are spread: a worker has one of a revision, and more only if the owner wants more than there are workers. Labels
that a model requires leave only the workers that have them, labels that it prefers put some of these before others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from roost.core.errors import FailedPrecondition
from roost.router.revision import Instance, Revision
from roost.router.states import READY, InstanceState
from roost.router.worker import Worker

_BUSY_STEPS = 4
"""How busy a worker is counts in so many steps, and within a step what it has in memory does."""


class Unplaceable(FailedPrecondition):
    """No worker has the labels that a model requires; no load is tried, so none has failed."""


class EnoughCopies(Unplaceable):
    """Every worker that may have a copy has one."""


def suits(worker: Worker, required: Mapping[str, str]) -> bool:
    """Whether a worker has all these labels."""
    if not required:
        return True
    labels = worker.labels
    return all(labels.get(name) == value for name, value in required.items())


def suitable(workers: Iterable[Worker], revision: Revision) -> list[Worker]:
    """The workers that may load a revision, whether or not they are up: those of its kind with the labels.

    Raises:
        Unplaceable: If there are none.
    """
    required, kind = revision.description.policy.required_labels, revision.kind
    of_kind = [worker for worker in workers if worker.spec.kind == kind]
    if revision.devices:
        of_kind = [worker for worker in of_kind if worker.spec.device in revision.devices]
    found = [worker for worker in of_kind if suits(worker, required)]
    if not of_kind:
        name, version = revision.key.name, revision.key.version
        raise Unplaceable(f"model '{name}' version {version} needs a worker of kind '{kind}', and there is none")
    if not found:
        wanted = ",".join(f"{name}={value}" for name, value in required.items())
        raise Unplaceable(
            f"model '{revision.key.name}' version {revision.key.version} requires a worker with the labels "
            f"'{wanted}', and there is none"
        )
    return found


def ranked(workers: Iterable[Worker], revision: Revision) -> list[Worker]:
    """Where the next copy of a revision may be loaded, the best place first; nowhere if no such worker is up now.

    What still counts as loading while a load of it looks for a place is on a worker that is about to be lost: there
    is no copy then, and the load waits for that worker's successor.

    Raises:
        Unplaceable: If there never will be one.
        EnoughCopies: If all that are up have their share.
    """
    places, policy = suitable(workers, revision), revision.description.policy
    up = [worker for worker in places if worker.up and not worker.recycling]
    if not revision.instances:
        here, on_device = Counter[int](), Counter[str]()
    else:
        here, on_device = _copies(revision)
        share = max(1, -(-policy.min_copies // len(places)))
        if up and not (up := [worker for worker in up if here[worker.id] < share]) and revision.resident():
            name, version = revision.key.name, revision.key.version
            raise EnoughCopies(f"every worker that may load model '{name}' version {version} has a copy")
    if len(up) <= 1:
        return up
    preferred = policy.preferred_labels

    def rank(worker: Worker) -> tuple[int, ...]:
        return (
            here[worker.id],
            -sum(worker.labels.get(name) == value for name, value in preferred.items()),
            on_device[worker.spec.device],
            int(worker.busy_share * _BUSY_STEPS),
            worker.account.private_bytes if worker.gpu_account is None else worker.gpu_account.bytes,
            worker.id,
        )

    return sorted(up, key=rank)


def surplus(instances: Sequence[Instance], preferred: Mapping[str, str]) -> Instance | None:
    """The copy that is to go if there is one too many: the reverse of where one would be loaded."""
    ready = [instance for instance in instances if instance.state is READY]
    if not ready:
        return None
    here = Counter(instance.worker.id for instance in instances)

    def rank(instance: Instance) -> tuple[float, ...]:
        worker = instance.worker
        return (
            here[worker.id],
            -sum(worker.labels.get(name) == value for name, value in preferred.items()),
            int(worker.busy_share * _BUSY_STEPS),
            -instance.leases,
            instance.id,
        )

    return max(ready, key=rank)


def _copies(revision: Revision) -> tuple[Counter[int], Counter[str]]:
    """How many copies of a revision each worker and each device has, or will have."""
    workers = [i.worker for i in revision.instances if i.state is READY or i.state is InstanceState.LOADING]
    return Counter(worker.id for worker in workers), Counter(worker.spec.device for worker in workers)
