"""Models of rows and columns: what the adapters of scikit-learn, XGBoost and LightGBM have in common.

An adapter makes an ``Estimator`` of a model file; ``TabularModel`` serves it. The outputs are called as MLServer calls
them: ``predict``, ``predict_proba``, ``transform``. Of those the first one that the model has is what a request gets
that names no outputs; the others cost a computation of their own and are there for those who ask.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from roost.core.errors import Internal, InvalidArgument, ResourceExhausted
from roost.core.tensors import Signature, Tensor, TensorSpec, from_array
from roost.runtimes.failures import without_paths
from roost.runtimes.protocol import LoadSpec, RunHandle
from roost.runtimes.tabular_features import Features
from roost.runtimes.tabular_options import Declared, declared

PREDICT: Final = "predict"
PREDICT_PROBA: Final = "predict_proba"
TRANSFORM: Final = "transform"

Method: TypeAlias = Callable[[Any], Any]
"""Takes features as ``Features.of`` makes them and gives an array with as many rows."""

_PROBED_ROWS = 2
_HEAD_BYTES = 4096
_NAMES: Mapping[np.dtype[Any], str] = {
    np.dtype(layout): name
    for name, layout in {
        "BOOL": "?",
        "UINT8": "u1",
        "UINT16": "u2",
        "UINT32": "u4",
        "UINT64": "u8",
        "INT8": "i1",
        "INT16": "i2",
        "INT32": "i4",
        "INT64": "i8",
        "FP16": "f2",
        "FP32": "f4",
        "FP64": "f8",
    }.items()
}
_TEXT_KINDS = "OUS"
_ALSO_FAILURES = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Estimator:
    """A model as its framework has it.

    Attributes:
        methods: What it can be asked, by output; the first is the default one.
        width: How many features a row has; -1 if that is open.
        names: What the features are called; empty if nobody knows.
        by_name: Whether it finds features by their names, and so has to be given a data frame.
        is_text: Whether a row is one text instead of features.
        datatype: What features are, if the configuration does not say it.
        classes: What it tells apart; None if it does not.
        errors: The framework's own errors, which no input is to blame for.
    """

    methods: Mapping[str, Method]
    width: int = -1
    names: tuple[str, ...] = ()
    by_name: bool = False
    is_text: bool = False
    datatype: str = "FP64"
    classes: npt.NDArray[Any] | None = None
    errors: tuple[type[Exception], ...] = ()


@dataclass(frozen=True, slots=True)
class _Output:
    method: Method
    spec: TensorSpec


class TabularModel:
    """An instance of a model of rows and columns.

    Args:
        estimator: The model.
        spec: How it is loaded; its options have what the configuration declares.

    Raises:
        InvalidArgument: If the configuration declares what the model does not have, or it answers what no tensor holds.
    """

    def __init__(self, estimator: Estimator, spec: LoadSpec) -> None:
        self._root = spec.root
        self._errors: tuple[type[Exception], ...] = (*estimator.errors, *_ALSO_FAILURES)
        self._features = Features(estimator, declared(spec.options, "roost.inputs"))
        rows = declared(spec.options, "roost.outputs")
        self._outputs = {output.spec.name: output for output in self._all_outputs(estimator, rows)}
        self._default = [output for output in self._outputs.values() if not output.spec.optional]
        self.signature = Signature(self._features.specs, tuple(output.spec for output in self._outputs.values()))

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: RunHandle) -> Sequence[Tensor]:
        """Asks the model what is wanted of the rows, on the inputs' own memory where there is one matrix.

        A computation that has begun can't be stopped.

        Raises:
            InvalidArgument: If the inputs are to blame.
            ResourceExhausted: If memory is short.
            Internal: If the model fails for another reason.
        """
        wanted = [self._output(name) for name in outputs] if outputs else self._default
        features = self._features.of(inputs)
        run.begin_infer()
        answers = [self._ask(output.method, features) for output in wanted]
        run.end_infer()
        return [_tensor(output.spec, answer) for output, answer in zip(wanted, answers, strict=True)]

    def close(self) -> None:
        """Lets go of the model."""
        self._outputs = {}
        self._default = []

    def _output(self, name: str) -> _Output:
        found = self._outputs.get(name)
        if found is None:
            raise InvalidArgument(f"unexpected output '{name}'; the model has {', '.join(self._outputs)}")
        return found

    def _ask(self, method: Method, features: Any) -> Any:
        try:
            return method(features)
        except MemoryError:
            raise ResourceExhausted("not enough memory to run the model") from None
        except self._errors as error:
            raise Internal(f"the model failed: {self._reason(error)}") from error
        except (ValueError, TypeError) as error:
            # What frameworks say of features that they can't take: too few, not finite, no number.
            raise InvalidArgument(self._reason(error)) from error

    def _reason(self, error: Exception) -> str:
        return without_paths(str(error), self._root) or type(error).__name__

    def _all_outputs(self, estimator: Estimator, rows: Sequence[Declared]) -> Iterator[_Output]:
        """The declared outputs, all of which requests get; if there are none, those that the model has."""
        if not rows:
            for position, (name, method) in enumerate(estimator.methods.items()):
                datatype, shape = self._kind(estimator, name)
                yield _Output(method, TensorSpec(name, datatype, shape, optional=position > 0))
            return
        for row, name in zip(rows, _methods_of(rows, list(estimator.methods)), strict=True):
            datatype, shape = self._kind(estimator, name)
            datatype = _agreed(row, datatype)
            if len(row.shape) == 2 and len(shape) == 1 and row.shape[1] in (1, -1):
                shape = (*shape, 1)  # a column, as MLServer's clients know it
            yield _Output(estimator.methods[name], TensorSpec(row.name, datatype, shape))

    def _kind(self, estimator: Estimator, name: str) -> tuple[str, tuple[int, ...]]:
        """Datatype and shape of an output, as two rows of zeros get it.

        A model may take no zeros: then it is what its classes say, and else a number.
        """
        try:
            array = as_array(self._ask(estimator.methods[name], self._features.zeros(_PROBED_ROWS)))
            if array.shape[:1] == (_PROBED_ROWS,):
                return _datatype_of(array.dtype, name), (-1, *array.shape[1:])
        except (InvalidArgument, Internal):
            pass
        classes = estimator.classes
        if name == PREDICT:
            return _datatype_of(classes.dtype, name) if classes is not None else "FP64", (-1,)
        return "FP64", (-1, len(classes) if name == PREDICT_PROBA and classes is not None else -1)


def as_array(answer: Any) -> npt.NDArray[Any]:
    """What a model has answered as an array: frames, sparse matrices, and an array for each of several targets."""
    if isinstance(answer, list) and answer and isinstance(answer[0], np.ndarray):
        return np.stack(answer, axis=1)  # ValueError where targets have different numbers of classes
    if hasattr(answer, "toarray"):
        answer = answer.toarray()
    return np.asarray(answer)


def head_of(path: str) -> bytes:
    """How a model's file begins.

    Raises:
        InvalidArgument: If it can't be read, or is empty or no file.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise InvalidArgument(f"the model's file can't be read: {error.strerror}") from None
    if not head:
        raise InvalidArgument(f"the model's file '{os.path.basename(path)}' is empty")
    return head


