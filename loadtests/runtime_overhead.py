"""What a request costs beside calling the framework in process: one at a time, over gRPC, from the same inputs.

The framework is called in a process of its own, with numpy arrays in and out, on as many threads as a worker has. Both
are measured in turn, and of each the best round counts: others on the machine only ever add. ::

    python -m loadtests.runtime_overhead [--rounds 5] [--requests 500]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from tests.server import RoostServer, started

_WARM_UP = 50


@dataclass(frozen=True, slots=True)
class Case:
    """A model of ``tests.torch_models``.

    Attributes:
        name: Name of its file, and of the model.
        suffix: Its format.
        config: Its configuration, if it needs one.
    """

    name: str
    suffix: str
    config: str = ""

    @property
    def title(self) -> str:
        """What the table calls it."""
        return f"{self.name}.{self.suffix}"


_CONV_CONFIG = """
input { name: "x" data_type: TYPE_FP32 dims: [-1, 3, 16, 16] }
output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [-1, 10] }
"""
CASES = (Case("conv", "pt", _CONV_CONFIG), Case("conv", "pt2"))
ROWS = (1, 5)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--in-process", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.in_process:
        print(*_in_process(Path(options.in_process), options.requests))
        return
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        models.mkdir()
        subprocess.run([sys.executable, "-m", "tests.torch_models", str(models)], check=True)
        _print(_measure(models, Path(folder), options.rounds, options.requests))


def _measure(models: Path, folder: Path, rounds: int, requests: int) -> dict[str, list[tuple[float, float]]]:
    """Microseconds in process and through the server, of every round, by model and rows."""
    repository = folder / "repository"
    for case in CASES:
        version = repository / case.title.replace(".", "-") / "1"
        version.mkdir(parents=True)
        (version / f"model.{case.suffix}").write_bytes((models / case.title).read_bytes())
        if case.config:
            (version.parent / "config.pbtxt").write_text(f'backend: "pytorch"\n{case.config}')
    found: dict[str, list[tuple[float, float]]] = {}
    with started(repository, folder, "--workers", "1") as server:
        for _ in range(rounds):
            for case in CASES:
                own = _in_a_process(models / case.title, requests)
                through = _through(server, case, models, requests)
                for rows, *both in zip(ROWS, own, through, strict=True):
                    found.setdefault(f"{case.title}, {rows} rows", []).append((both[0], both[1]))
    return found


def _in_a_process(path: Path, requests: int) -> list[float]:
    command = [
        sys.executable,
        "-m",
        "loadtests.runtime_overhead",
        "--in-process",
        str(path),
        "--requests",
        str(requests),
    ]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(text) for text in answer.stdout.split()[-len(ROWS) :]]


def _in_process(path: Path, requests: int) -> list[float]:
    import torch

    torch.set_num_threads(1)
    with np.load(path.with_suffix(".npz")) as file:
        x = file["x"]
    is_script = path.suffix == ".pt"
    load: Callable[[Any], Any] = torch.jit.load if is_script else torch.export.load
    model = load(str(path)).eval() if is_script else load(path).module()

    def run(rows: int) -> Any:
        return model(torch.from_numpy(x[:rows])).numpy()

    with torch.inference_mode():
        return [_median_us(partial(run, rows), requests) for rows in ROWS]


def _through(server: RoostServer, case: Case, models: Path, requests: int) -> list[float]:
    with np.load(models / f"{case.name}.npz") as file:
        x = file["x"]
    client = triton.InferenceServerClient(server.grpc)
    try:
        medians = []
        for rows in ROWS:
            tensor = triton.InferInput("x", [rows, *x.shape[1:]], "FP32")
            tensor.set_data_from_numpy(x[:rows])
            name = case.title.replace(".", "-")
            medians.append(_median_us(partial(_ask, client, name, tensor), requests))
        return medians
    finally:
        client.close()


def _ask(client: Any, name: str, tensor: Any) -> Any:
    return client.infer(name, [tensor]).as_numpy("OUTPUT__0")


def _median_us(call: Callable[[], Any], requests: int) -> float:
    for _ in range(_WARM_UP):
        call()
    durations = []
    for _ in range(requests):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations) * 1e6


def _print(found: dict[str, list[tuple[float, float]]]) -> None:
    print("| model | in process (µs) | through the server (µs) | more (µs) |\n|---|---|---|---|")
    for title, rounds in found.items():
        own, through = (min(values) for values in zip(*rounds, strict=True))
        print(f"| {title} | {own:.0f} | {through:.0f} | {through - own:.0f} |")


if __name__ == "__main__":
    main()
