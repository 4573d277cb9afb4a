"""scikit-learn, XGBoost and LightGBM in a real worker: what their models answer, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from roost.core.errors import InvalidArgument
from roost.core.frames import FrameType
from roost.core.tensors import Tensor, from_array
from roost.registry_client.load_options import load_options
from roost.registry_client.model_folder import ModelFolder
from roost.router.learned import Learned
from roost.router.prepared import order_of
from roost.runtimes.prepared.cache import CopyCache
from roost.runtimes.prepared.making import CopyOrder, in_fresh_process, make_copy

from tests.memory_store import MemoryStore
from tests.server import started, wait_for
from tests.tabular_models import CASES, Case
from tests.worker_client import WorkerClient, arrays_of

FRAMEWORKS = ("sklearn", "skops", "skl2onnx", "xgboost", "lightgbm")
pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in FRAMEWORKS), reason="roost[sklearn] is not installed"
)
CODE = {"roost.allow_code": "true"}
DATATYPES = {"float64": "FP64", "float32": "FP32", "int64": "INT64"}


@pytest.fixture(scope="module")
def models(tabular_models: Path) -> Path:
    """A folder of trained models and their answers."""
    folder = tabular_models
    (folder / "garbage.json").write_bytes(b'{"learner": 3}')
    (folder / "garbage.txt").write_bytes(b"tree\nversion=v4\nnum_class=x\n")
    for cut, whole in (("cut.ubj", "xgb_binary.ubj"), ("cut.txt", "lgb_classes.txt")):
        data = (folder / whole).read_bytes()
        (folder / cut).write_bytes(data[: len(data) // 2])
    (folder / "cut.skops").write_bytes((folder / "forest.skops").read_bytes()[:2000])
    (folder / "empty.skops").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerClient]:
    with WorkerClient(kind="sklearn", dummy=False) as client:
        yield client


def declared(**tensors: tuple[str, list[int]]) -> str:
    return json.dumps([[name, datatype, shape] for name, (datatype, shape) in tensors.items()])


def tensor_of(name: str, array: npt.NDArray[Any]) -> Tensor:
    if array.dtype.kind == "S":
        return from_array(name, "BYTES", np.array(array.tolist(), dtype=object))
    return from_array(name, DATATYPES[str(array.dtype)], array)


def options_of(case: Case, inputs: list[Tensor]) -> dict[str, str]:
    """Several inputs have to be declared."""
    if len(inputs) == 1:
        return dict(case.options)
    rows = {tensor.name: (tensor.datatype, [-1]) for tensor in inputs}
    return {**case.options, "roost.inputs": declared(**rows)}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_model_answers_as_its_framework_does(case: Case, models: Path, worker: WorkerClient) -> None:
    if case.name == "mixed" and importlib.util.find_spec("pandas") is None:
        pytest.skip("pandas is not installed")
    with np.load(models / f"{case.name}.npz") as known:
        inputs = [tensor_of(key[3:], known[key]) for key in known if key.startswith("in:")]
        expected = {key[4:]: known[key] for key in known if key.startswith("out:")}
    loaded = worker.load(1, models / case.file, options_of(case, inputs), case.backend)
    try:
        by_default = arrays_of(worker.run(1, inputs))
        answers = arrays_of(worker.run(1, inputs, outputs=list(expected)))
    finally:
        worker.unload(1)
    assert list(by_default) == [next(iter(expected))]
    assert list(answers) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(answers[name].astype(array.dtype), array)
    shapes = {name: shape for name, _, shape, _ in loaded["signature"]["outputs"]}
    assert {name: shapes[name] for name in expected} == {name: [-1, *a.shape[1:]] for name, a in expected.items()}


def test_names_and_datatypes_are_those_declared(models: Path, worker: WorkerClient) -> None:
    options = {
        "roost.inputs": declared(X=("FP32", [-1, 4])),
        "roost.outputs": declared(**{"output-0": ("INT32", [-1, 1]), "predict_proba": ("FP32", [-1, 3])}),
    }
    with np.load(models / "scaled.npz") as known:
        rows, labels, scores = (known[key] for key in ("in:input-0", "out:predict", "out:predict_proba"))
    worker.load(2, models / "scaled.skops", options, "sklearn")
    answers = arrays_of(worker.run(2, [from_array("X", "FP32", rows.astype(np.float32))]))
    worker.unload(2)
    assert answers["output-0"].dtype == np.int32
    np.testing.assert_array_equal(answers["output-0"], labels[:, None])
    np.testing.assert_allclose(answers["predict_proba"], scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("file", "backend", "options", "reason"),
    [
        ("pickled.joblib", "sklearn", {}, r"pickle can run any code.*skops\.io\.dump.*--allow-code"),
        ("disguised.skops", "sklearn", {}, "'disguised.skops' is no skops file, and a pickle can run any code"),
        ("stranger.skops", "sklearn", {}, r"does not trust: tests\.tabular_models\.Stranger"),
        ("stranger.skops", "sklearn", {"trusted_types": "x"}, "with --allow-code only"),
        ("unfitted.skops", "sklearn", {}, "not fitted yet"),
        ("dictionary.skops", "sklearn", {}, "a dict, which is no estimator"),
        ("cut.skops", "sklearn", {}, "damaged|not what skops writes"),
        ("empty.skops", "sklearn", {}, "'empty.skops' is empty"),
        ("points_behind.skops", "sklearn", {}, "a node has no such child"),
        ("points_back.skops", "sklearn", {}, "a node has no such child"),
        ("looks_aside.skops", "sklearn", {}, "needs 1048577 features, but it takes 4"),
        ("far_neighbors.skops", "sklearn", {}, "not the rows or nodes that it says"),
        ("sparse.skops", "sklearn", {}, "a sparse matrix of the model is damaged"),
        ("bomb.skops", "sklearn", {}, "would become more than 64 MiB"),
        ("garbage.json", "xgboost", {}, "XGBoost can't load the file"),
        ("lgb_binary.txt", "xgboost", {}, "it is a LightGBM model"),
        ("cut.ubj", "xgboost", {}, "XGBoost can't load the file"),
        ("cut.txt", "lightgbm", {}, r"the file is damaged: tree \d+ is not where it should be"),
        ("garbage.txt", "lightgbm", {}, "the file is damaged: its trees have no end"),
        ("xgb_classes.json", "lightgbm", {}, "not LightGBM's text"),
        ("scaled.skops", "sklearn", {"roost.outputs": declared(transform=("", []), a=("", []), b=("", []))}, "only"),
        ("scaled.skops", "sklearn", {"roost.outputs": declared(predict=("BYTES", [-1]))}, "the model gives INT64"),
        ("words.skops", "sklearn", {"roost.inputs": declared(text=("FP32", [-1]))}, "but the model takes texts"),
    ],
)  # fmt: skip
def test_what_is_refused(
    file: str, backend: str, options: dict[str, str], reason: str, models: Path, worker: WorkerClient
) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        worker.load(3, models / file, options, backend)


def test_code_is_loaded_where_it_is_allowed(models: Path, worker: WorkerClient) -> None:
    worker.load(4, models / "disguised.skops", CODE, "sklearn")
    worker.unload(4)
    worker.load(4, models / "stranger.skops", {**CODE, "trusted_types": "tests.tabular_models.Stranger"}, "sklearn")
    answers = arrays_of(worker.run(4, [from_array("input-0", "FP64", np.ones((2, 3)))]))
    worker.unload(4)
    assert answers["predict"].tolist() == [0, 0]


def test_a_copy_of_the_worker_that_a_model_makes_answers_nothing(models: Path, worker: WorkerClient) -> None:
    worker.load(4, models / "forker.pkl", CODE, "sklearn")
    rows = [from_array("input-0", "FP64", np.ones((2, 3)))]
    requests = [worker.begin_run(4, rows) for _ in range(5)]
    for request in requests:
        assert arrays_of(worker.end_run(request))["predict"].tolist() == [0, 0]
    worker.unload(4)
    assert worker.answers_to(requests) == []
    copies = psutil.Process(worker.process.pid).children()
    wait_for(lambda: all(copy.status() == psutil.STATUS_ZOMBIE for copy in copies), "the end of the copies")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (np.array([[1, 2, 3, np.nan]]), "contains NaN"),
        (np.ones((2, 3)), "has 3 features a row, but the model takes 4"),
        (np.ones(4), r"but rows of features are \[rows, features\]"),
        (np.ones((0, 4)), "0 sample"),
    ],
)
def test_bad_rows_fail_alone(rows: npt.NDArray[np.float64], reason: str, models: Path, worker: WorkerClient) -> None:
    worker.load(5, models / "scaled.skops", {}, "sklearn")
    try:
        with pytest.raises(InvalidArgument, match=reason):
            worker.run(5, [from_array("input-0", "FP64", rows)])
        assert arrays_of(worker.run(5, [from_array("input-0", "FP64", np.ones((1, 4)))]))["predict"].shape == (1,)
    finally:
        worker.unload(5)


@pytest.mark.parametrize("name", ["scaled", "forest", "boosting", "components", "several"])
def test_a_converted_model_answers_the_same(name: str, models: Path, worker: WorkerClient) -> None:
    with np.load(models / f"{name}.npz") as known:
        rows, expected = known["in:input-0"], {key[4:]: known[key] for key in known if key.startswith("out:")}
    plain = worker.load(7, models / f"{name}.skops", {}, "sklearn")
    worker.unload(7)
    converted = worker.load(7, models / f"{name}.skops", {"convert_to_onnx": "true"}, "sklearn")
    try:
        answers = arrays_of(worker.run(7, [from_array("input-0", "FP64", rows)], outputs=list(expected)))
        rows[0, 0] = np.nan
        with pytest.raises(InvalidArgument, match="NaN or infinity"):
            worker.run(7, [from_array("input-0", "FP64", rows)])
    finally:
        worker.unload(7)
    assert converted["signature"] == plain["signature"]
    for output, array in expected.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(answers[output], array, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(answers[output].astype(array.dtype), array)


def test_what_answers_otherwise_in_onnx_is_left_to_scikit_learn(models: Path, worker: WorkerClient) -> None:
    with np.load(models / "histogram.npz") as known:
        rows, scores = known["in:input-0"], known["out:predict_proba"]
    worker.load(8, models / "histogram.skops", {"convert_to_onnx": "true", "roost.model_name": "h"}, "sklearn")
    answers = arrays_of(worker.run(8, [from_array("input-0", "FP64", rows)], outputs=["predict_proba"]))
    worker.unload(8)
    np.testing.assert_array_equal(answers["predict_proba"], scores)
    assert "scikit-learn runs 'h' itself: its ONNX form answers 'predict' otherwise" in worker.stderr()


def test_a_prepared_copy_is_the_converted_model(models: Path, worker: WorkerClient) -> None:
    path = models / "prepared" / "model.onnx"
    fields = {"backend": "sklearn", "path": str(path), "root": str(path.parent), "options": {}, "prepared": True}
    worker.control(FrameType.LOAD, instance=9, **fields)
    with np.load(models / "scaled.npz") as known:
        rows, labels = known["in:input-0"], known["out:predict"]
    answers = arrays_of(worker.run(9, [from_array("input-0", "FP64", rows)]))
    worker.unload(9)
    np.testing.assert_array_equal(answers["predict"], labels)


def put(repository: Path, name: str, file: Path, usual: str, config: str = "") -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    shutil.copy(file, version / usual)
    if config:
        (repository / name / "config.pbtxt").write_text(config)


def test_a_server_answers_those_who_come_from_other_servers(models: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    put(repository, "scaled", models / "scaled.skops", "model.skops")
    put(repository, "boosted", models / "xgb_classes.json", "model.json", "max_batch_size: 8")
    put(repository, "pickled", models / "pickled.joblib", "model.joblib")
    with np.load(models / "scaled.npz") as known:
        rows, labels, scores = (known[key] for key in ("in:input-0", "out:predict", "out:predict_proba"))
    with np.load(models / "xgb_classes.npz") as known:
        boosted_rows, boosted = known["in:input-0"], known["out:predict"]
    with started(repository, tmp_path / "server") as server:
        status, answer = server.post("/v1/models/scaled:predict", {"instances": rows.tolist()})
        assert (status, answer) == (200, {"predictions": labels.tolist()})
        tensor = {"name": "any", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
        _, answer = server.post("/v2/models/scaled/infer", {"inputs": [tensor]})
        assert [(output["name"], output["data"]) for output in answer["outputs"]] == [("predict", labels.tolist())]
        wanted = {"inputs": [tensor], "outputs": [{"name": "predict_proba"}]}
        _, answer = server.post("/v2/models/scaled/infer", wanted)
        np.testing.assert_allclose(answer["outputs"][0]["data"], scores.ravel(), rtol=1e-5)
        tensor |= {"data": boosted_rows.ravel().tolist()}
        _, answer = server.post("/v2/models/boosted/infer", {"inputs": [tensor]})
        assert answer["outputs"] == [
            {"name": "predict", "datatype": "INT64", "shape": [len(boosted), 1], "data": boosted.tolist()}
        ]
        _, metadata = server.get("/v2/models/scaled")
        assert [output["name"] for output in metadata["outputs"]] == ["predict", "predict_proba"]
        status, answer = server.post("/v2/models/pickled/infer", {"inputs": [tensor]})
        assert status == 503
        assert "a pickle can run any code" in answer["error"]


def converted_by_trial(order: CopyOrder, changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Converts in a process; what loads take is made up."""
    if changes["job"] == "save":
        return in_fresh_process(order, changes)
    taken = {"first_run_s": 0.0, "private_bytes": 1 << 20, "peak_bytes": 1 << 20, "mappings": 0, "signature": {}}
    return {**taken, "load_s": 0.0 if changes.get("prepared") else 1.0, "answers": ["a"]}


