"""What prepared copies save: load time and anonymous memory of eight models, each loaded in fresh processes in turn.

Every model is given a copy, also those for which Roost would keep none; answers are compared. Then: how long the first
request to a server takes whose model has a copy, beside a bare session. ::

    python -m loadtests.prepared [--rounds 7]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper
from roost.runtimes.prepared.making import WORTH_LOAD_S, WORTH_PRIVATE_BYTES, CopyOrder, in_fresh_process
from roost.server.prepare import main as prepare

from loadtests.many_models import model_file
from tests.models import tensor_info, write_graph, write_mlp
from tests.server import started

MEMORY_BYTES = 4 << 30
_MB = 1e6


def silero(file: Path) -> Path:
    """The voice detector of the package ``silero-vad``."""
    spec = find_spec("silero_vad")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / "silero_vad.onnx"


def convnet(file: Path) -> Path:
    """Seven convolutions, up to 512 channels wide, over FP32 ``[batch, 3, 64, 64]``: 34 MB."""
    rng = np.random.default_rng(0)
    nodes, weights, last, channels = [], [], "image", 3
    for index, out in enumerate((64, 128, 256, 512, 512, 512, 512)):
        kernel = rng.standard_normal((out, channels, 3, 3), dtype=np.float32) * np.float32((2 / channels / 9) ** 0.5)
        weights.append(numpy_helper.from_array(kernel, f"k{index}"))
        stride = 2 if index < 5 else 1
        nodes.append(helper.make_node("Conv", [last, f"k{index}"], [f"c{index}"], strides=[stride] * 2, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        last, channels = f"r{index}", out
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"]))
    inputs = [tensor_info("image", "FP32", ["batch", 3, 64, 64])]
    return write_graph(file, nodes, inputs, [tensor_info("y", "FP32", ["batch", channels, 1, 1])], weights)


def int8(file: Path) -> Path:
    """Dense layers of 2048 with 8-bit weights, quantised as they run: 17 MB."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    zero = numpy_helper.from_array(np.array(0, np.int8), "zero")
    scale = numpy_helper.from_array(np.array(0.001, np.float32), "scale")
    for index in range(4):
        values = rng.integers(-127, 127, (2048, 2048), dtype=np.int8)
        weights.append(numpy_helper.from_array(values, f"w{index}"))
        quantised = [f"q{index}", f"s{index}", f"z{index}"]
        nodes += [
            helper.make_node("DynamicQuantizeLinear", [last], quantised),
            helper.make_node("MatMulInteger", [f"q{index}", f"w{index}", f"z{index}", "zero"], [f"i{index}"]),
            helper.make_node("Cast", [f"i{index}"], [f"f{index}"], to=1),
            helper.make_node("Mul", [f"f{index}", "scale"], [f"m{index}"]),
            helper.make_node("Relu", [f"m{index}"], [f"a{index}"]),
        ]
        last = f"a{index}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    inputs = [tensor_info("x", "FP32", ["batch", 2048])]
    return write_graph(file, nodes, inputs, [tensor_info("y", "FP32", ["batch", 2048])], [*weights, zero, scale])


