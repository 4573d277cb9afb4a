"""Where copies go, and which one goes first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
from roost.core.errors import FailedPrecondition
from roost.core.figures import Figures
from roost.core.names import VersionKey
from roost.proto import model_config_pb2 as mc
from roost.registry_client.model_config import ModelDescription
from roost.registry_client.policy import ModelPolicy
from roost.router.process import WorkerSpec
from roost.router.revision import Instance, Revision
from roost.router.spread import EnoughCopies, ranked, suitable, surplus
from roost.router.states import InstanceState
from roost.router.worker import Worker

PLAIN = ModelPolicy()
SPEC = WorkerSpec("onnx", "cpu", 4, 1)


def worker(number: int, labels: Mapping[str, str] | None = None, *, device: str = "cpu", busy: float = 0.0) -> Worker:
    made = Worker(number, replace(SPEC, device=device), cast(Any, None), cast(Any, None), cast(Any, None))
    made.state, made.labels, made.busy_share = "up", labels or {}, busy
    return made


def revision_of(policy: ModelPolicy = PLAIN, *places: Worker) -> Revision:
    """A revision with a copy in each of these workers."""
    description = ModelDescription(mc.ModelConfig(name="m"), "dummy", policy, 0)
    made = Revision(VersionKey("default", "m", "1"), cast(Any, None), description)
    for number, place in enumerate(places):
        instance = Instance(number, made, place, Figures(1), InstanceState.READY)
        place.account.private_bytes += instance.figures.private_bytes
        made.instances.append(instance)
    return made


def numbers(workers: list[Worker]) -> list[int]:
    return [place.id for place in workers]


def test_the_next_copy_goes_where_there_are_fewest_then_where_it_is_quiet_then_where_least_is_loaded() -> None:
    workers = [worker(0), worker(1, busy=0.9), worker(2), worker(3)]
    a, b, c = workers[:3]
    other = revision_of(PLAIN, c)
    assert numbers(ranked(workers, revision_of())) == [0, 3, 2, 1]
    least = ModelPolicy(min_copies=8)
    assert numbers(ranked(workers, revision_of(least, a))) == [3, 2, 1, 0]
    b.state = "down"
    c.recycling = True
    assert numbers(ranked(workers, other)) == [3, 0]


def test_a_worker_has_one_copy_unless_the_owner_wants_more_than_there_are_workers() -> None:
    a, b = workers = [worker(0), worker(1)]
    assert numbers(ranked(workers, revision_of(PLAIN, a))) == [1]
    with pytest.raises(EnoughCopies, match="every worker that may load model 'm' version 1 has a copy"):
        ranked(workers, revision_of(PLAIN, a, b))
    three = ModelPolicy(min_copies=3)
    assert numbers(ranked(workers, revision_of(three, a, b))) == [1, 0]
    assert numbers(ranked(workers, revision_of(three, a, b, b))) == [0]
    going = revision_of(PLAIN, a)
    going.instances[0].state = InstanceState.UNLOADING
    assert numbers(ranked([a], going)) == [0], "one that goes is none any more"
    lost = revision_of(PLAIN, a)
    lost.instances[0].state = InstanceState.LOADING
    assert ranked([a], lost) == [], "there is no copy, and none to come"
    a.state = "down"
    assert ranked([a], revision_of()) == []


def test_devices_share_copies_as_well() -> None:
    workers = [worker(0, device="a"), worker(1, device="a"), worker(2, device="b")]
    assert numbers(ranked(workers, revision_of(PLAIN, workers[0]))) == [2, 1]


def test_labels_that_are_required_and_preferred() -> None:
    workers = [worker(0), worker(1, {"disk": "ssd"}), worker(2, {"disk": "ssd", "zone": "a"}), worker(3, {"zone": "a"})]
    required = {"disk": "ssd"}
    assert numbers(ranked(workers, revision_of(ModelPolicy(required_labels=required)))) == [1, 2]
    prefers = ModelPolicy(preferred_labels={"zone": "a", "disk": "ssd"})
    assert numbers(ranked(workers, revision_of(prefers))) == [2, 1, 3, 0]
    assert numbers(ranked(workers, revision_of(prefers, workers[2]))) == [1, 3, 0]
    with pytest.raises(
        FailedPrecondition, match="requires a worker with the labels 'disk=hdd,gpu=no', and there is none"
    ):
        suitable(workers, revision_of(ModelPolicy(required_labels={"disk": "hdd", "gpu": "no"})))


def test_the_copy_that_goes_is_where_one_would_be_loaded_last() -> None:
    a, b, c = worker(0, busy=0.9), worker(1, {"zone": "a"}), worker(2)
    prefers = {"zone": "a"}

    def gone(*places: Worker) -> int:
        instance = surplus(revision_of(PLAIN, *places).instances, prefers)
        assert instance is not None
        return instance.worker.id

    assert gone(b, c, a) == 0, "a busy one, as no one is preferred there"
    assert gone(b, c) == 2
    assert gone(a, b, b) == 1, "two at the same place"
    made = revision_of(PLAIN, a, c)
    made.instances[0].state = InstanceState.DRAINING
    assert surplus(made.instances, {}) is made.instances[1]
    made.instances[1].state = InstanceState.DRAINING
    assert surplus(made.instances, {}) is None
