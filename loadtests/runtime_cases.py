"""One or two models of each runtime, and how to call its framework directly: numpy arrays in and out, one thread.

Files come from ``tests.torch_models``, ``tests.tensorflow_models`` and ``tests.tabular_models``; frameworks are
imported by the process that calls them.
"""

from __future__ import annotations

import importlib
import os
import runpy
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Direct: TypeAlias = Callable[[Array], Any]

_PROGRAMS = {"torch_models", "tensorflow_models", "tabular_models"}

ROWS = (1, 32)
"""How many rows requests have."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model.

    Attributes:
        title: What the table calls it.
        model: Its name in the repository.
        source: Its file or folder, below that of everything that is made.
        target: What the repository calls that.
        input: Its input, which is FP32.
        shape: Of a row.
        output: The output that is asked for.
        load: Loads it with its framework and gives what runs it.
        config: Its configuration, if it needs one.
    """

    title: str
    model: str
    source: str
    target: str
    input: str
    shape: tuple[int, ...]
    output: str
    load: Callable[[Path], Direct]
    config: str = ""

    def rows(self, count: int) -> Array:
        """An input FP32 [count, ...]."""
        array: Array = np.random.default_rng(1).random((count, *self.shape), np.float32)
        return array


def make(cases: Sequence[Case], folder: Path) -> None:
    """Makes the files of cases."""
    from tests.models import write_mlp

    folder.mkdir()
    for program in sorted({Path(case.source).parts[0] for case in cases} & _PROGRAMS):
        (folder / program).mkdir()
        subprocess.run([sys.executable, "-m", f"tests.{program}", str(folder / program)], check=True)
    write_mlp(folder / "mlp.onnx", (16, 64, 4))
    for name, code in (("twice.py", _TWICE), ("twice_triton.py", _TWICE_TRITON)):
        (folder / name).write_text(textwrap.dedent(code))


def add(case: Case, made: Path, repository: Path) -> None:
    """Puts a case's model into a repository."""
    version = repository / case.model / "1"
    version.mkdir(parents=True)
    source = made / case.source
    if source.is_dir():
        shutil.copytree(source, version / case.target)
    else:
        shutil.copy(source, version / case.target)
    if case.config:
        (version.parent / "config.pbtxt").write_text(case.config)


def _onnx(path: Path) -> Direct:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def _torch(path: Path) -> Direct:
    import torch

    torch.set_num_threads(1)
    load: Callable[[str], Any] = torch.jit.load if path.suffix == ".pt" else torch.export.load
    model = load(str(path))
    net = model.eval() if path.suffix == ".pt" else model.module()

    def run(x: Array) -> Any:
        with torch.inference_mode():
            return net(torch.from_numpy(x)).numpy()

    return run


def _tensorflow(path: Path) -> Direct:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    tf: Any = importlib.import_module("tensorflow")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    return lambda x: signature(image=tf.constant(x))["features"].numpy()


def _sklearn(path: Path) -> Direct:
    skops: Any = importlib.import_module("skops.io")
    model = skops.load(path, trusted=skops.get_untrusted_types(file=path))
    if hasattr(model, "n_jobs"):
        model.n_jobs = 1
    predict: Direct = model.predict
    return predict


def _xgboost(path: Path) -> Direct:
    xgboost: Any = importlib.import_module("xgboost")
    model = xgboost.XGBClassifier(n_jobs=1)
    model.load_model(path)
    predict: Direct = model.predict
    return predict


def _lightgbm(path: Path) -> Direct:
    lightgbm: Any = importlib.import_module("lightgbm")
    booster = lightgbm.Booster(model_file=path)
    return lambda x: booster.predict(x, num_threads=1)


def _python(path: Path) -> Direct:
    """Called as a class in the same process; what Triton's module would do is left out."""
    found = runpy.run_path(str(path))
    twice: Direct = found["twice"]
    return twice


_TWICE = """
    import numpy as np
    from roost.runtimes import Model

    def twice(x):
        return x * np.float32(2)

    class Twice(Model):
        inputs = {"x": ("FP32", [-1, 16])}
        outputs = {"y": ("FP32", [-1, 16])}

        def predict(self, request):
            return {"y": twice(request["x"])}
"""
_TWICE_TRITON = """
    import numpy as np

    def twice(x):
        return x * np.float32(2)

    class TritonPythonModel:
        def execute(self, requests):
            import triton_python_backend_utils as pb_utils

            answers = []
            for request in requests:
                x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
                answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", twice(x))]))
            return answers
"""
_TRITON_CONFIG = """
backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: [ -1, 16 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1, 16 ] }
"""
_CONV_CONFIG = """
backend: "pytorch"
input { name: "x" data_type: TYPE_FP32 dims: [ -1, 3, 16, 16 ] }
output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ -1, 10 ] }
"""
_IMAGE = (3, 16, 16)
_TABULAR = "tabular_models"

CASES: Sequence[Case] = (
    Case("ONNX Runtime: dense layers", "mlp", "mlp.onnx", "model.onnx", "x", (16,), "y", _onnx),
    Case(
        "TorchScript: a convolution",
        "conv_script",
        "torch_models/conv.pt",
        "model.pt",
        "x",
        _IMAGE,
        "OUTPUT__0",
        _torch,
        _CONV_CONFIG,
    ),
    Case(
        "torch.export: the same",
        "conv_export",
        "torch_models/conv.pt2",
        "model.pt2",
        "x",
        _IMAGE,
        "OUTPUT__0",
        _torch,
    ),
    Case(
        "SavedModel: a convolution",
        "convolution",
        "tensorflow_models/convolution/model.savedmodel",
        "model.savedmodel",
        "image",
        (16, 16, 3),
        "features",
        _tensorflow,
    ),
    Case(
        "scikit-learn: logistic regression",
        "scaled",
        f"{_TABULAR}/scaled.skops",
        "model.skops",
        "input-0",
        (4,),
        "predict",
        _sklearn,
    ),
    Case(
        "scikit-learn: forest of 8 trees",
        "forest",
        f"{_TABULAR}/forest.skops",
        "model.skops",
        "input-0",
        (4,),
        "predict",
        _sklearn,
    ),
    Case("XGBoost", "xgb", f"{_TABULAR}/xgb_classes.json", "model.json", "input-0", (4,), "predict", _xgboost),
    Case("LightGBM", "lgb", f"{_TABULAR}/lgb_classes.txt", "model.txt", "input-0", (4,), "predict", _lightgbm),
    Case("Python: roost.runtimes.Model", "twice", "twice.py", "model.py", "x", (16,), "y", _python),
    Case(
        "Python: TritonPythonModel",
        "twice_triton",
        "twice_triton.py",
        "model.py",
        "x",
        (16,),
        "y",
        _python,
        _TRITON_CONFIG,
    ),
)

BY_MODEL: Mapping[str, Case] = {case.model: case for case in CASES}
