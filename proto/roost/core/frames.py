"""The frames between router and worker, and how they are laid out in bytes.

A frame is a header of 24 bytes and a payload::

    magic 'RO' · version u8 · type u8 · flags u32 · request u64 · payload length u64      (little-endian)

``request`` ties answers to what they answer: a RUN to its STARTED, RESPONSE, CREDIT or ERROR; a LOAD,
UNLOAD or STATUS to the STATUS that answers it. Control payloads are JSON objects. RUN and RESPONSE carry a
fixed part, a table of tensors and, behind it, the inline elements, each tensor's at a multiple of 64 bytes
from the start of the payload so that a receiver with an aligned buffer can use them in place.

There is no I/O here, and reading raises nothing but ``FrameError``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from roost.core.errors import Code
from roost.core.tensors import DATATYPE_OF_CODE, DATATYPES, MAX_RANK, Buffer, Parameters

VERSION = 1
ALIGNMENT = 64
MAX_PAYLOAD_BYTES = 2**34

_MAGIC = b"RO"
_HEADER = struct.Struct("<2sBBIQQ")
HEADER_BYTES = _HEADER.size

MORE_FOLLOW = 1
"""Flag of a RESPONSE that is not the last one: a router without memory for its payload has to know that, too."""

_U16 = struct.Struct("<H")
_RUN = struct.Struct("<QqIQI")
_RESPONSE = struct.Struct("<IB3x6q")
_TENSOR = struct.Struct("<BBB")
_INLINE = struct.Struct("<Q")
_REGION = struct.Struct("<IQQI")


class FrameError(Exception):
    """The bytes are not a frame of this version; the link that carried them can't go on."""


class FrameType(IntEnum):
    """What a frame is for. R: router, W: worker."""

    HELLO = 1  # W→R  version, kind, epoch, pid, slots, runtimes
    PING = 2  # R→W
    PONG = 3  # W→R
    ERROR = 4  # both  code and message for a request
    RUN = 5  # R→W  run a batch on an instance
    STARTED = 6  # W→R  the run has begun: it can't be retried blindly any more
    RESPONSE = 7  # W→R  outputs; several for streams, the last one final
    CREDIT = 8  # R→W  the router takes so many more responses of a stream
    CANCEL = 9  # R→W  nobody waits for the request any more
    GROW = 10  # W→R  outputs need a larger region
    LOAD = 11  # R→W  create an instance
    UNLOAD = 12  # R→W  drop an instance and give its memory back
    STATUS = 13  # both  asks for, or reports, the state of the worker or of one instance
    REGION_ADD = 14  # R→W  a shared-memory region, its descriptor on the second socket
    REGION_DROP = 15  # R→W  the region is not used any more
    CALL = 16  # W→R  a model calls another model


class Header(NamedTuple):
    """The head of a frame."""

    type: FrameType
    flags: int
    request: int
    length: int


@dataclass(frozen=True, slots=True)
class Region:
    """Where in shared memory a tensor's elements are; ``generation`` tells a reused place from the one meant."""

    region: int
    offset: int
    length: int
    generation: int


@dataclass(slots=True)
class WireTensor:
    """A tensor in a frame: inline elements, or a place in a region."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer | Region


@dataclass(frozen=True, slots=True)
class Credit:
    """How much more of a stream the router takes: a number of responses, and bytes of their tensors."""

    responses: int
    bytes: int


@dataclass(slots=True)
class Run:
    """A batch to run.

    Attributes:
        instance: The instance's id in the worker.
        deadline_ns: ``time.monotonic_ns`` after which the run is of no use; 0 for none.
        inputs: Input tensors.
        outputs: Names of the outputs wanted; empty: all.
        parameters: Request parameters for the model.
        credit: What the router takes of a decoupled model's stream before it grants more; None: the model is not
            decoupled, it answers exactly once.
    """

    instance: int
    deadline_ns: int
    inputs: Sequence[WireTensor]
    outputs: Sequence[str] = ()
    parameters: Parameters = field(default_factory=dict)
    credit: Credit | None = None


_NO_CREDIT = Credit(0, 0)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Start and end of the worker's three steps, ``time.monotonic_ns``."""

    input_start: int = 0
    input_end: int = 0
    infer_start: int = 0
    infer_end: int = 0
    output_start: int = 0
    output_end: int = 0


