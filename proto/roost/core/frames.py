"""The frames between router and worker, and how they are laid out in bytes.

A frame is a header of 24 bytes and a payload::

    magic 'RO' · version u8 · type u8 · flags u32 · request u64 · payload length u64      (little-endian)

``request`` ties answers to what they answer: a RUN to its RESPONSE, CREDIT or ERROR; a LOAD, UNLOAD, TRIM or STATUS
to the STATUS that answers it. Control payloads are JSON objects. RUN and RESPONSE carry a fixed part and tensors, as
``roost.core.tensor_tables`` lays them out. Their frames are of a multiple of 64 bytes, so that the elements of
those that are read in one go, one behind the other, are aligned.

There is no I/O here, and reading raises nothing but ``FrameError``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, NamedTuple

from roost.core.errors import Code
from roost.core.tensor_tables import (
    ALIGNMENT,
    FrameError,
    Region,
    WireTensor,
    padding,
    read_table,
    write_table,
)
from roost.core.tensors import Buffer, Parameters, Tensor

__all__ = [
    "ALIGNMENT",
    "HEADER_BYTES",
    "MAX_PAYLOAD_BYTES",
    "MORE_FOLLOW",
    "REQUEST_ID",
    "VERSION",
    "Call",
    "Credit",
    "FrameError",
    "FrameType",
    "Header",
    "Region",
    "Response",
    "Run",
    "StepTimes",
    "WireTensor",
    "call_frame",
    "control_frame",
    "credit_frame",
    "error_frame",
    "instance_of",
    "pack_header",
    "parse_call",
    "parse_control",
    "parse_credit",
    "parse_error",
    "parse_response",
    "parse_run",
    "response_buffers",
    "response_frame",
    "run_frame",
    "unpack_header",
]

VERSION = 2
MAX_PAYLOAD_BYTES = 2**34

REQUEST_ID = "roost.request_id"
"""Among the parameters of a run: the client's id of the only request, for models that are programs."""

_MAGIC = b"RO"
_HEADER = struct.Struct("<2sBBIQQ")
HEADER_BYTES = _HEADER.size

MORE_FOLLOW = 1
"""Flag of a RESPONSE that is not the last one: a router without memory for its payload has to know that, too."""

_RUN = struct.Struct("<QqIQII")
_INSTANCE = struct.Struct("<Q")
_RESPONSE = struct.Struct("<IB3x6qI")
# Header and fixed part in one, as they are written.
_RUN_FRAME = struct.Struct(f"<{_HEADER.format[1:]}{_RUN.format[1:]}")
_RESPONSE_FRAME = struct.Struct(f"<{_HEADER.format[1:]}{_RESPONSE.format[1:]}")


class FrameType(IntEnum):
    """What a frame is for. R: router, W: worker."""

    HELLO = 1  # W→R  version, kind, epoch, pid, slots, runtimes
    PING = 2  # R→W
    PONG = 3  # W→R
    ERROR = 4  # both  code and message for a request
    RUN = 5  # R→W  run a batch on an instance
    STARTED = 6  # not used: which runs have begun stands in the arena
    RESPONSE = 7  # W→R  outputs; several for streams, the last one final
    CREDIT = 8  # R→W  the router takes so many more responses of a stream
    CANCEL = 9  # R→W  nobody waits for the request any more
    GROW = 10  # not used: outputs that have outgrown their place come inline
    LOAD = 11  # R→W  create an instance
    UNLOAD = 12  # R→W  drop an instance and give its memory back
    STATUS = 13  # both  asks for, or reports, the state of the worker or of one instance
    REGION_ADD = 14  # R→W  a shared-memory region, its descriptor on the second socket
    REGION_DROP = 15  # R→W  the region is not used any more
    CALL = 16  # W→R  a model calls another model; a RESPONSE or an ERROR answers it, a CANCEL gives it up
    TRIM = 17  # R→W  give memory back that is free, or that processes of models have over a limit


_TYPE_RUN = int(FrameType.RUN)
_TYPE_CALL = int(FrameType.CALL)
_TYPE_RESPONSE = int(FrameType.RESPONSE)
_TYPES = {int(type_): type_ for type_ in FrameType}


