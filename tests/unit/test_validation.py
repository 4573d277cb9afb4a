"""Requests against signatures: what is refused says which tensor, what was expected and what came."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.core.requests import InferRequest, RequestContext, RequestedOutput
from roost.core.tensors import DATATYPES, SLICE_ELEMENTS, Signature, Tensor, TensorSpec, pack_bytes
from roost.router.validation import Contract, rows_of

SIMPLE = Signature(
    (TensorSpec("a", "INT32", (2, 3)), TensorSpec("b", "FP32", (-1,))), (TensorSpec("y", "FP32", (-1,)),)
)
BATCHED = Signature(
    (TensorSpec("a", "INT32", (-1, 3)), TensorSpec("b", "INT32", (-1, 1))), (TensorSpec("y", "FP32", (-1, 1)),)
)
TEXT = Signature((TensorSpec("s", "BYTES", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
OPTIONAL = Signature((TensorSpec("a", "INT8", (1,)), TensorSpec("o", "INT8", (1,), optional=True)), ())


def tensor(name: str, datatype: str, shape: tuple[int, ...], data: bytes | None = None) -> Tensor:
    if data is None:
        count = 1
        for dim in shape:
            count *= max(dim, 0)
        data = bytes(count * DATATYPES[datatype].itemsize)
    return Tensor(name, datatype, shape, data)


def request(*inputs: Tensor, outputs: tuple[str, ...] = (), id: str = "") -> InferRequest:
    wanted = [RequestedOutput(name) for name in outputs]
    return InferRequest("m", "", RequestContext(0.0), list(inputs), wanted, id)


def refusal(signature: Signature, asked: InferRequest, max_batch_size: int = 0) -> str:
    with pytest.raises(InvalidArgument) as caught:
        Contract("m", signature, max_batch_size).check(asked)
    return caught.value.message


A, B = tensor("a", "INT32", (2, 3)), tensor("b", "FP32", (5,))


def test_a_good_request_passes_in_any_order_of_inputs() -> None:
    contract = Contract("m", SIMPLE, 0)
    contract.check(request(A, B))
    contract.check(request(B, A, outputs=("y",)))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (request(A, B, tensor("c", "INT8", (1,))), ["unexpected inference input 'c' for model 'm'", "'a', 'b'"]),
        (request(A, B, outputs=("z",)), ["unexpected inference output 'z' for model 'm'", "'y'"]),
        (request(A), ["expected 2 inputs but got 1 inputs for model 'm'", "Got input(s) ['a']", "['b']"]),
        (request(), ["expected 2 inputs but got 0 inputs", "missing required input(s) ['a', 'b']"]),
        (request(A, A, B), ["input 'a' already exists in request"]),
        (request(tensor("a", "INT64", (2, 3)), B), ["input 'a' data-type is 'INT64'", "model 'm' expects 'INT32'"]),
        (request(Tensor("a", "FP99", (2, 3), b""), B), ["input 'a' data-type is 'FP99'", "expects 'INT32'"]),
        (request(tensor("a", "INT32", (3, 2)), B), ["shape for input 'a' for model 'm'", "Expected [2,3], got [3,2]"]),
        (request(tensor("a", "INT32", (6,)), B), ["input 'a'", "Expected [2,3], got [6]"]),
        (request(tensor("a", "INT32", ()), B), ["input 'a'", "Expected [2,3], got []"]),
        (request(A, tensor("b", "FP32", (-1,))), ["input 'b' for model 'm'", "[-1]", "negative"]),
        (request(A, tensor("b", "FP32", (2**60,), b"")), ["input 'b' for model 'm'", "too many elements"]),
        (request(A, tensor("b", "FP32", (5,), bytes(19))), ["size mismatch for input 'b'", "Expected 20, got 19"]),
        (request(A, tensor("b", "FP32", (5,), bytes(24))), ["size mismatch for input 'b'", "Expected 20, got 24"]),
        (request(A, tensor("b", "FP32", (0,), bytes(4))), ["input 'b'", "Expected 0, got 4"]),
    ],
)
def test_bad_requests(asked: InferRequest, said: list[str]) -> None:
    message = refusal(SIMPLE, asked)
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (request(tensor("a", "INT32", ()), tensor("b", "INT32", (1, 1))), ["input 'a' has no shape", "'m'"]),
        (
            request(tensor("a", "INT32", (2, 3)), tensor("b", "INT32", (1, 1))),
            ["input 'b' batch size does not match", "'m': 1 and 2"],
        ),
        (
            request(tensor("a", "INT32", (9, 3)), tensor("b", "INT32", (9, 1))),
            ["batch-size must be <= 8 for 'm', got 9"],
        ),
        (
            request(tensor("a", "INT32", (30,)), tensor("b", "INT32", (30, 1))),
            ["got 30", "[30] has no batch dimension, expected [-1, 3]", "[1, 30]"],
        ),
        (
            request(tensor("a", "INT32", (2, 4)), tensor("b", "INT32", (2, 1))),
            ["input 'a'", "Expected [-1,3], got [2,4]", "max_batch_size is 8"],
        ),
    ],
)
def test_bad_batches(asked: InferRequest, said: list[str]) -> None:
    message = refusal(BATCHED, asked, max_batch_size=8)
    for part in said:
        assert part in message


FREE = Signature((TensorSpec("x", "FP32", (-1, -1, -1)),), ())
FLAGS = Signature((TensorSpec("x", "BOOL", (-1,)),), ())


@pytest.mark.parametrize("shape", [(2**31, 2**31, 0), (0, 2**60, 1), (2**62, 4, 2**62)])
def test_shapes_that_no_array_can_have_are_refused_even_without_elements(shape: tuple[int, ...]) -> None:
    assert "too many elements" in refusal(FREE, request(Tensor("x", "FP32", shape, b"")))


def test_shapes_without_elements_pass() -> None:
    Contract("m", FREE, 0).check(request(Tensor("x", "FP32", (0, 1000, 0), b"")))


def test_a_bool_is_zero_or_one() -> None:
    Contract("m", FLAGS, 0).check(request(Tensor("x", "BOOL", (4,), b"\0\1\1\0")))
    message = refusal(FLAGS, request(Tensor("x", "BOOL", (3,), memoryview(b"\0\2\1"))))
    assert "input 'x' for model 'm' is BOOL" in message


@pytest.mark.parametrize(
    ("expected", "got", "told"),
    [
        ((-1, 3), (3,), True),
        ((1, -1), (3,), True),
        ((1,), (), True),
        ((2, 3), (3,), False),
        ((-1, 3), (4,), False),
        ((-1, 3), (1, 4), False),
        ((), (1,), False),
    ],
)
def test_who_forgets_the_batch_dimension_is_told(expected: tuple[int, ...], got: tuple[int, ...], told: bool) -> None:
    signature = Signature((TensorSpec("x", "FP32", expected),), ())
    message = refusal(signature, request(tensor("x", "FP32", got)))
    assert ("The first dimension, of the batch, is missing" in message) is told


def test_batches_up_to_the_limit_pass_and_are_counted() -> None:
    contract = Contract("m", BATCHED, 8)
    for rows in (1, 8):
        asked = request(tensor("a", "INT32", (rows, 3)), tensor("b", "INT32", (rows, 1)))
        contract.check(asked)
        assert rows_of(asked, 8) == rows
    assert rows_of(request(A, B), 0) == 1
    assert rows_of(request(), 8) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (pack_bytes([b"x"]), "expected 2 string elements for inference input 's' for model 'm', got 1"),
        (pack_bytes([b"x"] * 3), "unexpected number of string elements 3, expecting 2"),
        (struct.pack("<I", 9) + b"abc", "announces 9 bytes, but only 3"),
        (b"\1\0", "incomplete string length indicator"),
        (b"", "got 0"),
    ],
)
def test_bad_strings(data: bytes, said: str) -> None:
    message = refusal(TEXT, request(Tensor("s", "BYTES", (2,), data)))
    assert said in message
    assert "input 's'" in message
    assert "2 string elements" in message


def test_strings_pass() -> None:
    Contract("m", TEXT, 0).check(request(Tensor("s", "BYTES", (2,), pack_bytes([b"", b"abc"]))))


def test_millions_of_strings_are_looked_at_in_steps() -> None:
    count = 3 * SLICE_ELEMENTS
    contract = Contract("m", TEXT, 0)
    assert len(list(contract.checking(request(Tensor("s", "BYTES", (count,), bytes(4 * count)))))) == 3
    assert not list(contract.checking(request(Tensor("s", "BYTES", (1,), bytes(4)))))
    said = refusal(TEXT, request(Tensor("s", "BYTES", (count,), bytes(4 * count + 4))))
    assert f"{count + 1}, expecting {count}" in said
    said = refusal(TEXT, request(Tensor("s", "BYTES", (count,), bytes(4 * count - 4))))
    assert f"expected {count} string elements for inference input 's' for model 'm', got {count - 1}" in said


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({f"p{i}": 1 for i in range(1001)}, "1001 parameters are over the limit of 1000"),
        ({"p": "\xe9" * (1 << 20)}, "send large values as tensors"),
    ],
)
def test_parameters_are_few_and_small(parameters: dict[str, int | str], said: str) -> None:
    asked = request(A, B)
    asked.parameters = parameters
    assert said in refusal(SIMPLE, asked)


def test_an_optional_input_may_be_left_out_or_given_and_a_needed_one_not() -> None:
    contract = Contract("m", OPTIONAL, 0)
    a, o = tensor("a", "INT8", (1,)), tensor("o", "INT8", (1,))
    contract.check(request(a))
    contract.check(request(a, o))
    assert "expected number of inputs between 1 and 2 but got 1" in refusal(OPTIONAL, request(o))


def test_a_lenient_input_takes_any_name_and_numbers_of_any_datatype() -> None:
    numbers = Signature((TensorSpec("x", "FP64", (-1, 2), lenient=True),), ())
    for datatype in ("FP64", "FP32", "INT8", "BOOL"):
        asked = request(tensor("input", datatype, (1, 2)))
        Contract("m", numbers, 0).check(asked)
        assert asked.inputs[0].name == "x"
    for datatype in ("BF16", "BYTES"):
        assert "expects 'FP64'" in refusal(numbers, request(Tensor("x", datatype, (1, 2), b"")))
    texts = Signature((TensorSpec("x", "BYTES", (-1,), lenient=True),), ())
    Contract("m", texts, 0).check(request(Tensor("input", "BYTES", (1,), pack_bytes([b"text"]))))
    assert "expects 'BYTES'" in refusal(texts, request(tensor("x", "INT8", (1,))))


def test_the_clients_id_is_named() -> None:
    assert refusal(SIMPLE, request(A, id="42")).startswith("[request id: 42] ")
    assert refusal(SIMPLE, request(A)).startswith("[request id: <id_unknown>] ")


NAMES = st.sampled_from(["a", "b", "s", "o", "x", ""])
TENSORS = st.builds(
    Tensor,
    NAMES,
    st.sampled_from(["INT32", "FP32", "BYTES", "INT8", "nope", ""]),
    st.lists(st.sampled_from([-(2**70), -1, 0, 1, 2, 3, 2**31, 2**70]), max_size=40).map(tuple),
    st.binary(max_size=30),
)


@given(
    st.sampled_from([SIMPLE, BATCHED, TEXT, OPTIONAL]),
    st.integers(0, 3),
    st.lists(TENSORS, max_size=4),
    st.lists(NAMES, max_size=2),
)
def test_nothing_but_invalid_argument_is_raised(
    signature: Signature, max_batch_size: int, inputs: list[Tensor], outputs: list[str]
) -> None:
    with contextlib.suppress(InvalidArgument):
        Contract("m", signature, max_batch_size).check(request(*inputs, outputs=tuple(outputs)))
