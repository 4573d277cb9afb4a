"""Threads for work that would stop the event loop: coding of large bodies and answers, and copies of tensors."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar, TypeVarTuple, Unpack

from roost.core.errors import RoostError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_THREADS = 2
_collections_off = threading.Lock()


class Held(Protocol):
    """What must stay as long as a thread works on it, whoever waits for the work."""

    def hold(self) -> None:
        """Keeps it."""

    def let_go(self) -> None:
        """Ends what ``hold`` began."""


class Offload:
    """A few threads of its own.

    A caller that is cancelled does not wait for its work: what no thread has begun is dropped, the rest runs to its
    end. Arguments are referred to from the event loop's thread until then and let go of there, because memory of
    tensors is given back to its budget by whoever drops it, and budgets belong to that thread.

    Args:
        name: What its threads are for, in their names.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"roost-{name}")

    async def run(self, held: Held | None, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Runs a function in a thread.

        Args:
            held: Is held until the work has ended or was dropped.
            function: Must not return anything that refers to its arguments' budgeted memory.
            args: What it is called with.
        """
        job = _Job(function, args)
        del args  # else an error would refer to them, by its traceback
        work: Future[T] = self._executor.submit(job)
        ended = asyncio.wrap_future(work)
        if held is not None:
            held.hold()

        def on_end(_: asyncio.Future[T]) -> None:
            job.args.clear()
            if held is not None:
                held.let_go()

        ended.add_done_callback(on_end)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            work.cancel()  # without effect if it has begun
            raise
        finally:
            # An error refers to this frame, and these to the error: until the collector came it would keep all of it.
            del ended, work

    async def close(self) -> None:
        """Drops what has not begun and waits for what has."""
        await asyncio.to_thread(self._executor.shutdown, True, cancel_futures=True)


class _Job(Generic[T]):
    """A call whose arguments can be taken away from the thread that made it."""

    __slots__ = ("_function", "args")

    def __init__(self, function: Callable[..., T], args: tuple[object, ...]) -> None:
        self._function = function
        self.args = list(args)

    def __call__(self) -> T:
        try:
            return self._function(*self.args)
        except RoostError as error:
            # Frames would keep the arguments alive in this thread.
            raise error.with_traceback(None) from None


def without_collections(function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
    """Calls a function that makes many containers and drops them, such as a parser, without the garbage collector.

    The collector would go through all of them again and again, and stop all threads each time. One call at a time,
    so that a stream of them leaves it its chances; they could not run side by side anyway.
    """
    with _collections_off:
        was_on = gc.isenabled()
        gc.disable()
        try:
            return function(*args)
        finally:
            if was_on:
                gc.enable()
