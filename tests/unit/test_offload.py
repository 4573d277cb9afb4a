from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import AsyncIterator

import pytest
from roost.core.errors import InvalidArgument
from roost.router.admission import ByteBudget
from roost.server.offload import Offload
from roost.server.rest.body import Body


@pytest.fixture
async def offload() -> AsyncIterator[Offload]:
    offload = Offload("test")
    yield offload
    await offload.close()


class Gate:
    """Work that a test lets go on."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.begun = asyncio.Event()
        self.go = threading.Event()

    def work(self, answer: str) -> str:
        self.loop.call_soon_threadsafe(self.begun.set)
        self.go.wait()
        return answer


async def wait_until_free(budget: ByteBudget) -> None:
    while budget.used_bytes:  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.001)


async def test_results_and_errors_come_back(offload: Offload) -> None:
    def refuse() -> None:
        raise InvalidArgument("no")

    assert await offload.run(None, "a".upper) == "A"
    with pytest.raises(InvalidArgument, match="no"):
        await offload.run(None, refuse)


async def test_a_cancelled_caller_leaves_its_budget_to_the_work(offload: Offload) -> None:
    budget = ByteBudget(100)
    gate = Gate()

    async def call() -> None:
        with Body(budget) as body:
            body.take(100)
            await offload.run(body, gate.work, "x")

    task = asyncio.create_task(call())
    await gate.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert budget.used_bytes == 100
    gate.go.set()
    await wait_until_free(budget)


async def test_work_that_nobody_waits_for_is_not_begun(offload: Offload) -> None:
    budget = ByteBudget(100)
    gates = [Gate(), Gate()]
    busy = [asyncio.create_task(offload.run(None, gate.work, "x")) for gate in gates]
    for gate in gates:
        await gate.begun.wait()
    ran = threading.Event()

    async def call() -> None:
        with Body(budget) as body:
            body.take(100)
            await offload.run(body, ran.set)

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until_free(budget)
    for gate in gates:
        gate.go.set()
    assert await asyncio.gather(*busy) == ["x", "x"]
    assert await offload.run(None, "a".upper) == "A"
    assert not ran.is_set()


async def test_arguments_are_let_go_of_on_the_loop(offload: Offload) -> None:
    threads: list[threading.Thread] = []

    class Memory:
        def __del__(self) -> None:
            threads.append(threading.current_thread())

    def refuse(_: Memory) -> None:
        raise InvalidArgument("no")

    for function in (id, refuse):
        for _ in range(20):
            try:
                await offload.run(None, function, Memory())
            except InvalidArgument:
                continue
    await offload.close()
    gc.collect()
    assert threads == [threading.main_thread()] * 40


async def test_a_failure_keeps_nothing(offload: Offload) -> None:
    """Not even until the garbage collector comes by."""

    def refuse(data: bytes) -> None:
        raise InvalidArgument("no")

    async def fail() -> weakref.ref[ByteBudget]:
        budget = ByteBudget(1)
        with contextlib.suppress(InvalidArgument), Body(budget) as body:
            await offload.run(body, refuse, b"")
        return weakref.ref(budget)

    gc.collect()
    gc.disable()
    try:
        kept = await fail()
        await asyncio.sleep(0)
        assert kept() is None
    finally:
        gc.enable()
