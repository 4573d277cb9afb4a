"""Scenarios 18 to 20: the same answers at every door, floods of cold requests, models that change or are pinned."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from roost.core.errors import Code
from roost.core.tensors import ParameterValue, Tensor, from_array, to_array

from tests.clients import CallFailed, Client, connect, four, sixteen
from tests.integration.scenario_place import MIB, books_are_right, loads_begun, watched, write_model
from tests.models import write_dummy, write_simple
from tests.server import eventually, started

SLOTS = 2
"""Loads at a time with one worker."""

PAUSE_S = 0.05
"""A call most often arrives meanwhile; what is asserted does not depend on it."""


def _int32(name: str, *shape: int) -> Tensor:
    return from_array(name, "INT32", np.ones(shape, np.int32))


@dataclass(frozen=True)
class Mistake:
    """A request that must fail in the same way wherever it comes in."""

    code: Code
    model: str = "simple"
    inputs: Sequence[Tensor] = field(default_factory=sixteen)
    outputs: Sequence[str] = ()
    version: str = ""
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)

    async def make(self, client: Client) -> str:
        """Sends it and returns the error's message."""
        with pytest.raises(CallFailed) as error:
            await client.infer(
                self.model, self.inputs, version=self.version, outputs=self.outputs, parameters=self.parameters
            )
        assert error.value.means(self.code), (self, error.value)
        return error.value.message


MISTAKES = (
    Mistake(Code.NOT_FOUND, model="none"),
    Mistake(Code.NOT_FOUND, version="7"),
    Mistake(Code.INVALID_ARGUMENT, inputs=[_int32("INPUT0", 1, 4), _int32("INPUT1", 1, 4)]),
    Mistake(Code.INVALID_ARGUMENT, inputs=[_int32("INPUT0", 1, 16)]),
    Mistake(Code.INVALID_ARGUMENT, inputs=[_int32("INPUT0", 1, 16), _int32("INPUT7", 1, 16)]),
    Mistake(Code.INVALID_ARGUMENT, inputs=four()),
    Mistake(Code.INVALID_ARGUMENT, outputs=["OUTPUT7"]),
    Mistake(Code.DEADLINE_EXCEEDED, "fails", four(), parameters={"run_s": 300.0, "timeout": 50_000}),
    Mistake(Code.INTERNAL, "fails", four(), parameters={"fail": "out of cheese"}),
    Mistake(Code.RESOURCE_EXHAUSTED, "fails", four(), parameters={"fail": "full", "fail_code": "RESOURCE_EXHAUSTED"}),
    Mistake(Code.UNAVAILABLE, "fails", four(), parameters={"fail": "not now", "fail_code": "UNAVAILABLE"}),
)


async def test_scenario_18_same_error_from_any_door(tmp_path: Path, repository: Path) -> None:
    """REST and both gRPC servers say the same, run what fails once, load nothing for it, and manage nothing."""
    begun = tmp_path / "begun"
    write_simple(repository / "simple" / "1" / "model.onnx")
    write_dummy(repository / "fails" / "1" / "model.dummy", begun=str(begun))
    flags = ["--workers", "1", "--model-control", "explicit", "--load-model", "*"]
    flags += ["--http-restricted-api", "model-repository:x-key=secret"]
    flags += ["--grpc-restricted-protocol", "model-repository:x-key=secret"]
    grpcio = [*flags, "--grpc-transport", "grpcio"]
    with (
        started(repository, tmp_path / "native", *flags) as first,
        started(repository, tmp_path / "grpcio", *grpcio) as second,
    ):
        async with connect(first, "rest") as a, connect(first, "grpc") as b, connect(second, "grpc") as c:
            doors = (a, b, c)
            for mistake in MISTAKES:
                messages = [await mistake.make(door) for door in doors]
                assert len(set(messages)) == 1, messages
            failing = sum(mistake.model == "fails" for mistake in MISTAKES)
            assert begun.stat().st_size == failing * len(doors), "what a model has refused is not run again"
            for door in doors:
                for call in (door.load("simple"), door.unload("simple"), door.index()):
                    with pytest.raises(CallFailed) as error:
                        await call
                    assert error.value.means(Code.PERMISSION_DENIED), error.value
        for server in (first, second):
            assert server.metric("roost_loads_total") == 2
            assert server.resident() == {"simple", "fails"}
            for path in ("/metrics", "/admin/status", "/admin/activity"):
                assert server.get(path)[0] == 404


