"""Client packages that register the protocol's messages under the same names: each runs in a process of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.server import DEADLINE_S, RoostServer

ROOT = Path(__file__).parents[2]
INTERPRETER = ROOT / ".venv" / "clients" / "bin" / "python"


def run_client(script: str, server: RoostServer) -> dict[str, Any]:
    """Runs a script of this folder against the server with the clients' interpreter; returns what it printed."""
    assert INTERPRETER.exists(), "the clients' environment is not there: run `make install`"
    line = [str(INTERPRETER), str(Path(__file__).with_name(script)), server.http, server.grpc]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False)
    assert ended.returncode == 0, ended.stderr
    results: dict[str, Any] = json.loads(ended.stdout)
    return results
