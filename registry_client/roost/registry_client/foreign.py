"""Files that people bring and that no runtime here reads, and what they should bring instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from posixpath import splitext

from roost.registry_client.files import shown

_TO_ONNX = "export it to ONNX"
_KERAS = ("a Keras model in the format of old", "save it with model.export('model.savedmodel')")
_TENSORFLOW_1 = ("a graph of TensorFlow 1", "save it as a SavedModel")
_TENSORRT = ("a TensorRT engine", "there is no TensorRT runtime: serve the ONNX model that it was made of")
_WEIGHTS = ("weights without a program", "export the model, to ONNX or with torch.export")
_FORMATS: Mapping[str, tuple[str, str]] = {
    ".bin": _WEIGHTS,
    ".cbm": ("a CatBoost model", "save it with save_model(path, format='onnx')"),
    ".ckpt": ("a checkpoint, weights without a program", "export the model, to ONNX or with torch.export"),
    ".engine": _TENSORRT,
    ".gguf": ("a language model of llama.cpp", "serve it with a server for such models"),
    ".graphdef": _TENSORFLOW_1,
    ".h5": _KERAS,
    ".hdf5": _KERAS,
    ".mar": ("an archive of TorchServe", "put the TorchScript file in it into a version's folder as model.pt"),
    ".mlmodel": ("a Core ML model", _TO_ONNX),
    ".mojo": ("an H2O model", _TO_ONNX),
    ".pb": _TENSORFLOW_1,
    ".plan": _TENSORRT,
    ".pmml": ("a PMML model", "save it with skops, as ONNX, or as what made it does"),
    ".pth": ("weights of PyTorch without a program", "save it with torch.export.save as model.pt2"),
    ".safetensors": _WEIGHTS,
    ".tflite": ("a TensorFlow Lite model", "serve the SavedModel that it was made of"),
    ".xml": ("an OpenVINO model", "there is no OpenVINO runtime: serve the ONNX model that it was made of"),
}
"""By suffix: what it is, and what helps."""

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".7z", ".rar", ".tar.zst")
_MLFLOW = "MLmodel"


def foreign_format(names: Iterable[str]) -> str:
    """What the first of these files is that is a model no runtime reads; empty if none is."""
    for name in sorted(names):
        if name == _MLFLOW:
            return "it is a model of MLflow: serve the model in it, by its own format"
        if is_archive(name):
            return f"'{shown(name)}' is an archive, which is not looked into when models are loaded: unpack it"
        what, advice = _FORMATS.get(splitext(name)[1].lower(), ("", ""))
        if what:
            return f"'{shown(name)}' is {what}, which no runtime here loads: {advice}"
    return ""


def is_archive(name: str) -> bool:
    """Whether files of this name are archives of files."""
    return name.lower().endswith(_ARCHIVES)
