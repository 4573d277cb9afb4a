"""The life of an instance and what the protocol calls the state of a model version: each one table.

``docs/architecture.md`` shows both tables; a test compares them with these.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class IllegalTransition(Exception):
    """An event that the state does not allow; the state stays as it was."""


class InstanceState(StrEnum):
    """Where one loaded copy of a revision is in its life."""

    LOADING = "loading"  # has its memory reserved, the worker creates it
    READY = "ready"  # takes leases
    DRAINING = "draining"  # chosen for eviction while in use: no new leases
    UNLOADING = "unloading"  # the worker drops it and gives its memory back
    GONE = "gone"


READY = InstanceState.READY
"""For the hot path: a member is found in its class in fifty times the time that a global takes (CPython 3.11)."""


class InstanceEvent(StrEnum):
    """What can happen to an instance."""

    LOADED = "loaded"
    FAILED = "failed"
    DRAIN = "drain"
    EVICT = "evict"
    UNLOADED = "unloaded"
    WORKER_LOST = "worker lost"


INSTANCE_TABLE: Mapping[tuple[InstanceState, InstanceEvent], InstanceState] = {
    (InstanceState.LOADING, InstanceEvent.LOADED): InstanceState.READY,
    (InstanceState.LOADING, InstanceEvent.FAILED): InstanceState.GONE,
    (InstanceState.LOADING, InstanceEvent.WORKER_LOST): InstanceState.GONE,
    (InstanceState.READY, InstanceEvent.DRAIN): InstanceState.DRAINING,
    (InstanceState.READY, InstanceEvent.EVICT): InstanceState.UNLOADING,
    (InstanceState.READY, InstanceEvent.WORKER_LOST): InstanceState.GONE,
    (InstanceState.DRAINING, InstanceEvent.EVICT): InstanceState.UNLOADING,
    (InstanceState.DRAINING, InstanceEvent.WORKER_LOST): InstanceState.GONE,
    (InstanceState.UNLOADING, InstanceEvent.UNLOADED): InstanceState.GONE,
    (InstanceState.UNLOADING, InstanceEvent.WORKER_LOST): InstanceState.GONE,
}


class Availability(StrEnum):
    """What the ready and index calls say of a version; Triton's words.

    A version that may be asked for is READY whether or not it is in memory.
    """

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class AvailabilityEvent(StrEnum):
    """What can happen to a version as clients see it."""

    LOAD = "load call"
    LOADED = "loaded"
    FAILED = "load failed"
    UNLOAD = "unload call"
    UNLOADED = "unloaded"


AVAILABILITY_TABLE: Mapping[tuple[Availability, AvailabilityEvent], Availability] = {
    (Availability.UNAVAILABLE, AvailabilityEvent.LOAD): Availability.LOADING,
    (Availability.UNAVAILABLE, AvailabilityEvent.LOADED): Availability.READY,
    (Availability.UNAVAILABLE, AvailabilityEvent.FAILED): Availability.UNAVAILABLE,
    (Availability.LOADING, AvailabilityEvent.LOADED): Availability.READY,
    (Availability.LOADING, AvailabilityEvent.FAILED): Availability.UNAVAILABLE,
    (Availability.READY, AvailabilityEvent.LOADED): Availability.READY,
    (Availability.READY, AvailabilityEvent.FAILED): Availability.UNAVAILABLE,
    (Availability.READY, AvailabilityEvent.UNLOAD): Availability.UNLOADING,
    (Availability.UNAVAILABLE, AvailabilityEvent.UNLOAD): Availability.UNAVAILABLE,
    (Availability.UNLOADING, AvailabilityEvent.UNLOADED): Availability.UNAVAILABLE,
}


def next_instance_state(state: InstanceState, event: InstanceEvent) -> InstanceState:
    """The state after an event.

    Raises:
        IllegalTransition: If the table has no such row.
    """
    try:
        return INSTANCE_TABLE[state, event]
    except KeyError:
        raise IllegalTransition(f"an instance that is {state.value} can't take '{event.value}'") from None


def next_availability(state: Availability, event: AvailabilityEvent) -> Availability:
    """The availability after an event.

    Raises:
        IllegalTransition: If the table has no such row.
    """
    try:
        return AVAILABILITY_TABLE[state, event]
    except KeyError:
        raise IllegalTransition(f"a version that is {state.value} can't take '{event.value}'") from None
