"""Calls that come one by one go on together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from roost.core.tensors import Buffer
from roost.server.grpc_bursts import Bursts


class Place:
    """Calls in bursts; remembers in which turn of the event loop each began, and ends them when told to."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.turn = 0
        self.began: dict[bytes, int] = {}
        self.end = asyncio.Event()
        self._group = group
        self._run = Bursts().gathered(self._call)

    async def _call(self, raw: Buffer, context: object, arrived: float) -> Sequence[Buffer]:
        self.began[bytes(raw)] = self.turn
        await self.end.wait()
        return (raw,)

    def come(self, name: bytes) -> asyncio.Task[Sequence[Buffer]]:
        """A call comes."""

        async def call() -> Sequence[Buffer]:
            return await self._run(name, None, 0.0)

        return self._group.create_task(call())

    async def turns(self, count: int) -> None:
        """Waits for so many turns."""
        for _ in range(count):
            self.turn += 1
            await asyncio.sleep(0)


async def test_a_call_without_others_waits_for_nobody() -> None:
    async with asyncio.TaskGroup() as group:
        place = Place(group)
        place.end.set()
        for name in (b"1", b"2"):
            place.come(name)
            await place.turns(1)
            assert name in place.began
            await place.turns(1)


async def test_calls_that_come_one_by_one_begin_in_the_same_turn() -> None:
    async with asyncio.TaskGroup() as group:
        place = Place(group)
        calls = []
        for name in (b"1", b"2", b"3", b"4"):
            calls.append(place.come(name))
            await place.turns(3)
        assert set(place.began) == {b"1"}
        await place.turns(20)
        assert len({place.began[name] for name in (b"2", b"3", b"4")}) == 1
        place.end.set()
    assert [call.result() for call in calls] == [(b"1",), (b"2",), (b"3",), (b"4",)]


async def test_the_first_of_the_next_burst_waits_for_the_others_too() -> None:
    async with asyncio.TaskGroup() as group:
        place = Place(group)
        for name in (b"1", b"2", b"3", b"4"):
            place.come(name)
        await place.turns(20)
        place.end.set()
        await place.turns(5)
        for name in (b"5", b"6"):
            place.come(name)
            await place.turns(3)
        assert b"5" not in place.began
        await place.turns(20)
        assert place.began[b"5"] == place.began[b"6"]
        place.come(b"7")
        await place.turns(20)
        place.come(b"8")
        await place.turns(1)
        assert b"8" in place.began


async def test_calls_that_never_stop_coming_hold_nobody_up_for_long() -> None:
    async with asyncio.TaskGroup() as group:
        place = Place(group)
        place.come(b"first")
        place.come(b"second")
        async with asyncio.timeout(10):
            while b"second" not in place.began:
                place.come(b"more")
                await place.turns(1)
        place.end.set()


async def test_a_call_that_is_cancelled_while_it_waits_does_not_begin() -> None:
    async with asyncio.TaskGroup() as group:
        place = Place(group)
        place.come(b"1")
        gone, stays = place.come(b"2"), place.come(b"3")
        await place.turns(2)
        gone.cancel()
        await place.turns(20)
        assert set(place.began) == {b"1", b"3"}
        place.end.set()
    assert gone.cancelled()
    assert stays.result() == (b"3",)
