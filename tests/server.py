"""A real ``roost serve`` for tests: a process group of its own, folders of its own, and one orderly end."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")

HOST = "127.0.0.1"
DEADLINE_S = 30.0
POLL_S = 0.02


async def eventually(look: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Looks again and again until what it sees is true, and returns that; the deadline is only for what never comes."""
    give_up = time.monotonic() + deadline_s
    while not (seen := await asyncio.to_thread(look)):
        assert time.monotonic() < give_up, f"never came: {what}"
        await asyncio.sleep(POLL_S)
    return seen


def wait_for(look: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """The same for tests without an event loop."""
    give_up = time.monotonic() + deadline_s
    while not (seen := look()):
        assert time.monotonic() < give_up, f"never came: {what}"
        time.sleep(POLL_S)
    return seen


def command(repository: Path, folder: Path, *flags: str) -> list[str]:
    """The command line of a server that picks its ports itself and keeps its state in ``folder``."""
    line = [sys.executable, "-m", "roost.server.cli", "serve", "--model-repository", str(repository)]
    line += ["--http-port", "0", "--grpc-port", "0", "--admin-port", "0"]
    line += ["--state-dir", str(folder / "state"), "--ready-file", str(folder / "ready.json"), "--enable-dummy"]
    if "--cache-dir" not in flags:  # what nobody asked for must not take time while others measure
        line += ["--cache-size", "0"]
    if "--measure-models" not in flags:
        line += ["--no-measure-models"]
    return [*line, *flags]


def private_bytes_of(pid: int) -> int:
    """Anonymous memory of a process, 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


class RoostServer:
    """A server process that was started; ``wait_ready`` says where it listens.

    Args:
        repository: Its models.
        folder: Where state, ready file and log go.
        flags: More flags of ``roost serve``.
        within: A command that changes what its own arguments are run with, such as their limits.
    """

    def __init__(self, repository: Path, folder: Path, *flags: str, within: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.repository = repository
        self.folder = folder
        self.ready_file = folder / "ready.json"
        self.log_file = folder / "server.log"
        self.ready_file.unlink(missing_ok=True)
        self.ports: dict[str, int] = {}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*within, *command(repository, folder, *flags)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                cwd=folder,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def http(self) -> str:
        return f"{HOST}:{self.ports['http']}"

    @property
    def grpc(self) -> str:
        return f"{HOST}:{self.ports['grpc']}"

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def is_ready(self) -> bool:
        """Whether the ready file is there; fails if the process has ended."""
        assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log}"
        return self.ready_file.exists()

    def wait_ready(self) -> None:
        wait_for(self.is_ready, "the ready file")
        self.ports = json.loads(self.ready_file.read_text(encoding="utf-8"))
        assert self.ports["pid"] == self.pid

    def status(self) -> dict[str, Any]:
        """What the admin listener says of the mesh."""
        code, body = self._get("admin", "/admin/status")
        assert code == 200
        status: dict[str, Any] = json.loads(body)
        return status

    def metrics(self) -> str:
        """All metrics as they are written."""
        code, body = self._get("admin", "/metrics")
        assert code == 200
        return body.decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        total = 0.0
        for family in text_string_to_metric_families(self.metrics()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    total += sample.value
        return total

    def get(self, path: str) -> tuple[int, Any]:
        """A GET over REST: status and parsed JSON."""
        code, body = self._get("http", path)
        return code, json.loads(body)

    def post(self, path: str, document: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """A POST over REST: status and parsed JSON, None if the body is empty."""
        connection = http.client.HTTPConnection(HOST, self.ports["http"], timeout=DEADLINE_S)
        try:
            connection.request("POST", path, json.dumps(document) if document is not None else "")
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        return response.status, json.loads(body) if body else None

    def events(self, model: str, document: Mapping[str, Any]) -> list[Any]:
        """What a model streams over REST, as server-sent events."""
        connection = http.client.HTTPConnection(HOST, self.ports["http"], timeout=DEADLINE_S)
        try:
            connection.request("POST", f"/v2/models/{model}/generate_stream", json.dumps(document))
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

    def _get(self, port: str, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.ports[port], timeout=DEADLINE_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def instances(self) -> list[dict[str, Any]]:
        """All instances of all workers."""
        return [instance for worker in self.status()["workers"] for instance in worker["instances"]]

    def resident(self) -> set[str]:
        """The models that take requests now."""
        return {instance["model"] for instance in self.instances() if instance["state"] == "ready"}

    def in_flight(self) -> int:
        return sum(worker["in_flight"] for worker in self.status()["workers"])

    def worker_of(self, model: str) -> dict[str, Any]:
        """The worker that has the model."""
        for worker in self.status()["workers"]:
            if any(instance["model"] == model for instance in worker["instances"]):
                found: dict[str, Any] = worker
                return found
        raise AssertionError(f"{model} is on no worker")

    def processes(self) -> list[int]:
        """The processes of the server's group that run, workers included, with or without the server."""
        alive = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process.pid)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return alive

    def private_bytes(self) -> int:
        """Anonymous memory of server and workers."""
        return sum(private_bytes_of(pid) for pid in self.processes())

    def signal(self, number: signal.Signals) -> None:
        """Sends the server, and nobody else, a signal."""
        self.process.send_signal(number)

    def wait(self, code: int = 0) -> None:
        """Waits until the server ends, with this exit code and no process left behind."""
        assert self.process.wait(DEADLINE_S) == code, self.log
        wait_for(lambda: not self.processes(), "the end of all workers")

    def stop(self) -> None:
        """Ends the server as an operator would."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        self.wait(0)
        assert "Traceback" not in self.log, self.log
        assert "unexpected" not in self.log, self.log

    def kill(self) -> None:
        """Kills the server and nothing else."""
        self.signal(signal.SIGKILL)
        self.wait(-signal.SIGKILL)

    def clean_up(self) -> None:
        """Ends whatever a failed test has left."""
        if self.processes():
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def started(repository: Path, folder: Path, *flags: str, within: Sequence[str] = ()) -> Iterator[RoostServer]:
    """A server that is ready; if it still runs at the end it must stop well, without a process left behind."""
    server = RoostServer(repository, folder, *flags, within=within)
    try:
        server.wait_ready()
        yield server
        if server.process.returncode is None:
            server.stop()
    except BaseException:
        print(server.log)
        raise
    finally:
        server.clean_up()


def run_to_end(repository: Path, folder: Path, *flags: str, within: Sequence[str] = ()) -> tuple[int, str]:
    """Runs a server that ends by itself; returns its exit code and what it wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    line: Sequence[str] = [*within, *command(repository, folder, *flags)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=folder)
    return ended.returncode, ended.stdout + ended.stderr
