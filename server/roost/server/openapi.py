"""The OpenAPI 3.1 document of the REST API, made from the routes that the application has.

``python -m roost.server.openapi`` prints it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

import orjson
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from roost.core.version import __version__
from roost.server.openapi_operations import BINARY, ERRORS, JSON, OPERATIONS, PATH_PARAMETERS, TAGS, Operation
from roost.server.openapi_schemas import COUNT, SCHEMAS, Schema, ref

Document = Mapping[str, Any]

PATH = "/openapi.json"
_PLACEHOLDER = re.compile(r"{(\w+)}")
_HEADER_LENGTH = "Inference-Header-Content-Length"
_LENGTH_HEADER = {
    "name": _HEADER_LENGTH,
    "in": "header",
    "description": "How many bytes of the body are JSON, if elements in binary follow; uncompressed.",
    "schema": COUNT,
}
_RETRY_HEADER = {"Retry-After": {"description": "Seconds after which to try again.", "schema": COUNT}}
_RETRIED = (429, 503)
_ANY: Mapping[str, Any] = {"description": "", "schema": {"type": "string"}}


def add_openapi_route(app: web.Application) -> None:
    """Serves the document at ``/openapi.json``; it is made when it is first asked for."""
    body: list[bytes] = []

    async def document(request: web.Request) -> web.StreamResponse:
        if not body:
            body.append(orjson.dumps(build_document(app)))
        return web.Response(body=body[0], content_type=JSON)

    app.router.add_get(PATH, document, allow_head=False)


def build_document(app: web.Application) -> Document:
    """Describes all routes of an application."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, handler in routes(app):
        operation = OPERATIONS.get(f"{method} {_plain(path)}") or _unknown(method, path, handler)
        paths.setdefault(path, {})[method.lower()] = _describe(operation, path)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Roost",
            "version": __version__,
            "description": "An inference server for many models: the Open Inference Protocol (KServe v2) with Triton's "
            "extensions, and KServe v1. Errors are always JSON with the key error.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The HTTP port (--http-port)."}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def undescribed(app: web.Application) -> list[str]:
    """The routes that nobody has described; a test wants none."""
    return [f"{method} {path}" for method, path, _ in routes(app) if f"{method} {_plain(path)}" not in OPERATIONS]


def routes(app: web.Application) -> Iterator[tuple[str, str, Handler]]:
    """Method, path and handler of each route."""
    for resource in app.router.resources():
        for route in resource:
            if route.method == hdrs.METH_ANY:
                continue  # only refuses
            yield route.method, resource.canonical, route.handler


def _plain(path: str) -> str:
    """The path without the parts that only say where to look for the same thing."""
    return path.replace("/versions/{version}", "").replace("/{repository}", "")


def _unknown(method: str, path: str, handler: Handler) -> Operation:
    name = re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_")
    summary = (handler.__doc__ or path).strip().splitlines()[0]
    return Operation(name, "About", summary, {}, " ".join(map(str, ERRORS)))


def _describe(operation: Operation, path: str) -> dict[str, Any]:
    names = _PLACEHOLDER.findall(path)
    parameters: list[Any] = [
        {"name": name, "in": "path", "required": True, **PATH_PARAMETERS.get(name, _ANY)} for name in names
    ]
    if BINARY in operation.body:
        parameters.append(_LENGTH_HEADER)
    described: dict[str, Any] = {
        "operationId": operation.id
        + "".join(f"For{name.title()}" for name in names if name in ("version", "repository")),
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": parameters,
        "responses": _responses(operation, names),
    }
    if operation.description:
        described["description"] = operation.description
    if operation.body:
        described["requestBody"] = {"required": operation.needs_body, "content": _content(operation.body)}
    return described


def _responses(operation: Operation, names: Collection[str]) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "It worked."}
    if operation.answers:
        good["content"] = _content(operation.answers)
    if BINARY in operation.answers:
        good["headers"] = {_HEADER_LENGTH: {key: _LENGTH_HEADER[key] for key in ("description", "schema")}}
    responses: dict[str, Any] = {"200": good}
    statuses = {403, *map(int, operation.errors.split())}
    if names:
        statuses.add(404)  # what can be no name or version leads nowhere
    if "version" in names:
        statuses.add(400)  # a number that is too large for a version
    for status in sorted(statuses):
        schema = operation.exceptions.get(status, ref("Error"))
        responses[str(status)] = {"description": ERRORS[status], "content": _content({JSON: schema})}
        if status in _RETRIED:
            responses[str(status)]["headers"] = _RETRY_HEADER
    return responses


def _content(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    return {content_type: {"schema": schema} for content_type, schema in schemas.items()}


class _Nobody:
    """Stands where a data plane would be; routes are made without asking it anything."""

    def __getattr__(self, name: str) -> Any:
        return self


def main() -> None:
    """Prints the document."""
    from roost.server.rest.app import RestLimits, build_rest_app

    app = build_rest_app(cast(Any, _Nobody()), RestLimits())
    sys.stdout.buffer.write(orjson.dumps(build_document(app), option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    main()
