"""Threads that are there before they are needed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def thread_pool(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads have all been started: later, when the server is to end, there may be none to be had.

    Args:
        threads: How many.
        name: What they are for, in their names.

    Raises:
        RuntimeError: If there are not so many to be had now.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix=f"roost-{name}") as pool:
        meeting = threading.Barrier(threads)  # or one of them would do what is for two
        try:
            for begun in [pool.submit(meeting.wait) for _ in range(threads)]:
                begun.result()
        except BaseException:
            meeting.abort()
            raise
        yield pool