@dataclass(slots=True)
class Response:
    """An answer to a run, or one of several."""

    outputs: Sequence[WireTensor]
    sequence: int = 0
    final: bool = True
    times: StepTimes = StepTimes()


def pack_header(type_: FrameType, request: int, length: int, flags: int = 0) -> bytes:
    """Makes the header of a frame whose payload has ``length`` bytes."""
    return _HEADER.pack(_MAGIC, VERSION, type_, flags, request, length)


def unpack_header(data: Buffer, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> Header:
    """Reads the header of a frame.

    Raises:
        FrameError: If it is too short, of another version or type, or announces too much.
    """
    if len(data) < HEADER_BYTES:
        raise FrameError(f"a header of {len(data)} bytes, expected {HEADER_BYTES}")
    magic, version, type_, flags, request, length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise FrameError("no frame starts here")
    if version != VERSION:
        raise FrameError(f"frame version {version}, expected {VERSION}")
    if length > max_payload_bytes:
        raise FrameError(f"a payload of {length} bytes is over the limit of {max_payload_bytes}")
    try:
        return Header(FrameType(type_), flags, request, length)
    except ValueError:
        raise FrameError(f"unknown frame type {type_}") from None


def control_frame(type_: FrameType, request: int = 0, payload: dict[str, Any] | None = None) -> bytes:
    """Makes a frame whose payload is a JSON object (empty if there is none)."""
    body = json.dumps(payload, separators=(",", ":")).encode() if payload else b""
    return pack_header(type_, request, len(body)) + body


def parse_control(payload: Buffer) -> dict[str, Any]:
    """Reads the JSON object of a control frame.

    Raises:
        FrameError: If it is not one.
    """
    if not len(payload):
        return {}
    try:
        value = json.loads(bytes(payload))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"control payload is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FrameError("control payload is not an object")
    return value


def error_frame(request: int, code: Code, message: str) -> bytes:
    """Makes the frame that reports a request's failure."""
    return control_frame(FrameType.ERROR, request, {"code": code.value, "message": message})


def parse_error(payload: Buffer) -> tuple[Code, str]:
    """Reads an ERROR payload.

    Raises:
        FrameError: If code or message are missing or unknown.
    """
    value = parse_control(payload)
    try:
        return Code(value["code"]), str(value["message"])
    except (KeyError, ValueError):
        raise FrameError("an error without a known code and a message") from None


def credit_frame(request: int, credit: Credit) -> bytes:
    """Makes the frame that lets a stream go on."""
    return control_frame(FrameType.CREDIT, request, {"responses": credit.responses, "bytes": credit.bytes})


def parse_credit(payload: Buffer) -> Credit:
    """Reads a CREDIT payload.

    Raises:
        FrameError: If it does not say how much.
    """
    value = parse_control(payload)
    credit = Credit(value.get("responses", -1), value.get("bytes", -1))
    for amount in (credit.responses, credit.bytes):
        if not isinstance(amount, int) or amount < 0:
            raise FrameError("a credit without a number of responses and of bytes")
    return credit


def run_frame(request: int, run: Run) -> list[Buffer]:
    """Makes a RUN frame as buffers to write one after the other; tensor data is not copied."""
    parameters = json.dumps(dict(run.parameters), separators=(",", ":")).encode() if run.parameters else b""
    credit = run.credit or _NO_CREDIT
    head = bytearray(_RUN.pack(run.instance, run.deadline_ns, credit.responses, credit.bytes, len(parameters)))
    head += parameters
    head += _U16.pack(len(run.outputs))
    for name in run.outputs:
        _put_text(head, name)
    return _with_tensors(FrameType.RUN, request, head, run.inputs)


def parse_run(payload: Buffer) -> Run:
    """Reads a RUN payload; tensors are views on it.

    Raises:
        FrameError: If it is cut short or inconsistent.
    """
    reader = _Reader(payload)
    instance, deadline_ns, responses, credit_bytes, parameter_bytes = reader.take(_RUN)
    parameters = parse_control(reader.bytes(parameter_bytes))
    outputs = [reader.text() for _ in range(reader.take(_U16)[0])]
    credit = Credit(responses, credit_bytes) if responses else None
    return Run(instance, deadline_ns, reader.tensors(), outputs, parameters, credit)


def response_frame(request: int, response: Response) -> list[Buffer]:
    """Makes a RESPONSE frame as buffers to write one after the other; tensor data is not copied."""
    t = response.times
    head = bytearray(
        _RESPONSE.pack(
            response.sequence,
            response.final,
            t.input_start,
            t.input_end,
            t.infer_start,
            t.infer_end,
            t.output_start,
            t.output_end,
        )
    )
    flags = 0 if response.final else MORE_FOLLOW
    return _with_tensors(FrameType.RESPONSE, request, head, response.outputs, flags)


def parse_response(payload: Buffer) -> Response:
    """Reads a RESPONSE payload; tensors are views on it.

    Raises:
        FrameError: If it is cut short or inconsistent.
    """
    reader = _Reader(payload)
    sequence, final, *times = reader.take(_RESPONSE)
    return Response(reader.tensors(), sequence, bool(final), StepTimes(*times))


def _put_text(head: bytearray, text: str) -> None:
    encoded = text.encode()
    head += _U16.pack(len(encoded))
    head += encoded


def _with_tensors(
    type_: FrameType, request: int, head: bytearray, tensors: Sequence[WireTensor], flags: int = 0
) -> list[Buffer]:
    """Appends the tensor table to ``head`` and lines the inline elements up behind it."""
    head += _U16.pack(len(tensors))
    inline: list[Buffer] = []
    for tensor in tensors:
        _put_text(head, tensor.name)
        is_region = isinstance(tensor.data, Region)
        head += _TENSOR.pack(DATATYPES[tensor.datatype].code, len(tensor.shape), is_region)
        head += struct.pack(f"<{len(tensor.shape)}q", *tensor.shape)
        if isinstance(tensor.data, Region):
            place = tensor.data
            head += _REGION.pack(place.region, place.offset, place.length, place.generation)
        else:
            view = memoryview(tensor.data).cast("B") if not isinstance(tensor.data, bytes) else tensor.data
            head += _INLINE.pack(len(view))
            inline.append(view)
    buffers: list[Buffer] = [b"", head]
    length = len(head)
    for data in inline:
        if not len(data):
            continue
        padding = -length % ALIGNMENT
        if padding:
            buffers.append(bytes(padding))
        buffers.append(data)
        length += padding + len(data)
    buffers[0] = pack_header(type_, request, length, flags)
    return buffers


class _Reader:
    """Walks over a payload and never past its end."""

    def __init__(self, payload: Buffer) -> None:
        self._view = memoryview(payload).cast("B")
        self._at = 0

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        end = self._at + layout.size
        if end > len(self._view):
            raise FrameError("payload is cut short")
        values = layout.unpack_from(self._view, self._at)
        self._at = end
        return values

    def bytes(self, count: int) -> memoryview:
        end = self._at + count
        if end > len(self._view):
            raise FrameError("payload is cut short")
        view = self._view[self._at : end]
        self._at = end
        return view

    def text(self) -> str:
        try:
            return str(self.bytes(self.take(_U16)[0]), "utf-8")
        except UnicodeDecodeError:
            raise FrameError("a name is not UTF-8") from None

    def tensors(self) -> list[WireTensor]:
        count = self.take(_U16)[0]
        rows = [self._tensor_row() for _ in range(count)]
        tensors = []
        for name, datatype, shape, place in rows:
            if isinstance(place, Region):
                tensors.append(WireTensor(name, datatype, shape, place))
                continue
            if place:
                self.bytes(-self._at % ALIGNMENT)
            tensors.append(WireTensor(name, datatype, shape, self.bytes(place)))
        return tensors

    def _tensor_row(self) -> tuple[str, str, tuple[int, ...], Region | int]:
        name = self.text()
        code, rank, is_region = self.take(_TENSOR)
        if code not in DATATYPE_OF_CODE:
            raise FrameError(f"unknown datatype code {code}")
        if rank > MAX_RANK:
            raise FrameError(f"a tensor of {rank} dimensions")
        shape = self.take(struct.Struct(f"<{rank}q"))
        if is_region:
            return name, DATATYPE_OF_CODE[code].name, shape, Region(*self.take(_REGION))
        return name, DATATYPE_OF_CODE[code].name, shape, int(self.take(_INLINE)[0])
