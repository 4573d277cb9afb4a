"""Statistics and Triton's metrics of a real server: loads, evictions, reloads, failures, refusals and streams."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from roost.core.errors import Code
from roost.core.tensors import from_array

from tests.clients import CallFailed, Client, connect, four
from tests.models import write_dummy, write_simple
from tests.server import HOST, RoostServer, eventually, started

SLOTS = 4
STEPS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


def stats(server: RoostServer, path: str = "") -> list[dict[str, Any]]:
    """The statistics of what the path says, which must be there."""
    code, document = server.get(f"/v2/models{path}/stats")
    assert code == 200, document
    rows: list[dict[str, Any]] = document["model_stats"]
    return rows


def counts(row: dict[str, Any]) -> dict[str, int]:
    return {step: row["inference_stats"][step]["count"] for step in STEPS}


def nv_lines(server: RoostServer, model: str) -> dict[str, str]:
    """The values of a model's samples by what stands before them."""
    lines = [line for line in server.metrics().splitlines() if line.startswith("nv_") and f'model="{model}"' in line]
    return {sample: value for sample, _, value in (line.rpartition(" ") for line in lines)}


def declare(repository: Path, name: str, config: str, **behaviour: Any) -> None:
    write_dummy(repository / name / "1" / "model.dummy", **behaviour)
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")


MEMORY = 'parameters { key: "roost.memory_bytes" value { string_value: "60MiB" } }'


async def test_statistics_from_load_to_unload(tmp_path: Path, repository: Path) -> None:
    for name in ("a", "b"):
        declare(repository, name, f"max_batch_size: 8 {MEMORY}")
    flags = ("--workers", "1", "--model-control", "explicit", "--memory-budget", "100MiB")
    with started(repository, tmp_path / "run", *flags) as server:
        async with connect(server, "rest") as client:
            assert stats(server) == []
            assert server.get("/v2/models/a/stats") == (404, {"error": "requested model 'a' is not available"})
            assert not nv_lines(server, "a")

            await client.load("a")
            (row,) = stats(server)
            assert (row["name"], row["version"], row["last_inference"], set(counts(row).values())) == ("a", "1", 0, {0})
            assert row["memory_usage"] == [{"type": "CPU", "id": 0, "byte_size": 60 << 20}]
            appeared = nv_lines(server, "a")
            assert appeared['nv_inference_request_success{model="a",version="1"}'] == "0"
            assert appeared['nv_inference_request_failure{model="a",reason="OTHER",version="1"}'] == "0"
            assert float(appeared['nv_model_load_duration_secs{model="a",version="1"}']) > 0

            await client.infer("a", four())
            await client.infer("a", [from_array("INPUT0", "FP32", np.ones((2, 4), np.float32))])
            with pytest.raises(CallFailed):
                await client.infer("a", four(), parameters={"fail": "no", "fail_code": "INTERNAL"})
            (row,) = stats(server, "/a")
            assert counts(row) == dict.fromkeys(STEPS, 2) | {"fail": 1, "cache_hit": 0, "cache_miss": 0}
            assert (row["inference_count"], row["execution_count"]) == (3, 2)
            assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in row["batch_stats"]] == [
                (1, 1),
                (2, 1),
            ]
            assert row["last_inference"] > 1_600_000_000_000
            assert row["inference_stats"]["success"]["ns"] > row["inference_stats"]["compute_infer"]["ns"] > 0

            before = nv_lines(server, "a")
            await client.load("b")
            await client.infer("b", four())
            assert server.resident() == {"b"}
            assert nv_lines(server, "a") == before, "an eviction touches nothing"
            (kept,) = stats(server, "/a/versions/1")
            assert kept == row | {"memory_usage": [{"type": "CPU", "id": 0, "byte_size": 0}]}

            write_dummy(repository / "a" / "1" / "model.dummy", leak_bytes=0, load_bytes=1)
            await client.load("a")
            (row,) = stats(server, "/a")
            assert (counts(row)["success"], counts(row)["fail"], row["batch_stats"]) == (0, 0, [])
            assert nv_lines(server, "a")['nv_inference_request_success{model="a",version="1"}'] == "0"
            await client.infer("a", four())
            assert counts(stats(server, "/a")[0])["success"] == 1
            assert server.metric("roost_requests_total", model="a", code="OK") == 3, "the process's own go on"

            await client.unload("a")
            assert server.get("/v2/models/a/stats")[0] == 404
            assert not nv_lines(server, "a")
            assert [row["name"] for row in stats(server)] == ["b"]
            assert server.metric("roost_requests_total", model="a", code="OK") == 3


async def test_only_used_models_are_shown_without_explicit_control(tmp_path: Path, repository: Path) -> None:
    for name in ("a", "b"):
        write_simple(repository / name / "1" / "model.onnx")
    with started(repository, tmp_path / "run", "--workers", "1", "--no-triton-metrics") as server:
        assert server.get("/v2/models/a/ready")[0] == 200
        assert stats(server) == []
        assert [counts(row)["success"] for row in stats(server, "/a")] == [0]
        async with connect(server, "rest") as client:
            with pytest.raises(CallFailed):
                await client.infer("b", four())
        assert [(row["name"], counts(row)["fail"]) for row in stats(server)] == [("b", 1)]
        for path, text in (
            ("/nope", "requested model 'nope' is not available"),
            ("/a/versions/2", "requested model 'a' version 2 is not available"),
        ):
            assert server.get(f"/v2/models{path}/stats") == (404, {"error": text})
        assert "nv_" not in server.metrics()


