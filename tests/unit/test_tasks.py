"""Work that goes on beside other work."""

from __future__ import annotations

import asyncio

import pytest
from roost.core.tasks import in_background, look_every

from tests.virtual_time import virtual


@virtual
@pytest.mark.parametrize(("at_once", "expected"), [(True, [0.0, 2.0, 4.0]), (False, [2.0, 4.0])])
async def test_a_look_that_fails_is_not_the_last_one(at_once: bool, expected: list[float]) -> None:
    loop = asyncio.get_running_loop()
    began, looks, failures = loop.time(), list[float](), list[float]()

    async def look() -> None:
        looks.append(loop.time() - began)
        raise ValueError

    async with in_background(look_every(2.0, look, lambda: failures.append(loop.time() - began), at_once=at_once)):
        await asyncio.sleep(5.0)
    assert looks == failures == pytest.approx(expected)
