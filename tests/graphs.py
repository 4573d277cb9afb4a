"""Small graphs in ONNX's own text form, written as model files."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import onnx.parser

_REPEATED = re.compile(r"\{([0-9.]+) \* ([0-9]+)\}")


def write_text(path: Path, text: str, opset: int = 21) -> Path:
    """Writes a graph such as ``(float[N,4] x) => (float[N,4] y) { y = Relu(x) }``.

    Weights ``{0.5 * 3}`` stand for ``{0.5, 0.5, 0.5}``.
    """
    text = _REPEATED.sub(lambda found: "{" + ",".join([found[1]] * int(found[2])) + "}", text)
    domains = f'["" : {opset}, "com.microsoft" : 1, "ai.onnx.ml" : 3, "local" : 1]'
    model = onnx.parser.parse_model(f"<ir_version: 10, opset_import: {domains}> g {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def one(nodes: str, x: str = "float[N,4]", y: str = "float[N,4]", weights: str = "") -> str:
    """A graph with one input ``x`` and one output ``y``."""
    return f"({x} x) => ({y} y) {f'<{weights}>' if weights else ''} {{ {nodes} }}"
