"""``/admin/activity``: what ``roost top`` and the page of the mesh ask for every second."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler
from roost.core.errors import InvalidArgument
from roost.router.activity_view import Activity, Order, Question

Look: TypeAlias = Callable[[Question], Awaitable[Activity]]

MAX_TOP = 1000
_MAX_NEEDLE_CHARS = 128


def activity_handler(look: Look) -> Handler:
    """Answers with what ``look`` says to the question in the query: ``sort``, ``filter`` and ``top``."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            question = read_question(request.query)
        except InvalidArgument as error:
            body = orjson.dumps({"error": error.message})
            return web.Response(status=400, body=body, content_type="application/json")
        body = orjson.dumps(await look(question))
        return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})

    return handle


def read_question(query: Mapping[str, str]) -> Question:
    """Reads a query; what it leaves out is as ``Question`` has it.

    Raises:
        InvalidArgument: If a value makes no sense.
    """
    plain = Question()
    order, top = query.get("sort", plain.order.value), query.get("top", str(plain.top))
    if order not in set(Order):
        raise InvalidArgument(f"sort is one of {', '.join(Order)}")
    if not (top.isdecimal() and len(top) <= len(str(MAX_TOP)) and int(top) <= MAX_TOP):
        raise InvalidArgument(f"top is a number from 0 to {MAX_TOP}")
    return Question(Order(order), query.get("filter", plain.needle)[:_MAX_NEEDLE_CHARS], int(top))
