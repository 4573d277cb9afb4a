"""What ONNX Runtime's settings buy where there are very many small sessions in a process.

Each setting is measured in fresh processes, all settings in turn: memory of a session before and after its first runs,
the time that creating one takes, and how long a run of a random one takes. The first row is how workers have it; each
of the others changes one thing. ::

    python -m loadtests.small_sessions [--sessions 2000] [--rounds 3] [--model simple] [--only arena]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as capi
from roost.runtimes.child import NO_TELEMETRY
from roost.runtimes.memory import MALLOC_ENVIRONMENT, private_bytes, trim_memory
from roost.runtimes.onnx_session import FATAL, session_options

from loadtests.many_models import model_file
from tests.models import write_mlp, write_simple

RUNS = 20_000
LARGEST_BATCH = 64
"""Rows of one run that each session had before memory is looked at again, where the model takes several."""

IDLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Setting:
    """One row.

    Attributes:
        name: What it is called.
        change: What it does to the options that workers have.
        environment: Variables of its process.
        threads: Threads that a run may use.
        pool: Threads of a pool that all sessions share; 0: none.
        bare: Sessions without ONNX Runtime's Python class around them.
        trims: Whether memory is given back after every creation.
    """

    name: str
    change: Callable[[ort.SessionOptions], None] = lambda options: None
    environment: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    pool: int = 0
    bare: bool = False
    trims: bool = False


def _entry(key: str, value: str) -> Callable[[ort.SessionOptions], None]:
    return lambda options: options.add_session_config_entry(key, value)


def _attribute(name: str, value: Any) -> Callable[[ort.SessionOptions], None]:
    return lambda options: setattr(options, name, value)


def _arena(options: ort.SessionOptions) -> None:
    options.enable_cpu_mem_arena = True
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "0")


SETTINGS = [
    Setting("as workers have it"),
    Setting("a memory arena for each session", _arena),
    Setting("initializers from the arena's allocator", _entry("session.use_device_allocator_for_initializers", "0")),
    Setting("no memory patterns", _attribute("enable_mem_pattern", False)),
    Setting("no reuse of memory within a run", _attribute("enable_mem_reuse", False)),
    Setting("graphs not optimised", _attribute("graph_optimization_level", ort.GraphOptimizationLevel.ORT_DISABLE_ALL)),
    Setting("allocators of the process", _entry("session.use_env_allocators", "1")),
    Setting("2 threads in each session", threads=2),
    Setting("2 threads that all sessions share", _attribute("use_per_session_threads", False), threads=2, pool=2),
    Setting("without the Python class", bare=True),
    Setting("memory given back after each creation", trims=True),
    Setting("several malloc arenas", environment={"MALLOC_ARENA_MAX": ""}),
    Setting("huge pages for malloc", environment={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
]

MODELS: Mapping[str, Callable[[Path], Path]] = {
    "simple": write_simple,
    "mlp": lambda file: write_mlp(file, (64, 128, 10)),
    "magika": lambda _: model_file(),
}


def measure(setting: Setting, file: Path, sessions: int) -> dict[str, float]:
    """Creates the sessions, in this process, and runs random ones."""
    ort.set_default_logger_severity(FATAL)
    options = session_options(setting.threads, {})
    setting.change(options)
    if setting.pool:
        ort.set_global_thread_pool_sizes(setting.pool, 1)
    feed = _feed(ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]), 1)
    np.random.default_rng(0).random(1)
    gc.collect()
    trim_memory()
    before_bytes, began_s = private_bytes(), time.perf_counter()
    made = [_create(setting, file) for _ in range(sessions)]
    create_s = time.perf_counter() - began_s
    trim_memory()
    loaded_bytes = private_bytes() - before_bytes
    runs_s = _run(made, feed)
    _run_large(made)
    trim_memory()
    used_bytes = private_bytes() - before_bytes
    threads, idle_s = len(os.listdir("/proc/self/task")), time.process_time()
    time.sleep(IDLE_S)
    return {
        "loaded_kb": loaded_bytes / sessions / 1024,
        "used_kb": used_bytes / sessions / 1024,
        "create_ms": create_s / sessions * 1e3,
        "run_p50_us": statistics.median(runs_s) * 1e6,
        "run_p99_us": statistics.quantiles(runs_s, n=100)[-1] * 1e6,
        "threads": threads,
        "idle_share": (time.process_time() - idle_s) / IDLE_S,
    }


def _create(setting: Setting, file: Path) -> Any:
    options = session_options(setting.threads, {})
    setting.change(options)
    session: Any
    if setting.bare:
        session = capi.InferenceSession(options, str(file), True, False)
        session.initialize_session(["CPUExecutionProvider"], [{}], set())
    else:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"], enable_fallback=0)
    if setting.trims:
        trim_memory()
    return session


def _feed(session: Any, rows: int) -> dict[str, Any]:
    """Zeros for each input; open dimensions are ``rows``."""
    types = {"tensor(int32)": np.int32, "tensor(float)": np.float32}
    arguments = session.inputs_meta if hasattr(session, "inputs_meta") else session.get_inputs()
    return {
        argument.name: np.zeros([dim if isinstance(dim, int) else rows for dim in argument.shape], types[argument.type])
        for argument in arguments
    }


def _run(made: Sequence[Any], feed: Mapping[str, Any]) -> list[float]:
    chosen = random.Random(0)
    runs_s = []
    names = None
    for number in range(min(RUNS, 20 * len(made))):
        session = chosen.choice(made)
        inner = getattr(session, "_sess", session)
        if names is None:
            names = [output.name for output in inner.outputs_meta]
        run_options = ort.RunOptions()
        began_s = time.perf_counter()
        inner.run(names, feed, run_options)
        if number >= len(made):
            runs_s.append(time.perf_counter() - began_s)
    return runs_s


def _run_large(made: Sequence[Any]) -> None:
    """The largest batch that each session ever sees; whatever it keeps of that, it keeps."""
    for session in made:
        inner = getattr(session, "_sess", session)
        inner.run([output.name for output in inner.outputs_meta], _feed(inner, LARGEST_BATCH), None)


def in_process(setting: Setting, model: str, file: Path, sessions: int) -> dict[str, float]:
    """``measure`` in a fresh process."""
    command = [sys.executable, "-m", "loadtests.small_sessions", "--child", setting.name]
    command += ["--model", model, "--sessions", str(sessions), "--file", str(file)]
    environment = {**os.environ, **MALLOC_ENVIRONMENT, **NO_TELEMETRY, **setting.environment}
    kept = {name: value for name, value in environment.items() if value}
    ended = subprocess.run(command, env=kept, stdout=subprocess.PIPE, check=True, timeout=600)
    figures: dict[str, float] = json.loads(ended.stdout)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=2000, help="sessions in each process")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes for each setting")
    parser.add_argument("--model", choices=list(MODELS), default="simple", help="what the sessions are of")
    parser.add_argument("--only", default="", help="only settings with this in their name, and the first one")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child is not None:
        setting = next(setting for setting in SETTINGS if setting.name == arguments.child)
        print(json.dumps(measure(setting, arguments.file, arguments.sessions)))
        return 0
    chosen = [setting for setting in SETTINGS if setting is SETTINGS[0] or arguments.only in setting.name]
    figures: dict[str, list[dict[str, float]]] = {setting.name: [] for setting in chosen}
    with tempfile.TemporaryDirectory() as folder:
        file = MODELS[arguments.model](Path(folder) / arguments.model / "model.onnx")
        for _ in range(arguments.rounds):
            for setting in chosen:
                figures[setting.name].append(in_process(setting, arguments.model, file, arguments.sessions))
    print(f"{arguments.sessions} sessions of {arguments.model}, medians of {arguments.rounds} processes for a row\n")
    print("| | KB for each, loaded | and used | creating one | run of a random one: p50 | p99 | threads | idle CPU |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rounds in figures.items():
        row = {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}
        print(
            f"| {name} | {row['loaded_kb']:.1f} | {row['used_kb']:.1f} | {row['create_ms']:.2f} ms "
            f"| {row['run_p50_us']:.1f} µs | {row['run_p99_us']:.1f} µs "
            f"| {row['threads']:.0f} | {row['idle_share']:.0%} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
