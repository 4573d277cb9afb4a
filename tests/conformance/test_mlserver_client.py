"""What MLServer's codecs and gRPC stubs send, which ``mlserver_client.py`` does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.sdk import run_client
from tests.server import RoostServer

OUTPUTS = {"OUTPUT0": list(range(1, 17)), "OUTPUT1": list(range(-1, 15))}
WORDS = {"OUTPUT0": ["one", "größe", "three"]}


@pytest.fixture(scope="module")
def results(server: RoostServer) -> dict[str, Any]:
    return run_client("mlserver_client.py", server)


def test_codecs_over_rest(results: dict[str, Any]) -> None:
    found = results["rest"]
    assert found["numpy"]["outputs"] == OUTPUTS
    assert found["numpy_request"]["outputs"] == {"OUTPUT0": [1.0, 1.0, 1.0]}
    assert found["strings"]["outputs"] == WORDS
    assert found["pandas"]["outputs"] == {"OUTPUT0": [0, 1, 2], "OUTPUT1": [1, 1, 1]}
    assert found["unknown_model"]["status"] == 404


def test_repository_and_readiness_over_rest(results: dict[str, Any]) -> None:
    assert {"simple", "batched"} <= set(results["rest"]["index"])
    assert results["rest"]["model_ready"] == 200


def test_stubs(results: dict[str, Any]) -> None:
    found = results["grpc"]
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
    assert found["server"] == "conforming"
    assert found["inputs"] == ["INPUT0", "INPUT1"]
    for name in ("typed", "raw"):
        assert found[name]["outputs"] == OUTPUTS, name
    for name in ("strings_typed", "strings_raw"):
        assert found[name]["outputs"] == WORDS, name
    assert found["unknown_model"]["status"] == "NOT_FOUND"


def test_model_repository_service(results: dict[str, Any]) -> None:
    assert {"simple", "batched"} <= set(results["grpc"]["index"])
