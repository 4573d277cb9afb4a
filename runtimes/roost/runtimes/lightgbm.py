"""LightGBM: boosters from its own text files."""

from __future__ import annotations

import logging
import mmap
import re
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
from lightgbm.basic import LightGBMError
from roost.core.errors import Cancelled, InvalidArgument
from roost.runtimes.boosters import both_classes, load_error, what_else
from roost.runtimes.protocol import LoadSpec
from roost.runtimes.tabular import PREDICT, PREDICT_PROBA, Estimator, Method, TabularModel, head_of

_log = logging.getLogger(__name__)

_START = b"tree"
_OBJECTIVE = re.compile(rb"^objective=(\w+)", re.MULTILINE)
_TREE_SIZES = re.compile(rb"^tree_sizes=([\d ]*)$", re.MULTILINE)
_PROBABILITIES = (b"binary", b"multiclass", b"multiclassova")
_NAME_OF_NONE = re.compile(r"Column_\d+")


class LightgbmRuntime:
    """Loads LightGBM's boosters."""

    name = "lightgbm"

    def __init__(self) -> None:
        lightgbm.register_logger(_log)  # or it would print

    def load(self, spec: LoadSpec) -> TabularModel:
        """Reads a booster, which lets other threads run.

        Raises:
            InvalidArgument: If the file is none of LightGBM's, or broken.
            ResourceExhausted: If there is no memory for it.
            Cancelled: If the load was cancelled.
        """
        head = head_of(spec.path)
        if head.split(b"\n", 1)[0].strip() != _START:
            other = what_else(head)
            hint = f"it is {other}" if other else "save it with Booster.save_model('model.txt')"
            raise InvalidArgument(f"the file is not LightGBM's text: {hint}")
        _check_trees(spec.path)
        try:
            booster = lightgbm.Booster({"verbosity": -1}, model_file=spec.path)
            estimator = _estimator(booster, head, spec.threads)
        except (LightGBMError, LookupError, TypeError, ValueError, MemoryError) as error:
            raise load_error(error, "LightGBM", spec) from error
        if spec.cancellation.cancelled:
            raise Cancelled("the load was cancelled")
        return TabularModel(estimator, spec)


def _check_trees(path: str) -> None:
    """Checks that each tree begins where it should: LightGBM ends the process over a file that was cut off.

    Raises:
        InvalidArgument: If not.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        at = text.find(b"\n\n") + 2
        sizes = _TREE_SIZES.search(text[:at])
        for number, size in enumerate(sizes.group(1).split() if sizes else ()):
            start = b"Tree=%d\n" % number
            if text[at : at + len(start)] != start:
                raise InvalidArgument(f"the file is damaged: tree {number} is not where it should be")
            at += int(size)
        if text.find(b"end of trees", at if sizes else 0) < 0:
            raise InvalidArgument("the file is damaged: its trees have no end")


def _estimator(booster: Any, head: bytes, threads: int) -> Estimator:
    found = _OBJECTIVE.search(head)  # in front of the names of the features, which may be long
    objective = found.group(1) if found else b""

    def scores(features: Any) -> npt.NDArray[Any]:
        if isinstance(features, np.ndarray) and features.dtype.kind != "f":
            features = features.astype(np.float64)  # it would take whole numbers as FP32
        return np.asarray(booster.predict(features, num_threads=threads))

    def probabilities(features: Any) -> npt.NDArray[Any]:
        return both_classes(scores(features))

    methods: dict[str, Method] = {PREDICT: scores}
    if objective in _PROBABILITIES:
        methods[PREDICT_PROBA] = probabilities
    names = tuple(booster.feature_name())
    return Estimator(
        methods,
        width=int(booster.num_feature()),
        names=() if all(_NAME_OF_NONE.fullmatch(name) for name in names) else names,
        errors=(LightGBMError,),
    )
