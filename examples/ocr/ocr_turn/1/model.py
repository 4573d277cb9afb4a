"""Between classifier and recogniser: turns the lines that stand on their head."""

from __future__ import annotations

from typing import Any

from roost.runtimes import Model, Request


class Turn(Model):
    """``strips`` FP32 [lines, 3, 48, width] with some turned gives ``upright`` of the same shape with none."""

    def load(self) -> None:
        """Reads how sure the classifier has to be."""
        self._threshold = float(self.parameters["threshold"])

    def predict(self, request: Request) -> dict[str, Any]:
        """Turns what the classifier is sure of; the empty end of a line stays where it is."""
        upright = request["strips"].copy()
        turned = request["turned"]
        for line, width in enumerate(request["widths"]):
            if turned[line].argmax() == 1 and turned[line, 1] > self._threshold:
                upright[line, :, :, :width] = upright[line, :, ::-1, :width][:, :, ::-1]
        return {"upright": upright}
