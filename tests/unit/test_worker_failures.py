"""What a client may read of a runtime's failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from roost.core.errors import Code, NotFound
from roost.core.frames import HEADER_BYTES, parse_error
from roost.runtimes.failures import failure_frame, without_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Load model from /srv/models/a b/1/model.onnx failed:reason", "Load model from model.onnx failed:reason"),
        ('no "/srv/models/a b/1/weights/w.bin"', 'no "weights/w.bin"'),
        ("in /srv/models/a b/1", "in "),
        ("/onnxruntime_src/onnxruntime/core/graph/model.cc:256 Unsupported", "model.cc:256 Unsupported"),
        ("see /usr/lib/python3/dist-packages/x.py, line 3", "see x.py, line 3"),
        ("Name:'/encoder/layer.0/MatMul' failed", "Name:'/encoder/layer.0/MatMul' failed"),
        ("shape {1/2} a/usr/b", "shape {1/2} a/usr/b"),
        ("two\n lines\t here", "two lines here"),
    ],
)
def test_paths_are_removed_and_node_names_are_not(text: str, expected: str) -> None:
    assert without_paths(text, "/srv/models/a b/1") == expected.strip()


@pytest.mark.parametrize("root", ["", "/", "."])
def test_odd_roots_do_not_spoil_the_text(root: str) -> None:
    assert without_paths("1/2 of 'a/b'", root) == "1/2 of 'a/b'"


def test_a_linked_root_is_removed_in_both_forms(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    assert without_paths(f"{link}/m.onnx or {tmp_path}/real/m.onnx", str(link)) == "m.onnx or m.onnx"


def test_long_reasons_are_cut() -> None:
    assert len(without_paths("x" * 5000, "/srv")) < 1100


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (NotFound("there is no instance 3"), Code.NOT_FOUND, "there is no instance 3"),
        (MemoryError(), Code.RESOURCE_EXHAUSTED, "not enough memory for the run"),
        (KeyError("secret"), Code.INTERNAL, "the run failed unexpectedly"),
        (SystemExit(3), Code.INTERNAL, "the run failed unexpectedly"),
    ],
)
def test_failures_have_a_code_and_show_no_internals(error: BaseException, code: Code, message: str) -> None:
    got, text = parse_error(failure_frame(1, error, "the run")[HEADER_BYTES:])
    assert got is code
    assert text.startswith(message)
    assert "secret" not in text