class Header(NamedTuple):
    """The head of a frame."""

    type: FrameType
    flags: int
    request: int
    length: int


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
        places: Outputs that have a place in the arena, where the worker is to write them: their data are regions. One
            that turns out to be of another shape comes inline, as those without a place do.
    """

    instance: int
    deadline_ns: int
    inputs: Sequence[WireTensor]
    outputs: Sequence[str] = ()
    parameters: Parameters = field(default_factory=dict)
    credit: Credit | None = None
    places: Sequence[WireTensor] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """What a model asks of another one.

    Attributes:
        model: The other one.
        version: Its version; empty for any.
        run: What it is asked; the instance means nothing.
    """

    model: str
    version: str
    run: Run


_MAX_MESSAGE_CHARS = 4096
_CALLED = "roost.called"  # among the parameters of a CALL's run: the model, and its version

_NO_CREDIT = Credit(0, 0)


class StepTimes(NamedTuple):
    """Start and end of the worker's three steps, ``time.monotonic_ns``."""

    input_start: int = 0
    input_end: int = 0
    infer_start: int = 0
    infer_end: int = 0
    output_start: int = 0
    output_end: int = 0


_NO_TIMES = StepTimes()


@dataclass(slots=True)
class Response:
    """An answer to a run, or one of several."""

    outputs: Sequence[WireTensor]
    sequence: int = 0
    final: bool = True
    times: StepTimes = _NO_TIMES


def pack_header(type_: FrameType, request: int, length: int, flags: int = 0) -> bytes:
    """Makes the header of a frame whose payload has ``length`` bytes."""
    return _HEADER.pack(_MAGIC, VERSION, type_, flags, request, length)


def unpack_header(data: Buffer, max_payload_bytes: int = MAX_PAYLOAD_BYTES, at: int = 0) -> Header:
    """Reads the header of a frame that begins at ``at``.

    Raises:
        FrameError: If it is too short, of another version or type, or announces too much.
    """
    try:
        magic, version, type_, flags, request, length = _HEADER.unpack_from(data, at)
    except struct.error:
        raise FrameError(f"a header of {len(data) - at} bytes, expected {HEADER_BYTES}") from None
    if magic != _MAGIC:
        raise FrameError("no frame starts here")
    if version != VERSION:
        raise FrameError(f"frame version {version}, expected {VERSION}")
    if length > max_payload_bytes:
        raise FrameError(f"a payload of {length} bytes is over the limit of {max_payload_bytes}")
    known = _TYPES.get(type_)
    if known is None:
        raise FrameError(f"unknown frame type {type_}")
    return Header(known, flags, request, length)


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
    """Makes the frame that reports a request's failure; of a message, which may be a model's, what can be shown."""
    if len(message) > _MAX_MESSAGE_CHARS:
        message = message[:_MAX_MESSAGE_CHARS] + "..."
    shown = message.encode("utf-8", "backslashreplace").decode()
    return control_frame(FrameType.ERROR, request, {"code": code.value, "message": shown})


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


def call_frame(request: int, call: Call) -> list[Buffer]:
    """Makes a CALL frame: laid out as a RUN is."""
    called = {_CALLED: call.model, f"{_CALLED}.version": call.version}
    run = replace(call.run, parameters={**call.run.parameters, **called})
    return run_frame(request, run, _TYPE_CALL)


def parse_call(payload: Buffer) -> Call:
    """Reads a CALL payload; tensors are views on it.

    Raises:
        FrameError: If it is cut short or inconsistent.
    """
    run = parse_run(payload)
    if any(type(tensor.data) is Region for tensor in run.inputs) or run.places:
        raise FrameError("a call whose tensors are elsewhere")
    parameters = dict(run.parameters)
    model, version = parameters.pop(_CALLED, ""), parameters.pop(f"{_CALLED}.version", "")
    return Call(str(model), str(version), replace(run, parameters=parameters))