def _methods_of(rows: Sequence[Declared], methods: list[str]) -> Iterator[str]:
    """The method behind each declared output: that of its name, else the next one that none is named after.

    KServe calls the only output ``output-0``, others call it as they like.
    """
    named = {row.name for row in rows}
    rest = iter([name for name in methods if name not in named])
    for row in rows:
        name = row.name if row.name in methods else next(rest, None)
        if name is None:
            raise InvalidArgument(f"output '{row.name}' is in the config, but the model has only {', '.join(methods)}")
        yield name


def _agreed(row: Declared, own: str) -> str:
    """The datatype of an output as it is declared, if the model's can become that without loss of its meaning."""
    if not row.datatype or row.datatype == own:
        return own
    if "BYTES" in (row.datatype, own) or (own.startswith("FP") and not row.datatype.startswith("FP")):
        raise InvalidArgument(f"output '{row.name}': the config says {row.datatype}, the model gives {own}")
    return row.datatype


def _datatype_of(dtype: np.dtype[Any], name: str) -> str:
    if dtype.kind in _TEXT_KINDS:
        return "BYTES"
    datatype = _NAMES.get(dtype.newbyteorder("="))
    if datatype is None:
        raise InvalidArgument(f"output '{name}' is a {dtype}, which can't be served")
    return datatype


def _tensor(spec: TensorSpec, answer: Any) -> Tensor:
    try:
        array = as_array(answer)
        if array.ndim == 1 and len(spec.shape) == 2:
            array = array.reshape(-1, 1)
        if array.ndim != len(spec.shape) or (array.dtype == object and spec.datatype != "BYTES"):
            raise ValueError(f"it is {array.dtype} of the shape {list(array.shape)}")
        return from_array(spec.name, spec.datatype, array)
    except (TypeError, ValueError) as error:
        raise Internal(f"the model's output '{spec.name}' is no tensor: {error}") from None
