"""What a request costs beside calling the framework in process: one at a time, over gRPC, from the same inputs.

Each framework is called in a process of its own, with numpy arrays in and out, on one thread, as the worker has with a
CPU or two. Both are measured in turn, and of each the best round's median counts: others on the machine only ever add.
The client is part of what is measured: the first line says what a call that runs no model takes. A pipeline of three
steps is compared with a client that asks the steps one after the other. ::

    python -m loadtests.runtime_overhead [--rounds 5] [--requests 500] [--only MODEL ...]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import tritonclient.grpc as triton

from loadtests.runtime_cases import BY_MODEL, CASES, ROWS, Case, add, make
from tests.server import RoostServer, started

_WARM_UP = 50
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_STEPS = 3

_NOTHING = "a call that runs no model"

Found: TypeAlias = dict[tuple[str, int], list[tuple[float, float]]]
"""Microseconds directly and through the server, of every round, by what was measured and rows of a request."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=BY_MODEL, default=list(BY_MODEL))
    parser.add_argument("--in-process", nargs=2, metavar=("MODEL", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.in_process:
        model, path = options.in_process
        print(*_in_process(BY_MODEL[model], Path(path), options.requests))
        return
    with tempfile.TemporaryDirectory() as folder:
        cases = [case for case in CASES if case.model in options.only]
        _print(measure(cases, Path(folder), options.rounds, options.requests))


def measure(cases: Sequence[Case], folder: Path, rounds: int, requests: int) -> Found:
    """Measures all cases in each round.

    Args:
        cases: Models.
        folder: An empty one.
        rounds: How many.
        requests: So many of each number of rows in each round.
    """
    made, repository = folder / "made", folder / "repository"
    make(cases, made)
    for case in cases:
        add(case, made, repository)
    if has_pipeline := "twice" in {case.model for case in cases}:
        _write_pipeline(repository)
    found: Found = {}
    with started(repository, folder, "--workers", "1", "--allow-code") as server, _connected(server) as client:
        for _ in range(rounds):
            found.setdefault((_NOTHING, 0), []).append((0.0, _median_us(client.is_server_live, requests)))
            for case in cases:
                own = _in_a_process(case, made, requests)
                for rows, own_us in zip(ROWS, own, strict=True):
                    through_us = _median_us(_asking(client, case, rows), requests)
                    found.setdefault((case.title, rows), []).append((own_us, through_us))
            if has_pipeline:
                for rows in ROWS:
                    both = _pipeline(client, rows, requests)
                    found.setdefault((f"pipeline of {_STEPS} Python steps", rows), []).append(both)
    return found


@contextmanager
def _connected(server: RoostServer) -> Iterator[Any]:
    client = triton.InferenceServerClient(server.grpc)
    try:
        yield client
    finally:
        client.close()


def _in_a_process(case: Case, made: Path, requests: int) -> list[float]:
    command = [sys.executable, "-m", "loadtests.runtime_overhead", "--requests", str(requests)]
    command += ["--in-process", case.model, str(made / case.source)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **_ONE_THREAD})
    return [float(text) for text in answer.stdout.split()[-len(ROWS) :]]


def _in_process(case: Case, path: Path, requests: int) -> list[float]:
    run = case.load(path)
    return [_median_us(partial(run, case.rows(count)), requests) for count in ROWS]


def _asking(client: Any, case: Case, rows: int) -> Callable[[], Any]:
    """Asks with a tensor that is made once, as the direct calls do."""
    array = case.rows(rows)
    tensor = triton.InferInput(case.input, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    outputs = [triton.InferRequestedOutput(case.output)]
    return lambda: client.infer(case.model, [tensor], outputs=outputs).as_numpy(case.output)


def _write_pipeline(repository: Path) -> None:
    """``twice`` three times."""
    steps = "".join(
        f'  step {{ model_name: "twice" model_version: -1 input_map {{ key: "x" value: "t{step}" }}'
        f' output_map {{ key: "y" value: "t{step + 1}" }} }}\n'
        for step in range(_STEPS)
    )
    (repository / "pipeline" / "1").mkdir(parents=True)
    (repository / "pipeline" / "config.pbtxt").write_text(
        'platform: "ensemble"\n'
        'input { name: "t0" data_type: TYPE_FP32 dims: [ -1, 16 ] }\n'
        f'output {{ name: "t{_STEPS}" data_type: TYPE_FP32 dims: [ -1, 16 ] }}\n'
        f"ensemble_scheduling {{\n{steps}}}\n"
    )


def _pipeline(client: Any, rows: int, requests: int) -> tuple[float, float]:
    """Microseconds of a client that asks the steps itself, and of the pipeline."""
    array = BY_MODEL["twice"].rows(rows)
    first = triton.InferInput("t0", list(array.shape), "FP32")
    first.set_data_from_numpy(array)

    def one_by_one() -> Any:
        found = array
        for _ in range(_STEPS):
            tensor = triton.InferInput("x", list(found.shape), "FP32")
            tensor.set_data_from_numpy(found)
            found = client.infer("twice", [tensor]).as_numpy("y")
        return found

    def at_once() -> Any:
        return client.infer("pipeline", [first]).as_numpy(f"t{_STEPS}")

    assert (one_by_one() == at_once()).all()
    return _median_us(one_by_one, requests), _median_us(at_once, requests)


def _median_us(call: Callable[[], Any], requests: int) -> float:
    for _ in range(_WARM_UP):
        call()
    durations = []
    for _ in range(requests):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations) * 1e6


def _print(found: Found) -> None:
    sizes = " / ".join(map(str, ROWS))
    print(f"| {sizes} rows | directly (µs) | through the server (µs) | more (µs) |\n|---|---|---|---|")
    for title in dict.fromkeys(title for title, _ in found):
        best = [tuple(map(min, zip(*rounds, strict=True))) for (of, _), rounds in found.items() if of == title]
        own = " / ".join(f"{own:.0f}" for own, _ in best)
        through = " / ".join(f"{through:.0f}" for _, through in best)
        more = " / ".join(f"{through - own:+.0f}" for own, through in best)
        print(f"| {title} | {own} | {through} | {more} |")


if __name__ == "__main__":
    main()
