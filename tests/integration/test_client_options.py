"""A server that offers clients more than the defaults: shared memory, forwarded headers, restricted calls."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.models import write_identity, write_simple
from tests.server import RoostServer, started

KINDS = {"http": triton_http, "grpc": triton_grpc}
TENSOR_BYTES = 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    folder = tmp_path_factory.mktemp("options")
    write_simple(folder / "models/simple/1/model.onnx")
    write_identity(folder / "models/words/1/model.onnx", "BYTES", (-1,))
    write_identity(folder / "models/large/1/model.onnx", "UINT8", (-1,))
    flags = ["--allow-client-shm", "--http-restricted-api", "trace:x-key=s", "--grpc-restricted-protocol", "trace:k=s"]
    with started(folder / "models", folder / "server", *flags) as server:
        yield server


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(server: RoostServer, kind: str) -> Iterator[Any]:
    address = server.http if kind == "http" else server.grpc
    with KINDS[kind].InferenceServerClient(address) as client:
        yield client
        client.unregister_system_shared_memory()


class Memory:
    """A POSIX shared-memory object of this process; registered under its own name."""

    def __init__(self, size_bytes: int) -> None:
        self.name = f"tests-{uuid4().hex}"
        self.path = Path("/dev/shm") / self.name
        self.path.write_bytes(bytes(size_bytes))

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.path.unlink(missing_ok=True)

    def write(self, data: bytes, offset: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def read(self, offset: int, size_bytes: int) -> bytes:
        return self.path.read_bytes()[offset : offset + size_bytes]


def in_region(kind: str, name: str, shape: list[int], datatype: str, where: tuple[str, int, int]) -> Any:
    tensor = KINDS[kind].InferInput(name, shape, datatype)
    tensor.set_shared_memory(*where)
    return tensor


def out_region(kind: str, name: str, where: tuple[str, int, int]) -> Any:
    tensor = KINDS[kind].InferRequestedOutput(name)
    tensor.set_shared_memory(*where)
    return tensor


def test_tensors_in_shared_memory(client: Any, kind: str) -> None:
    a, b = np.arange(16, dtype=np.int32), np.ones(16, np.int32)
    with Memory(4 * TENSOR_BYTES) as memory:
        memory.write(a.tobytes() + b.tobytes(), 0)
        client.register_system_shared_memory("r", "/" + memory.name, 4 * TENSOR_BYTES)
        with pytest.raises(InferenceServerException, match="already in manager"):
            client.register_system_shared_memory("r", "/" + memory.name, 4 * TENSOR_BYTES)
        inputs = [
            in_region(kind, f"INPUT{index}", [1, 16], "INT32", ("r", TENSOR_BYTES, index * TENSOR_BYTES))
            for index in range(2)
        ]
        outputs = [out_region(kind, "OUTPUT0", ("r", TENSOR_BYTES, 2 * TENSOR_BYTES))]
        outputs.append(KINDS[kind].InferRequestedOutput("OUTPUT1"))
        response = client.infer("simple", inputs, outputs=outputs)
        assert memory.read(2 * TENSOR_BYTES, TENSOR_BYTES) == (a + b).tobytes()
        assert response.as_numpy("OUTPUT1").tolist() == [(a - b).tolist()]


def test_texts_in_shared_memory(client: Any, kind: str) -> None:
    packed = b"\2\0\0\0ab\0\0\0\0"
    with Memory(100) as memory:
        memory.write(packed, 3)
        client.register_system_shared_memory("r", memory.name, 90, 3)
        inputs = [in_region(kind, "INPUT0", [2], "BYTES", ("r", len(packed), 0))]
        client.infer("words", inputs, outputs=[out_region(kind, "OUTPUT0", ("r", 40, 50))])
        assert memory.read(53, len(packed)) == packed


def test_regions_that_shrink_while_they_are_used(server: RoostServer, client: Any, kind: str) -> None:
    size_bytes = 4 << 20
    with Memory(2 * size_bytes) as memory:
        client.register_system_shared_memory("r", memory.name, 2 * size_bytes)
        inputs = [in_region(kind, "INPUT0", [size_bytes], "UINT8", ("r", size_bytes, 0))]
        outputs = [out_region(kind, "OUTPUT0", ("r", size_bytes, size_bytes))]
        stop = threading.Event()

        def shrink_and_grow() -> None:
            while not stop.is_set():
                os.truncate(memory.path, 100)
                os.truncate(memory.path, 2 * size_bytes)

        thread = threading.Thread(target=shrink_and_grow)
        thread.start()
        try:
            for _ in range(30):
                with contextlib.suppress(InferenceServerException):
                    client.infer("large", inputs, outputs=outputs)
        finally:
            stop.set()
            thread.join()
        os.truncate(memory.path, 100)
        with pytest.raises(InferenceServerException, match="truncated"):
            client.infer("large", inputs, outputs=outputs)
        assert client.is_server_ready()
        assert memory.path.stat().st_size == 100


@pytest.mark.parametrize(
    ("inputs", "outputs", "gist"),
    [
        (("none", 64, 0), None, "Unable to find shared memory region: 'none'"),
        (("r", 64, 9999), None, "Invalid offset"),
        (("r", 64, 250), None, r"Invalid offset \+ byte size"),
        (("r", 32, 0), None, "input byte size mismatch"),
        (("r", 64, 0), ("r", 8, 0), "should be at least 64 bytes"),
    ],
)
def test_regions_that_do_not_fit(
    client: Any, kind: str, inputs: tuple[str, int, int], outputs: tuple[str, int, int] | None, gist: str
) -> None:
    with Memory(256) as memory:
        client.register_system_shared_memory("r", memory.name, 256)
        tensors = [in_region(kind, f"INPUT{index}", [1, 16], "INT32", inputs) for index in range(2)]
        wanted = [out_region(kind, "OUTPUT0", outputs)] if outputs is not None else None
        with pytest.raises(InferenceServerException, match=gist):
            client.infer("simple", tensors, outputs=wanted)


def test_restricted_calls_need_their_header(client: Any, kind: str) -> None:
    header = {"http": "x-key", "grpc": "triton-grpc-protocol-k"}[kind]
    with pytest.raises(InferenceServerException, match=f"expecting header '{header}'"):
        client.get_trace_settings()
    client.get_trace_settings(headers={header: "s"})
    assert client.is_server_live()


def test_shared_memory_is_listed(client: Any, kind: str) -> None:
    metadata = client.get_server_metadata()
    extensions = metadata["extensions"] if kind == "http" else metadata.extensions
    assert "system_shared_memory" in extensions
