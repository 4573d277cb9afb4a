"""The samples that a configuration gives for warming up, and the runs that a fresh instance does with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from roost.core.errors import Cancelled, Internal, InvalidArgument, ResourceExhausted
from roost.core.tensors import Signature, Tensor, TensorSpec, pack_bytes, to_array
from roost.proto import model_config_pb2 as mc
from roost.registry_client.warmup import check_warmup, warmup_runs, warmup_samples
from roost.runtimes.protocol import Cancellation, RunHandle
from roost.runtimes.warmup import WarmUp


def config_of(*warmups: str, more: str = "") -> mc.ModelConfig:
    config = mc.ModelConfig()
    text_format.Parse(f"{more} " + "".join(f"model_warmup {{ name: 'w' {warmup} }}" for warmup in warmups), config)
    return config


def samples(*warmups: str) -> list[dict[str, Any]]:
    return list[dict[str, Any]](warmup_samples(config_of(*warmups)))


def test_every_kind() -> None:
    text = """
        inputs { key: 'a' value { data_type: TYPE_FP32 dims: [1, 4] zero_data: true } }
        inputs { key: 'b' value { data_type: TYPE_FP32 dims: [2] random_data: true } }
        inputs { key: 'c' value { data_type: TYPE_FP32 dims: [3] input_data_file: 'raw' } }
    """
    assert samples(text) == [
        {
            "a": {"shape": [1, 4], "zero": True},
            "b": {"shape": [2], "random": True},
            "c": {"shape": [3], "file": "raw"},
        }
    ]
    assert samples("") == []
    batched = warmup_samples(config_of(text, more="max_batch_size: 2"))
    assert {name: given["shape"] for name, given in batched[0].items()} == {"a": [1, 1, 4], "b": [1, 2], "c": [1, 3]}


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.onnx", "a/../../b"])
def test_files_stay_in_the_models_folder(name: str) -> None:
    assert samples(f"inputs {{ key: 'a' value {{ dims: [1] input_data_file: '{name}' }} }}") == []


@dataclass
class Model:
    """Keeps what it was run with."""

    signature: Signature
    error: Exception | None = None
    processes: int = 1
    inputs: list[list[Tensor]] = field(default_factory=list)

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: RunHandle) -> Sequence[Tensor]:
        self.inputs.append(list(inputs))
        run.emit([])
        if self.error is not None:
            raise self.error
        return []

    def give_up(self) -> None: ...

    def close(self) -> None: ...


def model(*specs: TensorSpec, **changes: Any) -> Model:
    return Model(Signature(specs or (TensorSpec("x", "FP32", (-1, 3)),), ()), **changes)


def warm(
    of: Model, warmup: str, folder: Path = Path(), more: str = "max_batch_size: 8", cancelled: bool = False
) -> list[list[Tensor]]:
    """What the model was run with."""
    config, cancellation = config_of(warmup, more=more), Cancellation()
    check_warmup(config)
    cancellation.cancelled = cancelled
    WarmUp.of({"warmup": warmup_runs(config), "warmup_folder": str(folder)}).run(of, cancellation)
    return of.inputs


X = "inputs { key: 'x' value { data_type: TYPE_FP32 dims: 3 zero_data: true } }"


@pytest.mark.parametrize(
    ("warmup", "more", "shapes"),
    [
        (X, "max_batch_size: 8", [(1, 3)]),
        (f"batch_size: 4 count: 3 {X}", "max_batch_size: 8", [(4, 3)] * 3),
        (f"batch_size: 2 count: 2 {X.replace('3 zero', '[1, 3] zero')}", "", [(1, 3)] * 4),
        (
            X.replace("3 zero", "[3, 1] zero"),
            "max_batch_size: 2 input { name: 'x' dims: [-1, 1] reshape { shape: [-1] } }",
            [(1, 3)],
        ),
    ],
)
def test_rows_and_runs(warmup: str, more: str, shapes: list[tuple[int, ...]]) -> None:
    runs = warm(model(), warmup, more=more)
    assert [run[0].shape for run in runs] == shapes
    assert not any(to_array(run[0]).any() for run in runs)


def test_each_process_of_an_instance_is_warmed_up() -> None:
    assert len(warm(model(processes=3), f"count: 2 {X}")) == 6


def test_data_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "raw").write_bytes(bytes(range(12)) + b"more")
    (tmp_path / "warmup" / "words").write_bytes(pack_bytes([b"a", b"", b"\xff"]))
    specs = [
        TensorSpec("raw", "INT32", (-1, 3)),
        TensorSpec("words", "BYTES", (-1, 3)),
        TensorSpec("empty", "BYTES", (-1, 2)),
        TensorSpec("some", "INT64", (-1, 50)),
        TensorSpec("half", "BF16", (-1, 1)),
        TensorSpec("left_out", "FP32", (-1,), optional=True),
    ]
    given = {
        "raw": "dims: 3 input_data_file: 'raw'",
        "words": "data_type: TYPE_STRING dims: 3 input_data_file: 'words'",
        "empty": "data_type: TYPE_STRING dims: 2 random_data: true",
        "some": "data_type: TYPE_INT64 dims: 50 random_data: true",
        "half": "data_type: TYPE_BF16 dims: 1 random_data: true",
    }
    warmup = "batch_size: 2 " + " ".join(f"inputs {{ key: '{name}' value {{ {given[name]} }} }}" for name in given)
    (inputs,) = warm(model(*specs), warmup, tmp_path)
    raw, words, empty, some, half = (to_array(tensor) for tensor in inputs)
    assert raw.tobytes() == bytes(range(12)) * 2
    assert words.tolist() == [[b"a", b"", b"\xff"]] * 2
    assert empty.tolist() == [[b"", b""]] * 2
    assert set(some.reshape(-1).tolist()) == {0, 1}
    assert half.shape == (2, 1)


def test_an_only_lenient_input_goes_by_any_name_and_datatype() -> None:
    of = model(TensorSpec("input-0", "FP64", (-1, 3), lenient=True))
    assert [(run[0].name, run[0].datatype) for run in warm(of, X)] == [("input-0", "FP32")]


@pytest.mark.parametrize(
    ("warmup", "reason"),
    [
        ("", "input 'x' is missing"),
        (f"{X} {X.replace('x', 'z')}", "the model has no input 'z'"),
        (X.replace("FP32", "INT32"), "input 'x' is INT32, but the model expects FP32"),
        (X.replace("dims: 3", "dims: 4"), "input 'x' has shape [1, 4], but the model expects [-1, 3]"),
        (X.replace("zero_data: true", "input_data_file: 'none'"), "the file of input 'x' can't be read: No such file"),
        (X.replace("zero_data: true", "input_data_file: 'few'"), "expects 12 bytes for input 'x', but its file only"),
        (X.replace("zero_data: true", "input_data_file: 'pipe'"), "the file of input 'x' is no file"),
    ],
)
def test_what_does_not_fit_fails_the_load(tmp_path: Path, warmup: str, reason: str) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "few").write_bytes(b"12345678901")
    os.mkfifo(tmp_path / "warmup" / "pipe")
    of = model()
    with pytest.raises(InvalidArgument) as caught:
        warm(of, warmup, tmp_path)
    assert caught.value.message.startswith("warmup sample 'w' failed: ")
    assert reason in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert not of.inputs


@pytest.mark.parametrize("error", [Internal("no"), ResourceExhausted("no")])
def test_a_run_that_fails_says_which(error: Internal | ResourceExhausted) -> None:
    with pytest.raises(type(error), match=r"^warmup sample 'w' failed: no$"):
        warm(model(error=error), X)


def test_a_load_that_nobody_wants_runs_nothing() -> None:
    of = model()
    with pytest.raises(Cancelled):
        warm(of, X, cancelled=True)
    assert not of.inputs
