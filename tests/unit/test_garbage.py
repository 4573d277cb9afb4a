"""What full garbage collections look at."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest
from roost.server.garbage import collect_when_idle, frozen_survivors

from tests.virtual_time import virtual


class Node:
    """Garbage, once nobody but itself refers to it."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def frozen() -> Iterator[None]:
    try:
        with frozen_survivors():
            yield
    finally:
        gc.unfreeze()


@pytest.mark.usefixtures("frozen")
def test_what_a_full_collection_leaves_is_not_looked_at_again() -> None:
    node = Node()
    known = weakref.ref(node)
    gc.collect()
    frozen = gc.get_freeze_count()
    assert frozen > 1000
    assert len(gc.get_objects(generation=2)) < 100
    del node
    gc.collect()
    assert known() is not None
    young = weakref.ref(Node())
    gc.collect()
    assert young() is None, "what is new is"
    gc.collect(1)
    assert gc.get_freeze_count() >= frozen


@pytest.mark.usefixtures("frozen")
@virtual
@pytest.mark.parametrize(("busy", "after_s"), [(False, 120.0), (True, 1200.0)])
async def test_all_is_looked_at_when_nobody_waits_or_at_long_last(busy: bool, after_s: float) -> None:
    node = Node()
    known = weakref.ref(node)
    gc.collect()
    del node
    collecting = asyncio.create_task(
        collect_when_idle(lambda: busy, looks_every_s=30.0, thaw_after_s=100.0, at_the_latest_s=1200.0)
    )
    await asyncio.sleep(after_s - 1)
    assert known() is not None
    await asyncio.sleep(2)
    assert known() is None
    assert gc.get_freeze_count() > 0, "what is left is frozen again"
    collecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await collecting
