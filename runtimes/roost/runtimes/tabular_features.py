"""Inputs of models of rows and columns: how tensors become what a framework takes as features.

There may be one input, the matrix, or one for each column, which also may be of different datatypes. Who trained with a
data frame may need one to predict: then the inputs' names are the columns'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from roost.core.errors import InvalidArgument
from roost.core.tensors import DATATYPES, Tensor, TensorSpec, to_array
from roost.runtimes.tabular_options import Declared

if TYPE_CHECKING:
    from roost.runtimes.tabular import Estimator

INPUT = "input-0"
"""What the only input is called if the configuration does not say it: KServe's clients call it so."""

_FREE = "BF16"


class Features:
    """Makes features of inputs.

    Args:
        estimator: Who takes them.
        rows: The declared inputs.

    Attributes:
        specs: The inputs.

    Raises:
        InvalidArgument: If they are not what the estimator takes.
    """

    def __init__(self, estimator: Estimator, rows: Sequence[Declared]) -> None:
        self._width = estimator.width
        self._is_text = estimator.is_text
        self._columns: list[str] = []
        self._names: list[str] = []
        if len(rows) > 1:
            self._columns = _in_order([row.name for row in rows], estimator)
            self.specs = tuple(_column(row, estimator.datatype) for row in rows)
        else:
            only = self._only(rows[0] if rows else Declared(INPUT, "", ()), estimator.datatype)
            # Who serves such models elsewhere takes any name and datatype, and clients rely on that.
            self.specs = (replace(only, lenient=not rows),)
        has_texts = any(spec.datatype == "BYTES" for spec in self.specs)
        self._framed = estimator.by_name or (bool(self._columns) and has_texts)
        if self._framed:
            self._names = list(self._columns or estimator.names)
            _need_pandas()

    def of(self, inputs: Sequence[Tensor]) -> Any:
        """The features of one or more rows: a matrix, a list of texts, or a data frame.

        Raises:
            InvalidArgument: If inputs are missing, unexpected, or of a wrong shape.
        """
        given = {tensor.name: tensor for tensor in inputs}
        for spec in self.specs:
            if spec.name not in given:
                raise InvalidArgument(f"input '{spec.name}' is missing")
        if len(given) != len(self.specs):
            unexpected = min(given.keys() - {spec.name for spec in self.specs})
            raise InvalidArgument(f"unexpected input '{unexpected}'")
        if not self._columns:
            return self._of_one(_array(given[self.specs[0].name]))
        columns = [_flat(name, _array(given[name])) for name in self._columns]
        if len({len(column) for column in columns}) > 1:
            raise InvalidArgument("the inputs have different numbers of rows")
        if self._framed:
            return _frame(dict(zip(self._names, columns, strict=True)), None)
        return np.column_stack(columns)

    def zeros(self, rows: int) -> Any:
        """Features that are all zero, or empty texts."""
        made = []
        for spec in self.specs:
            shape = (rows, *(1 if dim < 0 else dim for dim in spec.shape[1:]))
            dtype = DATATYPES[spec.datatype].dtype
            array = np.zeros(shape, dtype) if dtype is not None else np.full(shape, "", dtype=object)
            made.append(array)
        if not self._columns:
            return self._of_one(made[0])
        by_name = {spec.name: array.reshape(-1) for spec, array in zip(self.specs, made, strict=True)}
        columns = {name: by_name[name] for name in self._columns}
        return _frame(columns, None) if self._framed else np.column_stack(list(columns.values()))

    def _of_one(self, array: npt.NDArray[Any]) -> Any:
        if self._is_text:
            return array.reshape(-1).tolist()
        name = self.specs[0].name
        if array.ndim != 2:
            raise InvalidArgument(
                f"input '{name}' has shape {list(array.shape)}, but rows of features are [rows, features]"
            )
        if self._width >= 0 and array.shape[1] != self._width:
            raise InvalidArgument(
                f"input '{name}' has {array.shape[1]} features a row, but the model takes {self._width}"
            )
        return _frame(array, self._names) if self._framed else array

    def _only(self, row: Declared, datatype: str) -> TensorSpec:
        if self._is_text:
            if row.datatype not in ("", "BYTES"):
                raise InvalidArgument(f"input '{row.name}': the config says {row.datatype}, but the model takes texts")
            return TensorSpec(row.name, "BYTES", (-1, 1) if len(row.shape) == 2 else (-1,))
        return TensorSpec(row.name, _checked(row, datatype), (-1, self._width))


def _in_order(names: list[str], estimator: Estimator) -> list[str]:
    """Inputs in the order of the features, where those have names; else as they are declared."""
    if estimator.width >= 0 and len(names) != estimator.width:
        raise InvalidArgument(
            f"the config declares {len(names)} inputs, one for each feature, but the model takes {estimator.width}"
        )
    if not estimator.names or set(names).isdisjoint(estimator.names):
        if estimator.by_name:
            raise InvalidArgument(f"the inputs must be called as the model's features: {_listed(estimator.names)}")
        return names
    missing = [name for name in estimator.names if name not in names]
    if missing:
        raise InvalidArgument(f"the model has a feature '{missing[0]}', but the config declares no such input")
    return list(estimator.names)


def _column(row: Declared, datatype: str) -> TensorSpec:
    if len(row.shape) > 2 or (len(row.shape) == 2 and row.shape[1] != 1):
        raise InvalidArgument(f"input '{row.name}' is one of several, and those have the shape [rows, 1] or [rows]")
    return TensorSpec(row.name, _checked(row, datatype), (-1, 1) if len(row.shape) == 2 else (-1,))


def _checked(row: Declared, datatype: str) -> str:
    if row.datatype == _FREE:
        raise InvalidArgument(f"input '{row.name}': features can't be {_FREE}")
    return row.datatype or datatype


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:20]) + (", ..." if len(names) > 20 else "")


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    array = to_array(tensor)
    if tensor.datatype != "BYTES":
        return array
    texts = np.empty(array.size, dtype=object)
    try:
        texts[:] = [element.decode() for element in array.reshape(-1)]
    except UnicodeDecodeError:
        raise InvalidArgument(f"input '{tensor.name}' has an element that is not UTF-8") from None
    return texts.reshape(array.shape)


def _flat(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1):
        return array.reshape(-1)
    raise InvalidArgument(f"input '{name}' has shape {list(array.shape)}, but it is one column: [rows, 1]")


def _need_pandas() -> None:
    try:
        import pandas  # noqa: F401
    except ImportError:
        raise InvalidArgument("the model takes a data frame, and the package 'pandas' is not installed") from None


def _frame(data: Any, columns: list[str] | None) -> Any:
    import pandas

    return pandas.DataFrame(data, columns=columns)
