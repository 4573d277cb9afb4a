"""Every public method of the clients in KServe's SDK, which ``kserve_client.py`` calls."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.sdk import run_client
from tests.server import RoostServer

SUM = list(range(1, 17))
DIFFERENCE = list(range(-1, 15))
ANSWER = {"id": "id-1", "model": "simple", "outputs": {"OUTPUT0": SUM, "OUTPUT1": DIFFERENCE}}
WORDS = ["one", "größe", ""]


@pytest.fixture(scope="module")
def results(server: RoostServer) -> dict[str, Any]:
    return run_client("kserve_client.py", server)


@pytest.mark.parametrize("part", ["v2", "grpc"])
def test_health(results: dict[str, Any], part: str) -> None:
    found = results[part]
    assert (found["live"], found["ready"]) == (True, True)
    assert (found["model_ready"], found["unknown_model_ready"]) == (True, False)


@pytest.mark.parametrize("name", ["json", "binary", "mixed", "parameters"])
def test_v2_inference(results: dict[str, Any], name: str) -> None:
    assert results["v2"][name] == ANSWER


@pytest.mark.parametrize("name", ["typed", "raw"])
def test_grpc_inference(results: dict[str, Any], name: str) -> None:
    assert results["grpc"][name] == ANSWER


def test_strings(results: dict[str, Any]) -> None:
    for part, name in (("v2", "words_json"), ("v2", "words_binary"), ("grpc", "words_typed"), ("grpc", "words_raw")):
        assert results[part][name]["outputs"] == {"OUTPUT0": WORDS}, name


def test_v1_health(results: dict[str, Any]) -> None:
    found = results["v1"]
    assert (found["live"], found["model_ready"]) == (True, True)
    # What is broken shows when it is asked for first.
    assert found["broken_model"]["status"] == 503
    assert found["broken_model_ready"] is False
    assert found["unknown_model_ready"]["status"] == 404


def test_v1_inference(results: dict[str, Any]) -> None:
    assert results["v1"]["rows"] == {"predictions": [{"OUTPUT0": SUM, "OUTPUT1": DIFFERENCE}]}
    assert results["v1"]["columns"] == {"outputs": {"OUTPUT0": [SUM], "OUTPUT1": [DIFFERENCE]}}


def test_errors(results: dict[str, Any]) -> None:
    for part in ("v2", "v1", "grpc"):
        found = results[part]["unknown_model"]
        assert found["status"] in (404, "NOT_FOUND")
        assert "nope" in found["message"]
    assert results["v1"]["bad"]["status"] == 400
    assert "instances" in results["v1"]["bad"]["message"]
    assert results["v1"]["explain"]["status"] == 501


def test_no_public_method_is_left_out(results: dict[str, Any]) -> None:
    assert results["v1"]["missed"] == []
    assert results["grpc"]["missed"] == []
