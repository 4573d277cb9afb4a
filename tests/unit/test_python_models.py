"""The parts of Python models that need no process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from roost.core.errors import Internal, InvalidArgument, Unavailable
from roost.core.tensors import TensorSpec, to_array
from roost.runtimes.printed import BURST_LINES, LINE_BYTES, LINES_PER_S, Lines
from roost.runtimes.python import triton_utils as pb_utils
from roost.runtimes.python.adapter import ENDS_IN_A_ROW, MOST_PAUSE_S, Restarts, python_of
from roost.runtimes.python.contract import Answers, signature_of_config
from roost.runtimes.python.opening import Order
from roost.runtimes.python.triton_config import ModelConfig

ANSWERS = Answers((TensorSpec("y", "FP32", (-1, 2)), TensorSpec("text", "BYTES", (-1,)), TensorSpec("n", "INT8", ())))
GOOD: dict[str, Any] = {"y": [[1, 2.5]], "text": ["a", b"b"], "n": 3}


def test_answers_become_tensors() -> None:
    tensors = {tensor.name: to_array(tensor).tolist() for tensor in ANSWERS.tensors(GOOD, ())}
    assert tensors == {"y": [[1.0, 2.5]], "text": [b"a", b"b"], "n": 3}
    assert [tensor.name for tensor in ANSWERS.tensors(GOOD, ["n"])] == ["n"]
    assert [tensor.name for tensor in ANSWERS.tensors({"n": np.int8(3)}, (), may_miss=True)] == ["n"]
    (y,) = ANSWERS.tensors({"y": np.asfortranarray(np.ones((3, 2), np.float32))}, ["y"])
    assert y.shape == (3, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "answered with nothing"),
        ([1], "answered with a list"),
        ({**GOOD, "z": 1}, "gave an output 'z', which it does not have"),
        ({"y": [[1, 2]], "n": 3}, "did not give output 'text'"),
        ({**GOOD, "y": np.ones((1, 2))}, "'y' should be FP32: it is float64"),
        ({**GOOD, "y": [["a", "b"]]}, "'y' should be FP32: <U1 can't be float32"),
        ({**GOOD, "y": [[1, 2], [3]]}, "'y' should be FP32"),
        ({**GOOD, "y": [1, 2]}, r"'y' should have shape \[-1, 2\], it has \[2\]"),
        ({**GOOD, "y": [[1, 2, 3]]}, r"'y' should have shape \[-1, 2\], it has \[1, 3\]"),
        ({**GOOD, "n": 1.5}, "'n' should be INT8: float64 can't be int8"),
        ({**GOOD, "n": 300}, "'n' should be INT8"),
        ({**GOOD, "text": np.zeros(3)}, "'text' should be BYTES: it is float64"),
    ],
)
def test_wrong_answers_are_told_apart(given: Any, message: str) -> None:
    with pytest.raises(Internal, match=message):
        ANSWERS.tensors(given, ())


def test_a_configuration_says_what_the_model_sees() -> None:
    config = {
        "max_batch_size": 4,
        "input": [{"name": "a", "data_type": "TYPE_STRING", "dims": [1], "reshape": {"shape": []}, "optional": True}],
        "output": [{"name": "b", "data_type": "TYPE_BF16", "dims": [3]}],
    }
    signature = signature_of_config(config)
    assert signature.inputs == (TensorSpec("a", "BYTES", (-1,), optional=True),)
    assert signature.outputs == (TensorSpec("b", "BF16", (-1, 3)),)
    with pytest.raises(InvalidArgument, match="datatype 'a' has"):
        signature_of_config({"input": [{"name": "a", "dims": [1]}]})


class Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.levelname, record.getMessage()))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def lines(recorder: Recorder) -> Lines:
    log = logging.Logger("test", logging.DEBUG)
    log.addHandler(recorder)
    return Lines({"model": "m", "version": "1"}, log=log)


def test_lines_come_whole_and_with_their_level(lines: Lines, recorder: Recorder) -> None:
    for piece in (b"on", b"e\ntwo\n\n\x1eEthr", b"ee\n\x1eW\xff\nfo"):
        lines.feed(piece, 0.0)
    lines.end()
    assert recorder.records == [
        ("INFO", "one"),
        ("INFO", "two"),
        ("ERROR", "three"),
        ("WARNING", "\ufffd"),
        ("INFO", "fo"),
    ]
    assert lines.last == "fo"


def test_too_many_lines_are_counted(lines: Lines, recorder: Recorder) -> None:
    lines.feed(b"x\n" * (BURST_LINES + 5), 0.0)
    lines.feed(b"y\n" * 1000 + b"rest", 0.0)
    assert len(recorder.records) == BURST_LINES
    lines.feed(b" of it\n", 1.0)
    assert recorder.records[BURST_LINES] == ("WARNING", "the model prints too much: 1005 lines were left out")
    assert recorder.records[BURST_LINES + 1] == ("INFO", "rest of it")
    for second in range(2, 12):
        lines.feed(b"z\n" * 10_000, float(second))
    assert len(recorder.records) <= BURST_LINES + 11 * LINES_PER_S


def test_a_line_without_end_takes_no_memory(lines: Lines, recorder: Recorder) -> None:
    for _ in range(1000):
        lines.feed(b"x" * 1000, 0.0)
    assert max(len(text) for _, text in recorder.records) <= LINE_BYTES
    assert len(recorder.records) <= BURST_LINES


def test_a_process_that_ends_again_and_again_waits() -> None:
    restarts = Restarts()
    for _ in range(ENDS_IN_A_ROW):
        restarts.begin(0.0)
    with pytest.raises(Unavailable, match="ended 3 times in a row"):
        restarts.begin(0.5)
    restarts.begin(1.0)
    for _ in range(20):
        restarts.begin(restarts.not_before)
    assert restarts.not_before < 20 * MOST_PAUSE_S
    restarts.answered()
    restarts.begin(0.0)


def test_which_interpreter(tmp_path: Path) -> None:
    root = tmp_path / "model" / "1"
    own = tmp_path / "model" / "venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch(0o755)

    def order(**options: str) -> Order:
        return Order(str(root / "model.py"), str(root), options)

    assert python_of(order()) == str(own)
    assert python_of(order(EXECUTION_ENV_PATH="$$TRITON_MODEL_DIRECTORY/venv")) == str(own)
    with pytest.raises(InvalidArgument, match=r"no bin/python in 'env\.tar\.gz'; archives"):
        python_of(order(EXECUTION_ENV_PATH=str(tmp_path / "env.tar.gz")))


def test_a_triton_model_completes_its_configuration() -> None:
    config = ModelConfig({"max_batch_size": 2, "input": [{"name": "a", "data_type": "TYPE_INVALID", "dims": []}]})
    config.add_input({"name": "a", "data_type": "TYPE_FP32", "dims": [4]})
    config.add_output({"name": "b", "data_type": "TYPE_FP32", "dims": [1]})
    config.set_max_batch_size(8)
    config.set_dynamic_batching()
    assert config.as_dict() == {
        "max_batch_size": 8,
        "input": [{"name": "a", "data_type": "TYPE_FP32", "dims": [4]}],
        "output": [{"name": "b", "data_type": "TYPE_FP32", "dims": [1]}],
        "dynamic_batching": {},
    }
    wrong_calls: list[Callable[[], object]] = [
        lambda: config.add_input({"name": "a", "data_type": "TYPE_FP32", "dims": [5]}),
        lambda: config.add_output({"name": "c"}),
        lambda: config.add_output({"name": "c", "data_type": "TYPE_FP32", "dims": [1], "optional": True}),
        lambda: config.set_max_batch_size(4),
        lambda: config.set_model_transaction_policy({"other": True}),
    ]
    for call in wrong_calls:
        with pytest.raises(ValueError):
            call()


def test_what_triton_models_import() -> None:
    array = np.array([b"a", "ü"], object)
    tensor = pb_utils.Tensor("x", array)
    assert (tensor.triton_dtype(), tensor.shape(), tensor.is_cpu()) == (13, [2], True)
    encoded = pb_utils.serialize_byte_tensor(array)
    assert encoded is not None
    assert pb_utils.deserialize_bytes_tensor(encoded).tolist() == [b"a", "ü".encode()]
    numbers = pb_utils.Tensor("y", np.arange(3, dtype=np.float32))
    assert np.from_dlpack(numbers).tolist() == [0, 1, 2]
    assert pb_utils.Tensor.from_dlpack("z", np.arange(2)).as_numpy().tolist() == [0, 1]
    assert pb_utils.triton_string_to_numpy("TYPE_STRING") is np.object_
    assert [pb_utils.numpy_to_triton_type(pb_utils.triton_to_numpy_type(n)) for n in range(1, 14)] == [*range(1, 14)]
    with pytest.raises(pb_utils.TritonModelException, match=r"np\.object_"):
        pb_utils.Tensor("x", np.array(["text"]))
    answer = pb_utils.InferenceRequest(model_name="other").exec()
    assert "other models can be asked once this one is loaded" in str(answer.error())
