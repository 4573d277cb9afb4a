"""Small models of rows and columns, trained in a process of their own: ``python -m tests.tabular_models FOLDER``.

Each case is a model file and what its framework says of some rows, in ``NAME.npz``: inputs as ``in:NAME``, answers as
``out:NAME``. The process that runs tests imports no framework.
"""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Case(NamedTuple):
    """A model and what its configuration says."""

    name: str
    backend: str
    file: str
    options: Mapping[str, str] = {}


CASES = (
    Case("scaled", "sklearn", "scaled.skops"),
    Case("forest", "sklearn", "forest.skops"),
    Case("boosting", "sklearn", "boosting.skops"),
    Case("histogram", "sklearn", "histogram.skops"),
    Case("neighbors", "sklearn", "neighbors.skops"),
    Case("words", "sklearn", "words.skops"),
    Case("several", "sklearn", "several.skops"),
    Case("components", "sklearn", "components.skops"),
    Case("pickled", "sklearn", "pickled.joblib", {"roost.allow_code": "true"}),
    Case("mixed", "sklearn", "mixed.skops"),
    Case("xgb_classes", "xgboost", "xgb_classes.json"),
    Case("xgb_binary", "xgboost", "xgb_binary.ubj"),
    Case("xgb_numbers", "xgboost", "xgb_numbers.json"),
    Case("xgb_booster", "xgboost", "xgb_booster.bst"),
    Case("xgb_linear", "xgboost", "xgb_linear.json"),
    Case("lgb_binary", "lightgbm", "lgb_binary.txt"),
    Case("lgb_classes", "lightgbm", "lgb_classes.txt"),
    Case("lgb_numbers", "lightgbm", "lgb_numbers.bst"),
)


class _Writer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def estimator(self, name: str, model: Any, rows: Array, *methods: str, given: Array | None = None) -> None:
        """Writes a skops file and what the methods answer; ``given`` are the rows as clients send them."""
        from skops.io import dump

        dump(model, self.folder / f"{name}.skops")
        self.answers(
            name, rows if given is None else given, {method: getattr(model, method)(rows) for method in methods}
        )

    def answers(self, name: str, rows: Array, outputs: Mapping[str, Array]) -> None:
        arrays = {"in:input-0": rows} | {f"out:{output}": array for output, array in outputs.items()}
        _write(self.folder / f"{name}.npz", arrays)


def _write(path: Path, arrays: Mapping[str, Array]) -> None:
    stored: dict[str, Any] = {key: _storable(array) for key, array in arrays.items()}
    np.savez(path, **stored)


def _storable(array: Array) -> Array:
    return np.char.encode(array.astype(str), "utf-8") if array.dtype.kind in "OU" else array


def main(folder: Path) -> None:
    """Writes all of them."""
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(160, 4))
    classes = (rows[:, 0] > 0).astype(int) + (rows[:, 1] > 0.5)
    numbers = rows @ [1.0, -2.0, 0.5, 0.0] + rng.normal(size=160) / 10
    some = rng.normal(size=(7, 4))
    writer = _Writer(folder)
    _estimators(writer, rows, classes, numbers, some)
    _text(writer)
    _frame(writer)
    _bad(folder, rows, classes)
    _prepared(folder)
    _xgboost(writer, rows, classes, numbers, some.astype(np.float32))
    _lightgbm(writer, rows, classes, numbers, some)


def _estimators(writer: _Writer, rows: Array, classes: Array, numbers: Array, some: Array) -> None:
    import joblib
    from sklearn.decomposition import PCA
    from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from skops.io import dump

    colours = np.array(["red", "green", "blue"])[classes]
    both = ("predict", "predict_proba")
    writer.estimator("scaled", make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, classes), some, *both)
    forest = RandomForestClassifier(8, max_depth=4, n_jobs=-1, random_state=1)
    writer.estimator("forest", forest.fit(rows, colours), some, *both)
    boosting = GradientBoostingRegressor(n_estimators=10, random_state=1)
    writer.estimator("boosting", boosting.fit(rows, numbers), some, "predict")
    histogram = HistGradientBoostingClassifier(max_iter=5, categorical_features=[3])
    coded = np.column_stack((rows[:, :3], rows[:, 3] > 0))
    writer.estimator("histogram", histogram.fit(coded, classes), np.abs(np.trunc(some)), *both)
    neighbors = KNeighborsClassifier(3, algorithm="kd_tree").fit(rows, classes)
    writer.estimator("neighbors", neighbors, some, *both)
    state = list(neighbors._tree.__getstate__())
    state[1] = state[1] + len(rows)
    neighbors._tree.__setstate__(tuple(state))
    dump(neighbors, writer.folder / "far_neighbors.skops")
    targets = np.column_stack((numbers, -numbers))
    writer.estimator("several", LinearRegression().fit(rows, targets), some, "predict")
    writer.estimator("components", PCA(2).fit(rows), some, "transform")
    pickled = LogisticRegression().fit(rows, classes)
    joblib.dump(pickled, writer.folder / "pickled.joblib")
    writer.answers("pickled", some, {method: getattr(pickled, method)(some) for method in both})


def _text(writer: _Writer) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = np.array(["a good day", "a bad day", "good and fine", "bad and ill", "größte Freude"], dtype=object)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, ["yes", "no", "yes", "no", "yes"])
    writer.estimator("words", model, texts, "predict", "predict_proba")


