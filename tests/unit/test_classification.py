"""The classification extension, against sorting in plain Python."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.core.requests import InferRequest, RequestContext, RequestedOutput
from roost.core.tensors import DATATYPES, Signature, Tensor, TensorSpec, from_array, unpack_bytes
from roost.router.classification import MAX_ELEMENTS, Classes, wanted_counts

SCORES = np.array([[0.1, 0.9, 0.5, 0.3]])
LABELS = ("cat", "dog", "fish", "bird")


def bf16(array: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def classified(tensor: Tensor, classes: Classes) -> tuple[tuple[int, ...], list[str]]:
    made = classes.classify(tensor)
    assert (made.name, made.datatype) == (tensor.name, "BYTES")
    return made.shape, [text.decode() for text in unpack_bytes(made.data)]


@pytest.mark.parametrize(
    ("datatype", "array", "count", "labels", "shape", "texts"),
    [
        ("FP32", SCORES, 2, LABELS, (1, 2), ["0.900000:1:dog", "0.500000:2:fish"]),
        ("FP64", SCORES, 9, (), (1, 4), ["0.900000:1", "0.500000:2", "0.300000:3", "0.100000:0"]),
        ("FP16", SCORES, 1, LABELS, (1, 1), ["0.899902:1:dog"]),
        ("BF16", bf16(SCORES), 1, LABELS[:1], (1, 1), ["0.898438:1"]),
        ("FP32", np.array([[1, 2], [4, 3]]), 1, ("a", ""), (2, 1), ["2.000000:1", "4.000000:0:a"]),
        (
            "FP32",
            np.array([math.nan, -math.inf, 1, math.nan]),
            4,
            (),
            (4, 1),
            ["nan:0", "-inf:0", "1.000000:0", "nan:0"],
        ),
        ("FP32", np.zeros((2, 0)), 3, (), (2, 0), []),
        ("FP32", np.zeros((0, 5)), 3, (), (0, 3), []),
        ("INT32", np.array([[3, 16, -5]]), 1, (), (1, 1), ["16:1"]),
        ("INT8", np.array([[-128, -1, -128]]), 3, (), (1, 3), ["-1:1", "-128:0", "-128:2"]),
        ("INT64", np.array([[-(2**63), 2**63 - 1, 0]]), 2, (), (1, 2), [f"{2**63 - 1}:1", "0:2"]),
        (
            "UINT64",
            np.array([[2**64 - 1, 1, 2**64 - 1]], np.uint64),
            2,
            (),
            (1, 2),
            [f"{2**64 - 1}:{i}" for i in (0, 2)],
        ),
        ("UINT8", np.array([[0, 255]]), 2, (), (1, 2), ["255:1", "0:0"]),
        ("BOOL", np.array([[False, True, True]]), 3, (), (1, 3), ["1:1", "1:2", "0:0"]),
    ],
)
def test_the_highest_values_come_first(
    datatype: str,
    array: npt.NDArray[Any],
    count: int,
    labels: tuple[str, ...],
    shape: tuple[int, ...],
    texts: list[str],
) -> None:
    tensor = from_array("y", datatype, array)
    assert classified(tensor, Classes({"y": count}, {"y": labels}, batched=True)) == (shape, texts)


def test_without_a_batch_all_elements_are_one_row() -> None:
    tensor = from_array("y", "INT32", np.array([[1, 2], [4, 3]]))
    assert classified(tensor, Classes({"y": 3})) == ((3,), ["4:2", "3:3", "2:1"])
    assert classified(from_array("y", "INT32", np.array(7)), Classes({"y": 3}, batched=True)) == ((1,), ["7:0"])


@given(
    st.sampled_from([datatype for datatype in DATATYPES if datatype not in ("BYTES", "BF16")]),
    st.sampled_from([1, 7, 255, 256, 3000]),
    st.integers(1, 3),
    st.integers(1, 400),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_rows_of_all_lengths_are_ordered_as_sorting_does(
    datatype: str, length: int, rows: int, count: int, seed: int, with_nan: bool
) -> None:
    rng = np.random.default_rng(seed)
    array = rng.integers(0, rng.choice([2, 100]), (rows, length)).astype(DATATYPES[datatype].dtype)
    if with_nan and array.dtype.kind == "f":
        array[rng.random((rows, length)) < 0.3] = math.nan
    _, texts = classified(from_array("y", datatype, array), Classes({"y": count}, batched=True))
    expected = []
    for row in array.tolist():
        ordered = sorted(range(length), key=lambda i: (math.isnan(row[i]), 0 if math.isnan(row[i]) else -row[i], i))
        expected += ordered[:count]
    assert [int(text.rsplit(":", 1)[1]) for text in texts] == expected


def test_what_takes_long_is_known_before() -> None:
    classes = Classes({"y": 5}, batched=True)
    quick = from_array("y", "FP32", np.zeros((4, 1000), np.float32))
    long = from_array("y", "FP32", np.zeros((1, MAX_ELEMENTS), np.float32))
    other = Tensor("z", "FP32", (MAX_ELEMENTS,), b"")
    assert classes.is_quick([quick, other])
    assert not classes.is_quick([quick, long])
    assert classes.classify_all([other, quick])[0] is other


@pytest.mark.parametrize(("datatype", "shape"), [("BYTES", (4,)), ("UINT8", (MAX_ELEMENTS + 1,))])
def test_what_can_not_be_classified(datatype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match="output 'y'"):
        Classes({"y": 1}).classify(Tensor("y", datatype, shape, b""))


def test_only_outputs_asked_for_by_name_are_classified_and_strings_are_refused_before_the_run() -> None:
    signature = Signature((), (TensorSpec("y", "FP32", (-1,)), TensorSpec("s", "BYTES", (-1,))))
    request = InferRequest("m", "", RequestContext(0.0), [])
    request.outputs = [RequestedOutput("y", classification=3), RequestedOutput("s")]
    assert wanted_counts(request, signature) == {"y": 3}
    request.outputs[1].classification = 1
    with pytest.raises(InvalidArgument, match="output 's' is BYTES"):
        wanted_counts(request, signature)