async def test_streams_count_once_and_by_position(tmp_path: Path, repository: Path) -> None:
    outputs = (("OUTPUT0", "FP32", (-1, 4)), ("sequence", "INT64", (1,)))
    declare(repository, "s", "model_transaction_policy { decoupled: true }", outputs=outputs)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        await stream(server, stream=3, interval_s=0.02)
        await stream(server, stream=1, close_empty=True)
        await stream(server, stream=2, fail_after=1, fail="no")
        (row,) = stats(server, "/s")
        assert (counts(row)["success"], counts(row)["fail"], row["execution_count"]) == (2, 1, 2)
        shown = {
            position: {kind: timed["count"] for kind, timed in kinds.items() if timed["count"]}
            for position, kinds in row["response_stats"].items()
        }
        assert shown == {
            "0": {"compute_infer": 3, "compute_output": 3, "success": 3},
            "1": {"compute_infer": 1, "compute_output": 1, "success": 1, "empty_response": 1, "fail": 1},
            "2": {"compute_infer": 1, "compute_output": 1, "success": 1},
        }
        assert row["response_stats"]["1"]["compute_infer"]["ns"] >= 20_000_000
        assert nv_lines(server, "s")['nv_inference_first_response_histogram_ms_count{model="s",version="1"}'] == "3"


async def stream(server: RoostServer, **parameters: Any) -> None:
    """One request over gRPC, whose answers are all taken."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        tensor = triton.InferInput("INPUT0", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
        yield {"model_name": "s", "inputs": [tensor], "parameters": parameters, "enable_empty_final_response": True}

    async with triton_aio.InferenceServerClient(server.grpc) as client:
        async for _ in client.stream_infer(requests()):
            pass


async def test_refusals_count_where_they_happen(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy")
    flags = ("--workers", "1", "--max-queue", "1", "--max-body", "1MiB", "--grpc-max-message-size", "1MiB")
    with started(repository, tmp_path / "run", *flags) as server:
        async with connect(server, "rest") as client:
            await _fill(server, client)
        announce(server, 2 << 20)
        refused = {reason: int(server.metric("roost_refusals_total", reason=reason)) for reason in REASONS}
        assert refused == {"queue_full": 1, "deadline": 1, "run_deadline": 1, "too_large": 1, "body_budget": 0}
        row = counts(stats(server, "/a")[0])
        assert (row["success"], row["fail"]) == (0, 3 + SLOTS)
        failures = nv_lines(server, "a")
        shown = {
            reason: failures[f'nv_inference_request_failure{{model="a",reason="{reason}",version="1"}}']
            for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
        }
        assert shown == {"REJECTED": "2", "CANCELED": str(SLOTS), "BACKEND": "0", "OTHER": "1"}


REASONS = ("queue_full", "deadline", "run_deadline", "too_large", "body_budget")


async def _fill(server: RoostServer, client: Client) -> None:
    """One request is too late while it runs, one while it waits, one finds the queue full; the rest is cancelled."""
    with pytest.raises(CallFailed) as error:
        await client.infer("a", four(), parameters={"run_s": 300, "timeout": 200_000})
    assert error.value.means(Code.DEADLINE_EXCEEDED)
    await eventually(lambda: server.in_flight() == 0, "the end of the run")
    holders = [asyncio.create_task(client.infer("a", four(), parameters={"run_s": 300})) for _ in range(SLOTS)]
    await eventually(lambda: server.in_flight() == SLOTS, "all slots taken")
    waits = asyncio.create_task(client.infer("a", four(), parameters={"timeout": 2_000_000}))
    await eventually(lambda: server.status()["queued"] == 1, "one that waits")
    assert nv_lines(server, "a")['nv_inference_pending_request_count{model="a",version="1"}'] == "1"
    with pytest.raises(CallFailed) as error:
        await client.infer("a", four())
    assert error.value.means(Code.RESOURCE_EXHAUSTED)
    with pytest.raises(CallFailed) as error:
        await waits
    assert error.value.means(Code.DEADLINE_EXCEEDED)
    for task in holders:
        task.cancel()
    await asyncio.gather(*holders, return_exceptions=True)
    cancelled = {"model": "a", "code": "CANCELLED"}
    await eventually(lambda: server.metric("roost_requests_total", **cancelled) == SLOTS, "the cancelled ones counted")


def announce(server: RoostServer, size_bytes: int) -> None:
    """A request that says how large its body is, and is refused for it."""
    connection = http.client.HTTPConnection(HOST, server.ports["http"], timeout=30)
    try:
        connection.putrequest("POST", "/v2/models/a/infer")
        connection.putheader("Content-Length", str(size_bytes))
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413
        assert "limit" in json.loads(response.read())["error"]
    finally:
        connection.close()
