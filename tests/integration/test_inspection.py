"""``roost inspect --load``: models that are loaded in real processes to see what they say then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.graphs import one, write_text
from tests.models import write_mlp

TIMEOUT_S = 60.0
DECLARED = """\
from roost.runtimes import Model
class M(Model):
    inputs = {name: ("FP32", [-1]) for name in "ab"}
    outputs = {"y": ("FP32", [-1])}
"""


def look(path: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "roost.server.cli", "inspect", str(path), "--json", "--load", *flags]
    folders = ["--state-dir", str(path / ".state"), "--cache-dir", str(path / ".cache")]
    ended = subprocess.run([*command, *folders], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert ended.stdout, ended.stderr
    return ended.returncode, json.loads(ended.stdout)


def python_model(tmp_path: Path, text: str) -> Path:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.py").write_text(DECLARED + text)
    return tmp_path


def test_a_model_is_measured_and_tried_for_batches(tmp_path: Path) -> None:
    write_mlp(tmp_path / "1" / "model.onnx", (64, 64))
    code, document = look(tmp_path)
    (version,) = document["versions"]
    assert code == 0, document
    assert (version["tensors_from"], version["memory"]["source"]) == ("load", "measured")
    assert version["batching"] == "proven: up to 32 rows"
    assert version["load_s"] > 0


def test_a_model_that_does_not_load(tmp_path: Path) -> None:
    write_text(tmp_path / "1" / "model.onnx", one("y = Add(x)"))
    code, document = look(tmp_path)
    assert code == 1
    assert "it can't be loaded: " in document["versions"][0]["problems"][0]


@pytest.mark.parametrize(
    ("flags", "text", "says"),
    [
        (("--allow-code",), "", ""),
        (("--allow-code", "--load-timeout", "2s"), "    def load(self):\n        while True: pass\n", "within 2 s"),
        (("--allow-code",), "    def load(self):\n        raise OSError('no weights')\n", "no weights"),
        ((), "open('ran', 'w')\n", "it needs --allow-code"),
    ],
)
def test_code_is_loaded_only_where_it_is_allowed(tmp_path: Path, flags: tuple[str, ...], text: str, says: str) -> None:
    code, document = look(python_model(tmp_path, text), *flags)
    (version,) = document["versions"]
    assert code == (1 if says else 0)
    assert says in "".join([*document["problems"], *version["problems"]])
    assert [tensor["name"] for tensor in version["inputs"]] == ([] if says else ["a", "b"])
    assert not list(tmp_path.rglob("ran"))
