"""Models that take a known time: t(n) = b + a·n for n rows, with any ratio of b to a.

A row is layers of matrix products over a square that is made of it, so that n rows take n times as long; what is fixed
is a loop of the same products over a constant, which no optimiser folds away because it is a loop. How long a layer
takes is measured first, and what came out afterwards: the machine decides.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper, numpy_helper

from loadtests.models import BenchModel, TensorDecl, session, write_config
from tests.models import tensor_info, write_graph

SIDE = 128
RATIOS = (0.2, 1.0, 4.0)
# Somewhat more than the 5 ms that the benches promise, since machines have faster moments than the one that measures.
ONE_ROW_S = 0.0065
MAX_BATCH_SIZE = 16
_ROUNDS = 15
_CORRECTIONS = 4
_TOLERANCE = 0.15
_PROBE_LAYERS = 16


@dataclass(frozen=True, slots=True)
class WorkModel:
    """A model and what it was measured to take: ``fixed_s + row_s * rows`` seconds of one thread.

    Attributes:
        model: The model.
        wanted_ratio: The ratio of fixed to per-row time that was aimed at.
        fixed_s: b.
        row_s: a.
    """

    model: BenchModel
    wanted_ratio: float
    fixed_s: float
    row_s: float

    @property
    def one_row_s(self) -> float:
        """t(1)."""
        return self.fixed_s + self.row_s

    def text(self) -> str:
        """One line for people."""
        return (
            f"{self.model.name}: t(n) = {self.fixed_s * 1e3:.2f} ms + {self.row_s * 1e3:.2f} ms * n, "
            f"b/a = {self.fixed_s / self.row_s:.2f}, t(1) = {self.one_row_s * 1e3:.2f} ms"
        )


def write_work_models(
    folder: Path,
    ratios: Sequence[float] = RATIOS,
    one_row_s: float = ONE_ROW_S,
    max_batch_size: int = MAX_BATCH_SIZE,
) -> list[WorkModel]:
    """Writes one model for each ratio of fixed to per-row time, all with about the same t(1)."""
    layer_s, turn_s = _unit_costs(folder / ".probe" / "model.onnx")
    works = []
    for ratio in ratios:
        row_s = one_row_s / (1 + ratio)
        layers, turns = row_s / layer_s, ratio * row_s / turn_s
        for _ in range(_CORRECTIONS):
            work = _written(folder, ratio, round(layers), round(turns), max_batch_size)
            if abs(work.row_s / row_s - 1) < _TOLERANCE and abs(work.fixed_s / (ratio * row_s) - 1) < _TOLERANCE:
                break
            layers *= row_s / work.row_s
            turns += (ratio * row_s - work.fixed_s) / turn_s
        write_config(work.model)
        works.append(work)
    return works


def _written(folder: Path, ratio: float, layers: int, turns: int, max_batch_size: int) -> WorkModel:
    name = f"work-{ratio:g}"
    tensor = functools.partial(TensorDecl, datatype="FP32", dims=(SIDE,))
    file = write_work(folder / name / "1" / "model.onnx", max(layers, 1), max(turns, 0))
    model = BenchModel(name, file, max_batch_size, (tensor("x"),), (tensor("y"),), lambda rows: {"x": _rows(rows)})
    return WorkModel(model, ratio, *_fit(file, max_batch_size))


def write_work(path: Path, layers: int, turns: int) -> Path:
    """``x`` FP32 [batch, 128] gives ``y`` of the same shape after layers for each row and turns for each run."""
    rng = np.random.default_rng(0)
    square = (rng.standard_normal((SIDE, SIDE)) * (2 / SIDE) ** 0.5).astype(np.float32)
    weights = [
        numpy_helper.from_array(square, "w"),
        numpy_helper.from_array(rng.random((1, SIDE), np.float32), "spread"),
        numpy_helper.from_array(np.array([2], np.int64), "last_axis"),
        numpy_helper.from_array(np.array(turns, np.int64), "turns"),
        numpy_helper.from_array(np.array(True), "go"),
        numpy_helper.from_array(np.eye(SIDE, dtype=np.float32), "start"),
        numpy_helper.from_array(np.zeros((), np.float32), "nothing"),
    ]
    nodes = [
        helper.make_node("Unsqueeze", ["x", "last_axis"], ["column"]),
        helper.make_node("MatMul", ["column", "spread"], ["h0"]),
    ]
    for layer in range(layers):
        nodes.append(helper.make_node("MatMul", [f"h{layer}", "w"], [f"m{layer}"]))
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"h{layer + 1}"]))
    nodes += [
        helper.make_node("ReduceMean", [f"h{layers}", "last_axis"], ["mean"], keepdims=0),
        helper.make_node("Loop", ["turns", "go", "start"], ["turned"], body=_turn()),
        helper.make_node("ReduceMean", ["turned"], ["fixed"], keepdims=0),
        helper.make_node("Mul", ["fixed", "nothing"], ["zero"]),
        helper.make_node("Add", ["mean", "zero"], ["y"]),
    ]
    shape: list[int | str | None] = ["batch", SIDE]
    return write_graph(path, nodes, [tensor_info("x", "FP32", shape)], [tensor_info("y", "FP32", shape)], weights)


def _turn() -> Any:
    square = (SIDE, SIDE)
    return helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("MatMul", ["before", "w"], ["product"]),
            helper.make_node("Relu", ["product"], ["after"]),
        ],
        "turn",
        [tensor_info("i", "INT64", []), tensor_info("go_in", "BOOL", []), tensor_info("before", "FP32", square)],
        [tensor_info("go_out", "BOOL", []), tensor_info("after", "FP32", square)],
    )


def _unit_costs(path: Path) -> tuple[float, float]:
    """Seconds that one layer takes for one row, and one turn for a run."""
    layer_s = _fit(write_work(path, _PROBE_LAYERS, 0), 4)[1] / _PROBE_LAYERS
    turn_s = _fit(write_work(path, 1, _PROBE_LAYERS), 4)[0] / _PROBE_LAYERS
    path.unlink()
    path.parent.rmdir()
    return layer_s, turn_s


def _fit(file: Path, most_rows: int) -> tuple[float, float]:
    """The b and a of t(n) = b + a·n in seconds: least squares over the medians of several runs for each n."""
    model = session(file)
    sizes = sorted({1, 2, most_rows // 2, most_rows})
    took: dict[int, list[float]] = {rows: [] for rows in sizes}
    for _ in range(_ROUNDS):
        for rows in sizes:
            inputs = {"x": _rows(rows)}
            # CPU time of this thread, which is all there is: what else runs on the machine counts for less.
            began = time.thread_time()
            model.run(None, inputs)
            took[rows].append(time.thread_time() - began)
    slope, intercept = statistics.linear_regression(sizes, [statistics.median(took[rows]) for rows in sizes])
    return max(intercept, 0.0), slope


def _rows(rows: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(rows).random((rows, SIDE), np.float32)
