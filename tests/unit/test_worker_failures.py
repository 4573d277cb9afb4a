"""What a client may read of a runtime's failure."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from roost.core.errors import Code, NotFound
from roost.core.frames import HEADER_BYTES, parse_error
from roost.runtimes.failures import failure_frame, without_paths, without_source


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


_BUILD = "/onnxruntime_src/onnxruntime/core"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"Status Message: {_BUILD}/common/safeint.h:17 static void "
            "SafeIntExceptionHandler<onnxruntime::OnnxRuntimeException>::SafeIntOnOverflow() Integer overflow\n",
            "Status Message: Integer overflow",
        ),
        (
            f"Status Message: {_BUILD}/framework/op_kernel.cc:87 virtual OrtValue* "
            "onnxruntime::OpKernelContext::OutputMLValue(int, const onnxruntime::TensorShape&) "
            "tensor.cc:57 CalculateTensorStorageSize Tensor shape.Size() must be >= 0\n",
            "Status Message: Tensor shape.Size() must be >= 0",
        ),
        (
            f"{_BUILD}/providers/cpu/tensor/reshape_helper.h:84 onnxruntime::ReshapeHelper::ReshapeHelper(const "
            "onnxruntime::TensorShape&, onnxruntime::TensorShapeVector&, bool) size != 0 && (input_shape_size % size) "
            "== 0 was false. The input tensor cannot be reshaped to the requested shape. Input shape:{6}",
            "The input tensor cannot be reshaped to the requested shape. Input shape:{6}",
        ),
        (
            "Deserialize tensor w2 failed.tensorprotoutils.cc:1876 GetExtDataFromTensorProto External initializer: w2",
            "Deserialize tensor w2 failed. External initializer: w2",
        ),
        (
            f"failed:{_BUILD}/graph/load.h:46 void f(const std::unordered_map<std::__cxx11::basic_string<char>, int>&, "
            "bool) Opset 99 is (still) new.",
            "failed: Opset 99 is (still) new.",
        ),
        (
            "/a/b.cc:3 n::{anonymous}::F::operator()(int) const::<lambda(int)> [with T = float; U = std::vector<int>] "
            "x > 0 was false. Too small",
            "Too small",
        ),
        ("/a/b.cc:3 (anonymous namespace)::f(std::function<void(int)>) const constant", "constant"),
        ("/a/b.cc:3 void f() axis >= 0 was false.", "axis >= 0 was false."),
        ("/a/b.cc:3 cut off f<(int", "cut off f<(int"),
        ("b.cc:9 operator() wrong", "wrong"),
        ("nothing of that kind: it was false. So be it", "nothing of that kind: it was false. So be it"),
        ("Name:'/encoder/layer.0/MatMul' Got: 3 Expected: 2", "Name:'/encoder/layer.0/MatMul' Got: 3 Expected: 2"),
    ],
)
def test_sources_are_removed_and_the_sentence_is_not(text: str, expected: str) -> None:
    assert without_paths(without_source(text), "/srv") == expected


@pytest.mark.parametrize("text", ["a" * 10**5, "/a" * 10**5, "/a/b.cc:1 " + "f<(" * 10**5, "b.h:1 " + "x::" * 10**5])
def test_long_messages_take_no_time_to_speak_of(text: str) -> None:
    assert without_source(text)


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
        (OSError(errno.ENFILE, "secret"), Code.RESOURCE_EXHAUSTED, "not enough file descriptors for the run"),
        (OSError(errno.EIO, "secret"), Code.INTERNAL, "the run failed unexpectedly"),
        (KeyError("secret"), Code.INTERNAL, "the run failed unexpectedly"),
        (SystemExit(3), Code.INTERNAL, "the run failed unexpectedly"),
    ],
)
def test_failures_have_a_code_and_show_no_internals(error: BaseException, code: Code, message: str) -> None:
    got, text = parse_error(failure_frame(1, error, "the run")[HEADER_BYTES:])
    assert got is code
    assert text.startswith(message)
    assert "secret" not in text
