"""The two state tables: every row is reachable, what they do not list raises and changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from enum import StrEnum
from typing import cast

import pytest
from roost.core.figures import Figures
from roost.router.models import Version
from roost.router.revision import Instance, Revision
from roost.router.states import (
    AVAILABILITY_TABLE,
    INSTANCE_TABLE,
    Availability,
    AvailabilityEvent,
    IllegalTransition,
    InstanceEvent,
    InstanceState,
    next_availability,
    next_instance_state,
)
from roost.router.worker import Worker

S, E = InstanceState, InstanceEvent


def reachable(table: Mapping[tuple[StrEnum, StrEnum], StrEnum], *starts: StrEnum) -> set[StrEnum]:
    seen: set[StrEnum] = set()
    frontier = list(starts)
    while frontier:
        state = frontier.pop()
        if state not in seen:
            seen.add(state)
            frontier += [after for (before, _), after in table.items() if before == state]
    return seen


def instance_table() -> Mapping[tuple[StrEnum, StrEnum], StrEnum]:
    return cast(Mapping[tuple[StrEnum, StrEnum], StrEnum], INSTANCE_TABLE)


def test_every_instance_state_is_reached_and_ends() -> None:
    table = instance_table()
    assert reachable(table, S.LOADING) == set(S)
    for state in S:
        assert S.GONE in reachable(table, state)


def test_every_availability_is_reached_from_where_versions_begin() -> None:
    table = cast(Mapping[tuple[StrEnum, StrEnum], StrEnum], AVAILABILITY_TABLE)
    assert reachable(table, Availability.READY) == set(Availability)
    assert reachable(table, Availability.UNAVAILABLE) == set(Availability)
    for state in Availability:  # nothing is final: a version can always be served again
        assert Availability.READY in reachable(table, state)


def test_a_lost_worker_is_the_end_in_every_state() -> None:
    for state in set(S) - {S.GONE}:
        assert next_instance_state(state, E.WORKER_LOST) is S.GONE


def test_nothing_leaves_gone() -> None:
    assert not [event for state, event in INSTANCE_TABLE if state is S.GONE]


def test_only_a_loaded_instance_is_ready_and_a_chosen_one_never_again() -> None:
    assert {before for (before, _), after in INSTANCE_TABLE.items() if after is S.READY} == {S.LOADING}
    for state in (S.DRAINING, S.UNLOADING):
        assert S.READY not in reachable(instance_table(), state)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(S, E)))
def test_instance_transitions(state: InstanceState, event: InstanceEvent) -> None:
    instance = Instance(1, cast(Revision, None), cast(Worker, None), Figures(1), state)
    after = INSTANCE_TABLE.get((state, event))
    if after is not None:
        instance.advance(event)
        assert instance.state is after
        return
    with pytest.raises(IllegalTransition, match=f"{state.value} can't take '{event.value}'"):
        instance.advance(event)
    assert instance.state is state


@pytest.mark.parametrize(("state", "event"), list(itertools.product(Availability, AvailabilityEvent)))
def test_availability_transitions(state: Availability, event: AvailabilityEvent) -> None:
    version = Version(cast(Revision, None), state, "as before")
    after = AVAILABILITY_TABLE.get((state, event))
    if after is not None:
        assert next_availability(state, event) is after
        version.advance(event, "new")
        assert (version.availability, version.reason) == (after, "new")
        return
    with pytest.raises(IllegalTransition):
        version.advance(event, "new")
    assert (version.availability, version.reason) == (state, "as before")
