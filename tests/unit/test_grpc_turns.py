"""The order of answers in a stream."""

from __future__ import annotations

import asyncio

from roost.server.grpc_turns import Turns


async def run_in_order(finish: list[int], leave: list[int]) -> list[int]:
    """Takes turns 1 to 5; those to leave do so at once, the others want to answer in the order of ``finish``."""
    turns = Turns()
    answered: list[int] = []
    taken = [turns.take() for _ in range(5)]
    for turn in leave:
        turns.end(turn)

    async def answer(turn: int) -> None:
        await turns.come(turn)
        answered.append(turn)
        turns.end(turn)

    async with asyncio.TaskGroup() as group:
        for number in finish:
            group.create_task(answer(taken[number - 1]))
            await asyncio.sleep(0)
    return answered


async def test_answers_keep_the_order_of_requests() -> None:
    assert await run_in_order([5, 3, 1, 2, 4], []) == [1, 2, 3, 4, 5]


async def test_whoever_leaves_waits_for_nobody_and_holds_nobody_up() -> None:
    assert await run_in_order([2, 5, 4, 3, 1], leave=[2]) == [2, 1, 3, 4, 5]
    assert await run_in_order([4, 3, 2], leave=[1, 5]) == [2, 3, 4]


async def test_a_cancelled_turn_passes_on() -> None:
    turns = Turns()
    first, second, third = turns.take(), turns.take(), turns.take()
    waiting = asyncio.ensure_future(turns.come(second))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    turns.end(second)
    turns.end(first)
    await turns.come(third)
