"""A repository with models of every kind, and what each has to answer: what its framework says, called directly.

What PyTorch, scikit-learn and the boosters say was written down by processes of their own (``tests.torch_models``,
``tests.tabular_models``); ONNX Runtime is called here.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from roost.server.demo.repository import MAGIKA, SILERO, build_repository
from roost.server.demo.vad_client import chunk_inputs, first_state

from tests.checks import Arrays, Check, InARow, OneSequence, Question, Stream
from tests.models import tensor_info, write_graph
from tests.python_models import DECOUPLED, ONE_TO_ONE, write_python

EXAMPLES = Path(__file__).parents[1] / "examples"
SEED = 3


def build(repository: Path, torch_models: Path, tabular_models: Path) -> list[Check]:
    """Writes all models.

    Args:
        repository: An empty folder.
        torch_models: What ``tests.torch_models`` has made.
        tabular_models: What ``tests.tabular_models`` has made.
    """
    return [
        *_onnx(repository),
        *_conformance(repository),
        *_torch(repository, torch_models),
        *_saved_model(repository),
        *_tabular(repository, tabular_models),
        *_python(repository),
        *_ensemble(repository, torch_models),
        *_sequence(repository),
    ]


def _direct(path: Path, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
    """What ONNX Runtime answers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _asked(repository: Path, model: str, inputs: Arrays, tolerance: float = 1e-5) -> Question:
    """A question to a model in ONNX that is in the repository."""
    return Question(model, inputs, _direct(repository / model / "1" / "model.onnx", inputs), tolerance)


def _onnx(repository: Path) -> Iterable[Check]:
    features = build_repository(repository).file_types.features(Path(__file__))
    assert features is not None
    yield _asked(repository, MAGIKA, {"bytes": np.concatenate([features, features[:, ::-1]])})
    sound = _sound(576)[np.newaxis]
    state = np.zeros((2, 1, 128), np.float32)
    yield _asked(repository, SILERO, {"input": sound, "state": state, "sr": np.array(16000)})


def _sound(samples: int) -> npt.NDArray[np.float32]:
    noise: npt.NDArray[np.float32] = np.random.default_rng(SEED).normal(0, 0.1, samples).astype(np.float32)
    return noise


_CONFORMANCE: Mapping[str, Sequence[str]] = {
    "pytorch-converted": (
        "Conv1d_dilated",
        "Conv2d_depthwise_padded",
        "Conv3d_groups",
        "ConvTranspose2d",
        "ELU",
        "Embedding",
        "LogSoftmax",
        "MaxPool2d_stride_padding_dilation",
        "PixelShuffle",
        "ReflectionPad2d",
        "SELU",
    ),
    "pytorch-operator": ("operator_conv", "operator_index", "operator_permute2", "operator_view"),
    "simple": ("expand_shape_model1",),
}
"""Models of the ``onnx`` package, each with an input and what it has to answer, by the folder that they are in."""


def _conformance(repository: Path) -> Iterable[Check]:
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for folder, names in _CONFORMANCE.items():
        for name in names:
            source, model = data / folder / f"test_{name}", f"onnx_{name}"
            (repository / model / "1").mkdir(parents=True)
            shutil.copy(source / "model.onnx", repository / model / "1" / "model.onnx")
            graph = onnx.load(str(source / "model.onnx")).graph
            weights = {weight.name for weight in graph.initializer}
            inputs = [value.name for value in graph.input if value.name not in weights]
            case = source / "test_data_set_0"
            given = {input_: _protobuf(case / f"input_{i}.pb") for i, input_ in enumerate(inputs)}
            answers = {value.name: _protobuf(case / f"output_{i}.pb") for i, value in enumerate(graph.output)}
            yield Question(model, given, answers, tolerance=1e-4)


