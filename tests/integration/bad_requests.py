"""How the tables of malformed requests are written: a call, the status it must get, and words of the message."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import grpc.aio
from yarl import URL

from tests.server import DEADLINE_S, HOST, RoostServer

HEADER_LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/simple/infer"
REGION = "/v2/systemsharedmemory/region/r/register"
SHM_KEY = f"bad-requests-{os.getpid()}"
SHM_BYTES = 4096


@dataclass(frozen=True)
class Outcome:
    """What a client saw; ``status`` is None if the connection was closed without an answer."""

    status: int | str | None
    message: str


@dataclass(frozen=True)
class Wires:
    """The connections to a server that calls are sent over."""

    server: RoostServer
    session: aiohttp.ClientSession
    channel: grpc.aio.Channel


class BadRequest(Protocol):
    """One row of a table."""

    @property
    def status(self) -> int | str | None: ...

    @property
    def words(self) -> tuple[str, ...]: ...

    async def send(self, wires: Wires) -> Outcome: ...


@dataclass(frozen=True)
class Http:
    """HTTP as it should be with something wrong in it; a ``body`` that is not bytes is sent as JSON."""

    status: int
    words: tuple[str, ...]
    body: Any = b""
    path: str = INFER
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"

    async def send(self, wires: Wires) -> Outcome:
        """Sends it and reads the error."""
        data = self._data()
        # As it is written in the table: the library would tidy dots and percent signs up.
        url = URL(f"http://{wires.server.http}{self.path}", encoded=True)
        async with wires.session.request(self.method, url, data=data or None, headers=self.headers) as answer:
            text = await answer.text()
        if answer.status == 200:
            return Outcome(200, text)
        assert answer.content_type == "application/json", text
        return Outcome(answer.status, json.loads(text)["error"] if text else "")

    @property
    def data(self) -> bytes:
        """What a client sends that has no headers of its own."""
        data = self._data()
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + data

    def _data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True)
class Raw:
    """Bytes on a connection of their own; ``status`` None: it is closed, and nothing is said."""

    status: int | None
    words: tuple[str, ...]
    data: bytes

    async def send(self, wires: Wires) -> Outcome:
        """Sends them as fast as they are taken and reads the one answer; nothing may follow it."""
        reader, writer = await asyncio.open_connection(HOST, wires.server.ports["http"])
        try:
            async with asyncio.timeout(DEADLINE_S):
                writer.write(self.data)
                outcome, _ = await _read_outcome(reader)
                with suppress(ConnectionError):
                    assert await reader.read() == b""
        except (asyncio.IncompleteReadError, ConnectionError):
            return Outcome(None, "")
        finally:
            writer.transport.abort()
        return outcome


@dataclass(frozen=True)
class BehindPlain:
    """A bad call on a connection that was good for plain requests before.

    Attributes:
        bad: The call.
        plain: A plain request.
        at_once: Whether both are sent in one piece.
    """

    bad: Http | Raw
    plain: Http
    at_once: bool

    async def send(self, wires: Wires) -> Outcome:
        """Sends plain requests and the bad one, and that again if the connection lasts; reads the last error."""
        reader, writer = await asyncio.open_connection(HOST, wires.server.ports["http"])
        try:
            async with asyncio.timeout(DEADLINE_S):
                for _ in range(2):
                    writer.write(self.plain.data)
                    good, _ = await _read_outcome(reader)
                    assert good.status == 200, good
                writer.write(self.plain.data * self.at_once + self.bad.data)
                outcome, is_last = await _read_outcome(reader)
                if self.at_once and outcome.status == 200:
                    # Else the parser got both: it forgets the good ones of a piece in which one is malformed.
                    outcome, is_last = await _read_outcome(reader)
                if not is_last:
                    writer.write(self.bad.data)
                    outcome, is_last = await _read_outcome(reader)
                if isinstance(self.bad, Raw):
                    with suppress(ConnectionError):
                        assert await reader.read() == b""
        except (asyncio.IncompleteReadError, ConnectionError):
            return Outcome(None, "")
        finally:
            writer.transport.abort()
        return outcome


async def _read_outcome(reader: asyncio.StreamReader) -> tuple[Outcome, bool]:
    """One answer, and whether it is the last one."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    lengths = [line[15:] for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
    text = await reader.readexactly(int(lengths[0]))
    status = int(head.split()[1])
    message = text.decode() if status == 200 else json.loads(text)["error"]
    return Outcome(status, message), b"connection: close" in head or head.startswith(b"http/1.0")


@dataclass(frozen=True)
class Grpc:
    """A gRPC call; a ``message`` may be any bytes."""

    status: str
    words: tuple[str, ...]
    message: Any
    method: str = "ModelInfer"

    async def send(self, wires: Wires) -> Outcome:
        """Sends it and reads the error."""
        data = self.message if isinstance(self.message, bytes) else self.message.SerializeToString()
        call = wires.channel.unary_unary(f"/inference.GRPCInferenceService/{self.method}")
        try:
            answer = await call(data, timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            return Outcome(error.code().name, error.details() or "")
        return Outcome("OK", repr(answer[:200]))


@dataclass(frozen=True)
class InRegion:
    """A bad call about shared memory: there is an object that is registered as the region ``r`` unless it says else."""

    bad: Http | Grpc
    register: bool = True
    truncate_to: int | None = None

    @property
    def status(self) -> int | str | None:
        """The bad call's."""
        return self.bad.status

    @property
    def words(self) -> tuple[str, ...]:
        """The bad call's."""
        return self.bad.words

    async def send(self, wires: Wires) -> Outcome:
        """Makes and registers the object, cuts it off, sends the bad call, and forgets everything."""
        path = Path("/dev/shm") / SHM_KEY
        path.write_bytes(bytes(SHM_BYTES))
        try:
            if self.register:
                body = {"key": f"/{SHM_KEY}", "byte_size": SHM_BYTES}
                assert (await Http(200, (), body, REGION).send(wires)).status == 200
            if self.truncate_to is not None:
                os.truncate(path, self.truncate_to)
            return await self.bad.send(wires)
        finally:
            path.unlink()
            await Http(200, (), path="/v2/systemsharedmemory/unregister").send(wires)
