"""A system that gives no more processes and threads: servers say so and end, and those that run go on and stop well."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from roost.core.errors import Code

from tests.clients import CallFailed, connect, sixteen
from tests.models import write_simple
from tests.server import RoostServer, run_to_end, started

ANOTHER_USER = 54321  # the limit is one of users, and root has none
PLENTY = 500


def limited(threads: int) -> Sequence[str]:
    """A command that runs another with so many threads at most, as a user that may read all files."""
    user = ["--reuid", str(ANOTHER_USER), "--regid", str(ANOTHER_USER), "--clear-groups"]
    may_read = ["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]
    return ["setpriv", *user, *may_read, "prlimit", f"--nproc={threads}:{PLENTY}"]


def limit(server: RoostServer, threads: int) -> None:
    """From now on the server's user may have so many threads."""
    for pid in server.processes():
        subprocess.run([*limited(PLENTY), "prlimit", f"--pid={pid}", f"--nproc={threads}:{PLENTY}"], check=True)


@pytest.fixture(autouse=True)
def _another_user() -> None:
    may_be = os.geteuid() == 0 and shutil.which("setpriv") is not None
    if not may_be or subprocess.run([*limited(PLENTY), "true"], check=False).returncode:
        pytest.skip("it takes root to be another user")


@pytest.mark.parametrize(
    ("threads", "last"),
    [
        (3, "the server ends: there are not enough threads"),
        (8, "the workers do not start, see the log"),  # there is none for the process that is to fork them
        (11, "the workers do not start, see the log"),  # nor for the worker's own threads
    ],
)
def test_a_server_that_can_not_start_says_so_and_leaves_nothing(
    tmp_path: Path, repository: Path, threads: int, last: str
) -> None:
    run = tmp_path / "run"
    code, text = run_to_end(repository, run, "--workers", "1", within=limited(threads))
    assert code == 1
    assert text.splitlines()[-1].endswith(last), text
    assert "Traceback" not in text
    assert not (run / "ready.json").exists()


async def test_a_server_that_runs_refuses_what_it_has_no_thread_for_and_stops_well(
    tmp_path: Path, repository: Path
) -> None:
    for name in "ab":
        write_simple(repository / name / "1" / "model.onnx")
    with started(repository, tmp_path / "run", "--workers", "1", within=limited(PLENTY)) as server:
        async with connect(server, "rest") as client:
            await client.infer("a", sixteen())
            limit(server, 1)
            await client.infer("a", sixteen())
            with pytest.raises(CallFailed) as refused:
                await client.infer("b", sixteen())
            assert refused.value.means(Code.RESOURCE_EXHAUSTED)
            limit(server, PLENTY)
            await client.infer("b", sixteen())
            limit(server, 1)
        server.stop()
