"""docs/protocol.md names every call, and its statuses are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from roost.core.errors import Code
from roost.proto import grpc_service_pb2 as pb
from roost.server.grpc_errors import STATUS_OF_CODE
from roost.server.rest.app import RestLimits, build_rest_app
from roost.server.rest.errors import HTTP_STATUS

from tests.fakes import FakeDataPlane

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_every_grpc_method_is_there() -> None:
    (service,) = (s for s in pb.DESCRIPTOR.services_by_name.values() if s.name == "GRPCInferenceService")
    missing = [method.name for method in service.methods if f"`{method.name}`" not in PAGE]
    assert missing == []


def _shortened(path: str) -> str:
    """A route as the page writes it: without what may be left out."""
    path = re.sub(r"\{(model|repository|region|version)(:[^}]*)?\}", lambda match: "{" + match[1][0] + "}", path)
    return path.replace("/versions/{v}", "").replace("/region/{r}", "").replace("/v2/repository/{r}", "/v2/repository")


async def test_every_rest_route_is_there() -> None:
    page = re.sub(r"\[[^\]]*\]|/region/\{r\}", "", PAGE)
    app = build_rest_app(FakeDataPlane(), RestLimits())
    routes = {_shortened(resource.canonical) for resource in app.router.resources()}
    # The page shortens the calls about regions to their ends.
    missing = [route for route in routes if route not in page and f"...{route[route.rindex('/') :]}" not in page]
    assert missing == []


def test_every_code_has_its_statuses() -> None:
    rows = dict(re.findall(r"^\| ([A-Z_]+) \| (\d{3} \| [A-Z_]+) \|", PAGE, re.MULTILINE))
    assert rows == {code.value: f"{HTTP_STATUS[code]} | {STATUS_OF_CODE[code].name}" for code in Code}
