"""What scikit-learn, XGBoost and LightGBM take for a row: asked directly, through their adapters, converted to ONNX.

Models of 20 features and 100 trees are trained, saved and loaded here, in one process with one thread. Times are of the
processor, the least of many; a column of ``-`` is a model that is not converted, with the reason at the end. ::

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m loadtests.tabular
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import xgboost
from roost.core.errors import Unimplemented
from roost.core.tensors import from_array
from roost.runtimes.lightgbm import LightgbmRuntime
from roost.runtimes.protocol import LoadSpec, RunHandle
from roost.runtimes.sklearn import SklearnRuntime
from roost.runtimes.xgboost import XgboostRuntime
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skops.io import dump

FEATURES = 20
TRAINED_ROWS = 2000
ROWS = (1, 32)
BUDGET_S = 0.5


def main() -> None:
    """Prints a line for each model: microseconds for 1 and for 32 rows."""
    warnings.simplefilter("ignore")
    print(f"{'model':<22}{'directly':>16}{'adapter':>16}{'as ONNX':>16}  load, ms")
    with tempfile.TemporaryDirectory() as folder:
        for name, direct, adapter, converted, load_ms, reason in _measured(Path(folder)):
            print(f"{name:<22}{direct:>16}{adapter:>16}{converted:>16}  {load_ms:8.1f}  {reason}", flush=True)


def _measured(folder: Path) -> Iterator[tuple[str, str, str, str, float, str]]:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(TRAINED_ROWS, FEATURES))
    classes = (rows[:, :3].sum(axis=1) > 0).astype(int) + (rows[:, 4] > 1 / 2)
    asked = generator.normal(size=(max(ROWS), FEATURES))
    for name, model in _estimators():
        dump(model.fit(rows, classes), folder / "model.skops")
        spec = LoadSpec(str(folder / "model.skops"), str(folder))
        yield name, _times(model.predict, asked), *_served(SklearnRuntime(), spec, asked)
    boosted = xgboost.XGBClassifier(n_estimators=100, n_jobs=1).fit(rows, classes)
    boosted.save_model(folder / "model.json")
    spec = LoadSpec(str(folder / "model.json"), str(folder))
    yield "XGBoost", _times(boosted.predict, asked), *_served(XgboostRuntime(), spec, asked)
    settings = {"objective": "multiclass", "num_class": 3, "verbosity": -1, "num_threads": 1}
    booster = lightgbm.train(settings, lightgbm.Dataset(rows, classes), 100)
    booster.save_model(folder / "model.txt")
    spec = LoadSpec(str(folder / "model.txt"), str(folder))
    yield "LightGBM", _times(booster.predict, asked), *_served(LightgbmRuntime(), spec, asked)


def _estimators() -> Iterator[tuple[str, Any]]:
    yield "logistic regression", make_pipeline(StandardScaler(), LogisticRegression())
    yield "random forest", RandomForestClassifier(100, max_depth=8, random_state=0)
    yield "gradient boosting", GradientBoostingClassifier(n_estimators=100, random_state=0)
    yield "histogram boosting", HistGradientBoostingClassifier(max_iter=100, random_state=0)
    yield "nearest neighbours", KNeighborsClassifier(algorithm="kd_tree")


def _served(runtime: Any, spec: LoadSpec, asked: Any) -> tuple[str, str, float, str]:
    started = time.thread_time()
    model = runtime.load(spec)
    load_ms = (time.thread_time() - started) * 1e3
    adapter = _times(_asking(model), asked)
    if not hasattr(runtime, "prepare"):
        return adapter, "-", load_ms, ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            entry = runtime.prepare(spec, folder)
        except Unimplemented as error:
            return adapter, "-", load_ms, error.message
        copy = runtime.load(LoadSpec(str(Path(folder, entry)), folder, prepared=True))
        return adapter, _times(_asking(copy), asked), load_ms, ""


def _asking(model: Any) -> Callable[[Any], Any]:
    (spec,) = model.signature.inputs
    return lambda rows: model.run([from_array(spec.name, spec.datatype, rows)], (), RunHandle())


def _times(ask: Callable[[Any], Any], asked: Any) -> str:
    found = []
    for count in ROWS:
        rows, least, end = asked[:count], float("inf"), time.monotonic() + BUDGET_S
        while time.monotonic() < end:
            started = time.thread_time()
            ask(rows)
            least = min(least, time.thread_time() - started)
        found.append(f"{least * 1e6:.0f}")
    return " / ".join(found)


if __name__ == "__main__":
    main()
