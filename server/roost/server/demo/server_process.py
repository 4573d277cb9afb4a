"""Runs ``roost serve`` as a child process: free ports, ready file, one orderly end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from roost.server.demo.errors import DemoError, Interrupted

HOST = "127.0.0.1"
# Longer than the server itself waits for its workers, so that its own reason is what the user reads.
_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 45.0
_POLL_S = 0.02
_ERROR_PREFIX = "roost: error: "


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the server listens, or is asked to listen (0: a free port)."""

    http: int
    grpc: int
    admin: int

    @property
    def http_address(self) -> str:
        """Host and port of REST."""
        return f"{HOST}:{self.http}"

    @property
    def grpc_address(self) -> str:
        """Host and port of gRPC."""
        return f"{HOST}:{self.grpc}"

    @property
    def admin_address(self) -> str:
        """Host and port of the admin listener."""
        return f"{HOST}:{self.admin}"


DEFAULT_PORTS = Ports(8080, 8081, 8082)


def usable_ports(wanted: Ports) -> tuple[Ports, list[int]]:
    """Replaces ports that somebody listens on by 0; also returns those that were replaced."""
    taken = [port for port in (wanted.http, wanted.grpc, wanted.admin) if port and not _is_free(port)]

    def usable(port: int) -> int:
        return 0 if port in taken else port

    return Ports(usable(wanted.http), usable(wanted.grpc), usable(wanted.admin)), taken


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: connections of an earlier run that linger in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


class DemoServer:
    """The child process; ``wait_ready`` says where it listens."""

    def __init__(self, process: subprocess.Popen[bytes], ready_file: Path, log_file: Path) -> None:
        self._process = process
        self._ready_file = ready_file
        self._log_file = log_file

    def wait_ready(self) -> Ports:
        """Waits until the server takes requests.

        Raises:
            DemoError: If it ends before, or is not ready in time; the text has the reason out of its log.
        """
        give_up = time.monotonic() + _START_TIMEOUT_S
        while (ports := self._read_ports()) is None:
            if self._process.poll() is not None:
                raise DemoError(f"the server did not start: {self._reason()}")
            if time.monotonic() > give_up:
                raise DemoError(f"the server is not ready after {_START_TIMEOUT_S:.0f} s; its log: {self._log_file}")
            time.sleep(_POLL_S)
        return ports

    def wait(self) -> None:
        """Waits until the server ends by itself.

        Raises:
            DemoError: When it has, since nobody asked it to.
        """
        code = self._process.wait()
        raise DemoError(f"the server ended by itself with code {code}: {self._reason()}")

    def stop(self) -> None:
        """Asks the server to finish its requests and end, and waits for it; a second Ctrl-C ends it at once.

        Raises:
            DemoError: If it did not end well.
        """
        for _ in range(2):
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            try:
                code = self._process.wait(_STOP_TIMEOUT_S)
            except Interrupted:
                continue
            except subprocess.TimeoutExpired:
                break
            # Ended by the signal itself: it came before the server could handle it, so nothing had been started.
            if code not in (0, -signal.SIGTERM):
                raise DemoError(f"the server ended with code {code}: {self._reason()}")
            return
        self._process.kill()
        self._process.wait()
        raise DemoError(f"the server had to be killed; its log: {self._log_file}")

    def _read_ports(self) -> Ports | None:
        try:
            ready = json.loads(self._ready_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None  # not there yet, or half written
        return Ports(ready["http"], ready["grpc"], ready["admin"])

    def _reason(self) -> str:
        """What its log says of the end: the command line's own message, else an error, else whatever came last."""
        said = [line.strip() for line in self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()]
        for mark in (_ERROR_PREFIX, "Error: ", " ERROR "):
            marked = [line for line in said if mark in line]
            if marked:
                return f"{marked[-1].removeprefix(_ERROR_PREFIX)} (its log: {self._log_file})"
        return f"its log is {self._log_file}"


@contextmanager
def start_server(folder: Path, repository: Path, ports: Ports) -> Iterator[DemoServer]:
    """Starts ``roost serve``; on leaving the block it is stopped, whatever happened.

    The server gets its own process group, so that Ctrl-C reaches the demo alone, which passes exactly one signal on:
    a second one would cut the drain short. Should the demo be killed, the kernel ends the server.

    Args:
        folder: Where state, ready file and log go.
        repository: The model repository.
        ports: What to listen on.
    """
    ready_file, log_file = folder / "ready.json", folder / "server.log"
    ready_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "roost.server.demo.child", "serve"]
    command += ["--model-repository", str(repository), "--state-dir", str(folder / "state")]
    command += ["--cache-dir", str(folder / "cache")]
    command += ["--ready-file", str(ready_file), "--host", HOST, "--http-port", str(ports.http)]
    command += ["--grpc-port", str(ports.grpc), "--admin-port", str(ports.admin)]
    with log_file.open("wb") as log:
        server = DemoServer(_spawn(command, log), ready_file, log_file)
    try:
        yield server
    except DemoError:
        # What went wrong first is what the user has to know.
        _stop_quietly(server)
        raise
    except BaseException:
        server.stop()
        raise
    server.stop()


def _spawn(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        process_group=0,
    )


def _stop_quietly(server: DemoServer) -> None:
    try:
        server.stop()
    except DemoError:
        return
