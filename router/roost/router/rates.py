"""Rates of models from counters that only grow: what was counted since the look before. Pure; time is passed in."""

from __future__ import annotations

from functools import cache

from roost.router.activity_view import STANDBY, ModelActivity
from roost.router.states import InstanceState
from roost.router.stats import ModelStats

_RANK = {
    InstanceState.READY.value: 0,
    InstanceState.LOADING.value: 1,
    InstanceState.DRAINING.value: 2,
    InstanceState.UNLOADING.value: 3,
}
_MOVING = frozenset(set(_RANK) - {InstanceState.READY.value})
_NO_RANK = len(_RANK)


@cache
def _only(worker: int) -> tuple[int, ...]:
    """One object for all models that are on this worker alone."""
    return (worker,)


class Row:
    """One model version from look to look: what was counted up to the last one, and what is known since then.

    Attributes:
        model: Its name.
        version: Its version.
        seen: In which look it was seen last.
    """

    __slots__ = (
        "_copies",
        "_counted",
        "_failed",
        "_ok",
        "_ok_s",
        "bytes",
        "evictions",
        "failures_per_s",
        "latency_s",
        "leases",
        "load_s",
        "loads",
        "model",
        "moving",
        "queued",
        "requests_per_s",
        "seen",
        "state",
        "version",
    )

    def __init__(self, model: str, version: str) -> None:
        self.model = model
        self.version = version
        self.seen = 0
        self._counted = False
        self._ok = self._failed = 0
        self._ok_s = 0.0
        self.requests_per_s = self.failures_per_s = self.latency_s = self.load_s = 0.0
        self.loads = self.evictions = 0
        self.clear(0)

    def clear(self, look: int) -> None:
        """A new look begins; what holds for a moment is not known in it yet."""
        self.seen = look
        self.state = STANDBY
        self.moving = False
        self.queued = self.leases = self.bytes = 0
        self._copies: tuple[int, ...] = ()

    def count(self, stats: ModelStats, window_s: float) -> None:
        """Takes over what is counted by now; ``window_s`` is the time since the look before, 0 if there was none."""
        ok, failed = stats.ok, sum(stats.errors.values()) if stats.errors else 0
        if ok == self._ok and failed == self._failed and self._counted:  # nearly all, where there are very many
            if self.requests_per_s:
                self.requests_per_s = self.failures_per_s = self.latency_s = 0.0
        elif window_s:
            if ok < self._ok or failed < self._failed:  # the model went and came back under its name
                self._ok, self._failed, self._ok_s = 0, 0, 0.0
            succeeded = ok - self._ok
            self.failures_per_s = (failed - self._failed) / window_s
            self.requests_per_s = succeeded / window_s + self.failures_per_s
            self.latency_s = (stats.ok_s - self._ok_s) / succeeded if succeeded else 0.0
        self._counted, self._ok, self._failed, self._ok_s = True, ok, failed, stats.ok_s
        self.loads, self.load_s, self.evictions = stats.loads, stats.last_load_s, stats.evictions

    def add_copy(self, worker: int, state: str, size_bytes: int, leases: int) -> None:
        """A copy of it is on a worker."""
        self._copies = (*self._copies, worker) if self._copies else _only(worker)
        self.bytes += size_bytes
        self.leases += leases
        self.moving |= state in _MOVING
        if _RANK.get(state, _NO_RANK) < _RANK.get(self.state, _NO_RANK):
            self.state = state

    def view(self) -> ModelActivity:
        """The row as it is now."""
        return ModelActivity(
            self.model,
            self.version,
            self.state,
            self.requests_per_s,
            self.failures_per_s,
            self.latency_s,
            self.queued,
            self.leases,
            self.bytes,
            self._copies,
            self.loads,
            self.load_s,
            self.evictions,
        )
