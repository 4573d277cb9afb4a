"""How long a run waits for what a load or unload in the same process holds: the interpreter, malloc, the address space.

What it waits for a CPU is taken off, as the kernel counts it for both threads; so a busy machine will do. One thread
runs a tiny model all the time, another one loads and unloads models, with malloc set up as in workers and not::

    python -m loadtests.load_stalls [--loads 8]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
from roost.runtimes.memory import MALLOC_ENVIRONMENT, trim_memory
from roost.runtimes.onnx import OnnxRuntime
from roost.runtimes.onnx_session import session_options
from roost.runtimes.protocol import LoadSpec

from loadtests.many_models import model_file
from tests.models import write_mlp, write_simple

PAUSE_S = 0.0003
REST_S = 0.02
LAYERS = (1024, 4096, 4096, 1024)
SETTINGS = {
    "malloc as in workers": MALLOC_ENVIRONMENT,
    "malloc by itself, one arena": {"MALLOC_ARENA_MAX": "1"},
}


class Delay:
    """How long the thread that makes it has waited for a CPU; asked from any thread."""

    def __init__(self) -> None:
        self._descriptor = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)

    def seconds(self) -> float:
        """Up to now."""
        return int(os.pread(self._descriptor, 200, 0).split()[1]) / 1e9


class Runner:
    """Runs a tiny model in a thread of its own until the process ends.

    Attributes:
        runs: When each began, and how long it took, in seconds, without what the thread and ``other`` waited for a CPU.
    """

    def __init__(self, folder: Path, other: Delay) -> None:
        file = write_simple(folder / "simple.onnx")
        self._session = ort.InferenceSession(file, session_options(1, {}), providers=["CPUExecutionProvider"])
        self._feed = {arg.name: np.ones((1, 16), np.int32) for arg in self._session.get_inputs()}
        self._other = other
        self.runs: list[tuple[float, float]] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        own = Delay()
        while True:
            waited_s, began = own.seconds() + self._other.seconds(), time.monotonic()
            self._session.run(None, self._feed)
            took_s = time.monotonic() - began
            self.runs.append((began, max(0.0, took_s - (own.seconds() + self._other.seconds() - waited_s))))
            time.sleep(PAUSE_S)

    def during(self, spans: list[tuple[float, float]]) -> list[float]:
        """The runs that began meanwhile, or just before."""
        return [s for at, s in list(self.runs) if any(begin - PAUSE_S <= at <= end for begin, end in spans)]


def _span(call: Callable[[], object], spans: list[tuple[float, float]]) -> object:
    time.sleep(REST_S)
    began = time.monotonic()
    result = call()
    trim_memory()
    spans.append((began, time.monotonic()))
    return result


def _show(what: str, runs: list[float]) -> None:
    if runs:
        p50, p99, most = np.quantile(runs, (0.5, 0.99, 1.0)) * 1e3
        print(f"  {what:28}{len(runs):7,} runs   p50 {p50:.3f}   p99 {p99:.3f}   most {most:.2f} ms", flush=True)


def _measure(loads: int) -> None:
    runtime = OnnxRuntime()
    with tempfile.TemporaryDirectory() as folder:
        large = write_mlp(Path(folder) / "large.onnx", LAYERS)
        runner = Runner(Path(folder), Delay())
        time.sleep(3.0)
        _show("alone", [s for _, s in runner.runs])
        for name, file, count in (("magika, 3 MB", model_file(), 3 * loads), ("perceptron, 97 MB", large, loads)):
            loading: list[tuple[float, float]] = []
            unloading: list[tuple[float, float]] = []
            spec = LoadSpec(str(file), str(file.parent))
            for _ in range(count):
                models = [_span(lambda spec=spec: runtime.load(spec), loading)]  # type: ignore[misc]
                _span(models.clear, unloading)
            _show(f"loads of {name}", runner.during(loading))
            _show(f"unloads of {name}", runner.during(unloading))
    sys.stdout.flush()
    os._exit(0)  # while the thread runs


def main() -> None:
    """Measures in a fresh process for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--loads", type=int, default=8, help="loads of the large model; of the small one three times as many"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        _measure(arguments.loads)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    for name, setting in SETTINGS.items():
        print(name, flush=True)
        command = [sys.executable, "-m", "loadtests.load_stalls", "--here", "--loads", str(arguments.loads)]
        subprocess.run(command, env={**plain, **setting}, check=True, timeout=600)


if __name__ == "__main__":
    main()
