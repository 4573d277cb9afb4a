"""The last step: from the recogniser's probabilities to texts, and from the page back to the image."""

from __future__ import annotations

from typing import Any

import numpy as np
from roost.runtimes import Model, Request

BLANK = 0
"""What stands between two characters, and for no character."""


class Text(Model):
    """``likely`` FP32 [lines, places, characters] gives ``text`` BYTES [lines], ``score`` and ``box``.

    ``characters.txt`` beside this file has one character in each line, in the order of the recogniser's.
    """

    def load(self) -> None:
        """Reads the alphabet."""
        self._threshold = float(self.parameters["threshold"])
        characters = (self.folder / "characters.txt").read_text(encoding="utf-8").split("\n")
        self._alphabet = ["", *characters, " "]

    def predict(self, request: Request) -> dict[str, Any]:
        """The lines that the recogniser is sure enough of."""
        corners = request["corners"]
        best, sure = request["likely"].argmax(2), request["likely"].max(2)
        found = [self._read(*line) for line in zip(best, sure, strict=True)][: len(corners)]
        kept = [index for index, (_, score) in enumerate(found) if score >= self._threshold]
        return {
            "text": [found[index][0].encode() for index in kept],
            "score": np.array([found[index][1] for index in kept], np.float32),
            "box": in_image(corners[kept], *request["fit"]),
        }

    def _read(self, best: Any, sure: Any) -> tuple[str, float]:
        """A character that is the best one at several places in a row is there once."""
        is_new = best != BLANK
        is_new[1:] &= best[1:] != best[:-1]
        text = "".join(self._alphabet[number] for number in best[is_new])
        return text, float(sure[is_new].mean()) if text else 0.0


def in_image(corners: Any, top: float, scale_x: float, scale_y: float, width: float, height: float) -> Any:
    """Where places on the page are in the image that it was made from."""
    places = (corners - np.array([0, top], np.float32)) * np.array([scale_x, scale_y], np.float32)
    return places.clip(0, np.array([width, height], np.float32)).astype(np.float32)
