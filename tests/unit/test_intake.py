"""The quick check of requests, against the full one."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.core.requests import InferRequest, RequestContext, RequestedOutput
from roost.core.tensors import DATATYPES, Signature, Tensor, TensorSpec, pack_bytes
from roost.router.intake import MAX_SHAPES, Intake, intake_of
from roost.router.places import ARENA_FROM_BYTES
from roost.router.validation import Contract

OUTPUTS = (TensorSpec("y", "FP32", (-1,)), TensorSpec("z", "FP32", (-1,)))
SIGNATURES = {
    "fixed": Signature((TensorSpec("a", "INT32", (-1, 2)), TensorSpec("b", "UINT8", (-1, 3))), OUTPUTS),
    "free": Signature((TensorSpec("a", "INT32", (-1, -1)), TensorSpec("b", "UINT8", (-1, -1))), OUTPUTS),
    "optional": Signature((TensorSpec("a", "INT32", (-1, 2)), TensorSpec("b", "UINT8", (-1, 3), True)), OUTPUTS),
    "flags": Signature((TensorSpec("a", "BOOL", (-1, 2)),), OUTPUTS),
    "strings": Signature((TensorSpec("a", "BYTES", (-1, 1)),), OUTPUTS),
    "none": Signature((), OUTPUTS),
    "lenient": Signature((TensorSpec("a", "INT32", (-1, 2), lenient=True),), OUTPUTS),
    "asked": Signature((TensorSpec("a", "INT32", (-1, 2)),), (OUTPUTS[0], TensorSpec("z", "FP32", (-1,), True))),
}


@st.composite
def tensors(draw: st.DrawFn, name: str) -> Tensor:
    datatype = draw(st.sampled_from(["INT32", "UINT8", "UINT8", "BOOL", "BYTES"]))
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=0, max_size=3)))
    count = math.prod(shape) + draw(st.sampled_from([0, 0, 0, 1]))
    if datatype == "BYTES":
        return Tensor(name, datatype, shape, pack_bytes([b"x"] * count))
    data = bytes(count * DATATYPES[datatype].itemsize)
    form = draw(st.sampled_from([bytes, memoryview, bytearray]))
    return Tensor(name, datatype, shape, form(data))


REQUESTS = st.builds(
    lambda names, made, outputs, parameters: InferRequest(
        "m",
        "",
        RequestContext(time.monotonic()),
        [made[name] for name in names],
        [RequestedOutput(name) for name in outputs],
        parameters=parameters,
    ),
    st.sampled_from(["ab", "ab", "ba", "a", "", "aa", "abc"]),
    st.fixed_dictionaries({name: tensors(name) for name in "abc"}),
    st.sampled_from(["", "", "y", "zy", "q"]),
    st.sampled_from([{}, {}, {"mode": 1}, {"mode": True}]),
)


@given(st.sampled_from(sorted(SIGNATURES)), st.sampled_from([0, 1, 3]), st.lists(REQUESTS, max_size=12))
def test_what_passes_quickly_passes_in_full_and_is_the_same(
    kind: str, max_batch_size: int, requests: list[InferRequest]
) -> None:
    contract = Contract("m", SIGNATURES[kind], max_batch_size)
    intake = Intake(SIGNATURES[kind], max_batch_size, batches=max_batch_size > 1)
    for request in [*requests, *requests]:
        quick = intake.quick(request)
        try:
            contract.check(request)
        except InvalidArgument:
            assert quick is None
            continue
        taken = intake.measure(request)
        assert quick is None or quick == taken
        rows, _, nbytes = taken
        assert nbytes == sum(memoryview(tensor.data).nbytes for tensor in request.inputs)
        assert rows == (request.inputs[0].shape[0] or 1 if max_batch_size > 1 and request.inputs else 1)


def request(**shapes: tuple[int, ...]) -> InferRequest:
    types = {"a": "INT32", "b": "UINT8"}
    made = [
        Tensor(name, types[name], shape, bytes(math.prod(shape) * DATATYPES[types[name]].itemsize))
        for name, shape in shapes.items()
    ]
    return InferRequest("m", "", RequestContext(0.0), made)


def test_the_second_of_a_kind_passes_quickly() -> None:
    intake = Intake(SIGNATURES["fixed"], 8, batches=True)
    assert intake.quick(request(a=(2, 2), b=(2, 3))) is None
    taken = intake.measure(request(a=(2, 2), b=(2, 3)))
    assert intake.quick(request(a=(2, 2), b=(2, 3))) == taken
    assert intake.quick(request(a=(3, 2), b=(3, 3))) is None


@pytest.mark.parametrize("kind", ["fixed", "free"])
def test_keys_are_equal_for_what_may_share_a_batch(kind: str) -> None:
    intake = Intake(SIGNATURES[kind], 8, batches=True)
    one, two, other = (
        intake.measure(made)
        for made in (request(a=(1, 2), b=(1, 3)), request(b=(4, 3), a=(4, 2)), request(a=(1, 5), b=(1, 3)))
    )
    assert one[1] == two[1]
    assert (one[1] == other[1]) is (kind == "fixed")  # which the full check would have refused
    asked = request(a=(1, 2), b=(1, 3))
    asked.parameters = {"x": 1}
    said = request(a=(1, 2), b=(1, 3))
    said.parameters = {"x": True}
    assert len({intake.measure(made)[1] for made in (asked, said, request(a=(1, 2), b=(1, 3)))}) == 3


def test_who_asks_for_more_or_sends_other_numbers_shares_no_batch_with_others() -> None:
    intake = Intake(SIGNATURES["asked"], 8, batches=True)
    plain, named, more = request(a=(1, 2)), request(a=(1, 2)), request(a=(1, 2))
    named.outputs = [RequestedOutput("y")]
    more.outputs = [RequestedOutput("y"), RequestedOutput("z")]
    keys = [intake.measure(made)[1] for made in (plain, named, more)]
    assert keys[0] == keys[1] != keys[2]
    assert intake.quick(plain) == intake.quick(named) == (1, keys[0], 8)
    assert intake.quick(more) is None
    lenient = Intake(SIGNATURES["lenient"], 8, batches=True)
    other = InferRequest("m", "", RequestContext(0.0), [Tensor("a", "UINT8", (1, 2), b"12")])
    assert lenient.measure(request(a=(1, 2)))[1] != lenient.measure(other)[1]
    assert lenient.quick(other) is None


def test_what_is_only_for_those_who_ask_gets_a_place_only_then() -> None:
    outputs = tuple(TensorSpec(name, "FP32", (-1, ARENA_FROM_BYTES), name == "z") for name in "yz")
    intake = Intake(Signature((), outputs), 8, batches=True)
    assert [place.name for place in intake.places(1, ())] == ["y"]
    assert [place.name for place in intake.places(1, ("z",))] == ["z"]


def test_the_memory_of_shapes_is_bounded() -> None:
    intake = Intake(SIGNATURES["free"], 0, batches=False)
    for size in range(MAX_SHAPES + 10):
        intake.measure(request(a=(1, size), b=(1, 1)))
    last = request(a=(1, MAX_SHAPES + 9), b=(1, 1))
    assert intake.quick(last) is not None
    assert intake.quick(request(a=(1, 0), b=(1, 1))) is None


def test_large_outputs_of_known_shape_have_a_place() -> None:
    wide = ARENA_FROM_BYTES // 4
    outputs = (
        TensorSpec("large", "FP32", (-1, wide)),
        TensorSpec("free", "FP32", (-1, -1)),
        TensorSpec("small", "FP32", (-1, wide // 4)),
        TensorSpec("text", "BYTES", (-1, wide)),
    )
    batched = Intake(Signature((), outputs), 8, batches=True)
    assert [(place.name, place.shape) for place in batched.places(1, ())] == [("large", (1, wide))]
    assert [place.name for place in batched.places(4, ())] == ["large", "small"]
    assert [place.name for place in batched.places(4, ("small", "text"))] == ["small"]
    single = Intake(Signature((), outputs), 0, batches=False)
    assert not single.places(1, ()), "nobody knows how many rows it has"


def test_models_with_equal_signatures_share_what_is_known_of_their_requests() -> None:
    first, second = (Signature(tuple(SIGNATURES["fixed"].inputs), ()) for _ in range(2))
    assert intake_of(first, 8, batches=True) is intake_of(second, 8, batches=True)
    others = [
        intake_of(first, 4, batches=True),
        intake_of(first, 8, batches=False),
        intake_of(Signature((), ()), 8, batches=True),
    ]
    assert intake_of(first, 8, batches=True) not in others
