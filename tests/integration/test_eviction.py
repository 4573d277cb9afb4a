"""Two models are asked for all the time, then three once each, and three of the five fit: who stays is the policy's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.clients import connect, four
from tests.models import write_dummy, write_policy
from tests.server import RoostServer, eventually, started

MIB = 1 << 20


@pytest.mark.parametrize(("policy", "stay"), [("lru", set("cde")), ("cost", set("abe"))])
async def test_who_stays(tmp_path: Path, policy: str, stay: set[str]) -> None:
    for name in "abcde":
        folder = tmp_path / "models" / name
        write_dummy(folder / "1" / "model.dummy", load_s=0.1)
        (folder / "config.pbtxt").write_text(
            f'parameters {{ key: "roost.memory_bytes" value {{ string_value: "{4 * MIB}" }} }}\n'
        )
    flags = ("--workers", "1", "--memory-budget", "13MiB", "--eviction", policy)
    with started(tmp_path / "models", tmp_path / "run", *flags) as server:
        async with connect(server, "rest") as client:
            for name in "abababababababcde":
                await client.infer(name, four())
        await eventually(lambda: server.resident() == stay, "those that stay")


def are_resident(server: RoostServer, names: str) -> bool:
    return server.resident() == set(names)


@pytest.mark.parametrize("policy", ["lru", "cost"])
async def test_those_of_a_lower_priority_go_first(tmp_path: Path, policy: str) -> None:
    for name, priority in (("a", 2), ("b", 1), ("c", 0), ("d", 0), ("e", -1)):
        write_dummy(tmp_path / "models" / name / "1" / "model.dummy")
        write_policy(tmp_path / "models" / name, memory_bytes=4 * MIB, priority=priority)
    flags = ("--workers", "1", "--memory-budget", "13MiB", "--eviction", policy)
    with started(tmp_path / "models", tmp_path / "run", *flags) as server:
        async with connect(server, "rest") as client:
            for name, stay in (("c", "abc"), ("d", "abd"), ("e", "abe"), ("c", "abc")):
                for each in ("a", "b", name):
                    await client.infer(each, four())
                await eventually(partial(are_resident, server, stay), f"{name} in the last place")
