"""PyTorch's runtime in real workers, beside what PyTorch says itself; this process does without it."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from roost.core.errors import FailedPrecondition, Internal, InvalidArgument, RoostError
from roost.core.frames import FrameType, Region, Run, WireTensor
from roost.core.tensors import DATATYPES, Signature, Tensor, from_array
from roost.server.inspection.torch_file import look_at_torch

from tests.worker_client import ARENA_BYTES, WorkerClient, arrays_of

Rows = Sequence[tuple[str, str, Sequence[int]]]

IMAGES: Rows = [("x", "FP32", (-1, 3, 16, 16))]
CLASSES: Rows = [("y", "FP32", (-1, 10))]
A_AND_B: Rows = [("a", "FP32", (-1, 4)), ("b", "FP32", (-1, 4))]
ROWS: Rows = [("x", "FP32", (-1,))]


@pytest.fixture(scope="module")
def models(torch_models: Path) -> Path:
    return torch_models


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerClient]:
    with WorkerClient(kind="torch", slots=4) as client:
        assert client.hello["runtimes"] == ["pytorch"]
        yield client


class Loaded:
    """A model in the worker; unloaded at the end."""

    _last = 0

    def __init__(
        self,
        worker: WorkerClient,
        path: Path,
        inputs: Rows = (),
        outputs: Rows = (),
        max_batch_size: int = 0,
        allow_code: bool = False,
    ) -> None:
        Loaded._last += 1
        self.instance = Loaded._last
        self._worker = worker
        options = {
            "roost.inputs": json.dumps(inputs),
            "roost.outputs": json.dumps(outputs),
            "roost.max_batch_size": str(max_batch_size),
        }
        options |= {"roost.allow_code": "true"} if allow_code else {}
        self.signature = worker.load(self.instance, path, options, "pytorch")["signature"]

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.unload(self.instance)

    def run(self, outputs: Sequence[str] = (), **inputs: Any) -> dict[str, npt.NDArray[Any]]:
        return arrays_of(self._worker.run(self.instance, tensors(inputs), outputs=outputs))


def tensors(inputs: Mapping[str, npt.NDArray[Any]]) -> list[Tensor]:
    names = {
        np.dtype(known.dtype): known.name for known in reversed(list(DATATYPES.values())) if known.dtype is not None
    }
    return [from_array(name, names.get(array.dtype, "BYTES"), array) for name, array in inputs.items()]


def expected(models: Path, name: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(models / f"{name}.npz") as file:
        return dict(file)


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_a_convolutional_net(worker: WorkerClient, models: Path, suffix: str) -> None:
    known = expected(models, "conv")
    with Loaded(worker, models / f"conv.{suffix}", IMAGES, CLASSES, max_batch_size=8) as model:
        for rows in (5, 1, 3):
            found = model.run(x=known["x"][:rows])["y"]
            np.testing.assert_allclose(found, known["y"][:rows], rtol=1e-5, atol=1e-6)


def test_an_exported_program_says_what_it_takes(worker: WorkerClient, models: Path) -> None:
    with Loaded(worker, models / "conv.pt2") as model:
        assert model.signature == {
            "inputs": [["x", "FP32", [-1, 3, 16, 16], False]],
            "outputs": [["OUTPUT__0", "FP32", [-1, 10], False]],
        }
    with Loaded(worker, models / "conv.pt2", [("INPUT__0", "FP32", (-1, 3, 16, 16))]) as model:
        assert model.signature["inputs"][0][0] == "INPUT__0"


@pytest.mark.parametrize("file", ["both.pt", "both.pt2", "open.pt2"])
def test_outputs_by_name(worker: WorkerClient, models: Path, file: str) -> None:
    known = expected(models, "both")
    sums: Rows = [("difference", "FP32", (-1, 4)), ("sum", "FP32", (-1, 4))]
    with Loaded(worker, models / file, A_AND_B, sums) as model:
        found = model.run(b=known["b"], a=known["a"])
        assert found.keys() == {"sum", "difference"}
        for name, array in found.items():
            np.testing.assert_array_equal(array, known[name])
        assert model.run(outputs=["difference"], a=known["a"], b=known["b"]).keys() == {"difference"}


def test_outputs_by_number_and_of_several_datatypes(worker: WorkerClient, models: Path) -> None:
    outputs: Rows = [("OUTPUT__1", "FP64", (-1, 4)), ("OUTPUT__0", "FP32", (-1, 4))]
    one, two = np.ones((2, 4), np.float32), np.full((2, 4), 2, np.float32)
    with Loaded(worker, models / "pair.pt", A_AND_B, outputs) as model:
        found = model.run(a=one, b=two)
        np.testing.assert_array_equal(found["OUTPUT__0"], one + two)
        np.testing.assert_array_equal(found["OUTPUT__1"], (one - two).astype(np.float64))
    with (
        Loaded(worker, models / "pair.pt", A_AND_B, [("OUTPUT__1", "FP32", (-1, 4))]) as model,
        pytest.raises(Internal, match="'OUTPUT__1' of the model is FP64, not FP32"),
    ):
        model.run(a=one, b=two)


def test_silero_vad_keeps_its_state(worker: WorkerClient, models: Path) -> None:
    known = expected(models, "silero")
    path = Path(str(distribution("silero-vad").locate_file("silero_vad/data/silero_vad.jit")))
    copy = models / "silero.pt"
    shutil.copy(path, copy)
    inputs: Rows = [("x", "FP32", (-1, 512)), ("sr", "INT64", (1,))]
    with Loaded(worker, copy, inputs, [("y", "FP32", (-1, 1))]) as model:
        rate = np.array([16000])
        found = np.stack([model.run(x=chunk, sr=rate)["y"] for chunk in known["x"]])
        np.testing.assert_allclose(found, known["y"], rtol=1e-4, atol=1e-6)
        with pytest.raises(InvalidArgument, match=r"^Input audio chunk is too short$"):
            model.run(x=np.zeros((1, 100), np.float32), sr=rate)
        with pytest.raises(InvalidArgument, match="'sr' is one value"):
            model.run(x=known["x"][0], sr=np.array([16000, 16000]))


def test_runs_of_a_model_that_keeps_state_do_not_overlap(worker: WorkerClient, models: Path) -> None:
    with Loaded(worker, models / "counter.pt", ROWS, [("count", "FP32", (1,))]) as model:
        x = tensors({"x": np.ones(4, np.float32)})
        requests = [worker.begin_run(model.instance, x) for _ in range(40)]
        counts = [arrays_of(worker.end_run(request))["count"].item() for request in requests]
        assert sorted(counts) == list(range(1, 41))
        with pytest.raises(InvalidArgument, match="the sum is negative"):
            model.run(x=-np.ones(4, np.float32))


def test_a_model_that_writes_to_its_input_gets_a_copy(worker: WorkerClient, models: Path) -> None:
    x = np.zeros(20_000, np.float32)
    offset = ARENA_BYTES // 2
    worker.arena[offset : offset + x.nbytes] = x.tobytes()
    shared = WireTensor("x", "FP32", x.shape, Region(offset, x.nbytes))
    with Loaded(worker, models / "in_place.pt", ROWS, [("y", "FP32", (-1,))]) as model:
        for _ in range(3):  # the interpreter optimises what it has run
            found = arrays_of(worker.end_run(worker.send_run(Run(model.instance, 0, [shared]))))["y"]
            np.testing.assert_array_equal(found, x + 1)
        assert worker.arena[offset : offset + x.nbytes] == x.tobytes()


def test_outputs_go_to_their_places(worker: WorkerClient, models: Path) -> None:
    known = expected(models, "conv")
    offset = ARENA_BYTES // 2
    place = WireTensor("y", "FP32", (5, 10), Region(offset, 200))
    with Loaded(worker, models / "conv.pt", IMAGES, CLASSES) as model:
        x = from_array("x", "FP32", known["x"])
        run = Run(model.instance, 0, [WireTensor(x.name, x.datatype, x.shape, x.data)], places=[place])
        answer = worker.end_run(worker.send_run(run)).outputs[0]
        assert isinstance(answer.data, Region)
        found = np.frombuffer(worker.arena, np.float32, 50, offset).reshape(5, 10)
        np.testing.assert_allclose(found, known["y"], rtol=1e-5, atol=1e-6)


def test_numbers_optional_arguments_and_bf16(worker: WorkerClient, models: Path) -> None:
    x = np.arange(3, dtype=np.float32)
    with Loaded(
        worker, models / "scaled.pt", [*ROWS, ("factor", "INT32", (1,)), ("bias", "FP32", (-1,))], ROWS
    ) as model:
        assert [row[3] for row in model.signature["inputs"]] == [False, False, True]
        np.testing.assert_array_equal(model.run(x=x, factor=np.array([3], np.int32))["x"], x * 3)
        np.testing.assert_array_equal(model.run(x=x, factor=np.array([3], np.int32), bias=x)["x"], x * 4)
    with Loaded(worker, models / "halves.pt", [("x", "BF16", (-1, -1))], [("y", "BF16", (-1, -1))]) as model:
        halves = np.array([[1, 2, 3]], np.float32).view(np.uint32) >> 16
        tensor = Tensor("x", "BF16", (1, 3), halves.astype(np.uint16).tobytes())
        answer = worker.run(model.instance, [tensor]).outputs[0]
        assert answer.shape == (3, 1)
        doubled = np.frombuffer(bytes(answer.data), np.uint16).astype(np.uint32) << 16  # type: ignore[arg-type]
        np.testing.assert_array_equal(doubled.view(np.float32), [2, 4, 6])


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({"x": np.ones((1, 3, 4, 4, 1), np.float32)}, InvalidArgument, "conv2d"),
        ({"x": np.ones((1, 4, 16, 16), np.float32)}, InvalidArgument, "channels"),
        ({"x": np.ones((0, 3, 16, 16), np.float32)}, None, ""),
        ({}, InvalidArgument, "input 'x' is missing"),
        ({"x": np.ones((1, 3, 16, 16), np.float32), "z": np.ones(1)}, InvalidArgument, "unexpected input 'z'"),
        ({"x": np.ones((1, 3, 16, 16), np.float64)}, Internal, "double"),
    ],
)
def test_bad_inputs(
    worker: WorkerClient,
    models: Path,
    inputs: dict[str, Any],
    error: type[RoostError] | None,
    message: str,
) -> None:
    known = expected(models, "conv")
    with Loaded(worker, models / "conv.pt", IMAGES, CLASSES) as model:
        if error is None:
            assert model.run(**inputs)["y"].shape == (0, 10)
        else:
            with pytest.raises(error, match=message) as caught:
                model.run(**inputs)
            assert "/" not in caught.value.message
            assert "\n" not in caught.value.message
        np.testing.assert_allclose(model.run(x=known["x"])["y"], known["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("state_dict.pt", InvalidArgument, "state dict .* torch.export.save"),
        ("legacy.pt", InvalidArgument, "a pickle, written by torch.save"),
        ("reader.pt", FailedPrecondition, "from_file.*needs --allow-code"),
        ("writer.pt", FailedPrecondition, "save.*needs --allow-code"),
        ("pickled.pt2", FailedPrecondition, "pickled.*needs --allow-code"),
        ("samples.pt2", FailedPrecondition, "sample inputs are objects; it needs --allow-code"),
        ("calls.pt2", FailedPrecondition, "torch.os.getpid.*needs --allow-code"),
        ("compiled.pt2", FailedPrecondition, "AOTInductor may run any code: it needs --allow-code"),
        ("garbage.pt", InvalidArgument, "broken or no model"),
        ("missing.pt", InvalidArgument, "can't be read: No such file"),
        ("cut.pt", InvalidArgument, "broken or no model"),
        ("short.pt", InvalidArgument, "a tensor is larger than what the archive has of it"),
        ("conv.pt", InvalidArgument, "does not say what its input 'x' is: list all inputs and outputs"),
    ],
)
def test_what_is_refused(worker: WorkerClient, models: Path, name: str, error: type[RoostError], message: str) -> None:
    (models / "garbage.pt").write_bytes(b"this is no model " * 64)
    (models / "cut.pt").write_bytes((models / "conv.pt").read_bytes()[:-2000])
    shutil.copy(models / "conv.pt2", models / "compiled.pt2")
    with zipfile.ZipFile(models / "compiled.pt2", "a") as archive:
        archive.writestr("conv/data/aotinductor/model/model.so", b"\x7fELF")
    with pytest.raises(error, match=message) as caught:
        Loaded(worker, models / name)
    assert str(models) not in caught.value.message
    assert not (models / "was-run").exists()


def test_code_is_loaded_where_it_is_allowed(worker: WorkerClient, models: Path) -> None:
    with Loaded(worker, models / "reader.pt", ROWS, [("y", "UINT8", (4,))], allow_code=True) as model:
        assert model.run(x=np.ones(1, np.float32))["y"].tobytes() == Path("/etc/passwd").read_bytes()[:4]


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_unloading_gives_memory_back(worker: WorkerClient, models: Path, suffix: str) -> None:
    """Loads and unloads 20 MB several times; what is left is less than one of them."""
    known = expected(models, "conv")

    def cycle() -> int:
        with Loaded(worker, models / f"wide.{suffix}", [("x", "FP32", (-1, 16))], [("y", "FP32", (-1, 16))]) as model:
            model.run(x=known["x"].reshape(-1, 16)[:4])
        return trimmed(worker)

    cycle()
    before = cycle()
    for _ in range(4):
        after = cycle()
    assert after - before < 10 << 20


def trimmed(worker: WorkerClient) -> int:
    return int(worker.control(FrameType.TRIM)["private_bytes"])


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((3, 4), (3, 5), "dimension 1 .* 'b' is 5, and has to be 4"),
        ((3, 4), (2, 4), "dimension 0 .* 'b' is 2, and has to be 3"),
        ((9, 4), (9, 4), "dimension 0 .* 'a' is 9, and has to be 1 to 8"),
        ((3, 4), (3,), "'b' .* has 2 dimensions, not 1"),
    ],
)
def test_sizes_that_an_exported_program_was_not_made_for(
    worker: WorkerClient, models: Path, a: tuple[int, ...], b: tuple[int, ...], message: str
) -> None:
    with Loaded(worker, models / "both.pt2") as model, pytest.raises(InvalidArgument, match=message):
        model.run(a=np.ones(a, np.float32), b=np.ones(b, np.float32))


def test_values_that_are_nested(worker: WorkerClient, models: Path) -> None:
    """A list and a keyword of the program are inputs like others; one size is computed from another one."""
    one, two = np.ones(3, np.float32), np.full(6, 2, np.float32)
    with Loaded(worker, models / "nested.pt2") as model:
        names = [row[0] for row in model.signature["inputs"]]
        assert len(names) == 3
        found = model.run(**dict(zip(names, (one, two, one), strict=True)))
        np.testing.assert_array_equal(found["OUTPUT__0"], np.full(3, 6, np.float32))
        with pytest.raises(InvalidArgument, match="is 5, and has to be 6"):
            model.run(**dict(zip(names, (one, two[:5], one), strict=True)))


@pytest.mark.parametrize("name", ["conv", "both", "nested", "wide"])
def test_an_exported_program_is_described_without_a_load(worker: WorkerClient, models: Path, name: str) -> None:
    found = look_at_torch(str(models / f"{name}.pt2"), {})
    with Loaded(worker, models / f"{name}.pt2") as model:
        assert found.signature == Signature.from_json(model.signature)
    assert not found.problems
