"""The benches that need no other programs, each for a moment: that they run, and that what they ask is answered."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from loadtests import client_shm
from loadtests.bench_mesh_loads import loads
from loadtests.bench_mesh_scale import Scale
from loadtests.bench_servers import Roost
from loadtests.contender import Contender, Objective
from loadtests.models import write_models
from loadtests.open_requests import questions
from tests.server import started


@pytest.mark.parametrize("transport", client_shm.CLIENTS)
def test_a_tensor_through_shared_memory(tmp_path: Path, transport: str) -> None:
    model = write_models(tmp_path / "models", ["identity"])["identity"]
    with started(tmp_path / "models", tmp_path / "run", "--allow-client-shm") as server:
        (measured,) = client_shm.measure(server, model.file, transport, elements=65_536, rounds=1, repeats=3)
    assert min(measured.shared_s, measured.small_s, measured.model_s, measured.copy_s) > 0
    assert transport in client_shm.text(transport, [measured])


@pytest.mark.skipif(not shutil.which(os.environ.get("CC", "cc")), reason="there is no C compiler")
def test_open_loop_against_the_server(tmp_path: Path) -> None:
    model = write_models(tmp_path / "models", ["simple"])["simple"]
    server = Roost([model], tmp_path / "run")
    server.start()
    try:
        objective = Objective(limit_s=20.0, seconds=1.0, connections=64, enough_requests=20)
        contender = Contender(server, questions(model, objective.timeout_s), objective)
        contender.prepare()
        answered = contender.measure(400.0)
        refused = contender.hopeless(400.0)
    finally:
        server.stop()
    assert answered.tally.right == answered.tally.requests > 100
    assert refused.tally.refused == refused.tally.requests
    assert answered.cpu_s > 0


@pytest.mark.skipif(not shutil.which(os.environ.get("CC", "cc")), reason="there is no C compiler")
def test_a_part_of_the_mesh_bench(tmp_path: Path) -> None:
    found = loads(Scale(rounds=1, seconds=1.0), tmp_path)
    print(found.text())
    assert found.verdicts
    assert all(verdict.measured for verdict in found.verdicts)
    assert not found.troubles
