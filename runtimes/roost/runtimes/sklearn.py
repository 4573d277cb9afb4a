"""scikit-learn: estimators and pipelines from skops files, and from pickles where code is allowed."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from roost.core.errors import InvalidArgument, Unimplemented
from roost.runtimes.prepared.forms import CONVERT
from roost.runtimes.protocol import LoadSpec
from roost.runtimes.sklearn_files import read_model
from roost.runtimes.sklearn_onnx import convert, estimator_of_onnx
from roost.runtimes.sklearn_parts import parts
from roost.runtimes.tabular import PREDICT, PREDICT_PROBA, TRANSFORM, Estimator, Method, TabularModel
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

_log = logging.getLogger(__name__)

_CONVERTED = "model.onnx"
_METHODS = (PREDICT, PREDICT_PROBA, TRANSFORM)


class SklearnRuntime:
    """Loads scikit-learn's estimators."""

    name = "sklearn"

    def __init__(self) -> None:
        # Who was fitted with a data frame is served matrices all the same.
        warnings.filterwarnings("ignore", message="X does not have valid feature names")

    def load(self, spec: LoadSpec) -> TabularModel:
        """Reads an estimator; other threads run meanwhile, as far as Python lets them.

        Raises:
            InvalidArgument: If the file is broken, brings code that is not allowed, or holds no fitted estimator.
            ResourceExhausted: If there is no memory for it.
            Cancelled: If the load was cancelled.
        """
        if spec.prepared:
            return TabularModel(_read_converted(spec), spec)
        model, estimator = _read(spec)
        if spec.options.get(CONVERT) == "true":
            try:
                estimator = estimator_of_onnx(convert(model, estimator), spec.threads)
            except Unimplemented as error:
                _log.warning("scikit-learn runs '%s' itself: %s", spec.options.get("roost.model_name"), error.message)
        return TabularModel(estimator, spec)

    def import_for(self, spec: LoadSpec) -> None:
        """Imports what converting a model takes, and what runs the result."""
        if spec.prepared or spec.options.get(CONVERT) == "true":
            importlib.import_module("roost.runtimes.onnx_session").set_up()
        if not spec.prepared and spec.options.get(CONVERT) == "true":
            importlib.import_module("skl2onnx")

    def prepare(self, spec: LoadSpec, folder: str) -> str:
        """Converts a model to ONNX, whatever its configuration asks for.

        Raises:
            Unimplemented: If that can't be done, or is of no use; see ``roost.runtimes.sklearn_onnx``.
            RoostError: See ``load``.
        """
        data = convert(*_read(spec))
        Path(folder, _CONVERTED).write_bytes(data)
        return _CONVERTED


def _read(spec: LoadSpec) -> tuple[Any, Estimator]:
    model = read_model(spec)
    limit_threads(model, spec.threads)
    return model, estimator_of(model)


def _read_converted(spec: LoadSpec) -> Estimator:
    try:
        return estimator_of_onnx(Path(spec.path).read_bytes(), spec.threads)
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        raise InvalidArgument(f"the converted model can't be read: {type(error).__name__}") from error


def estimator_of(model: Any) -> Estimator:
    """What a fitted estimator takes and gives.

    Raises:
        InvalidArgument: If it is none.
    """
    methods = dict(_methods(model))
    if not methods:
        raise InvalidArgument(
            f"the file holds a {type(model).__name__}, which is no estimator that predicts or transforms"
        )
    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise InvalidArgument(str(error)) from None
    except (AttributeError, TypeError):
        pass  # it is none of scikit-learn's, and says nothing of that
    first = model
    while isinstance(first, Pipeline) and first.steps:
        first = first.steps[0][1]
    names = tuple(str(name) for name in _found(model, "feature_names_in_", ()))
    return Estimator(
        methods,
        width=int(_found(model, "n_features_in_", -1)),
        names=names,
        by_name=bool(names) and isinstance(first, ColumnTransformer) and _finds_by_name(first),
        is_text=isinstance(first, CountVectorizer | HashingVectorizer),
        classes=_classes(model),
    )


def limit_threads(model: Any, threads: int) -> None:
    """Has each part of a model use so many threads at most, however many it was trained with.

    An estimator that was fitted with ``n_jobs=-1`` starts threads for each request, on CPUs that others work on.
    """
    for part in parts(model):
        if isinstance(getattr(part, "__dict__", {}).get("n_jobs"), int):
            part.n_jobs = threads


def _methods(model: Any) -> Iterator[tuple[str, Method]]:
    """What an estimator can be asked; scikit-learn's have methods only where those work."""
    for name in _METHODS:
        method = getattr(model, name, None)
        if callable(method):
            yield name, method


def _found(model: Any, name: str, default: Any) -> Any:
    """An attribute that a fitted estimator may have; pipelines ask their first step, which may not."""
    found = getattr(model, name, None)
    return default if found is None else found


def _finds_by_name(transformer: ColumnTransformer) -> bool:
    columns = [columns for _, _, columns in transformer.transformers]
    return any(isinstance(column, str) for item in columns for column in (item if isinstance(item, list) else [item]))


def _classes(model: Any) -> npt.NDArray[Any] | None:
    classes = getattr(model, "classes_", None)
    return classes if isinstance(classes, np.ndarray) and classes.ndim == 1 else None
