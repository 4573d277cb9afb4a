"""Says hello, to as many people as it is asked to."""

from __future__ import annotations

from typing import Any

from roost.runtimes import Model, Request


class Hello(Model):
    """``name`` BYTES [any number] gives ``greeting`` BYTES [as many]."""

    inputs = {"name": ("BYTES", [-1])}
    outputs = {"greeting": ("BYTES", [-1])}

    def load(self) -> None:
        """Called once; what takes long belongs here."""
        self.word = self.parameters.get("word", "Hello")

    def predict(self, request: Request) -> dict[str, Any]:
        """Called for each request."""
        return {"greeting": [f"{self.word}, {name.decode()}!" for name in request["name"]]}