def embedding(file: Path) -> Path:
    """A table of 100,000 words by 128, and a dense layer: 51 MB."""
    rng = np.random.default_rng(0)
    table = numpy_helper.from_array(rng.random((100_000, 128), dtype=np.float32), "table")
    dense = numpy_helper.from_array(rng.random((128, 10), dtype=np.float32), "dense")
    nodes = [
        helper.make_node("Gather", ["table", "words"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axis"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "dense"], ["y"]),
    ]
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    inputs = [tensor_info("words", "INT64", ["batch", "words"])]
    return write_graph(file, nodes, inputs, [tensor_info("y", "FP32", ["batch", 10])], [table, dense, axis])


MODELS: Mapping[str, Callable[[Path], Path]] = {
    "mlp, 97 MB": lambda file: write_mlp(file, (784, 4096, 4096, 1024, 10)),
    "mlp, 7 MB": write_mlp,
    "many layers, 26 MB": lambda file: write_mlp(file, (256,) * 101),
    "convnet, 34 MB": convnet,
    "int8, 17 MB": int8,
    "embedding, 51 MB": embedding,
    "magika, 3 MB": lambda _: model_file(),
    "silero vad, 2 MB": silero,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Medians for one model, plain and prepared."""

    name: str
    plain: Mapping[str, float]
    copy: Mapping[str, float]
    disk_bytes: int
    is_equal: bool

    def text(self) -> str:
        """A row of a Markdown table."""
        plain, copy = self.plain, self.copy
        worth = plain["load_s"] > WORTH_LOAD_S or plain["private_bytes"] > WORTH_PRIVATE_BYTES
        return (
            f"| {self.name} | {plain['load_wall_s'] * 1e3:.0f} → {copy['load_wall_s'] * 1e3:.0f} ms "
            f"| {plain['load_wall_s'] / copy['load_wall_s']:.1f} times "
            f"| {plain['load_s'] * 1e3:.0f} → {copy['load_s'] * 1e3:.0f} ms "
            f"| {plain['first_run_s'] * 1e3:.1f} → {copy['first_run_s'] * 1e3:.1f} ms "
            f"| {plain['private_bytes'] / _MB:.1f} → {copy['private_bytes'] / _MB:.1f} MB "
            f"| {copy['private_bytes'] / plain['private_bytes']:.0%} | {self.disk_bytes / _MB:.0f} MB "
            f"| {'yes' if self.is_equal else 'NO'} | {'yes' if worth else 'no'} |"
        )


def measure(name: str, file: Path, folder: Path, rounds: int) -> Row:
    """Makes a copy and loads both in turn."""
    order = CopyOrder(str(file), str(file.parent), "", [], "onnxruntime", MEMORY_BYTES)
    entry = in_fresh_process(order, {"job": "save", "target": str(folder)})["entry"]
    of_copy = {"job": "measure", "path": str(folder / entry), "root": str(folder), "prepared": True}
    plain, copy = [], []
    for _ in range(rounds):
        plain.append(in_fresh_process(order, {"job": "measure"}))
        copy.append(in_fresh_process(order, of_copy))
    answers = [trial["answers"] for trial in (*plain, *copy)]
    is_equal = bool(answers[0]) and all(found == answers[0] for found in answers)
    size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return Row(name, _medians(plain), _medians(copy), size_bytes, is_equal)


def _medians(trials: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = ("load_s", "load_wall_s", "first_run_s", "private_bytes")
    return {name: statistics.median(float(trial[name]) for trial in trials) for name in names}


def cold(folder: Path, rounds: int) -> tuple[float, float]:
    """Seconds that the first request to a server takes, and that a bare session of the same copy takes to its answer.

    Both are medians, of the 97 MB model, with everything in the page cache.
    """
    layers = (784, 4096, 4096, 1024, 10)
    model = write_mlp(folder / "repository" / "mlp" / "1" / "model.onnx", layers)
    cache = folder / "cache"
    if prepare(["--model-repository", str(folder / "repository"), "--cache-dir", str(cache)]):
        raise SystemExit("the model could not be prepared")
    (home,) = (path.parent for path in cache.glob("*/model.data"))
    order = CopyOrder(str(model), str(model.parent), "", [], "onnxruntime", MEMORY_BYTES)
    of_copy = {"job": "measure", "path": str(home / "model.onnx"), "root": str(home), "prepared": True}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, layers[0]], "data": [0.5] * layers[0]}
    requests_s, bare_s = [], []
    for _ in range(rounds + 1):
        with started(folder / "repository", folder, "--cache-dir", str(cache), "--no-preload") as server:
            begun = time.monotonic()
            status, answer = server.post("/v2/models/mlp/infer", {"inputs": [tensor]})
            requests_s.append(time.monotonic() - begun)
            if status != 200 or not server.metric("roost_prepared_loads_total"):
                raise SystemExit(f"the copy was not used: {answer}")
        trial = in_fresh_process(order, of_copy)
        bare_s.append(trial["load_wall_s"] + trial["first_run_s"])
    return statistics.median(requests_s[1:]), statistics.median(bare_s[1:])  # at the first one files are hashed


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="fresh processes for each model and way")
    arguments = parser.parse_args(argv)
    print("| model | load | | processor | first run | anonymous | | on disk | equal | worth a copy |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root:
        for number, (name, write) in enumerate(MODELS.items()):
            folder = Path(root) / str(number)
            (folder / "copy").mkdir(parents=True)
            row = measure(name, write(folder / "model.onnx"), folder / "copy", arguments.rounds)
            print(row.text(), flush=True)
        request_s, bare_s = cold(Path(root) / "cold", arguments.rounds)
        print(f"\ncold request {request_s * 1e3:.0f} ms, bare session and run {bare_s * 1e3:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