def _frame(writer: _Writer) -> None:
    try:
        import pandas
    except ImportError:
        return
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = pandas.DataFrame({"town": ["Ulm", "Bonn", "Ulm", "Bonn"] * 5, "rooms": range(20)})
    columns = ColumnTransformer([("town", OneHotEncoder(), ["town"]), ("rooms", StandardScaler(), ["rooms"])])
    model = make_pipeline(columns, LogisticRegression()).fit(frame, [0, 1, 1, 0] * 5)
    from skops.io import dump

    dump(model, writer.folder / "mixed.skops")
    arrays = {"in:town": frame["town"].to_numpy(dtype=object), "in:rooms": frame["rooms"].to_numpy(dtype=np.int64)}
    arrays["out:predict"] = model.predict(frame)
    _write(writer.folder / "mixed.npz", arrays)


class Stranger:
    """Of a type that nobody trusts."""

    def fit(self, rows: Array) -> Stranger:
        return self

    def predict(self, rows: Array) -> Array:
        return np.zeros(len(rows))


class Forker(Stranger):
    """Goes on in two processes."""

    def predict(self, rows: Array) -> Array:
        os.fork()
        return super().predict(rows)


def _bad(folder: Path, rows: Array, classes: Array) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.tree import DecisionTreeClassifier
    from skops.io import dump

    dump(LogisticRegression(), folder / "unfitted.skops")
    dump({"a": 1}, folder / "dictionary.skops")
    dump(Stranger(), folder / "stranger.skops")
    (folder / "forker.pkl").write_bytes(pickle.dumps(Forker().fit(rows)))
    sparse = LogisticRegression().fit(rows, classes).sparsify()
    sparse.coef_.indices[0] = 1 << 30
    dump(sparse, folder / "sparse.skops")
    with zipfile.ZipFile(folder / "bomb.skops", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("schema.json", bytes(70 << 20))
    (folder / "disguised.skops").write_bytes(pickle.dumps(LogisticRegression().fit(rows, classes)))
    for name, change in _DAMAGES.items():
        model = DecisionTreeClassifier(max_depth=3, random_state=0).fit(rows, classes)
        state = model.tree_.__getstate__()
        change(state)
        model.tree_.__setstate__(state)
        dump(model, folder / f"{name}.skops")


def _point_behind(state: dict[str, Any]) -> None:
    state["nodes"]["left_child"][0] = 1 << 30


def _point_back(state: dict[str, Any]) -> None:
    state["nodes"]["right_child"][0] = 0


def _look_aside(state: dict[str, Any]) -> None:
    state["nodes"]["feature"][0] = 1 << 20


_DAMAGES: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "points_behind": _point_behind,
    "points_back": _point_back,
    "looks_aside": _look_aside,
}


def _prepared(folder: Path) -> None:
    from roost.runtimes.protocol import LoadSpec
    from roost.runtimes.sklearn import SklearnRuntime

    copy = folder / "prepared"
    copy.mkdir()
    SklearnRuntime().prepare(LoadSpec(str(folder / "scaled.skops"), str(folder)), str(copy))


def _xgboost(writer: _Writer, rows: Array, classes: Array, numbers: Array, some: Array) -> None:
    import xgboost

    def save(name: str, file: str, model: Any, outputs: Mapping[str, Array]) -> None:
        model.save_model(writer.folder / file)
        writer.answers(name, some, outputs)

    made: list[tuple[str, str, Any, Array]] = [
        ("xgb_classes", "json", xgboost.XGBClassifier(n_estimators=6), classes),
        ("xgb_binary", "ubj", xgboost.XGBClassifier(n_estimators=6), classes > 0),
    ]
    for name, suffix, model, targets in made:
        model.fit(rows, targets.astype(int))
        answers = {"predict": model.predict(some), "predict_proba": model.predict_proba(some)}
        save(name, f"{name}.{suffix}", model, answers)
    early = xgboost.XGBRegressor(n_estimators=40, early_stopping_rounds=2)
    early.fit(rows[:120], numbers[:120], eval_set=[(rows[120:], numbers[120:])], verbose=False)
    save("xgb_numbers", "xgb_numbers.json", early, {"predict": early.predict(some)})
    data = xgboost.DMatrix(rows, classes > 0)
    booster = xgboost.train({"objective": "binary:logistic"}, data, 5)
    scores = booster.predict(xgboost.DMatrix(some))
    save(
        "xgb_booster", "xgb_booster.bst.json", booster, {"predict": scores, "predict_proba": np.c_[1 - scores, scores]}
    )
    (writer.folder / "xgb_booster.bst.json").rename(writer.folder / "xgb_booster.bst")
    linear = xgboost.XGBRegressor(booster="gblinear", n_estimators=5).fit(rows, numbers)
    save("xgb_linear", "xgb_linear.json", linear, {"predict": linear.predict(some)})


def _lightgbm(writer: _Writer, rows: Array, classes: Array, numbers: Array, some: Array) -> None:
    import lightgbm

    made: list[tuple[str, str, dict[str, Any], Array]] = [
        ("lgb_binary", "txt", {"objective": "binary"}, (classes > 0).astype(int)),
        ("lgb_classes", "txt", {"objective": "multiclass", "num_class": 3}, classes),
        ("lgb_numbers", "bst", {"objective": "regression"}, numbers),
    ]
    for name, suffix, settings, targets in made:
        booster = lightgbm.train({**settings, "verbosity": -1}, lightgbm.Dataset(rows, targets), 6)
        booster.save_model(writer.folder / f"{name}.{suffix}")
        scores = np.asarray(booster.predict(some))
        outputs = {"predict": scores}
        if name == "lgb_binary":
            outputs["predict_proba"] = np.c_[1 - scores, scores]
        elif name == "lgb_classes":
            outputs["predict_proba"] = scores
        writer.answers(name, some, outputs)


if __name__ == "__main__":
    from tests import tabular_models  # what is written has the types of a module that can be imported

    tabular_models.main(Path(sys.argv[1]))
