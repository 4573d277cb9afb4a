"""XGBoost: boosters from its own JSON and UBJSON files.

A booster that a scikit-learn estimator of XGBoost has saved answers as that estimator does, class labels for a
classifier; any other answers as ``Booster.predict`` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost
from roost.core.errors import Cancelled, InvalidArgument
from roost.runtimes.boosters import both_classes, load_error, what_else
from roost.runtimes.protocol import LoadSpec
from roost.runtimes.tabular import PREDICT, PREDICT_PROBA, Estimator, Method, TabularModel, head_of
from xgboost.core import XGBoostError

_LINEAR = "gblinear"
_PROBABILITIES = ("binary:logistic", "multi:softprob")
_HALF = 0.5


class XgboostRuntime:
    """Loads XGBoost's boosters."""

    name = "xgboost"

    def __init__(self) -> None:
        xgboost.set_config(verbosity=0)

    def load(self, spec: LoadSpec) -> TabularModel:
        """Reads a booster, which lets other threads run.

        Raises:
            InvalidArgument: If the file is none of XGBoost's, or broken.
            ResourceExhausted: If there is no memory for it.
            Cancelled: If the load was cancelled.
        """
        try:
            booster = xgboost.Booster({"nthread": spec.threads}, model_file=_source(spec))
            facts = json.loads(booster.save_config())["learner"]
            estimator = _estimator(booster, facts)
        except (XGBoostError, LookupError, TypeError, ValueError, MemoryError) as error:
            raise load_error(error, "XGBoost", spec) from error
        if spec.cancellation.cancelled:
            raise Cancelled("the load was cancelled")
        return TabularModel(estimator, spec)


def _source(spec: LoadSpec) -> str | bytearray:
    """What XGBoost is to read: the path, or where that would mislead it, the contents.

    Raises:
        InvalidArgument: If the file is none of its formats.
    """
    head = head_of(spec.path)
    if head.lstrip().startswith(b"{"):
        is_json = head.lstrip()[1:].lstrip()[:1] in (b'"', b"}")
        if spec.path.endswith(".ubj" if is_json else ".json"):
            return bytearray(Path(spec.path).read_bytes())
        return spec.path
    other = what_else(head)
    hint = f"it is {other}" if other else "save it with Booster.save_model('model.json') or 'model.ubj'"
    raise InvalidArgument(f"the file is neither XGBoost's JSON nor UBJSON: {hint}")


def _estimator(booster: Any, facts: Mapping[str, Any]) -> Estimator:
    objective = str(facts["objective"]["name"])
    linear = facts["gradient_booster"]["name"] == _LINEAR
    has_classes = int(facts["learner_model_param"]["num_class"]) > 0
    attributes = booster.attributes()
    saved_by = _saved_by(attributes)
    # As the estimators do, which stopped where they were best; Booster.predict takes all trees.
    best = attributes.get("best_iteration") if saved_by and not linear else None
    trees = (0, int(best) + 1) if best is not None else (0, 0)

    def scores(features: Any) -> npt.NDArray[Any]:
        if linear:
            return np.asarray(booster.predict(_rows(features), validate_features=False))
        return np.asarray(booster.inplace_predict(features, iteration_range=trees, validate_features=False))

    def labels(features: Any) -> npt.NDArray[Any]:
        found = scores(features)
        return found.argmax(axis=1) if has_classes and found.ndim == 2 else (found > _HALF).astype(np.int64)

    def probabilities(features: Any) -> npt.NDArray[Any]:
        return both_classes(scores(features))

    methods: dict[str, Method] = {PREDICT: labels if saved_by == "classifier" else scores}
    if objective in _PROBABILITIES:
        methods[PREDICT_PROBA] = probabilities
    return Estimator(
        methods,
        width=int(booster.num_features()),
        names=tuple(booster.feature_names or ()),
        datatype="FP32",  # to which XGBoost rounds whatever it gets
        errors=(XGBoostError,),
    )


def _rows(features: Any) -> Any:
    try:
        return xgboost.DMatrix(features, nthread=1)
    except XGBoostError as error:  # of what XGBoost looks at before it looks at the model
        raise ValueError("the rows have a value that is infinite or too large") from error


def _saved_by(attributes: Mapping[str, str]) -> str:
    """The kind of the scikit-learn estimator that has saved a booster; empty if none has."""
    try:
        return str(json.loads(attributes.get("scikit_learn", "{}")).get("_estimator_type", ""))
    except (ValueError, AttributeError):
        return ""
