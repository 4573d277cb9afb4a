"""Repositories of very many models for the mesh bench, whose files differ so that no two share a digest."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtests.models import BenchModel, magika, simple
from tests.models import write_mlp

_DOC_STRING = b"\x32"  # field 6 of ONNX's ModelProto, a string
TINY = "128KiB"
"""What an operator would declare for models that take 75 KB, instead of an estimate that is good for any model."""

_FEW_ROWS = 4

LARGE_LAYERS = (784, 4096, 4096, 1024, 10)
"""Dense layers of 97 MB."""


def with_note(model: bytes, text: str) -> bytes:
    """The bytes of an ONNX model with another ``doc_string``: of fields that come twice, readers take the last."""
    note = text.encode()
    if len(note) > 127:  # whose length would take a second byte
        raise ValueError("the text is too long")
    return model + _DOC_STRING + bytes([len(note)]) + note


def write_copies(
    folder: Path,
    build: Callable[[Path], BenchModel],
    names: Sequence[str],
    config: Callable[[BenchModel], str],
    note: str = "",
) -> BenchModel:
    """Writes a model under many names, each with a configuration.

    Args:
        folder: The repository.
        build: Writes the model.
        names: Under which names.
        config: Makes the text of a config.pbtxt.
        note: What the files differ in from those of other calls; without it, each of them is different.

    Returns:
        The model, whose file is the first one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        model = build(Path(scratch))
        content = model.file.read_bytes()
    for name in names:
        file = folder / name / "1" / "model.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(with_note(content, note or name))
        text = config(dataclasses.replace(model, name=name, file=file))
        (folder / name / "config.pbtxt").write_text(text, encoding="utf-8")
    return dataclasses.replace(model, file=folder / names[0] / "1" / "model.onnx")


def simples(folder: Path, count: int) -> tuple[BenchModel, list[str]]:
    """So many tiny models, with configurations like those of Triton's examples; returns one of them and all names."""
    names = [f"simple-{number:05}" for number in range(count)]
    return write_copies(folder, simple, names, tiny), names


def magikas(folder: Path, count: int, note: str = "") -> tuple[BenchModel, list[str]]:
    """So many copies of the package magika's model: 3 MB, several milliseconds a run; alike if there is a note."""
    names = [f"magika-{number:03}" for number in range(count)]
    return write_copies(folder, magika, names, in_small_batches, note), names


def in_small_batches(model: BenchModel) -> str:
    """A configuration with batches of few rows: the rows of a larger one take longer and more memory."""
    return dataclasses.replace(model, max_batch_size=_FEW_ROWS).config()


def tiny(model: BenchModel) -> str:
    """A configuration that says how much memory a tiny model takes."""
    return model.config() + _parameter("roost.memory_bytes", TINY)


def pinned(config: str) -> str:
    """The configuration of a model that stays in memory."""
    return config + _parameter("roost.pin", "true")


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'


def large(folder: Path) -> str:
    """A model of 97 MB; returns its name."""
    write_mlp(folder / "large" / "1" / "model.onnx", LARGE_LAYERS)
    return "large"


def different(folder: Path, count: int) -> list[str]:
    """So many models of different sizes: dense layers of 30 KB to 10 MB, tiny ones and magikas; returns their names."""
    tiny = simples(folder, max(1, count // 10))[1]
    others = magikas(folder, max(1, count // 10))[1]
    dense = [f"dense-{number:02}" for number in range(count - len(tiny) - len(others))]
    for number, name in enumerate(dense):
        width = 64 + 1200 * number // len(dense)
        write_mlp(folder / name / "1" / "model.onnx", (100 + number, width, width, 10), seed=number)
    return [*tiny, *others, *dense]
