"""When the server gives memory back."""

from __future__ import annotations

import asyncio

import pytest
from roost.router.admission import ByteBudget
from roost.server.idle_memory import GROWTH_BYTES, QUIET_BYTES, trim_when_idle

MIB = 1 << 20


@pytest.mark.parametrize(
    ("body_bytes", "sizes", "trimmed"),
    [
        (0, [0, GROWTH_BYTES + 1, MIB, MIB, MIB], [GROWTH_BYTES + 1]),
        (0, [0, GROWTH_BYTES, GROWTH_BYTES, GROWTH_BYTES], []),
        # What is left after a trim is what lives: it is no reason for another.
        (QUIET_BYTES, [0, 300 * MIB, 290 * MIB, 310 * MIB, 330 * MIB, 9 * MIB], [300 * MIB, 330 * MIB]),
    ],
)
async def test_memory_is_trimmed_after_growth_and_when_no_large_request_is_there(
    body_bytes: int, sizes: list[int], trimmed: list[int]
) -> None:
    bodies = ByteBudget(1 << 30)
    bodies.acquire(body_bytes)
    measured: list[int] = []
    at: list[int] = []
    looked = asyncio.Event()

    def measure() -> int:
        measured.append(sizes[min(len(measured), len(sizes) - 1)])
        if len(measured) >= len(sizes):
            looked.set()
        return measured[-1]

    watching = asyncio.create_task(
        trim_when_idle(bodies, looks_every_s=0.0, measure=measure, trim=lambda: at.append(measured[-1]))
    )
    await looked.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert at == trimmed


async def test_nothing_is_trimmed_while_large_requests_are_there() -> None:
    bodies = ByteBudget(1 << 30)
    bodies.acquire(QUIET_BYTES + 1)
    sizes = iter([0, GROWTH_BYTES + 1, 0])
    trims: list[int] = []
    trimmed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def trim() -> None:
        trims.append(bodies.used_bytes)
        loop.call_soon_threadsafe(trimmed.set)

    watching = asyncio.create_task(trim_when_idle(bodies, looks_every_s=0.0, measure=lambda: next(sizes, 0), trim=trim))
    for _ in range(20):
        await asyncio.sleep(0)
    assert trims == []
    bodies.release(QUIET_BYTES + 1)
    await trimmed.wait()
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert trims == [0]
