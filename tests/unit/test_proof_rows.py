"""Rows in different company: what running a model finds, whatever its graph looks like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from roost.core.errors import RoostError
from roost.runtimes.proof.compare import TOLERANCE_EPS, distance_eps
from roost.runtimes.proof.prove import Verdict, prove
from roost.runtimes.proof.samples import Array, narrowed
from roost.runtimes.protocol import LoadSpec

from tests.graphs import one, write_text
from tests.models import write_garbage
from tests.unit.test_proof_graph import DYNAMIC, REFUSED

SEEN_BY_RUNNING = (
    "dynamic quantisation",
    "softmax over the rows",
    "reduction without axes",
    "cumulative sum",
    "layer normalisation over everything",
    "mean and variance over all",
    "noise",
    "the mean of the batch",
    "a sum over rows by a product",
    "the first row",
    "rows shifted by padding",
    "numbered rows",
)

FROM_A_TABLE = one("y = Gather(table, x)", "int64[N,2]", "float[N,2,1]", "float[1,1] table = {3}")
"""Takes no index but 0 and -1."""


def tried(path: Path, **options: Any) -> Verdict:
    return prove(LoadSpec(str(path), str(path.parent)), max_rows=8, budget_s=60, **options)


@pytest.fixture
def lookup(tmp_path: Path) -> Path:
    return write_text(tmp_path / "model.onnx", FROM_A_TABLE)


class TestCompany:
    @pytest.mark.parametrize("name", SEEN_BY_RUNNING)
    def test_rows_that_change_each_other_are_seen(self, tmp_path: Path, name: str) -> None:
        path = write_text(tmp_path / "model.onnx", REFUSED[name][0])
        verdict = tried(path, static=False)
        assert verdict.max_rows == 0
        assert verdict.reason.startswith("rows have other answers")

    def test_the_graph_is_looked_at_first(self, tmp_path: Path) -> None:
        path = write_text(tmp_path / "model.onnx", DYNAMIC)
        assert tried(path).reason.startswith("operator DynamicQuantizeLinear")

    def test_a_number_of_rows_that_the_model_does_not_take(self, tmp_path: Path) -> None:
        text = one("y = Reshape(x, s)", y="float[M,4]", weights="int64[2] s = {2, 4}")
        verdict = tried(write_text(tmp_path / "model.onnx", text), static=False)
        assert verdict.reason.startswith("it does not take every number of rows")

    def test_outputs_that_do_not_follow_the_batch(self, tmp_path: Path) -> None:
        path = write_text(tmp_path / "model.onnx", one("y = Transpose(x)", y="float[M,N]"))
        assert (
            tried(path, static=False).reason
            == "output 'y' does not have one element of its first dimension for each row"
        )

    def test_time_that_is_used_up(self, tmp_path: Path) -> None:
        path = write_text(tmp_path / "model.onnx", one("y = Relu(x)"))
        assert prove(LoadSpec(str(path), str(tmp_path)), max_rows=8, budget_s=-1.0) == Verdict(0, "took too long")

    def test_answers_that_say_nothing(self, tmp_path: Path) -> None:
        text = one("n = Abs(x) m = Neg(n) y = Log(m)")
        assert "its answers are NaN or infinite" in tried(write_text(tmp_path / "model.onnx", text)).reason

    def test_sizes_that_are_too_small_are_passed_over(self, tmp_path: Path) -> None:
        text = one("y = AveragePool<kernel_shape = [30]>(x)", "float[N,1,L]", "float[N,1,M]")
        assert tried(write_text(tmp_path / "model.onnx", text)) == Verdict(8)

    @pytest.mark.parametrize("datatype", ["string", "float", "int64", "bool"])
    def test_rows_of_one_element(self, tmp_path: Path, datatype: str) -> None:
        text = one("y = Identity(x)", f"{datatype}[N]", f"{datatype}[N]")
        assert tried(write_text(tmp_path / "model.onnx", text)) == Verdict(8)

    def test_a_model_that_can_not_be_loaded(self, tmp_path: Path) -> None:
        with pytest.raises(RoostError):
            tried(write_garbage(tmp_path / "model.onnx"), static=False)


class TestSamples:
    def test_a_model_that_takes_no_made_up_rows(self, lookup: Path) -> None:
        verdict = tried(lookup)
        assert verdict.max_rows == 0
        assert verdict.reason.startswith("it takes no made-up rows, and there are no samples for warming up")

    @pytest.mark.parametrize(
        "samples",
        [
            [{"x": {"shape": [1, 2], "zero": True}}],
            [{"x": {"shape": [2, 2], "file": "rows"}}],
            [{"x": {"shape": [1, 2], "zero": True}}, {"x": {"shape": [2, 2], "file": "rows"}}],
        ],
    )
    def test_its_own_are_tried(self, lookup: Path, samples: Sequence[Mapping[str, Any]]) -> None:
        folder = lookup.parent / "warmup"
        folder.mkdir()
        (folder / "rows").write_bytes(np.array([[0, -1], [-1, 0]], np.int64).tobytes())
        assert tried(lookup, samples=samples, samples_root=str(lookup.parent)) == Verdict(8)

    @pytest.mark.parametrize(
        "samples",
        [
            [{"z": {"shape": [1, 2], "zero": True}}],
            [{"x": {"shape": [1], "zero": True}}],
            [{"x": {"shape": [0, 2], "zero": True}}],
            [{"x": {"shape": [1, 2], "file": "missing"}}],
            [{"x": {"shape": [1, 2], "zero": True}}, {"x": {"shape": [1, 3], "zero": True}}],
            [{"x": {"shape": [1 << 30, 1 << 30], "zero": True}}],
        ],
    )
    def test_such_as_do_not_fit(self, lookup: Path, samples: Sequence[Mapping[str, Any]]) -> None:
        verdict = tried(lookup, samples=samples, samples_root=str(lookup.parent))
        assert verdict.max_rows == 0
        assert verdict.reason.startswith("its samples for warming up")


class TestDistance:
    @pytest.mark.parametrize(
        ("datatype", "expected", "found", "eps"),
        [
            ("FP32", [1.0, 2.0], [1.0, 2.0], 0.0),
            ("FP32", [1.0, 2.0], [1.0, 2.0 + 2.0**-22], 1.0),
            ("FP32", [0.0, 1.0], [2.0**-23, 1.0], 1.0),  # near zero, but beside something larger
            ("FP32", [1.0, math.nan], [1.0, math.nan], 0.0),
            ("FP32", [1.0, math.nan], [1.0, 1.0], math.inf),
            ("FP32", [1.0, 1.0], [1.0, math.inf], math.inf),
            ("FP32", [math.inf], [-math.inf], math.inf),
            ("FP64", [1.0], [1.0 + 2.0**-52], 1.0),
            ("INT32", [1, 2], [1, 2], 0.0),
            ("INT32", [1, 2], [1, 3], math.inf),
            ("BYTES", [b"a"], [b"b"], math.inf),
            ("FP32", [0.0], [0.0], 0.0),
        ],
    )
    def test_in_units_of_the_datatype(self, datatype: str, expected: list[Any], found: list[Any], eps: float) -> None:
        dtype = {"FP32": np.float32, "FP64": np.float64, "INT32": np.int32, "BYTES": object}[datatype]
        assert distance_eps(datatype, np.array(expected, dtype), np.array(found, dtype)) == pytest.approx(eps)

    def test_upper_halves_of_floats(self) -> None:
        def bf16(*values: float) -> Array:
            return narrowed(np.array(values, np.float32))

        assert distance_eps("BF16", bf16(1.0, 2.0), bf16(1.0, 2.0 + 2.0**-6)) == pytest.approx(1.0, rel=0.01)
        assert distance_eps("BF16", bf16(1.0), bf16(math.nan)) == math.inf

    def test_another_shape(self) -> None:
        assert distance_eps("FP32", np.zeros(2, np.float32), np.zeros(3, np.float32)) == math.inf

    def test_there_is_a_tolerance_for_what_may_differ(self) -> None:
        assert TOLERANCE_EPS.keys() == {"FP64", "FP32", "FP16", "BF16"}