async def test_scenario_19_cold_flood_isolation(tmp_path: Path, repository: Path) -> None:
    """A thousand cold models are asked for within a second; hot ones, health and deadlines do not suffer."""
    begun = tmp_path / "begun"
    hot = [f"hot-{number}" for number in range(5)]
    cold = [f"cold-{number:04}" for number in range(2000)]
    for name in hot:
        write_model(repository, name)
    for name in cold:
        write_model(repository, name, load_s=0.05, load_begun=str(begun))
    outcomes: Counter[str] = Counter()
    done = asyncio.Event()

    async def keep_hot(client: Client, name: str) -> None:
        while not done.is_set():
            await client.infer(name, four(), parameters={"timeout": 10_000_000})
            outcomes["hot"] += 1
            await asyncio.sleep(0.02)

    async def look_after() -> None:
        while not done.is_set():
            assert (await asyncio.to_thread(server.get, "/v2/health/live"))[0] == 200
            assert (await asyncio.to_thread(server.get, "/v2/health/ready"))[0] == 200
            outcomes["healthy"] += 1

    async def flood(client: Client, name: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        try:
            await client.infer(name, four(), parameters={"timeout": 3_000_000})
            outcomes["answered"] += 1
        except CallFailed as error:
            is_late, is_shed = error.means(Code.DEADLINE_EXCEEDED), error.means(Code.RESOURCE_EXHAUSTED)
            outcomes["late" if is_late else "shed" if is_shed else str(error)] += 1

    with started(repository, tmp_path / "run", "--workers", "1", "--memory-budget", str(65 * MIB)) as server:
        async with connect(server, "rest") as rest, connect(server, "grpc") as grpc, asyncio.TaskGroup() as group:
            for place, name in enumerate(hot):
                group.create_task(keep_hot((rest, grpc)[place % 2], name))
            group.create_task(look_after())
            await eventually(lambda: server.resident() == set(hot), "the hot models")
            with watched(server) as seen:
                await asyncio.gather(*(flood((rest, grpc)[n % 2], cold[n], n / 1000) for n in range(1000)))
                loads = len(loads_begun(begun))
            done.set()
        print(outcomes, "loads", loads, "most queued", seen.queued)
        assert set(outcomes) <= {"hot", "healthy", "answered", "late", "shed"}
        assert outcomes["answered"] >= 5
        assert seen.used_bytes <= seen.budget_bytes
        assert seen.queued <= 1000 + len(hot)
        for name in hot:
            assert server.metric("roost_loads_total", model=name) == 1, "a hot model had to go"
        await eventually(lambda: books_are_right(server), "peace")
        assert len(loads_begun(begun)) <= loads + SLOTS, "a model was loaded for requests that were over"


async def _answers(client: Client, value: float) -> bool:
    """Whether ``a`` is the present one, which answers zeros whatever it is asked."""
    (output, *_) = (await client.infer("a", four(*[value] * 4))).outputs
    return not to_array(output).any()


async def test_scenario_20_races_of_loads_and_load_calls(tmp_path: Path, repository: Path) -> None:
    """A model is unloaded, and then replaced, while it is being loaded: nothing of the old one serves or stays."""
    go = tmp_path / "go"
    write_model(repository, "a", load_after=str(go))
    flags = ("--workers", "1", "--model-control", "explicit")
    with started(repository, tmp_path / "run", *flags) as server:
        async with connect(server, "rest") as rest, connect(server, "grpc") as grpc:
            loading = asyncio.create_task(rest.load("a"))
            await eventually(lambda: len(server.instances()) == 1, "the load")
            unloading = asyncio.create_task(grpc.unload("a"))
            await asyncio.sleep(PAUSE_S)
            go.touch()
            await asyncio.gather(loading, unloading, return_exceptions=True)
            with pytest.raises(CallFailed) as error:
                await rest.infer("a", four())
            assert error.value.means(Code.NOT_FOUND)
            await eventually(lambda: not server.instances(), "the memory back")

            go.unlink()
            loading = asyncio.create_task(rest.load("a"))
            await eventually(lambda: len(server.instances()) == 1, "the load")
            (repository / "a" / "1" / "model.dummy").unlink()
            write_model(repository, "a", 2 * MIB, echo=False)
            replacing = asyncio.create_task(grpc.load("a"))
            await asyncio.sleep(PAUSE_S)
            go.touch()
            await asyncio.gather(loading, replacing)
            assert all(await asyncio.gather(*(_answers(door, 3.0) for door in (rest, grpc) for _ in range(10))))
            await eventually(lambda: books_are_right(server) and len(server.instances()) == 1, "one copy")
            assert server.status()["devices"][0]["used_bytes"] == 2 * MIB


async def test_scenario_20_pins(tmp_path: Path, repository: Path) -> None:
    """Pinned models never go, and those that can't all fit are refused, with nothing evicted for them."""
    pinned, others = ("pin-0", "pin-1"), [f"other-{number}" for number in range(6)]
    for name in pinned:
        write_model(repository, name, 4 * MIB, policy={"pin": "true"})
    for name in others:
        write_model(repository, name, 2 * MIB)
    write_model(repository, "pin-2", 6 * MIB, policy={"pin": "true"})
    flags = ("--workers", "2", "--memory-budget", str(13 * MIB), "--model-control", "explicit", "--load-model")
    with started(repository, tmp_path / "run", *flags, "*") as server:
        refused = server.log
        assert "pin-2" in refused
        assert set(pinned) <= server.resident()
        async with connect(server, "grpc") as client:
            for _ in range(2):
                await asyncio.gather(*(client.infer(name, four()) for name in others))
            evictions = server.metric("roost_evictions_total")
            assert evictions > 0
            with pytest.raises(CallFailed) as error:
                await client.load("pin-2")
            assert error.value.means(Code.FAILED_PRECONDITION)
            assert "memory budget" in error.value.message
        assert server.metric("roost_evictions_total") == evictions
        for name in pinned:
            assert server.metric("roost_loads_total", model=name) == 1
            assert server.metric("roost_evictions_total", model=name) == 0
        await eventually(lambda: books_are_right(server), "peace")
