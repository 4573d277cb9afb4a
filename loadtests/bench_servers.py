"""A server under test: started by the bench, asked whether it is ready, measured, and ended by the bench alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import psutil

from loadtests.bench_requests import Protocol
from loadtests.models import BenchModel
from tests.server import DEADLINE_S, HOST, RoostServer, wait_for

START_S = 120.0
STOP_S = 20.0


def end_in_order() -> None:
    """Has SIGTERM, such as that of ``timeout``, end a bench as an error would: with the servers that it has started."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def free_port() -> int:
    """A port that nobody has now, for servers that cannot pick one themselves."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def cpu_s_of(pid: int) -> float:
    """CPU time that a process and everything below it have used."""
    total_s = 0.0
    for process in _tree(pid):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s


def pss_bytes_of(pid: int) -> int:
    """Their memory, where a page that several share counts in parts."""
    total_bytes = 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.Error):
            total_bytes += process.memory_full_info().pss
    return total_bytes


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


class Server:
    """What the bench does with a server; subclasses say how theirs is started.

    Args:
        models: What it serves.
        folder: Its own folder, for files and its log.
    """

    name: ClassVar[str]
    protocols: ClassVar[frozenset[Protocol]] = frozenset(("json", "binary", "grpc"))
    grace_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, models: Sequence[BenchModel], folder: Path) -> None:
        self.models = models
        self.folder = folder
        self.http_port = 0
        self.grpc_port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that was started."""
        assert self._process is not None
        return self._process.pid

    def address(self, protocol: Protocol) -> str:
        """Host and port for a protocol."""
        return f"{HOST}:{self.grpc_port if protocol == 'grpc' else self.http_port}"

    def command(self) -> list[str]:
        """The command line."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """What is set besides the bench's own environment."""
        return {}

    def prepare(self) -> None:
        """Writes what it needs into its folder."""

    def ready_path(self, model: BenchModel) -> str:
        """What answers 200 over HTTP once the model can be asked."""
        return f"/v2/models/{model.name}/ready"

    def start(self) -> None:
        """Starts it and waits until all models are ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.http_port, self.grpc_port = free_port(), free_port()
        self.prepare()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                cwd=self.folder,
                env={**os.environ, **self.environment()},
            )
        try:
            wait_for(self._is_ready, f"{self.name}, see {self.log_file}", START_S)
        except BaseException:
            self.stop()
            raise

    @property
    def log_file(self) -> Path:
        """Where its output goes."""
        return self.folder / "server.log"

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.name} ended, see {self.log_file}"
        return all(self._answers(self.ready_path(model)) for model in self.models)

    def _answers(self, path: str) -> bool:
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=DEADLINE_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    @property
    def has_crashed(self) -> bool:
        """Whether it has ended, though nobody asked it to."""
        return self._process is not None and self._process.poll() is not None

    def cpu_s(self) -> float:
        """CPU time of all its processes until now."""
        return cpu_s_of(self.pid)

    def pss_bytes(self) -> int:
        """Memory of all its processes now."""
        return pss_bytes_of(self.pid)

    def stop(self) -> None:
        """Ends it as an operator would, and what is left of its process group after a while by force."""
        if self._process is None:
            return
        left = _tree(self.pid)
        self._process.send_signal(self.grace_signal)
        gone_by = time.monotonic() + STOP_S
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _, alive = psutil.wait_procs(left, timeout=max(0.0, gone_by - time.monotonic()))
        for process in alive:
            process.kill()
        self._process = None


class Roost(Server):
    """Roost with one worker, otherwise as it is."""

    name = "roost"
    flags: ClassVar[tuple[str, ...]] = ()

    def __init__(self, models: Sequence[BenchModel], folder: Path) -> None:
        super().__init__(models, folder)
        self._server: RoostServer | None = None

    @property
    def pid(self) -> int:
        """The front end's process."""
        assert self._server is not None
        return self._server.pid

    def start(self) -> None:
        """Starts it; models are loaded by the first requests for them."""
        repository = self.models[0].file.parent.parent.parent
        flags = ("--workers", "1", "--log-level", "warning", *self.flags)
        self._server = RoostServer(repository, self.folder, *flags)
        try:
            self._server.wait_ready()
        except BaseException:
            self.stop()
            raise
        self.http_port, self.grpc_port = self._server.ports["http"], self._server.ports["grpc"]

    def mean_batch_rows(self, model: str, before: Mapping[str, int]) -> float:
        """How many rows a batch had on average since ``batches`` was asked."""
        now = self.batches(model)
        return (now["rows"] - before["rows"]) / max(1, now["runs"] - before["runs"])

    def batches(self, model: str) -> dict[str, int]:
        """How many rows have been inferred in how many runs."""
        assert self._server is not None
        status, body = self._server.get(f"/v2/models/{model}/stats")
        assert status == 200, body
        stats: dict[str, Any] = body["model_stats"][0]
        return {"rows": int(stats.get("inference_count", 0)), "runs": int(stats.get("execution_count", 0))}

    def stop(self) -> None:
        """Ends it and its workers."""
        if self._server is not None:
            try:
                self._server.stop()
            except AssertionError as error:
                # What was measured is worth more than an orderly end, which tests look at.
                print(f"{self.name} did not end well: {error}", file=sys.stderr)
            finally:
                self._server.clean_up()
                self._server = None


class RoostGrpcio(Roost):
    """The same with grpcio for gRPC."""

    name = "roost-grpcio"
    protocols = frozenset(("grpc",))
    flags = ("--grpc-transport", "grpcio")


def models_json(models: Sequence[BenchModel]) -> str:
    """What the peers' own scripts are told about the models."""
    return json.dumps(
        {
            model.name: {
                "file": str(model.file.resolve()),
                "max_batch_size": model.max_batch_size,
                "outputs": [{"name": tensor.name, "datatype": tensor.datatype} for tensor in model.outputs],
            }
            for model in models
        }
    )