def run_frame(request: int, run: Run, type_: int = _TYPE_RUN) -> list[Buffer]:
    """Makes a RUN frame as buffers to write one after the other; tensor data is not copied."""
    parameters = json.dumps(dict(run.parameters), separators=(",", ":")).encode() if run.parameters else b""
    table, offsets, inline, inline_bytes = write_table(run.outputs, run.inputs, run.places)
    credit = run.credit or _NO_CREDIT
    before = _RUN_FRAME.size + len(parameters) + len(table) + len(offsets)
    first, last = padding(before), padding(inline_bytes)
    head = _RUN_FRAME.pack(
        _MAGIC,
        VERSION,
        type_,
        0,
        request,
        before + len(first) + inline_bytes + len(last) - HEADER_BYTES,
        run.instance,
        run.deadline_ns,
        credit.responses,
        credit.bytes,
        len(parameters),
        len(table),
    )
    buffers: list[Buffer] = [b"".join((head, parameters, table, offsets, first)), *inline]
    if last:
        buffers.append(last)
    return buffers


def instance_of(payload: Buffer) -> int:
    """Which instance a RUN payload is for.

    Raises:
        FrameError: If it is cut short.
    """
    try:
        return int(_INSTANCE.unpack_from(payload)[0])
    except struct.error:
        raise FrameError("payload is cut short") from None


def parse_run(payload: Buffer) -> Run:
    """Reads a RUN payload; tensors are views on it.

    Raises:
        FrameError: If it is cut short or inconsistent.
    """
    view = _bytes_of(payload)
    try:
        instance, deadline_ns, responses, credit_bytes, parameter_bytes, table_bytes = _RUN.unpack_from(view)
    except struct.error:
        raise FrameError("payload is cut short") from None
    at = _RUN.size + parameter_bytes
    end = at + table_bytes
    if end > len(view):
        raise FrameError("payload is cut short")
    table = read_table(view[at:end])
    tensors = table.take(view, end, HEADER_BYTES)
    places: Sequence[WireTensor] = ()
    if table.tensors != len(tensors):
        places = tensors[table.tensors :]
        del tensors[table.tensors :]
    parameters = parse_control(view[_RUN.size : at]) if parameter_bytes else {}
    credit = Credit(responses, credit_bytes) if responses else None
    return Run(instance, deadline_ns, tensors, table.wanted, parameters, credit, places)


def response_frame(request: int, response: Response) -> list[Buffer]:
    """Makes a RESPONSE frame as buffers to write one after the other; tensor data is not copied."""
    return response_buffers(request, response.outputs, response.times, response.sequence, response.final)


def response_buffers(
    request: int, outputs: Sequence[WireTensor | Tensor], times: StepTimes, sequence: int = 0, final: bool = True
) -> list[Buffer]:
    """The same for who has no ``Response`` at hand."""
    table, offsets, inline, inline_bytes = write_table((), outputs)
    before = _RESPONSE_FRAME.size + len(table) + len(offsets)
    first, last = padding(before), padding(inline_bytes)
    head = _RESPONSE_FRAME.pack(
        _MAGIC,
        VERSION,
        _TYPE_RESPONSE,
        0 if final else MORE_FOLLOW,
        request,
        before + len(first) + inline_bytes + len(last) - HEADER_BYTES,
        sequence,
        final,
        *times,
        len(table),
    )
    buffers: list[Buffer] = [b"".join((head, table, offsets, first)), *inline]
    if last:
        buffers.append(last)
    return buffers


def parse_response(payload: Buffer) -> Response:
    """Reads a RESPONSE payload; inline tensors are views on it.

    Raises:
        FrameError: If it is cut short or inconsistent.
    """
    view = _bytes_of(payload)
    try:
        sequence, final, *times, table_bytes = _RESPONSE.unpack_from(view)
    except struct.error:
        raise FrameError("payload is cut short") from None
    end = _RESPONSE.size + table_bytes
    if end > len(view):
        raise FrameError("payload is cut short")
    table = read_table(view[_RESPONSE.size : end])
    if table.wanted or table.tensors != len(table.rows):
        raise FrameError("a response that asks for outputs")
    return Response(table.take(view, end, HEADER_BYTES), sequence, bool(final), StepTimes(*times))


def _bytes_of(payload: Buffer) -> memoryview:
    view = memoryview(payload)
    return view if view.ndim == 1 and view.format == "B" else view.cast("B")
