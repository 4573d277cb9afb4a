"""A blocking client of the worker link, which plays the router: it starts a worker and speaks frames with it."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from roost.core.arena import RUNNING_THREADS, create_arena, map_arena, running_table
from roost.core.errors import error_of
from roost.core.frames import (
    HEADER_BYTES,
    Credit,
    FrameType,
    Response,
    Run,
    WireTensor,
    control_frame,
    parse_control,
    parse_error,
    parse_response,
    run_frame,
    unpack_header,
)
from roost.core.tensors import Buffer, Parameters, Tensor, from_array, to_array
from roost.runtimes.memory import MALLOC_ENVIRONMENT
from roost.runtimes.runs import READING_THREADS

TIMEOUT_S = 60.0
ARENA_BYTES = 64 << 20


class Frame(NamedTuple):
    type: FrameType
    request: int
    payload: bytes


class WorkerClient:
    """Starts a worker and waits for its HELLO; ``process`` is the worker, ``hello`` what it said."""

    def __init__(
        self,
        *,
        kind: str = "onnx",
        slots: int = 1,
        threads: int = 1,
        dummy: bool = True,
        epoch: int = 1,
        has_arena: bool = True,
    ) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        command = [sys.executable, "-m", "roost.runtimes.worker", "--link-fd", str(theirs.fileno()), "--kind", kind]
        command += ["--id", "0", "--epoch", str(epoch), "--slots", str(slots), "--threads", str(threads)]
        command += ["--enable-dummy"] if dummy else []
        descriptor = create_arena(ARENA_BYTES)
        self.arena = map_arena(descriptor)
        self._running = running_table(self.arena)
        command += ["--arena-fd", str(descriptor)] if has_arena else []
        with theirs, os.fdopen(descriptor):
            self.process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno(), descriptor],
                stdin=subprocess.DEVNULL,
                stderr=self._stderr,
                env={**os.environ, **MALLOC_ENVIRONMENT},
            )
        self._requests = itertools.count(1)
        self._backlog: list[Frame] = []
        self.hello = parse_control(self.wait_for(0, FrameType.HELLO).payload)

    def __enter__(self) -> WorkerClient:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.sock.close()
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._stderr.close()

    def stderr(self) -> str:
        """What the worker has written to its log."""
        self._stderr.seek(0)
        return self._stderr.read().decode()

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Writes one frame."""
        self.sock.sendall(b"".join(buffers))

    def read(self) -> Frame:
        """Reads the next frame off the socket; EOFError if there is none."""
        header = unpack_header(self._exactly(HEADER_BYTES))
        return Frame(header.type, header.request, self._exactly(header.length))

    def wait_for(self, request: int, *types: FrameType) -> Frame:
        """Gives a request's next frame of one of these types (none given: of any); keeps the others for later."""
        for index, frame in enumerate(self._backlog):
            if frame.request == request and (not types or frame.type in types):
                return self._backlog.pop(index)
        while True:
            frame = self.read()
            if frame.request == request and (not types or frame.type in types):
                return frame
            self._backlog.append(frame)

    def answers_to(self, requests: Sequence[int]) -> list[Frame]:
        """Frames for these requests that have come and that nobody has waited for."""
        self.status()
        return [frame for frame in self._backlog if frame.request in requests]

    def begin(self, type_: FrameType, **fields: Any) -> int:
        """Sends a control request and gives its id."""
        request = next(self._requests)
        self.send([control_frame(type_, request, fields)])
        return request

    def control(self, type_: FrameType, **fields: Any) -> dict[str, Any]:
        """Sends a control request and waits for its answer; raises what ERROR says."""
        return self.end(self.begin(type_, **fields))

    def end(self, request: int) -> dict[str, Any]:
        """Waits for the answer to a control request."""
        frame = self.wait_for(request, FrameType.STATUS, FrameType.PONG, FrameType.ERROR)
        if frame.type is FrameType.ERROR:
            raise error_of(*parse_error(frame.payload))
        return parse_control(frame.payload)

    def begin_load(self, instance: int, path: Path, options: dict[str, str] | None = None, backend: str = "") -> int:
        backend = backend or ("dummy" if path.suffix == ".dummy" else "onnxruntime")
        fields = {"backend": backend, "path": str(path), "root": str(path.parent), "options": options or {}}
        return self.begin(FrameType.LOAD, instance=instance, **fields)

    def load(
        self, instance: int, path: Path, options: dict[str, str] | None = None, backend: str = ""
    ) -> dict[str, Any]:
        return self.end(self.begin_load(instance, path, options, backend))

    def unload(self, instance: int) -> dict[str, Any]:
        return self.control(FrameType.UNLOAD, instance=instance)

    def status(self) -> dict[str, Any]:
        return self.control(FrameType.STATUS)

    def cancel(self, request: int) -> None:
        self.send([control_frame(FrameType.CANCEL, request)])

    def begin_run(
        self,
        instance: int,
        inputs: Sequence[Tensor],
        outputs: Sequence[str] = (),
        parameters: Parameters | None = None,
        deadline_ns: int = 0,
        credit: Credit | None = None,
    ) -> int:
        return self.send_run(Run(instance, deadline_ns, _wire(inputs), outputs, parameters or {}, credit))

    def begin_runs(self, count: int, instance: int, inputs: Sequence[Tensor]) -> list[int]:
        """Sends several runs in one write: the worker may end with the first of them."""
        requests = list(itertools.islice(self._requests, count))
        run = Run(instance, 0, _wire(inputs))
        self.send([part for request in requests for part in run_frame(request, run)])
        return requests

    def send_run(self, run: Run) -> int:
        request = next(self._requests)
        self.send(run_frame(request, run))
        return request

    def wait_until_begun(self, request: int) -> None:
        """Waits until a thread of the worker has begun with a run."""
        while not self.has_begun(request):
            self.control(FrameType.PING)

    def has_begun(self, request: int) -> bool:
        """Whether a thread of the worker has begun with a run, and with none since; also when the worker is gone."""
        return request in (self._running[thread] for thread in range(RUNNING_THREADS))

    def end_run(self, request: int) -> Response:
        """Waits for the next response to a run; raises what ERROR says."""
        frame = self.wait_for(request, FrameType.RESPONSE, FrameType.ERROR)
        if frame.type is FrameType.ERROR:
            raise error_of(*parse_error(frame.payload))
        return parse_response(frame.payload)

    def make_quick(self, instance: int, inputs: Sequence[Tensor], **more: Any) -> None:
        """Runs an instance until the worker expects its runs to be quick, and so does them where it reads."""
        while not any(self._running[thread] for thread in range(READING_THREADS)):
            self.run(instance, inputs, **more)

    def run(self, instance: int, inputs: Sequence[Tensor], **more: Any) -> Response:
        return self.end_run(self.begin_run(instance, inputs, **more))

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            chunk = self.sock.recv(length - len(data))
            if not chunk:
                raise EOFError("the worker closed the link")
            data += chunk
        return bytes(data)


def _wire(inputs: Sequence[Tensor]) -> list[WireTensor]:
    return [WireTensor(tensor.name, tensor.datatype, tensor.shape, tensor.data) for tensor in inputs]


def arrays_of(response: Response) -> dict[str, npt.NDArray[Any]]:
    """The outputs of a response as arrays by name."""
    arrays = {}
    for tensor in response.outputs:
        assert isinstance(tensor.data, bytes | bytearray | memoryview)
        arrays[tensor.name] = to_array(Tensor(tensor.name, tensor.datatype, tensor.shape, tensor.data))
    return arrays


def simple_inputs(first: int = 0, second: int = 1, batch: int = 1) -> list[Tensor]:
    """Inputs for the ``simple`` model, each full of one number."""
    return [
        from_array("INPUT0", "INT32", np.full((batch, 16), first, np.int32)),
        from_array("INPUT1", "INT32", np.full((batch, 16), second, np.int32)),
    ]


def rows(count: int = 1) -> list[Tensor]:
    """An input for a dummy model."""
    return [from_array("INPUT0", "FP32", np.ones((count, 4), np.float32))]
