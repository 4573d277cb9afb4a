"""How calls are registered: methods of a path, and the group that an operator can restrict it with."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler
from roost.server.restrictions import Restrictions


class Routes:
    """Adds calls to an application.

    Args:
        app: Where to.
        restrictions: Groups of calls that need a header; calls of other groups pay nothing for them.
    """

    def __init__(self, app: web.Application, restrictions: Restrictions) -> None:
        self._app = app
        self._restrictions = restrictions

    def add(self, group: str, path: str, *, get: Handler | None = None, post: Handler | None = None) -> None:
        """Adds the calls of one path.

        Args:
            group: One of ``restrictions.GROUPS``.
            path: With placeholders as aiohttp has them.
            get: Answers GET; HEAD is not implied.
            post: Answers POST.
        """
        resource = self._app.router.add_resource(path)
        handlers = {"GET": get, "POST": post}
        for method, handler in handlers.items():
            if handler is not None:
                resource.add_route(method, self._guard(group, handler), expect_handler=_leave_expect)
        if group in self._restrictions.rules:
            # A client that may not call learns nothing about methods either.
            allowed = [method for method, handler in handlers.items() if handler is not None]
            resource.add_route("*", self._guard(group, _refuse_other_than(allowed)))

    def _guard(self, group: str, handler: Handler) -> Handler:
        if group not in self._restrictions.rules:
            return handler
        check = self._restrictions.check

        async def guarded(request: web.Request) -> web.StreamResponse:
            check(group, request.headers.get)
            return await handler(request)

        return guarded


def _refuse_other_than(allowed: list[str]) -> Handler:
    async def refuse(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMethodNotAllowed(request.method, allowed)

    return refuse


async def _leave_expect(_: web.Request) -> None:
    """A client that waits for "100 Continue" hears from the body reader, once its body is paid for."""
