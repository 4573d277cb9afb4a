"""The OpenAPI document, and the page made of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import orjson
import pytest
from aiohttp import web
from openapi_spec_validator import validate
from roost.core.version import __version__
from roost.server.openapi import Document, build_document, routes, undescribed
from roost.server.openapi_operations import OPERATIONS
from roost.server.openapi_page import render
from roost.server.rest.app import RestLimits, build_rest_app

from tests.fakes import FakeDataPlane


@pytest.fixture
def app() -> web.Application:
    return build_rest_app(FakeDataPlane(), RestLimits())


@pytest.fixture
def document(app: web.Application) -> Document:
    written: Document = orjson.loads(orjson.dumps(build_document(app)))
    return written


def test_document_is_valid(document: Document) -> None:
    validate(document)
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["version"] == __version__


def test_routes_and_descriptions_are_the_same(app: web.Application, document: Document) -> None:
    assert undescribed(app) == []
    found = {(method.lower(), path) for method, path, _ in routes(app)}
    assert {(method, path) for path, item in document["paths"].items() for method in item} == found
    described = {(key.split()[0].lower(), key.split()[1]) for key in OPERATIONS}
    assert described <= found, "descriptions of calls that do not exist"


def test_a_route_that_nobody_described_is_there_all_the_same() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        """Does something.

        And more.
        """
        return web.Response()

    app = web.Application()
    app.router.add_post("/new/{thing}", handler)
    document = build_document(app)
    validate(document)
    assert undescribed(app) == ["POST /new/{thing}"]
    assert document["paths"]["/new/{thing}"]["post"]["summary"] == "Does something."


def test_references_lead_somewhere_and_every_schema_is_used(document: Document) -> None:
    schemas = document["components"]["schemas"]
    used = set(re.findall(r'"#/components/schemas/(\w+)"', orjson.dumps(document).decode()))
    assert used == set(schemas)


class Page(HTMLParser):
    """What a page refers to, and whether it is well-formed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        if tag != "meta":
            self.open.append(tag)
        values = dict(attrs)
        self.links += [value for key in ("href", "src") if (value := values.get(key)) is not None]
        self.ids |= {value for key in ("id",) if (value := values.get(key)) is not None}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_has_everything_and_needs_nothing(document: Document) -> None:
    page = Page()
    page.feed(render(document))
    assert page.open == []
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    for path, item in document["paths"].items():
        assert path in page.text
        assert all(operation["summary"] in page.text for operation in item.values())


def test_page_escapes() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        """<script>alert(1)</script> & more."""
        return web.Response()

    app = web.Application()
    app.router.add_get("/x", handler)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more." in render(build_document(app))
