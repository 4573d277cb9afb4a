"""Builds SavedModels and what TensorFlow itself answers: ``python -m tests.tensorflow_models FOLDER``.

A process of its own, as the one that runs tests must not import TensorFlow. Each model is a folder
``NAME/model.savedmodel``; ``expected.npz`` has ``NAME.input.KEY`` and ``NAME.output.KEY``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TYPES = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
)
WIDE_FLOATS = 4 << 20

_expected: dict[str, npt.NDArray[Any]] = {}


def main() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    tf: Any = importlib.import_module("tensorflow")
    folder = Path(sys.argv[1])
    for build in (_affine, _convolution, _types, _texts, _words, _counter, _wide, _any_rank, _reads, _python):
        name, module, signatures, inputs = build(tf, folder)
        tf.saved_model.save(module, str(folder / name / "model.savedmodel"), signatures=signatures)
        _expect(tf, name, signatures, inputs)
    _keras(folder)
    arrays: dict[str, Any] = {**_expected}
    np.savez(folder / "expected.npz", **arrays)
    os._exit(0)


def _expect(tf: Any, name: str, signatures: Mapping[str, Any], inputs: Mapping[str, npt.NDArray[Any]]) -> None:
    if not inputs:
        return
    answers = signatures["serving_default"](**{key: tf.constant(value) for key, value in inputs.items()})
    for key, value in inputs.items():
        _expected[f"{name}.input.{key}"] = value.astype("S") if value.dtype == object else value
    for key, value in answers.items():
        array = value.numpy()
        _expected[f"{name}.output.{key}"] = array.astype("S") if array.dtype == object else array


def _module(tf: Any, function: Any, inputs: Mapping[str, Any], **variables: Any) -> tuple[Any, dict[str, Any]]:
    """A module with one function, whose inputs have these specifications."""
    module = tf.Module()
    for name, value in variables.items():
        setattr(module, name, value)
    module.serve = tf.function(function)
    return module, {"serving_default": module.serve.get_concrete_function(**inputs)}


def _affine(tf: Any, _: Path) -> Any:
    w = tf.Variable(tf.reshape(tf.range(12, dtype=tf.float32), (4, 3)))
    x = tf.TensorSpec((None, 4), tf.float32, "x")
    module, signatures = _module(
        tf, lambda x: {"y": tf.matmul(x, w), "total": tf.reduce_sum(x, axis=1), "first": x[:, :1]}, {"x": x}, w=w
    )
    module.twice = tf.function(lambda x: {"y": 2 * x})
    signatures["twice"] = module.twice.get_concrete_function(x=x)
    return "affine", module, signatures, {"x": np.random.default_rng(1).random((3, 4), np.float32)}


def _convolution(tf: Any, _: Path) -> Any:
    kernel = tf.Variable(tf.random.stateless_normal((3, 3, 3, 8), (1, 2)))
    x = tf.TensorSpec((None, 16, 16, 3), tf.float32, "image")
    module, signatures = _module(
        tf, lambda image: {"features": tf.nn.relu(tf.nn.conv2d(image, kernel, 1, "SAME"))}, {"image": x}, kernel=kernel
    )
    return "convolution", module, signatures, {"image": np.random.default_rng(2).random((16, 16, 16, 3), np.float32)}


def _types(tf: Any, _: Path) -> Any:
    specs = {name: tf.TensorSpec((None,), getattr(tf, name), name) for name in TYPES}
    module, signatures = _module(tf, lambda **given: {f"{name}_": tf.identity(given[name]) for name in given}, specs)
    return "types", module, signatures, {name: np.array([0, 1, 1], name) for name in TYPES}


def _texts(tf: Any, _: Path) -> Any:
    x = tf.TensorSpec((None, 2), tf.string, "text")
    module, signatures = _module(
        tf, lambda text: {"upper": tf.strings.upper(text), "length": tf.strings.length(text)}, {"text": x}
    )
    texts = np.array([["a", "much longer than what fits into 22 bytes"], ["", "ü"]], object)
    return "texts", module, signatures, {"text": np.vectorize(str.encode, otypes=[object])(texts)}


def _words(tf: Any, folder: Path) -> Any:
    vocabulary = folder / "words.txt"
    vocabulary.write_text("zero\none\ntwo\n")
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        -1,
    )
    x = tf.TensorSpec((None,), tf.string, "word")
    module, signatures = _module(tf, lambda word: {"number": table.lookup(word)}, {"word": x}, table=table)
    return "words", module, signatures, {"word": np.array([b"two", b"one", b"three"], object)}


def _counter(tf: Any, _: Path) -> Any:
    """Answers with what it was given before: it keeps its input."""
    last = tf.Variable(tf.zeros((8,)), shape=tf.TensorShape(None))

    def swap(x: Any) -> Any:
        before = tf.identity(last.read_value())
        with tf.control_dependencies([before]):
            last.assign(x)
        return {"before": before}

    module, signatures = _module(tf, swap, {"x": tf.TensorSpec((None,), tf.float32, "x")}, last=last)
    return "counter", module, signatures, {}


def _wide(tf: Any, _: Path) -> Any:
    w = tf.Variable(tf.fill((WIDE_FLOATS,), 0.5))
    x = tf.TensorSpec((None, 1), tf.float32, "x")
    module, signatures = _module(tf, lambda x: {"y": x * tf.reduce_sum(w)}, {"x": x}, w=w)
    return "wide", module, signatures, {"x": np.ones((2, 1), np.float32)}


def _any_rank(tf: Any, _: Path) -> Any:
    module, signatures = _module(tf, lambda x: {"y": x + 1}, {"x": tf.TensorSpec(None, tf.float32, "x")})
    return "any_rank", module, signatures, {"x": np.ones((2, 3), np.float32)}


def _reads(tf: Any, _: Path) -> Any:
    module, signatures = _module(
        tf, lambda path: {"text": tf.io.read_file(path)}, {"path": tf.TensorSpec((), tf.string, "path")}
    )
    return "reads", module, signatures, {}


def _python(tf: Any, _: Path) -> Any:
    def run(x: Any) -> Any:
        return {"y": tf.ensure_shape(tf.numpy_function(lambda a: a, [x], tf.float32), (None,))}

    module, signatures = _module(tf, run, {"x": tf.TensorSpec((None,), tf.float32, "x")})
    return "python", module, signatures, {}


def _keras(folder: Path) -> None:
    keras: Any = importlib.import_module("keras")
    layers = [keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.layers.Input((3,), name="x"), *layers])
    (folder / "keras").mkdir()
    model.save(folder / "keras" / "model.keras")
    x = np.random.default_rng(3).random((5, 3), np.float32)
    _expected["keras.input.x"] = x
    _expected["keras.output.y"] = np.asarray(model(x))


if __name__ == "__main__":
    main()
