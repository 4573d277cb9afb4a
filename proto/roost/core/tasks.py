"""Tasks that belong to a block of code, and blocks that belong to a request."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs work until the block ends, which cancels it and waits for its end; if it fails, so does the block."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        try:
            yield
        finally:
            task.cancel()


def by_deadline(deadline: float) -> asyncio.Timeout:
    """``asyncio.timeout`` up to a time of ``time.monotonic``; infinity is for ever."""
    return asyncio.timeout(deadline - time.monotonic() if deadline < math.inf else None)
