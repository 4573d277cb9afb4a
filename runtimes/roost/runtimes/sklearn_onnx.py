"""scikit-learn's models in the form of ONNX, which answers in microseconds where scikit-learn takes a millisecond.

A model is converted if its owner asks for that, and the result is used only where it answers as the model does and is
faster. Both are asked about rows of many sizes, and about rows around the thresholds of the model's trees; labels have
to be equal, numbers as equal as single precision allows. Rows with missing values are refused where the model refuses
them, and where the two do not agree on them.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from roost.core.errors import Unimplemented
from roost.runtimes.sklearn_parts import thresholds_of
from roost.runtimes.tabular import Estimator, Method, as_array

_INPUT = "X"
_FACTS = "roost"
_OPSETS = {"": 18, "ai.onnx.ml": 3}
_ROWS = 256
_SCALES = (1.0, 0.01, 100.0)
_MAX_THRESHOLDS = 4096
_TOLERANCE = 1e-5
_TIMED_ROWS = (1, 32)
_TRIES = 5
_SEED = 4
_TEXT_KINDS = "OUS"

Rows = npt.NDArray[np.float64]


def convert(model: Any, estimator: Estimator) -> bytes:
    """Converts a model; what comes back is for ``estimator_of_onnx``.

    Args:
        model: A fitted estimator of scikit-learn.
        estimator: What it takes and gives.

    Raises:
        Unimplemented: If it can't be converted, or the result does not answer the same or is no faster.
    """
    if estimator.width < 1 or estimator.is_text or estimator.by_name:
        raise Unimplemented("only models of one matrix of numbers are converted")
    rows = list(_rows(model, estimator.width))
    reason = "it can't be converted"
    for is_double in (True, False):
        try:
            onnx_model = _converted(model, estimator.width, is_double)
            facts = _facts_of(onnx_model, estimator, rows[0]) | {"is_double": is_double, "is_finite": False}
            other = estimator_of_onnx(_with_facts(onnx_model, facts), threads=1)
            _judge(estimator, other, rows)
            return _with_facts(onnx_model, facts | {"is_finite": not _agree_on_holes(estimator, other, rows[0])})
        except Exception as error:  # a converter that meets what it does not know raises anything
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise Unimplemented(reason)


def estimator_of_onnx(data: bytes, threads: int) -> Estimator:
    """What ``convert`` has made, ready to be asked."""
    import onnxruntime
    from roost.runtimes.onnx_session import session_options

    session = onnxruntime.InferenceSession(data, session_options(threads, {}), providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map[_FACTS])
    dtype = np.dtype(np.float64 if facts["is_double"] else np.float32)

    def method(output: str, answer: Mapping[str, Any]) -> Method:
        of, rank, finite = np.dtype(answer["dtype"]), int(answer["rank"]), bool(facts["is_finite"])

        def ask(features: npt.NDArray[Any]) -> npt.NDArray[Any]:
            if finite and not np.isfinite(features).all():
                raise ValueError("Input X contains NaN or infinity.")  # as the model says it
            found = session.run([output], {_INPUT: features.astype(dtype, copy=False)})[0]
            made: npt.NDArray[Any] = (found.reshape(-1) if rank == 1 else found).astype(of, copy=False)
            return made

        return ask

    return Estimator(
        {name: method(answer["output"], answer) for name, answer in facts["methods"].items()},
        width=int(facts["width"]),
        names=tuple(facts["names"]),
        errors=(RuntimeError,),
    )


class _Unequal(Exception):
    """Why a conversion is of no use."""


def _converted(model: Any, width: int, is_double: bool) -> Any:
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    kind = DoubleTensorType if is_double else FloatTensorType
    options = {"zipmap": False} if hasattr(model, "predict_proba") else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return skl2onnx.to_onnx(
            model, initial_types=[(_INPUT, kind([None, width]))], options=options, target_opset=_OPSETS
        )


def _with_facts(onnx_model: Any, facts: Mapping[str, Any]) -> bytes:
    """Writes into the model what is not in a graph."""
    from onnx.helper import set_model_props

    set_model_props(onnx_model, {_FACTS: json.dumps(facts)})
    data: bytes = onnx_model.SerializeToString()
    return data


def _facts_of(onnx_model: Any, estimator: Estimator, rows: Rows) -> dict[str, Any]:
    """Which output answers what, and in which form, besides what is known of the model's features."""
    outputs = [output.name for output in onnx_model.graph.output]
    if len(outputs) < len(estimator.methods):
        raise _Unequal("its ONNX form does not answer all that it does")
    methods = {}
    for output, (name, ask) in zip(outputs, estimator.methods.items(), strict=False):
        answer = as_array(ask(rows[:2]))
        dtype = "O" if answer.dtype.kind in _TEXT_KINDS else answer.dtype.str
        methods[name] = {"output": output, "dtype": dtype, "rank": answer.ndim}
    return {"methods": methods, "names": estimator.names, "width": estimator.width}


def _judge(own: Estimator, other: Estimator, samples: list[Rows]) -> None:
    """Compares answers and times.

    Raises:
        _Unequal: If the other one is of no use.
    """
    for rows in samples:
        for name, ask in own.methods.items():
            if not _equal(as_array(ask(rows)), other.methods[name](rows)):
                raise _Unequal(f"its ONNX form answers '{name}' otherwise")
    name, ask = next(iter(own.methods.items()))
    for count in _TIMED_ROWS:
        rows = samples[0][:count]
        if _seconds(other.methods[name], rows) >= _seconds(ask, rows):
            raise _Unequal("its ONNX form is no faster")


def _agree_on_holes(own: Estimator, other: Estimator, rows: Rows) -> bool:
    """Whether both take missing values, and answer the same."""
    holed = np.where(np.random.default_rng(_SEED).random(rows.shape) < 1 / 4, np.nan, rows)
    try:
        return all(_equal(as_array(ask(holed)), other.methods[name](holed)) for name, ask in own.methods.items())
    except ValueError:
        return False


def _equal(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> bool:
    if expected.shape != found.shape:
        return False
    if expected.dtype.kind != "f":
        return bool(np.array_equal(expected, found))
    return bool(np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE))


def _seconds(ask: Callable[[Any], Any], rows: Rows) -> float:
    taken = []  # of the processor: others may have it most of the time
    for _ in range(_TRIES):
        started = time.thread_time()
        ask(rows)
        taken.append(time.thread_time() - started)
    return min(taken)


def _rows(model: Any, width: int) -> Iterator[Rows]:
    """Rows to compare answers to."""
    generator = np.random.default_rng(_SEED)
    for scale in _SCALES:
        yield generator.normal(scale=scale, size=(_ROWS, width))
    yield generator.integers(0, 3, size=(_ROWS, width)).astype(np.float64)
    for feature, threshold in _spread(list(thresholds_of(model))):
        near = threshold.astype(np.float32)
        for value in (near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))):
            rows = generator.normal(size=(len(feature), width))
            rows[np.arange(len(feature)), feature % width] = value
            yield rows


def _spread(found: list[tuple[npt.NDArray[np.int64], Rows]]) -> Iterator[tuple[npt.NDArray[np.int64], Rows]]:
    """Some of the thresholds, in one piece."""
    if found:
        features = np.concatenate([feature for feature, _ in found])
        thresholds = np.concatenate([threshold for _, threshold in found])
        step = -(-len(features) // _MAX_THRESHOLDS)
        yield features[::step], thresholds[::step]