def _protobuf(path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = numpy_helper.to_array(onnx.load_tensor(str(path)))
    return array


_CONV_CONFIG = """
backend: "pytorch"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 3, 16, 16 ] }
output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 10 ] }
"""
_SPEECH_CONFIG = """
backend: "pytorch"
input { name: "x" data_type: TYPE_FP32 dims: [ -1, 512 ] }
input { name: "sr" data_type: TYPE_INT64 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1, 1 ] }
"""


def _torch(repository: Path, made: Path) -> Iterable[Check]:
    known = _read(made / "conv.npz")
    _add(repository, "conv_script", made / "conv.pt", "model.pt", _CONV_CONFIG)
    _add(repository, "conv_export", made / "conv.pt2", "model.pt2")
    for model in ("conv_script", "conv_export"):
        yield Question(model, {"x": known["x"]}, {"OUTPUT__0": known["y"]})
    silero = Path(str(distribution("silero-vad").locate_file("silero_vad/data/silero_vad.jit")))
    _add(repository, "speech_script", silero, "model.pt", _SPEECH_CONFIG)
    speech = _read(made / "silero_rows.npz")
    # It forgets what it knows of the sound before when another number of rows comes.
    rows = [
        Question("speech_script", {"x": speech[f"x{n}"], "sr": np.array([16000])}, {"y": speech[f"y{n}"]}, 1e-4)
        for n in (3, 2)
    ]
    yield InARow(rows)


def _saved_model(repository: Path) -> Iterable[Check]:
    """One net as a SavedModel and in ONNX; TensorFlow's own Python can't load the former any more."""
    spec = importlib.util.find_spec("basic_pitch")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "saved_models" / "icassp_2022"
    shutil.copytree(source / "nmp", repository / "notes" / "1" / "model.savedmodel")
    _add(repository, "notes_onnx", source / "nmp.onnx", "model.onnx")
    sound = _sound(43844).reshape(1, -1, 1)
    in_onnx = _asked(repository, "notes_onnx", {"serving_default_input_2:0": sound}, tolerance=1e-4)
    yield in_onnx
    answers = [in_onnx.answers[name] for name in sorted(in_onnx.answers)]
    yield Question("notes", {"input_2": sound}, dict(zip(("contour", "note", "onset"), answers, strict=True)), 1e-3)


def _tabular(repository: Path, made: Path) -> Iterable[Check]:
    for model, file, target in (
        ("forest", "forest.skops", "model.skops"),
        ("xgb_classes", "xgb_classes.json", "model.json"),
        ("lgb_classes", "lgb_classes.txt", "model.txt"),
    ):
        _add(repository, model, made / file, target)
        known = _read(made / f"{model}.npz")
        answers = {name.removeprefix("out:"): array for name, array in known.items() if name.startswith("out:")}
        yield Question(model, {"input-0": known["in:input-0"]}, answers)


_COUNTS = """
    from roost.runtimes import Model

    class Counts(Model):
        def predict(self, request):
            for i in range(int(request["x"][0])):
                yield {"y": [i]}
"""
_BEST_CONFIG = """
input { name: "scores" data_type: TYPE_FP32 dims: [ -1, -1 ] }
output { name: "best" data_type: TYPE_INT64 dims: [ -1 ] }
"""
_BEST = """
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def execute(self, requests):
            answers = []
            for request in requests:
                scores = pb_utils.get_input_tensor_by_name(request, "scores").as_numpy()
                best = pb_utils.Tensor("best", scores.argmax(axis=1).astype(np.int64))
                answers.append(pb_utils.InferenceResponse(output_tensors=[best]))
            return answers
"""


def _python(repository: Path) -> Iterable[Check]:
    shutil.copytree(EXAMPLES / "hello", repository / "hello")
    names = np.array([b"Ada", "Zoë".encode()], object)
    greetings = np.array([b"Hello, Ada!", "Hello, Zoë!".encode()], object)
    yield Question("hello", {"name": names}, {"greeting": greetings})
    write_python(repository / "counts", _COUNTS, ONE_TO_ONE + DECOUPLED)
    yield Stream("counts", 4)
    write_python(repository / "best", _BEST, _BEST_CONFIG)
    scores = np.random.default_rng(SEED).random((5, 7), np.float32)
    yield Question("best", {"scores": scores}, {"best": scores.argmax(axis=1)})


_ENSEMBLE_CONFIG = """
platform: "ensemble"
input { name: "doubled" data_type: TYPE_FP32 dims: [ -1, 3, 16, 16 ] }
output { name: "class" data_type: TYPE_INT64 dims: [ -1 ] }
output { name: "scores" data_type: TYPE_FP32 dims: [ -1, 10 ] }
ensemble_scheduling {
  step {
    model_name: "halves"
    model_version: -1
    input_map { key: "x" value: "doubled" }
    output_map { key: "y" value: "image" }
  }
  step {
    model_name: "conv_script"
    model_version: -1
    input_map { key: "x" value: "image" }
    output_map { key: "OUTPUT__0" value: "scores" }
  }
  step {
    model_name: "best"
    model_version: -1
    input_map { key: "scores" value: "scores" }
    output_map { key: "best" value: "class" }
  }
}
"""


def _ensemble(repository: Path, made: Path) -> Iterable[Check]:
    """Three runtimes, one after the other: ONNX, TorchScript, a model written for Triton."""
    known = _read(made / "conv.npz")
    write_graph(
        repository / "halves" / "1" / "model.onnx",
        [helper.make_node("Mul", ["x", "half"], ["y"])],
        [tensor_info("x", "FP32", ["batch", 3, 16, 16])],
        [tensor_info("y", "FP32", ["batch", 3, 16, 16])],
        [numpy_helper.from_array(np.array(0.5, np.float32), "half")],
    )
    (repository / "classes" / "1").mkdir(parents=True)
    (repository / "classes" / "config.pbtxt").write_text(_ENSEMBLE_CONFIG)
    answers = {"class": known["y"].argmax(axis=1), "scores": known["y"]}
    yield Question("classes", {"doubled": known["x"] * 2}, answers)


def _sequence(repository: Path) -> Iterable[Check]:
    """silero-vad again, with its state kept by the server."""
    file = repository / SILERO / "1" / "model.onnx"
    _add(repository, "speech", file, "model.onnx", (EXAMPLES / "speech" / "config.pbtxt").read_text())
    state, questions = first_state(), []
    for chunk in chunk_inputs(_sound(4 * 512)):
        given = {"input": chunk, "sr": np.array(16000)}
        found = _direct(file, {**given, "state": state})
        questions.append(Question("speech", given, {"output": found["output"]}))
        state = found["stateN"]
    yield OneSequence(questions)


def _add(repository: Path, model: str, file: Path, name: str, config: str = "") -> None:
    """Puts a file into the repository as version 1 of a model."""
    (repository / model / "1").mkdir(parents=True)
    shutil.copy(file, repository / model / "1" / name)
    if config:
        (repository / model / "config.pbtxt").write_text(config)


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(path) as file:
        return dict(file)
