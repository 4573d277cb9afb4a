"""What a model's file says of itself, whichever runtime it is for; nothing of it is run."""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
from collections.abc import Mapping

from roost.core.errors import InvalidArgument, RoostError
from roost.registry_client.files import open_regular
from roost.registry_client.load_options import ALLOW_CODE
from roost.runtimes.tensorflow.adapter import SIGNATURE_OPTION, TAG_OPTION, interface_of
from roost.runtimes.tensorflow.operations import unsafe_operations
from roost.runtimes.tensorflow.saved_model import DEFAULT_SIGNATURE, read_meta_graph
from roost.server.inspection.archives import ZIP_ERRORS, open_tar, problems_of_tar, problems_of_zip
from roost.server.inspection.onnx_file import look_at_onnx
from roost.server.inspection.pickles import is_pickle
from roost.server.inspection.python_file import look_at_python
from roost.server.inspection.report import Findings
from roost.server.inspection.tabular_file import look_at_lightgbm, look_at_sklearn, look_at_xgboost
from roost.server.inspection.torch_file import look_at_torch

_NEEDS_CODE = "it needs --allow-code"
_ENVIRONMENT = "EXECUTION_ENV_PATH"
_HEAD_BYTES = 16


def look_at(backend: str, path: str, root: str, model_folder: str, options: Mapping[str, str]) -> Findings:
    """Looks at the file or folder of a version.

    Args:
        backend: The runtime that would load it.
        path: Where it is.
        root: The folder of all files of the version.
        model_folder: The model's folder.
        options: What the runtime would be told.
    """
    found = Findings()
    try:
        _look_for_disguises(backend, path, found)
        if not found.problems:
            found.add(_look(backend, path, root, model_folder, options))
    except RoostError as error:
        found.problems.append(error.message)
    except OSError as error:
        found.problems.append(f"the model can't be read: {error.strerror}")
    return found


def look_at_archive(path: str) -> list[str]:
    """What is wrong with an archive of files, besides being one."""
    size_bytes = os.path.getsize(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return list(problems_of_zip(archive, size_bytes))
        with open_tar(path) as tar:
            return list(problems_of_tar(tar, size_bytes))
    except (tarfile.TarError, *ZIP_ERRORS) as error:
        return [f"the archive can't be read: {error}"]


def _look_for_disguises(backend: str, path: str, found: Findings) -> None:
    """A pickle under another name, and an archive that reaches out of itself."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return
    with open_regular(path, os.path.basename(path)) as (descriptor, status):
        head = os.read(descriptor, _HEAD_BYTES)
    if is_pickle(head) and backend not in ("sklearn", "pytorch"):
        found.problems.append(f"'{os.path.basename(path)}' is a pickle, whatever it is called")
    elif head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                found.problems += problems_of_zip(archive, status.st_size)
        except ZIP_ERRORS:
            pass  # its runtime's own look says so


def _look(backend: str, path: str, root: str, model_folder: str, options: Mapping[str, str]) -> Findings:
    match backend:
        case "onnxruntime":
            return look_at_onnx(path, root)
        case "pytorch":
            return look_at_torch(path, options)
        case "tensorflow":
            return _look_at_tensorflow(path, options)
        case "sklearn":
            return look_at_sklearn(path, options)
        case "xgboost":
            return look_at_xgboost(path)
        case "lightgbm":
            return look_at_lightgbm(path)
        case "python":
            return look_at_python(path, root, model_folder, has_environment=_ENVIRONMENT in options)
        case _:
            return Findings()


def _look_at_tensorflow(path: str, options: Mapping[str, str]) -> Findings:
    if path.endswith(".keras"):
        found = Findings("Keras 3, which is exported to a SavedModel when it is loaded")
        if options.get(ALLOW_CODE) != "true":
            found.problems.append(f"a .keras file is made to run code when it is read: {_NEEDS_CODE}")
        return found
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    found = Findings()
    meta_graph = read_meta_graph(folder, options.get(TAG_OPTION, ""))
    signature = meta_graph.signature(options.get(SIGNATURE_OPTION, ""))
    name = next((name for name, one in meta_graph.signatures.items() if one is signature), DEFAULT_SIGNATURE)
    found.what = f"SavedModel, signature {name} of the graph with tags {', '.join(sorted(meta_graph.tags))}"
    if options.get(ALLOW_CODE) != "true":
        unsafe = unsafe_operations(meta_graph, signature)
        if unsafe:
            found.problems.append(f"it can read or write files or run code ({', '.join(unsafe)}): {_NEEDS_CODE}")
    try:
        found.signature = interface_of(signature, options)
    except InvalidArgument as error:
        found.problems.append(error.message)
    return found
