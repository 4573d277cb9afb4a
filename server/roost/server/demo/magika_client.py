"""Turns files into the features that magika's model was trained on, and its scores into file types.

The numbers come from the model's own ``config.min.json``; the steps are those of magika's feature extraction v2: of the
first and last block of a file, whitespace at the outer end is dropped, and the bytes next to it become one integer
each, padded towards the inside with a token that no byte has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from roost.server.demo.errors import DemoError

INPUT = "bytes"
OUTPUT = "target_label"


@dataclass(frozen=True, slots=True)
class FileType:
    """An answer: the label, what it means, and how sure the model is (0 to 1)."""

    label: str
    description: str
    score: float


@dataclass(frozen=True, slots=True)
class FileTypeModel:
    """What magika's package says of its model.

    Attributes:
        begin_size: How many features come from the beginning of a file.
        end_size: How many come from its end.
        block_size: How many bytes are read at each end.
        min_size: Files with fewer meaningful bytes are not worth asking about.
        padding: The feature that stands for no byte.
        labels: The label of each score, in order.
        thresholds: The least score to be trusted, by label.
        default_threshold: The same for all other labels.
        aliases: Labels that are answered as another one.
        descriptions: Label to what it means.
        text_labels: Labels of text formats.
        suffixes: File name suffixes, with the dot, of the types that it knows.
    """

    begin_size: int
    end_size: int
    block_size: int
    min_size: int
    padding: int
    labels: tuple[str, ...]
    thresholds: Mapping[str, float]
    default_threshold: float
    aliases: Mapping[str, str]
    descriptions: Mapping[str, str]
    text_labels: frozenset[str]
    suffixes: frozenset[str]

    @classmethod
    def read(cls, config_path: Path, kinds_path: Path) -> FileTypeModel:
        """Reads the model's configuration and the package's list of content types.

        Raises:
            DemoError: If a file is missing or the model wants features of a kind that this module does not make.
        """
        try:
            config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))
            kinds: dict[str, dict[str, Any]] = json.loads(kinds_path.read_text(encoding="utf-8"))
            if config["mid_size"] != 0 or config["use_inputs_at_offsets"]:
                raise DemoError(
                    "the installed magika wants features that the demo does not know; install magika==1.0.3"
                )
            return cls(
                begin_size=config["beg_size"],
                end_size=config["end_size"],
                block_size=config["block_size"],
                min_size=config["min_file_size_for_dl"],
                padding=config["padding_token"],
                labels=tuple(config["target_labels_space"]),
                thresholds=config["thresholds"],
                default_threshold=config["medium_confidence_threshold"],
                aliases=config["overwrite_map"],
                descriptions={label: kind["description"] or label for label, kind in kinds.items()},
                text_labels=frozenset(label for label, kind in kinds.items() if kind["is_text"]),
                suffixes=frozenset(f".{suffix}" for kind in kinds.values() for suffix in kind["extensions"]),
            )
        except (OSError, ValueError, KeyError) as error:
            raise DemoError(f"cannot read the labels of magika; install magika==1.0.3 ({error!r})") from error

    @property
    def feature_count(self) -> int:
        """How many features the model takes per file."""
        return self.begin_size + self.end_size

    def features(self, path: Path) -> npt.NDArray[np.int32] | None:
        """The features of a file, int32 ``[1, feature_count]``; None if it has too few bytes to ask the model.

        Raises:
            OSError: If the file can't be read.
        """
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            begin = file.read(min(self.block_size, size)).lstrip()[: self.begin_size]
            file.seek(max(0, size - self.block_size))
            end = file.read(self.block_size).rstrip()[-self.end_size :]
        # One byte more than the first min_size - 1 must be there after stripping, or all that is seen is padding.
        if len(begin) < self.min_size:
            return None
        row = np.full(self.feature_count, self.padding, dtype=np.int32)
        row[: len(begin)] = np.frombuffer(begin, dtype=np.uint8)
        if end:
            row[-len(end) :] = np.frombuffer(end, dtype=np.uint8)
        return row[np.newaxis, :]

    def answer(self, scores: npt.NDArray[np.float32]) -> FileType:
        """The file type that one row of scores, float32 ``[labels]``, stands for.

        A label whose score is under its threshold is answered as plain text or as unknown.
        """
        best = int(np.argmax(scores))
        score = float(scores[best])
        said = self.labels[best]
        label = self.aliases.get(said, said)
        if score < self.thresholds.get(said, self.default_threshold):
            label = "txt" if label in self.text_labels else "unknown"
        return FileType(label, self.descriptions.get(label, label), score)
