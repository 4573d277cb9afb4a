"""Models of rows and columns without a framework: how tensors become features, and answers outputs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import Internal, InvalidArgument, ResourceExhausted, RoostError
from roost.core.tensors import Tensor, TensorSpec, from_array, to_array
from roost.runtimes.protocol import LoadSpec, RunHandle
from roost.runtimes.tabular import Estimator, TabularModel

Rows = Sequence[tuple[str, str, Sequence[int]]]


def sums(features: Any) -> npt.NDArray[Any]:
    total: npt.NDArray[Any] = features.sum(axis=1)
    return total


def pairs(features: Any) -> npt.NDArray[Any]:
    return np.stack((features[:, 0], features[:, -1]), axis=1)


SUMS = Estimator({"predict": sums, "predict_proba": pairs}, width=3)


def model(estimator: Estimator = SUMS, inputs: Rows = (), outputs: Rows = ()) -> TabularModel:
    options = {"roost.inputs": json.dumps(inputs), "roost.outputs": json.dumps(outputs)}
    return TabularModel(estimator, LoadSpec("/models/m/1/model.x", "/models/m/1", options=options))


def run(served: TabularModel, inputs: Mapping[str, Any], *outputs: str, datatype: str = "FP64") -> dict[str, Any]:
    tensors = [
        from_array(name, "BYTES" if np.asarray(value).dtype.kind in "OU" else datatype, np.asarray(value))
        for name, value in inputs.items()
    ]
    answers = served.run(tensors, outputs, RunHandle())
    return {tensor.name: to_array(tensor).tolist() for tensor in answers}


def test_without_a_configuration_the_model_speaks_for_itself() -> None:
    served = model()
    assert served.signature.inputs == (TensorSpec("input-0", "FP64", (-1, 3), lenient=True),)
    assert served.signature.outputs == (
        TensorSpec("predict", "FP64", (-1,)),
        TensorSpec("predict_proba", "FP64", (-1, 2), optional=True),
    )


def test_what_costs_more_comes_only_to_those_who_ask() -> None:
    rows = {"input-0": [[1.0, 2.0, 3.0]]}
    assert run(model(), rows) == {"predict": [6]}
    assert run(model(), rows, "predict_proba", "predict") == {"predict_proba": [[1, 3]], "predict": [6]}
    both = model(outputs=[("predict", "", []), ("predict_proba", "", [])])
    assert not any(spec.optional for spec in both.signature.outputs)
    assert run(both, rows) == {"predict": [6], "predict_proba": [[1, 3]]}


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([("output-0", "", [])], [("output-0", "FP64", (-1,))]),
        ([("output-0", "FP32", [-1, 1])], [("output-0", "FP32", (-1, 1))]),
        ([("predict_proba", "FP32", [-1, 2])], [("predict_proba", "FP32", (-1, 2))]),
        ([("scores", "", []), ("predict", "", [])], [("scores", "FP64", (-1, 2)), ("predict", "FP64", (-1,))]),
    ],
)
def test_declared_outputs_are_called_as_declared(outputs: Rows, expected: list[tuple[Any, ...]]) -> None:
    specs = model(outputs=outputs).signature.outputs
    assert [(spec.name, spec.datatype, spec.shape) for spec in specs] == expected


@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_columns_are_the_matrix(rows: int, width: int, data: st.DataObject) -> None:
    matrix = np.arange(rows * width, dtype=np.float64).reshape(rows, width)
    names = data.draw(st.permutations([f"c{i}" for i in range(width)]))
    known = tuple(f"c{i}" for i in range(width))
    estimator = Estimator({"predict": lambda features: features @ np.arange(1.0, width + 1)}, width, known)
    whole = run(model(estimator), {"input-0": matrix})
    inputs = [(name, "FP64", data.draw(st.sampled_from(([-1], [-1, 1])))) for name in names]
    given_columns = {name: matrix[:, int(name[1:])].reshape([rows, *shape[1:]]) for name, _, shape in inputs}
    if width > 1:
        assert run(model(estimator, inputs), given_columns) == whole


def test_texts_are_given_as_a_list() -> None:
    estimator = Estimator({"predict": lambda texts: np.array([len(text) for text in texts])}, is_text=True)
    served = model(estimator)
    assert served.signature.inputs == (TensorSpec("input-0", "BYTES", (-1,), lenient=True),)
    assert run(served, {"input-0": ["größer", ""]}) == {"predict": [6, 0]}


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="pandas is not installed")
def test_columns_of_different_datatypes_are_a_frame() -> None:
    estimator = Estimator({"predict": lambda frame: frame["n"] * 2 + frame["town"].str.len()}, 2, ("town", "n"))
    inputs = [("n", "INT64", [-1, 1]), ("town", "BYTES", [-1, 1])]
    assert run(model(estimator, inputs), {"n": [[1], [2]], "town": [["Ulm"], ["Bonn"]]}, datatype="INT64") == {
        "predict": [5, 8]
    }


def test_a_model_that_takes_no_zeros_is_what_its_classes_say() -> None:
    def refuse(features: Any) -> Any:
        if not features.all():
            raise ValueError("zero is no category")
        return np.array(["yes"] * len(features))

    served = model(Estimator({"predict": refuse}, width=1, classes=np.array(["no", "yes"])))
    assert served.signature.outputs == (TensorSpec("predict", "BYTES", (-1,)),)
    assert run(served, {"input-0": [[1.0]]}) == {"predict": [b"yes"]}


def test_answers_of_several_targets_and_sparse_ones_are_arrays() -> None:
    class Sparse:
        def toarray(self) -> npt.NDArray[Any]:
            return np.eye(2)

    methods = {"predict": lambda rows: [np.ones((len(rows), 2))] * 3, "transform": lambda rows: Sparse()}
    served = model(Estimator(methods, width=1))
    assert [spec.shape for spec in served.signature.outputs] == [(-1, 3, 2), (-1, 2)]


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        ([("a", "", [-1]), ("b", "", [-1])], [], "declares 2 inputs, one for each feature, but the model takes 3"),
        ([("a", "", [-1, 3]), ("b", "", [-1]), ("c", "", [-1])], [], r"those have the shape \[rows, 1\]"),
        ([("a", "BF16", [-1, 3])], [], "features can't be BF16"),
        ([("a", "FP7", [-1, 3])], [], "datatype 'FP7', which there is not"),
        ([], [("a", "", []), ("b", "", []), ("c", "", [])], "output 'c' is in the config, but the model has only"),
        ([], [("predict", "BYTES", [-1])], "says BYTES, the model gives FP64"),
        ([], [("predict", "INT64", [-1])], "says INT64, the model gives FP64"),
    ],
)
def test_a_configuration_that_can_not_be_true_is_refused(inputs: Rows, outputs: Rows, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        model(inputs=inputs, outputs=outputs)


def test_columns_must_be_the_features() -> None:
    estimator = Estimator({"predict": sums}, 2, ("a", "b"))
    with pytest.raises(InvalidArgument, match="has a feature 'b', but the config declares no such input"):
        model(estimator, [("a", "", [-1]), ("c", "", [-1])])


@pytest.mark.parametrize(
    ("tensors", "outputs", "reason"),
    [
        ([], [], "input 'input-0' is missing"),
        ([("input-0", (1, 3)), ("b", (1, 3))], [], "unexpected input 'b'"),
        ([("input-0", (1, 2))], [], "has 2 features a row, but the model takes 3"),
        ([("input-0", (3,))], [], r"but rows of features are \[rows, features\]"),
        ([("input-0", (1, 3))], ["transform"], "unexpected output 'transform'; the model has predict, predict_proba"),
    ],
)
def test_bad_requests(tensors: list[tuple[str, tuple[int, ...]]], outputs: list[str], reason: str) -> None:
    inputs: list[Tensor] = [from_array(name, "FP64", np.ones(shape)) for name, shape in tensors]
    with pytest.raises(InvalidArgument, match=reason):
        model().run(inputs, outputs, RunHandle())


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ValueError("/models/m/1/x: NaN"), InvalidArgument("x: NaN")),
        (AttributeError("no such thing"), Internal("the model failed: no such thing")),
        (MemoryError(), ResourceExhausted("not enough memory to run the model")),
    ],
)
def test_whose_fault_a_failure_is(failure: Exception, expected: RoostError) -> None:
    def fail(features: Any) -> Any:
        if features.any():
            raise failure
        return features[:, 0]

    with pytest.raises(type(expected), match=expected.message):
        run(model(Estimator({"predict": fail}, width=1)), {"input-0": [[1.0]]})
