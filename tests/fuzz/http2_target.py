"""A whole connection of the native gRPC transport: frames in, changed one by one, and nothing may stay behind."""

from __future__ import annotations

import asyncio
from random import Random

from roost.core.errors import InvalidArgument
from roost.proto import grpc_service_pb2 as pb
from roost.server.http2 import frames
from roost.server.http2.frames import ErrorCode
from roost.server.http2.shared import Shared

from tests.fuzz.driver import Target
from tests.fuzz.mutation import mutate_bytes
from tests.unit.grpc_fakes import MODEL, FakeDataPlane
from tests.unit.http2_fakes import Client, data

_LOOP = asyncio.new_event_loop()
_SHARED = Shared()  # one for all: its memory would be most of what an input takes, as long as timers keep its server


def http2_target() -> Target:
    """The target; its seeds are what well-behaved clients send."""
    return Target("http2", _LOOP.run_until_complete(_seeds()), _run, _mutate)


async def _seeds() -> list[bytes]:
    client = Client(FakeDataPlane())
    message = pb.ModelInferRequest(model_name=MODEL, id="a", raw_input_contents=[b"ab"])
    message.inputs.add(name="IN", datatype="UINT8", shape=[2])
    raw = message.SerializeToString()
    large = pb.ModelInferRequest(model_name=MODEL, id="b", raw_input_contents=[bytes(131_000)])
    large.inputs.add(name="IN", datatype="UINT8", shape=[131_000])
    begin = frames.settings({frames.INITIAL_WINDOW_SIZE: 2**20}) + frames.window_update(0, 2**20)
    first, second = client.call(1, raw), client.call(3, raw, ("traceparent", "00-11"), ("grpc-timeout", "5S"))
    live = client.headers(5, path="/inference.GRPCInferenceService/ServerLive") + data(5, b"")
    stream = client.headers(7, path="/inference.GRPCInferenceService/ModelStreamInfer")
    stream += data(7, raw, 0) + data(7, raw) + frames.frame(frames.PING, 0, 0, bytes(8))
    head = client.headers(9)
    half = head[:3] + bytes((frames.HEADERS, 0)) + head[5:9] + head[9:]
    continued = half[:2] + bytes((len(head) - 9 - 4,)) + half[3:-4] + frames.frame(9, frames.END_HEADERS, 9, head[-4:])
    return [
        begin + first + second,
        begin + first + frames.reset(1, ErrorCode.CANCEL) + second + live,
        begin + first + second + live + stream,
        begin + first + second + live + stream + continued + data(9, raw),
        begin + Client(FakeDataPlane()).headers(11) + _in_frames(11, large.SerializeToString()),
    ]


def _in_frames(stream_id: int, message: bytes) -> bytes:
    """A message of which the server has to ask for the second half, in frames of one length but for the last ones."""
    body = b"\0" + len(message).to_bytes(4, "big") + message
    pieces = [frames.frame(frames.DATA, 0, stream_id, body[at : at + 8000]) for at in range(0, len(body), 8000)]
    return b"".join(pieces) + frames.frame(frames.DATA, frames.END_STREAM, stream_id)


def _run(raw: bytes) -> None:
    """Raises: InvalidArgument: If the server had to end the connection."""
    reason = _LOOP.run_until_complete(_connect(raw))
    if reason:
        raise InvalidArgument(reason)


async def _connect(raw: bytes) -> str:
    plane = FakeDataPlane(budget_bytes=2**20)
    client = Client(plane, shared=_SHARED)
    middle = len(raw) // 2
    client.send(frames.PREFACE + raw[:middle])
    for _ in range(3):
        await asyncio.sleep(0)
    client.send(raw[middle:])
    for _ in range(5):
        await asyncio.sleep(0)
    ended = [item[3] for item in client.frames() if item[0] == frames.GOAWAY]
    client.transport.sent.clear()  # a timer keeps the transport for a second
    client.connection.connection_lost(None)
    await client.service.drain(0)
    if plane.bodies.used_bytes or client.connection.streams or client.service.connections:
        raise AssertionError("something of a connection stays")
    return ended[0][8:].decode() if ended else ""


def _mutate(rng: Random, raw: bytes) -> bytes:
    """Changes one frame, leaves it out, or sends it again; at times anything."""
    pieces = []
    at = 0
    while len(raw) - at >= frames.HEAD_BYTES:
        high, low, *_ = frames.HEAD.unpack_from(raw, at)
        end = at + frames.HEAD_BYTES + (high << 8 | low)
        pieces.append(bytearray(raw[at:end]))
        at = end
    if not pieces or rng.random() < 0.2:
        return mutate_bytes(rng, raw)
    index = rng.randrange(len(pieces))
    piece = pieces[index]
    match rng.randrange(6):
        case 0:
            piece[3] = rng.randrange(12)
        case 1:
            piece[4] = rng.choice([0, 1, 4, 5, 8, 13, 32, 37])
        case 2:
            piece[8] = rng.randrange(14)
        case 3 if len(piece) > frames.HEAD_BYTES:
            piece[rng.randrange(frames.HEAD_BYTES, len(piece))] = rng.randrange(256)
        case 4:
            pieces.insert(rng.randrange(len(pieces)), piece)
        case _:
            del pieces[index]
    return b"".join(pieces) + raw[at:]
