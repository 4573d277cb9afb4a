"""SavedModels in a real worker, with TensorFlow's own answers beside them, which another process has made."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from roost.core.errors import Cancelled, InvalidArgument
from roost.core.frames import FrameType, Region, Run, WireTensor
from roost.core.tensors import Tensor, from_array
from roost.runtimes.prepared.making import CopyOrder, in_fresh_process

from tests.tensorflow_models import WIDE_FLOATS
from tests.worker_client import WorkerClient, arrays_of

Arrays = Mapping[str, npt.NDArray[Any]]

CODE = {"roost.allow_code": "true"}
DATATYPES = {
    "bool": "BOOL",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorflow")
    command = [sys.executable, "-m", "tests.tensorflow_models", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def expected(models: Path) -> Arrays:
    with np.load(models / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def shared_worker() -> Iterator[WorkerClient]:
    with WorkerClient(kind="tensorflow", slots=2) as client:
        yield client


@pytest.fixture
def worker(shared_worker: WorkerClient) -> Iterator[WorkerClient]:
    yield shared_worker
    for instance in shared_worker.status()["instances"]:
        shared_worker.unload(instance)


def begin_load(worker: WorkerClient, path: Path, options: Mapping[str, str] | None = None, instance: int = 1) -> int:
    fields = {"backend": "tensorflow", "path": str(path), "root": str(path.parent), "options": dict(options or {})}
    return worker.begin(FrameType.LOAD, instance=instance, **fields)


def load(
    worker: WorkerClient, path: Path, options: Mapping[str, str] | None = None, instance: int = 1
) -> dict[str, Any]:
    return worker.end(begin_load(worker, path, options, instance))


def tensor(name: str, array: npt.NDArray[Any]) -> Tensor:
    if array.dtype.kind == "S":
        return from_array(name, "BYTES", array.astype(object))
    return from_array(name, DATATYPES[array.dtype.name], array)


def given(expected: Arrays, model: str) -> list[Tensor]:
    prefix = f"{model}.input."
    return [tensor(key.removeprefix(prefix), array) for key, array in expected.items() if key.startswith(prefix)]


def check(expected: Arrays, model: str, answers: Arrays) -> None:
    prefix = f"{model}.output."
    assert {f"{prefix}{name}" for name in answers} == {key for key in expected if key.startswith(prefix)}
    for name, array in answers.items():
        wanted = expected[prefix + name]
        if wanted.dtype.kind == "S":
            assert array.astype("S").tolist() == wanted.tolist()
        else:
            assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape)
            np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", ["affine", "convolution", "types", "texts", "words", "wide"])
def test_answers_are_those_of_the_framework(worker: WorkerClient, models: Path, expected: Arrays, model: str) -> None:
    loaded = load(worker, models / model / "model.savedmodel")
    names = [row[0] for row in loaded["signature"]["outputs"]]
    assert names == sorted(names)
    for _ in range(2):  # the first run prepares what later ones use
        check(expected, model, arrays_of(worker.run(1, given(expected, model))))


def test_signature_and_other_signatures(worker: WorkerClient, models: Path) -> None:
    path = models / "affine" / "model.savedmodel"
    assert load(worker, path)["signature"] == {
        "inputs": [["x", "FP32", [-1, 4], False]],
        "outputs": [["first", "FP32", [-1, 1], False], ["total", "FP32", [-1], False], ["y", "FP32", [-1, 3], False]],
    }
    load(worker, path, {"TF_SIGNATURE_DEF": "twice", "TF_GRAPH_TAG": "serve"}, instance=2)
    x = np.ones((2, 4), np.float32)
    assert arrays_of(worker.run(2, [tensor("x", x)]))["y"].tolist() == (2 * x).tolist()
    with pytest.raises(InvalidArgument, match=r"no signature 'other'; it has: serving_default, twice"):
        load(worker, path, {"TF_SIGNATURE_DEF": "other"}, instance=3)


def test_outputs_asked_for(worker: WorkerClient, models: Path) -> None:
    load(worker, models / "affine" / "model.savedmodel")
    x = [tensor("x", np.ones((2, 4), np.float32))]
    for names in (["y"], ["total", "first"], ["first", "total"], ["y"]):
        assert sorted(arrays_of(worker.run(1, x, outputs=names))) == sorted(names)


def test_tensors_in_shared_memory(worker: WorkerClient, models: Path, expected: Arrays) -> None:
    load(worker, models / "convolution" / "model.savedmodel")
    image, wanted = expected["convolution.input.image"], expected["convolution.output.features"]
    at, to = 1 << 20, 2 << 20
    worker.arena[at : at + image.nbytes] = image.tobytes()
    inputs = [WireTensor("image", "FP32", image.shape, Region(at, image.nbytes))]
    places = [WireTensor("features", "FP32", wanted.shape, Region(to, wanted.nbytes))]
    response = worker.end_run(worker.send_run(Run(1, 0, inputs, places=places)))
    assert response.outputs[0].data == Region(to, wanted.nbytes)
    found = np.frombuffer(worker.arena[to : to + wanted.nbytes], np.float32).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_what_a_model_keeps_is_its_own(worker: WorkerClient, models: Path) -> None:
    load(worker, models / "counter" / "model.savedmodel")
    at = 1 << 20
    for first, before in ((1, 0), (2, 1), (3, 2)):
        worker.arena[at : at + 32] = np.full(8, first, np.float32).tobytes()
        run = Run(1, 0, [WireTensor("x", "FP32", (8,), Region(at, 32))])
        assert arrays_of(worker.end_run(worker.send_run(run)))["before"].tolist() == [before] * 8


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([], "input 'x' is missing"),
        ([("x", np.ones((1, 4), np.float32)), ("z", np.ones(1, np.float32))], "unexpected input 'z'"),
        ([("x", np.ones((1, 4), np.int32))], "input 'x' is INT32, the model takes FP32"),
        ([("x", np.ones((1, 5), np.float32))], "(?i)matrix size-incompatible"),
    ],
)
def test_bad_inputs(worker: WorkerClient, models: Path, inputs: list[tuple[str, Any]], reason: str) -> None:
    load(worker, models / "affine" / "model.savedmodel")
    with pytest.raises(InvalidArgument, match=reason) as caught:
        worker.run(1, [tensor(name, array) for name, array in inputs])
    assert "function_node" not in caught.value.message
    assert arrays_of(worker.run(1, [tensor("x", np.zeros((1, 4), np.float32))]))["y"].tolist() == [[0, 0, 0]]


def test_files_and_code_need_permission(worker: WorkerClient, models: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"\(ReadFile\).*--allow-code"):
        load(worker, models / "reads" / "model.savedmodel")
    with pytest.raises(InvalidArgument, match=r"\(PyFunc\w*\).*--allow-code"):
        load(worker, models / "python" / "model.savedmodel")
    load(worker, models / "reads" / "model.savedmodel", CODE)
    (tmp_path / "secret").write_text("not any more")
    path = from_array("path", "BYTES", np.array(str(tmp_path / "secret").encode(), object))
    assert arrays_of(worker.run(1, [path]))["text"].item() == b"not any more"


def test_broken_models(worker: WorkerClient, models: Path, tmp_path: Path) -> None:
    path = models / "affine" / "model.savedmodel"
    broken = tmp_path / "model.savedmodel"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(path.joinpath("saved_model.pb").read_bytes()[:-100])
    with pytest.raises(InvalidArgument, match="broken"):
        load(worker, broken)
    whole = path.joinpath("saved_model.pb").read_bytes()
    (broken / "saved_model.pb").write_bytes(whole.replace(b"MatMul", b"MetMul"))
    with pytest.raises(InvalidArgument, match=r"Op type not registered 'MetMul'$"):
        load(worker, broken)
    (broken / "saved_model.pb").write_bytes(whole)
    (broken / "variables").mkdir()
    (broken / "variables" / "variables.index").write_bytes(b"no index")
    with pytest.raises(InvalidArgument) as caught:
        load(worker, broken)
    assert str(tmp_path) not in caught.value.message


def test_a_rank_that_only_the_configuration_knows(worker: WorkerClient, models: Path, expected: Arrays) -> None:
    path = models / "any_rank" / "model.savedmodel"
    with pytest.raises(InvalidArgument, match="declare it"):
        load(worker, path)
    loaded = load(worker, path, {"roost.inputs": json.dumps([["x", "FP32", [-1, 3]]])})
    assert loaded["signature"]["inputs"] == [["x", "FP32", [-1, 3], False]]
    check(expected, "any_rank", arrays_of(worker.run(1, given(expected, "any_rank"))))


def test_unloading_gives_memory_back(worker: WorkerClient, models: Path) -> None:
    def cycle() -> int:
        load(worker, models / "wide" / "model.savedmodel")
        worker.run(1, [tensor("x", np.ones((1, 1), np.float32))])
        held_bytes = int(worker.status()["private_bytes"])
        worker.unload(1)
        worker.control(FrameType.TRIM)
        left_bytes = int(worker.status()["private_bytes"])
        assert held_bytes - left_bytes > 4 * WIDE_FLOATS * 9 // 10
        return left_bytes

    first_bytes = [cycle() for _ in range(3)][-1]
    assert [cycle() for _ in range(6)][-1] - first_bytes < 4 << 20


def test_keras_files_are_exported_where_code_is_allowed(worker: WorkerClient, models: Path, expected: Arrays) -> None:
    path = models / "keras" / "model.keras"
    with pytest.raises(InvalidArgument, match="--allow-code"):
        load(worker, path)
    (output,) = load(worker, path, CODE)["signature"]["outputs"]
    x = tensor("x", expected["keras.input.x"])
    np.testing.assert_allclose(
        arrays_of(worker.run(1, [x]))[output[0]], expected["keras.output.y"], rtol=1e-5, atol=1e-6
    )


def test_a_prepared_copy_is_loaded_without_keras(
    worker: WorkerClient, models: Path, expected: Arrays, tmp_path: Path
) -> None:
    path = models / "keras" / "model.keras"
    order = CopyOrder(str(path), str(path.parent), "d", [], "tensorflow", memory_bytes=8 << 30, options=CODE)
    (tmp_path / "copy").mkdir()
    saved = in_fresh_process(order, {"job": "save", "target": str(tmp_path / "copy")})
    fields = {"path": str(tmp_path / "copy" / saved["entry"]), "root": str(tmp_path / "copy"), "options": CODE}
    loaded = worker.control(FrameType.LOAD, instance=1, backend="tensorflow", prepared=True, **fields)
    assert not psutil.Process(worker.process.pid).children()
    (output,) = loaded["signature"]["outputs"]
    answers = arrays_of(worker.run(1, [tensor("x", expected["keras.input.x"])]))
    np.testing.assert_allclose(answers[output[0]], expected["keras.output.y"], rtol=1e-5, atol=1e-6)


def test_an_export_ends_with_its_load(worker: WorkerClient, models: Path) -> None:
    process = psutil.Process(worker.process.pid)
    request = begin_load(worker, models / "keras" / "model.keras", CODE)
    while not process.children():
        worker.status()
    worker.cancel(request)
    with pytest.raises(Cancelled):
        worker.end(request)
    assert not process.children()


def test_a_model_in_two_forms(worker: WorkerClient) -> None:
    spec = importlib.util.find_spec("basic_pitch")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("basic-pitch is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "saved_models" / "icassp_2022"
    (row,) = load(worker, folder / "nmp")["signature"]["inputs"]
    audio = np.random.default_rng(4).normal(0, 0.1, (2, *row[2][1:])).astype(np.float32)
    answers = arrays_of(worker.run(1, [tensor(row[0], audio)]))
    with WorkerClient() as onnx:
        signature = onnx.load(1, folder / "nmp.onnx")["signature"]
        wanted = arrays_of(onnx.run(1, [tensor(signature["inputs"][0][0], audio)]))
    assert len(answers) == len(wanted) == 3
    for name, other in zip(sorted(answers), sorted(wanted), strict=True):
        np.testing.assert_allclose(answers[name], wanted[other], atol=1e-3)


def test_the_worker_does_without_the_framework_s_python(worker: WorkerClient) -> None:
    with open(f"/proc/{worker.process.pid}/maps", encoding="utf-8") as maps:
        mapped = {os.path.basename(line.split()[-1]) for line in maps}
    assert "libtensorflow_cc.so.2" in mapped
    assert not any("pywrap" in name for name in mapped)
    assert worker.hello["runtimes"] == ["tensorflow"]
