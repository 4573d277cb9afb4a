"""Gives memory that large requests have left behind back to the system, when nothing large is under way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from roost.core.units import format_bytes
from roost.router.admission import ByteBudget
from roost.runtimes.memory import private_bytes, trim_memory

log = logging.getLogger(__name__)

LOOKS_EVERY_S = 10.0
# What is not worth the milliseconds that trimming takes.
GROWTH_BYTES = 32 << 20
# Bodies below this are small ones that come and go all the time.
QUIET_BYTES = 1 << 20


async def trim_when_idle(
    bodies: ByteBudget,
    *,
    looks_every_s: float = LOOKS_EVERY_S,
    measure: Callable[[], int] = private_bytes,
    trim: Callable[[], None] = trim_memory,
) -> None:
    """Trims once the server has grown since it last did and no large request is there; until it is cancelled.

    malloc keeps what is freed, in pieces between what lives on: after 150 requests of 600 KB that waited for their
    clients it held 300 MB. A threshold for mapping large buffers would free them at once, but makes each request pay.

    Args:
        bodies: What requests hold.
        looks_every_s: Time between two looks.
        measure: Says how many bytes the process has.
        trim: Gives back what is free; called in a thread.
    """
    floor_bytes = measure()
    while True:
        await asyncio.sleep(looks_every_s)
        if bodies.used_bytes > QUIET_BYTES:
            continue
        before = measure()
        if before <= floor_bytes + GROWTH_BYTES:
            continue
        started = time.monotonic()
        await asyncio.to_thread(trim)
        floor_bytes = measure()
        took_ms = (time.monotonic() - started) * 1e3
        log.debug("trimmed memory from %s to %s in %.1f ms", format_bytes(before), format_bytes(floor_bytes), took_ms)