def test_a_conversion_is_made_once_and_loaded_from_then_on(models: Path, tmp_path: Path) -> None:
    repository, cache = tmp_path / "models", tmp_path / "cache"
    asked = 'parameters { key: "convert_to_onnx" value { string_value: "true" } }'
    put(repository, "scaled", models / "scaled.skops", "model.skops", asked)
    put(repository, "same", models / "scaled.skops", "model.skops")
    folder = ModelFolder("scaled", repository / "scaled")
    description = folder.load_config()
    artifact = folder.artifact("1", description, Learned(MemoryStore()))
    options = load_options(description, "1", allow_code=False)
    order = order_of(folder, description, artifact, threads=1, memory_bytes=4 << 30, options=options)
    assert not make_copy(CopyCache(cache, 1 << 30), order, converted_by_trial).reason
    with np.load(models / "scaled.npz") as known:
        rows, labels = known["in:input-0"], known["out:predict"]
    tensor = {"name": "input-0", "datatype": "FP64", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    with started(repository, tmp_path / "server", "--cache-dir", str(cache)) as server:
        for model in ("scaled", "same"):
            _, answer = server.post(f"/v2/models/{model}/infer", {"inputs": [tensor]})
            assert answer["outputs"][0]["data"] == labels.tolist()
        assert server.metric("roost_prepared_loads_total") == 1, "nobody has asked for the other one's"
        assert server.metric("roost_device_mapped_bytes") == 0, "the copy is read, not mapped"
