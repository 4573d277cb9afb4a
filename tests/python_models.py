"""Models in Python for tests: their files, and what the router would tell a worker of them."""

from __future__ import annotations

import textwrap
from pathlib import Path

from roost.registry_client.load_options import load_options
from roost.registry_client.model_config import parse_config_text

ONE_TO_ONE = """
input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }
"""
DECOUPLED = "model_transaction_policy { decoupled: true }\n"


def write_python(folder: Path, code: str, config: str = ONE_TO_ONE) -> Path:
    """Writes version 1 of a model and gives the path of its file."""
    file = folder / "1" / "model.py"
    file.parent.mkdir(parents=True)
    file.write_text(textwrap.dedent(code))
    (folder / "config.pbtxt").write_text(f'backend: "python"\n{config}')
    return file


def options_of(file: Path) -> dict[str, str]:
    """The options of its load where code is allowed."""
    model = file.parent.parent
    config = model / "config.pbtxt"
    text = config.read_text() if config.exists() else 'backend: "python"'
    return load_options(parse_config_text(text, model.name), file.parent.name, allow_code=True)
