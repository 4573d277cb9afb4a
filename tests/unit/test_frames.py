"""The frame codec: what goes in comes out, and bytes that are no frame raise FrameError alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import Code
from roost.core.frames import (
    ALIGNMENT,
    HEADER_BYTES,
    MORE_FOLLOW,
    Credit,
    FrameError,
    FrameType,
    Region,
    Response,
    Run,
    StepTimes,
    WireTensor,
    control_frame,
    credit_frame,
    error_frame,
    pack_header,
    parse_control,
    parse_credit,
    parse_error,
    parse_response,
    parse_run,
    response_frame,
    run_frame,
    unpack_header,
)
from roost.core.tensor_tables import read_table, write_table
from roost.core.tensors import DATATYPES, Buffer

NAMES = st.text(max_size=20)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
REGIONS = st.builds(Region, U64, U64)
ELEMENTS = st.binary(max_size=200)
SHAPES = st.lists(I64, max_size=32).map(tuple)
DATATYPE_NAMES = st.sampled_from(sorted(DATATYPES))
TENSORS = st.builds(WireTensor, NAMES, DATATYPE_NAMES, SHAPES, ELEMENTS | st.lists(ELEMENTS, max_size=3) | REGIONS)
PLACES = st.builds(WireTensor, NAMES, DATATYPE_NAMES, SHAPES, REGIONS)
PARAMETERS = st.dictionaries(NAMES, st.booleans() | I64 | st.floats(allow_nan=False) | NAMES, max_size=4)
CREDITS = st.builds(Credit, st.integers(1, 2**32 - 1), U64)
RUNS = st.builds(
    Run,
    U64,
    I64,
    st.lists(TENSORS, max_size=4),
    st.lists(NAMES, max_size=3),
    PARAMETERS,
    st.none() | CREDITS,
    st.lists(PLACES, max_size=3),
)
RESPONSES = st.builds(
    Response, st.lists(TENSORS, max_size=4), U32, st.booleans(), st.builds(StepTimes, I64, I64, I64, I64, I64, I64)
)
PARSERS: list[Callable[[Buffer], Any]] = [
    parse_run,
    parse_response,
    parse_control,
    parse_credit,
    parse_error,
    unpack_header,
]


def joined(buffers: Sequence[Buffer]) -> bytes:
    return b"".join(bytes(buffer) for buffer in buffers)


def as_rows(tensors: Iterable[WireTensor]) -> list[tuple[Any, ...]]:
    return [(t.name, t.datatype, t.shape, as_data(t.data)) for t in tensors]


def as_data(data: Buffer | Region | Sequence[Buffer]) -> bytes | Region:
    if isinstance(data, Region):
        return data
    return bytes(data) if isinstance(data, bytes | bytearray | memoryview) else joined(data)


@given(st.sampled_from(FrameType), U64, st.integers(0, 2**34), U32)
def test_header_round_trip(type_: FrameType, request_id: int, length: int, flags: int) -> None:
    assert unpack_header(pack_header(type_, request_id, length, flags)) == (type_, flags, request_id, length)


@given(U64, RUNS)
def test_run_round_trip(request_id: int, run: Run) -> None:
    frame = joined(run_frame(request_id, run))
    header = unpack_header(frame)
    assert header == (FrameType.RUN, 0, request_id, len(frame) - HEADER_BYTES)
    parsed = parse_run(frame[HEADER_BYTES:])
    assert (parsed.instance, parsed.deadline_ns, list(parsed.outputs)) == (
        run.instance,
        run.deadline_ns,
        list(run.outputs),
    )
    assert dict(parsed.parameters) == dict(run.parameters)
    assert parsed.credit == run.credit
    assert as_rows(parsed.inputs) == as_rows(run.inputs)
    assert as_rows(parsed.places) == as_rows(run.places)


@given(U64, RESPONSES)
def test_response_round_trip(request_id: int, response: Response) -> None:
    frame = joined(response_frame(request_id, response))
    assert unpack_header(frame)[:2] == (FrameType.RESPONSE, 0 if response.final else MORE_FOLLOW)
    parsed = parse_response(frame[HEADER_BYTES:])
    assert (parsed.sequence, parsed.final, parsed.times) == (response.sequence, response.final, response.times)
    assert as_rows(parsed.outputs) == as_rows(response.outputs)


@given(st.lists(RUNS, min_size=1, max_size=3))
def test_elements_of_runs_that_lie_behind_each_other_are_aligned(runs: list[Run]) -> None:
    block = np.frombuffer(b"".join(joined(run_frame(1, run)) for run in runs), np.uint8)
    at = 0
    for _ in runs:
        header = unpack_header(block[at:].data)
        payload = block[at + HEADER_BYTES : at + HEADER_BYTES + header.length].data
        at += HEADER_BYTES + header.length
        for tensor in parse_run(payload).inputs:
            if isinstance(tensor.data, memoryview) and len(tensor.data):
                assert (np.frombuffer(tensor.data, np.uint8).ctypes.data - block.ctypes.data) % ALIGNMENT == 0


def test_elements_may_be_views_of_any_kind() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    tensors = [
        WireTensor("A", "INT32", (3, 4), array.data),
        WireTensor("B", "INT32", (3, 4), [array[:2].data, bytearray(), array[2:].data]),
        WireTensor("C", "INT32", (0, 4), np.empty((0, 4), np.int32).data),
    ]
    parsed = parse_run(joined(run_frame(1, Run(1, 0, tensors)))[HEADER_BYTES:])
    assert [as_data(tensor.data) for tensor in parsed.inputs] == [array.tobytes(), array.tobytes(), b""]


@pytest.mark.parametrize("wanted", [["A"], []], ids=["wanted outputs", "places"])
def test_responses_ask_for_nothing(wanted: list[str]) -> None:
    place = WireTensor("P", "INT8", (4,), Region(0, 4))
    table = write_table(wanted, [], [place])[0]
    good = joined(response_frame(1, Response([])))[HEADER_BYTES:]
    fixed = good.index(write_table((), ())[0]) - 4
    with pytest.raises(FrameError):
        parse_response(good[:fixed] + len(table).to_bytes(4, "little") + table + bytes(8))


def test_places_are_in_the_arena() -> None:
    inline = write_table((), [WireTensor("P", "INT8", (4,), b"1234")])[0]
    table = bytes(4) + inline[2:-2]  # the row of a tensor, counted as a place
    with pytest.raises(FrameError):
        read_table(memoryview(table))


@given(st.sampled_from(FrameType), U64, st.dictionaries(NAMES, I64 | NAMES | st.none(), max_size=5))
def test_control_round_trip(type_: FrameType, request_id: int, payload: dict[str, Any]) -> None:
    frame = control_frame(type_, request_id, payload)
    assert unpack_header(frame)[:3] == (type_, 0, request_id)
    assert parse_control(frame[HEADER_BYTES:]) == payload


@given(U64, CREDITS)
def test_credit_round_trip(request_id: int, credit: Credit) -> None:
    frame = credit_frame(request_id, credit)
    assert unpack_header(frame)[:3] == (FrameType.CREDIT, 0, request_id)
    assert parse_credit(frame[HEADER_BYTES:]) == credit


@pytest.mark.parametrize("text", ["{}", '{"responses": 1}', '{"responses": "1", "bytes": 1}', '{"responses": -1}'])
def test_credits_without_numbers(text: str) -> None:
    with pytest.raises(FrameError):
        parse_credit(text.encode())


@given(U64, st.sampled_from(Code), NAMES)
def test_error_round_trip(request_id: int, code: Code, message: str) -> None:
    assert parse_error(error_frame(request_id, code, message)[HEADER_BYTES:]) == (code, message)


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.__name__)
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_raise_frame_errors_alone(parser: Callable[[Buffer], Any], data: bytes) -> None:
    with suppress(FrameError):
        parser(data)


@given(RUNS | RESPONSES, st.data())
def test_damaged_frames_raise_frame_errors_alone(value: Run | Response, data: st.DataObject) -> None:
    if isinstance(value, Run):
        parser: Callable[[Buffer], Any] = parse_run
        payload = bytearray(joined(run_frame(1, value))[HEADER_BYTES:])
    else:
        parser = parse_response
        payload = bytearray(joined(response_frame(1, value))[HEADER_BYTES:])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(payload)))
    with suppress(FrameError):
        parser(bytes(payload[:end]))


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "{}{}", '"a"', "[]", '{"a": ' + "9" * 5000 + "}", "\x00"])
def test_control_payloads_that_are_no_objects(text: str) -> None:
    with pytest.raises(FrameError):
        parse_control(text.encode())


@pytest.mark.parametrize("text", ["{}", '{"code": "NOPE", "message": "m"}', '{"code": []}', '{"code": "INTERNAL"}'])
def test_errors_without_code_or_message(text: str) -> None:
    with pytest.raises(FrameError):
        parse_error(text.encode())


def test_headers_of_other_versions_types_and_sizes() -> None:
    good = pack_header(FrameType.PING, 1, 0)
    for bad in (
        b"XX" + good[2:],
        good[:2] + b"\x01" + good[3:],
        good[:3] + b"\xff" + good[4:],
        good[:-1],
        pack_header(FrameType.RUN, 1, 2**40),
    ):
        with pytest.raises(FrameError):
            unpack_header(bad)
    with pytest.raises(FrameError):
        unpack_header(pack_header(FrameType.RUN, 1, 101), max_payload_bytes=100)
