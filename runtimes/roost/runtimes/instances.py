"""The instances of one worker: which models are loaded, and how many runs hold each of them."""

from __future__ import annotations

import threading

from roost.core.errors import AlreadyExists, NotFound
from roost.runtimes.protocol import LoadedModel

_LAST_RUNS = 0b1111_1111
_UNKNOWN = 0b1100_0000


class Instance:
    """A loaded model, the number of its runs, queued ones included, and what is known of how long they take.

    Attributes:
        model: The model.
        runs: How many runs hold it.
        unfinished: How many of those have not yet come to a result, which is then sent.
        last_ns: How long the last run took.
        is_quick: Whether at most one of the last eight runs was slow. One may be: on a busy machine the quickest run
            is held up now and then. Before there was a run two are taken to have been.
    """

    __slots__ = ("_slow", "is_quick", "last_ns", "model", "runs", "unfinished")

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.runs = 0
        self.unfinished = 0
        self.last_ns = 0
        self.is_quick = False
        self._slow = _UNKNOWN  # a bit for each of the last runs

    def ran(self, duration_ns: int, quick_ns: int) -> None:
        """Learns how long a run took; it was slow if that was longer than ``quick_ns``."""
        self.last_ns = duration_ns
        self._slow = slow = (self._slow << 1 | (duration_ns > quick_ns)) & _LAST_RUNS
        self.is_quick = not slow & (slow - 1)  # without its lowest bit nothing is left


class InstanceTable:
    """Instances by id; safe to use from several threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._loaded: dict[int, Instance] = {}
        self._loading: set[int] = set()

    def reserve(self, instance_id: int) -> None:
        """Takes the id for a load; ``put`` or ``abandon`` must follow.

        Raises:
            AlreadyExists: If an instance with this id is loaded or being loaded.
        """
        with self._changed:
            if instance_id in self._loaded or instance_id in self._loading:
                raise AlreadyExists(f"instance {instance_id} exists already")
            self._loading.add(instance_id)

    def put(self, instance_id: int, model: LoadedModel) -> None:
        """Enters the model that the id was reserved for."""
        with self._changed:
            self._loading.discard(instance_id)
            self._loaded[instance_id] = Instance(model)

    def abandon(self, instance_id: int) -> None:
        """Frees the id of a load that came to nothing."""
        with self._changed:
            self._loading.discard(instance_id)

    def hold(self, instance_id: int) -> Instance | None:
        """Counts a run in, which keeps the instance until ``let_go``; None if there is no such instance."""
        with self._changed:
            instance = self._loaded.get(instance_id)
            if instance is not None:
                instance.runs += 1
                instance.unfinished += 1
            return instance

    def get(self, instance_id: int) -> Instance | None:
        """The loaded instance with this id, if there is one, without holding it."""
        return self._loaded.get(instance_id)

    def hold_also(self, instance: Instance) -> None:
        """Counts another run in on an instance that can't have been removed."""
        with self._changed:
            instance.runs += 1
            instance.unfinished += 1

    def finish(self, instance: Instance) -> None:
        """Notes that a run has come to its result; it holds the instance until ``let_go``."""
        with self._changed:
            instance.unfinished -= 1

    def let_go(self, instance: Instance) -> None:
        """Counts a run out."""
        with self._changed:
            instance.runs -= 1
            if not instance.runs:
                self._changed.notify_all()

    def remove(self, instance_id: int) -> Instance:
        """Takes the instance out, so that no further run finds it; its runs go on.

        Raises:
            NotFound: If there is no such instance.
        """
        with self._changed:
            instance = self._loaded.pop(instance_id, None)
        if instance is None:
            raise NotFound(f"there is no instance {instance_id}")
        return instance

    def wait_idle(self, instance: Instance) -> None:
        """Blocks until the last run of a removed instance is counted out."""
        with self._changed:
            self._changed.wait_for(lambda: not instance.runs)

    def ids(self) -> list[int]:
        """The ids of the loaded instances."""
        with self._changed:
            return list(self._loaded)
