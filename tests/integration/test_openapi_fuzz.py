"""Requests made up from the OpenAPI document, sent to a real server: its answers must be those it describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from roost.server.openapi import build_document
from roost.server.rest.app import RestLimits, build_rest_app
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fakes import FakeDataPlane
from tests.models import write_dummy, write_garbage, write_identity, write_simple
from tests.server import RoostServer, started

NAMES = ["texts", "rows", "decoupled", "simple", "broken", "unloaded", "none"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    folder = tmp_path_factory.mktemp("fuzz")
    models = folder / "models"
    write_simple(models / "simple" / "1" / "model.onnx", batch=-1)
    (models / "simple" / "config.pbtxt").write_text("max_batch_size: 4\n")
    write_dummy(models / "rows" / "1" / "model.dummy")
    write_identity(models / "texts" / "1" / "model.onnx", "BYTES", (-1,))
    write_identity(models / "unloaded" / "1" / "model.onnx", "FP32", (-1,))
    write_garbage(models / "broken" / "1" / "model.onnx")
    write_dummy(models / "decoupled" / "1" / "model.dummy")
    (models / "decoupled" / "config.pbtxt").write_text("model_transaction_policy { decoupled: true }\n")
    flags = ["--model-control", "explicit", *(f"--load-model={name}" for name in NAMES[:4]), "--allow-client-shm"]
    with started(models, folder / "run", "--workers", "1", *flags) as running:
        yield running


def _exactly(**properties: Any) -> Any:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}
NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}
GOOD_INPUTS = [
    _exactly(name={"const": "INPUT0"}, datatype={"const": "BYTES"}, shape={"const": [2]}, data=TEXTS),
    _exactly(name={"const": "INPUT0"}, datatype={"const": "FP32"}, shape={"const": [1, 4]}, data=NUMBERS),
]
GOOD_INSTANCES = {"anyOf": [{"type": "string"}, NUMBERS, _exactly(b64={"const": "QQ=="}), _exactly(INPUT0=NUMBERS)]}
PATH_VALUES = {"model": NAMES, "version": ["1", "01", "2", "9" * 20]}


@pytest.fixture(scope="module")
def document(server: RoostServer) -> Any:
    """The document, narrowed to words that mean something to this server: random ones meet nothing but refusals."""
    found = server.get("/openapi.json")[1]
    for path, item in found["paths"].items():
        for operation in item.values():
            for parameter in operation["parameters"]:
                if values := PATH_VALUES.get(parameter["name"]):
                    parameter["schema"] = {"enum": values}
            if "{version}" not in path:  # hardly any random length is right
                operation["parameters"] = [row for row in operation["parameters"] if row["in"] == "path"]
    schemas = found["components"]["schemas"]
    schemas["InferRequest"]["properties"]["inputs"] |= {"minItems": 1, "maxItems": 2}
    schemas["InferInput"] = {"anyOf": [*GOOD_INPUTS, schemas["InferInput"]]}
    schemas["PredictRequest"]["properties"]["instances"] |= {"items": GOOD_INSTANCES, "maxItems": 3}
    schemas["PredictRequest"]["properties"]["inputs"] = {"anyOf": [TEXTS, _exactly(INPUT0=TEXTS), {}]}
    schemas["GenerateRequest"]["properties"]["INPUT0"] = {"anyOf": [TEXTS, NUMBERS, {}]}
    return found


Case: TypeAlias = "schemathesis.Case[Any]"
CALLS = [
    (method, path)
    for path, item in build_document(build_rest_app(FakeDataPlane(), RestLimits()))["paths"].items()
    for method in item
]
"""Method and path of every call that is described."""

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 20


@pytest.fixture(scope="module")
def api(document: Any, server: RoostServer) -> schemathesis.BaseSchema:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=f"http://{server.http}")
    return schema


TENSOR = {"name": "INPUT0", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
GOOD_CALLS = [
    ("post", "/v2/models/{model}/infer", {"model": "texts"}, {"id": "1", "inputs": [TENSOR]}),
    ("post", "/v2/models/{model}/versions/{version}/infer", {"model": "texts", "version": "1"}, {"inputs": [TENSOR]}),
    ("post", "/v2/models/{model}/generate", {"model": "texts"}, {"INPUT0": ["a", "b"], "id": "1"}),
    ("post", "/v2/models/{model}/generate_stream", {"model": "decoupled"}, {"INPUT0": [1, 2, 3, 4]}),
    ("post", "/v1/models/{model}:predict", {"model": "rows"}, {"instances": [[1, 2, 3, 4]]}),
    ("post", "/v1/models/{model}:predict", {"model": "rows"}, {"inputs": {"INPUT0": [[1, 2, 3, 4]]}}),
    ("get", "/v1/models/{model}", {"model": "rows"}, None),
    ("get", "/v2/models/{model}", {"model": "rows"}, None),
    ("get", "/v2/models/{model}/config", {"model": "decoupled"}, None),
    ("get", "/v2/models/{model}/stats", {"model": "texts"}, None),
    ("get", "/v2/models/stats", {}, None),
    ("post", "/v2/repository/index", {}, {"ready": True}),
    ("post", "/v2/repository/models/{model}/load", {"model": "unloaded"}, None),
    ("post", "/v2/repository/models/{model}/unload", {"model": "unloaded"}, {}),
    ("post", "/v2/logging", {}, {"log_verbose_level": 0}),
    ("post", "/v2/trace/setting", {}, {"trace_rate": None}),
]


@pytest.mark.parametrize(("method", "path", "names", "body"), GOOD_CALLS)
def test_good_answers_are_as_described(
    api: schemathesis.BaseSchema, method: str, path: str, names: dict[str, str], body: Any
) -> None:
    content = {} if body is None else {"body": body, "media_type": "application/json"}
    case = api[path][method].Case(path_parameters=names, **content)
    response = case.call()
    assert response.status_code == 200, response.text
    case.validate_response(response, checks=CHECKS)


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_answers_are_as_described(api: schemathesis.BaseSchema, method: str, path: str) -> None:
    operation = api[path][method]
    cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=cases)
    def check(case: Case) -> None:
        response = case.call()
        assert response.status_code != 500, response.text
        case.validate_response(response, checks=CHECKS)

    check()
